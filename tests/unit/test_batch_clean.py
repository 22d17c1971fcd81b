"""Removing what a session has left on a cluster: on replays of schedulers' commands, and where they do not answer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests import replay
from tests.unit.test_batch_replay import ARRAYS, DIALECTS
from wfl import Workflow
from wfl.contexts.batch import BatchContext, clean
from wfl.contexts.batch.slurm import SlurmContext
from wfl.errors import DrmCommunicationError, InvalidArgumentError, SessionManagementError

PATIENCE = 120.0


def context(dialect: str, place: Path, **given: Any) -> BatchContext:
    """One at a replay."""
    found = replay.context(dialect, place, **given)
    assert isinstance(found, BatchContext)
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
def test_clean(dialect: str, tmp_path: Path) -> None:
    """A session's jobs end and its directory is gone; those of another session, at the same place, go on.

    The session that is meant is the one that is named, whatever the context's own is.
    """
    with Workflow(context(dialect, tmp_path, session_name="kept", detach=False), raise_errors=True) as kept:
        stays = kept.run("sleep", "600")
        with Workflow(context(dialect, tmp_path, session_name="left"), raise_errors=True) as left:
            left.run("true").wait(PATIENCE)
            for job in (left.run("sleep", "600"), left.run_array(3, "sleep", "600")):
                # One that begins just when its session is cleaned ends by itself, and may count or not.
                job.tasks[0].wait_started(PATIENCE)
        there = 2 if dialect in ARRAYS else 4
        assert clean("left", context(dialect, tmp_path, session_name="other")) == there
        assert clean("left", context(dialect, tmp_path)) == 0
        assert [path.name for path in (tmp_path / dialect / "jobs").iterdir()] == ["kept"]
        end = time.monotonic() + PATIENCE
        while stays.tasks[0].state != "running":
            assert time.monotonic() < end
            time.sleep(0.05)


def test_clean_where_there_is_nothing(tmp_path: Path) -> None:
    """A session of which nothing is left costs the scheduler no question."""
    nowhere = SlurmContext(directory=tmp_path, environment={"PATH": "/nowhere"})
    assert clean("never-was", nowhere) == 0


def test_clean_without_an_answer(tmp_path: Path) -> None:
    """Where the scheduler cannot be told, everything is as it was: a program that comes later finds the jobs."""
    with Workflow(context("flux", tmp_path), raise_errors=True) as flow:
        flow.run("sleep", "600")
    with pytest.raises(SessionManagementError, match="no command flux"):
        clean("wfl", context("flux", tmp_path, environment={"PATH": "/nowhere"}))
    with Workflow(context("flux", tmp_path), raise_errors=True) as flow:
        (job,) = flow.jobs()
        assert not job.state.ended
    flux = tmp_path / "flux" / "bin" / "flux"
    words = flux.read_text(encoding="utf-8")
    flux.write_text("#!/bin/sh\necho lost contact >&2\nexit 1\n", encoding="utf-8")
    with pytest.raises(DrmCommunicationError, match="lost contact"):
        clean("wfl", context("flux", tmp_path))
    flux.write_text(words, encoding="utf-8")
    assert clean("wfl", context("flux", tmp_path)) == 1


@pytest.mark.parametrize("name", ["", "..", "../other", "a/b"])
def test_clean_outside_of_the_directory(name: str, tmp_path: Path) -> None:
    """What is no session's name is refused, and no other directory is touched."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "other").mkdir()
    with pytest.raises(InvalidArgumentError, match="session_name is"):
        clean(name, SlurmContext(directory=tmp_path / "jobs"))
    assert (tmp_path / "other").is_dir()
    wrong: Any = None
    with pytest.raises(TypeError, match="session_name is None"):
        clean(wrong, SlurmContext(directory=tmp_path / "jobs"))


@pytest.mark.parametrize(("setting", "value"), [("timeout", "30"), ("timeout", True), ("environment", "A=B")])
def test_wrong_types(setting: str, value: Any) -> None:
    """A setting of the wrong type is a TypeError that names it."""
    with pytest.raises(TypeError, match=f"{setting} is {value!r}"):
        SlurmContext(**{setting: value})
