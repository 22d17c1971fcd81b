"""A cluster via a login node whose connection is cut, stalled or refused: no job is lost, doubled, or told wrongly."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.clusters import jobs_of, left_in, reached
from tests.faults import hosts
from tests.faults.hosts import Host, Wire
from tests.faults.machine import PATIENCE, wait_until
from wfl import JobState, Workflow, shell
from wfl.contexts.batch.slurm import SlurmContext

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT = 5.0
"""Seconds that the login node may take to answer, so that one that is silent is given up soon."""
SIZE = 20_000_000
"""Bytes of a file: more than all buffers on its way hold."""


host = hosts.host


@pytest.fixture
def wire(host: Host) -> Iterator[Wire]:
    """The way to it."""
    with Wire(host.port) as found:
        yield found


class Cluster:
    """Slurm behind it, and one session there."""

    def __init__(self, host: Host, wire: Wire, place: Path) -> None:
        self.host, self.wire, self.place, self.directory = host, wire, place, place / "jobs"
        self.environment = {**reached("slurm"), "PATH": f"{place}/commands:{os.environ['PATH']}"}
        (place / "commands").mkdir()

    def context(self, **settings: object) -> SlurmContext:
        """One that finds the same session."""
        given: dict[str, object] = {"directory": self.directory, "session_name": "away", "detach": False, **settings}
        via = self.host.context(port=self.wire.port, timeout=TIMEOUT)
        return SlurmContext(via=via, environment=self.environment, **given)  # type: ignore[arg-type]

    def wrap(self, command: str, lines: str) -> None:
        """Put a script before one of Slurm's commands, which is `$real` in it."""
        path = self.place / "commands" / command
        path.write_text(f"#!/bin/sh\nreal={shutil.which(command)} place={self.place}\n{lines}\n")
        path.chmod(0o755)


@pytest.fixture
def cluster(host: Host, wire: Wire, tmp_path: Path) -> Iterator[Cluster]:
    """It; afterwards nothing of the session is left."""
    found = Cluster(host, wire, tmp_path)
    yield found
    wait_until("Slurm has nothing of it", lambda: not jobs_of(found.directory, "slurm"))
    wait_until("nothing is left in its directory", lambda: not left_in(found.directory))


def test_cut_again_and_again(cluster: Cluster, tmp_path: Path) -> None:
    """While jobs are submitted and while they are waited for: each runs once, and is told as it was."""
    ran = tmp_path / "ran"
    with Workflow(cluster.context(), raise_errors=True) as flow:
        jobs = []
        for number in range(24):
            jobs.append(flow.run(shell(f"echo {number} >>{ran}; exit {number % 3}")))
            if number % 4 == 3:
                cluster.wire.cut()
        for job in jobs:
            job.synchronize()
            cluster.wire.cut()
        assert [job.exit_status() for job in jobs] == [number % 3 for number in range(24)]
    assert Counter(ran.read_text().split()) == Counter(map(str, range(24)))


def test_a_lost_answer(cluster: Cluster, tmp_path: Path) -> None:
    """A job that was submitted while the connection broke off is found by its key, and not submitted again."""
    cluster.wrap("sbatch", '"$real" "$@"; touch "$place/submitted"; exec sleep 3')
    ran = tmp_path / "ran"
    with Workflow(cluster.context()) as flow:
        job = flow.run(shell(f"echo once >>{ran}"))
        wait_until("it is submitted", (tmp_path / "submitted").exists)
        cluster.wire.cut()
        assert job.wait(PATIENCE).success(), job.errors
    assert ran.read_text() == "once\n"


@pytest.mark.parametrize("fault", ["refused", "stalled"])
def test_away_for_a_while(cluster: Cluster, fault: str, tmp_path: Path) -> None:
    """What ends meanwhile is told when the login node is back, with what it was."""
    go = tmp_path / "go"
    with Workflow(cluster.context()) as flow:
        good = flow.run(shell(f"until [ -e {go} ]; do sleep 0.1; done; echo out"))
        bad = flow.run(shell(f"until [ -e {go} ]; do sleep 0.1; done; exit 7"))
        for job in (good, bad):
            job.tasks[0].wait_started()
        if fault == "refused":
            cluster.wire.refuse()
        else:
            cluster.wire.swallow("there", "back")
        go.touch()
        time.sleep(2 * TIMEOUT)
        assert [good.state, bad.state] == [JobState.RUNNING] * 2
        cluster.wire.mend()
        assert good.output() == "out"
        assert bad.wait(PATIENCE).exit_status() == 7


def test_never_submitted(cluster: Cluster) -> None:
    """A job for which the login node stays away fails as never submitted, and others go on."""
    with Workflow(cluster.context()) as flow:
        assert flow.run("true").wait(PATIENCE).success()
        cluster.wire.refuse()
        job = flow.run("true").wait(PATIENCE)
        assert "nothing was submitted" in str(job.last_error)
        cluster.wire.mend()
        assert flow.run("true").wait(PATIENCE).success()


@pytest.mark.parametrize("direction", ["there", "back"])
def test_cut_while_files_are_copied(cluster: Cluster, direction: str, tmp_path: Path) -> None:
    """Copies go on where they were, and arrive whole."""
    data = os.urandom(SIZE)
    (tmp_path / "in").write_bytes(data)
    work = tmp_path / "work"
    staged = {"stage_in_files": {"in": str(tmp_path / "in")}, "stage_out_files": {str(tmp_path / "out"): "in"}}
    with Workflow(cluster.context(), raise_errors=True) as flow:
        cluster.wire.after(direction, SIZE // 2, cluster.wire.cut)  # type: ignore[arg-type]
        job = flow.run("cmp", "in", str(tmp_path / "in"), working_directory=str(work), **staged)  # type: ignore[arg-type]
        assert job.wait(PATIENCE).success(), job.errors
        assert (tmp_path / "out").read_bytes() == data


def test_files_that_are_not_there(cluster: Cluster, tmp_path: Path) -> None:
    """A job that does not leave what is to be copied back has failed, and says so."""
    with Workflow(cluster.context()) as flow:
        job = flow.run("true", working_directory=str(tmp_path), stage_out_files={str(tmp_path / "out"): "none"})
        assert job.wait(PATIENCE).state == JobState.FAILED
        assert "stage_out_files" in str(job.info())


def test_another_program_finds_them(cluster: Cluster, tmp_path: Path) -> None:
    """Detached jobs go on, and a later program is told of their ends, their output, and their files."""
    go = tmp_path / "go"
    with Workflow(cluster.context(detach=True)) as flow:
        flow.run(
            shell(f"until [ -e {go} ]; do sleep 0.1; done; echo left; echo kept >file"),
            working_directory=str(tmp_path),
            stage_out_files={str(tmp_path / "copied"): "file"},
        ).tasks[0].wait_started()
        flow.run_array(3, shell("exit $TASK_ID"))
    go.touch()
    with Workflow(cluster.context(detach=True)) as flow:
        one, array = sorted(flow.jobs(), key=lambda job: len(job.tasks))
        assert one.wait(PATIENCE).success(), one.errors
        assert one.output() == "left"
        assert (tmp_path / "copied").read_text() == "kept\n"
        assert [info.exit_status for info in array.wait(PATIENCE).infos()] == [1, 2, 3]
        one.reap_all()
        array.reap_all()
