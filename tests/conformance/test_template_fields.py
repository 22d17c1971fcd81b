"""Fields of the job template: each is honoured or refused by name, none is ignored."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wfl import Capability, DeniedByDrmsError, JobState, JobTemplate, UnsupportedAttributeError, Workflow, shell
from wfl.testing.conformance.site import Command, Field, Trait, needs

if TYPE_CHECKING:
    from collections.abc import Callable

    from wfl.testing.conformance.site import Site

VALUES: dict[str, Any] = {
    "submit_as_hold": True,
    "rerunnable": True,
    "job_environment": {"A": "1"},
    "working_directory": "/tmp",
    "job_category": "busybox",
    "email": ("user@example.org",),
    "email_on_started": True,
    "email_on_terminated": True,
    "job_name": "name",
    "input_path": "/dev/null",
    "output_path": "/dev/null",
    "error_path": "/dev/null",
    "join_files": True,
    "reservation_id": "1",
    "queue_name": "all",
    "min_slots": 1,
    "max_slots": 2,
    "priority": 0,
    "candidate_machines": ("nowhere",),
    "min_phys_memory": 1024,
    "machine_os": "LINUX",
    "machine_arch": "X64",
    "start_time": datetime.now(UTC) + timedelta(days=1),
    "deadline_time": datetime.now(UTC) + timedelta(days=1),
    "stage_in_files": {"a": "/etc/passwd"},
    "stage_out_files": {"/tmp/b": "a"},
    "resource_limits": {"CPU_TIME": 10},
    "accounting_id": "project",
    "extensions": {"no-such-extension": "1"},
}
"""One value for every field but the command and its arguments."""


def test_every_field_is_known(site: Site, flow: Workflow) -> None:
    """A backend speaks of fields that the vocabulary has, and honours commands with arguments."""
    assert flow.session is not None
    fields = flow.session.backend.fields
    assert {"remote_command", "args", *VALUES} == set(JobTemplate.__struct_fields__)
    assert {"remote_command", "args"} <= fields <= set(JobTemplate.__struct_fields__), site.name


def test_unsupported_fields_are_refused(site: Site, flow: Workflow) -> None:
    """A field that the backend cannot honour is refused at submission: the error names field and backend (design
    point 13).
    """
    assert flow.session is not None
    backend = flow.session.backend
    unsupported = set(VALUES) - backend.fields
    if not unsupported:
        pytest.skip(f"not applicable: {backend.name} honours every field")
    for field in sorted(unsupported):
        job = flow.run(site.succeed(), **{field: VALUES[field]})
        error = job.last_error
        assert isinstance(error, UnsupportedAttributeError), field
        assert field in str(error)
        assert backend.name in str(error)
        assert job.state is JobState.FAILED


def test_unset_fields_are_no_matter(site: Site, flow: Workflow) -> None:
    """Empty values of fields that the backend does not honour ask for nothing and are accepted."""
    assert flow.session is not None
    empty: dict[str, Any] = {
        "queue_name": "",
        "accounting_id": "",
        "email": (),
        "email_on_started": False,
        "extensions": {},
    }
    job = flow.run(site.succeed(), **empty)
    assert job.success(), job.errors


def test_unknown_extension(site: Site, flow: Workflow) -> None:
    """An extension that the backend does not know is refused by its name, never ignored (design point 13)."""
    job = flow.run(site.succeed(), extensions={"no-such-extension": "1"})
    assert isinstance(job.last_error, UnsupportedAttributeError)
    assert "extension" in str(job.last_error)


@needs(Field("job_name"))
def test_job_name(site: Site, flow: Workflow) -> None:
    """A job name with blanks and signs is accepted."""
    job = flow.run(site.succeed(), job_name="a job: no 1/2")
    assert job.success(), job.errors


def make_open(directory: Path) -> None:
    """A directory that jobs can write into, whoever they are."""
    directory.mkdir()
    directory.chmod(0o777)


@needs(Trait.SHARED, Field("working_directory"), Capability.OUTPUT)
def test_working_directory(flow: Workflow, shared: Path) -> None:
    """A job runs in its working directory."""
    directory = shared / "a place"
    directory.mkdir()
    job = flow.run("pwd", working_directory=directory)
    assert os.path.realpath(job.output()) == os.path.realpath(directory)


@needs(Trait.SHARED, Field("working_directory"), Capability.OUTPUT)
def test_relative_command(flow: Workflow, shared: Path) -> None:
    """A command with a relative path is found from the working directory."""
    script = shared / "script"
    script.write_text("#!/bin/sh\necho found\n")
    script.chmod(0o755)
    assert flow.run("./script", working_directory=shared).output() == "found"


@needs(Trait.SHARED, Field("input_path"), Capability.OUTPUT)
def test_input_path(flow: Workflow, shared: Path) -> None:
    """A job reads its standard input from `input_path`."""
    (shared / "words").write_text("b\na\n")
    assert flow.run("sort", input_path=shared / "words").output() == "a\nb"


@needs(Trait.SHARED, Field("stage_in_files"), Field("working_directory"), Capability.OUTPUT)
def test_stage_in(flow: Workflow, shared: Path) -> None:
    """`stage_in_files` copies a file, under its target's name, to where the job runs, before it starts."""
    make_open(shared / "run")
    (shared / "source").write_text("data\n")
    job = flow.run("cat", "target", working_directory=shared / "run", stage_in_files={"target": shared / "source"})
    assert job.output() == "data"
    assert (shared / "source").read_text() == "data\n"


@needs(Trait.SHARED, Field("stage_in_files"), Field("working_directory"), Capability.OUTPUT)
def test_stage_in_directory(flow: Workflow, shared: Path) -> None:
    """`stage_in_files` copies a directory with all that is in it."""
    make_open(shared / "run")
    (shared / "tree" / "sub").mkdir(parents=True)
    (shared / "tree" / "sub" / "leaf").write_text("green")
    job = flow.run("cat", "t/sub/leaf", working_directory=shared / "run", stage_in_files={"t": shared / "tree"})
    assert job.output() == "green"


@needs(Trait.SHARED, Field("stage_out_files"), Field("working_directory"))
def test_stage_out(flow: Workflow, shared: Path) -> None:
    """`stage_out_files` copies what a job has made to its target; it is there when the job has ended."""
    make_open(shared / "run")
    target = shared / "result"
    job = flow.run(
        shell("echo made > made"), working_directory=shared / "run", stage_out_files={os.fspath(target): "made"}
    )
    assert job.success(), job.errors
    assert target.read_text() == "made\n"


@needs(Trait.SHARED, Field("stage_out_files"), Field("working_directory"))
def test_stage_out_of_nothing(flow: Workflow, shared: Path) -> None:
    """A job that did not make what is to be staged out has FAILED, and its annotation names the file."""
    make_open(shared / "run")
    job = flow.run("true", working_directory=shared / "run", stage_out_files={os.fspath(shared / "x"): "not-made"})
    assert not job.success()
    assert "not-made" in (job.infos()[0].annotation or "")
    assert job.exit_status() == 0  # that of the command, which did end well


@needs(Field("candidate_machines"))
def test_candidate_machines(site: Site, flow: Workflow) -> None:
    """Candidate machines of which none exists are refused; the error names them."""
    job = flow.run(site.succeed(), candidate_machines=["no-such-host.invalid"])
    assert not job.success()
    assert "no-such-host.invalid" in f"{job.last_error} {job.infos()[0].annotation}"


@needs(Field("machine_os"))
def test_machine_os(site: Site, flow: Workflow) -> None:
    """An operating system that no machine here has is refused; the error names it."""
    job = flow.run(site.succeed(), machine_os="ATARI_TOS")
    assert isinstance(job.last_error, DeniedByDrmsError)
    assert "ATARI_TOS" in str(job.last_error)


@needs(Trait.EXECUTION, Field("priority"), Command("nice"), Trait.LOCAL, Capability.OUTPUT)
def test_priority_is_niceness(flow: Workflow) -> None:
    """A lower priority makes a local process nicer."""
    before, after = flow.run("nice").output(), flow.run("nice", priority=-3).output()
    assert int(after) == int(before) + 3


@needs(Trait.SHARED, Field("output_path"), Field("working_directory"))
def test_working_dir_placeholder(flow: Workflow, shared: Path) -> None:
    """`$DRMAA2_WORKING_DIR$` stands for the job's working directory in every text field."""
    job = flow.run("echo", "$DRMAA2_WORKING_DIR$/x", working_directory=shared, output_path="$DRMAA2_WORKING_DIR$/out")
    assert job.success(), job.errors
    assert (shared / "out").read_text() == f"{shared}/x\n"


def test_home_placeholder(site: Site, flow: Workflow) -> None:
    """`$DRMAA2_HOME_DIR$` stands for the home directory; the task's template shows what it was replaced by."""
    job = flow.run(site.succeed(), job_name="$DRMAA2_HOME_DIR$/x")
    assert job.template is not None
    assert job.template.job_name == f"{Path('~').expanduser()}/x"


@needs(Trait.SHARED, Field("output_path"))
def test_id_placeholder(flow: Workflow, shared: Path) -> None:
    """`{{.ID}}` in paths is the context's running task number, another for every submission."""
    job = flow.run("echo", "x", output_path=shared / "a-{{.ID}}", error_path=shared / "e-{{ .ID }}").resubmit(2)
    job.synchronize()
    assert not job.errors
    outputs = sorted(path.name for path in shared.glob("a-*"))
    errors = sorted(path.name for path in shared.glob("e-*"))
    assert len(outputs) == 3
    assert [name[2:] for name in outputs] == [name[2:] for name in errors]
    assert all(name[2:].isdigit() for name in outputs)


def test_template_is_told_as_submitted(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """`task.template` is what was submitted, and passes through JSON unchanged."""
    flow = make_flow(default_template=JobTemplate(job_environment={"A": "1"}))
    template = flow.run(site.succeed(), job_name="n").tasks[0].template
    assert JobTemplate.from_json(template.to_json()) == template
    assert template == site.filled(site.succeed().replace(job_name="n", job_environment={"A": "1"}))
