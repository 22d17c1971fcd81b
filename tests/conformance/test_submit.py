"""Submitting: what run and its like do at once, and what the job is given."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from wfl import Capability, InvalidArgumentError, JobState, JobTemplate, Task, Workflow, shell
from wfl.testing.conformance.site import Trait, needs

if TYPE_CHECKING:
    from collections.abc import Callable

    from wfl.testing.conformance.site import Site


def test_run_does_not_wait(site: Site, flow: Workflow) -> None:
    """`run` submits and returns while the job has not ended; the job has an id."""
    job = flow.run(site.stay())
    assert job.job_id
    assert not job.state.ended
    assert job.last_error is None


def test_ids_differ(site: Site, flow: Workflow) -> None:
    """Every submission has an id of its own."""
    job = flow.run(site.succeed()).resubmit(19)
    assert len({task.id for task in job.tasks}) == 20


def test_second_run_appends(site: Site, flow: Workflow) -> None:
    """A second `run` adds a task to the same Job, in order, and does not wait for the first."""
    job = flow.run(site.stay()).run(site.succeed())
    first, second = job.tasks
    assert (first.template, second.template) == (site.filled(site.stay()), site.filled(site.succeed()))
    assert job.job_id == second.id
    assert not first.state.ended


def test_template_or_words(site: Site, flow: Workflow) -> None:
    """A command with arguments and the JobTemplate of the same make the same job."""
    template = site.stay()
    assert template.remote_command
    words = flow.run(template.remote_command, *(template.args or ()))
    assert words.template == flow.run(template).template == site.filled(template)


def test_fields_of_run(site: Site, flow: Workflow) -> None:
    """Fields given to `run` beside a JobTemplate replace those of the template."""
    job = flow.run(site.succeed().replace(job_name="one"), job_name="two")
    assert job.template is not None
    assert job.template.job_name == "two"


def test_default_template(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """The context's default template fills what is unset; a job's own value wins, environments are joined."""
    defaults = JobTemplate(job_name="default", job_environment={"A": "1", "B": "1"})
    flow = make_flow(default_template=defaults)
    filled = flow.run(site.succeed()).template
    own = flow.run(site.succeed(), job_name="own", job_environment={"B": "2"}).template
    assert filled is not None
    assert own is not None
    assert (filled.job_name, filled.job_environment) == ("default", {"A": "1", "B": "1"})
    assert (own.job_name, own.job_environment) == ("own", {"A": "1", "B": "2"})


def test_default_overridden_by_empty(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """An empty value is a value: it overrides the default template's."""
    flow = make_flow(default_template=JobTemplate(job_name="default"))
    job = flow.run(site.succeed(), job_name="")
    assert job.template is not None
    assert job.template.job_name == ""


def test_resubmit(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """`resubmit(n)` submits the last task's template n more times, defaults included."""
    flow = make_flow(default_template=JobTemplate(job_name="default"))
    job = flow.run(site.succeed()).resubmit(3).synchronize(site.within(60))
    assert len(job.tasks) == 4
    assert {task.template for task in job.tasks} == {site.filled(site.succeed().replace(job_name="default"))}
    assert [task.state for task in job.tasks] == [JobState.DONE] * 4


def test_resubmit_array(site: Site, flow: Workflow) -> None:
    """Resubmitting an array submits a whole array with the same indexes."""
    job = flow.run_array(range(3, 9, 2), site.succeed()).resubmit().synchronize(site.within(60))
    assert [[task.index for task in array.tasks] for array in job.tasks if not isinstance(array, Task)] == [
        [3, 5, 7]
    ] * 2
    assert not job.any_failed()


@needs(Trait.CLOCK)
def test_run_every(site: Site, flow: Workflow) -> None:
    """`run_every` submits at once and then at every interval until the duration is over, without drift."""
    begin = time.monotonic()
    job = flow.new_job().run_every(0.2, site.succeed(), until=0.7)
    assert time.monotonic() - begin >= 0.6
    assert len(job.tasks) == 4
    assert not job.synchronize(site.within(60)).any_failed()


@needs(Trait.CLOCK)
def test_run_every_until_a_time(site: Site, flow: Workflow) -> None:
    """`run_every` takes a point in time as well as a duration; one that has passed submits nothing."""
    now = datetime.now(UTC)
    assert len(flow.new_job().run_every(10, site.succeed(), until=now + timedelta(seconds=5)).tasks) == 1
    assert flow.new_job().run_every(10, site.succeed(), until=now - timedelta(seconds=5)).tasks == []


def test_run_every_needs_an_interval(site: Site, flow: Workflow) -> None:
    """`run_every` with an interval of 0 is refused at once."""
    with pytest.raises(InvalidArgumentError, match="interval"):
        flow.new_job().run_every(0, site.succeed(), until=1)


def test_two_workflows(site: Site) -> None:
    """Two workflows on one Context work side by side; closing one leaves the other alone."""
    context = site.open()
    with Workflow(context) as one, Workflow(context) as two:
        assert one.run(site.succeed()).success()
        job = two.run(site.stay())
        one.close()
        assert not job.state.ended
        assert two.run(site.succeed()).success()
        assert job.kill().wait(site.within(30)).state is JobState.FAILED


def test_jobs_lists(site: Site, flow: Workflow) -> None:
    """`Workflow.jobs()` is empty at first and then has one Job per task and per array, in order."""
    assert flow.jobs() == []
    ids = [flow.run(site.succeed()).job_id, flow.run_array(3, site.succeed()).job_id, flow.run(site.stay()).job_id]
    assert [job.job_id for job in flow.jobs()] == ids


def test_opening_is_lazy(site: Site) -> None:
    """Making a Context contacts nothing and leaves nothing to be closed."""
    one, two = site.open(), site.open()
    assert one.session_name != two.session_name


def test_session_name(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """Tasks tell the session name that was given to the context."""
    flow = make_flow(session_name="conformance-of-names")
    job = flow.run(site.succeed())
    assert flow.session is not None
    assert flow.session.name == job.tasks[0].session_name == "conformance-of-names"


@needs(Trait.EXECUTION, Capability.OUTPUT)
def test_exact_arguments(flow: Workflow) -> None:
    """Arguments arrive exactly: blanks, quotes, globs, line breaks, empty ones, non-ASCII; no shell is between."""
    words = ["a b", "", "*", "$HOME", "`id`", "'\"", "\\n", "two\nlines", "-n", "ü–漢", "a;b", "#c", " "]
    job = flow.run("/bin/sh", "-c", 'for word in "$@"; do printf "[%s]" "$word"; done', "sh", *words)
    assert job.output() == "".join(f"[{word}]" for word in words)


@needs(Trait.EXECUTION, Capability.OUTPUT)
def test_shell_line(flow: Workflow) -> None:
    """`shell` runs a line with pipes and variables by /bin/sh."""
    job = flow.run(shell("x=b; printf '%s\\n' c a $x | sort | tr '\\n' -"))
    assert job.output() == "a-b-c-"


@needs(Trait.EXECUTION, Capability.OUTPUT)
def test_long_argument(flow: Workflow) -> None:
    """An argument of 100 kB arrives whole."""
    job = flow.run("/bin/sh", "-c", 'printf %s "$1" | wc -c', "sh", "x" * 100_000)
    assert job.output().strip() == "100000"
