"""The machine of a cluster's session: this one and one over SSH do the same. A host of this process plays the other."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko import common

from tests.ssh_server import Disk, Host, Server, Shell
from wfl.backend import Submission
from wfl.contexts.batch.command import Commands
from wfl.contexts.batch.engine import BatchBackend
from wfl.contexts.batch.machine import Here, Machine
from wfl.contexts.batch.place import Entry, Place
from wfl.contexts.batch.slurm import Slurm, SlurmContext
from wfl.contexts.ssh import SshContext
from wfl.contexts.ssh import there as module
from wfl.contexts.ssh.connection import Connection
from wfl.contexts.ssh.there import There
from wfl.drmaa2 import JobTemplate
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    SessionManagementError,
)

NAMES = ("plain", "two words", "it's", '"quoted"', "$HOME `id` \\", "-n", "*", "ü", "tab\there")
"""What file names may hold."""


class Node:
    """A login node, and a way to it."""

    def __init__(self, home: Path, keys: Path) -> None:
        self.home, self.shell = home, Shell(home, b"Welcome to the cluster\n")
        key = paramiko.ECDSAKey.generate()
        self._key = keys / "key"
        key.write_private_key_file(str(self._key))
        self.server = Server(Host(Disk(home, places=_Everywhere()), keys=[key], command=self.shell))
        self._known = self.server.known(keys / "known_hosts")
        self._given: list[There] = []

    def there(self, timeout: float = 10.0, **settings: str) -> There:
        """It as a machine."""
        place = f"somebody@127.0.0.1:{settings.pop('port', self.server.port)}"
        context = SshContext(
            place,
            config=None,
            known_hosts=self._known,
            identity_file=self._key,
            timeout=timeout,
            **settings,  # type: ignore[arg-type]
        )
        given = context.login_node()
        self._given.append(given)
        return given

    def close(self) -> None:
        """Nobody is there any more."""
        for one in self._given:
            one.close()
        self.server.close()


class _Everywhere(dict[str, Path]):
    """Paths are what they are."""

    def get(self, path: str, default: object = None) -> Path:
        """The same."""
        del default
        return Path(path)


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A login node."""
    made = Node(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("keys"))
    yield made
    made.close()


@pytest.fixture(params=["here", "there"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Each of them."""
    if request.param == "here":
        return Here()
    node: Node = request.getfixturevalue("node")
    return node.there()


@pytest.mark.parametrize("name", NAMES)
def test_texts_come_back(machine: Machine, tmp_path: Path, name: str) -> None:
    """Whatever is in them, and in their names; nothing is left beside them."""
    path = f"{tmp_path}/{name}"
    text = 'it\'s $HOME `id` \\ "x"\n\udcff\n\n  end without a line break'
    before = datetime.now(UTC) - timedelta(seconds=2)
    machine.write({path: text})
    found = machine.texts([path, f"{tmp_path}/none"])
    assert [*found] == [path]
    assert found[path].text == text
    assert before < found[path].written < datetime.now(UTC) + timedelta(seconds=2)
    assert machine.names([str(tmp_path)]) == [[name]]
    assert machine.times([path, f"{tmp_path}/none"]).keys() == {path}
    assert machine.part(path, 5, 3) == (text.encode(errors="surrogateescape")[5:8], False)
    assert machine.part(path, 5, 1 << 20) == (text.encode(errors="surrogateescape")[5:], True)
    machine.remove([path, f"{tmp_path}/none"])
    assert not machine.exists(path)


def test_many_texts(machine: Machine, tmp_path: Path) -> None:
    """As many as a session has, some empty."""
    given = {f"{tmp_path}/{number}": f"text {number}\n" * (number % 3) for number in range(1200)}
    Here().write(given)
    assert {path: told.text for path, told in machine.texts([*given, f"{tmp_path}/none"]).items()} == given
    assert len(machine.times(given)) == 1200
    machine.remove(given)
    assert machine.names([str(tmp_path)]) == [[]]


def test_a_text_that_grows(node: Node, tmp_path: Path) -> None:
    """While it is read with others, none of them is cut or mixed with another."""
    there, stop = node.there(), threading.Event()
    grows = tmp_path / "grows"
    there.write({f"{tmp_path}/{number}": f"text {number}" for number in range(20)})

    def write() -> None:
        with grows.open("a") as file:
            while not stop.is_set():
                file.write("more\n")
                file.flush()
                time.sleep(0.0005)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            found = there.texts([str(grows), *(f"{tmp_path}/{number}" for number in range(20))])
            assert [told.text for path, told in found.items() if path != str(grows)] == [
                f"text {number}" for number in range(20)
            ]
            assert set(found[str(grows)].text.split()) <= {"more"}
    finally:
        stop.set()
        thread.join()


def test_directories(machine: Machine, tmp_path: Path) -> None:
    """Made with those above them for nobody else, renamed, and removed."""
    one, other = f"{tmp_path}/a b/c", f"{tmp_path}/new"
    machine.make([one, f"{tmp_path}/a b/d"])
    assert os.stat(one).st_mode & 0o777 == 0o700
    machine.append(f"{one}/file", "1\n")
    machine.append(f"{one}/file", "2\n")
    assert Path(one, "file").read_text() == "1\n2\n"
    assert sorted(map(sorted, machine.names([f"{tmp_path}/a b", f"{tmp_path}/none", one]))) == [
        [],
        ["c", "d"],
        ["file"],
    ]
    machine.rename(one, other)
    assert Path(other, "file").exists()
    with pytest.raises(FileNotFoundError):
        machine.rename(one, other)
    machine.remove_directory(other, whole=False)
    assert machine.exists(other)
    machine.remove_directory(other, whole=True)
    assert not machine.exists(other)


def test_what_cannot_be_done(machine: Machine, tmp_path: Path) -> None:
    """Raises with the path."""
    (tmp_path / "file").touch()
    with pytest.raises(SessionManagementError, match=str(tmp_path)):
        machine.write({f"{tmp_path}/none/file": "x"})
    with pytest.raises(SessionManagementError, match=str(tmp_path)):
        machine.append(f"{tmp_path}/none/file", "x")
    with pytest.raises(SessionManagementError, match=str(tmp_path)):
        machine.make([f"{tmp_path}/file/directory"])
    with pytest.raises(InvalidStateError, match="none"):
        machine.part(f"{tmp_path}/none", 0, 1)
    with pytest.raises(InvalidStateError, match=str(tmp_path)):
        machine.part(str(tmp_path), 0, 1)
    (tmp_path / "full" / "file").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(OSError, match=r"not empty|Failure"):
        machine.rename(f"{tmp_path}/other", f"{tmp_path}/full")


def test_what_cannot_be_read(machine: Machine, tmp_path: Path) -> None:
    """Is not taken for what is empty or not there; of ends, others are told all the same."""
    place = Place(str(tmp_path), "s", machine)
    place.enter(Entry("p-1", JobTemplate(remote_command="true"), "p-1"), "")
    for number in range(1, 6):
        machine.write({place.path("end", f"p-{number}"): f"status {number}\n.\n"})
    os.remove(place.path("end", "p-3"))
    os.mkdir(place.path("end", "p-3"))
    for paths in ([place.path("end", "p-3")], [place.path("end", key) for key in ("p-2", "p-3")]):
        with pytest.raises(SessionManagementError, match="p/end/3"):
            machine.texts(paths)
    found = place.ends([f"p-{number}" for number in range(8)])
    assert {key: end.status for key, end in found.items()} == {"p-1": 1, "p-2": 2, "p-4": 4, "p-5": 5}
    assert place.end("p-3") is None


def test_commands(machine: Machine, tmp_path: Path) -> None:
    """Words and variables arrive as they are; what is said and the status come back; there is no input."""
    words = ["", *NAMES, "line\nbreak", "\udcff"]
    env = {"PATH": os.environ["PATH"], "NAME": "it's\n$HOME \udcff", "EMPTY": ""}
    done = machine.run(["printf", "%s|", *words], env, 20)
    assert done.stdout.decode(errors="surrogateescape").split("|")[:-1] == words
    shown = machine.run(["env", "-0"], env, 20).stdout.decode(errors="surrogateescape")
    told = dict(line.split("=", 1) for line in shown.split("\0") if "=" in line)
    assert {name: told.get(name) for name in (*env, "HOME")} == {**env, "HOME": None}
    done = machine.run(["sh", "-c", "cat; echo out; echo err >&2; exit 3"], env, 20)
    assert (done.stdout, done.stderr.strip(), done.returncode) == (b"out\n", b"err", 3)
    with pytest.raises(FileNotFoundError):
        machine.run([f"{tmp_path}/none"], env, 20)
    assert machine.run(["sh", "-c", "kill -SEGV $$"], env, 20).returncode == -signal.SIGSEGV
    assert machine.run(["sh", "-c", "exit 153"], env, 20).returncode == 153


def test_silent_command(machine: Machine) -> None:
    """It is killed when its time is up, with what it has said."""
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        machine.run(["sh", "-c", "echo wait >&2; sleep 600"], {"PATH": os.environ["PATH"]}, 1)
    assert b"wait" in (raised.value.stderr or b"")
    assert time.monotonic() - begun < 30


def test_timeout_of_busybox(node: Node, tmp_path: Path) -> None:
    """It has a status of its own for a command whose time was up."""
    (tmp_path / "timeout").write_text("#!/bin/sh\nexit 143\n")
    (tmp_path / "timeout").chmod(0o755)
    with pytest.raises(subprocess.TimeoutExpired):
        node.there().run(["sleep", "1"], {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, 1)


def test_strict_profile(node: Node, tmp_path: Path) -> None:
    """What a login's profile leaves behind does not matter: options, or variables that cannot be changed."""
    profile = tmp_path / "profile"
    profile.write_text("export TMOUT=600 LEFT=1\nreadonly TMOUT\nset -eufC\n")
    there = node.there(shell=f"/usr/bin/env BASH_ENV={profile} bash")
    done = there.run(["sh", "-c", "echo $LEFT out; exit 3"], {"PATH": os.environ["PATH"], "TMOUT": "5"}, 20)
    assert (done.stdout, done.stderr.strip(), done.returncode) == (b"out\n", b"", 3)
    (tmp_path / "profile~").touch()
    there.write({str(profile): ""})
    assert there.names([str(tmp_path)]) == [["profile"]]


def test_nothing_secret_is_shown(node: Node) -> None:
    """Neither variables nor texts are on a command line of the node's."""
    there = node.there()
    shown = there.run(["sh", "-c", "cat /proc/[0-9]*/cmdline"], {"PATH": os.environ["PATH"], "KEY": "hush-hush"}, 20)
    assert b"hush-hush" not in shown.stdout
    assert set(node.shell.ran) == {"exec /bin/sh -s"}


@pytest.mark.parametrize("deaf", [False, True])
def test_one_command_that_takes_too_long(node: Node, monkeypatch: pytest.MonkeyPatch, *, deaf: bool) -> None:
    """Where nobody there kills it, it costs the others their connection only if that is dead."""
    monkeypatch.setattr(module, "MORE", 0.5)
    there = node.there(timeout=1.0 if deaf else 10.0)
    assert there.exists("/")
    node.shell.deaf(yes=deaf)
    with pytest.raises(DrmCommunicationError, match="does not answer"):
        there.run(["/bin/sleep", "4"], {"PATH": "/none"}, 0.5)
    node.shell.deaf(yes=False)
    assert there.run(["echo", "again"], {"PATH": os.environ["PATH"]}, 20).stdout == b"again\n"
    assert node.server.made == 1 + deaf


def test_a_command_that_complains_at_length(machine: Machine) -> None:
    """However much is said in both ways, all of it comes, and nothing waits for the rest."""
    words = "head -c 9000000 /dev/zero >&2; head -c 5000000 /dev/zero; head -c 9000000 /dev/zero >&2; exit 3"
    done = machine.run(["sh", "-c", words], {"PATH": os.environ["PATH"]}, 30)
    assert (len(done.stdout), len(done.stderr.rstrip(b"\n")), done.returncode) == (5000000, 18000000, 3)


def test_it_is_logged_in_again(node: Node, tmp_path: Path) -> None:
    """What may be done twice is, when the connection is lost; a command is not, as nobody knows."""
    there = node.there()
    there.write({f"{tmp_path}/1": "x"})
    node.server.cut()
    there.write({f"{tmp_path}/2": "x"})
    assert there.texts([f"{tmp_path}/1"])
    threading.Timer(0.5, node.server.cut).start()
    with pytest.raises(DrmCommunicationError):
        there.run(["sleep", "20"], there.environment(), 30)
    assert there.run(["echo", "again"], there.environment(), 30).stdout == b"again\n"


def test_it_is_away(node: Node) -> None:
    """A node that was never reached is told at once, one that is away when its time is up."""
    there = node.there(timeout=1.0)
    assert there.base == str(node.home)
    node.server.close()
    begun = time.monotonic()
    with pytest.raises(DrmCommunicationError):
        there.names(["/"])
    assert 0.5 < time.monotonic() - begun < 20
    with pytest.raises(DrmCommunicationError):
        node.there(timeout=20.0).names(["/"])
    there.close()
    with pytest.raises(DrmCommunicationError, match="closed"):
        there.names(["/"])


def test_its_clock(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is as this one, however long it took to log in."""

    def slow(*args: Any, **settings: Any) -> Connection:
        time.sleep(3)
        return Connection(*args, **settings)

    monkeypatch.setattr(module, "Connection", slow)
    there = node.there()
    assert there.base == str(node.home)
    assert abs(there.now() - datetime.now(UTC)) < timedelta(seconds=2)


def test_it_is_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the time of one request, however long it was away."""
    there = node.there(timeout=1.0)
    assert there.names([]) == []
    assert there.exists("/")
    back = time.monotonic() + 3.8

    def away(*args: Any, **settings: Any) -> Connection:
        if time.monotonic() < back:
            raise DrmCommunicationError("away")
        return Connection(*args, **settings)

    monkeypatch.setattr(module, "Connection", away)
    node.server.cut()
    while time.monotonic() < back:
        with suppress(DrmCommunicationError):
            there.exists("/")
    assert there.exists("/")


def test_closing_does_not_wait(node: Node) -> None:
    """For a node that takes long to answer; what it was asked fails."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        there = node.there(timeout=4.0, port=str(silent.getsockname()[1]))
        errors: list[Exception] = []

        def ask() -> None:
            try:
                there.names(["/"])
            except DrmCommunicationError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.5)
        begun = time.monotonic()
        there.close()
        assert time.monotonic() - begun < 2
        thread.join(30)
        assert len(errors) == 1


def test_session_is_closed_though_it_is_away(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that go on are left alone: nothing has failed, and nothing is kept open."""
    there = node.there(timeout=1.0)
    backend = BatchBackend(
        Slurm(), directory=str(tmp_path), session_name="s", timeout=10, environment={}, inherit=False, detach=True,
        machine=there,
    )  # fmt: skip
    backend.open(lambda _: None, None)
    monkeypatch.setattr(Commands, "run", lambda *_, **__: "12\n")
    assert backend.submit([Submission("program-1", JobTemplate(remote_command="true"), "1")]) == ["12"]
    node.server.close()
    backend.close(end=False)
    with pytest.raises(DrmCommunicationError, match="closed"):
        there.names(["/"])


def test_few_shells_are_kept(node: Node, tmp_path: Path) -> None:
    """However much is asked at once."""
    there = node.there()
    done: list[object] = []
    ask: Callable[[], None] = lambda: done.extend(there.names([str(tmp_path)]) for _ in range(10))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [[[]]] * 120
    assert len(node.shell.ran) <= 4
    assert node.server.made == 1


@pytest.mark.parametrize("most", [1, 3])
def test_few_channels_at_once(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A node that takes fewer than are wanted slows things down; nothing is refused for that."""

    def asked(_: Host, kind: str, number: int) -> int:
        del kind, number
        open_now = sum(len(getattr(line, "_channels", ())) for line in node.server._lines)  # noqa: SLF001
        return common.OPEN_SUCCEEDED if open_now < most else common.OPEN_FAILED_CONNECT_FAILED

    monkeypatch.setattr(Host, "check_channel_request", asked)
    there = node.there(timeout=30.0)
    done: list[object] = []

    def work() -> None:
        for _ in range(2):
            done.append(there.names([str(tmp_path)]))
            done.append(there.part("/dev/null", 0, 10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 16
    assert node.server.made == 1
    most = 0
    with pytest.raises(DeniedByDrmsError, match="it refuses"):
        node.there(timeout=30.0).names(["/"])


def test_what_a_helper_gets(node: Node, tmp_path: Path) -> None:
    """It works with a login of its own."""
    there = node.there()
    again = pickle.loads(pickle.dumps(there))  # noqa: S301 - our own
    again.write({f"{tmp_path}/file": "x"})
    assert there.exists(f"{tmp_path}/file")
    again.close()


def test_settings() -> None:
    """One host; not the program's environment; files of this side are looked at before anything is contacted."""
    with pytest.raises(InvalidArgumentError, match="one login node"):
        SlurmContext(via="one,two")
    with pytest.raises(TypeError, match="via is 3"):
        SlurmContext(via=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="inherit_environment"):
        SlurmContext(via="one", inherit_environment=True)
    context = SlurmContext(via="one", directory="~/jobs")
    assert (context.directory, "via='one'" in repr(context)) == ("jobs", True)
    backend = context.backend()
    for template, words in (
        (JobTemplate(remote_command="x", stage_in_files={"a": "/none/a"}), "/none/a cannot be read"),
        (JobTemplate(remote_command="x", extensions={"inherit_environment": "true"}), "job_environment"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            backend.check(template)
    backend.check(JobTemplate(remote_command="x", stage_out_files={"here": "there"}))
    given = JobTemplate(output_path="out", stage_in_files={"there": "here"}, stage_out_files={"here": "there"})
    here = os.path.abspath("here")
    assert backend.resolve(given) == given.replace(stage_in_files={"there": here}, stage_out_files={here: "there"})
    backend.close(end=False)
