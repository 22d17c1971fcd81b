"""A signal that a scheduler sends to the script's shell alone: the command gets it, and how it ended is still known."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from wfl import InvalidArgumentError, JobTemplate, shell
from wfl.contexts.batch import script
from wfl.contexts.batch.place import Entry, Place
from wfl.contexts.batch.slurm import SlurmContext
from wfl.contexts.ends import how_it_ended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wfl import JobInfo

SHELLS = {"sh": ["/bin/sh"], "dash": ["dash"], "bash": ["bash"], "posix": ["bash", "--posix"]}
PATIENCE = 60.0


@pytest.fixture(params=SHELLS)
def shell_words(request: pytest.FixtureRequest) -> list[str]:
    """What runs the script on one site or another."""
    words = SHELLS[request.param]
    if shutil.which(words[0]) is None:
        pytest.skip(f"there is no {words[0]} here")
    return words


class Running:
    """A script that runs as a scheduler runs it: as the first of a process group."""

    def __init__(
        self, words: list[str], template: JobTemplate, place: Place, passed_on: str | None, alone: str
    ) -> None:
        self.place, entry = place, Entry("program-1", template, "program-1")
        text = script.script(entry, place, number="NUMBER", passed_on=passed_on, alone=alone)
        place.enter(entry, text)
        self.process = subprocess.Popen([*words, place.path("script", "program-1")], process_group=0)

    def output(self) -> str:
        """What the command has written."""
        try:
            with open(self.place.path("out", "program-1"), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def is_up(self) -> None:
        """Wait until the command says so."""
        end = time.monotonic() + PATIENCE
        while "up\n" not in self.output():
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.01)

    def end(self) -> tuple[int, JobInfo]:
        """The script's own status, and what is known by its record."""
        status = self.process.wait(PATIENCE)
        told = self.place.end("program-1")
        return status, how_it_ended("1", told, None, cause=None, began=True, words=lambda: "")


@pytest.fixture
def started() -> Iterator[list[Running]]:
    """Scripts of a test, which leaves none."""
    running: list[Running] = []
    yield running
    for one in running:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait(PATIENCE)


def run(
    started: list[Running], words: list[str], template: JobTemplate, place: Path, number: str | None, *, alone: str = ""
) -> Running:
    """One that is up."""
    made = Running(words, template, Place(str(place), "session"), number, alone)
    started.append(made)
    made.is_up()
    return made


def test_command_that_goes_on(started: list[Running], shell_words: list[str], tmp_path: Path) -> None:
    """A command that takes note of it goes on, as often as it comes; its exit status is told when it ends."""
    line = "trap 'n=$((n + 1)); echo $n' USR1; n=0; echo up; while [ $n -lt 3 ]; do sleep 0.05; done; exit 7"
    one = run(started, shell_words, shell(line), tmp_path, "USR1")
    for number in "123":
        one.process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + PATIENCE
        while number not in one.output():
            assert time.monotonic() < end
            time.sleep(0.01)
    status, info = one.end()
    assert (status, info.exit_status, info.sub_state) == (7, 7, "exited")


@pytest.mark.parametrize("code", [0, 3, 138])
def test_command_that_leaves_at_once(code: int, started: list[Running], shell_words: list[str], tmp_path: Path) -> None:
    """One that ends by it of its own accord has its own exit status, even if that looks like a signal."""
    source = (
        f"import os, signal, sys; signal.signal(10, lambda *_: os._exit({code})); print('up', flush=True); "
        "signal.pause()"
    )
    template = JobTemplate(remote_command=sys.executable, args=("-c", source))
    for attempt in range(5):
        one = run(started, shell_words, template, tmp_path / str(attempt), "USR1")
        one.process.send_signal(signal.SIGUSR1)
        status, info = one.end()
        assert (status, info.exit_status, info.sub_state) == (code, code, "exited")


def test_command_that_does_not_expect_it(started: list[Running], shell_words: list[str], tmp_path: Path) -> None:
    """One that knows nothing of the signal is ended by it."""
    one = run(started, shell_words, shell("echo up; exec sleep 60"), tmp_path, "USR1")
    one.process.send_signal(signal.SIGUSR1)
    _, info = one.end()
    assert (info.terminating_signal, info.sub_state) == ("SIGUSR1", "signaled")


def test_interrupt(started: list[Running], shell_words: list[str], tmp_path: Path) -> None:
    """SIGINT too, which a shell has its background ignore."""
    source = "import time\ntry: print('up', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('end')"
    template = JobTemplate(remote_command=sys.executable, args=("-c", source))
    one = run(started, shell_words, template, tmp_path, "INT")
    one.process.send_signal(signal.SIGINT)
    status, info = one.end()
    assert (status, info.exit_status, one.output()) == (0, 0, "up\nend\n")


def test_other_signals(started: list[Running], shell_words: list[str], tmp_path: Path) -> None:
    """What reaches the whole group, as a scheduler's own end of a job does, is told as ever."""
    one = run(started, shell_words, shell("echo up; exec sleep 60"), tmp_path, "USR1", alone="*")
    os.killpg(one.process.pid, signal.SIGTERM)
    _, info = one.end()
    assert (info.terminating_signal, info.sub_state) == ("SIGTERM", "signaled")


@pytest.mark.parametrize("group", [False, True])
def test_request_to_end(
    group: bool,  # noqa: FBT001 - a case
    started: list[Running],
    shell_words: list[str],
    tmp_path: Path,
) -> None:
    """SIGTERM reaches the command once, whether the scheduler sends it to the shell alone or to the whole group."""
    source = (
        "import os, signal, time; told = []; signal.signal(15, lambda *_: told.append(1)); print('up', flush=True)\n"
        "while not told: time.sleep(0.05)\n"
        "time.sleep(0.5); os._exit(len(told))"
    )
    template = JobTemplate(remote_command=sys.executable, args=("-c", source))
    one = run(started, shell_words, template, tmp_path, None, alone="nothing" if group else "*")
    (os.killpg if group else os.kill)(one.process.pid, signal.SIGTERM)
    status, info = one.end()
    assert (status, info.exit_status, info.sub_state) == (1, 1, "exited")


def test_slurm(tmp_path: Path) -> None:
    """Slurm is asked to send it to the script's shell alone, with its own B or without; no signal is refused."""

    def told(text: str) -> tuple[str, str]:
        template = JobTemplate(remote_command="true", extensions={"signal": text})
        (preview,) = SlurmContext(directory=tmp_path).preview(template)
        (option,) = [word for word in preview.command if word.startswith("--signal")]
        return option, preview.script

    for text in ("USR1@60", "B:USR1@60", "SIGUSR1@60"):
        option, lines = told(text)
        assert option == "--signal=B:USR1@60"
        assert 'trap "wfl_pass_on $wfl_rest" $wfl_rest' in lines
        assert "for wfl_rest in USR1 " in lines
    for text in ("USR1", "KILL@60", "10@60", "R:USR1@60"):
        with pytest.raises(InvalidArgumentError, match="the like of 'USR1@60'"):
            told(text)
