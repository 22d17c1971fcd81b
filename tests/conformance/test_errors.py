"""Bad input, and what goes wrong on the way: refused at once, or kept in the chain; nothing else is disturbed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from wfl import (
    Capability,
    InvalidArgumentError,
    InvalidSessionError,
    Job,
    JobFailedError,
    JobState,
    JobTemplate,
    SessionManagementError,
    WflError,
    Workflow,
    shell,
)
from wfl.testing.conformance.site import Field, Site, Trait, needs


def test_unknown_field(site: Site, flow: Workflow) -> None:
    """An unknown field raises at once and names the nearest right one; nothing is submitted (design point 13)."""
    with pytest.raises(TypeError, match="did you mean 'job_environment'"):
        flow.run(site.succeed(), job_enviroment={})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="working_directory"):
        flow.run_array(2, site.succeed(), cwd="/")  # type: ignore[call-arg]
    assert flow.jobs() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("args", "one two"),
        ("args", [1]),
        ("job_environment", {"A": 1}),
        ("join_files", "yes"),
        ("min_slots", "2"),
        ("start_time", 12.5),
        ("resource_limits", {"CPU_TIME": "1h"}),
        ("job_name", b"bytes"),
    ],
)
def test_wrong_type(site: Site, flow: Workflow, field: str, value: Any) -> None:
    """A value of the wrong type raises TypeError at once, with field and value."""
    with pytest.raises(TypeError, match=field):
        flow.run(site.succeed(), **{field: value})
    assert flow.jobs() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_slots", 0),
        ("min_phys_memory", -1),
        ("start_time", datetime(2030, 1, 1)),  # noqa: DTZ001 - without a zone is what is wrong
        ("resource_limits", {"WALLTIME": 1}),
        ("resource_limits", {"WALLCLOCK_TIME": 0}),
        ("resource_limits", {"WALLCLOCK_TIME": float("nan")}),
        ("job_environment", {"A=B": "x"}),
        ("job_environment", {"": "x"}),
    ],
)
def test_impossible_value(site: Site, flow: Workflow, field: str, value: Any) -> None:
    """An impossible value raises InvalidArgumentError at once and names the field."""
    with pytest.raises(InvalidArgumentError, match=field):
        flow.run(site.succeed(), **{field: value})


def test_nul(flow: Workflow) -> None:
    """A NUL character in command, argument or environment raises InvalidArgumentError at once."""
    for words, fields in ((["a\0b"], {}), (["echo", "a\0b"], {}), (["echo"], {"job_environment": {"A": "a\0b"}})):
        with pytest.raises(InvalidArgumentError, match="NUL"):
            flow.run(*words, **fields)  # type: ignore[arg-type]


def test_empty_command(flow: Workflow) -> None:
    """An empty command is a failed submission: FAILED, launch_failure, and an error of the Job that names the field."""
    for job in (flow.run(""), flow.run(JobTemplate()), flow.run(JobTemplate(args=["x"]))):
        info = job.wait().info()
        assert info is not None
        assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "launch_failure", None)
        assert "remote_command" in str(job.last_error)


def test_template_with_arguments(site: Site, flow: Workflow) -> None:
    """Arguments beside a JobTemplate are refused: they belong into it."""
    with pytest.raises(TypeError, match="args"):
        flow.run(site.succeed(), "x")


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_impossible_timeout(site: Site, flow: Workflow, timeout: float) -> None:
    """A negative time-out, or NaN, raises InvalidArgumentError at once in every verb that takes one."""
    job = flow.run(site.succeed())
    verbs: tuple[Callable[[], Job], ...] = (
        lambda: job.wait(timeout),
        lambda: job.synchronize(timeout),
        lambda: job.kill(grace=timeout),
    )
    for wrong in verbs:
        with pytest.raises(InvalidArgumentError):
            wrong()
    assert job.errors == []


def test_timeout_of_wrong_type(site: Site, flow: Workflow) -> None:
    """A time-out that is no number raises TypeError at once."""
    with pytest.raises(TypeError, match="timeout"):
        flow.run(site.succeed()).wait("1")  # type: ignore[arg-type]


def test_infinite_timeout(site: Site, flow: Workflow) -> None:
    """An infinite time-out, or one of many years, waits as long as it takes."""
    assert flow.run(site.succeed()).wait(float("inf")).wait(1e12).state is JobState.DONE
    job = flow.run(site.succeed()).wait(1e12)
    assert (job.state, job.errors) == (JobState.DONE, [])


@pytest.mark.parametrize("number", [0, -1])
def test_context_max_parallel(site: Site, number: int) -> None:
    """A context with `max_parallel` of 0 or less is refused at once."""
    with pytest.raises(InvalidArgumentError, match="max_parallel"):
        site.open(max_parallel=number)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "a\0b"])
def test_session_name(site: Site, name: str) -> None:
    """A session name that could not be a file's or a label's is refused at once."""
    with pytest.raises(InvalidArgumentError, match="session_name"):
        site.open(session_name=name)


@needs(Trait.STORE)
def test_workflow_not_opened(site: Site, tmp_path: Path) -> None:
    """What goes wrong on opening is kept: `error`, `has_error`, `on_error`, `raise_for_error`; a chain does, too."""
    flow = Workflow(site.open(store=tmp_path / "missing" / "store"))
    seen: list[WflError] = []
    assert flow.on_error(seen.append).has_error
    assert seen == [flow.error]
    assert isinstance(flow.error, SessionManagementError)
    with pytest.raises(SessionManagementError):
        flow.raise_for_error()
    job = flow.run(site.succeed()).on_success(pytest.fail)
    assert isinstance(job.errors[0], SessionManagementError)
    assert not job.success()
    with pytest.raises(SessionManagementError):
        Workflow(site.open(store=tmp_path / "missing" / "store"), raise_errors=True)
    flow.close()


def test_job_without_workflow(site: Site) -> None:
    """A Job made by hand, without a workflow, keeps an InvalidSessionError instead of crashing."""
    job = Job().run(site.succeed()).wait()
    assert isinstance(job.errors[0], InvalidSessionError)
    assert not job.success()


def test_after_close(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """After `close` every call that needs the system is an InvalidSessionError; what is known can still be read;
    closing again does nothing.
    """
    flow = make_flow()
    job = flow.run(site.succeed()).wait()
    flow.close()
    flow.close()
    assert job.state is JobState.DONE
    assert job.exit_status() == 0
    assert isinstance(flow.run(site.succeed()).last_error, InvalidSessionError)
    assert isinstance(job.kill_all().suspend().last_error, InvalidSessionError)


def test_times_and_counts(site: Site, flow: Workflow) -> None:
    """Impossible counts and durations are refused at once by every verb that takes them."""
    job = flow.run(site.succeed())
    impossible: tuple[Callable[[], Job], ...] = (
        lambda: job.resubmit(0),
        lambda: job.resubmit(-1),
        lambda: job.after(-1),
        lambda: job.retry(-1),
    )
    for call in impossible:
        with pytest.raises(InvalidArgumentError):
            call()
    mistyped: tuple[Callable[[], Job], ...] = (
        lambda: job.resubmit(1.5),  # type: ignore[arg-type]
        lambda: job.after("1"),  # type: ignore[arg-type]
        lambda: job.retry("1"),  # type: ignore[arg-type]
    )
    for call in mistyped:
        with pytest.raises(TypeError):
            call()
    assert len(job.tasks) == 1


@needs(Trait.EXECUTION)
def test_argument_list_too_long(flow: Workflow) -> None:
    """Arguments over the system's limit are a failed submission that says so; the session lives on."""
    job = flow.run("true", *["x" * 100_000] * 100).wait()
    assert job.state is JobState.FAILED
    assert job.last_error is not None
    assert flow.run("true").success()


@needs(Trait.EXECUTION, Field("output_path"))
def test_output_directory_missing(flow: Workflow) -> None:
    """An output path in a directory that does not exist: FAILED with words that name it; the session lives on."""
    job = flow.run("true", output_path="/no/such/place/out").wait()
    info = job.info()
    assert info is not None
    assert info.state is JobState.FAILED
    assert "/no/such/place" in f"{info.annotation} {job.last_error}"
    assert flow.run("true").success()


@needs(Trait.LOCAL, Capability.OUTPUT, Field("output_path"))
def test_full_disk(flow: Workflow) -> None:
    """A job whose output finds the disk full has FAILED, and its error output says so; the session lives on."""
    job = flow.run("cat", "/proc/version", output_path="/dev/full").wait()
    assert job.state is JobState.FAILED
    assert "No space left" in job.error_output()
    assert flow.run("true").success()


@needs(Trait.SHARED, Field("output_path"))
def test_output_is_a_directory(flow: Workflow, shared: Path) -> None:
    """An output path that is a directory cannot be written: FAILED with words that name it."""
    job = flow.run("true", output_path=shared).wait()
    assert job.state is JobState.FAILED
    assert str(shared) in f"{job.infos()[0].annotation} {job.last_error}"


@needs(Trait.SHARED, Field("output_path"), Field("input_path"))
def test_output_is_input(flow: Workflow, shared: Path) -> None:
    """An output path that is the input path is refused: the file would be emptied; it is not touched."""
    (shared / "data").write_text("precious")
    job = flow.run("cat", input_path=shared / "data", output_path=shared / "data").wait()
    assert job.state is JobState.FAILED
    assert job.last_error is not None
    assert (shared / "data").read_text() == "precious"


@needs(Trait.EXECUTION, Capability.OUTPUT)
def test_failure_tells(flow: Workflow) -> None:
    """JobFailedError tells command, end, exit status and the tail of the error output."""
    with pytest.raises(JobFailedError) as caught:
        flow.run(shell("echo the reason why >&2; exit 42")).raise_for_status()
    text = str(caught.value)
    assert all(words in text for words in ("/bin/sh", "42", "the reason why"))


def test_system_errors_are_kept(site: Site, flow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    """What the system refuses is kept in the chain, and raised or printed by nobody who did not ask."""
    with caplog.at_level(logging.WARNING, "wfl"):
        job = flow.run(site.refuse()).run(site.succeed()).wait()
    assert isinstance(job.last_error, WflError)
    assert job.success()
