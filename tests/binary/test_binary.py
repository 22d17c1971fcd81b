"""A one-file binary made by PyInstaller: tasks, their environment, and what is left after each way to end."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.containers import NAMES, Daemon, address, lacking, settings_of

pytestmark = pytest.mark.timeout(900)  # building takes a while on a busy machine

PROGRAM = Path(__file__).with_name("program.py")
PROMISED = 2.0
"""Seconds within which no task of a killed program is left."""
PATIENCE = 120.0
"""Seconds for what takes moments when the machine is not busy."""
MARK = "WFL_TEST_MARK"
"""By this variable a test knows all processes that its binary brought forth."""


def missing() -> str | None:
    """What is needed to build, and is not here."""
    if importlib.util.find_spec("PyInstaller") is None:
        return "pyinstaller is not in this environment (the extra `binary` has it)"
    tool = Path(__file__).parents[2] / "tools" / "binary_lacks.py"
    lacks = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, check=True).stdout.strip()
    return f"what pyinstaller needs is not here (on Debian: {lacks})" if lacks else None


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program as one file, built with wfl's own hook and no further word to PyInstaller."""
    if reason := missing():
        lacking(reason)
    place = tmp_path_factory.mktemp("binary")
    options = ["--log-level", "WARN", "--noconfirm", "--onefile", "--specpath", ".", "--distpath", "dist"]
    done = subprocess.run(
        [sys.executable, "-m", "PyInstaller", *options, str(PROGRAM)],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return place / "dist" / "program"


class Runner:
    """Runs the binary in a directory of its own, with nothing in its environment but what a test puts there."""

    def __init__(self, binary: Path, directory: Path) -> None:
        self.binary = binary
        self.work, self.temporary = directory / "work", directory / "tmp"
        self.work.mkdir()
        self.temporary.mkdir()
        self.mark = uuid.uuid4().hex

    def run(self, *arguments: str, **environment: str) -> str:
        """Run it to its end and return what it printed."""
        done = subprocess.run(
            [self.binary, *arguments],
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def known(self) -> dict[str, str]:
        """An environment by which its processes and its temporary files can be told from others."""
        return {MARK: self.mark, "TMPDIR": str(self.temporary)}

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start it in a session of its own."""
        return subprocess.Popen(
            [self.binary, *arguments],
            cwd=self.work,
            env=self.known() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def within(self, system: str) -> dict[str, str]:
        """An environment by which it runs its jobs in containers, in a session of its own."""
        chosen = f"{system}?image=busybox&session_name={self.mark}"
        where = {"DOCKER_HOST": address("docker"), "CONTAINER_HOST": address("podman")}
        return {**where, "WFL_CONTEXT": chosen, "SESSION": self.mark, "PATH": os.environ["PATH"]}

    def left(self) -> list[psutil.Process]:
        """All its living processes: the program's, the keepers', the tasks'."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:  # gone, or dead and not yet collected
                continue
        return found

    def tasks(self) -> list[psutil.Process]:
        """Its living tasks, and what they started."""
        found = []
        for process in self.left():
            try:
                if "WFL_KEY" in process.environ():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def unpacked(self) -> list[str]:
        """What it and wfl left in the directory for temporary files."""
        return sorted(path.name for path in self.temporary.iterdir())


@pytest.fixture
def runner(binary: Path, tmp_path: Path) -> Iterator[Runner]:
    """A runner; afterwards nothing of it is left, whatever happened."""
    runner = Runner(binary, tmp_path)
    yield runner
    for process in runner.left():
        process.kill()


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait until it is so, as long as `seconds`; whether it is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def first_line(program: subprocess.Popen[str]) -> str:
    """The first line that a running program prints."""
    assert program.stdout is not None
    return program.stdout.readline().strip()


def test_children_see_nothing_of_the_bundle(runner: Runner) -> None:
    """In an empty environment a task has wfl's own variables alone: no library path, no mark of bundle or keeper."""
    lines = runner.run("environment").splitlines()
    assert {line.partition("=")[0] for line in lines} == {"JOB_ID", "WFL_KEY"}


def test_children_see_the_users_library_path(runner: Runner) -> None:
    """A library path that the user has set reaches tasks as it was, without the bundle's."""
    lines = runner.run("environment", LD_LIBRARY_PATH="/opt/one:/opt/two").splitlines()
    assert "LD_LIBRARY_PATH=/opt/one:/opt/two" in lines
    assert {line.partition("=")[0] for line in lines} == {"JOB_ID", "WFL_KEY", "LD_LIBRARY_PATH"}


def test_contexts_are_found_by_name(runner: Runner) -> None:
    """WFL_CONTEXT chooses a context with its settings, and entry points of contexts are in the bundle."""
    assert "JOB_ID=" in runner.run("environment", WFL_CONTEXT="process?max_parallel=1")
    assert "process" in runner.run("contexts").split()


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("slurm", "sbatch --parsable"),
        ("gridengine", "qsub -terse"),
        ("pbs", "qsub -N"),
        ("lsf", "bsub -J"),
        ("flux", "flux submit"),
    ],
)
def test_clusters_are_found_by_name(name: str, first: str, runner: Runner) -> None:
    """The contexts of schedulers are in the bundle, each with its file, and their settings may stand in the name."""
    assert runner.run("preview", name) == f"/jobs {first}\n"


def test_libdrmaa_is_what_is_missing(runner: Runner) -> None:
    """What loads a libdrmaa is in the bundle: where there is no such library, that is the reason, and no import."""
    if importlib.util.find_spec("drmaa") is None:
        lacking("the package drmaa is not in this environment, nor in the binary")
    with runner.start("environment", WFL_CONTEXT="drmaa", DRMAA_LIBRARY_PATH="/no/libdrmaa.so") as program:
        _, errors = program.communicate(timeout=PATIENCE)
    assert program.returncode == 1
    assert re.search(r"SessionManagementError: drmaa: .*/no/libdrmaa\.so", errors), errors


def test_clean_end_leaves_nothing(runner: Runner) -> None:
    """After a normal end there is no unpacked bundle, no output directory and no process."""
    runner.run("environment", **runner.known())
    assert runner.unpacked() == []
    assert runner.left() == []


def test_killed_program_leaves_no_task(runner: Runner) -> None:
    """When both processes of the binary are killed, its tasks and their children end within two seconds."""
    program = runner.start("sleep", "3")
    with program:
        assert first_line(program) == "started"
        assert until(lambda: len(runner.tasks()) == 9)  # three shells with two children each
        os.killpg(program.pid, signal.SIGKILL)
        assert until(lambda: not runner.tasks(), PROMISED)
    assert until(lambda: not runner.left())


def test_interrupt_ends_cleanly(runner: Runner) -> None:
    """SIGINT is a KeyboardInterrupt in the program; no process, no unpacked bundle and no traceback are left."""
    program = runner.start("sleep", "2")
    with program:
        assert first_line(program) == "started"
        program.send_signal(signal.SIGINT)  # the outer process passes it on
        output, errors = program.communicate(timeout=PATIENCE)
    assert (program.returncode, output) == (130, "interrupted\n")
    assert "2 tasks had not ended and are ended now" in errors
    assert "Traceback" not in errors
    assert runner.left() == []
    assert runner.unpacked() == []


def test_interrupt_from_a_terminal_ends_cleanly(runner: Runner) -> None:
    """Ctrl-C reaches both processes, so the program gets it twice, perhaps while it closes; nothing is left."""
    program = runner.start("sleep", "2")
    with program:
        assert first_line(program) == "started"
        os.killpg(program.pid, signal.SIGINT)
        program.communicate(timeout=PATIENCE)
    assert program.returncode in (130, -signal.SIGINT)
    assert until(lambda: not runner.tasks(), PROMISED)
    assert until(lambda: not runner.left())
    assert until(lambda: runner.unpacked() == [])


def test_detached_tasks_are_found_again(runner: Runner) -> None:
    """Detached tasks outlive the binary and its unpacked files; its next start finds them, with their true ends."""
    runner.run("detach", "jobs.db", **runner.known())
    assert runner.tasks()
    lines = runner.run("find", "jobs.db", **runner.known()).splitlines()
    assert sorted(lines) == ["long running 7 late", "short failed 3 early"]
    assert until(lambda: not runner.left())
    assert until(lambda: runner.unpacked() == [])


@pytest.fixture
def daemons(runner: Runner) -> Iterator[Callable[[str], Daemon]]:
    """Gives a daemon of containers by its name; afterwards nothing of the binary's is in it."""
    opened: list[Daemon] = []

    def get(name: str) -> Daemon:
        settings_of(address(name))
        opened.append(Daemon(name, address(name)))
        return opened[-1]

    yield get
    for daemon in opened:
        daemon.remove_all(runner.mark)
        daemon.close()


WAYS = [*((name, "named") for name in NAMES), ("docker", "imported")]
"""Daemons, and how the program comes by their context."""


@pytest.mark.parametrize(("system", "how"), WAYS)
def test_runs_jobs_in_containers(system: str, how: str, runner: Runner, daemons: Callable[[str], Daemon]) -> None:
    """Found by name or imported, the contexts of containers are in the bundle with all that they need.

    Files are copied in and out, output and exit status come back, nothing of the binary's own variables gets in, and
    no container, process or unpacked bundle is left.
    """
    daemon = daemons(system)
    lines = runner.run("contain", how, **runner.known(), **runner.within(system)).splitlines()
    assert lines[:2] == ["apple", "pear"]
    assert lines[-1] == "3"
    assert any(line.startswith("JOB_ID=") for line in lines)
    assert not [line for line in lines if line.startswith(("_PYI_", "LD_LIBRARY_PATH", MARK))]
    daemon.is_empty(runner.mark)
    assert until(lambda: not runner.left())
    assert until(lambda: runner.unpacked() == [])


@pytest.mark.parametrize(("system", "how"), WAYS)
def test_killed_program_leaves_no_container(
    system: str, how: str, runner: Runner, daemons: Callable[[str], Daemon]
) -> None:
    """When both processes of the binary are killed, the helper that it started ends its container, and goes itself."""
    daemon = daemons(system)
    program = runner.start("leave", how, **runner.within(system))
    with program:
        assert first_line(program) == "started"
        assert daemon.states(runner.mark) == ["running"]
        os.killpg(program.pid, signal.SIGKILL)
        assert until(lambda: not daemon.states(runner.mark))
    assert until(lambda: not runner.left())


def test_says_what_is_missing_without_a_daemon(runner: Runner) -> None:
    """The daemon's client is in the bundle: where nothing listens, the reason is that, and not an import."""
    if importlib.util.find_spec("docker") is None:
        lacking("docker-py is not in this environment, nor in the binary")
    nowhere = f"unix://{runner.work}/none.sock"
    with runner.start("contain", "named", **{**runner.within("docker"), "DOCKER_HOST": nowhere}) as program:
        _, errors = program.communicate(timeout=PATIENCE)
    assert program.returncode == 1
    assert re.search(
        rf"^wfl\.errors\.DrmCommunicationError: {nowhere}: No such file or directory\. ", errors, re.MULTILINE
    )
