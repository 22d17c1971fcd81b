"""Somebody removes what a task wrote: that is said, and not taken for a task that wrote nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from wfl import InvalidStateError, Task, Workflow
from wfl.contexts.process import ProcessContext

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60


@pytest.fixture
def flow(tmp_path: Path) -> Iterator[Workflow]:
    """A workflow whose kept output is below the directory of the test."""
    with Workflow(ProcessContext(store=tmp_path / "store")) as flow:
        yield flow


def remove(tmp_path: Path) -> None:
    """Remove all output that is kept, and nothing else."""
    for file in (tmp_path / "store.d").rglob("*"):
        if file.name.isdigit():
            file.unlink()


def single(flow: Workflow, source: str) -> Task:
    """One task that runs this."""
    (task,) = flow.run("sh", "-c", source).tasks
    assert isinstance(task, Task)
    return task


def test_kept_output_that_was_removed_afterwards(flow: Workflow, tmp_path: Path) -> None:
    """What was written is gone, and reading it says so; what was never written is empty as before."""
    task, silent = single(flow, "echo x"), single(flow, "exit 0")
    flow.session.wait([task, silent], PATIENCE)  # type: ignore[union-attr]
    remove(tmp_path)
    with pytest.raises(InvalidStateError, match=rf"the stdout of {task.id} is gone: .*removed"):
        task.output()
    assert [task.error_output(), silent.output(), silent.error_output()] == ["", "", ""]


def test_kept_output_that_is_removed_while_it_is_written(flow: Workflow, tmp_path: Path) -> None:
    """The task goes on and ends well; its output cannot be had, neither while it runs nor later."""
    go = tmp_path / "go"
    task = single(flow, f"echo x; until [ -e {go} ]; do sleep 0.02; done; echo y")
    lines = task.stream()
    assert next(lines) == "x"
    remove(tmp_path)
    with pytest.raises(InvalidStateError, match="is gone"):
        next(lines)
    go.touch()
    task.wait_terminated(PATIENCE)
    assert task.success
    with pytest.raises(InvalidStateError, match="is gone"):
        task.output()


def test_output_in_a_file_of_its_own_that_was_removed(flow: Workflow, tmp_path: Path) -> None:
    """A file that output_path names is named again when it is not there any more."""
    path = tmp_path / "out"
    job = flow.run("echo", "x", output_path=str(path))
    assert job.output() == "x"
    path.unlink()
    assert job.output() == ""
    (error,) = job.errors
    assert isinstance(error, InvalidStateError)
    assert str(path) in str(error)


def test_what_has_not_started_has_written_nothing(flow: Workflow, tmp_path: Path) -> None:
    """Before the start there is no file, and that is no error; nor is it where nothing was ever started."""
    held = flow.run("echo", "x", output_path=str(tmp_path / "out"), submit_as_hold=True)
    (task,) = held.tasks
    lines = task.stream()
    held.kill()
    assert list(lines) == []
    assert (held.output(), held.errors) == ("", [])
    staged = flow.run(
        "echo", output_path=str(tmp_path / "other"), stage_in_files={str(tmp_path / "no" / "to"): __file__}
    )
    assert (staged.output(), staged.error_output()) == ("", "")
