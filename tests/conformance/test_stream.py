"""`stream()`: the lines of a job while it runs."""

from __future__ import annotations

import threading
from pathlib import Path

from wfl import Capability, JobState, Task, Workflow, shell
from wfl.testing.conformance.site import Site, Trait, needs, quoted

pytestmark = needs(Trait.EXECUTION, Capability.OUTPUT, Capability.STREAM)


def test_while_it_runs(site: Site, flow: Workflow) -> None:
    """A line is delivered while the job that wrote it still runs."""
    job = flow.run(shell("echo first; exec sleep 600"))
    lines = job.stream()
    assert next(lines) == "first"
    site.until(lambda: job.state is JobState.RUNNING, "RUNNING")
    job.kill()
    assert list(lines) == []
    assert job.wait(site.within(30)).state is JobState.FAILED


@needs(Trait.SHARED)
def test_line_by_line(flow: Workflow, shared: Path) -> None:
    """Lines come one by one: a job that waits for an answer to each of its lines gets on."""
    answer = shared / "answer"
    line = f"for i in 1 2 3; do echo $i; until [ -e {quoted(answer)}$i ]; do sleep 0.02; done; done; echo over"
    seen = []
    for text in flow.run(shell(line)).stream():
        seen.append(text)
        Path(f"{answer}{text}").touch()
    assert seen == ["1", "2", "3", "over"]


def test_after_the_end(flow: Workflow) -> None:
    """The stream of a job that has ended gives all of its lines and ends."""
    job = flow.run("printf", r"a\n\nb\nc").wait()
    assert list(job.stream()) == ["a", "", "b", "c"]


def test_last_line_without_break(flow: Workflow) -> None:
    """A last line without a line break is delivered, too."""
    assert list(flow.run("printf", r"a\nlast").stream()) == ["a", "last"]


def test_silent_job(flow: Workflow) -> None:
    """The stream of a job that writes nothing ends with the job."""
    assert list(flow.run("sleep", "0.1").stream()) == []


def test_error_stream(flow: Workflow) -> None:
    """A task streams its error output when asked to."""
    task = flow.run(shell("echo out; echo err >&2")).tasks[0]
    assert isinstance(task, Task)
    assert list(task.stream("stderr")) == ["err"]


def test_long_line(flow: Workflow) -> None:
    """A line of a megabyte is delivered whole."""
    line = 'BEGIN { s = "0123456789"; for (i = 0; i < 100000; i++) printf "%s", s; print ""; print "end" }'
    first, last = flow.run("awk", line).stream()
    assert (len(first), last) == (1_000_000, "end")


def test_split_character(flow: Workflow) -> None:
    """A character whose bytes are written at different moments arrives whole."""
    assert list(flow.run(shell(r"printf '\342'; sleep 0.2; printf '\202\254\n'")).stream()) == ["€"]


def test_many_lines(flow: Workflow) -> None:
    """100,000 lines that are read while they are written arrive all, once, in order."""
    lines = flow.run("awk", "BEGIN { for (i = 0; i < 100000; i++) print i }").stream()
    assert list(lines) == [str(number) for number in range(100_000)]


def test_two_readers(site: Site, flow: Workflow) -> None:
    """Several readers of one job get every line each."""
    job = flow.run(shell("for i in 1 2 3; do echo $i; sleep 0.1; done"))
    seen: list[list[str]] = [[], []]
    threads = [threading.Thread(target=lambda mine=mine: mine.extend(job.stream()), daemon=True) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(site.seconds(60))
    assert seen == [["1", "2", "3"]] * 2


def test_stream_of_array(flow: Workflow) -> None:
    """The stream of an array gives its elements' lines, element by element."""
    assert list(flow.run_array(3, shell("echo $TASK_ID; echo b")).stream()) == ["1", "b", "2", "b", "3", "b"]


def test_stream_of_refused(site: Site, flow: Workflow) -> None:
    """The stream of a job that was never started is empty."""
    assert list(flow.run(site.refuse()).stream()) == []


def test_left_early(flow: Workflow) -> None:
    """A reader may stop in the middle: the job goes on and ends well."""
    job = flow.run(shell("echo 1; echo 2; echo 3"))
    assert next(job.stream()) == "1"
    assert job.success()
