"""Options that a template passes on as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from wfl import JobTemplate
from wfl.contexts.batch.client import Client
from wfl.contexts.batch.flux import FluxContext
from wfl.contexts.batch.gridengine import GridEngineContext
from wfl.contexts.batch.lsf import LsfContext
from wfl.contexts.batch.pbs import PbsContext
from wfl.contexts.batch.place import Entry
from wfl.contexts.batch.scheduler import Job
from wfl.contexts.batch.slurm import Slurm, SlurmContext
from wfl.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from wfl.contexts.batch import BatchContext


def given(native: str) -> JobTemplate:
    """A job with these options."""
    return JobTemplate(remote_command="true", extensions={"native": native})


@pytest.mark.parametrize(
    ("context", "native", "named"),
    [
        (SlurmContext(), "--array=1-3", "--array"),
        (SlurmContext(), "--arr=1-3", "--array"),
        (SlurmContext(), "-a1-3", "-a"),
        (SlurmContext(), "--mem=1G --wait", "--wait"),
        (SlurmContext(), "--test-only", "--test-only"),
        (SlurmContext(), "-M other", "-M"),
        (GridEngineContext(), "-q all.q -sync y", "-sync"),
        (GridEngineContext(), "-t 1-3", "-t"),
        (PbsContext(), "-J1-3", "-J"),
        (LsfContext(), "-K", "-K"),
        (FluxContext(), "--cc=1-3", "--cc"),
    ],
)
def test_what_is_not_the_user_s(context: BatchContext, native: str, named: str) -> None:
    """An option that would undo what wfl relies on is refused by name."""
    with pytest.raises(InvalidArgumentError, match=f": {named} is for wfl to set"):
        context.preview(given(native))


@pytest.mark.parametrize(
    ("context", "native"),
    [
        (SlurmContext(), "--wait-all-nodes=1 --mem=1G -C haswell --exclusive=user"),
        (GridEngineContext(), "-tc 5 -js 1 -l arch=lx-amd64"),
        (PbsContext(), "-l nodes=1 -A me"),
        (LsfContext(), "-app x -R rusage[mem=1]"),
        (FluxContext(), "--urgency=5 -o mpi=none"),
    ],
)
def test_what_is_the_user_s(context: BatchContext, native: str) -> None:
    """All others stand on the command line as they were given."""
    (preview,) = context.preview(given(native))
    words = native.split()
    there = [list(preview.command[start : start + len(words)]) for start in range(len(preview.command))]
    assert words in there


def test_preview_fills_what_is_filled() -> None:
    """Placeholders stand in a preview as they would in the job."""
    template = JobTemplate(remote_command="true", working_directory="/d", output_path="$DRMAA2_WORKING_DIR$/{{.ID}}")
    (preview,) = SlurmContext().preview(template)
    assert ">/d/1 " in preview.script


@pytest.mark.parametrize(
    ("context", "template"),
    [
        (SlurmContext(), JobTemplate(remote_command="true", job_name="part_$DRMAA2_INDEX$")),
        (SlurmContext(max_parallel=2), JobTemplate(remote_command="true")),
        (FluxContext(), JobTemplate(remote_command="true")),
    ],
    ids=["name", "limit of the context", "no arrays"],
)
def test_preview_of_elements(context: BatchContext, template: JobTemplate) -> None:
    """An array whose elements are submitted one by one is previewed so."""
    previews = context.preview(template, range(4, 7))
    assert ["TASK_ID" in preview.script for preview in previews] == [True] * 3
    assert [f"wfl_index={n}" in preview.script for n, preview in zip(range(4, 7), previews, strict=True)] == [True] * 3


def test_preview_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer array than the scheduler takes is several, and with a limit each waits for the one before."""
    monkeypatch.setattr("wfl.contexts.batch.client.Client.highest", lambda _: 9)
    first, second, third = SlurmContext().preview(JobTemplate(remote_command="true"), range(25), max_parallel=3)
    assert "--array=0-9%3" in first.command
    assert not [word for word in first.command if "afterany" in word]
    assert "--dependency=afterany:ID1" in second.command
    assert "--dependency=afterany:ID2" in third.command


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"detach": "no"}, "detach is 'no'"),
        ({"inherit_environment": "yes"}, "inherit_environment is 'yes'"),
        ({"environment": {"SLURM_CONF": 1}}, "SLURM_CONF is 1"),
    ],
)
def test_settings_of_the_wrong_type(settings: dict[str, Any], words: str) -> None:
    """What is no bool, or no text, is refused and not taken for one."""
    with pytest.raises(TypeError, match=words):
        SlurmContext(**settings)


def test_an_empty_directory_is_refused() -> None:
    """It would be the current one."""
    with pytest.raises(InvalidArgumentError, match="directory is empty"):
        SlurmContext(directory="")


def test_users_variables_submit_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user has set up for his own sbatch makes no array of a job, and waits for none."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\nenv | grep -E "^(SBATCH|SLURM)" >"$HOME/seen"\necho 7\n')
    sbatch.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SBATCH_WAIT", "SBATCH_ARRAY_INX", "SLURM_CLUSTERS", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "1")
    entry = Entry("p-1", JobTemplate(remote_command="true"), "p-1")
    assert Client(Slurm(), environment={}, timeout=60).submit(Job(entry, "/script", "/log")) == "7"
    assert (tmp_path / "seen").read_text() == "SBATCH_ACCOUNT=1\n"
