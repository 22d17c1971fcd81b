"""The live line: what stands on a real terminal, in a notebook, and that nothing is drawn where nobody would see it.

Programs run on a pseudo-terminal of their own; their jobs end when a file appears, so that a test sees every state.
"""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE = 60  # seconds that a program may take on a busy machine
BEGIN = """\
import os, signal, sys, threading, types
if os.isatty(0):
    os.login_tty(0)  # a session of its own: Ctrl-C goes to it, and to nobody else
from wfl import *
from wfl.contexts.process import ProcessContext

def gated(name, then="true"):
    return shell(f"until [ -e {name} ]; do sleep 0.02; done; {then}")

def go_when_waited(flow):
    wait = flow.session.wait
    def waited(*arguments, **settings):
        open("go", "w").close()
        return wait(*arguments, **settings)
    flow.session.wait = waited
    return flow
"""
OPEN = "with Workflow(ProcessContext(max_parallel=2), progress=True) as flow:\n    "
ONE = OPEN + "flow.run(gated('go')).synchronize()\n    print('after')\n"
WATCHED = OPEN + "go_when_waited(flow)\n    "
WATCHED_ONE = WATCHED + "flow.run(gated('go')).synchronize()\n    print('after')\n"
NO_TQDM = "sys.modules['tqdm'] = None\n"
NOTEBOOK = """\
shell_of_kernel = types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell_of_kernel)
"""


def environment() -> dict[str, str]:
    """This one, without what would switch the line off or change its width."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TQDM_", "COLUMNS", "LINES"))} | {
        "PYTHONUTF8": "1",
        "PYTHON_COLORS": "0",
    }


class Terminal:
    """A pseudo-terminal with a program on it."""

    def __init__(self, directory: Path, source: str, columns: int = 80) -> None:
        self.directory, self.text = directory, ""
        self._master, slave = os.openpty()
        self.resize(columns)
        command = [sys.executable, "-c", BEGIN + source]
        try:
            self._program = subprocess.Popen(
                command, stdin=slave, stdout=slave, stderr=slave, cwd=directory, env=environment()
            )
        finally:
            os.close(slave)

    def resize(self, columns: int) -> None:
        """Give its window so many columns."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def touch(self, name: str) -> None:
        """Let the jobs go that wait for this file."""
        (self.directory / name).touch()

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def send(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        self._program.send_signal(number)

    def until(self, pattern: str) -> str:
        """Read on until something new matches, and return the match."""
        begin = len(self.text)
        end = time.monotonic() + PATIENCE
        while not (match := re.compile(pattern).search(self.text, begin)):
            if not self._read(end):
                pytest.fail(f"never came: {pattern!r}; came: {self.text!r}")
        return match[0]

    def finish(self) -> int:
        """Read all until the program has ended; its exit status."""
        end = time.monotonic() + PATIENCE
        while self._read(end):
            pass
        return self._program.wait(PATIENCE)

    def _read(self, end: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, end - time.monotonic()))[0]:
            pytest.fail(f"nothing more came after: {self.text!r}")
        try:
            got = os.read(self._master, 1 << 16)
        except OSError:  # EIO: nobody has the other side open
            return False
        self._pending = getattr(self, "_pending", b"") + got
        whole = self._pending.decode(errors="ignore")  # a letter may come in two parts
        self._pending = self._pending[len(whole.encode()) :]
        self.text += whole
        return True

    def drawn(self) -> list[str]:
        """Every state of every line, in order."""
        return [part for part in re.split(r"[\r\n]+", self.text) if part]

    def screen(self) -> list[str]:
        """What a user sees at the end: later text stands where earlier text stood, without blanks at the ends."""
        rows, row, column = [""], 0, 0
        for piece in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", self.text):
            if piece == "\r":
                column = 0
            elif piece == "\n":
                row += 1
                rows += [""] * (row + 1 - len(rows))
            elif piece == "\x1b[A":
                row -= 1
            else:
                line = rows[row].ljust(column)
                rows[row] = line[:column] + piece + line[column + len(piece) :]
                column += len(piece)
        return [line.rstrip() for line in rows if line.strip()]

    def hang_up(self) -> None:
        """Go away."""
        os.close(self._master)
        self._master = -1

    def wait(self) -> int:
        """Wait for the program's end without looking at what it writes."""
        return self._program.wait(PATIENCE)

    def clean(self) -> None:
        """End the program and close the terminal."""
        if self._program.poll() is None:
            self._program.kill()
        self._program.wait()
        if self._master >= 0:
            self.hang_up()


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    """Start a program on a terminal; it is ended afterwards."""
    opened = []

    def start(source: str, columns: int = 80) -> Terminal:
        opened.append(Terminal(tmp_path, source, columns))
        return opened[-1]

    yield start
    for one in opened:
        one.clean()


def run(source: str, directory: Path, *, line: str = 'exec "$@"', **variables: str) -> tuple[str, str]:
    """Run a program without a terminal, started by a line of shell; what it wrote to output and error output."""
    done = subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-W", "error", "-c", BEGIN + source],
        cwd=directory,
        env=environment() | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


# --- on a terminal ----------------------------------------------------------------------------------------


def test_line_tells_states_as_they_change(terminal: Open) -> None:
    """What runs, waits and has failed stands in the line as it is now; at the end one line is left, and the program
    goes on writing below it.
    """
    on = terminal(
        OPEN
        + "job = flow.run(gated('a', 'exit 3')).run(gated('b')).run(gated('c'))\n"
        + "    job.synchronize()\n    print('after', len(job.failed()))\n"
    )
    on.until(r" 0/3 \[.*, 2 running, 1 queued\]")
    on.touch("a")
    on.until(r" 33%\|.*\| 1/3 \[.*task/s?.*, 2 running, 1 failed\]")
    on.touch("b")
    on.until(r" 67%\|.*\| 2/3 \[.*, 1 running, 1 failed\]")
    on.touch("c")
    assert on.finish() == 0
    line, after = on.screen()
    assert re.fullmatch(r"100%\|█+\| 3/3 \[\d\d:\d\d<00:00, .*(task/s|s/task), 1 failed\]", line)
    assert after == "after 1"


def test_nothing_to_tell_is_not_told(terminal: Open) -> None:
    """A number that is zero is not in the line: where all went well the last one ends with the rate."""
    on = terminal(ONE)
    on.until("1 running")
    on.touch("go")
    assert on.finish() == 0
    line, after = on.screen()
    assert re.search(r"1/1 \[.*(task/s|s/task)\]$", line)
    assert after == "after"
    assert not re.search(r" 0 (running|queued|failed)", on.text)


def test_suspended_counts_as_running(terminal: Open) -> None:
    """A suspended task has begun: it is not told as one that waits to begin."""
    on = terminal(
        OPEN
        + "job = flow.run(gated('go')).run(gated('go'))\n    [t.wait_started(60) for t in job.tasks]\n"
        + "    job.suspend()\n    assert job.state is JobState.SUSPENDED\n"
        + "    threading.Thread(target=lambda: (input(), job.resume())).start()\n    job.synchronize()\n"
    )
    on.until("0/2 .* 2 running")
    assert "queued" not in on.text
    on.touch("go")
    on.until("1/2 .* 1 running")
    on.press(b"\n")
    assert on.finish() == 0


def test_rate_is_of_what_ended_meanwhile(terminal: Open) -> None:
    """What had ended before is in the count, and not in the rate: there is none until another one ends."""
    on = terminal(OPEN + "job = flow.run_array(20, 'true').wait()\n" + "    job.run(gated('go')).synchronize()\n")
    assert on.until(r" 20/21 \[.*, 1 running\]").endswith("<?, ?task/s, 1 running]")
    on.touch("go")
    assert on.finish() == 0
    assert not re.search(r"\d\d\.\d+task/s", on.text)  # 21 in next to no time would be that fast


def test_nothing_to_wait_for_draws_nothing(terminal: Open) -> None:
    """Where all have ended already no line comes."""
    on = terminal(OPEN + "flow.run_array(3, 'true').wait().synchronize()\n    print('after')\n")
    assert on.finish() == 0
    assert on.text == "after\r\n"


def test_timeout_ends_the_line_and_is_as_without_it(terminal: Open) -> None:
    """A time-out leaves the line as it stood, finished; the error tells the time that was given."""
    on = terminal(
        OPEN
        + "job = flow.run(gated('go')).run('true')\n    job.wait().synchronize(timeout=0.5)\n"
        + "    print(f'{type(job.last_error).__name__}: {job.last_error}')\n    job.kill_all()\n"
    )
    assert on.finish() == 0
    line, error, *_ = on.screen()  # what follows is the killed job, a failure that nobody looks at
    assert re.match(r" 50%\|.*\| 1/2 \[.*, 1 running\]$", line)
    assert error == "TimeoutError: after 0.5 s 1 of 2 tasks had not ended; they go on"


def test_timeout_of_zero_looks_once(terminal: Open) -> None:
    """`timeout=0` shows how far they are and goes on."""
    on = terminal(
        OPEN
        + "job = flow.run(gated('go'))\n    job.tasks[0].wait_started(60)\n    job.synchronize(timeout=0)\n"
        + "    print('after')\n    job.kill().success()\n"
    )
    assert on.finish() == 0
    line, after, *_ = on.screen()  # the time-out is an error that nobody looks at, which is logged
    assert line.endswith("1 running]")
    assert after == "after"


def test_ctrl_c_finishes_the_line(terminal: Open) -> None:
    """Ctrl-C comes through as KeyboardInterrupt; its traceback starts on a line of its own, and the jobs are ended."""
    on = terminal(OPEN + "flow.run(gated('go')).synchronize()\n")
    on.until("1 running")
    on.press(b"\x03")
    assert on.finish() == -signal.SIGINT
    line, warning, *traceback = on.screen()
    assert re.search(r"0/1 \[.*\](\^C)?$", line)  # the terminal itself shows the key
    assert warning.startswith("1 task had not ended and is ended now")
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == "KeyboardInterrupt"
    assert "During handling" not in on.text


def test_exception_comes_through(terminal: Open) -> None:
    """What a signal handler raises meanwhile leaves `synchronize` as it is, below a finished line."""
    on = terminal(
        "def handler(*_):\n    raise LookupError('on purpose')\n"
        "signal.signal(signal.SIGUSR1, handler)\n"
        + OPEN
        + "job = flow.run(gated('go'))\n    try:\n        job.synchronize()\n"
        + "    except LookupError as error:\n        print('caught', error)\n    job.kill()\n"
    )
    on.until("1 running")
    on.send(signal.SIGUSR1)
    assert on.finish() == 0
    line, caught, *_ = on.screen()  # the killed job is a failure that nobody looks at, which is logged
    assert line.endswith("1 running]")
    assert caught == "caught on purpose"


def test_no_thread_stays(terminal: Open) -> None:
    """After the wait the threads are those from before."""
    on = terminal(
        OPEN
        + "flow.run('true').wait()\n    job = flow.run(gated('go'))\n    before = {*threading.enumerate()}\n"
        + "    job.synchronize()\n"
        + "    print([t.name for t in {*threading.enumerate()} - before if not t.name.startswith('wfl-worker')])\n"
    )
    on.until("1 running")
    on.touch("go")
    assert on.finish() == 0
    assert on.screen()[-1] == "[]"


@pytest.mark.parametrize("columns", [10, 33, 80, 200])
def test_line_fits_the_terminal(terminal: Open, columns: int) -> None:
    """No state of the line is wider than the window, as it would leave its beginnings behind; a wide one is used."""
    on = terminal(ONE, columns)
    on.until("0%")
    on.touch("go")
    assert on.finish() == 0
    assert max(map(len, on.drawn())) <= columns
    assert len(on.screen()[0]) > columns - 5
    assert on.screen()[-1] == "after"


def test_line_follows_the_window(terminal: Open) -> None:
    """A window that is made narrower while jobs run gets a narrower line."""
    on = terminal(ONE, 120)
    assert 110 < len(on.until(r"[^\r]*1 running\]")) <= 120
    on.resize(60)
    on.until(r"\r[^\r]{50,59}1?\d?\]\s*\r")
    on.touch("go")
    assert on.finish() == 0
    assert len(on.screen()[0]) <= 60


def test_many_tasks_of_long_duration(terminal: Open) -> None:
    """Five thousand tasks of an hour, in virtual time: every one counts, and there are as many looks as real time has
    room for, not as virtual time has.
    """
    on = terminal(
        "from wfl.testing import FakeContext, Outcome\n"
        "context = FakeContext({'x': Outcome(duration=3600)})\n"
        "with Workflow(context, progress=True) as flow:\n    flow.run_array(5000, 'x').synchronize()\n"
    )
    begun = time.monotonic()
    assert on.finish() == 0
    assert re.match(r"100%\|█+\| 5000/5000 \[", on.screen()[-1])
    assert len(on.drawn()) <= 5 + (time.monotonic() - begun) / 0.2


@pytest.mark.parametrize("order", ["abc", "cba", "bac", "bca"])
def test_branches_have_a_line_each(terminal: Open, order: str) -> None:
    """Three that wait at once do not write over each other, whichever ends first: three whole lines are left."""
    on = terminal(
        OPEN.replace("max_parallel=2", "")
        + "def first(job):\n        job.run(gated('a')).synchronize()\n"
        + "    def second(job):\n        job.run_array(2, gated('b')).synchronize()\n"
        + "    def third(job):\n        job.run_array(3, gated('c')).synchronize()\n"
        + "    flow.branch(first, second, third).join()\n    print('after')\n"
    )
    totals = {"a": "1", "b": "2", "c": "3"}
    on.until(r"(?s)(?=.*0/1 .*1 running)(?=.*0/2 .*2 running)(?=.*0/3 .*3 running)")
    for name in order:
        on.touch(name)
        on.until(rf"100%\S+ {totals[name]}/{totals[name]} .*\n")
    assert on.finish() == 0
    *lines, after = on.screen()
    assert after == "after"
    assert [re.findall(r"^100%\|█+\| (\d/\d) \[[^\]]*\]$", line) for line in lines] == [
        [f"{totals[name]}/{totals[name]}"] for name in order
    ]


def test_terminal_that_goes_away_harms_nothing(terminal: Open) -> None:
    """A program that outlives its terminal (nohup) goes on waiting, and ends as ever."""
    on = terminal(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        + OPEN
        + "job = flow.run(gated('go')).synchronize()\n    assert job.success()\n    open('ended', 'w').close()\n"
        + "os._exit(0)\n"  # the interpreter's own end cannot write to it either
    )
    on.until("1 running")
    on.hang_up()
    on.touch("go")
    assert on.wait() == 0
    assert (on.directory / "ended").exists()


# --- where nobody would see it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ['exec "$@"', 'exec "$@" 2>&-', 'exec "$@" 2>/dev/null', 'exec "$@" 2>errors; cat errors >&2'],
    ids=["pipe", "closed", "null", "file"],
)
def test_no_terminal_no_line(tmp_path: Path, line: str) -> None:
    """Error output that is a pipe, a file, or closed gets not one letter, and tqdm is not even loaded."""
    source = WATCHED_ONE + "    assert 'tqdm' not in sys.modules\n"
    assert run(source, tmp_path, line=line) == ("after\n", "")


@pytest.mark.parametrize(
    "source",
    [
        WATCHED + "flow.run(gated('go')).synchronize(progress=False)\n",
        WATCHED.replace(", progress=True", "") + "flow.run(gated('go')).synchronize()\n",
        WATCHED + "flow.run(gated('go')).wait()\n",
        "os.environ['TQDM_DISABLE'] = '1'\n" + WATCHED_ONE.replace("    print('after')\n", ""),
    ],
    ids=["in the call", "by default", "wait", "TQDM_DISABLE"],
)
def test_switched_off(terminal: Open, source: str) -> None:
    """Without `progress=True`, with progress=False in the call, or with tqdm's own variable, nothing is written."""
    on = terminal(source + "    print('after')\n")
    assert on.finish() == 0
    assert on.text == "after\r\n"


def test_switched_on_in_the_call(terminal: Open) -> None:
    """`synchronize(progress=True)` draws, whatever the workflow says."""
    on = terminal(OPEN.replace(", progress=True", "") + "flow.run(gated('go')).synchronize(progress=True)\n")
    on.until("1 running")
    on.touch("go")
    assert on.finish() == 0


# --- without tqdm -----------------------------------------------------------------------------------------


def test_without_tqdm_it_waits_and_says_what_to_install(terminal: Open) -> None:
    """Where tqdm is not installed all is waited for; one warning, and not one for each wait, names the extra."""
    on = terminal(
        NO_TQDM
        + OPEN
        + "flow.run(gated('go')).synchronize()\n    job = flow.run('sleep', '0.1').synchronize()\n"
        + "    print(job.state, job.errors)\n"
    )
    on.until("wfl-sdk")
    on.touch("go")
    assert on.finish() == 0
    warning, after = on.screen()
    assert warning.endswith("progress needs tqdm: pip install 'wfl-sdk[progress]'")
    assert after == "done []"


def test_without_tqdm_nothing_is_said_where_nothing_would_be_drawn(tmp_path: Path) -> None:
    """A program whose error output is a file is not told to install what it would not use."""
    assert run(NO_TQDM + WATCHED_ONE, tmp_path) == ("after\n", "")


# --- in a notebook ----------------------------------------------------------------------------------------

BAR = """
class Bar:
    def __init__(self, **how):
        vars(self).update(how)
        print("made", self.initial, self.total, self.postfix)
    def __enter__(self):
        return self
    def set_postfix_str(self, text, refresh):
        self.postfix = text
    def refresh(self):
        self.last = (self.n, self.total, self.postfix)
    def __exit__(self, *_):
        print("closed", *self.last)
import tqdm
sys.modules["tqdm.notebook"] = types.SimpleNamespace(tqdm=Bar)
"""


def test_notebook_gets_a_bar_of_its_own(tmp_path: Path) -> None:
    """In a Jupyter kernel, where error output is no terminal, tqdm's notebook bar is made, kept up and closed."""
    body = "flow.run(gated('go')).run(gated('go', 'exit 1')).synchronize()\n"
    output, errors = run(NOTEBOOK + BAR + WATCHED + body, tmp_path)
    made, closed = output.splitlines()
    assert re.fullmatch(r"made 0 2 (2 running|1 running, 1 queued|2 queued)", made)
    assert closed == "closed 2 2 1 failed"
    assert "█" not in errors


@pytest.mark.parametrize("missing", ["ipywidgets", "IProgress"])
def test_notebook_without_widgets_gets_text(tmp_path: Path, missing: str) -> None:
    """Where ipywidgets are missing, which tqdm's bar tells by an ImportError when it is made, the line is text."""
    source = {
        "ipywidgets": "sys.modules['tqdm.notebook'] = None\n",
        "IProgress": "import tqdm\ndef bar(*_, **__):\n    raise ImportError('IProgress not found')\n"
        "bar = type('bar', (), {'__init__': bar})\n"
        "sys.modules['tqdm.notebook'] = types.SimpleNamespace(tqdm=bar)\n",
    }[missing]
    body = "flow.run(gated('go')).synchronize()\n    print('after')\n"
    output, errors = run(NOTEBOOK + source + WATCHED + body, tmp_path)
    assert output == "after\n"
    assert re.search(r"100%\|█+\| 1/1 \[.*\]\n$", errors)


def test_notebook_without_tqdm_says_what_to_install(tmp_path: Path) -> None:
    """A notebook without tqdm gets the warning, and its jobs are waited for."""
    output, errors = run(NOTEBOOK + NO_TQDM + "sys.modules['tqdm.notebook'] = None\n" + WATCHED_ONE, tmp_path)
    assert output == "after\n"
    assert errors.count("pip install 'wfl-sdk[progress]'") == 1


@pytest.mark.parametrize(
    "loaded",
    [
        "sys.modules['IPython'] = types.SimpleNamespace(get_ipython=lambda: None)\n",
        "sys.modules['IPython'] = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(config={}))\n",
        "sys.modules['ipykernel'] = types.ModuleType('ipykernel')\n",
    ],
    ids=["imported", "terminal shell", "ipykernel imported"],
)
def test_notebook_modules_alone_are_no_notebook(tmp_path: Path, loaded: str) -> None:
    """A script that has imported IPython or ipykernel, or runs in IPython's terminal shell, is no notebook."""
    assert run(loaded + WATCHED_ONE, tmp_path) == ("after\n", "")
