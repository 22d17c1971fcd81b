"""The helper process that ends a dead program's containers: on a real daemon, counted by label."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import sysconfig
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers import ANSWER, IMAGE, address, settings_of
from tests.faults.machine import CLEAN, PATIENCE, Program, children_of, command_of, slowness, stat_of, wait_until
from wfl.contexts import helper, vigil
from wfl.errors import SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wfl.contexts.undertaker import Undertaker

BUDGET_KIB = 12 * 1024
"""Memory that a waiting helper may take: little more than an interpreter."""
STATES = ("created", "exited", "paused", "running")

BEGIN = """
import json, os, signal, subprocess, sys, threading, time
from wfl.contexts.containers.ending import watch
settings, label = json.loads(sys.argv[1]), sys.argv[2]
"""
START = BEGIN + "undertaker = watch(settings, label)\n"
LINGER = "print('ready', flush=True)\nsys.stdin.readline()\n"


class Daemon:
    """A real daemon, and the containers in it that bear a label of our own."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import docker

        self.settings = settings
        self.api: Any = docker.APIClient(base_url=settings["base_url"], version="1.41", timeout=ANSWER)
        self.label = f"wfl.program={uuid.uuid4().hex}"
        self._made: list[str] = []
        self._volumes: set[str] = set()

    def make(self, state: str = "running", label: str = "") -> None:
        """A container in that state, with a volume of its own."""
        name, _, value = (label or self.label).partition("=")
        command = ["true"] if state == "exited" else ["sleep", "600"]
        config = self.api.create_host_config(network_mode="none")
        id = self.api.create_container(IMAGE, command, labels={name: value}, volumes=["/data"], host_config=config)[
            "Id"
        ]
        self._made.append(id)
        if state != "created":
            self.api.start(id)
        if state == "paused":
            self.api.pause(id)
        if state == "exited":
            self.api.wait(id, timeout=ANSWER)
        self._volumes.update(mount["Name"] for mount in self.api.inspect_container(id)["Mounts"])

    def states(self, label: str = "") -> list[str]:
        """The states of all containers with the label."""
        return sorted(one["State"] for one in self.api.containers(all=True, filters={"label": [label or self.label]}))

    def volumes(self) -> set[str]:
        """Those of the volumes made here that are still there."""
        return self._volumes & {one["Name"] for one in self.api.volumes()["Volumes"] or ()}

    def is_clean_in_time(self, since: float) -> None:
        """Two seconds after a death (more on a busy machine) nothing bears the label any more."""
        before = slowness()
        wait_until("nothing is left", lambda: not self.states())
        took = time.monotonic() - since
        assert not self.volumes()
        if took >= CLEAN:
            limit = CLEAN * max(before, slowness())
            assert took < limit, f"it took {took:.1f} s until nothing was left; here and now {limit:.1f} s are allowed"

    def close(self) -> None:
        """Remove everything of ours."""
        import docker.errors

        ids = {one["Id"] for one in self.api.containers(all=True, filters={"label": [self.label]})}
        for id in ids | set(self._made):
            try:
                self.api.remove_container(id, v=True, force=True)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):
                    raise
        wait_until("our containers are gone", lambda: not self.states())
        self.api.close()


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """How the daemon is reached."""
    return settings_of(address("docker"))


@pytest.fixture
def daemon(settings: dict[str, Any]) -> Iterator[Daemon]:
    """The daemon; afterwards nothing of ours is in it."""
    found = Daemon(settings)
    yield found
    found.close()


@pytest.fixture
def run(daemon: Daemon, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs that have a helper for the label; afterwards nothing of them is left."""
    programs: list[Program] = []

    def start(source: str) -> Program:
        programs.append(Program(source, tmp_path, json.dumps(daemon.settings), daemon.label))
        return programs[-1]

    yield start
    for program in programs:
        program.__exit__(None, None, None)


@pytest.fixture
def begin(daemon: Daemon, tmp_path: Path) -> Iterator[Callable[..., Undertaker]]:
    """Starts helpers of this very process; afterwards none is left."""
    from wfl.contexts.containers.ending import watch

    made: list[Undertaker] = []

    def start(**arguments: Any) -> Undertaker:
        found = watch(daemon.settings, daemon.label, log=str(tmp_path / "log"), **arguments)
        made.append(found)
        return found

    yield start
    for one in made:
        one.goodbye()
    assert not helpers_of(os.getpid())


_strangers: set[int] = set()


@pytest.fixture(autouse=True)
def _know_strangers() -> None:
    """Helpers that other tests of this process have left to end something on a daemon that is gone."""
    _strangers.clear()
    _strangers.update(helpers_of(os.getpid()))


def helpers_of(pid: int) -> list[int]:
    """The helpers that a program has started."""
    helpers = [child for child in children_of(pid) if b"vigil.main" in command_of(child)]
    return [helper for helper in helpers if helper not in _strangers]


def helper_of(pid: int) -> int:
    """The one helper of a program, once it is waiting: it ignores SIGTERM then, and sleeps in poll(2)."""

    def waiting() -> bool:
        found = helpers_of(pid)
        return len(found) == 1 and ignored(found[0]) >= set(vigil.SIGNALS) and (stat_of(found[0]) or "?")[0] == "S"

    wait_until("the helper is waiting", waiting)
    return helpers_of(pid)[0]


def status(pid: int, name: str) -> str:
    """A line of /proc/PID/status."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "0"
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


def ignored(pid: int) -> set[int]:
    """The signals that a process ignores."""
    mask = int(status(pid, "SigIgn"), 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def descriptors() -> list[str]:
    """What this process has open."""
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


# --- deaths -----------------------------------------------------------------------------------------------

DEATHS = {
    "SIGKILL": (signal.SIGKILL, False),
    "SIGTERM": (signal.SIGTERM, False),
    "SIGINT-group": (signal.SIGINT, True),
    "SIGTERM-group": (signal.SIGTERM, True),
    "SIGKILL-group": (signal.SIGKILL, True),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_program_s_containers_end(death: str, daemon: Daemon, run: Callable[..., Program]) -> None:
    """Whatever kills it, nothing of the label is left in two seconds, and the helper goes, too."""
    number, group = DEATHS[death]
    program = run(START + LINGER)
    program.expect("ready")
    daemon.make()
    program.kill(number, group=group)
    daemon.is_clean_in_time(program.struck)
    wait_until("the helper has gone", lambda: not program.left())


@pytest.mark.parametrize(
    "end", ["", "sys.exit(3)", "os._exit(0)", "1 / 0", "os.abort()", "os.execvp('true', ['true'])"]
)
def test_a_program_that_ends_without_a_goodbye_is_dead(end: str, daemon: Daemon, run: Callable[..., Program]) -> None:
    """It returns, exits, crashes or becomes another program: its containers end as with a signal."""
    program = run(START + LINGER + end)
    program.expect("ready")
    daemon.make()
    program.struck = time.monotonic()
    program.say("end")
    program.process.wait(PATIENCE)
    daemon.is_clean_in_time(program.struck)
    wait_until("the helper has gone", lambda: not program.left())


def test_containers_end_whatever_their_state(daemon: Daemon, run: Callable[..., Program]) -> None:
    """Never started, paused, running or ended by themselves: all are removed, with their volumes."""
    program = run(START + LINGER)
    program.expect("ready")
    for state in STATES:
        daemon.make(state)
    assert daemon.states() == list(STATES)
    assert len(daemon.volumes()) == len(STATES)
    program.kill()
    daemon.is_clean_in_time(program.struck)


def test_what_was_under_way_is_ended_too(daemon: Daemon, run: Callable[..., Program]) -> None:
    """A container that the daemon is just making or starting when the program dies does not survive it."""
    burst = """
from wfl.contexts.containers.client import Client
client = Client(settings)
name, _, value = label.partition("=")
body = {"Image": "busybox:latest", "Cmd": ["sleep", "600"], "Labels": {name: value}}
def make():
    while True:
        client.start(client.create(body, {}))
for _ in range(8):
    threading.Thread(target=make, daemon=True).start()
"""
    for moment in (1, 4):
        program = run(START + burst + LINGER)
        program.expect("ready")
        wait_until("some are there", lambda moment=moment: len(daemon.states()) >= moment)  # type: ignore[misc]
        program.kill()
        wait_until("the helper has gone", lambda program=program: not program.left())  # type: ignore[misc]
        assert daemon.states() == []


@pytest.mark.parametrize(
    "child", ["os.fork() or time.sleep(600)", "os.fork() or (undertaker.abandon(), time.sleep(600))"]
)
def test_a_fork_that_lives_on_does_not_hide_the_death(child: str, daemon: Daemon, run: Callable[..., Program]) -> None:
    """It has a copy of the socket, unless it abandoned that; its parent is the program."""
    program = run(START + child + "\n" + LINGER)
    program.expect("ready")
    daemon.make()
    program.kill()
    daemon.is_clean_in_time(program.struck)
    wait_until("only the fork is left", lambda: len(program.left()) == 1)


def test_the_end_of_a_fork_is_no_death(daemon: Daemon, run: Callable[..., Program]) -> None:
    """A child that abandoned the helper may end as it likes: the program's containers go on until the program ends."""
    child = """
if not os.fork():
    undertaker.abandon()
    assert not undertaker.alive
    undertaker.abandon()
    undertaker.goodbye()
    os._exit(0)
assert os.wait()[1] == 0
assert undertaker.alive
"""
    program = run(START + child + LINGER)
    program.expect("ready")
    daemon.make()
    helper_of(program.pid)
    assert daemon.states() == ["running"]
    program.kill()
    daemon.is_clean_in_time(program.struck)


def test_a_signal_to_all_processes_does_not_stop_the_helper(daemon: Daemon, run: Callable[..., Program]) -> None:
    """A service manager asks all processes of a program to end, its helper among them: that is when it is needed."""
    program = run(START + LINGER)
    program.expect("ready")
    daemon.make()
    pid = helper_of(program.pid)
    for number in vigil.SIGNALS:
        os.kill(pid, number)
    program.kill(signal.SIGTERM)
    daemon.is_clean_in_time(program.struck)


def test_relative_paths_mean_what_they_meant(daemon: Daemon, run: Callable[..., Program]) -> None:
    """A program that finds its modules by relative paths, and changed its directory since, is served as others are."""
    relative = "import os, sys; sys.path[:] = [os.path.relpath(path) for path in sys.path if path]\n"
    program = run(relative + START + "os.chdir('/')\n" + LINGER)
    program.expect("ready")
    daemon.make()
    program.kill()
    daemon.is_clean_in_time(program.struck)


# --- no deaths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", [True, False], ids=["waiting", "starting"])
def test_a_goodbye_leaves_containers_alone(up: bool, daemon: Daemon, begin: Callable[..., Undertaker]) -> None:  # noqa: FBT001
    """The helper goes at once, also if it has hardly come up, and nothing of it stays; a second goodbye is nothing."""
    daemon.make()
    daemon.make("paused")
    before = descriptors()
    undertaker = begin()
    there = undertaker.alive
    if up:
        helper_of(os.getpid())
    undertaker.goodbye()
    assert (there, undertaker.alive) == (True, False)
    assert not helpers_of(os.getpid())
    assert descriptors() == before
    undertaker.goodbye()
    assert daemon.states() == ["paused", "running"]


def test_a_program_that_said_goodbye_may_die(daemon: Daemon, run: Callable[..., Program]) -> None:
    """What it left running on purpose goes on."""
    program = run(START + "undertaker.goodbye()\n" + LINGER)
    program.expect("ready")
    daemon.make()
    assert not helpers_of(program.pid)
    program.kill()
    assert not program.left()
    assert daemon.states() == ["running"]


def test_the_containers_of_others_are_left_alone(daemon: Daemon, run: Callable[..., Program]) -> None:
    """Another program's label, or the same value under another name."""
    others = [f"wfl.program={uuid.uuid4().hex}", daemon.label.replace("program", "session")]
    for label in others:
        daemon.make(label=label)
    program = run(START + LINGER)
    program.expect("ready")
    daemon.make()
    program.kill()
    wait_until("the helper has gone", lambda: not program.left())
    assert daemon.states() == []
    assert [daemon.states(label) for label in others] == [["running"], ["running"]]


def test_what_has_run_may_be_kept(daemon: Daemon, run: Callable[..., Program]) -> None:
    """For a program that comes back: it finds how all ended, and nothing runs."""
    program = run(BEGIN + "undertaker = watch(settings, label, keep=True)\n" + LINGER)
    program.expect("ready")
    for state in STATES:
        daemon.make(state)
    program.kill()
    wait_until("the helper has gone", lambda: not program.left())
    assert daemon.states() == ["exited"] * 3
    found = daemon.api.containers(all=True, filters={"label": [daemon.label]})
    codes = sorted(daemon.api.inspect_container(one["Id"])["State"]["ExitCode"] for one in found)
    assert codes == [0, 137, 137]


# --- the helper itself ------------------------------------------------------------------------------------


def test_the_helper_stands_apart(daemon: Daemon, begin: Callable[..., Undertaker], tmp_path: Path) -> None:
    """In a session and a directory of its own, with nothing open but its socket, the program and its log."""
    del daemon
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        begin()
        pid = helper_of(os.getpid())
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int)]
        assert opened[:3] == ["/dev/null", str(tmp_path / "log"), str(tmp_path / "log")]
        assert sorted(name.split("[")[0].strip(":") for name in opened[3:]) in (
            ["anon_inode", "socket"],  # up to Linux 6.8
            ["pidfd", "socket"],
        )
    finally:
        os.close(reader)
        os.close(writer)


def test_settings_are_nobody_s_to_see(daemon: Daemon, begin: Callable[..., Undertaker]) -> None:
    """No secret is in the helper's command line or environment, which others may read, nor in its log."""
    daemon.settings = {**daemon.settings, "auth": {"username": "u", "password": "not-to-be-seen"}}
    begin()
    pid = helper_of(os.getpid())
    for name in ("cmdline", "environ"):
        text = Path(f"/proc/{pid}/{name}").read_bytes()
        assert text
        assert b"not-to-be-seen" not in text
        assert daemon.settings["base_url"].encode() not in text.replace(
            os.environ.get("DOCKER_HOST", "?").encode(), b""
        )


def test_waiting_costs_little(begin: Callable[..., Undertaker]) -> None:
    """The client of the daemon is not loaded before it is needed."""
    begin()
    pid = helper_of(os.getpid())
    assert int(status(pid, "VmRSS")) < BUDGET_KIB
    assert int(status(pid, "Threads")) == 1


def test_a_lost_helper_is_noticed(begin: Callable[..., Undertaker]) -> None:
    """At once: it is not alive any more, and whoever wants to know is told, once."""
    told: list[threading.Thread] = []
    before = descriptors()
    undertaker = begin(lost=lambda: told.append(threading.current_thread()))
    os.kill(helper_of(os.getpid()), signal.SIGKILL)
    wait_until("it is told", lambda: told)
    assert not undertaker.alive
    undertaker.goodbye()
    assert len(told) == 1
    assert told[0] is not threading.current_thread()
    assert descriptors() == before


def test_nobody_is_told_of_a_goodbye(begin: Callable[..., Undertaker]) -> None:
    """A helper that leaves as it should is not lost."""
    told: list[bool] = []
    undertaker = begin(lost=lambda: told.append(True))
    undertaker.goodbye()
    assert not undertaker.alive
    assert told == []


def test_another_helper_takes_the_place_of_a_lost_one(daemon: Daemon, run: Callable[..., Program]) -> None:
    """It ends everything with the label, also what was started under the first."""
    source = """
def start():
    global undertaker
    undertaker = watch(settings, label, lost=start)
    print("started", flush=True)
start()
"""
    program = run(BEGIN + source + LINGER)
    program.expect("started")
    first = helper_of(program.pid)
    daemon.make()
    os.kill(first, signal.SIGKILL)
    program.expect("started")
    assert helper_of(program.pid) != first
    assert daemon.states() == ["running"]
    program.kill()
    daemon.is_clean_in_time(program.struck)


@pytest.mark.parametrize("case", ["no interpreter", "no descriptors", "no log"])
def test_a_helper_that_cannot_be_started_is_one_error(
    case: str, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells what is wrong, and nothing stays open."""
    from wfl.contexts.containers.ending import watch

    words = {
        "no interpreter": "put python3 into PATH",
        "no descriptors": "Too many open files",
        "no log": "No such file",
    }

    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, os.strerror(24))

    before = descriptors()
    with monkeypatch.context() as change:
        if case == "no interpreter":
            change.setattr(sys, "executable", "")
            change.setattr("shutil.which", lambda *_, **__: None)
        elif case == "no descriptors":
            change.setattr("subprocess.Popen", refuse)
        with pytest.raises(SessionManagementError, match=words[case]):
            watch(daemon.settings, daemon.label, log="/nowhere/log" if case == "no log" else os.devnull)
    assert descriptors() == before


def test_settings_that_cannot_be_sent_are_refused(daemon: Daemon) -> None:
    """A mistake of the caller is seen before anything is started; paths are no mistake."""
    from wfl.contexts.containers.ending import watch

    before = descriptors()
    with pytest.raises(TypeError):
        watch({**daemon.settings, "tls": object()}, daemon.label)
    assert descriptors() == before
    assert not helpers_of(os.getpid())
    watch({**daemon.settings, "tls": {"ca_cert": Path("/ca.pem")}}, daemon.label).goodbye()


def test_a_program_with_closed_standard_streams_is_served(daemon: Daemon, run: Callable[..., Program]) -> None:
    """Sockets would take the numbers of the streams, and the helper's own streams their place."""
    closing = "out = os.dup(1)\nfor fd in (0, 1, 2): os.close(fd)\n"
    waiting = "os.write(out, b'ready\\n')\ntime.sleep(600)\n"
    program = run(BEGIN + closing + "undertaker = watch(settings, label)\n" + waiting)
    program.expect("ready")
    daemon.make()
    program.kill()
    daemon.is_clean_in_time(program.struck)


# --- what is said to it, and what it does then ------------------------------------------------------------

unclosed = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""Docker-py leaves a socket unclosed that could not be connected; a test collects it before it ends."""


@pytest.mark.parametrize(
    "said",
    [b"", b'{"settings": {}', b'{"settings": {}}', b"{}\nbye\n"],
    ids=["nothing", "half", "no line", "goodbye"],
)
def test_without_whole_orders_there_is_nothing_to_do(said: bytes, tmp_path: Path) -> None:
    """A program that dies before it has given them cannot have made a container; after a goodbye it may die."""
    assert ended_with(said, tmp_path) == (0, "")


def test_orders_are_carried_out_at_the_end(tmp_path: Path) -> None:
    """Shown by a place for the modules that has others in it: nothing of wfl was loaded before."""
    room = tmp_path / "wfl" / "contexts" / "containers"
    room.mkdir(parents=True)
    told = "def end_all(*arguments, **more): print(arguments, more, flush=True)"
    (room / "ending.py").write_text(told)
    path = [str(tmp_path), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib") + "/lib-dynload"]
    arguments = {"settings": {"a": 1}, "label": "b=c", "keep": True}
    function = "wfl.contexts.containers.ending:end_all"
    orders = {"function": function, "arguments": arguments, "cwd": "/none", "path": path}
    code, words = ended_with(json.dumps(orders).encode() + b"\n", tmp_path)
    assert (code, words) == (0, "() {'settings': {'a': 1}, 'label': 'b=c', 'keep': True}\n")


def ended_with(said: bytes, tmp_path: Path) -> tuple[int, str]:
    """Start the helper's script, say this, and hang up; its exit code and its words."""
    ours, theirs = helper.pair()
    with ours, theirs:
        log = tmp_path / "words"
        arguments = [str(theirs.fileno()), "-1"]
        process = helper.start(vigil.__file__, arguments, passed=[theirs.fileno()], log=str(log))
        theirs.close()
        ours.sendall(said)
    return process.wait(PATIENCE), log.read_text()


@unclosed
def test_a_daemon_that_is_away_is_waited_for(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It restarts, or the program's death is the machine's bad day: it is asked until it answers."""
    from wfl.contexts.containers.ending import end_all

    real = daemon.settings["base_url"].removeprefix("unix://")
    if not os.path.exists(real):
        pytest.skip("the daemon is not reached by a socket of this machine")
    door = tmp_path / "door"
    daemon.make()
    ending = threading.Thread(target=end_all, args=({**daemon.settings, "base_url": f"unix://{door}"}, daemon.label))
    ending.start()
    try:
        wait_until("it was asked in vain", lambda: str(door) in capsys.readouterr().err)
        assert daemon.states() == ["running"]
    finally:
        door.symlink_to(real)
        ending.join(PATIENCE)
        gc.collect()
    assert daemon.states() == []


@unclosed
def test_a_daemon_that_stays_away_is_given_up(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A helper does not stay for ever; it says what may be left."""
    from wfl.contexts import undertaker
    from wfl.contexts.containers import ending

    monkeypatch.setattr(undertaker, "LONGEST", 0.3)
    ending.end_all({**daemon.settings, "base_url": f"unix://{tmp_path}/none"}, daemon.label)
    gc.collect()
    assert f"{daemon.label} may be left" in capsys.readouterr().err


def test_one_that_resists_keeps_no_other_alive(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What fails is said and tried again, while the others end."""
    from wfl.contexts.containers import ending
    from wfl.contexts.containers.client import Client
    from wfl.errors import DrmCommunicationError

    refused: list[str] = []
    remove = Client.remove

    def refuse(self: Client, id: str, **arguments: Any) -> None:
        if not refused or (refused[0] == id and len(refused) < 3):
            refused.append(id)
            raise DrmCommunicationError("no answer")
        remove(self, id, **arguments)

    monkeypatch.setattr(Client, "remove", refuse)
    for _ in range(3):
        daemon.make("created")
    ending.end_all(daemon.settings, daemon.label)
    assert daemon.states() == []
    assert len(refused) == 3
    assert capsys.readouterr().err.count(f"{refused[0]}: no answer") == 3


def test_what_somebody_else_ends_meanwhile_is_no_failure(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container that ended, was resumed or was removed after it was listed needs no second attempt."""
    from wfl.contexts.containers import ending
    from wfl.contexts.containers.client import Client

    for state in ("running", "paused", "running"):
        daemon.make(state)
    found = Client.list
    looks: list[int] = []

    def look(self: Client, labels: dict[str, str]) -> list[dict[str, Any]]:
        containers = found(self, labels)
        looks.append(len(containers))
        for turn, one in enumerate(containers):
            if one["State"] == "paused":
                self.unpause(one["Id"])
            elif turn:
                self.remove(one["Id"])
            else:
                self.kill(one["Id"])
        return containers

    monkeypatch.setattr(Client, "list", look)
    ending.end_all(daemon.settings, daemon.label)
    assert looks == [3, 0, 0]
    assert daemon.states() == []
    assert capsys.readouterr().err == ""


def test_there_is_another_look_when_all_seems_done(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of the dead program may come to its end only after the first look found nothing."""
    from wfl.contexts.containers import ending
    from wfl.contexts.containers.client import Client

    found = Client.list
    looks: list[int] = []

    def look(self: Client, labels: dict[str, str]) -> list[dict[str, Any]]:
        containers = found(self, labels)
        looks.append(len(containers))
        if len(looks) == 1:
            daemon.make("created")
        return containers

    monkeypatch.setattr(Client, "list", look)
    ending.end_all(daemon.settings, daemon.label)
    assert looks == [0, 1, 0, 0]
    assert daemon.states() == []


def test_many_are_ended_together(daemon: Daemon) -> None:
    """More than are ended at once."""
    from wfl.contexts.containers import client, ending

    for _ in range(client.REQUESTS + 4):
        daemon.make("created")
    ending.end_all(daemon.settings, daemon.label)
    assert daemon.states() == []
    assert not daemon.volumes()
