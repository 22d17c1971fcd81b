"""What jobs write: kept by default, or sent where the template says."""

from __future__ import annotations

from pathlib import Path

import pytest

from wfl import Capability, InvalidArgumentError, InvalidStateError, Task, UnsupportedOperationError, Workflow, shell
from wfl.testing.conformance.site import Field, Site, Trait, needs

pytestmark = needs(Trait.EXECUTION, Capability.OUTPUT)


def test_apart(flow: Workflow) -> None:
    """`output()` and `error_output()` work with no set-up and keep the two streams apart."""
    job = flow.run(shell("echo out; echo err >&2"))
    assert (job.output(), job.error_output()) == ("out", "err")


def test_output_waits(flow: Workflow) -> None:
    """`output()` waits for the end and gives everything."""
    assert flow.run(shell("echo first; sleep 0.3; echo last")).output() == "first\nlast"


def test_last_line_break(flow: Workflow) -> None:
    """Of the text only the last line break is removed; blanks and earlier empty lines stay."""
    assert flow.run("printf", r"\n  a \n\n\n").output() == "\n  a \n\n"


def test_no_output(flow: Workflow) -> None:
    """A job that writes nothing has the output ""."""
    job = flow.run("true")
    assert (job.output(), job.error_output()) == ("", "")


def test_bytes(flow: Workflow) -> None:
    """Every byte value passes unharmed: `encoding=None` gives what was written, to the byte."""
    line = 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %03o $i)"; i=$((i+1)); done'
    task = flow.run(shell(line)).tasks[0]
    assert isinstance(task, Task)
    assert task.output(encoding=None) == bytes(range(256))


def test_undecodable(flow: Workflow) -> None:
    """Bytes that are no UTF-8 become replacement characters in the text, not an error."""
    assert flow.run("printf", r"a\377b").output() == "a\N{REPLACEMENT CHARACTER}b"


def test_million_lines(flow: Workflow) -> None:
    """1,000,000 lines pass unharmed."""
    text = flow.run("awk", "BEGIN { for (i = 1; i <= 1000000; i++) print i }").output()
    assert text == "\n".join(map(str, range(1, 1_000_001)))


def test_both_streams_full(flow: Workflow) -> None:
    """A job that writes megabytes to both streams in turn is not blocked."""
    line = 'BEGIN { for (i = 0; i < 20000; i++) { printf "%099d\\n", i; printf "%099d\\n", i > "/dev/stderr" } }'
    job = flow.run("awk", line)
    assert len(job.output()) == len(job.error_output()) == 2_000_000 - 1


def test_output_of_failure(flow: Workflow) -> None:
    """What a job wrote before it failed is kept."""
    job = flow.run(shell("echo so far; echo why >&2; exit 3"))
    assert (job.output(), job.error_output(), job.exit_status()) == ("so far", "why", 3)


def test_output_of_killed(site: Site, flow: Workflow) -> None:
    """What a job wrote before it was killed is kept."""
    job = flow.run(shell("echo so far; exec sleep 600"))
    assert next(job.stream()) == "so far"
    assert job.kill().wait(site.within(30)).output() == "so far"


def test_output_of_refused(site: Site, flow: Workflow) -> None:
    """A job that was never started has the output ""."""
    assert flow.run(site.refuse()).output() == ""


def test_outputs(flow: Workflow) -> None:
    """`outputs()` is a dict of id and text: every task and array element, in order of submission."""
    job = flow.run("echo", "a").run_array(2, shell("echo b$TASK_ID")).run("echo", "c")
    outputs = job.outputs()
    assert list(outputs.values()) == ["a", "b1", "b2", "c"]
    assert next(iter(outputs)) == job.tasks[0].id
    assert list(outputs)[-1] == job.job_id


def test_output_of_array(flow: Workflow) -> None:
    """The output of an array is that of its elements in order."""
    assert flow.run_array(3, shell("echo $TASK_ID")).output() == "1\n2\n3"


def test_resubmitted_outputs(flow: Workflow) -> None:
    """Kept outputs of resubmissions do not overwrite each other."""
    job = flow.run(shell("echo $JOB_ID")).resubmit(3)
    assert len(set(job.outputs().values())) == 4


def test_reaped(flow: Workflow) -> None:
    """After `reap_all` the output is gone, and asking for it is an error kept in the chain."""
    job = flow.run("echo", "x").wait().reap_all()
    assert not job.errors
    assert job.output() == ""
    assert isinstance(job.last_error, InvalidStateError)


@needs(Trait.SHARED, Field("output_path"), Field("error_path"))
def test_paths(flow: Workflow, shared: Path) -> None:
    """`output_path` and `error_path` are written, and `output()` reads from there."""
    job = flow.run(shell("echo out; echo err >&2"), output_path=shared / "o", error_path=shared / "e")
    assert (job.output(), job.error_output()) == ("out", "err")
    assert ((shared / "o").read_text(), (shared / "e").read_text()) == ("out\n", "err\n")


@needs(Trait.SHARED, Field("output_path"))
def test_path_is_emptied(flow: Workflow, shared: Path) -> None:
    """A file that is there already is written anew."""
    (shared / "o").write_text("old and longer")
    assert flow.run("echo", "new", output_path=shared / "o").output() == "new"
    assert (shared / "o").read_text() == "new\n"


@needs(Trait.SHARED, Field("output_path"))
def test_path_per_element(flow: Workflow, shared: Path) -> None:
    """`$DRMAA2_INDEX$` in a path gives every array element a file of its own."""
    job = flow.run_array(3, shell("echo $TASK_ID"), output_path=shared / "o.$DRMAA2_INDEX$")
    assert not job.synchronize().any_failed()
    assert [(shared / f"o.{index}").read_text() for index in (1, 2, 3)] == ["1\n", "2\n", "3\n"]


def test_path_for_all_elements(flow: Workflow) -> None:
    """An array whose elements would write over each other, to one file, is refused at once; the words tell the way."""
    with pytest.raises(InvalidArgumentError, match=r"\$DRMAA2_INDEX\$"):
        flow.run_array(2, "true", output_path="/tmp/one-for-all")


@needs(Field("join_files"))
def test_join_files(flow: Workflow) -> None:
    """`join_files` sends the error stream to the output, in the order of writing."""
    job = flow.run(shell("echo 1; echo 2 >&2; echo 3"), join_files=True)
    assert (job.output(), job.error_output()) == ("1\n2\n3", "")


@needs(Trait.SHARED, Field("output_path"), Field("error_path"))
def test_one_file_for_both(flow: Workflow, shared: Path) -> None:
    """The same path for both streams joins them, and loses nothing."""
    flow.run(shell("echo 1; echo 2 >&2; echo 3"), output_path=shared / "o", error_path=shared / "o").wait()
    assert sorted((shared / "o").read_text()) == sorted("1\n2\n3\n")  # their order is for join_files


@needs(Field("output_path"))
def test_discarded(flow: Workflow) -> None:
    """`/dev/null` discards: the job runs, and asking for its output is an error that says so."""
    job = flow.run("echo", "x", output_path="/dev/null")
    assert job.success()
    assert job.output() == ""
    assert isinstance(job.last_error, UnsupportedOperationError)
    assert "/dev/null" in str(job.last_error)
