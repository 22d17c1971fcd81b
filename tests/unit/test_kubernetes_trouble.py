"""Minder: it sleeps until a start_time, a look at events, or the end of patience; and for good where nothing waits."""

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wfl import JobTemplate
from wfl.contexts.kubernetes import jobs as jobs_module
from wfl.contexts.kubernetes import trouble
from wfl.contexts.kubernetes.client import Client
from wfl.contexts.kubernetes.jobs import HELD, MAKING, WAITING, Job, Register, Task
from wfl.contexts.kubernetes.trouble import LOOKS, UNEXPLAINED, Minder, latest
from wfl.drmaa2 import JobInfo, JobState
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, WflError

PATIENCE = 30.0  # seconds that a thread may take on a busy machine
EVENTS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "data" / "kubernetes" / "answers" / "events.json").read_text()
)
NO_ACCOUNT = (
    'FailedCreate: Error creating: pods "no-account-unit000000-17-" is forbidden: error looking up service account '
    'wfl-unit/nobody: serviceaccount "nobody" not found'
)
NO_VOLUME = 'FailedMount: MountVolume.SetUp failed for volume "wfl-in-0" : configmap "nobody" not found'
SUFFIX = "(for 300 s, the context's patience)"
TEMPLATE = JobTemplate(remote_command="true")


class Time:
    """The minder's clock, which a test puts forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds since some beginning."""
        return self.now

    def time(self) -> float:
        """Seconds since 1970."""
        return self.now + 1e9


class Sleep(threading.Event):
    """Says for how long somebody sleeps, who is woken by a call alone."""

    def __init__(self, slept: "SimpleQueue[float | None]") -> None:
        super().__init__()
        self._slept = slept

    def wait(self, timeout: float | None = None) -> bool:
        """Until it is called."""
        self._slept.put(timeout)
        return super().wait(PATIENCE)


class Room:
    """A minder and what is around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time, self.known, self.closed = Time(), Register(), threading.Event()
        self.slept: SimpleQueue[float | None] = SimpleQueue()
        self.events: list[dict[str, Any]] | Exception = []
        self.asked: list[tuple[str, str]] = []
        self.released: list[Job] = []
        self.given_up: list[tuple[list[Task], str]] = []
        self.told: list[JobInfo] = []
        self.ends = True  # what is given up
        before = set(threading.enumerate())
        made = SimpleNamespace(Thread=threading.Thread, Event=lambda: Sleep(self.slept))
        monkeypatch.setattr(trouble, "threading", made)
        monkeypatch.setattr(trouble, "time", self.time)
        monkeypatch.setattr(jobs_module, "time", self.time)
        self.minder = Minder(cast("Client", self), self.known, self.closed)
        self.minder.release, self.minder.give_up, self.minder.tell = self._release, self._give_up, self._tell
        self.first = self.slept.get(timeout=PATIENCE)
        new = set(threading.enumerate()) - before
        (self.thread,) = (thread for thread in new if thread.name == "wfl-kubernetes-minder")

    def list(self, kind: str, *, fields: str = "") -> tuple[list[dict[str, Any]], str]:
        """As the client does."""
        self.asked.append((kind, fields))
        if isinstance(self.events, Exception):
            raise self.events
        return self.events, "1"

    def _release(self, job: Job) -> None:
        self.released.append(job)

    def _give_up(self, tasks: Sequence[Task], words: str) -> bool:
        self.given_up.append((list(tasks), words))
        for task in tasks:
            task.over = self.ends
        return self.ends

    def _tell(self, infos: Iterable[JobInfo]) -> None:
        self.told += infos

    def job(self, name: str = "wfl-k-1", *, indexes: range | None = None, **known: Any) -> Job:
        """One that waits; it has no pod."""
        job = Job(name.partition("-")[2], name, TEMPLATE, indexes, own=True)
        job.prepared = True
        for field, value in known.items():
            setattr(job, field, value)
        self.known.add(job)
        return job

    def task(self, name: str = "wfl-k-1", pod: str | None = None) -> Task:
        """A job's only task, with a pod of this name."""
        task = self.job(name).tasks[None]
        if pod is not None:
            task.pod, task.uid = pod, f"uid of {pod}"
        return task

    def sleeps(self, ahead: float = 0.0) -> float | None:
        """After so many seconds it looks: for how long it sleeps then."""
        while not self.slept.empty():
            self.slept.get()
        self.time.now += ahead
        self.minder.call()
        return self.slept.get(timeout=PATIENCE)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """Its thread ends with the test."""
    made = Room(monkeypatch)
    yield made
    made.closed.set()
    made.minder.call()


# --- sleep ------------------------------------------------------------------------------------------------


def test_it_sleeps_for_good_where_nothing_waits(room: Room) -> None:
    """With no jobs, and with those that are held, made, run, or have ended."""
    assert room.first is None
    room.job("wfl-k-1", suspended=HELD)
    room.job("wfl-k-2", suspended=MAKING)
    room.job("wfl-k-3", prepared=False)
    room.task("wfl-k-4").begun = True
    room.task("wfl-k-5").over = True
    assert room.sleeps() is None
    assert room.sleeps(10_000) is None
    assert room.asked == []


def test_it_ends_with_its_session(room: Room) -> None:
    """And does nothing more."""
    room.job(suspended=WAITING, start=room.time.time() - 1)
    room.closed.set()
    room.minder.call()
    deadline = time.monotonic() + PATIENCE
    while any(thread is room.thread for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "its thread goes on"
        time.sleep(0.002)
    assert room.released == []


def test_an_error_does_not_end_it(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the others are looked after a while later."""
    room.events = RuntimeError("broken")
    room.task()
    assert room.sleeps(UNEXPLAINED) == LOOKS[1]
    assert "kubernetes: looking after what waits" in caplog.text
    room.events = []
    assert room.sleeps(LOOKS[1]) == 20


# --- start times ------------------------------------------------------------------------------------------


def test_a_start_time_is_slept_for(room: Room) -> None:
    """Until then nothing is done; then the job is released, once."""
    job = room.job(suspended=WAITING, start=room.time.time() + 500)
    later = room.job("wfl-k-2", suspended=WAITING, start=room.time.time() + 700)
    assert room.sleeps() == 500
    assert room.sleeps(499) == 1
    assert room.released == []
    assert room.sleeps(1) == 200
    assert room.released == [job]
    room.sleeps(1)
    assert room.released == [job]
    room.sleeps(199)
    assert room.released == [job, later]


def test_what_is_held_is_not_released_by_its_time(room: Room) -> None:
    """Who holds it releases it."""
    room.job(suspended=HELD, start=room.time.time() + 5)
    assert room.sleeps(10) is None
    assert room.released == []


# --- patience ---------------------------------------------------------------------------------------------


def test_patience_ends(room: Room) -> None:
    """A job that cannot start by itself is given up with the cluster's words; not before."""
    task = room.task(pod="p")
    room.minder.note(task, "ErrImagePull: none", "ErrImagePull: none")
    assert room.sleeps() == 300
    room.sleeps(299.5)
    assert room.given_up == []
    room.sleeps(0.5)
    assert room.given_up == [([task], f"ErrImagePull: none {SUFFIX}")]
    assert room.sleeps() is None


def test_it_is_called_when_something_gets_stuck(room: Room) -> None:
    """Or it would sleep for good."""
    room.minder.note(room.task(pod="p"), "ErrImagePull: none", "ErrImagePull: none")
    assert room.slept.get(timeout=PATIENCE) == 300


def test_patience_counts_from_the_first_word(room: Room) -> None:
    """A node says by turns that it fails, and that it tries again."""
    task = room.task(pod="p")
    for words in ("ErrImagePull: none", "ImagePullBackOff: none", "ErrImagePull: none"):
        room.minder.note(task, words, words)
        room.time.now += 100
    room.sleeps()
    assert [words for _, words in room.given_up] == [f"ErrImagePull: none {SUFFIX}"]


def test_those_of_the_same_words_are_given_up_together(room: Room) -> None:
    """One request ends many."""
    tasks = [room.task(f"wfl-k-{number}", pod=f"p{number}") for number in range(4)]
    for task in tasks:
        words = "ErrImagePull: other" if task is tasks[3] else "ErrImagePull: none"
        room.minder.note(task, words, words)
    room.sleeps(300)
    assert room.given_up == [
        (tasks[:3], f"ErrImagePull: none {SUFFIX}"),
        (tasks[3:], f"ErrImagePull: other {SUFFIX}"),
    ]


def test_what_goes_on_is_not_given_up(room: Room) -> None:
    """An image that came after all: the pod is just on its way again."""
    task = room.task(pod="p")
    room.minder.note(task, "ErrImagePull: none", "ErrImagePull: none")
    room.minder.note(task, None, None)
    room.sleeps(400)
    assert room.given_up == []


def test_what_began_is_not_given_up(room: Room) -> None:
    """However long it was stuck before."""
    task = room.task(pod="p")
    room.minder.note(task, "ErrImagePull: none", "ErrImagePull: none")
    task.begun = True
    assert room.sleeps(400) is None
    assert room.given_up == []


def test_what_no_machine_has_room_for_may_wait_for_ever(room: Room) -> None:
    """Its words are known, so nothing more is asked, and no patience ends."""
    task = room.task(pod="p")
    room.minder.note(task, None, "Unschedulable: no room")
    assert room.sleeps(100_000) is None
    assert (room.given_up, room.asked) == ([], [])


# --- events -----------------------------------------------------------------------------------------------


def test_what_waits_without_a_word_is_looked_for_in_events(room: Room) -> None:
    """Not at once; for a Job without a pod under the Job's name. What is found is told, and is to be cured."""
    room.events = EVENTS
    task = room.task("no-account-unit000000-17")
    assert room.sleeps() == UNEXPLAINED
    assert room.sleeps(4) == 1
    assert room.asked == []
    room.sleeps(1)
    assert room.asked == [("events", "type=Warning")]
    (info,) = room.told
    assert (info.id, info.state, info.annotation) == (task.id, JobState.QUEUED, NO_ACCOUNT)
    assert room.sleeps() == 10
    room.sleeps(299)
    assert room.given_up == []
    room.sleeps(1)
    assert room.given_up == [([task], f"{NO_ACCOUNT} {SUFFIX}")]


def test_what_cannot_be_ended_is_tried_again(room: Room) -> None:
    """Not at once: who refused it may do so for long."""
    task = room.task()
    room.ends = False
    room.minder.note(task, "ErrImagePull: none", "ErrImagePull: none")
    assert room.sleeps(300) == 5
    assert room.sleeps(5) == 5
    room.ends = True
    assert room.sleeps(5) is None
    assert len(room.given_up) == 3


def test_words_of_events_may_change(room: Room) -> None:
    """What is cured by time counts for nothing when it is followed by what is not, and the other way round."""
    task = room.task("x")
    hiccup, quota = "FailedCreate: webhook does not answer", "FailedCreate: exceeded quota: q"
    for said, stuck in ((quota, False), (hiccup, True), (quota, False)):
        room.events = [event("FailedCreate", said.partition(": ")[2], lastTimestamp="2026-11-22T06:28:06Z")]
        room.sleeps(60)
        assert (task.words, task.stuck is not None) == (said, stuck)
    assert [info.annotation for info in room.told] == [quota, hiccup, quota]


def test_a_new_job_s_reason_is_looked_for_soon(room: Room) -> None:
    """However long others have waited."""
    room.task()
    for ahead in (5, 10, 20, 40):
        room.sleeps(ahead)
    room.task("wfl-k-2")
    assert room.sleeps() == 5
    asked = len(room.asked)
    assert room.sleeps(5) == 10
    assert len(room.asked) == asked + 1


def test_a_pods_events_are_its_own(room: Room) -> None:
    """A volume that cannot be mounted is said nowhere else."""
    room.events = EVENTS
    task = room.task("no-volume-unit000000-15", pod="no-volume-unit000000-15-vm7nf")
    room.sleeps(UNEXPLAINED)
    assert [info.annotation for info in room.told] == [NO_VOLUME]
    room.sleeps(300)
    assert room.given_up == [([task], f"{NO_VOLUME} {SUFFIX}")]


def test_what_an_event_said_may_have_passed(room: Room) -> None:
    """The pod's volume came, and its image is being pulled: it is not given up, nor where that is not known."""
    late, later = "2026-11-22T23:00:00Z", "2026-11-22T23:00:01Z"
    task = room.task("no-volume-unit000000-15", pod="x")
    room.events = [event("FailedMount", "none", lastTimestamp=late)]
    room.sleeps(UNEXPLAINED)
    assert task.words == "FailedMount: none"
    room.events = DrmCommunicationError("away")
    assert room.sleeps(300) == 5
    assert room.given_up == []
    room.events = [
        event("FailedMount", "none", lastTimestamp=late),
        event("Pulling", "Pulling image", lastTimestamp=later),
    ]
    room.sleeps()
    assert not any((task.words, task.stuck, room.given_up))
    assert room.asked[-1] == ("events", "")


def test_what_an_event_said_holds_until_the_pod_says_something(room: Room) -> None:
    """A pod whose volume is missing says nothing itself; one that gets on says so."""
    room.events = EVENTS
    task = room.task("no-volume-unit000000-15", pod="no-volume-unit000000-15-vm7nf")
    room.sleeps(UNEXPLAINED)
    room.minder.note(task, None, None)
    assert task.words == NO_VOLUME
    room.minder.note(task, "ErrImagePull: none", "ErrImagePull: none")
    assert task.words == "ErrImagePull: none"
    room.minder.note(task, None, None)
    assert not any((task.words, task.stuck))


def test_a_pod_that_found_room_is_looked_after_again(room: Room) -> None:
    """That it waited for a machine once does not explain why it waits there."""
    room.events = EVENTS
    task = room.task("no-volume-unit000000-15", pod="no-volume-unit000000-15-vm7nf")
    room.minder.note(task, None, "Unschedulable: no room")
    room.sleeps(100)
    assert room.asked == []
    room.minder.note(task, None, None)
    room.sleeps()
    assert [info.annotation for info in room.told] == [NO_VOLUME]


def test_a_quota_does_not_end_a_job(room: Room) -> None:
    """Its words are shown; others' jobs end, and then it goes on."""
    room.events = EVENTS
    room.task("quota-unit000000-25")
    room.sleeps(UNEXPLAINED)
    (info,) = room.told
    assert (info.annotation or "").endswith("exceeded quota: few, requested: pods=1, used: pods=1, limited: pods=1")
    room.sleeps(100_000)
    assert room.given_up == []


def test_events_are_looked_at_ever_less_often(room: Room) -> None:
    """One question for all that waits; at last one a minute."""
    for number in range(50):
        room.task(f"wfl-k-{number}")
    pauses = []
    ahead: float | None = UNEXPLAINED
    for _ in range(6):
        assert ahead is not None
        ahead = room.sleeps(ahead)
        pauses.append(ahead)
    assert pauses == [10, 20, 40, 60, 60, 60]
    assert len(room.asked) == 6


def test_a_new_job_does_not_wait_for_the_pause_of_others(room: Room) -> None:
    """When nothing waited meanwhile, looks are frequent again."""
    task = room.task()
    for ahead in (5, 10, 20, 40):
        room.sleeps(ahead)
    task.begun = True
    assert room.sleeps(100) is None
    room.task("wfl-k-2")
    assert room.sleeps() == UNEXPLAINED
    assert room.sleeps(UNEXPLAINED) == 10


@pytest.mark.parametrize("error", [DeniedByDrmsError("the right to list events is missing")])
def test_events_that_may_not_be_seen(room: Room, error: WflError, caplog: pytest.LogCaptureFixture) -> None:
    """That is said once; the jobs wait on."""
    room.events = error
    room.task()
    for ahead in (5, 10, 20):
        room.sleeps(ahead)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [f"kubernetes: why 1 jobs wait is not known: {error}"]
    assert len(room.asked) == 3


def test_elements_without_a_pod_wait_for_their_turn(room: Room) -> None:
    """Of an array some of whose elements have pods only these are looked after."""
    room.events = EVENTS
    job = room.job("no-volume-unit000000-15", indexes=range(1, 4))
    job.tasks[1].pod, job.tasks[1].uid = "no-volume-unit000000-15-vm7nf", "u"
    room.sleeps(UNEXPLAINED)
    assert [(info.id, info.annotation) for info in room.told] == [("volume-unit000000-15.2", NO_VOLUME)]


def test_all_elements_wait_for_what_their_job_lacks(room: Room) -> None:
    """Where none has a pod, the Job's events are about all of them."""
    room.events = EVENTS
    job = room.job("no-account-unit000000-17", indexes=range(3))
    room.sleeps(UNEXPLAINED)
    assert {info.id for info in room.told} == {task.id for task in job.tasks.values()}
    room.sleeps(300)
    assert room.given_up == [(list(job.tasks.values()), f"{NO_ACCOUNT} {SUFFIX}")]


def event(reason: str, message: str, **times: str) -> dict[str, Any]:
    """One, on an object that is called x."""
    return {"reason": reason, "message": message, "involvedObject": {"name": "x"}, "metadata": {}, **times}


def test_the_last_words_are_taken() -> None:
    """By their time, in whichever field it is; of events that mean something, in one line."""
    said = [
        event("FailedMount", "later\nthan", lastTimestamp="2026-11-22T06:28:07Z"),
        event("FailedMount", "first", lastTimestamp="2026-11-22T06:28:06Z"),
        event("FailedScheduling", "no room", lastTimestamp="2026-11-22T06:29:06Z"),
    ]
    assert latest(said) == {"x": ("2026-11-22T06:28:07Z", "FailedMount: later than")}
    new = event("FailedCreate", "new", eventTime="2026-11-22T06:28:08.5Z")
    assert latest([*said, new]) == {"x": ("2026-11-22T06:28:08.5Z", "FailedCreate: new")}
    told = {name: words for name, (_, words) in latest(EVENTS).items()}
    assert "used: pods=1" in told.pop("quota-unit000000-25")
    assert told == {"no-account-unit000000-17": NO_ACCOUNT, "no-volume-unit000000-15-vm7nf": NO_VOLUME}


def test_many_that_events_explain_cost_one_look(room: Room) -> None:
    """However different their words are."""
    tasks = [room.task(f"wfl-k-{number}", pod=f"x{number}") for number in range(9)]
    said = [event("FailedMount", f"volume {number}", lastTimestamp="2026-11-22T06:28:06Z") for number in range(9)]
    room.events = [{**one, "involvedObject": {"name": f"x{number}"}} for number, one in enumerate(said)]
    room.sleeps(UNEXPLAINED)
    asked = len(room.asked)
    room.sleeps(300)
    assert [given for given, _ in room.given_up] == [[task] for task in tasks]
    assert room.asked[asked:] == [("events", "")]


def test_a_start_that_comes_while_its_job_is_made(room: Room) -> None:
    """It is released when it is there."""
    job = room.job(suspended=WAITING, start=room.time.time() - 1)
    job.prepared = False
    room.sleeps()
    assert room.released == []
    job.prepared = True
    room.sleeps()
    assert room.released == [job]
