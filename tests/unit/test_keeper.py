"""The keeper, spoken to as the program does: lines of JSON through a socket, each way."""

from __future__ import annotations

import ast
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.machine import PATIENCE, is_alive, stat_of, wait_until
from wfl.contexts.process import keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = Path(keeper.__file__)
BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); import keeper; keeper.main(sys.argv[1:])"


class Start(NamedTuple):
    """News of a start."""

    n: int
    pid: int
    ticks: int | None
    when: float
    out: int | None
    err: int | None


class End(NamedTuple):
    """News of an end."""

    n: int
    code: int | None
    cpu: float | None
    peak: int | None
    started: float | None
    finished: float
    out: int | None
    err: int | None
    why: str | None
    words: str | None


class Line:
    """One connection to a keeper, and what was told through it."""

    def __init__(self, sock: socket.socket, directory: Path) -> None:
        sock.settimeout(PATIENCE)
        self.sock, self.directory = sock, directory
        self.messages: list[list[Any]] = []
        self.starts: dict[int, Start] = {}
        self.ends: dict[int, End] = {}
        self.states: list[tuple[int, bool]] = []
        self.replies: dict[int, Any] = {}
        self._rest = b""
        self._requests = itertools.count(1)
        self._numbers = itertools.count(1)

    def send(self, *messages: list[Any], fds: tuple[int, ...] = ()) -> None:
        """Send messages in one piece, behind the descriptors for the first."""
        if fds:
            socket.send_fds(self.sock, [b'["fds"]\n'], fds)
        self.send_bytes(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def send_bytes(self, data: bytes) -> None:
        """Send anything."""
        self.sock.sendall(data)

    def read(self) -> list[Any] | None:
        """The next message; None at the end of the connection."""
        while b"\n" not in self._rest:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        message: list[Any] = json.loads(line)
        self.messages.append(message)
        if message[0] == "tell":
            self._told(*message[1:])
        elif message[0] == "reply":
            self.replies[message[1]] = message[2]
        return message

    def _told(self, starts: list[Any], ends: list[Any], states: list[Any]) -> None:
        for row in starts:
            assert row[0] not in self.starts, "a start is told once"
            self.starts[row[0]] = Start(*row)
        for row in ends:
            assert row[0] not in self.ends, "an end is told once"
            assert row[4] is None or row[0] in self.starts, "no end before its start"
            self.ends[row[0]] = End(*row)
        self.states += [(n, suspended) for n, suspended in states]

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Read until it is so."""
        while not condition():
            assert self.read() is not None, f"the keeper is gone, and still not: {what}"

    def over(self) -> None:
        """Read until the end of the connection."""
        while self.read() is not None:
            pass

    def ask(self, what: str, *arguments: object) -> Any:
        """A request and its answer."""
        number = next(self._requests)
        self.send([what, number, *arguments])
        return self.answer(number)

    def answer(self, number: int) -> Any:
        """The answer to this request, now or before."""
        self.until(f"answer {number}", lambda: number in self.replies)
        return self.replies[number]

    def order(self, *argv: str, count: int = 1, **spec: Any) -> tuple[list[Any], list[int]]:
        """The message for so many tasks of one order, and their numbers."""
        numbers = list(itertools.islice(self._numbers, count))
        full = {"path": argv[0] if "/" in argv[0] else f"/bin/{argv[0]}", "argv": argv, "cwd": "/", **spec}
        return ["spawn", full, [[n, f"key-{n}", {}] for n in numbers]], numbers

    def spawn(self, *argv: str, passed: tuple[int, ...] = (), **spec: Any) -> int:
        """Give it one task, and descriptors for it; its number."""
        message, (n,) = self.order(*argv, fds=len(passed), **spec)
        self.send(message, fds=passed)
        return n

    def shell(self, source: str, *arguments: object, **spec: Any) -> int:
        """Give it one line for a shell."""
        return self.spawn("sh", "-c", source, "sh", *map(str, arguments), **spec)

    def started(self, n: int) -> Start:
        """The news of its start."""
        self.until(f"task {n} has started", lambda: n in self.starts)
        return self.starts[n]

    def ended(self, n: int) -> End:
        """The news of its end."""
        self.until(f"task {n} has ended", lambda: n in self.ends)
        return self.ends[n]

    def output(self, n: int) -> str:
        """What an ended task wrote."""
        number = self.ended(n).out
        return "" if number is None else (self.directory / str(number)).read_text(errors="surrogateescape")

    def kept(self) -> list[str]:
        """The names of its kept files."""
        return sorted(name for name in os.listdir(self.directory) if name.isdigit())


class Own(Line):
    """A keeper started by this program, and the line to it."""

    def __init__(
        self, directory: Path, *, detach: bool = False, keep: bool = False, program: int | None = None
    ) -> None:
        directory.mkdir(parents=True)
        ours, theirs = socket.socketpair()
        passed = [theirs]
        if keep:
            passed.append(socket.socket(socket.AF_UNIX))
            here = os.open(directory, os.O_RDONLY)
            passed[1].bind(f"/proc/self/fd/{here}/socket")
            os.close(here)
            passed[1].listen()
        numbers = [str(sock.fileno()) for sock in passed]
        arguments = [numbers[0], str(program or os.getpid()), str(directory), str(int(detach)), *numbers[1:]]
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOOT, str(SOURCE.parent), *arguments, *([] if keep else [""])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=[sock.fileno() for sock in passed],
                start_new_session=True,
            )
        for sock in passed:
            sock.close()
        super().__init__(ours, directory)
        self.others: list[Line] = []

    def second(self) -> Line:
        """Another connection, as of a program that came back."""
        sock = socket.socket(socket.AF_UNIX)
        here = os.open(self.directory, os.O_RDONLY)
        sock.connect(f"/proc/self/fd/{here}/socket")
        os.close(here)
        self.others.append(Line(sock, self.directory))
        return self.others[-1]

    def close(self) -> None:
        """Close all connections."""
        for line in (self, *self.others):
            line.sock.close()

    def log(self) -> str:
        """What it wrote to its log."""
        return (self.directory / "log").read_text()

    def journal(self) -> list[list[Any]]:
        """What it wrote down."""
        return [json.loads(line) for line in (self.directory / "journal").read_text().splitlines()]

    def gone(self) -> int:
        """Wait for its end; its exit status."""
        return self.process.wait(PATIENCE)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Own]]:
    """Starts keepers; all are ended afterwards, and all that they started."""
    made: list[Own] = []

    def start(**settings: Any) -> Own:
        made.append(Own(tmp_path / "session" / f"keeper-{len(made)}", **settings))
        return made[-1]

    yield start
    for own in made:
        if own.process.poll() is None:
            own.process.send_signal(signal.SIGCONT)
            own.process.terminate()
        own.close()
        own.gone()


@pytest.fixture
def own(make: Callable[..., Own]) -> Own:
    """A keeper without records, as of a session without a store."""
    return make()


def alive(pid: int) -> Callable[[], bool]:
    """Whether this process is there, asked later."""
    stat = stat_of(pid)
    assert stat is not None
    return lambda: is_alive(pid, stat[2])


def stopped(pid: int) -> None:
    """Wait until this process is stopped."""
    wait_until(f"process {pid} is stopped", lambda: (stat_of(pid) or "?")[0] == "T")


def written(path: Path) -> str:
    """The text of a file that a task writes, once its line is whole."""
    wait_until(f"{path.name} is written", lambda: path.exists() and path.read_text().endswith("\n"))
    return path.read_text().strip()


# --- what it is -------------------------------------------------------------------------------------------


def test_it_needs_the_standard_library_alone() -> None:
    """It runs where wfl is not installed (another user's Python, a frozen program's helper)."""
    tree = ast.parse(SOURCE.read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "json" in modules
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names


def test_it_introduces_itself(own: Own) -> None:
    """The first line tells its pid."""
    assert own.read() == ["hello", own.process.pid]


# --- lines ------------------------------------------------------------------------------------------------

MESSAGE = st.lists(st.integers() | st.text(max_size=20), min_size=1, max_size=3)
BROKEN = st.sampled_from([b"", b'["spawn", {"pa', b"{", b"\xff\xfe", b"no", b'["tell"]]'])


@given(st.lists(MESSAGE | BROKEN, max_size=8), st.lists(st.integers(1, 200), max_size=20))
def test_lines_are_whole_however_they_arrive(parts: list[list[Any] | bytes], cuts: list[int]) -> None:
    """Whatever pieces the bytes come in, and whatever broken lines stand between: the messages, in order."""
    data = b"".join((part if isinstance(part, bytes) else json.dumps(part).encode()) + b"\n" for part in parts)
    here, there = socket.socketpair()
    connection, received = keeper.Connection(there), []
    with here, there:
        for cut in [*cuts, len(data) + 1]:
            piece, data = data[:cut], data[cut:]
            here.sendall(piece)
            received += connection.receive() or []
        here.shutdown(socket.SHUT_WR)
        assert connection.receive() is None
    assert received == [part for part in parts if isinstance(part, list)]


@given(st.binary())
def test_no_line_is_an_error(line: bytes) -> None:
    """Anything at all is a message or nothing."""
    try:
        expected = json.loads(line.decode())
    except ValueError:
        expected = None
    assert keeper.decode(bytearray(line)) == expected or expected != expected  # noqa: PLR0124 - NaN


@pytest.mark.parametrize(
    "line",
    [b"no JSON", b"[]", b"5", b"{}", b'"spawn"', b'["none"]', b'["spawn"]', b'["spawn",{},[[1,"k",{}]]]', b"[[1]]"],
)
def test_an_odd_line_ends_nobody_s_tasks(own: Own, line: bytes) -> None:
    """It is passed over, and what comes before and after it is done."""
    before = own.spawn("sleep", "600")
    own.send_bytes(line + b"\n")
    after = own.shell("echo after")
    assert own.output(after) == "after\n"
    assert own.ask("known", [before]) == [before]


def test_half_a_message_takes_no_other_with_it(own: Own) -> None:
    """A program interrupted while it sent begins its next message with a line break."""
    message, (n,) = own.order("true")
    own.send_bytes(json.dumps(message).encode()[:30])
    own.send_bytes(b"\n" + json.dumps(message).encode() + b"\n")
    assert own.ended(n).code == 0


def test_it_goes_on_reading_while_nobody_reads_it(own: Own) -> None:
    """News waits in its memory, in order: a program that does not read cannot stop it."""
    message, numbers = own.order("sleep", "600", count=40)
    count = 1000
    own.send(message, *(["attach", request] for request in range(count)), ["control", count, "kill", numbers])
    assert own.answer(count) == {}
    assert list(own.replies) == [*range(count + 1)]
    assert all(own.ended(n).why == "cancelled" for n in numbers)


# --- starts and ends --------------------------------------------------------------------------------------


def test_an_end_is_told_whole(own: Own) -> None:
    """Exit status, times in order, where its output is, and no reason but its own."""
    begin = time.time()
    n = own.shell("echo out; echo err >&2; exit 3")
    end = own.ended(n)
    start = own.starts[n]
    assert (end.code, end.why, end.words) == (3, None, None)
    assert end.started == start.when
    assert begin - 1 <= start.when <= end.finished <= time.time() + 1
    assert (end.out, end.err) == (start.out, start.err)
    assert (own.directory / str(end.out)).read_text() == "out\n"
    assert (own.directory / str(end.err)).read_text() == "err\n"
    assert not Path(f"/proc/{start.pid}").exists()


def test_usage_is_of_the_process_and_its_children(own: Own) -> None:
    """CPU time in seconds, peak memory in KiB, as wait4(2) gives them."""
    spin = "import time; block = bytearray(b'x' * (64 << 20))\nwhile time.process_time() < 0.3: pass"
    busy = own.ended(own.shell('"$1" -I -S -c "$2"; true', sys.executable, spin))
    idle = own.ended(own.spawn("true"))
    assert busy.cpu is not None
    assert idle.cpu is not None
    assert busy.cpu >= 0.3
    assert idle.cpu < 0.3
    assert busy.peak is not None
    assert idle.peak is not None
    assert busy.peak > 64 << 10 > idle.peak


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN + 3])
def test_an_end_by_signal_is_a_negative_code(own: Own, number: int) -> None:
    """Nobody here sent it, so no reason is given."""
    end = own.ended(own.shell(f"kill -{int(number)} $$; sleep 600"))
    assert (end.code, end.why) == (-number, None)


def test_every_task_starts_once_in_order_and_ends_once(own: Own) -> None:
    """Of one order or several; the news comes in fewer messages than there are tasks."""
    first, ones = own.order("true", count=150)
    second, others = own.order("false", count=150)
    own.send(first, second)
    own.until("all have ended", lambda: len(own.ends) == 300)
    assert list(own.starts) == ones + others
    assert [own.ends[n].code for n in ones + others] == [0] * 150 + [1] * 150
    assert len(own.messages) < 300


def test_a_task_is_in_clean_surroundings(own: Own) -> None:
    """No descriptor but the three standard ones, no signal blocked or ignored, a session of its own."""
    n = own.shell("readlink /proc/self/fd/0; grep -E 'Sig(Blk|Ign)' /proc/self/status; echo $$; ls /proc/$$/fd")
    null, blocked, ignored, pid, *fds = own.output(n).splitlines()
    assert null == "/dev/null"
    assert set(fds) - {"10"} == {"0", "1", "2"}  # 10 is the shell's own
    known = sum(1 << number - 1 for number in signal.valid_signals())  # not the two that the C library keeps to itself
    assert int(blocked.split()[1], 16) == int(ignored.split()[1], 16) & known == 0
    session = own.shell("cat /proc/self/stat")
    words = own.output(session).rpartition(")")[2].split()
    assert int(words[3]) == own.starts[session].pid
    assert int(pid) == own.starts[n].pid


def test_variables_of_the_element_win_over_the_order_s_over_the_program_s(own: Own) -> None:
    """And the key, which is how a process is known as a task's, over all."""
    order, _ = own.order("env", count=1, add={"B": "order", "C": "order", "WFL_KEY": "no"})
    order[2] = [[7, "the key", {"C": "element", "WFL_KEY": "no"}]]
    own.send(["env", {"A": "program", "B": "program", "C": "program"}], order)
    assert sorted(own.output(7).splitlines()) == ["A=program", "B=order", "C=element", "WFL_KEY=the key"]


def test_an_environment_is_for_the_orders_after_it(own: Own) -> None:
    """Tasks that wait keep the one they were given with; without any there is nothing but the key."""
    first, (bare,) = own.order("env")
    second, (old,) = own.order("env")
    third, (new,) = own.order("env")
    own.send(first, ["env", {"A": "1"}], second, ["env", {"B": "2"}], third)
    names = [sorted(line.partition("=")[0] for line in own.output(n).splitlines()) for n in (bare, old, new)]
    assert names == [["WFL_KEY"], ["A", "WFL_KEY"], ["B", "WFL_KEY"]]


def test_names_that_are_no_utf_8_arrive(own: Own, tmp_path: Path) -> None:
    """In arguments, variables and paths, as the system's bytes."""
    place = tmp_path / os.fsdecode(b"\xff\xc3\xa9")
    place.mkdir()
    own.send(["env", {"V": "\udc80"}])
    n = own.shell('printf "%s %s %s" "$1" "$V" "$(pwd)"', "\udc81", cwd=str(place))
    assert own.output(n) == f"\udc81 \udc80 {place}"


def test_paths_are_opened_in_the_working_directory(own: Own, tmp_path: Path) -> None:
    """Input is read, output emptied and then appended to, errors apart or joined."""
    (tmp_path / "in").write_text("words")
    (tmp_path / "out").write_text("old and long")
    spec = {"cwd": str(tmp_path), "in": "in", "out": "out", "err": str(tmp_path / "err")}
    end = own.ended(own.shell("cat; echo -n 1; echo 2 >>out; echo -n 3; echo err >&2", **spec))
    assert (end.code, end.out, end.err) == (0, None, None)
    assert (tmp_path / "out").read_text() == "words12\n3"
    assert (tmp_path / "err").read_text() == "err\n"
    own.ended(own.shell("echo 1; echo 2 >&2", cwd=str(tmp_path), out="out", join=True))
    assert (tmp_path / "out").read_text() == "1\n2\n"
    joined = own.shell("echo 1; echo 2 >&2", join=True)
    assert own.output(joined) == "1\n2\n"
    assert own.ends[joined].err is None


def test_descriptors_that_were_handed_over_are_the_task_s(own: Own) -> None:
    """For each order its own, in the order sent; closed by the keeper when its last task has started."""
    pipes = [os.pipe() for _ in range(2)]
    for number, (_, writer) in enumerate(pipes):
        message, _ = own.order("echo", f"pipe {number}", count=2, out=0, fds=1)
        own.send(message, fds=(writer,))
        os.close(writer)
    for number, (reader, _) in enumerate(pipes):
        with open(reader) as file:
            assert file.read() == f"pipe {number}\n" * 2  # up to the end: nobody has it open any more


def test_descriptors_of_an_order_that_never_came_are_closed(own: Own) -> None:
    """A program interrupted while it sent an order: the next orders have their own descriptors, or none."""
    (stale_end, stale), (reader, writer) = os.pipe(), os.pipe()
    message, _ = own.order("echo", "stale", out=0, fds=1)
    socket.send_fds(own.sock, [b'\n["fds"]\n'], [stale])
    own.send_bytes(json.dumps(message).encode()[:40] + b"\n")
    assert own.output(own.spawn("echo", "kept")) == "kept\n"
    own.spawn("echo", "mine", passed=(writer,), out=0)
    os.close(stale)
    os.close(writer)
    for end, text in ((stale_end, ""), (reader, "mine\n")):
        with open(end) as file:
            assert file.read() == text


def test_descriptors_that_it_cannot_take_are_a_failed_launch(own: Own) -> None:
    """A keeper that may not open more files says so, and goes on."""
    n = own.spawn("sleep", "600")
    own.started(n)
    soft, hard = resource.prlimit(own.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(own.process.pid, resource.RLIMIT_NOFILE, (3, hard))
    message, (refused,) = own.order("cat", **{"in": 0}, out=1, fds=2)
    own.send(message, fds=(0, 1))
    end = own.ended(refused)
    assert (end.code, end.why) == (None, "launch_failure")
    assert "too many files open" in (end.words or "")
    resource.prlimit(own.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert own.ask("known", [n]) == [n]
    assert own.output(own.shell("echo again")) == "again\n"


@pytest.mark.parametrize("limited", [False, True])
def test_what_cannot_be_started_is_an_end_with_words(own: Own, limited: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """It names what is missing, by its path, and costs nobody else anything; with limits it is forked by hand."""
    (tmp_path / "plain").touch()
    base: dict[str, Any] = {"limits": [[7, 64, 64, "OPEN_FILES"]]} if limited else {}
    cases: list[tuple[str, dict[str, Any], str]] = [
        (f"{tmp_path}/none", {}, f"cannot start {tmp_path}/none: No such file"),
        (f"{tmp_path}/plain", {}, f"cannot start {tmp_path}/plain: Permission denied"),
        ("/bin/true", {"cwd": f"{tmp_path}/gone"}, f"working_directory {tmp_path}/gone is not a directory"),
        ("/bin/true", {"in": f"{tmp_path}/none"}, f"input_path {tmp_path}/none cannot be read: No such file"),
        ("/bin/true", {"out": f"{tmp_path}/no/out"}, f"output_path {tmp_path}/no/out cannot be written: No such file"),
        ("/bin/true", {"err": f"{tmp_path}"}, f"error_path {tmp_path} cannot be written: Is a directory"),
        ("/bin/true", {"add": {"A": "a\0b"}}, "cannot start /bin/true: embedded null byte"),
    ]
    numbers = [own.spawn(path, **{**base, **spec}) for path, spec, _ in cases]
    for n, (path, _, words) in zip(numbers, cases, strict=True):
        end = own.ended(n)
        assert (end.code, end.started, end.out, end.err, end.why) == (None, None, None, None, "launch_failure"), path
        assert (end.words or "").startswith(words)
    assert not own.starts
    assert own.output(own.shell("echo well", **base)) == "well\n"


def test_limits_and_niceness_are_the_task_s_alone(own: Own) -> None:
    """The next one has the keeper's own."""
    nice = os.getpriority(os.PRIO_PROCESS, 0) + 1
    n = own.shell("ulimit -n; ulimit -Hn; nice", limits=[[7, 33, 44, "OPEN_FILES"]], nice=nice)
    assert own.output(n).split() == ["33", "44", str(nice)]
    assert own.output(own.shell("nice")).split() == [str(nice - 1)]


@pytest.mark.parametrize("value", [1 << 62, 1 << 64, -5])
def test_a_limit_that_the_system_refuses_is_named(own: Own, value: int) -> None:
    """The task is not started without it."""
    end = own.ended(own.spawn("true", limits=[[7, value, value, "OPEN_FILES"]]))
    assert (end.code, end.why) == (None, "launch_failure")
    assert "OPEN_FILES" in (end.words or "") or "too large" in (end.words or "")


# --- limits of time ---------------------------------------------------------------------------------------


def test_a_task_past_its_time_is_asked_to_end(own: Own) -> None:
    """With SIGTERM, so that it can put things in order; what it then says counts, and why it ended is told."""
    polite = own.shell('trap "echo bye; exit 7" TERM; while :; do sleep 0.01; done', seconds=0.2)
    end = own.ended(polite)
    assert (end.code, end.why, end.words) == (7, "timeout", "its WALLCLOCK_TIME is 0.2 s")
    assert own.output(polite) == "bye\n"


def test_a_task_that_will_not_end_in_time_is_killed(own: Own) -> None:
    """The whole of it, some seconds later; no earlier than its limit."""
    n = own.shell('trap "" TERM; while :; do sleep 0.01; done', seconds=0.2)
    end = own.ended(n)
    assert (end.code, end.why) == (-signal.SIGKILL, "timeout")
    assert end.started is not None
    assert end.finished - end.started >= 0.2 + keeper.LIMIT_GRACE - 0.1


def test_a_deadline_ends_what_runs_and_what_waits(own: Own) -> None:
    """A moment that has come; one that has not is no matter."""
    past = own.spawn("sleep", "600", until=time.time() - 1)
    soon = own.spawn("sleep", "600", until=time.time() + 1)
    later = own.spawn("true", until=time.time() + 1e9, seconds=1e9)
    for n in (past, soon):
        end = own.ended(n)
        assert (end.why, end.words) == ("timeout", "its deadline_time came")
        assert end.code in (None, -signal.SIGTERM)
    assert own.ended(later).code == 0


# --- control ----------------------------------------------------------------------------------------------


def test_suspend_and_resume_are_told_before_the_answer(own: Own) -> None:
    """Whoever asked sees the new state at once; what changes nothing is told no second time."""
    n = own.spawn("sleep", "600")
    start = own.started(n)
    assert own.ask("control", "suspend", [n]) == {}
    assert own.states == [(n, True)]
    stopped(start.pid)
    assert own.ask("control", "suspend", [n]) == {}
    assert own.ask("control", "resume", [n]) == {}
    assert own.states == [(n, True), (n, False)]
    wait_until("it goes on", lambda: (stat_of(start.pid) or "?")[0] == "S")


def test_a_stop_from_elsewhere_is_told(own: Own) -> None:
    """The state is the process's, whoever sent the signal."""
    n = own.spawn("sleep", "600")
    pid = own.started(n).pid
    os.kill(pid, signal.SIGSTOP)
    own.until("it is told", lambda: own.states == [(n, True)])
    os.kill(pid, signal.SIGCONT)
    own.until("it is told", lambda: own.states == [(n, True), (n, False)])


@pytest.mark.parametrize(("action", "number"), [("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)])
@pytest.mark.parametrize("suspended", [False, True])
def test_an_end_by_control_is_a_cancellation(
    own: Own,
    action: str,
    number: int,
    suspended: bool,  # noqa: FBT001
) -> None:
    """Of a suspended task, too, without resuming it first."""
    n = own.spawn("sleep", "600")
    own.started(n)
    if suspended:
        own.ask("control", "suspend", [n])
    assert own.ask("control", action, [n]) == {}
    end = own.ended(n)
    assert (end.code, end.why) == (-number, "cancelled")


def test_a_task_that_ends_well_when_asked_to_was_not_cancelled(own: Own, tmp_path: Path) -> None:
    """Exit status 0 is the task's own word; another status is told with the reason."""
    for code in (0, 5):
        ready = tmp_path / f"ready-{code}"
        n = own.shell(f'trap "exit {code}" TERM; echo >"$1"; while :; do sleep 0.01; done', ready)
        written(ready)
        own.ask("control", "terminate", [n])
        assert (own.ended(n).code, own.ended(n).why) == (code, "cancelled" if code else None)


def test_control_reaches_the_whole_tree(own: Own, tmp_path: Path) -> None:
    """Children in sessions of their own and orphans of the task as well, and no process of another task."""
    child = 'setsid sh -c \'echo $$ >"$1/child"; exec sleep 600\' sh "$1"'
    tree = child + ' & (setsid sleep 600 & echo $! >"$1/orphan"); wait'
    n, other = own.shell(tree, tmp_path), own.spawn("sleep", "600")
    pids = [int(written(tmp_path / name)) for name in ("child", "orphan")]
    living = [alive(pid) for pid in pids]
    assert own.ask("control", "suspend", [n]) == {}
    for pid in pids:
        stopped(pid)
    assert (stat_of(own.started(other).pid) or "?")[0] == "S"
    assert own.ask("control", "kill", [n]) == {}
    own.ended(n)
    wait_until("all are gone", lambda: not any(one() for one in living))
    assert own.ask("known", [n, other]) == [other]


def test_a_process_is_known_as_its_task_s_also_while_it_becomes_another_program() -> None:
    """In the middle of execve(2) it has no environment to look into: it is looked at again."""
    again = 'exec sh -c "$0" "$0"'
    with subprocess.Popen(["sh", "-c", again, again], env={**os.environ, "WFL_KEY": "its task"}) as restless:
        try:
            wait_until("it has begun", lambda: keeper.mark_of(restless.pid) == "its task")
            assert {keeper.mark_of(restless.pid, looks=100) for _ in range(2000)} == {"its task"}
        finally:
            restless.kill()
    assert keeper.mark_of(restless.pid, looks=2) is None


def test_tasks_that_wait_are_controlled_as_well(own: Own) -> None:
    """An end means that it never starts; a suspended one is started and stopped."""
    crowd, waiting = own.order("sleep", "600", count=30)
    own.send(crowd, ["control", 1000, "kill", waiting[5:15]], ["control", 1001, "suspend", waiting[20:21]])
    assert own.answer(1000) == own.answer(1001) == {}
    for n in waiting[5:15]:
        end = own.ended(n)
        assert (end.code, end.started, end.why) == (None, None, "cancelled")
        assert end.words == "ended before it was started"
        assert n not in own.starts
    assert own.states == [(waiting[20], True)]
    assert own.ask("known", waiting) == waiting[:5] + waiting[15:]
    own.until("the others run", lambda: len(own.starts) == 20)


def test_control_of_what_has_ended_fails_by_number(own: Own) -> None:
    """The others are controlled all the same."""
    gone, here = own.spawn("true"), own.spawn("sleep", "600")
    own.ended(gone)
    assert own.ask("control", "terminate", [gone, here, 99]) == {str(gone): "it has ended", "99": "it has ended"}
    assert own.ended(here).why == "cancelled"


# --- kept output ------------------------------------------------------------------------------------------


def test_silent_tasks_use_the_same_files_again(own: Own) -> None:
    """One after another: two files for all; what was written stays, under its number."""
    loud = own.shell("echo loud")
    assert own.ended(loud).err is None
    for _ in range(30):
        end = own.ended(own.spawn("true"))
        assert (end.out, end.err) == (None, None)
    assert len(own.kept()) <= 3
    assert own.output(loud) == "loud\n"
    assert own.starts[loud].out == own.ends[loud].out


def test_a_file_that_somebody_may_still_write_into_is_given_to_nobody(own: Own, tmp_path: Path) -> None:
    """A process left behind writes later: into no other task's output, and not into more files with each task."""
    late = '(while [ ! -e "$1" ]; do sleep 0.02; done; echo intruder; echo intruder >&2; echo >>"$2") & exit 0'
    ones = [own.shell(late, tmp_path / "gate", tmp_path / "log") for _ in range(10)]
    assert all(own.ended(n).out is None for n in ones)
    victim = own.shell('while [ ! -e "$1" ]; do sleep 0.02; done', tmp_path / "end")
    own.started(victim)
    assert len(own.kept()) <= 2 * (len(ones) + 1)
    (tmp_path / "gate").touch()
    log = tmp_path / "log"
    wait_until("all have written", lambda: log.exists() and log.read_text().count("\n") == len(ones))
    (tmp_path / "end").touch()
    assert (own.ended(victim).out, own.ended(victim).err) == (None, None)
    for _ in range(20):
        assert own.ended(own.shell("exit 1")).out is None
    assert all((own.directory / name).stat().st_size == 0 for name in own.kept())


def test_left_behind_processes_do_not_fill_the_directory(own: Own) -> None:
    """Each silent task leaves one that holds its files open: they lose their names."""
    for _ in range(20):
        own.ended(own.shell("sleep 600 & exit 0"))
    own.ended(own.spawn("true"))
    assert len(own.kept()) <= 4


def test_a_pinned_task_keeps_its_files(own: Own) -> None:
    """Somebody reads them while it runs: they are its own for good, even if nothing was ever written."""
    n = own.spawn("sleep", "600")
    start = own.started(n)
    assert own.ask("pin", n) == [start.out, start.err]
    own.ask("control", "kill", [n])
    end = own.ended(n)
    assert (end.out, end.err) == (start.out, start.err)
    others = [own.shell("echo other") for _ in range(5)]
    assert {own.ended(other).out for other in others}.isdisjoint({end.out, end.err})
    assert own.output(n) == ""


def test_there_is_nothing_to_pin_before_the_start_and_after_the_end(own: Own) -> None:
    """The answer says so, and that the end was told before it."""
    gone = own.spawn("true")
    own.ended(gone)
    crowd, numbers = own.order("sleep", "600", count=20)
    own.send(crowd, ["pin", 1000, numbers[-1]], ["pin", 1001, gone])
    assert own.answer(1000) is own.answer(1001) is None


@pytest.mark.parametrize("content", ["", "x"])
@pytest.mark.parametrize("held", [None, os.O_WRONLY, os.O_RDONLY])
def test_a_file_is_unused_when_it_is_empty_and_nobody_has_it(content: str, held: int | None, tmp_path: Path) -> None:
    """The system grants a lease on it to whoever asks while it is not open elsewhere (fcntl(2))."""
    path = tmp_path / "1"
    path.write_text(content)
    fd = None if held is None else os.open(path, held)
    assert keeper.unused(str(path)) == (content == "" and held is None)
    if fd is not None:
        os.close(fd)
    assert keeper.unused(str(path)) == (content == "")
    assert not keeper.unused(str(tmp_path / "none"))
    with path.open("a"):  # the lease was given back: this does not wait
        pass


# --- staging ----------------------------------------------------------------------------------------------


def test_files_are_copied_before_and_after(own: Own, tmp_path: Path) -> None:
    """Into the working directory, directories and all; out of it when the task has ended well."""
    (tmp_path / "work").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "leaf").write_text("leaf")
    spec: dict[str, Any] = {
        "cwd": str(tmp_path / "work"),
        "stage_in": {"new/tree": str(tmp_path / "tree")},
        "stage_out": {str(tmp_path / "results" / "a"): "a"},
    }
    good = own.ended(own.shell("cat new/tree/leaf >a; echo done", **spec))
    assert (good.code, good.why) == (0, None)
    assert (tmp_path / "results" / "a").read_text() == "leaf"
    bad = own.ended(own.shell("exit 4", **{**spec, "stage_out": {str(tmp_path / "results" / "b"): "a"}}))
    assert bad.code == 4
    assert not (tmp_path / "results" / "b").exists()


def test_a_copy_that_fails_is_told(own: Own, tmp_path: Path) -> None:
    """Before the start it is a failed launch, after the end a failure all the same; the file is named."""
    none = str(tmp_path / "none")
    before = own.ended(own.spawn("true", cwd=str(tmp_path), stage_in={"a": none}))
    assert (before.started, before.why) == (None, "launch_failure")
    after = own.ended(own.spawn("true", cwd=str(tmp_path), stage_out={str(tmp_path / "x"): "none"}))
    assert after.why == "exited"
    for end in (before, after):
        assert "none" in (end.words or "")
        assert "No such file" in (end.words or "")


# --- records ----------------------------------------------------------------------------------------------


def test_without_records_nothing_stays(own: Own, tmp_path: Path) -> None:
    """Output, directory and the session's directory above it, if it is empty, go with the keeper."""
    own.ended(own.shell("echo x"))
    own.send(["bye", True])
    own.over()
    assert own.gone() == 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_told_is_written_down_before(make: Callable[..., Own]) -> None:
    """The journal: who it is, what it took, and every message of news as it was sent; output stays beside it."""
    own = make(keep=True)
    loud = own.shell("echo loud; exit 2")
    own.ended(loud)
    pid = own.process.pid
    ticks = (stat_of(pid) or ("", 0, 0))[2]
    own.shell("sleep 600")
    own.send(["bye", True])
    own.over()
    assert own.gone() == 0
    first, *rest = own.journal()
    assert first == ["keeper", pid, ticks, Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
    assert ["take", [[loud, f"key-{loud}"]], "/"] in rest
    assert [m for m in rest if m[0] == "tell"] == [m for m in own.messages if m[0] == "tell"]
    assert len(own.ends) == 2
    assert own.output(loud) == "loud\n"
    assert "socket" not in os.listdir(own.directory)


def test_what_a_full_disk_did_not_take_is_written_down_later(make: Callable[..., Own]) -> None:
    """A write that was cut off is ended before the next begins: lines stay whole, and none is missing."""
    own = make(keep=True)
    first = own.spawn("true")
    own.ended(first)
    size = (own.directory / "journal").stat().st_size
    hard = resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, (size + 10, hard))
    second = own.spawn("true")
    assert own.ended(second).code == 0
    assert (own.directory / "journal").stat().st_size == size + 10
    resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    third = own.spawn("true")
    own.ended(third)
    assert [m for m in own.journal() if m[0] == "tell"] == [m for m in own.messages if m[0] == "tell"]
    assert [row[0][0] for kind, row, *_ in own.journal() if kind == "take"] == [first, second, third]
    assert "cannot write its journal" in own.log()


def test_a_start_on_record_has_the_process_s_start_time(make: Callable[..., Own]) -> None:
    """With it and the pid a process is known as the same after years; without a store nobody asks for it."""
    for keep in (True, False):
        own = make(keep=keep)
        start = own.started(own.spawn("sleep", "600"))
        stat = stat_of(start.pid)
        assert stat is not None
        assert start.ticks == (stat[2] if keep else None)


# --- programs that come back ------------------------------------------------------------------------------


def test_another_program_is_told_of_everything(make: Callable[..., Own]) -> None:
    """What runs, with its state, at once; from then on all news, and it may control."""
    own = make(keep=True)
    own.ended(own.spawn("true"))
    n, stopped = own.spawn("sleep", "600"), own.spawn("sleep", "600")
    start = own.started(n)
    own.ask("control", "suspend", [stopped])
    other = own.second()
    assert other.ask("attach") == [[*start, False], [*own.starts[stopped], True]]
    other.starts.update(own.starts)
    assert other.ask("control", "terminate", [n]) == {}
    assert other.ended(n) == own.ended(n)
    assert other.ended(n).why == "cancelled"


def test_another_program_is_told_of_what_is_on_its_way(make: Callable[..., Own]) -> None:
    """Whatever the owner had sent before, also orders with descriptors, each of which ends a look at its socket."""
    own = make(keep=True)
    own.ended(own.spawn("true"))
    own.process.send_signal(signal.SIGSTOP)
    stopped(own.process.pid)
    with open(os.devnull, "rb") as null:
        numbers = [own.spawn("sleep", "600", passed=(null.fileno(),), **{"in": 0}) for _ in range(30)]
    other = own.second()
    other.send(["attach", 1], ["known", 2, numbers])
    own.process.send_signal(signal.SIGCONT)
    assert [row[0] for row in other.answer(1)] == numbers
    assert other.answer(2) == numbers


def test_another_program_cannot_dismiss_it(make: Callable[..., Own]) -> None:
    """Its goodbye, its end and its nonsense change nothing for the owner."""
    own = make(keep=True)
    n = own.spawn("sleep", "600")
    other, rude = own.second(), own.second()
    other.send(["bye", True])
    other.ask("known", [])
    rude.send_bytes(b'["bye"]\n["control"')
    for line in (other, rude):
        line.sock.close()
    assert own.ask("known", [n]) == [n]
    assert own.second().ask("known", [n]) == [n]


# --- the program goes away --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "bye"])
def test_without_its_program_it_ends_everything(own: Own, how: str, tmp_path: Path) -> None:
    """Asked first, killed then, orphans in sessions of their own as well; and at last itself."""
    polite = own.shell('trap "echo >\\"$1\\"; exit 0" TERM; echo >"$2"; while :; do sleep 0.01; done',
                       tmp_path / "asked", tmp_path / "ready")  # fmt: skip
    stubborn = own.shell('trap "" TERM; echo >"$1"; while :; do sleep 0.01; done', tmp_path / "deaf")
    leaves = own.shell('setsid sleep 600 & echo $! >"$1"', tmp_path / "orphan")
    own.ended(leaves)
    written(tmp_path / "ready")
    written(tmp_path / "deaf")
    living = [alive(own.started(n).pid) for n in (polite, stubborn)]
    living.append(alive(int(written(tmp_path / "orphan"))))
    assert all(one() for one in living)
    if how == "bye":
        own.send(["bye", True])
        own.over()
        words = "the program that started it closed its workflow"
        assert [own.ends[n][-2:] for n in (polite, stubborn)] == [(None, words), ("cancelled", words)]
        assert own.ends[stubborn].code == -signal.SIGKILL
    own.sock.close()
    assert own.gone() == 0
    assert not any(one() for one in living)
    assert (tmp_path / "asked").exists()
    assert not own.directory.exists()


def test_what_had_not_started_is_cancelled(own: Own) -> None:
    """A goodbye right behind a large order: every task of it is told of, most never ran."""
    message, numbers = own.order("sleep", "600", count=300)
    own.send(message, ["bye", True])
    own.over()
    assert sorted(own.ends) == numbers
    assert {end.why for end in own.ends.values()} == {"cancelled"}
    assert own.gone() == 0


@pytest.mark.parametrize("how", ["closed", "bye"])
def test_detached_it_stays_until_the_last_end_is_on_record(make: Callable[..., Own], how: str, tmp_path: Path) -> None:
    """Nothing is ended; what is left in the queue starts; then it goes by itself."""
    own = make(keep=True, detach=how == "closed")
    wait = 'while [ ! -e "$1" ]; do sleep 0.01; done; echo late; exit 9'
    message, numbers = own.order("sh", "-c", wait, "sh", str(tmp_path / "gate"), count=12)
    own.send(message, *([["bye", False]] if how == "bye" else []))
    own.sock.close()
    other = own.second()
    other.until("all run", lambda: len([row for row in other.ask("attach") if row[1]]) == 12)
    assert own.process.poll() is None
    (tmp_path / "gate").touch()
    other.over()
    assert own.gone() == 0
    ends = {row[0]: End(*row) for m in own.journal() if m[0] == "tell" for row in m[2]}
    assert sorted(ends) == numbers
    assert {(end.code, end.why) for end in ends.values()} == {(9, None)}
    assert {(own.directory / str(end.out)).read_text() for end in ends.values()} == {"late\n"}


def test_detached_with_nothing_to_do_it_goes_at_once(make: Callable[..., Own]) -> None:
    """The socket for programs that come back goes with it, the journal stays."""
    own = make(keep=True, detach=True)
    own.ended(own.spawn("true"))
    own.sock.close()
    assert own.gone() == 0
    assert sorted(set(os.listdir(own.directory)) - {"1", "2"}) == ["journal", "log"]


@pytest.mark.parametrize("when", ["later", "before"])
def test_a_dead_program_is_noticed_by_its_pid(make: Callable[..., Own], when: str) -> None:
    """A copy of its socket may live on in a child: this one here is never closed."""
    with subprocess.Popen(["sleep", "600"]) as program:
        if when == "before":
            program.kill()
            program.wait()
        own = make(program=program.pid)
        if when == "later":
            n = own.spawn("sleep", "600")
            task = alive(own.started(n).pid)
            program.kill()
            program.wait()
            assert own.gone() == 0
            assert not task()
    assert own.gone() == 0


def test_orders_of_a_program_s_last_moment_are_carried_out_detached(make: Callable[..., Own]) -> None:
    """What was sent before the program died is read before its death is believed."""
    own = make(keep=True, detach=True)
    own.ended(own.spawn("true"))
    own.process.send_signal(signal.SIGSTOP)
    stopped(own.process.pid)
    n = own.shell("exit 6")
    own.sock.close()
    own.process.send_signal(signal.SIGCONT)
    assert own.gone() == 0
    assert [row[1] for m in own.journal() if m[0] == "tell" for row in m[2] if row[0] == n] == [6]


# --- signals to the keeper itself -------------------------------------------------------------------------


def test_told_to_end_it_ends_everything_and_says_so(make: Callable[..., Own]) -> None:
    """Also detached, and also what was in its queue or on the way to it."""
    own = make(keep=True, detach=True)
    running = own.spawn("sleep", "600")
    own.started(running)
    own.process.send_signal(signal.SIGSTOP)
    stopped(own.process.pid)
    message, numbers = own.order("sleep", "600", count=50)
    own.send(message)
    own.process.terminate()
    own.process.send_signal(signal.SIGCONT)
    own.over()
    assert sorted(own.ends) == [running, *numbers]
    assert {end.why for end in own.ends.values()} == {"cancelled"}
    assert own.ends[running].words == "its keeper was told to end (SIGTERM)"
    assert own.gone() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_signals_of_a_terminal_are_not_for_it(own: Own, number: int) -> None:
    """Ctrl-C is the program's business."""
    n = own.spawn("sleep", "600")
    own.started(n)
    own.process.send_signal(number)
    assert own.output(own.shell("echo still")) == "still\n"
    assert own.ask("known", [n]) == [n]
