"""No space left, under the output or under the store: the task or the call says so, the session lives."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.faults.machine import PATIENCE
from wfl import Workflow
from wfl.contexts.process import ProcessContext
from wfl.drmaa2 import JobState
from wfl.errors import WflError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE_KIB = 4096


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small tmpfs")
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_KIB}k", "wfl-test", str(place)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int = 0) -> Path:
    """Write until nothing fits any more, then give back some bytes."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        if leave:
            file.truncate(file.tell() - leave)
    return ballast


def test_output_that_does_not_fit_is_told(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that filled the disk ends with words that say so; with space again, the next one works."""
    monkeypatch.setattr("tempfile.tempdir", str(small))
    with Workflow() as flow:
        job = flow.run("dd", "if=/dev/zero", "bs=64k", f"count={SIZE_KIB}").wait(PATIENCE)
        info = job.info()
        assert info is not None
        assert (info.state, info.exit_status) == (JobState.FAILED, 1)
        assert "No space left on device" in (info.annotation or "")
        assert str(small) in (info.annotation or "")
        assert job.reap_all().errors == []
        assert flow.run("echo", "again").output() == "again"
    assert list(small.iterdir()) == []


def test_a_silent_loss_of_output_is_told(small: Path) -> None:
    """A command that does not check its writes ends with 0; that its output may be cut off is told all the same."""
    with Workflow() as flow:
        fill(small)
        job = flow.run("sh", "-c", "echo lost; exit 0", output_path=str(small / "out")).wait(PATIENCE)
        info = job.info()
        assert info is not None
        assert info.state.ended
        assert "No space left on device" in (info.annotation or ""), info


def test_a_full_disk_at_the_start_is_a_failed_launch_or_words(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no space before the first task: each ends with words that name the trouble; later tasks work."""
    monkeypatch.setattr("tempfile.tempdir", str(small))
    with Workflow() as flow:
        ballast = fill(small)
        for _ in range(3):
            job = flow.run("sh", "-c", "echo lost").wait(PATIENCE)
            (info,) = job.infos()
            assert info.state.ended
            assert "No space left on device" in (info.annotation or ""), info
        ballast.unlink()
        assert flow.run("echo", "again").output() == "again"


def test_a_store_that_cannot_grow_is_a_clear_error(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A submission that cannot be recorded is refused and not started; with space again, all is as before."""
    with Workflow(ProcessContext(store=small / "store")) as flow:
        assert flow.run("echo", "before").output() == "before"
        ballast = fill(small)
        marker = small.parent / "ran"
        job = flow.run_array(300, "sh", "-c", f'echo {"x" * 5000} >/dev/null; echo ran >>"$0"', str(marker))
        job.synchronize(PATIENCE)
        infos = job.infos()
        assert {info.sub_state for info in infos} == {"launch_failure"}
        assert str(small / "store") in str(job.last_error)
        assert "full" in str(job.last_error)
        assert isinstance(job.last_error, WflError)
        assert not marker.exists()
        ballast.unlink()
        assert flow.run("echo", "again").output() == "again", caplog.text
    with Workflow(ProcessContext(store=small / "store")) as flow:
        assert sorted(job.output() for job in flow.jobs() if job.success()) == ["again", "before"]


def test_a_store_that_fills_while_tasks_run_does_not_lose_their_ends(small: Path) -> None:
    """The end of a running task is known to the program, and to the next one once there is space again."""
    with Workflow(ProcessContext(store=small / "store", detach=True)) as flow:
        gate = small.parent / "gate"
        os.mkfifo(gate)
        job = flow.run("sh", "-c", f"read line <{gate}; exit 7")
        job.tasks[0].wait_started(PATIENCE)
        ballast = fill(small)
        gate.write_text("go\n")
        assert job.wait(PATIENCE).exit_status() == 7
        ballast.unlink()
    with Workflow(ProcessContext(store=small / "store", detach=True)) as flow:
        (again,) = flow.jobs()
        assert (again.exit_status(), again.info().sub_state) == (7, "exited")  # type: ignore[union-attr]
