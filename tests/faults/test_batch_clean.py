"""Removing what a session has left, on real schedulers."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.clusters import jobs_of, reached
from tests.faults.machine import wait_until
from wfl import Workflow
from wfl.contexts.batch import BatchContext, clean
from wfl.contexts.batch.gridengine import GridEngineContext
from wfl.contexts.batch.slurm import SlurmContext

if TYPE_CHECKING:
    from pathlib import Path


KINDS: dict[str, type[BatchContext]] = {"slurm": SlurmContext, "sge": GridEngineContext}


@pytest.mark.parametrize("system", KINDS)
def test_clean(system: str, tmp_path: Path) -> None:
    """Jobs that run, that wait, that are held and that have ended: of none there is a file, nor an entry in the queue.

    What another program of this user's has there goes on. A second time there is nothing to do.
    """
    kind = KINDS[system]
    found, name = reached(system), f"clean-{uuid.uuid4().hex[:12]}"
    context = kind(directory=tmp_path / "jobs", session_name=name, environment=found)
    other = kind(directory=tmp_path / "other", session_name=name, environment=found, detach=False)
    with Workflow(other, raise_errors=True) as kept:
        stays = kept.run("sleep", "600")
        with Workflow(context, raise_errors=True) as flow:
            flow.run("true").wait(120)
            flow.run("sleep", "600").tasks[0].wait_started(120)
            flow.run("sleep", "600", submit_as_hold=True)
            flow.run_array(5, "sleep", "600", max_parallel=2)

        assert jobs_of(tmp_path / "jobs", system)
        assert clean(name, context) == 3
        assert os.listdir(tmp_path / "jobs") == []
        wait_until(f"{system} has nothing of it", lambda: not jobs_of(tmp_path / "jobs", system))
        assert clean(name, context) == 0
        stays.tasks[0].wait_started(120)
        assert stays.state == "running"
