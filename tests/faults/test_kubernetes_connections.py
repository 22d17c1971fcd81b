"""Connections to the API server that are cut, silent or refused: no end is lost, nothing is run twice for that."""

from __future__ import annotations

import hashlib
import os
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.kubernetes import Cluster, Way, opened, reached, until
from tests.faults.machine import PATIENCE
from wfl import JobState, Workflow, shell
from wfl.contexts.kubernetes import client as client_module
from wfl.errors import DeniedByDrmsError, DrmCommunicationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from wfl import Job, JobInfo

WATCH = r"GET \S+watch=1"
LOG = r"GET \S+/log\?"
EXEC = r"GET \S+/exec\?"
JOBS = r"POST \S+/jobs"
SILENCE = 3.0
"""Seconds without a word that a watch waits in these tests."""
TIMEOUT = 10.0
"""Seconds that one answer is waited for in these tests."""
SIZE = 8_000_000
"""Bytes of a file: more than all buffers on its way hold."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A namespace of ours."""
    with reached() as found:
        yield found


@pytest.fixture(autouse=True)
def clean(cluster: Cluster) -> Iterator[None]:
    """Nothing is left of any test."""
    yield
    until("nothing is left", lambda: not any(cluster.held().values()))


@pytest.fixture
def way(cluster: Cluster, tmp_path: Path) -> Iterator[Way]:
    """A way on which requests are seen."""
    with Way(cluster, tmp_path) as found:
        yield found


@pytest.fixture(params=["plain", "TLS"])
def any_way(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> Iterator[Way]:
    """The same, and one on which TLS is the client's own."""
    with Way(cluster, tmp_path, sealed=request.param == "TLS") as found:
        yield found


def through(way: Way, cluster: Cluster, **settings: Any) -> AbstractContextManager[Workflow]:
    """A workflow that goes this way."""
    return opened(cluster, **{"kubeconfig": way.kubeconfig, "timeout": TIMEOUT, **settings})


class Gate:
    """A directory of this machine, which jobs see as /gate."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: dict[str, Any] = {"stage_in_files": {"/gate": f"hostpath:{path}"}}

    def job(self, flow: Workflow, number: int = 1) -> Job:
        """One that runs now, and ends with 3 when the gate is opened."""
        line = "until [ -e /gate/open ]; do sleep 0.1; done; exit 3"
        job = flow.run_array(number, shell(line, **self.fields)) if number > 1 else flow.run(shell(line, **self.fields))
        for task in job.tasks:
            task.wait_started(PATIENCE)
        return job

    def open(self, cluster: Cluster, job: Job) -> None:
        """Let it end, and wait until the cluster knows."""
        (self.path / "open").touch()

        def over(pod: dict[str, Any]) -> bool:
            return any("terminated" in one["state"] for one in pod["status"].get("containerStatuses", ()))

        until("all pods have ended", lambda: all(map(over, cluster.pods(job))))

    def noting(self, command: str = "true") -> Any:
        """A command that notes each of its starts."""
        return shell(f"echo $JOB_ID.$TASK_ID >>/gate/starts; {command}", **self.fields)

    def starts(self) -> list[str]:
        """Who was run."""
        noted = self.path / "starts"
        return sorted(noted.read_text().split()) if noted.exists() else []


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """The test's own."""
    return Gate(tmp_path)


def end(job: Job) -> JobInfo:
    """Wait for its end."""
    job.wait(PATIENCE)
    found = job.info()
    assert found is not None
    return found


# --- watches ----------------------------------------------------------------------------------------------


def test_watches_are_cut(any_way: Way, cluster: Cluster, gate: Gate) -> None:
    """What is cut is made anew, again and again, and the end comes over it."""
    with through(any_way, cluster) as flow:
        job = gate.job(flow)
        for _ in range(3):
            any_way.drop()
        gate.open(cluster, job)
        info = end(job)
        assert (info.state, info.exit_status) == (JobState.FAILED, 3)
        assert flow.run("true").wait(PATIENCE).success()


def test_end_while_nothing_can_be_asked(way: Way, cluster: Cluster, gate: Gate) -> None:
    """Ends of that time are told afterwards, each as it was; until then nothing is called ended."""
    with through(way, cluster) as flow:
        job, elements = gate.job(flow), gate.job(flow, 3)
        until("all run", lambda: all(one.state is JobState.RUNNING for one in elements.tasks[0]))  # type: ignore[union-attr]
        way.refuse("")
        way.drop()
        gate.open(cluster, job)
        gate.open(cluster, elements)
        before = way.count(WATCH) + way.count("GET ")
        until("it was asked in vain", lambda: way.count("GET ") > before + 4)
        assert [job.state, *(one.state for one in elements.tasks[0])] == [JobState.RUNNING] * 4  # type: ignore[union-attr]
        way.refuse(None)
        assert (end(job).sub_state, end(job).exit_status) == ("exited", 3)
        elements.wait(PATIENCE)
        assert [info.exit_status for info in elements.infos()] == [3, 3, 3]


def test_silent_connections(any_way: Way, cluster: Cluster, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches that bring nothing any more, and do not end, are given up after a silence, and the end is told."""
    monkeypatch.setattr(client_module, "SILENCE", SILENCE)
    with through(any_way, cluster) as flow:
        job = gate.job(flow)
        any_way.silence(on=False)
        gate.open(cluster, job)
        info = end(job)
        assert (info.state, info.exit_status) == (JobState.FAILED, 3)


def test_silent_server(way: Way, cluster: Cluster, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and says nothing is waited for: nothing is called ended."""
    monkeypatch.setattr(client_module, "SILENCE", SILENCE)
    with through(way, cluster, timeout=4) as flow:
        job = gate.job(flow)
        way.silence()
        gate.open(cluster, job)
        before = len(way.requests)
        until("it was asked in vain", lambda: len(way.requests) > before + 2)
        assert job.state is JobState.RUNNING
        way.silence(on=False)
        assert (end(job).state, end(job).exit_status) == (JobState.FAILED, 3)


EXPIRED = {
    "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
    "message": "too old resource version: 1 (2)", "metadata": {},
}  # fmt: skip


@pytest.mark.parametrize("answer", [(410, EXPIRED), (200, {"type": "ERROR", "object": EXPIRED})])
def test_expired_version(
    answer: tuple[int, dict[str, Any]], way: Way, cluster: Cluster, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything is listed again, without a warning, and the end comes."""
    with through(way, cluster) as flow:
        job = gate.job(flow)
        way.answer(WATCH, *[(*answer, "")] * 2)
        lists = way.count(r"GET \S+/(pods|jobs)\?(?!.*watch)")
        way.drop(WATCH)
        until("it was listed again", lambda: way.count(r"GET \S+/(pods|jobs)\?(?!.*watch)") >= lists + 4)
        gate.open(cluster, job)
        assert end(job).exit_status == 3
    assert "too old resource version" not in "".join(one.message for one in caplog.records if one.levelname != "DEBUG")


# --- creations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("request_", [JOBS, r"POST \S+/configmaps", r"PATCH \S+/jobs"])
def test_lost_reply(request_: str, way: Way, cluster: Cluster, gate: Gate, *, array: bool) -> None:
    """Of a creation whose answer was lost nothing is known, until it is found; it is run once."""
    gate.fields["stage_in_files"]["/text"] = "inline:hello"
    with through(way, cluster) as flow:
        way.lose(request_)
        job = flow.run_array(2, gate.noting("cat /text")) if array else flow.run(gate.noting("cat /text"))
        assert way.count(request_) == 1
        assert not job.state.ended
        way.lose(None)
        job.wait(PATIENCE)
        assert [info.state for info in job.infos()] == [JobState.DONE] * (2 if array else 1)
        assert set(job.outputs().values()) == {"hello"}
        assert len(gate.starts()) == len(set(gate.starts())) == (2 if array else 1)
        assert len(cluster.client.list("jobs")[0]) == 1


@pytest.mark.parametrize("array", [False, True])
def test_creation_that_never_arrived(way: Way, cluster: Cluster, gate: Gate, *, array: bool) -> None:
    """After the time in which it could still arrive the job has failed as never started."""
    with through(way, cluster, timeout=4) as flow:
        way.refuse(JOBS)
        job = flow.run_array(2, gate.noting()) if array else flow.run(gate.noting())
        assert not job.state.ended
        way.refuse(None)
        job.wait(PATIENCE)
        assert [info.sub_state for info in job.infos()] == ["launch_failure"] * (2 if array else 1)
        assert "never started" in str(job.last_error)
        assert flow.run("true").wait(PATIENCE).success()
        assert not cluster.jobs(job)
        assert gate.starts() == []


def test_throttled(way: Way, cluster: Cluster, gate: Gate) -> None:
    """What the server has no time for is asked again, when it says, and done once."""
    status = {"kind": "Status", "status": "Failure", "code": 429, "message": "too many requests", "metadata": {}}
    with through(way, cluster) as flow:
        gate.job(flow)
        way.answer(JOBS, *[(429, status, "Retry-After: 1\r\n")] * 2)
        way.answer(WATCH, (429, status, "Retry-After: 1\r\n"))
        before = way.count(JOBS)
        way.drop(WATCH)
        assert flow.run(gate.noting()).wait(PATIENCE).success()
        assert way.count(JOBS) == before + 3
        assert len(gate.starts()) == 1


# --- control ----------------------------------------------------------------------------------------------


def test_lost_reply_of_a_kill(way: Way, cluster: Cluster, gate: Gate) -> None:
    """The job ends as it was asked to, though nobody knows at first."""
    with through(way, cluster) as flow:
        job = gate.job(flow)
        way.lose("DELETE ")
        job.kill()
        way.lose(None)
        assert (end(job).state, end(job).sub_state) == (JobState.FAILED, "cancelled")


def test_lost_reply_of_a_hold(way: Way, cluster: Cluster) -> None:
    """The job is shown as it is, and can be released."""
    with through(way, cluster) as flow:
        job = flow.run("true", candidate_machines=("nowhere",))
        until("it waits", lambda: "Unschedulable" in (job.tasks[0].info().annotation or ""))
        way.lose("PATCH ")
        job.hold()
        way.lose(None)
        until("the Job is suspended", lambda: cluster.jobs(job)[0]["spec"].get("suspend"))
        until("it is shown as held", lambda: job.state is JobState.QUEUED_HELD, 20)
        job.release()
        until("the Job goes on", lambda: not cluster.jobs(job)[0]["spec"].get("suspend"))
        until("it is shown as queued", lambda: job.state is JobState.QUEUED, 20)


def test_hold_that_never_arrived(way: Way, cluster: Cluster, gate: Gate) -> None:
    """The job goes on as if nobody had asked for it, and ends as it would have."""
    with through(way, cluster) as flow:
        gated = {"extensions": {"pod_patch": "{schedulingGates: [{name: wfl-faults/closed}]}"}}
        job = flow.run(gate.noting("sleep 2; exit 3").replace(**gated))
        until("it waits", lambda: "SchedulingGated" in (job.tasks[0].info().annotation or ""))
        way.refuse("PATCH ")
        job.hold()
        assert isinstance(job.last_error, DrmCommunicationError)
        way.refuse(None)
        free = '[{"op": "remove", "path": "/spec/schedulingGates"}]'
        cluster.kubectl("patch", "pod", cluster.pod(job), "--type=json", "--patch", free)
        info = end(job)
        assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "exited", 3)
        assert len(gate.starts()) == 1


# --- credentials ------------------------------------------------------------------------------------------


def test_renewed_token(way: Way, cluster: Cluster, gate: Gate, tmp_path: Path) -> None:
    """A token that is no longer taken is read again from its file; until there is a better one nothing has ended."""
    binding = ("rolebinding", "runner", "--clusterrole=admin", f"--serviceaccount={cluster.namespace}:runner")
    cluster.kubectl("create", *binding)
    file = tmp_path / "token"
    file.write_text("no such token")
    way.admit(tokenFile=str(file))
    with Workflow(cluster.context(kubeconfig=way.kubeconfig)) as refused:
        assert isinstance(refused.error, DeniedByDrmsError)
        assert "the credentials were refused" in str(refused.error)
    old = token(cluster)
    file.write_text(old)
    with through(way, cluster) as flow:
        job = gate.job(flow)
        cluster.kubectl("delete", "serviceaccount", "runner")
        until("it is not taken", lambda: not is_taken(cluster, old))
        way.drop()
        gate.open(cluster, job)
        before = way.count(r"GET \S+/pods\?")
        until("it was asked in vain", lambda: way.count(r"GET \S+/pods\?") > before + 2)
        assert job.state is JobState.RUNNING
        file.write_text(f"{token(cluster)}\n")
        assert end(job).exit_status == 3
        assert flow.run("echo", "there").output() == "there"


def token(cluster: Cluster) -> str:
    """A new one of a new service account."""
    cluster.kubectl("create", "serviceaccount", "runner")
    return cluster.kubectl("create", "token", "runner", "--duration=10m").strip()


def is_taken(cluster: Cluster, token: str) -> bool:
    """Whether the server, which remembers for ten seconds that it was, takes it."""
    return "Unauthorized" not in cluster.kubectl("auth", "can-i", "create", "jobs", f"--token={token}", ok=False)


# --- output and files -------------------------------------------------------------------------------------

LINES = 200


@pytest.mark.parametrize("how", ["stream", "output_path"])
def test_followed_output_is_whole(how: str, way: Way, cluster: Cluster, tmp_path: Path) -> None:
    """Output that is followed over connections that are cut comes whole, each line once."""
    line = f"n=0; while [ $n -lt {LINES} ]; do n=$((n+1)); echo line $n; sleep 0.02; done"
    expected = [f"line {n}" for n in range(1, LINES + 1)]
    path = tmp_path / "output"
    with through(way, cluster) as flow:
        job = flow.run(shell(line, output_path=str(path) if how == "output_path" else None))
        if how == "stream":
            lines, came = job.stream(), []
            for _ in range(4):
                came += list(islice(lines, LINES // 8))
                way.drop(LOG)
            came += lines
            assert came == expected
        else:
            until("it is followed", lambda: way.count(LOG))
            for _ in range(3):
                before = way.count(LOG)
                way.drop(LOG)
                until("it is followed again, or over", lambda n=before: way.count(LOG) > n or job.state.ended)  # type: ignore[misc]
            assert end(job).state is JobState.DONE
            assert path.read_text().splitlines() == expected
        assert way.count(LOG) > 1
        assert job.output().splitlines() == expected


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """What no tar makes smaller, in the file "in"."""
    found = os.urandom(SIZE)
    (tmp_path / "in").write_bytes(found)
    return found


def test_files_come_in_whole(way: Way, cluster: Cluster, tmp_path: Path, data: bytes) -> None:
    """A copy whose connection is cut is made anew; the command never sees a part."""
    with through(way, cluster) as flow:
        way.cut(EXEC, SIZE // 2, times=2)
        job = flow.run(shell("md5sum </in | head -c 32", stage_in_files={"/in": str(tmp_path / "in")}))
        assert end(job).state is JobState.DONE
        assert way.uncut == 0
        assert job.output() == hashlib.md5(data).hexdigest()  # noqa: S324 - busybox has it


def test_files_come_back_whole(way: Way, cluster: Cluster, tmp_path: Path, data: bytes) -> None:
    """The same of what is fetched: there is the whole file, and the job's own end."""
    staged = {"/in": str(tmp_path / "in")}
    with through(way, cluster) as flow:
        fetched = {str(tmp_path / "out"): "/results/out"}
        command = "cp /in /results/out; until [ -e /results/go ]; do sleep 0.1; done; exit 3"
        job = flow.run(shell(command, stage_in_files=staged, stage_out_files=fetched))
        job.tasks[0].wait_started(PATIENCE)
        way.cut(EXEC, SIZE // 2, times=2)
        cluster.kubectl("exec", cluster.pod(job), "--container=main", "--", "touch", "/results/go")
        info = end(job)
        assert way.uncut == 0
        assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "exited", 3)
        assert (tmp_path / "out").read_bytes() == data
