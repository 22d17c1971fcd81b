"""The program's end of a keeper's socket: starting and losing keepers, whole messages, answers, goodbyes."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.machine import PATIENCE, children_of, command_of, is_alive, stat_of, wait_until
from wfl.contexts.process import keeper, link
from wfl.contexts.process.link import Link
from wfl.errors import DrmCommunicationError, SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NO_ENV: tuple[int, dict[str, str]] = (0, {})
SLEEP = {"path": "/bin/sleep", "argv": ["sleep", "600"], "cwd": "/"}
ECHO = {"path": "/bin/echo", "argv": ["echo", "x"], "cwd": "/"}


class Listener:
    """Reads a link in a thread of its own, as the watcher of a session does, and remembers what was told."""

    def __init__(self, one: Link) -> None:
        self.link = one
        self.starts: dict[int, list[Any]] = {}
        self.ends: dict[int, list[Any]] = {}
        self._numbers = itertools.count(1)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while self.link.receive(self._told):
            pass

    def _told(self, starts: list[Any], ends: list[Any], _: list[Any]) -> None:
        self.starts.update((row[0], row) for row in starts)
        self.ends.update((row[0], row) for row in ends)

    def spawn(self, order: dict[str, Any], env: tuple[int, dict[str, str]] = NO_ENV) -> int:
        """Give the keeper a task; its number."""
        n = next(self._numbers)
        self.link.spawn(dict(order), [(n, f"key-{n}", {})], env, ())
        return n

    def started(self, n: int) -> int:
        """Wait for a task's start; its pid."""
        wait_until(f"task {n} has started", lambda: n in self.starts)
        return int(self.starts[n][1])

    def ended(self, n: int) -> Any:
        """Wait for a task's end; its exit code."""
        wait_until(f"task {n} has ended", lambda: n in self.ends)
        return self.ends[n][1]

    def over(self) -> None:
        """Wait for the end of the connection."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        """End the keeper, if it is our own, and everything that it started; close the link."""
        if self.link.process is not None and stat_of(self.link.process.pid) is not None:
            for number in (signal.SIGCONT, signal.SIGTERM):
                keeper.kill(self.link.process.pid, number)
        else:
            self.link.hang_up()
        self.over()
        self.link.sock.close()
        if self.link.process is not None:
            self.link.process.wait(PATIENCE)


@pytest.fixture
def listen() -> Iterator[Callable[[Link], Listener]]:
    """Listens to links, and closes them afterwards."""
    made: list[Listener] = []

    def start(one: Link) -> Listener:
        made.append(Listener(one))
        return made[-1]

    yield start
    for listener in reversed(made):
        listener.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a keeper is to be; not there yet."""
    return tmp_path / "session" / "keeper"


@pytest.fixture
def own(directory: Path, listen: Callable[[Link], Listener]) -> Listener:
    """A keeper of our own, as of a session without a store."""
    return listen(Link.start(directory, detach=False, keep=False))


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[Link, socket.socket]]:
    """A link, and the other end in our hands instead of a keeper's."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    with ours, theirs:
        yield Link(ours, tmp_path), theirs


def pid_of(listener: Listener) -> int:
    """The pid of our own keeper."""
    assert listener.link.process is not None
    return listener.link.process.pid


def descriptors() -> list[str]:
    """What this process has open."""
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


# --- starting ---------------------------------------------------------------------------------------------


def test_a_keeper_of_our_own_starts_tasks(own: Listener, directory: Path) -> None:
    """It is there when start() returns, its directory is ours alone, and what it does is told."""
    assert own.link.own
    assert directory.stat().st_mode & 0o777 == 0o700
    n = own.spawn(ECHO)
    assert own.ended(n) == 0
    assert own.starts[n][1] != pid_of(own)
    assert (directory / str(own.ends[n][6])).read_text() == "x\n"


def test_a_keeper_stands_apart_from_the_program(own: Listener) -> None:
    """In a session of its own, where no Ctrl-C reaches it; in a directory that nobody unmounts; with its own log."""
    own.ended(own.spawn(ECHO))
    pid = pid_of(own)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (1, 2)} == {str(own.link.directory / "log")}


def test_what_the_program_has_open_is_not_passed_on(directory: Path, listen: Callable[[Link], Listener]) -> None:
    """Not even what was made to be inherited: a pipe would never be seen to end."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        own = listen(Link.start(directory, detach=False, keep=False))
        own.started(own.spawn(SLEEP))
        os.close(writer)
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_the_keeper_s_environment_is_no_task_s(own: Listener) -> None:
    """Tasks have what orders say, and the environment that they build on is sent when its number changes."""
    order = {"path": "/bin/sh", "argv": ["sh", "-c", 'echo "$HOME,$A"'], "cwd": "/"}
    environments: list[tuple[int, dict[str, str]]] = [(0, {}), (1, {"A": "1"}), (1, {"A": "1"}), (2, {"A": "2"})]
    numbers = [own.spawn(order, env) for env in environments]
    assert [own.ended(n) for n in numbers] == [0] * 4
    texts = [(own.link.directory / str(own.ends[n][6])).read_text() for n in numbers]
    assert texts == [",\n", ",1\n", ",1\n", ",2\n"]


@pytest.mark.parametrize("case", ["there already", "no directory", "no interpreter", "not to be run"])
def test_a_keeper_that_cannot_be_started_is_one_error(
    case: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells what is wrong, and nothing stays open."""
    words = {"there already": "File exists", "no directory": "Not a directory", "no interpreter": "put python3 into"}
    if case == "there already":
        directory.mkdir(parents=True)
    elif case == "no directory":
        directory.parent.write_text("a file")
    elif case == "no interpreter":
        monkeypatch.setattr(sys, "executable", "")
        monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    else:
        monkeypatch.setattr(sys, "executable", str(directory / "python3"))
    before = descriptors()
    with pytest.raises(SessionManagementError, match=words.get(case, "cannot start the keeper")):
        Link.start(directory, detach=False, keep=True)
    assert descriptors() == before


def test_a_shortage_of_descriptors_is_an_error_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system refuses while the keeper is being started is told, and what was opened is closed again."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = descriptors()
    with monkeypatch.context() as change:
        change.setattr("subprocess.Popen", refuse)
        with pytest.raises(SessionManagementError, match="Too many open files"):
            Link.start(directory, detach=False, keep=False)
    assert descriptors() == before


def test_a_program_around_python_is_not_run_as_a_keeper(
    directory: Path, monkeypatch: pytest.MonkeyPatch, listen: Callable[[Link], Listener]
) -> None:
    """Where Python is embedded, sys.executable is that program: a Python beside its library is looked for."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    own = listen(Link.start(directory, detach=False, keep=False))
    assert own.ended(own.spawn(ECHO)) == 0
    assert b"python" in os.readlink(f"/proc/{pid_of(own)}/exe").encode()


# --- messages ---------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(), max_size=12)  # lone surrogates too: bytes of names that are no UTF-8
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.lists(VALUE, min_size=1, max_size=3), max_size=4))
def test_messages_arrive_as_they_were_sent(messages: list[list[Any]]) -> None:
    """Whatever is in them, the keeper reads the same."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        one, connection = Link(ours, Path("/")), keeper.Connection(theirs)
        for message in messages:
            one.send(message)
        one.hang_up()
        received: list[list[Any]] = []
        while (more := connection.receive()) is not None:
            received += more
    assert received == messages


@given(st.lists(st.tuples(*[st.lists(VALUE, max_size=2)] * 3), max_size=5), st.lists(st.integers(1, 60), max_size=20))
def test_news_is_whole_however_it_arrives(news: list[tuple[Any, Any, Any]], cuts: list[int]) -> None:
    """Half a line waits for its other half; all is told once and in order, and what is no news is passed over."""
    lines = [["hello", 1], *(["tell", *one] for one in news), ["reply", 99, None]]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    told: list[tuple[Any, Any, Any]] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        one = Link(ours, Path("/"))
        for cut in cuts:
            piece, data = data[:cut], data[cut:]
            if piece:
                theirs.sendall(piece)
                assert one.receive(lambda *rows: told.append(rows))
        theirs.sendall(data + b'["tell",[[1')
        theirs.shutdown(socket.SHUT_WR)
        while one.receive(lambda *rows: told.append(rows)):
            pass
    assert told == news


def test_an_environment_is_sent_once(ends: tuple[Link, socket.socket]) -> None:
    """With the first order that builds on it; it may be large, and orders are many."""
    one, theirs = ends
    for number in (0, 3, 3, 3, 4):
        one.spawn(ECHO, [(1, "key", {})], (number, {"NUMBER": str(number)}), ())
    one.hang_up()
    with theirs.makefile("rb") as lines:
        messages = [json.loads(line) for line in lines if line.strip()]
    assert [message[0] for message in messages] == ["spawn", "env", "spawn", "spawn", "spawn", "env", "spawn"]
    assert [message[1] for message in messages if message[0] == "env"] == [{"NUMBER": "3"}, {"NUMBER": "4"}]


def test_an_order_of_many_megabytes_goes_through(own: Listener) -> None:
    """Longer than any buffer between the two, in one piece, while other messages wait for its end."""
    rows = [(n, f"key-{n}", {"V": "x" * 5000}) for n in range(1, 1001)]
    order = {"path": "/bin/none", "argv": ["none"], "cwd": "/"}
    sender = threading.Thread(target=own.link.spawn, args=(order, rows, NO_ENV, ()))
    sender.start()
    for _ in range(20):
        assert own.link.ask("known", [0]) == []
    sender.join(PATIENCE)
    wait_until("all are told of", lambda: len(own.ends) == 1000)
    assert {row[8] for row in own.ends.values()} == {"launch_failure"}


def test_answers_find_those_who_asked(ends: tuple[Link, socket.socket], listen: Callable[[Link], Listener]) -> None:
    """Several threads ask at once and are answered in another order."""
    one, theirs = ends
    listen(one)
    answers: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: answers.update({n: one.ask("known", n)})) for n in range(5)]
    for thread in threads:
        thread.start()
    with theirs.makefile("rb") as lines:
        asked = [json.loads(line) for line in itertools.islice((line for line in lines if line.strip()), 5)]
    for what, request, n in reversed(asked):
        assert what == "known"
        theirs.sendall(json.dumps(["reply", request, f"answer {n}"]).encode() + b"\n")
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == {n: f"answer {n}" for n in range(5)}


def test_an_answer_of_nothing_is_an_answer(own: Listener) -> None:
    """A task that is not there has no files to be pinned."""
    assert own.link.ask("pin", 99) is None


# --- losing a keeper --------------------------------------------------------------------------------------


def test_a_killed_keeper_is_noticed(own: Listener) -> None:
    """The connection ends, and whatever is asked or sent from then on fails at once, not after a time-out."""
    own.ended(own.spawn(ECHO))
    keeper.kill(pid_of(own), signal.SIGKILL)
    own.over()
    assert own.link.closed.is_set()
    for call in (lambda: own.link.ask("known", []), lambda: own.link.send(["bye", True]), lambda: own.spawn(ECHO)):
        with pytest.raises(DrmCommunicationError, match=r"keeper .* is gone or does not answer"):
            call()


def test_those_who_wait_for_an_answer_are_woken(
    ends: tuple[Link, socket.socket], listen: Callable[[Link], Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that cannot come any more is an error now."""
    monkeypatch.setattr(link, "PATIENCE", 10 * PATIENCE)
    one, theirs = ends
    listen(one)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            one.ask("known", [])
        except DrmCommunicationError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    with theirs.makefile("rb") as lines:
        assert len(list(itertools.islice((line for line in lines if line.strip()), 3))) == 3
    theirs.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(PATIENCE)
    assert len(errors) == 3


def test_its_last_words_are_told(ends: tuple[Link, socket.socket]) -> None:
    """What stands at the end of its log says more than that it is gone; without a log it is just gone."""
    one, theirs = ends
    assert one.obituary().endswith("is gone or does not answer")
    (one.directory / "log").write_bytes(b"Traceback:\nMemoryError: no more \xff\n\n")
    assert one.obituary().endswith("does not answer: MemoryError: no more \ufffd")
    theirs.close()
    with pytest.raises(DrmCommunicationError, match="MemoryError"):
        one.send(["bye", True])


def test_a_keeper_that_does_not_answer_is_not_waited_for_without_end(
    own: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped, or the machine is: the question fails, the connection stays, later ones are answered."""
    assert own.link.ask("known", []) == []
    monkeypatch.setattr(link, "PATIENCE", 0.2)
    keeper.kill(pid_of(own), signal.SIGSTOP)
    wait_until("it is stopped", lambda: (stat_of(pid_of(own)) or "?")[0] == "T")
    with pytest.raises(DrmCommunicationError, match="does not answer"):
        own.link.ask("known", [])
    monkeypatch.setattr(link, "PATIENCE", PATIENCE)
    keeper.kill(pid_of(own), signal.SIGCONT)
    assert own.link.ask("known", []) == []
    assert not own.link.closed.is_set()


# --- keepers of others ------------------------------------------------------------------------------------


def test_a_keeper_with_records_can_be_found_again(tmp_path: Path, listen: Callable[[Link], Listener]) -> None:
    """At once after its start, by its directory, whose path may be longer than a socket's may be."""
    directory = tmp_path / ("long" * 30) / ("longer" * 20)
    own = listen(Link.start(directory, detach=False, keep=True))
    found = Link.attach(directory)
    assert found is not None
    other = listen(found)
    assert not other.link.own
    assert other.link.ask("attach") == []
    n = own.spawn(SLEEP)
    assert other.started(n) == own.started(n)
    other.link.bye(end=True)
    other.over()
    assert own.link.ask("known", [n]) == [n]


def test_where_no_keeper_lives_there_is_none(directory: Path, listen: Callable[[Link], Listener]) -> None:
    """No directory, no socket in it, or one that nobody listens to; nothing stays open."""
    before = descriptors()
    assert Link.attach(directory) is None
    directory.mkdir(parents=True)
    assert Link.attach(directory) is None
    assert descriptors() == before
    dead = listen(Link.start(directory / "dead", detach=False, keep=True))
    keeper.kill(pid_of(dead), signal.SIGKILL)
    dead.over()
    assert (directory / "dead" / "socket").exists()
    assert Link.attach(directory / "dead") is None


def test_a_keeper_that_cannot_be_reached_is_not_taken_for_dead(
    directory: Path, listen: Callable[[Link], Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no descriptor left nobody can say whether it lives: that is an error, not an answer."""
    listen(Link.start(directory, detach=False, keep=True))

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = descriptors()
    with monkeypatch.context() as change:
        change.setattr(link, "_short", refuse)
        with pytest.raises(DrmCommunicationError, match="Too many open files"):
            Link.attach(directory)
    assert descriptors() == before


# --- goodbyes ---------------------------------------------------------------------------------------------


def test_a_goodbye_ends_everything(own: Listener, directory: Path) -> None:
    """The ends are still told, then the keeper goes, and its directory with it."""
    n = own.spawn(SLEEP)
    own.started(n)
    own.link.bye(end=True)
    own.over()
    assert own.ended(n) == -signal.SIGTERM
    assert own.link.process is not None
    assert own.link.process.wait(PATIENCE) == 0
    assert not directory.exists()


@pytest.mark.parametrize("detach", [False, True])
def test_a_keeper_may_be_left_to_itself(detach: bool, directory: Path, listen: Callable[[Link], Listener]) -> None:  # noqa: FBT001
    """Its tasks go on and can be found again; when it has gone, the next start takes its remains away."""
    own = listen(Link.start(directory, detach=detach, keep=True))
    n = own.spawn(SLEEP)
    task, pid = own.started(n), pid_of(own)
    stat = stat_of(task)
    assert stat is not None
    own.link.bye(end=False)
    own.over()
    assert is_alive(task, stat[2])
    found = Link.attach(directory)
    assert found is not None
    other = listen(found)
    assert other.link.ask("control", "kill", [n]) == {}
    assert other.ended(n) == -signal.SIGKILL
    other.over()
    wait_until("it has ended", lambda: (stat_of(pid) or "Z")[0] == "Z")
    next_one = listen(Link.start(directory.parent / "next", detach=False, keep=False))
    assert pid_of(next_one) != pid
    assert stat_of(pid) is None


def test_a_goodbye_to_one_that_has_gone_is_no_error(own: Listener) -> None:
    """Nor is hanging up twice."""
    keeper.kill(pid_of(own), signal.SIGKILL)
    own.over()
    for end in (True, False):
        own.link.bye(end=end)
    own.link.hang_up()
    own.link.hang_up()


def test_a_program_that_is_killed_leaves_no_keeper(tmp_path: Path) -> None:
    """No word is needed: the socket ends with the program, and the keeper with the socket."""
    source = (
        "import sys, time; from pathlib import Path; from wfl.contexts.process.link import Link\n"
        "link = Link.start(Path(sys.argv[1]), detach=False, keep=False); print(link.process.pid, flush=True)\n"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", source, str(tmp_path / "keeper")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        stat = stat_of(pid)
        assert stat is not None
        program.kill()
    wait_until("the keeper is gone", lambda: not is_alive(pid, stat[2]))
    assert not [child for child in children_of(os.getpid()) if str(tmp_path).encode() in command_of(child)]
