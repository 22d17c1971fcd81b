"""What a job finds around it: its environment, its standard input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wfl import Capability, JobTemplate, Task, Workflow, shell
from wfl.testing.conformance.site import Field, Trait, needs

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = needs(Trait.EXECUTION, Field("job_environment"), Capability.OUTPUT)


def test_job_environment(flow: Workflow) -> None:
    """A job sees the variables of `job_environment`."""
    assert flow.run(shell("echo $RATE-$MODE"), job_environment={"RATE": "0.1", "MODE": "fast"}).output() == "0.1-fast"


def test_environment_is_exact(flow: Workflow) -> None:
    """Values arrive exactly: equal signs, blanks, quotes, dollars, line breaks, non-ASCII."""
    value = " a=b  'c' \"d\" $HOME `id`\nsecond – 漢 "
    assert flow.run(shell('printf "[%s]" "$VALUE"'), job_environment={"VALUE": value}).output() == f"[{value}]"


def test_empty_variable(flow: Workflow) -> None:
    """A variable with an empty value is set, and empty."""
    assert flow.run(shell("echo ${EMPTY-unset}x"), job_environment={"EMPTY": ""}).output() == "x"


def test_environment_is_added(flow: Workflow) -> None:
    """`job_environment` adds to what a job has anyway: commands are still found by PATH."""
    assert flow.run("sh", "-c", 'test -n "$PATH" && sleep 0 && echo $A', job_environment={"A": "1"}).output() == "1"


def test_default_environment(make_flow: Callable[..., Workflow]) -> None:
    """Variables of the default template and of the job are joined; the job's win."""
    flow = make_flow(default_template=JobTemplate(job_environment={"A": "default", "B": "default"}))
    assert flow.run(shell("echo $A $B"), job_environment={"B": "own"}).output() == "default own"


def test_environments_apart(flow: Workflow) -> None:
    """Jobs that run side by side see their own variables, not each other's."""
    job = flow.new_job()
    for number in range(10):
        job.run(shell("echo ${A-none} ${B-none}"), job_environment={"AB"[number % 2]: str(number)})
    expected = [f"{number} none" if number % 2 == 0 else f"none {number}" for number in range(10)]
    assert list(job.outputs().values()) == expected


def test_job_id(flow: Workflow) -> None:
    """Every task sees a JOB_ID of its own."""
    job = flow.run(shell("echo $JOB_ID")).resubmit(2)
    ids = list(job.outputs().values())
    assert all(ids)
    assert len(set(ids)) == 3


def test_task_id(flow: Workflow) -> None:
    """Array elements see their index as TASK_ID, whatever the system's own numbering, and the array's one JOB_ID."""
    job = flow.run_array(range(0, 7, 3), shell("echo $TASK_ID $JOB_ID"))
    answers = [text.split() for text in job.outputs().values()]
    assert [index for index, _ in answers] == ["0", "3", "6"]
    assert len({job_id for _, job_id in answers}) == 1


def test_resubmitted_element(flow: Workflow) -> None:
    """A retried array element sees the same TASK_ID again."""
    job = flow.run_array(3, shell('echo $TASK_ID; test "$TASK_ID" != 2')).retry(1, backoff=0)
    array = job.tasks[0]
    assert not isinstance(array, Task)
    assert [task.output() for task in array.tasks] == ["1", "2", "3"]
    assert [len(task.attempts) for task in array.tasks] == [1, 2, 1]


def test_standard_input_is_empty(flow: Workflow) -> None:
    """Without `input_path` a job that reads its standard input finds the end of it at once."""
    assert flow.run(shell("cat; echo over")).output() == "over"


def test_placeholders_in_values(flow: Workflow) -> None:
    """`$DRMAA2_INDEX$` is replaced in arguments and in values of variables, for every element by its own index."""
    job = flow.run_array(
        range(5, 8), "sh", "-c", "echo $1 $VALUE", "sh", "a$DRMAA2_INDEX$", job_environment={"VALUE": "v$DRMAA2_INDEX$"}
    )
    assert list(job.outputs().values()) == ["a5 v5", "a6 v6", "a7 v7"]


def test_index_outside_of_arrays(flow: Workflow) -> None:
    """Outside of an array `$DRMAA2_INDEX$` is the empty text."""
    assert flow.run("echo", "<$DRMAA2_INDEX$>").output() == "<>"
