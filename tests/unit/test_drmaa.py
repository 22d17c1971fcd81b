"""DrmaaContext without a scheduler: what the library is given, what its answers mean, and one session for all."""

from __future__ import annotations

import importlib
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from wfl import JobTemplate, Workflow
from wfl.backend import INDEX, Submission
from wfl.contexts.batch.client import Client
from wfl.contexts.batch.gridengine import GridEngine
from wfl.contexts.batch.place import Entry, Wave
from wfl.contexts.batch.scheduler import Job
from wfl.contexts.drmaa import DrmaaContext, backend, library, system
from wfl.contexts.drmaa.library import Connection, Waited
from wfl.drmaa2 import JobInfo, JobState
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidStateError,
    SessionManagementError,
    TryLaterError,
    UnsupportedAttributeError,
    WflError,
)

PATIENCE = 30.0  # seconds that a thread may take on a busy machine
USAGE = {
    "submission_time": "1795269860.0000",
    "start_time": "1795269867.0000",
    "end_time": "1795269870.0000",
    "ru_wallclock": "3.0000",
    "cpu": "0.2500",
    "ru_maxrss": "4396.0000",
    "maxvmem": "1732608.0000",
}
"""As Grid Engine 8.1.9 has it."""


def until(condition: Any, what: str) -> None:
    """Wait for a condition, for a bounded time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what}"
        time.sleep(0.01)


def why(job: Any) -> str | None:
    """Why a job has ended, which is waited for."""
    info: JobInfo = job.wait(PATIENCE).info()
    return info.sub_state


# --- a library that is none -------------------------------------------------------------------------------


class FakeLibrary:
    """What DRMAA 1 does, as Grid Engine's library does it; `end` ends a job, `denied` says no."""

    def __init__(self, name: str = "SGE 8.1.9") -> None:
        self.name = name
        self.calls: Counter[str] = Counter()
        self.jobs: dict[str, str] = {}
        self.given: list[Mapping[str, Any]] = []
        self.numbers = iter(range(100, 10_000))
        self.ends: SimpleQueue[Waited | WflError] = SimpleQueue()
        self.denied: list[WflError] = []
        self.contacts: list[str | None] = []
        self.left = threading.Event()

    def initialize(self, contact: str | None) -> None:
        """It begins."""
        self.calls["initialize"] += 1
        self.contacts.append(contact)
        self.left.clear()

    def exit(self) -> None:
        """It ends."""
        self.calls["exit"] += 1
        self.left.set()

    def contact(self) -> str:
        """The one that was given, or its own."""
        return self.contacts[-1] or "session=fake"

    def system(self) -> str:
        """Its name."""
        return self.name

    def run(self, attributes: Mapping[str, Any]) -> str:
        """One job that waits."""
        self.calls["run"] += 1
        if self.denied:
            raise self.denied.pop()
        self.given.append(attributes)
        id = str(next(self.numbers))
        self.jobs[id] = "queued_active"
        return id

    def run_bulk(self, attributes: Mapping[str, Any], numbers: range) -> list[str]:
        """An array that waits."""
        self.calls["run_bulk"] += 1
        if self.denied:
            raise self.denied.pop()
        self.given.append(attributes)
        base = next(self.numbers)
        ids = [f"{base}.{number}" for number in numbers]
        self.jobs.update(dict.fromkeys(ids, "queued_active"))
        return ids

    def control(self, id: str, action: str) -> None:
        """Ends what is to be terminated."""
        self.calls["control"] += 1
        members = [one for one in self.jobs if one == id or one.startswith(f"{id}.")]
        if not members:
            raise InvalidStateError(f"drmaa: there is no {id}")
        if action == "terminate":
            self.end(*members, aborted=True)

    def status(self, id: str) -> str:
        """As `jobs` has it."""
        self.calls["status"] += 1
        if id not in self.jobs:
            raise InvalidStateError("drmaa: there is no such job")
        return self.jobs[id]

    def wait(self, seconds: int) -> Waited | None:
        """The next of `ends`, told once."""
        if not self.jobs and self.ends.empty():
            raise InvalidStateError("drmaa: there are no jobs")
        try:
            found = self.ends.get(timeout=seconds / 10) if seconds else self.ends.get_nowait()
        except Empty:
            return None
        if isinstance(found, WflError):
            raise found
        self.jobs.pop(found.id, None)
        return found

    def end(self, *ids: str, status: int | None = None, aborted: bool = False) -> None:
        """These have ended."""
        for id in ids:
            self.ends.put(Waited(id, status, None, aborted, {}))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibrary]:
    """The library of this process, for the length of a test."""
    found = FakeLibrary()
    ours = Connection(lambda: found)  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(library, "connection", ours)
    monkeypatch.setattr(backend, "connection", ours)
    monkeypatch.setattr(backend, "RECORD", 1.0)
    yield found
    assert found.calls["initialize"] == found.calls["exit"]


@pytest.fixture
def flow(fake: FakeLibrary, tmp_path: Path) -> Iterator[Workflow]:
    """A workflow whose jobs nobody runs."""
    assert not fake.jobs
    with Workflow(DrmaaContext(directory=tmp_path / "jobs"), raise_errors=True) as flow:
        yield flow


def write_end(tmp_path: Path, id: str, status: int) -> None:
    """What a job's script writes."""
    (accepted,) = (path for path in (tmp_path / "jobs" / "wfl").glob("*/id/*") if f'"{id}"' in path.read_text())
    for kind, text in (("run", ""), ("out", "hello\n"), ("end", f"status {status}\nsaid no\nhost far\n.\n")):
        (accepted.parents[1] / kind / accepted.name).write_text(text)


# --- what the library is given ----------------------------------------------------------------------------


def job(template: JobTemplate, *, wave: Wave | None = None, inherit: bool = False, most: int | None = None) -> Job:
    """A submission."""
    indexes, waves = (None, None) if wave is None else (wave.numbers, [wave])
    entry = Entry("abc-1", template, "abc-1", indexes=indexes, waves=waves, max_parallel=most)
    return Job(entry, "/shared/script", "/shared/log", inherit)


GRID_ENGINE = system.scheduler("SGE 8.1.9", parallel_environment="smp")
PORTABLE = system.scheduler("Condor")


def test_plain_job() -> None:
    """The script is run by a login shell, by itself; all else is in the script."""
    assert system.attributes(job(JobTemplate(remote_command="true")), GRID_ENGINE) == {
        "jobName": b"wfl-abc-1",
        "remoteCommand": b"/bin/sh",
        "args": [b"-l", b"/shared/script"],
        "workingDirectory": b"/",
        "outputPath": b":/shared/log",
        "joinFiles": True,
        "nativeSpecification": b"-r n",
    }


def test_everything_on_grid_engine() -> None:
    """What qsub's command line would say is in the native specification, except for what is an attribute."""
    template = JobTemplate(
        remote_command="true",
        job_name="my job",
        job_category="fast",
        queue_name="all.q",
        min_slots=4,
        min_phys_memory=4096,
        resource_limits={"WALLCLOCK_TIME": 90.5},
        email=("a@b.c",),
        email_on_terminated=True,
        submit_as_hold=True,
        start_time=datetime(2030, 1, 1, tzinfo=UTC),
        extensions={"native": "-l gpu=1"},
    )
    found = system.attributes(job(template, wave=Wave(range(1, 10, 2)), inherit=True, most=3), GRID_ENGINE)
    words = found["nativeSpecification"].decode().split()
    assert (found["jobName"], found["jobCategory"], found["args"]) == (b"my_job", b"fast", [b"/shared/script"])
    assert {"-V", "-h"} <= set(words)
    for option, value in {"-tc": "3", "-q": "all.q", "-pe": "smp", "-M": "a@b.c", "-m": "ea"}.items():
        assert words[words.index(option) + 1] == value
    assert "h_rt=91" in words[words.index("-l") + 1]
    assert words[-2:] == ["-l", "gpu=1"]
    assert not {"-t", "-N", "-o", "-wd", "-terse", "/shared/script"} & set(words)


def test_blank_in_an_option() -> None:
    """The library splits the native specification at blanks: what has one is refused, and not cut in two."""
    with pytest.raises(InvalidArgumentError, match=r"splits options at blanks.*'two words'"):
        system.attributes(job(JobTemplate(remote_command="true", extensions={"native": "-M 'two words'"})), GRID_ENGINE)


def test_everything_elsewhere() -> None:
    """Other schedulers get what DRMAA 1 has a name for."""
    template = JobTemplate(
        remote_command="true",
        submit_as_hold=True,
        job_category="fast",
        email=("a@b.c",),
        email_on_terminated=True,
        extensions={"native": "-x 'a b'"},
    )
    found = system.attributes(job(template), PORTABLE)
    assert found["jobSubmissionState"] == b"drmaa_hold"
    assert (found["email"], found["blockEmail"]) == ([b"a@b.c"], False)
    assert (found["jobCategory"], found["nativeSpecification"]) == (b"fast", b"-x 'a b'")


def test_refused_elsewhere(fake: FakeLibrary, tmp_path: Path) -> None:
    """What has no attribute is refused by name, and arrays are submitted one by one."""
    fake.name = "Condor 25"
    with Workflow(DrmaaContext(directory=tmp_path / "jobs")) as flow:
        refused = flow.run("true", queue_name="q").last_error
        assert isinstance(refused, UnsupportedAttributeError)
        assert "queue_name" in str(refused)
        assert "inherit" in str(flow.run("true", extensions={"inherit_environment": "true"}).last_error)
        flow.run_array(3, "true")
        until(lambda: fake.calls["run"] == 3, "all elements are submitted")
        assert fake.calls["run_bulk"] == 0


@pytest.mark.parametrize("name", ["SGE 8.1.9", "GE 6.2u5", "UGE 8.6", "Univa Grid Engine", "Open Grid Engine"])
def test_grid_engines(name: str) -> None:
    """Grid Engine and its descendants are known by what their libraries call them."""
    assert system.scheduler(name).number == "SGE_TASK_ID"


def test_preview(fake: FakeLibrary, tmp_path: Path) -> None:
    """A dry run shows the attributes and the script, and calls nothing that submits."""
    context = DrmaaContext(directory=tmp_path)
    one, many = JobTemplate(remote_command="echo", args=("a b",)), JobTemplate(remote_command="echo", args=(INDEX,))
    (single,), (array,) = context.preview(one), context.preview(many, range(2, 9, 3), max_parallel=2)
    assert single.command[:2] == ("runJob", "jobName=wfl-KEY-1")
    assert "exec echo 'a b'" in single.script
    assert array.command[0] == "runBulkJobs"
    assert array.command[-3:] == ("2", "8", "3")
    assert "nativeSpecification=-r n -tc 2" in array.command
    assert not fake.calls


# --- what its answers mean --------------------------------------------------------------------------------


def account(waited: Waited, **limits: float) -> Any:
    """What is made of an end."""
    return system.account(waited, JobTemplate(remote_command="true", resource_limits=limits or None))


def test_usage() -> None:
    """Times, memory and processor time are taken from the library's usage."""
    found = account(Waited("7", 3, None, aborted=False, usage=USAGE))
    assert (found.exit_status, found.signal, found.cause) == (3, None, None)
    assert found.info.submission_time == datetime.fromtimestamp(1795269860, UTC)
    assert found.info.finish_time - found.info.dispatch_time == found.info.wallclock_time == timedelta(seconds=3)
    assert found.info.cpu_time == timedelta(seconds=0.25)
    assert found.info.extensions == {"ru_maxrss": "4396", "max_vmem_kib": "1692"}


def test_milliseconds() -> None:
    """Some libraries count milliseconds since 1970."""
    found = account(Waited("7", 0, None, aborted=False, usage={"start_time": "1795269867123.0000"}))
    assert found.info.dispatch_time == datetime.fromtimestamp(1795269867.123, UTC)


@pytest.mark.parametrize(
    ("waited", "limits", "expected"),
    [
        (Waited("7", None, "SIGSEGV", False, USAGE), {}, (None, 11, None)),
        (Waited("7", None, "SIGKILL", False, USAGE), {"WALLCLOCK_TIME": 2.5}, (None, 9, "timeout")),
        (Waited("7", None, "SIGKILL", False, USAGE), {"WALLCLOCK_TIME": 60}, (None, 9, None)),
        (Waited("7", None, None, True, {}), {}, (None, None, "cancelled")),
        (Waited("7", None, "unknown signal", False, {}), {}, (None, None, None)),
    ],
)
def test_ends(waited: Waited, limits: dict[str, float], expected: tuple[Any, ...]) -> None:
    """A signal is told by its number; at the limit of time it is the limit; an aborted job was cancelled."""
    found = account(waited, **limits)
    assert (found.exit_status, found.signal, found.cause) == expected


# --- a library that cannot be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'drmaa'"), "pip install 'wfl-sdk[drmaa]'"),
        (RuntimeError("Could not find drmaa library."), "DRMAA_LIBRARY_PATH"),
        (OSError("/no/such.so: cannot open shared object file"), "DRMAA_LIBRARY_PATH"),
        (
            OSError("libjemalloc.so.2: cannot allocate memory in static TLS block"),
            "GLIBC_TUNABLES=glibc.rtld.optional_static_tls=16384",
        ),
    ],
)
def test_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, words: str) -> None:
    """Whatever is missing, the error is one line with the cause and the cure."""

    def fail(name: str) -> Any:
        assert name == "drmaa"
        raise error

    monkeypatch.setattr(library, "importlib", SimpleNamespace(import_module=fail))
    monkeypatch.setattr(library, "connection", Connection())
    found = Workflow(DrmaaContext(directory=tmp_path)).error
    assert isinstance(found, SessionManagementError)
    assert words in str(found)
    assert "\n" not in str(found)


class DrmaaException(Exception):  # noqa: N818 - the package's name
    """The package's."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("InvalidJobException", InvalidStateError),
        ("DrmCommunicationException", DrmCommunicationError),
        ("DeniedByDrmException", DeniedByDrmsError),
        ("TryLaterException", TryLaterError),
        ("SuspendInconsistentStateException", InvalidStateError),
    ],
)
def test_errors(monkeypatch: pytest.MonkeyPatch, name: str, expected: type[WflError]) -> None:
    """The package's errors become those of wfl, with the library's words."""
    kind = type(name, (DrmaaException,), {})

    def status(id: str) -> str:
        raise kind(f"code 1: no {id}\nhere")

    package = SimpleNamespace(
        errors=SimpleNamespace(DrmaaException=DrmaaException), Session=SimpleNamespace(jobStatus=status)
    )
    monkeypatch.setattr(library, "importlib", SimpleNamespace(import_module=lambda _: package))
    with pytest.raises(expected, match=r"drmaa: no 7 here$"):
        library.Library().status("7")


def test_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SGE_ROOT the error says what to read before Python is started."""

    def initialize(contact: str | None) -> None:
        raise DrmaaException(f"code 1: Please set the environment variable SGE_ROOT.{contact or ''}")

    package = SimpleNamespace(
        errors=SimpleNamespace(DrmaaException=DrmaaException), Session=SimpleNamespace(initialize=initialize)
    )
    monkeypatch.setattr(library, "importlib", SimpleNamespace(import_module=lambda _: package))
    with pytest.raises(SessionManagementError, match=r"SGE_ROOT\. Read the site's settings.*settings\.sh"):
        library.Library().initialize(None)


def test_module_is_lazy() -> None:
    """The package is imported at first use: a context can be made where there is none."""
    assert importlib.import_module("wfl.contexts.drmaa").DrmaaContext(session_name="x").detach


# --- one session for all ----------------------------------------------------------------------------------


def test_two_sessions(fake: FakeLibrary, tmp_path: Path) -> None:
    """Several workflows share the library's session; it ends with the last of them."""
    first, second = (Workflow(DrmaaContext(directory=tmp_path / "jobs"), raise_errors=True) for _ in range(2))
    one, other = first.run("true"), second.run("true")
    first.close()
    assert (fake.calls["initialize"], fake.calls["exit"]) == (1, 0)
    fake.end(one.tasks[0].id, aborted=True)
    fake.end(other.tasks[0].id, aborted=True)
    assert why(other) == "cancelled"
    second.close()
    assert fake.calls["exit"] == 1
    with Workflow(DrmaaContext(directory=tmp_path / "jobs")) as third:
        assert third.error is None
    assert fake.calls["initialize"] == 2


def test_contact(fake: FakeLibrary, tmp_path: Path) -> None:
    """A contact is passed on; while one is in use another is refused, and none given means that one."""
    with Workflow(DrmaaContext(directory=tmp_path, contact="session=old")) as flow:
        assert flow.error is None
        assert fake.contacts == ["session=old"]
        assert DrmaaContext.attached_to() == "session=old"
        with Workflow(DrmaaContext(directory=tmp_path)) as other:
            assert other.error is None
        refused = Workflow(DrmaaContext(directory=tmp_path, contact="session=new")).error
        assert isinstance(refused, SessionManagementError)
        assert "attached to 'session=old'" in str(refused)
    assert DrmaaContext.attached_to() is None


def test_early_end(fake: FakeLibrary, flow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that comes before its job's submission has returned is kept, not lost."""
    submit = fake.run

    def slow(attributes: Mapping[str, Any]) -> str:
        id = submit(attributes)
        fake.end(id, aborted=True)
        until(lambda: id not in fake.jobs, "the library has told")
        return id

    monkeypatch.setattr(fake, "run", slow)
    assert why(flow.run("true")) == "cancelled"


def test_wait_fails(fake: FakeLibrary, flow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the scheduler does not answer, waiting goes on, and nothing has failed."""
    monkeypatch.setattr(library, "WAIT", 0.1)
    job = flow.run("true")
    fake.ends.put(DrmCommunicationError("drmaa: no answer"))
    fake.end(job.tasks[0].id, aborted=True)
    assert why(job) == "cancelled"


def test_fork(fake: FakeLibrary, flow: Workflow) -> None:
    """In a forked child the library's calls would hang: the error says so at once, and how to start instead."""
    flow.run("true")
    assert fake.calls["run"] == 1
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            words = str(Workflow(DrmaaContext(directory="/nonexistent")).error)
            os.write(writer, words.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        words = pipe.read()
    os.waitpid(child, 0)
    assert "forked" in words
    assert "spawn" in words


# --- jobs -------------------------------------------------------------------------------------------------


def test_array_in_one_call(fake: FakeLibrary, flow: Workflow) -> None:
    """An array is one call of the library, whatever its length, and waiting for it none for each element."""
    array = flow.run_array(range(3, 3003), "true", max_parallel=7)
    assert fake.calls["run_bulk"] == 1
    assert array.tasks[0].tasks[0].id.endswith(".3")  # type: ignore[union-attr]
    assert b"-tc 7" in fake.given[0]["nativeSpecification"]
    fake.end(*list(fake.jobs), aborted=True)
    array.wait(PATIENCE)
    assert fake.calls["status"] < len(array.infos()) / 10


def test_array_that_is_too_long(fake: FakeLibrary, flow: Workflow) -> None:
    """Where an error tells how many elements an array may have, it is submitted in parts, each with our indexes."""
    fake.denied.append(DeniedByDrmsError("drmaa: job rejected: you tried to submit a job with more than 40 tasks"))
    array = flow.run_array(range(100), "true")
    assert fake.calls["run_bulk"] == 4
    assert array.last_error is None
    assert len({task.id for task in array.tasks[0].tasks}) == 100  # type: ignore[union-attr]
    assert sorted(Counter(id.partition(".")[0] for id in fake.jobs).values()) == [20, 40, 40]


def run_element(given: Mapping[str, Any], number: int) -> int:
    """What a machine of the cluster does with one element; the exit status."""
    argv = ["/bin/sh", *(os.fsdecode(word) for word in given["args"] if word != b"-l")]
    return subprocess.run(argv, env={"SGE_TASK_ID": str(number)}, check=False, timeout=PATIENCE).returncode


def test_indexes_of_parts(fake: FakeLibrary, flow: Workflow, tmp_path: Path) -> None:
    """The elements of each part have their own indexes, also those that begin when the last part is submitted."""
    fake.denied.append(DeniedByDrmsError("drmaa: job rejected: you tried to submit a job with more than 2 tasks"))
    array = flow.run_array(range(10, 19, 2), "sh", "-c", f"echo $TASK_ID >>{tmp_path}/ran")
    for part, given in enumerate(fake.given):
        assert [run_element(given, number) for number in (1, 2)[: 1 if part == 2 else 2]].count(0) == 2 - part // 2
    assert (tmp_path / "ran").read_text().split() == ["10", "12", "14", "16", "18"]
    fake.end(*list(fake.jobs), aborted=True)
    array.wait(PATIENCE)


@pytest.mark.parametrize("whole", [True, False])
def test_killed_before_it_begins(fake: FakeLibrary, flow: Workflow, tmp_path: Path, whole: bool) -> None:  # noqa: FBT001
    """Grid Engine may lose a kill at the very beginning: the job's own script sees to it that nothing is run."""
    array = flow.run_array(3, "sh", "-c", f"echo $TASK_ID >>{tmp_path}/ran")
    elements = array.tasks[0]
    (elements if whole else elements.tasks[1]).terminate()  # type: ignore[union-attr]
    statuses = [run_element(fake.given[0], number) for number in (1, 2, 3)]
    assert statuses == ([-9, -9, -9] if whole else [0, -9, 0])
    assert not whole or not (tmp_path / "ran").exists()
    fake.end(*list(fake.jobs), aborted=True)
    array.wait(PATIENCE)


def test_refused_array(fake: FakeLibrary, flow: Workflow) -> None:
    """Another refusal is not tried again."""
    fake.denied.append(DeniedByDrmsError("drmaa: no such queue"))
    with pytest.raises(DeniedByDrmsError, match="no such queue"):
        flow.run_array(5, "true")
    assert fake.calls["run_bulk"] == 1


def test_no_storm(fake: FakeLibrary, flow: Workflow) -> None:
    """Many jobs that only wait cost a bounded number of questions a second."""
    flow.run_array(10_000, "true")
    until(lambda: fake.calls["status"] >= backend.STATES[0], "the first round")
    asked, since = fake.calls["status"], time.monotonic()
    time.sleep(2.5)
    rounds = (time.monotonic() - since) / backend.ROUND[0] + 1
    assert fake.calls["status"] - asked <= rounds * backend.STATES[0]


def test_record_and_library(fake: FakeLibrary, flow: Workflow, tmp_path: Path) -> None:
    """An end is told by both: usage from the library, the status and the machine from the job's own record."""
    task = flow.run("true").tasks[0]
    write_end(tmp_path, task.id, 0)
    fake.ends.put(Waited(task.id, 0, None, aborted=False, usage=USAGE))
    task.wait_terminated(PATIENCE)
    info = task.info()
    assert (info.state, info.exit_status, info.allocated_machines) == (JobState.DONE, 0, ("far",))
    assert info.cpu_time == timedelta(seconds=0.25)
    assert task.output() == "hello"


def test_words_do_not_follow_at_once(
    fake: FakeLibrary, flow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grid Engine loses a signal that comes right after another: the second is told a while later."""
    told: list[float] = []
    monkeypatch.setattr(GridEngine, "rest", 0.5)
    monkeypatch.setattr(fake, "control", lambda *_: told.append(time.monotonic()))
    task = flow.run("true").tasks[0]
    write_end(tmp_path, task.id, 0)
    (end,) = (tmp_path / "jobs" / "wfl").glob("*/end/*")
    end.rename(tmp_path / "away")  # it has begun, no more
    task.suspend()
    task.resume()
    assert told[1] - told[0] >= 0.5
    (tmp_path / "away").rename(end)
    fake.end(task.id, status=0)
    task.wait_terminated(PATIENCE)


def test_late_record(fake: FakeLibrary, flow: Workflow, tmp_path: Path) -> None:
    """On a shared file system the record may come after the library's word: it is waited for."""
    task = flow.run("true").tasks[0]
    fake.ends.put(Waited(task.id, 0, None, aborted=False, usage=USAGE))
    until(lambda: task.id not in fake.jobs, "the library has told")
    assert not task.state.ended
    write_end(tmp_path, task.id, 7)
    task.wait_terminated(PATIENCE)
    assert task.info().exit_status == 7


@pytest.mark.parametrize("late", [False, True])
def test_aborted_is_no_word_about_what_has_run(fake: FakeLibrary, flow: Workflow, tmp_path: Path, late: bool) -> None:  # noqa: FBT001
    """A scheduler that was killed meanwhile knows nothing of a job that has ended; the job's own record does."""
    task = flow.run("true").tasks[0]
    write_end(tmp_path, task.id, 3)
    (end,) = (tmp_path / "jobs" / "wfl").glob("*/end/*")
    if late:
        end.rename(tmp_path / "away")
    fake.end(task.id, aborted=True)
    until(lambda: task.id not in fake.jobs, "the library has told")
    if late:
        (tmp_path / "away").rename(end)
    task.wait_terminated(PATIENCE)
    assert (task.info().exit_status, task.info().sub_state) == (3, "exited")


def test_missing_record(fake: FakeLibrary, flow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that never comes is waited for a bounded time; then the library's word is all there is."""
    monkeypatch.setattr(backend, "RECORD", 0.2)
    task = flow.run("true").tasks[0]
    fake.ends.put(Waited(task.id, 5, None, aborted=False, usage=USAGE))
    task.wait_terminated(PATIENCE)
    assert (task.info().exit_status, task.info().sub_state) == (5, "exited")


def test_consumed_elsewhere(fake: FakeLibrary, flow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody else was told of the end, the job's own record tells it."""
    monkeypatch.setattr(backend, "TELLING", 0.2)
    task = flow.run("true").tasks[0]
    del fake.jobs[task.id]
    write_end(tmp_path, task.id, 0)
    task.wait_terminated(PATIENCE)
    assert task.info().state is JobState.DONE


def test_communication_error_is_unknown(fake: FakeLibrary, tmp_path: Path) -> None:
    """A submission without an answer is neither accepted nor refused: the session settles it."""
    made = DrmaaContext(directory=tmp_path).backend()
    assert isinstance(made, backend.DrmaaBackend)
    made.open(lambda _: None, None)
    fake.denied.append(DrmCommunicationError("drmaa: unable to contact qmaster"))
    with pytest.raises(DrmCommunicationError):
        made.submit([Submission("abc-1", JobTemplate(remote_command="true"), "abc-1")])
    made.close(end=False)


def test_coming_back(fake: FakeLibrary, tmp_path: Path) -> None:
    """A later program finds the jobs by the directory: what has ended by its record, what has not by a question."""
    with Workflow(DrmaaContext(directory=tmp_path / "jobs"), raise_errors=True) as flow:
        over, living = (flow.run("true").tasks[0] for _ in range(2))
    write_end(tmp_path, over.id, 3)
    fake.jobs[living.id] = "running"
    with Workflow(DrmaaContext(directory=tmp_path / "jobs"), raise_errors=True) as flow:
        found = {task.id: task for job in flow.jobs() for task in job.tasks}
        assert set(found) == {over.id, living.id}
        found[over.id].wait_terminated(PATIENCE)
        assert found[over.id].info().exit_status == 3
        assert found[living.id].state is JobState.RUNNING
        write_end(tmp_path, living.id, 0)
        found[living.id].wait_terminated(PATIENCE)
        assert found[living.id].output() == "hello"


def test_held_when_found(fake: FakeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A held job is found held, also when the thread that looks on has asked in the same moment."""
    with Workflow(DrmaaContext(directory=tmp_path / "jobs"), raise_errors=True) as flow:
        (task,) = flow.run("true", submit_as_hold=True).tasks
    fake.jobs[task.id] = "user_on_hold"
    states = backend.DrmaaBackend._states  # noqa: SLF001

    def twice(self: Any, ids: Iterable[str]) -> Any:
        every = list(ids)
        states(self, every)
        return states(self, every)

    monkeypatch.setattr(backend.DrmaaBackend, "_states", twice)
    with Workflow(DrmaaContext(directory=tmp_path / "jobs"), raise_errors=True) as flow:
        (found,) = flow.jobs()
        assert found.state is JobState.QUEUED_HELD


@pytest.mark.parametrize("listed", [True, False])
def test_many_of_an_earlier_program(
    fake: FakeLibrary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listed: bool,  # noqa: FBT001
) -> None:
    """Of many jobs of an earlier program that were told to end the scheduler's list tells; without it, questions do."""
    asked = []

    def jobs(client: Client) -> list[Any]:
        asked.append(client)
        if not listed:
            raise DrmCommunicationError("no qstat here")
        return []

    monkeypatch.setattr(Client, "jobs", jobs)
    monkeypatch.setattr(Client, "accounts", lambda *_: ({}, True))
    monkeypatch.setattr(backend, "ROUND", (0.05, 0.05))
    monkeypatch.setattr(backend, "RECORD", 0.05)
    number = 60
    with Workflow(DrmaaContext(directory=tmp_path / "jobs"), raise_errors=True) as flow:
        for _ in range(number):
            flow.run("true")
    with Workflow(DrmaaContext(directory=tmp_path / "jobs"), raise_errors=True) as flow:
        tasks = [task for job in flow.jobs() for task in job.tasks]
        before = fake.calls["status"]
        monkeypatch.setattr(fake, "end", lambda *ids, **_: [fake.jobs.pop(id) for id in ids])  # told to nobody
        flow.kill_all()
        for task in tasks:
            task.wait_terminated(PATIENCE)
        assert asked
        assert (fake.calls["status"] - before >= number) is not listed
        if listed:
            assert {task.info().sub_state for task in tasks} == {"cancelled"}


def test_control(fake: FakeLibrary, flow: Workflow) -> None:
    """An array of which all is meant is one call; what the library would pass over in silence is an error."""
    array = flow.run_array(500, "true")
    array.kill()
    assert fake.calls["control"] == 1
    array.wait(PATIENCE)
    assert array.tasks[0].info().sub_state == "cancelled"
    with pytest.raises(InvalidStateError, match="has not begun"):
        flow.run("true").suspend()


def test_hold_of_what_runs(fake: FakeLibrary, flow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that somebody suspends is seen suspended; a hold on what runs is no state of its own."""
    monkeypatch.setattr(backend, "ROUND", (0.05, 0.05))
    task = flow.run("true").tasks[0]
    for told, seen in {"running": "running", "user_suspended": "suspended", "user_on_hold": "suspended"}.items():
        fake.jobs[task.id], asked = told, fake.calls["status"]
        until(lambda asked=asked: fake.calls["status"] > asked + 3, "it is asked about")
        until(lambda seen=seen: task.state == seen, f"it is {seen}")
