"""Much output, strange output, output that comes late: every byte is the right task's, and none is lost."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.faults.machine import PATIENCE, wait_until
from wfl import Task, TaskArray, Workflow
from wfl.drmaa2 import JobState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def flow() -> Iterator[Workflow]:
    """An open workflow."""
    with Workflow() as opened:
        yield opened


def test_a_million_lines(flow: Workflow) -> None:
    """Read whole and streamed while it runs: the same million lines, in order."""
    job = flow.run("seq", "1000000")
    assert list(job.stream()) == [str(number) for number in range(1, 1_000_001)]
    assert job.output() == "\n".join(map(str, range(1, 1_000_001)))


def test_200_megabytes_of_all_bytes(flow: Workflow) -> None:
    """Binary output passes unharmed: the checksum here is that of the command itself."""
    size = 200 << 20
    block = bytes(range(256)) * 256  # 64 KiB with line ends and broken UTF-8 in it
    code = (
        "import os; b = bytes(range(256)) * 256\n"
        f"for _ in range({size} // len(b)):\n v = memoryview(b)\n while v: v = v[os.write(1, v):]"
    )
    job = flow.run(sys.executable, "-I", "-S", "-c", code)
    (task,) = job.tasks
    assert isinstance(task, Task)
    data = task.output(encoding=None)
    expected = hashlib.md5(usedforsecurity=False)
    for _ in range(size // len(block)):
        expected.update(block)
    assert isinstance(data, bytes)
    assert len(data) == size
    assert hashlib.md5(data, usedforsecurity=False).digest() == expected.digest()


def test_what_a_left_behind_writer_writes_is_in_no_other_output(flow: Workflow, tmp_path: Path) -> None:
    """Tasks end and leave a process that writes later; their output files are not given to other tasks."""
    gate = tmp_path / "gate"
    late = '(while [ ! -e "$0" ]; do sleep 0.02; done; echo intruder; echo intruder >&2; echo done >>"$0.log") & exit 0'
    writers = [flow.run("sh", "-c", late, str(gate)) for _ in range(10)]
    assert all(job.wait(PATIENCE).success() for job in writers)
    wait = 'while [ ! -e "$0" ]; do sleep 0.02; done; sleep 0.1'
    readers = [flow.run("sh", "-c", wait, str(gate)) for _ in range(20)]
    assert flow.run_array(300, "true").synchronize(PATIENCE).success()
    gate.touch()
    log = tmp_path / "gate.log"
    wait_until("all have written", lambda: log.exists() and log.read_text().count("done") == 10)
    assert [job.wait(PATIENCE).state for job in readers] == [JobState.DONE] * 20
    later = flow.run_array(300, "true")
    assert {job.output() + job.error_output() for job in readers} == {""}
    assert set(later.outputs().values()) == {""}
    assert {job.output() for job in writers} <= {"", "intruder"}


@pytest.mark.parametrize("mixed", [False, True])
def test_output_is_not_mixed_up_where_files_are_used_again(flow: Workflow, mixed: bool) -> None:  # noqa: FBT001
    """Thousands of short tasks, most of them silent, some read while they run: each shows its own words only."""
    slow = flow.run("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do echo slow $i; sleep 0.05; done")
    lines = slow.stream()
    assert next(lines) == "slow 1"
    source = "[ $((TASK_ID % 3)) = 0 ] && echo out $TASK_ID; [ $((TASK_ID % 5)) = 0 ] && echo err $TASK_ID >&2; exit 0"
    array = flow.run_array(1500, "sh", "-c", source, resource_limits={"OPEN_FILES": 64} if mixed else None)
    assert list(lines) == [f"slow {number}" for number in range(2, 11)]
    array.synchronize(PATIENCE)
    (elements,) = array.tasks
    assert isinstance(elements, TaskArray)
    for number, task in enumerate(elements, start=1):
        assert task.output() == ("" if number % 3 else f"out {number}")
        assert task.error_output() == ("" if number % 5 else f"err {number}")


def test_streams_of_short_tasks_while_files_are_used_again(flow: Workflow) -> None:
    """Each short task is streamed as it runs and ends: what is read is its own and all of it."""
    flow.run_array(500, "true")
    for number in range(100):
        job = flow.run("sh", "-c", f"echo {number}") if number % 2 else flow.run("true")
        assert list(job.stream()) == ([str(number)] if number % 2 else [])


def test_a_line_is_seen_before_the_next_is_written(flow: Workflow, tmp_path: Path) -> None:
    """The task waits after each line until it was read here: a line is not kept back for the next, or for the end."""
    source = 'for i in 1 2 3 4 5 6 7 8 9; do echo $i; while [ ! -e "$0/$i" ]; do sleep 0.01; done; done'
    seen = []
    for line in flow.run("sh", "-c", source, str(tmp_path)).stream():
        seen.append(line)
        (tmp_path / line).touch()
    assert seen == [str(number) for number in range(1, 10)]


def test_a_stream_goes_on_through_suspension_and_ends_with_a_kill(flow: Workflow) -> None:
    """Nothing is lost or doubled by suspend and resume; the stream ends when the task is killed."""
    job = flow.run("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.005; done")
    lines = job.stream()
    seen = [next(lines), next(lines)]
    for _ in range(3):
        job.suspend().resume()
        seen += [next(lines) for _ in range(5)]
    job.kill()
    seen += lines
    assert seen == [str(number) for number in range(1, len(seen) + 1)]
    assert job.errors == []


def test_an_output_file_that_a_user_removes_is_no_crash(flow: Workflow, tmp_path: Path) -> None:
    """The file is gone: the output is empty, and the session goes on."""
    job = flow.run("echo", "x", output_path=str(tmp_path / "out")).wait(PATIENCE)
    os.unlink(tmp_path / "out")
    assert job.output() == ""
    assert flow.run("echo", "again").output() == "again"
