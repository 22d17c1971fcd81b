"""The attendant of a host (attendant.sh), run here by each shell that this machine has. No connection, no sshd."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wfl import JobTemplate
from wfl.backend import Submission
from wfl.contexts.ssh import attendant
from wfl.contexts.ssh.line import Speaks
from wfl.contexts.ssh.login import Login
from wfl.contexts.ssh.monitor import SshMonitor
from wfl.errors import DrmCommunicationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wfl.drmaa2 import JobInfo

    Open = Callable[..., "Attendant"]

PATIENCE = 8.0  # seconds that anything may take on a busy machine
SHELLS = {"dash": ("dash",), "bash": ("bash",), "busybox": ("busybox", "sh")}
OWNER, OTHER = "0123456789abcdef", "fedcba9876543210"


class RefusedError(Exception):
    """The attendant said that it cannot."""


class Attendant:
    """One that is at work in the session's directory `d/s` below a home."""

    def __init__(self, shell: tuple[str, ...], home: Path, *, first: str = "", make: bool = True) -> None:
        """`first` is what its shell runs before it begins."""
        self._errors = (home / f"errors.{time.monotonic_ns()}").open("w+b")
        self.process = subprocess.Popen(
            [*shell, "-s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
            start_new_session=True,
        )
        self._numbers = iter(range(1, 10**6))
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._reading = threading.Event()
        self._reading.set()
        self._dropped = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.told: dict[str, attendant.Seen] = {}
        self.say(entering(first, make=make))
        self.hello = attendant.Hello.read(self._line(), datetime.now(UTC))
        self.root = Path(self.hello.root)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self._reading.wait()
                if self._dropped:
                    break
                self._lines.put(line.decode("utf-8", "surrogateescape").rstrip("\n"))
        self._lines.put(None)

    def say(self, text: str) -> None:
        """Send text as it is."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode("utf-8", "surrogateescape"))
        self.process.stdin.flush()

    def _line(self) -> str:
        try:
            line = self._lines.get(timeout=PATIENCE)
        except Empty:
            pytest.fail(f"the attendant says nothing: {self.errors()}")
        if line is None:
            pytest.fail(f"the attendant has ended: {self.errors()}")
        if line.startswith("e\t"):
            one = attendant.seen(line)
            self.told[one.key] = one
        return line

    def deaf(self, yes: bool) -> None:  # noqa: FBT001
        """From now on nobody reads what it says, or somebody does again."""
        if yes:
            self._reading.clear()
        else:
            self._reading.set()

    def ask(self, make: Callable[[int], str]) -> list[str]:
        """Send a request, given its number; what was told for it."""
        number = next(self._numbers)
        self.say(make(number))
        return self.answer(number)

    def answer(self, number: int) -> list[str]:
        """What was told for a request."""
        found = []
        while (line := self._line()) != f"+ {number}":
            if line.split(" ")[:2] == ["-", str(number)]:
                raise RefusedError(line)
            if line[0] in "xrfg" and line.split("\t")[1] == str(number):
                found.append(line)
        return found

    def call(self, name: str, *words: object) -> list[str]:
        """Have one of its functions called."""
        return self.ask(lambda number: attendant.call(name, number, *words))

    def own(self, program: str = "p", owner: str = OWNER, lease: int = 0) -> None:
        """Take a program's jobs as this one's."""
        self.call("w_own", program, owner, lease)

    def start(self, *submissions: Submission, owner: str = OWNER) -> None:
        """Start jobs."""
        self.ask(lambda number: attendant.start(number, submissions, self.hello, owner))

    def run(self, key: str, *words: str, owner: str = OWNER, **more: Any) -> None:
        """Start one job with this command."""
        self.start(Submission(key, template(*words, **more), key), owner=owner)

    def ended(self, key: str) -> attendant.Seen:
        """Wait to be told of the end of a job."""
        while key not in self.told:
            self._line()
        return self.told[key]

    def end(self, key: str) -> JobInfo:
        """Wait for that; how it ended."""
        return attendant.ended_as(self.ended(key), self.hello, "host")

    def look(self, *keys: str) -> dict[str, attendant.Seen]:
        """Where these are."""
        lines = self.call("w_look", *map(attendant.path_of, keys))
        return {one.key: one for one in map(attendant.seen, lines)}

    def where(self, key: str) -> str:
        """Where one is."""
        return self.look(key)[key].where

    def signal(self, name: str, *keys: str) -> dict[str, str]:
        """Send a signal to jobs; what could not be, by key."""
        lines = [line.split("\t") for line in self.call("w_signal", name, *map(attendant.path_of, keys))]
        return {attendant.key_of(path): how for _, _, path, how in lines}

    def file(self, key: str, kind: str) -> Path:
        """One of a job's files."""
        return self.root / attendant.path_of(key) / kind

    def process_of(self, key: str, kind: str = "pid") -> int:
        """The number of a job's command, which is known soon, or of what a job writes down itself."""
        path = self.file(key, kind)
        until(lambda: path.exists() and path.read_text().endswith("\n"))
        text = path.read_text()
        return int(text.split("|")[2] if kind == "pid" else text)

    def waits_for(self, key: str) -> int:
        """The number of the shell that waits for it."""
        self.process_of(key)
        return int(self.file(key, "pid").read_text().split("|")[4])

    def hang_up(self) -> None:
        """Say nothing more; it ends, whatever its jobs do."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.wait()

    def drop(self) -> None:
        """End the connection with what is still on its way in it."""
        self._dropped = True
        self.hang_up()

    def kill(self) -> None:
        """End it without a chance to clean up."""
        self.process.kill()
        self.wait()

    def wait(self) -> None:
        """For its end, and for that of its output, which nothing that it started may hold."""
        assert self.process.stdin is not None
        self.deaf(False)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive()
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def errors(self) -> str:
        """What its shell has complained of."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def done(self) -> None:
        """Let go of its files."""
        self._errors.close()


def entering(first: str = "", *, place: str = "d", make: bool = True) -> str:
    """What is said to a shell at first; `first` is what it runs in the session's directory before it begins."""
    whole = attendant.enter(place, "s", make=make)
    assert whole.endswith("\nw_begin\n")
    return f"{whole.removesuffix('w_begin' + chr(10))}{first}\nw_begin\n"


def template(*words: str, **more: Any) -> JobTemplate:
    """A job with this command."""
    return JobTemplate(remote_command=words[0], args=words[1:], **more)


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


def state_of(process: int) -> str:
    """What a process is doing, by the letter of proc(5); nothing when it is not there, or nobody waited for it."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state == "Z" else state


def began(process: int) -> int:
    """When a process began, in the system's own count."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])


def now_in_ticks() -> int:
    """What a process that begins now is said to have begun at."""
    return int(float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK"))


def gone(process: int) -> bool:
    """Whether it is not there any more."""
    return not state_of(process)


def left_behind(home: Path) -> list[int]:
    """The processes below a home: those of jobs, and of shells that are at work there."""
    mark, found = f"WFL_JOB_DIRECTORY={home}/".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (path / "environ").read_bytes() or (path / "cwd").readlink().is_relative_to(home / "d"):
                found.append(int(path.name))
    return found


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The words that start a shell."""
    words = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]} is here")
    return words


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home, with something odd in its name."""
    path = tmp_path / "a 'home' of $1"
    path.mkdir()
    return path


@pytest.fixture
def begin(shell: tuple[str, ...], home: Path) -> Iterator[Open]:
    """Attendants as they are asked for. At the end all jobs are ended, and nothing must be left."""
    yield from opened(shell, home)


def opened(shell: tuple[str, ...], home: Path) -> Iterator[Open]:
    """What `begin` gives, for any shell and any home."""
    made: list[Attendant] = []

    def begin(**more: object) -> Attendant:
        made.append(Attendant(shell, home, **more))  # type: ignore[arg-type]
        return made[-1]

    yield begin
    try:
        for one in made:
            if one.process.poll() is None:
                one.hang_up()
        if (home / "d" / "s").exists():
            one = begin()
            one.call("w_clean")
            one.hang_up()
        until(lambda: not left_behind(home))
        assert [path.name for path in home.glob("d/s/*")] == []
    finally:
        for process in left_behind(home):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for one in made:
            one.done()


# --- its first words --------------------------------------------------------------------------------------


def test_hello(begin: Open, home: Path) -> None:
    """It tells of its host what we can check here, and what it makes is its user's alone."""
    before = datetime.now(UTC)
    one = begin()
    hello = one.hello
    assert (hello.host, hello.system, hello.machine) == (platform.node(), platform.system(), platform.machine())
    assert hello.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert hello.up is not None
    assert abs(hello.up - float(Path("/proc/uptime").read_text().split()[0])) < PATIENCE
    assert abs(hello.skew) < PATIENCE
    assert hello.groups == (shutil.which("setsid") is not None)
    assert (hello.home, hello.root) == (str(home), f"{home}/d/s")
    assert before <= hello.heard <= datetime.now(UTC)
    assert stat.S_IMODE((home / "d/s").stat().st_mode) == 0o700
    (pipe,) = one.root.iterdir()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_IMODE(pipe.stat().st_mode) == 0o600
    one.hang_up()
    assert one.process.returncode == 0
    assert one.errors() == ""
    assert not one.root.exists()  # nothing was in it


def test_times_of_a_host() -> None:
    """Seconds since the host began, and its clock, are told as our times."""
    heard = datetime(2026, 1, 1, tzinfo=UTC)
    now = int(heard.timestamp()) + 100
    hello = attendant.Hello.read(f"hello\th\tb\t50.5\t{now}\tLinux x86_64\t\t/home/u\t/home/u/d/s", heard)
    assert hello.when(60.5) == heard + timedelta(seconds=10)
    assert hello.when(None) is None
    assert hello.ours(now) == heard - timedelta(seconds=0.5)  # it counts whole seconds
    assert not hello.groups
    other = attendant.Hello.read(f"hello\th\t\t\t{now}\tDarwin arm64\tsetsid\t/\t/d/s", heard)
    assert other.when(1.0) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fail no named pipe can be made", "no named pipe can be made"),
        ("fail ", "no answer"),
        ("hello\ta\tb", "hello\ta\tb"),
        ("Welcome!", "Welcome!"),
    ],
)
def test_no_hello(line: str, words: str) -> None:
    """What a shell says instead is told."""
    with pytest.raises(DrmCommunicationError, match=f"^{words}$"):
        attendant.Hello.read(line, datetime.now(UTC))


def said(shell: tuple[str, ...], home: Path, text: str) -> tuple[int, list[str]]:
    """What a shell says that reads this; its exit status, and lines."""
    done = subprocess.run(
        [*shell, "-s"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
    )
    return done.returncode, done.stdout.splitlines()


def test_where_it_cannot_begin(shell: tuple[str, ...], home: Path) -> None:
    """Without a home or a directory it says so in one line, and a session that is not there is not made by a look."""
    assert said(shell, home, entering(make=False)) == (1, ["fail nothing"])
    assert list(home.iterdir()) == []
    (home / "d").write_text("a file in its way")
    assert said(shell, home, entering()) == (1, ["fail no directory d/s can be made"])
    nowhere = home / "nowhere"
    assert said(shell, nowhere, entering()) == (1, ["fail the home directory cannot be entered"])
    assert not nowhere.exists()


def test_a_directory_elsewhere(shell: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    """A directory that is absolute is one, free text in it stays what it is, and no home is needed for it."""
    place = tmp_path / "-x 'y' $(echo z)"
    assert said(shell, home / "nowhere", entering("pwd; exit 0", place=str(place))) == (0, [f"{place}/s"])
    assert said(shell, home, entering("pwd; exit 0", place=str(place))) == (0, [f"{place}/s"])
    assert list(home.iterdir()) == []


# --- starting and ending ----------------------------------------------------------------------------------


def test_one_job(begin: Open) -> None:
    """It is started at once, with its own directory, and its end and output are there."""
    one = begin()
    one.own()
    one.run("p-1", "sh", "-c", 'echo out; echo err >&2; echo "$JOB_ID $WFL_JOB_DIRECTORY"; pwd')
    info = one.end("p-1")
    assert (info.state.name, info.exit_status, info.terminating_signal) == ("DONE", 0, None)
    assert info.allocated_machines == ("host",)
    assert one.file("p-1", "out").read_text() == f"out\np-1 {one.root}/p/1/\n{one.hello.home}\n"
    assert one.file("p-1", "err").read_text() == "err\n"
    assert stat.S_IMODE((one.root / "p/1").stat().st_mode) == 0o700
    owner, known = attendant.remembered(one.file("p-1", "script").read_bytes())
    assert (owner, known.key, known.template.remote_command) == (OWNER, "p-1", "sh")
    assert one.errors() == ""


def test_times_of_a_job(begin: Open) -> None:
    """Begin and end are told by our clock, whatever the host's says."""
    one = begin()
    one.own()
    before = datetime.now(UTC)
    one.run("p-1", "sleep", "0.2")
    info = one.end("p-1")
    after = datetime.now(UTC)
    assert info.dispatch_time is not None
    assert info.finish_time is not None
    assert info.wallclock_time is not None
    slack = timedelta(seconds=0.5)  # the hello's way to us, and the host's hundredths of a second
    assert before - slack <= info.dispatch_time <= info.finish_time - timedelta(seconds=0.15)
    assert info.finish_time <= after + slack
    assert info.wallclock_time >= timedelta(seconds=0.15)


def test_many_jobs(begin: Open) -> None:
    """As many as fit in one request are started by it, and each end is told, once."""
    one = begin()
    one.own()
    keys = [f"p-{number}" for number in range(attendant.TOGETHER)]
    one.start(*(Submission(key, template("sh", "-c", f"exit {n}"), key) for n, key in enumerate(keys)))
    assert [one.end(key).exit_status for key in keys] == list(range(attendant.TOGETHER))
    assert {seen.where for seen in one.look(*keys).values()} == {"ended"}
    assert one.errors() == ""


def test_what_a_shell_complains_of_is_no_end(begin: Open) -> None:
    """A locale that the host does not have makes some shells complain before they become the command, which then runs
    and is signalled as any other, and ends with its own status, even one that signals have, too.
    """
    one = begin()
    one.own()
    there = {"LC_ALL": "xx_YY.UTF-8"}
    one.run("p-1", "sleep", "1000", job_environment=there)
    process = one.process_of("p-1")
    one.run("p-2", "sh", "-c", "exit 137", job_environment=there)
    info = one.end("p-2")
    assert (info.exit_status, info.terminating_signal) == (137, None)
    assert one.file("p-1", "end").read_text() == ""
    assert one.signal("STOP", "p-1") == {}
    until(lambda: state_of(process) == "T")
    assert one.signal("KILL", "p-1") == {}
    assert one.end("p-1").terminating_signal == "SIGKILL"


NO_WORDS = 'printf() { case $1 in refused*) return 1 ;; *) command printf "$@" ;; esac; }'


@pytest.mark.parametrize("more", ["", NO_WORDS], ids=["for the pid", "for anything"])
def test_no_room_to_say_who_it_is(begin: Open, more: str) -> None:
    """A job that nobody could find is never begun, and the reason is told where there is no room to write it down."""
    nowhere = 'mkdir() { command mkdir "$@" && case $1 in p/*) ln -s /nowhere/at-all "$1/pid" ;; esac; }'
    one = begin(first=f"{nowhere}\n{more}")
    one.own()
    mark = one.root.parent / "mark"
    one.run("p-1", "touch", str(mark))
    info = one.end("p-1")
    assert (info.sub_state, info.exit_status) == ("launch_failure", None)
    assert info.annotation == "its pid cannot be written: is the disk full?"
    assert not mark.exists()


def test_an_element_of_an_array(begin: Open) -> None:
    """It finds its array's id and its own index, and goes by its own number."""
    one = begin()
    one.own()
    given = template("sh", "-c", 'echo "$JOB_ID $TASK_ID"')
    one.start(Submission("p-7.3", given, "p-7", index=3), Submission("p-7.12", given, "p-7", index=12))
    assert one.end("p-7.3").exit_status == one.end("p-7.12").exit_status == 0
    assert one.file("p-7.3", "out").read_text() == "p-7 3\n"
    assert one.file("p-7.12", "out").read_text() == "p-7 12\n"
    _, known = attendant.remembered(one.file("p-7.12", "script").read_bytes())
    assert (known.key, known.job_id, known.index) == ("p-7.12", "p-7", 12)


def test_exit_statuses(begin: Open) -> None:
    """All that a command can end with is told as it was, also what looks like a signal."""
    one = begin()
    one.own()
    statuses = [0, 1, 2, 125, 126, 127, 128, 129, 131, 134, 137, 139, 255]
    keys = {f"p-{status}": status for status in statuses}
    one.start(*(Submission(key, template("sh", "-c", f"exit {status}"), key) for key, status in keys.items()))
    told = {key: one.end(key) for key in keys}
    assert {key: info.exit_status for key, info in told.items()} == keys
    assert {info.terminating_signal for info in told.values()} == {None}


def test_signals(begin: Open) -> None:
    """A command that a signal has ended is told apart from one that ended with the status that shells give for it."""
    one = begin()
    one.own()
    numbers = [1, 2, 3, 6, 9, 10, 11, 13, 14, 15, 24]
    die = "import os, resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); n = {}; "
    die += "n == 9 or signal.signal(n, signal.SIG_DFL); os.kill(os.getpid(), n)"
    keys = {f"p-{number}": number for number in numbers}
    one.start(*(Submission(key, template(sys.executable, "-S", "-c", die.format(n)), key) for key, n in keys.items()))
    assert {key: one.end(key).terminating_signal for key in keys} == {
        key: signal.Signals(number).name for key, number in keys.items()
    }


def test_what_cannot_be_run(begin: Open) -> None:
    """A command, directory or limit that the host does not have is a launch failure which names it."""
    one = begin()
    one.own()
    refused = {
        "remote_command /nowhere/no-such is no program that can be run here": template("/nowhere/no-such"),
        "remote_command no-such-command is no program that can be run here": template("no-such-command"),
        "remote_command /etc/passwd is no program that can be run here": template("/etc/passwd"),
        "remote_command / is no program that can be run here": template("/"),
        "working_directory /nowhere cannot be entered": template("true", working_directory="/nowhere"),
        "working_directory /etc/passwd cannot be entered": template("true", working_directory="/etc/passwd"),
        f"resource_limits: OPEN_FILES {10**12} is not allowed": template(
            "true", resource_limits={"OPEN_FILES": 10**12}
        ),
    }
    keys = [f"p-{number}" for number in range(len(refused))]
    one.start(*(Submission(key, given, key) for key, given in zip(keys, refused.values(), strict=True)))
    infos = [one.end(key) for key in keys]
    assert [info.annotation for info in infos] == list(refused)
    assert {(info.sub_state, info.exit_status) for info in infos} == {("launch_failure", None)}


def test_working_directory_and_limits(begin: Open, home: Path) -> None:
    """A relative directory begins at the user's home; limits hold for the command."""
    one = begin()
    one.own()
    (home / "w").mkdir()
    one.run("p-1", "sh", "-c", "pwd; ulimit -n", working_directory="w", resource_limits={"OPEN_FILES": 33})
    assert one.end("p-1").exit_status == 0
    assert one.file("p-1", "out").read_text() == f"{home}/w\n33\n"


def test_the_users_umask(begin: Open) -> None:
    """What is kept of jobs is their user's alone, but files that they make are as the user has it."""
    one = begin()
    one.own()
    before = os.umask(0o027)
    os.umask(before)
    one.run("p-1", "sh", "-c", "umask")
    assert one.end("p-1").exit_status == 0
    assert int(one.file("p-1", "out").read_text(), 8) == before


def test_niceness(begin: Open) -> None:
    """A lower priority is a higher niceness."""
    one = begin()
    one.own()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    one.run("p-1", "nice", priority=-3)
    assert one.end("p-1").exit_status == 0
    assert one.file("p-1", "out").read_text() == f"{min(before + 3, 19)}\n"


def test_streams(begin: Open) -> None:
    """Joined, both streams are one; what goes to /dev/null is nowhere; input is the file that was brought."""
    one = begin()
    one.own()
    Path(attendant.Room(str(one.root)).input("p-1")).write_text("given")
    both = "cat; echo err >&2"
    one.run("p-1", "sh", "-c", both, input_path="/here/alone", join_files=True)
    one.run("p-2", "sh", "-c", both, output_path="/dev/null")
    one.run("p-3", "sh", "-c", both, output_path="/here/x", error_path="/here/x")
    for key in ("p-1", "p-2", "p-3"):
        assert one.end(key).exit_status == 0
    assert one.file("p-1", "out").read_text() == "givenerr\n"
    assert not one.file("p-1", "err").exists()
    assert not one.file("p-2", "out").exists()
    assert one.file("p-2", "err").read_text() == "err\n"
    assert one.file("p-3", "out").read_text() == "err\n"


def test_all_or_none_are_started(begin: Open) -> None:
    """Where a job's directory cannot be made, none of the request begins, and nothing of them is left."""
    one = begin()
    one.own()
    (one.root / "p/2").write_text("a file in its way")
    mark = one.root.parent / "mark"
    with pytest.raises(RefusedError):
        one.start(*(Submission(f"p-{n}", template("touch", str(mark)), f"p-{n}") for n in (1, 2, 3)))
    assert set(one.look("p-1", "p-2", "p-3")) == {"p-1", "p-2", "p-3"}  # after it has cleaned up
    assert [path.name for path in (one.root / "p").iterdir()] == ["tell"]
    assert one.errors() != ""  # the words of mkdir are the reason
    one.run("p-1", "true")  # nothing is in the way any more
    assert one.end("p-1").exit_status == 0
    assert not mark.exists()


def test_what_is_in_the_way_stays(begin: Open) -> None:
    """Where a directory is there already, because its job is or must never begin, that is not removed."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    one.call("w_forbid", OWNER, "p/2")
    for there in (1, 2):
        with pytest.raises(RefusedError):
            one.start(*(Submission(f"p-{n}", template("true"), f"p-{n}") for n in (3, there)))
    seen = one.look("p-1", "p-2", "p-3")
    assert (seen["p-1"].where, seen["p-2"].never_began, seen["p-3"].where) == ("running", True, "gone")


def test_a_program_that_cannot_be_owned(begin: Open) -> None:
    """A directory that cannot be made is a refusal."""
    one = begin()
    (one.root / "p").write_text("a file in its way")
    with pytest.raises(RefusedError):
        one.own()
    (one.root / "p").unlink()


def test_odd_names_of_programs(begin: Open, home: Path) -> None:
    """A job is known by its process, whatever that calls itself."""
    one = begin()
    one.own()
    keys = dict(zip(["p-1", "p-2", "p-3", "p-4"], ["x) T 1 (y", "a b", "(", "line\nbreak"], strict=True))
    for name in keys.values():
        (home / name).symlink_to(sys.executable)
    sleep = ("-S", "-c", "import time; time.sleep(1000)")
    one.start(*(Submission(key, template(str(home / name), *sleep), key) for key, name in keys.items()))
    processes = {key: one.process_of(key) for key in keys}
    until(lambda: [Path(f"/proc/{n}/comm").read_text()[:-1] for n in processes.values()] == list(keys.values()))
    assert {seen.where for seen in one.look(*keys).values()} == {"running"}
    assert one.signal("STOP", *keys) == {}
    until(lambda: {state_of(process) for process in processes.values()} == {"T"})
    assert {seen.where for seen in one.look(*keys).values()} == {"suspended"}
    assert one.signal("KILL", *keys) == {}
    assert {one.end(key).terminating_signal for key in keys} == {"SIGKILL"}


# --- what jobs are given ----------------------------------------------------------------------------------

BYTES = st.binary(max_size=40).map(lambda data: os.fsdecode(data.replace(b"\0", b"")))
SHOW = "cat /proc/$$/cmdline /proc/$$/environ; :"


@pytest.fixture(scope="module", params=SHELLS)
def steady(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attendant]:
    """One attendant for many examples."""
    words = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]} is here")
    for begin in opened(words, tmp_path_factory.mktemp("home")):
        one = begin()
        one.own()
        yield one


numbers = iter(range(1, 10**6))


@settings(max_examples=12)
@given(words=st.lists(BYTES, max_size=4), values=st.lists(BYTES, min_size=2, max_size=2))
def test_any_bytes_arrive(steady: Attendant, words: list[str], values: list[str]) -> None:
    """Whatever is in an argument or a variable is there in the job, byte by byte."""
    key = f"p-{next(numbers)}"
    variables = dict(zip(("ONE", "IFS"), values, strict=True))
    steady.run(key, "sh", "-c", SHOW, "name", *words, job_environment=variables)
    assert steady.end(key).exit_status == 0
    expected = [os.fsencode(word) for word in ("sh", "-c", SHOW, "name", *words)]
    shown = steady.file(key, "out").read_bytes().split(b"\0")
    assert shown[: len(expected)] == expected
    found = shown[len(expected) :]
    for name, value in variables.items():
        assert f"{name}=".encode() + os.fsencode(value) in found
    steady.call("w_reap", attendant.path_of(key))


SHELLS_OWN = (
    "BASHPID", "BASH_COMMAND", "BASH_SUBSHELL", "DIRSTACK", "EPOCHREALTIME", "EPOCHSECONDS", "FUNCNAME", "GROUPS",
    "HISTCMD", "LINENO", "RANDOM", "SECONDS", "SHLVL", "SRANDOM",
)  # fmt: skip


def test_variables_that_shells_see_to(begin: Open) -> None:
    """They arrive as they were given, and so do those that are called as the attendant's own are."""
    one = begin()
    one.own()
    given = dict.fromkeys((*SHELLS_OWN, "w_group", "w_place", "wfl_out", "wfl_by", "w_n", "wfl_status"), "07 x")
    one.run("p-1", "env", "-0", job_environment=given)
    assert one.end("p-1").exit_status == 0
    found = dict(line.partition("=")[::2] for line in one.file("p-1", "out").read_text().split("\0"))
    assert {name: found.get(name) for name in given} == given


def test_the_same_bytes_are_remembered(begin: Open) -> None:
    """A program that comes back finds the template as it was, whatever is in it."""
    one = begin()
    one.own()
    given = template("true", "\udcff\udc80", "ü", "a'b\n\t\\", job_environment={"A": "\udcfe"})
    one.start(Submission("p-1", given, "p-1"))
    assert one.end("p-1").exit_status == 0
    assert attendant.remembered(one.file("p-1", "script").read_bytes())[1].template == given


def test_signals_and_descriptors_are_plain(begin: Open) -> None:
    """A job ignores and blocks no signal that its user does not, and has the three descriptors and no other."""
    one = begin()
    one.own()
    show = f"""
import os, stat
print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith(('SigBlk', 'SigIgn'))])
seen = [fd for fd in range(64) if os.path.exists(f'/proc/self/fd/{{fd}}')]
print(*seen, os.readlink('/proc/self/fd/0'), os.getpgrp() == os.getpid() or {not one.hello.groups})
"""
    keys = [f"p-{number}" for number in range(3)]
    one.start(*(Submission(key, template(sys.executable, "-S", "-c", f"{show}"), key) for key in keys))
    the_library_s = 0b11 << 31  # 32 and 33: a shell cannot take back what an ancestor ignored of them
    ignored_by_python = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
    for key in keys:
        assert one.end(key).exit_status == 0, one.file(key, "err").read_text()
        masks, descriptors = one.file(key, "out").read_text().splitlines()
        blocked, ignored = (int(mask, 16) for mask in masks.split())
        assert (blocked, ignored & ~ignored_by_python & ~the_library_s) == (0, 0)
        assert descriptors == "0 1 2 /dev/null True"
    one.run("p-9", "grep", "SigIgn", "/proc/self/status")
    assert one.end("p-9").exit_status == 0
    assert int(one.file("p-9", "out").read_text().split()[1], 16) & ~the_library_s == 0


# --- looking ----------------------------------------------------------------------------------------------


def test_running_suspended_and_ended(begin: Open) -> None:
    """A look tells what a job does now, and of an end all that the job has written down."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    process = one.process_of("p-1")
    assert one.look("p-1")["p-1"] == attendant.Seen("p-1", "running", host=platform.node())
    assert one.signal("STOP", "p-1") == {}
    until(lambda: state_of(process) == "T")
    assert one.where("p-1") == "suspended"
    assert one.signal("CONT", "p-1") == {}
    until(lambda: state_of(process) != "T")
    assert one.where("p-1") == "running"
    assert one.signal("TERM", "p-1") == {}
    assert one.end("p-1").terminating_signal == "SIGTERM"
    seen = one.look("p-1")["p-1"]
    assert (seen.where, seen.ours) == ("ended", True)
    assert attendant.ended_as(seen, one.hello, "host").terminating_signal == "SIGTERM"


def test_a_suspended_job_can_be_told_to_end(begin: Open) -> None:
    """SIGTERM reaches one that is suspended, as it is resumed for it."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    process = one.process_of("p-1")
    one.signal("STOP", "p-1")
    until(lambda: state_of(process) == "T")
    one.signal("TERM", "p-1")
    assert one.end("p-1").terminating_signal == "SIGTERM"


def test_gone_and_not_begun(begin: Open) -> None:
    """A job without a directory is gone; one whose directory says nothing yet may just be begun."""
    one = begin()
    one.own()
    (one.root / "p/2").mkdir()
    seen = one.look("p-1", "p-2", "q-1")
    assert {key: found.where for key, found in seen.items()} == {"p-1": "gone", "p-2": "unknown", "q-1": "gone"}


def test_lost(begin: Open) -> None:
    """Without the shell that waits for it a command runs on, and is seen; after its own end nobody knows how it was."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    process, waits = one.process_of("p-1"), one.waits_for("p-1")
    assert process != waits
    os.kill(waits, signal.SIGKILL)
    until(lambda: gone(waits))
    assert one.where("p-1") == "running"
    os.kill(process, signal.SIGSTOP)
    until(lambda: state_of(process) == "T")
    assert one.where("p-1") == "suspended"
    os.kill(process, signal.SIGKILL)
    until(lambda: gone(process))
    assert one.where("p-1") == "lost"


def test_a_number_that_is_another_process_now(begin: Open) -> None:
    """A process is known by when it began, too: another one of its number is neither seen as the job nor signalled."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    process, waits = one.process_of("p-1"), one.waits_for("p-1")
    until(lambda: began(process) < now_in_ticks())
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stranger:
        try:
            path, its = one.file("p-1", "pid"), str(stranger.pid)
            path.write_text(
                "|".join(
                    its if part.strip() in (str(process), str(waits)) else part for part in path.read_text().split("|")
                )
            )
            assert one.where("p-1") == "lost"
            one.signal("KILL", "p-1")
            until(lambda: gone(process))  # by its environment
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_rebooted_and_elsewhere(begin: Open) -> None:
    """What ran before the host's last start, or on another host, is said to; and no signal is sent for either."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    process = one.process_of("p-1")
    at = one.file("p-1", "pid")
    until(lambda: at.read_text().endswith("\n"))
    host, boot, *rest = at.read_text().split("|")
    at.write_text("|".join([host, "another boot", *rest]))
    assert one.look("p-1")["p-1"] == attendant.Seen("p-1", "rebooted", host=host)
    assert one.signal("STOP", "p-1") == {}
    at.write_text("|".join(["another", boot, *rest]))
    assert one.look("p-1")["p-1"] == attendant.Seen("p-1", "elsewhere", host="another")
    at.write_text("|".join([host, boot, *rest]))
    assert process == one.process_of("p-1")
    assert one.where("p-1") in ("running", "suspended")


def test_an_end_of_an_earlier_boot(begin: Open) -> None:
    """Its record counts, but for its times, which count from that start."""
    one = begin()
    one.own()
    one.run("p-1", "sh", "-c", "exit 3")
    one.ended("p-1")
    at = one.file("p-1", "pid")
    host, _, *rest = at.read_text().split("|")
    at.write_text("|".join([host, "another boot", *rest]))
    seen = one.look("p-1")["p-1"]
    assert (seen.where, seen.ours) == ("ended", False)
    written = datetime(2026, 1, 1, tzinfo=UTC)
    info = attendant.ended_as(seen, one.hello, "host", written)
    assert (info.exit_status, info.finish_time) == (3, written)


def test_half_an_end_is_none(begin: Open) -> None:
    """A record that is still being written is not taken for one."""
    one = begin()
    one.own()
    one.run("p-1", "sh", "-c", "exit 3")
    one.ended("p-1")
    until(lambda: gone(one.waits_for("p-1")))
    end = one.file("p-1", "end")
    end.write_text(end.read_text().removesuffix(".\n"))
    assert one.where("p-1") == "lost"  # nobody is there to write the rest


def test_a_long_end_is_cut(begin: Open) -> None:
    """What is told fits in a line that stays whole, and what counts stands first in it."""
    one = begin()
    one.own()
    one.run("p-1", "/nowhere/" + "x" * 6000)
    seen = one.ended("p-1")
    info = attendant.ended_as(seen, one.hello, "host")
    assert info.sub_state == "launch_failure"
    assert (info.annotation or "").startswith("remote_command /nowhere/xxx")
    assert one.look("p-1")["p-1"].record == seen.record


def test_monitoring_needs_no_home(
    begin: Open, shell: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs below a directory that is absolute are seen, whether the home can be entered or not."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    process = one.process_of("p-1")
    monkeypatch.setattr(
        SshMonitor, "_told", lambda _, __, look: "".join(f"{line}\n" for line in said(shell, home / "nowhere", look)[1])
    )
    login = Login(name="host", host="host", port=22, user="u")
    (info,) = SshMonitor([login], Speaks(session="s", directory=f"{home}/d", shell="sh", timeout=1.0)).jobs(None)
    assert (info.id, info.extensions and info.extensions["pid"]) == ("p-1", str(process))


# --- signals ----------------------------------------------------------------------------------------------


def test_over_and_again(begin: Open) -> None:
    """A signal to a job that has ended, or that has no process yet, is said not to have reached it."""
    one = begin()
    one.own()
    one.run("p-1", "true")
    one.ended("p-1")
    (one.root / "p/2").mkdir()
    assert one.signal("STOP", "p-1", "p-2", "p-3") == {"p-1": "over", "p-2": "again", "p-3": "over"}
    assert not one.file("p-2", "stop").exists()
    assert one.signal("KILL", "p-2") == {"p-2": "again"}
    assert one.file("p-2", "stop").read_text() == "KILL\n"


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_told_to_end_before_it_begins(begin: Open, name: str) -> None:
    """A job that was told to end before it had a process ends when it begins, and its command never runs."""
    told = f'mkdir() {{ command mkdir "$@" && case $1 in p/*) echo {name} >"$1/stop" ;; esac; }}'
    one = begin(first=told)
    one.own()
    mark = one.root.parent / "mark"
    one.run("p-1", "touch", str(mark))
    assert one.end("p-1").terminating_signal == f"SIG{name}"
    assert not mark.exists()


def test_orders_that_come_too_late(begin: Open) -> None:
    """What is forbidden before it is there never begins, whenever its orders come; what is there already goes on."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    one.process_of("p-1")
    lines = one.call("w_forbid", OWNER, "p/1", "p/2")
    seen = {found.key: found for found in map(attendant.seen, lines)}
    assert (seen["p-1"].where, seen["p-1"].never_began) == ("running", False)
    assert (seen["p-2"].where, seen["p-2"].never_began) == ("ended", True)
    mark = one.root.parent / "mark"
    with pytest.raises(RefusedError):
        one.run("p-2", "touch", str(mark))
    one.signal("KILL", "p-1")
    one.ended("p-1")
    assert not mark.exists()


@pytest.mark.parametrize("groups", [True, False])
def test_a_signal_reaches_all_of_a_job(begin: Open, *, groups: bool) -> None:
    """Its command's children have it, too, with and without groups of processes; those of other jobs do not."""
    one = begin(first="" if groups else "w_group=")
    assert one.hello.groups == groups
    one.own()
    tree = 'sh -c \'echo $$ >"$0"; exec sleep 1000\' "$WFL_JOB_DIRECTORY/child" & wait'
    for key in ("p-1", "p-12"):
        one.run(key, "sh", "-c", tree)
    child, other = (one.process_of(key, "child") for key in ("p-1", "p-12"))
    assert one.signal("STOP", "p-1") == {}
    until(lambda: state_of(child) == "T" and state_of(one.process_of("p-1")) == "T")
    assert one.signal("KILL", "p-1") == {}
    until(lambda: gone(child))
    assert one.end("p-1").terminating_signal == "SIGKILL"
    assert not gone(other)
    assert one.where("p-12") == "running"
    assert one.errors() == ""


LEAVES = 'setsid sh -c \'echo $$ >"$0"; exec sleep 1000\' "$WFL_JOB_DIRECTORY/child" & wait'
BLIND = 'grep() { case "$*" in "-c -F b") command grep -c none ;; *) command grep "$@" ;; esac; }'


@pytest.mark.skipif(shutil.which("setsid") is None, reason="no setsid is here")
@pytest.mark.parametrize("first", ["", BLIND], ids=["grep", "a grep that sees nothing behind a NUL"])
def test_those_that_left_their_group(begin: Open, first: str) -> None:
    """A process that made a session of its own belongs to its job still, by what is in its environment."""
    one = begin(first=first)
    one.own()
    for key in ("p-1", "p-12"):
        one.run(key, "sh", "-c", LEAVES)
    child, other = (one.process_of(key, "child") for key in ("p-1", "p-12"))
    assert os.getpgid(child) == child
    assert one.signal("STOP", "p-1") == {}
    until(lambda: state_of(child) == "T")
    assert one.signal("TERM", "p-1") == {}  # which resumes them
    until(lambda: gone(child))
    assert one.end("p-1").terminating_signal == "SIGTERM"
    assert not gone(other)
    assert one.errors() == ""


@pytest.mark.skipif(shutil.which("setsid") is None, reason="no setsid is here")
def test_what_a_job_leaves_behind_can_be_ended(begin: Open) -> None:
    """A signal to a job that is over reaches what it has left running, as nothing else would."""
    one = begin()
    one.own()
    one.run("p-1", "sh", "-c", LEAVES.replace("wait", 'while [ ! -s "$WFL_JOB_DIRECTORY/child" ]; do sleep 0.01; done'))
    one.ended("p-1")
    child = one.process_of("p-1", "child")
    assert not gone(child)
    assert one.signal("KILL", "p-1") == {"p-1": "over"}
    until(lambda: gone(child))


# --- the end of a connection ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hang_up", "kill"])
def test_jobs_outlive_their_attendant(begin: Open, how: str) -> None:
    """Jobs go on when nobody listens; the next attendant finds them, and is told of their ends."""
    one = begin()
    one.own()
    one.run("p-1", "sh", "-c", 'while [ ! -e "$WFL_JOB_DIRECTORY/go" ]; do sleep 0.01; done; exit 5')
    one.run("p-2", "true")
    one.ended("p-2")
    process = one.process_of("p-1")
    getattr(one, how)()
    assert not gone(process)
    two = begin()
    pipes = sorted(path.name for path in two.root.glob("**/tell.*"))
    assert pipes == [f"tell.{two.hello.host}.{two.process.pid}"]  # what the first could not remove was removed
    two.call("w_follow", "p", "no-such-program")
    assert {key: seen.where for key, seen in two.look("p-1", "p-2").items()} == {"p-1": "running", "p-2": "ended"}
    two.file("p-1", "go").touch()
    assert two.end("p-1").exit_status == 5
    assert not (two.root / "no-such-program").exists()


def test_two_are_told(begin: Open) -> None:
    """Whoever follows a program's jobs is told of an end, as is who started them."""
    one, two = begin(), begin()
    one.own()
    one.run("p-1", "sh", "-c", 'while [ ! -e "$WFL_JOB_DIRECTORY/go" ]; do sleep 0.01; done; exit 6')
    two.call("w_follow", "p")
    one.file("p-1", "go").touch()
    assert one.end("p-1").exit_status == two.end("p-1").exit_status == 6
    two.hang_up()
    one.run("p-2", "true")
    assert one.end("p-2").exit_status == 0
    assert one.errors() == two.errors() == ""


def test_requests_that_are_cut_off(begin: Open) -> None:
    """What has only half arrived when the connection ends is not carried out: half a job's name is another job's."""
    one = begin()
    one.own()
    for key in ("p-1", "p-12"):
        one.run(key, "sleep", "1000")
        one.process_of(key)
    requests = [
        attendant.call("w_signal", 5, "KILL", "p/12"),
        attendant.call("w_reap", 5, "p/12"),
        attendant.call("w_close", 5, OWNER, "nothing"),
        attendant.call("w_clean", 55),
        attendant.start(5, [Submission("p-1", template("true"), "p-1")], one.hello, OWNER),
    ]
    for request in requests:
        for cut in (len(request) - 2, len(request) - 5, len(request) // 2):  # without its last line break it is whole
            two = begin()
            two.say(request[:cut])
            two.hang_up()
            assert {seen.where for seen in one.look("p-1", "p-12").values()} == {"running"}, request[:cut]
    assert not one.file("p-1", "stop").exists()


# --- the lease --------------------------------------------------------------------------------------------


class Clock:
    """Stands for the guardian's waiting: it goes on when we say so."""

    def __init__(self, place: Path) -> None:
        self._tick, self._asked = place / "tick", place / "asked"
        for path in (self._tick, self._asked):
            os.mkfifo(path)
        self._ends = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in (self._tick, self._asked)]
        self.first = (
            f'sleep() {{ case $1 in 0.*) command sleep "$1" ;; *) echo "$1" >\'{self._asked}\'; '
            f"until read -r w_tick <'{self._tick}'; do :; done ;; esac; }}"  # a sign of life ends a `read`
        )

    def waits(self) -> str:
        """Wait for the guardian to wait; how many seconds it means to."""
        found = b""

        def read() -> bool:
            nonlocal found
            with suppress(BlockingIOError):
                found += os.read(self._ends[1], 100)
            return found.endswith(b"\n")

        until(read)
        return found.decode().strip()

    def step(self) -> None:
        """Its time is over."""
        os.write(self._ends[0], b"\n")

    def close(self) -> None:
        """Who waits does not wait any more."""
        for path in (self._tick, self._asked):
            path.unlink()
        for fd in self._ends:
            os.close(fd)


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    """That of the guardian."""
    clock = Clock(tmp_path)
    yield clock
    clock.close()


def guardian_of(one: Attendant, owner: str = OWNER) -> int:
    """The guardian's process."""
    path = one.root / f"guard.{one.hello.host}.{owner}"
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text().split()[0])


def test_the_lease_ends_jobs(begin: Open, clock: Clock) -> None:
    """While beats come jobs live, whatever became of the connection; without them all of that owner's jobs end."""
    one = begin(first=clock.first)
    one.own(lease=20)
    one.own("q", OTHER)
    one.own("p", lease=20)  # a second time makes no second guardian
    guardian = guardian_of(one)
    one.run("p-1", "sleep", "1000")
    one.run("q-1", "sleep", "1000", owner=OTHER)
    mine, other = one.process_of("p-1"), one.process_of("q-1")
    for _ in range(5):
        assert clock.waits() == "3"  # a tenth of the lease, rounded up
        one.call("w_beats", OWNER, 20)
        clock.step()
    one.kill()
    two = begin()
    two.call("w_follow", "p", "q")
    for _ in range(6):  # six times three seconds are less than the lease
        clock.waits()
        assert not gone(mine)
        clock.step()
    clock.waits()
    clock.step()
    until(lambda: gone(mine))
    until(lambda: gone(guardian))
    assert not gone(other)
    seen = two.look("p-1", "q-1")
    assert (seen["p-1"].where, seen["q-1"].where) == ("ended", "running")
    for info in (
        two.end("p-1"),
        attendant.ended_as(seen["p-1"], two.hello, "host"),
    ):  # as it is told, and as it is kept
        assert info.terminating_signal == "SIGKILL"
        assert info.annotation == "host ended it: it had heard nothing of the program for as long as the lease"
    two.call("w_signal", "KILL", "q/1")
    assert two.end("q-1").annotation is None
    assert not list(two.root.glob("guard.*"))


@pytest.mark.parametrize("how", ["w_leave_all", "w_close", "w_clean"])
def test_the_guardian_leaves(begin: Open, clock: Clock, how: str) -> None:
    """When there is nothing to guard any more the guardian goes, without a word and without harm."""
    one = begin(first=clock.first)
    one.own(lease=100)
    guardian = guardian_of(one)
    assert clock.waits() == "10"  # at most
    one.run("p-1", "sleep", "1000")
    process = one.process_of("p-1")
    one.call(
        *{"w_leave_all": ("w_leave_all", OWNER), "w_close": ("w_close", OWNER, "nothing"), "w_clean": ("w_clean",)}[how]
    )
    assert not list(one.root.glob("guard.*"))
    clock.step()
    until(lambda: gone(guardian))
    assert gone(process) == (how != "w_leave_all")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full is here")
def test_the_lease_holds_on_a_full_disk(begin: Open, clock: Clock) -> None:
    """Who guards is told of a life where nothing can be written any more, stays, and ends the jobs when it is not."""
    one = begin(first=clock.first)
    one.own(lease=20)
    guardian = guardian_of(one)
    one.run("p-1", "sleep", "1000")
    process = one.process_of("p-1")
    one.say('printf() { command printf "$@" >/dev/full; }\n')  # but what is said needs no disk
    one.say('w_say() { echo "$*" >&9; }\n')
    for _ in range(9):
        clock.waits()
        one.call("w_beats", OWNER, 20)
        clock.step()
    assert guardian_of(one) == guardian
    one.kill()
    for _ in range(7):
        clock.waits()
        assert not gone(process)
        clock.step()
    until(lambda: gone(process) and gone(guardian))


def test_a_guardian_that_was_killed_is_replaced(begin: Open, clock: Clock) -> None:
    """The next who owns jobs sees that nobody guards them."""
    one = begin(first=clock.first)
    one.own(lease=9)
    guardian = guardian_of(one)
    clock.waits()
    os.kill(guardian, signal.SIGKILL)
    until(lambda: gone(guardian))
    one.own("q", lease=9)
    until(lambda: guardian_of(one) != guardian)
    assert not gone(guardian_of(one))
    clock.waits()
    one.call("w_close", OWNER, "nothing")
    clock.step()


def test_a_lease_in_real_time(home: Path) -> None:
    """Nothing is heard of a program for a second: its jobs end by themselves."""
    words = next((words for words in SHELLS.values() if shutil.which(words[0])), None)
    if words is None:
        pytest.skip("none of the shells is here")
    for begin in opened(words, home):
        one = begin()
        one.own(lease=1)
        one.run("p-1", "sleep", "1000")
        process, guardian = one.process_of("p-1"), guardian_of(one)
        one.kill()
        for number in (process, guardian):
            until(partial(gone, number))


def test_no_lease_where_signs_of_life_are_ignored(begin: Open) -> None:
    """A signal that was ignored when sshd was started is for good: then nobody guards, and nothing ends."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        one = begin()
    finally:
        signal.signal(signal.SIGUSR1, before)
    one.own(lease=1)
    one.run("p-1", "sleep", "1000")
    process = one.process_of("p-1")
    time.sleep(3)
    assert not gone(process)


# --- cleaning up ------------------------------------------------------------------------------------------


def two_owners(one: Attendant) -> tuple[int, int]:
    """A job of ours and one of another owner that run, and of each one that has ended."""
    one.own()
    one.own("q", OTHER)
    for program, owner in (("p", OWNER), ("q", OTHER)):
        one.run(f"{program}-1", "sleep", "1000", owner=owner)
        one.run(f"{program}-2", "true", owner=owner)
        one.ended(f"{program}-2")
    return one.process_of("p-1"), one.process_of("q-1")


def test_close_leaves_nothing(begin: Open) -> None:
    """All of an owner's jobs end, and nothing of them is left; another's are not touched."""
    one = begin()
    mine, other = two_owners(one)
    one.call("w_close", OWNER, "nothing")
    assert gone(mine)
    assert not gone(other)
    assert not (one.root / "p").exists()
    assert {key: seen.where for key, seen in one.look("q-1", "q-2", "p-1").items()} == {
        "q-1": "running",
        "q-2": "ended",
        "p-1": "gone",
    }
    assert one.errors() == ""


def test_close_keeps(begin: Open) -> None:
    """All of an owner's jobs end, and their ends and output are kept for who comes later."""
    one = begin()
    mine, other = two_owners(one)
    one.call("w_close", OWNER, "keep")
    assert gone(mine)
    assert not gone(other)
    assert one.end("p-1").terminating_signal == "SIGKILL"
    assert {seen.where for seen in one.look("p-1", "p-2").values()} == {"ended"}
    assert one.file("p-2", "out").exists()


def test_close_ends_what_is_suspended_deaf_or_elsewhere(begin: Open) -> None:
    """A job that is suspended ends, and so does one that ignores signals, or that has left its group."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    one.run("p-2", "sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1000; done")
    one.run("p-3", "sh", "-c", LEAVES if shutil.which("setsid") else "sleep 1000")
    one.signal("STOP", "p-1")
    processes = [one.process_of(f"p-{n}") for n in (1, 2, 3)]
    if shutil.which("setsid"):
        processes.append(one.process_of("p-3", "child"))
    one.call("w_close", OWNER, "nothing")
    until(lambda: all(map(gone, processes)))
    assert not (one.root / "p").exists()


def test_close_does_not_wait_for_the_dead(begin: Open) -> None:
    """A job that nobody waits for any more does not keep a close from its end."""
    one = begin()
    one.own()
    one.run("p-1", "sleep", "1000")
    process, waits = one.process_of("p-1"), one.waits_for("p-1")
    for number in (waits, process):
        os.kill(number, signal.SIGKILL)
    until(lambda: gone(process) and gone(waits))
    one.call("w_close", OWNER, "keep")
    assert one.file("p-1", "end").exists()
    assert one.where("p-1") == "lost"


def test_all_goes_on(begin: Open) -> None:
    """Left alone, jobs run on after the attendant, and programs without jobs leave nothing."""
    one = begin()
    mine, _ = two_owners(one)
    one.own("empty")
    one.call("w_leave_all", OWNER)
    one.hang_up()
    assert not gone(mine)
    assert not (one.root / "empty").exists()
    two = begin()
    assert two.where("p-1") == "running"


def test_clean(begin: Open) -> None:
    """All of all owners on this host ends, nothing is left of it, and how many there were is told."""
    one = begin()
    processes = two_owners(one)
    one.call("w_own", "r", attendant.NOBODY, 0)
    one.run("r-1", "sleep", "1000", owner=attendant.NOBODY)
    (line,) = one.call("w_clean")
    assert line.split("\t")[2] == "3"
    until(lambda: all(map(gone, processes)))
    assert [path.name for path in one.root.iterdir()] == [f"tell.{one.hello.host}.{one.process.pid}"]
    one.hang_up()
    assert not one.root.exists()
    assert one.errors() == ""


def test_reap(begin: Open) -> None:
    """What is kept of a job is removed; of one that was removed already, that is no error."""
    one = begin()
    one.own()
    for key in ("p-1", "p-12"):
        one.run(key, "true")
        one.ended(key)
    one.call("w_reap", "p/1", "p/3")
    assert {key: seen.where for key, seen in one.look("p-1", "p-12").items()} == {"p-1": "gone", "p-12": "ended"}
    one.call("w_reap", "p/1")


# --- a directory that hosts share -------------------------------------------------------------------------


def test_hosts_that_share_a_directory(begin: Open) -> None:
    """Another host's attendant sees that a job runs elsewhere, and neither signals nor removes nor tells of it."""
    # Another host has other processes; this one's are not to be found by it.
    one, two = begin(), begin(first="w_host=another; w_others() { :; }")
    assert two.hello.host == "another"
    one.own()
    one.run("p-1", "sh", "-c", 'while [ ! -e "$WFL_JOB_DIRECTORY/go" ]; do sleep 0.01; done; exit 7')
    process = one.process_of("p-1")
    two.call("w_follow", "p")
    assert two.look("p-1")["p-1"] == attendant.Seen("p-1", "elsewhere", host=one.hello.host)
    two.signal("KILL", "p-1")
    two.call("w_close", OWNER, "nothing")
    (line,) = two.call("w_clean")
    assert line.split("\t")[2] == "0"
    assert one.where("p-1") == "running"
    one.file("p-1", "go").touch()
    assert one.end("p-1").exit_status == 7
    assert gone(process)
    assert two.look("p-1")["p-1"].ours is False
    assert "p-1" not in two.told
    two.hang_up()
    assert one.where("p-1") == "ended"


@pytest.mark.parametrize("host", ["", "w_host=another"], ids=["this host", "another host"])
def test_a_sweep_spares_those_at_work(begin: Open, host: str) -> None:
    """A program that has no jobs at the moment is told of its next one, whoever has tidied up meanwhile."""
    one = begin(first=host)
    one.own()
    two = begin()
    two.own("q", OTHER)
    two.call("w_close", OTHER, "nothing")
    two.hang_up()
    assert not (two.root / "q").exists()
    one.run("p-1", "true")
    assert one.end("p-1").exit_status == 0
    one.call("w_close", OWNER, "nothing")
    assert not (one.root / "p").exists()


def test_who_follows_leaves_nothing_either(begin: Open) -> None:
    """A program's directory goes with the last that was told of its jobs."""
    one, two = begin(), begin()
    one.own()
    two.call("w_follow", "p")
    one.call("w_close", OWNER, "nothing")
    one.hang_up()
    two.hang_up()
    assert not one.root.exists()


# --- nobody reads -----------------------------------------------------------------------------------------


def test_a_full_pipe(begin: Open) -> None:
    """While nobody reads, jobs begin and end all the same; afterwards everything is told, and every line is whole."""
    one = begin()
    one.own()
    one.deaf(True)
    keys = [f"p-{number}" for number in range(60)]
    one.say(
        attendant.start(1000, [Submission(k, template("/nowhere/" + "x" * 3700), k) for k in keys], one.hello, OWNER)
    )
    until(lambda: all(one.file(key, "end").exists() for key in keys))
    one.deaf(False)
    assert {one.end(key).sub_state for key in keys} == {"launch_failure"}
    assert one.call("w_look") == []


def test_a_full_pipe_whose_reader_dies(begin: Open, home: Path) -> None:
    """Who waits for a reader that is gone does not wait for ever: no shell stays behind."""
    one = begin()
    one.own()
    one.deaf(True)
    keys = [f"p-{number}" for number in range(60)]
    one.say(
        attendant.start(1000, [Submission(k, template("/nowhere/" + "x" * 3700), k) for k in keys], one.hello, OWNER)
    )
    until(lambda: all(one.file(key, "end").exists() for key in keys))
    one.drop()
    two = begin()
    assert {seen.where for seen in two.look(*keys).values()} == {"ended"}
    two.hang_up()
    until(lambda: not left_behind(home))
