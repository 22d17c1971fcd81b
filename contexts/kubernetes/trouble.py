"""What time brings for jobs that have not begun: their start_time, the cluster's reasons, and the end of patience."""

from __future__ import annotations

import logging
import threading
import time
from math import inf
from typing import TYPE_CHECKING, Any

from wfl.contexts.kubernetes.jobs import WAITING
from wfl.drmaa2 import JobState, fact
from wfl.errors import WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from wfl.backend import Report
    from wfl.contexts.kubernetes.client import Client
    from wfl.contexts.kubernetes.jobs import Job, Register, Task

log = logging.getLogger("wfl")

UNEXPLAINED = 5.0
"""Seconds that a job waits without a reason before the cluster's events are looked at."""
LOOKS = (5.0, 60.0)
"""Shortest and longest pause in seconds between two looks at events: one for all jobs."""
RATHER = 0.1
"""Shortest pause in seconds between two looks at what waits."""
_MEANT = ("FailedCreate", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
"""Events that tell why a pod does not come, or not on; the rest is in the pods themselves."""
_GOES_ON = ("Pulling", "Pulled", "Created", "Started")
"""Events that come after its volumes are there."""
_MAY_PASS = ("exceeded quota", "timed out waiting", "object has been modified")
"""Words of events that time alone may make good."""


class Minder:
    """A thread that sleeps until something is due, and for good where nothing waits."""

    release: Callable[[Job], None]
    give_up: Callable[[Sequence[Task], str], bool]
    tell: Report

    def __init__(self, client: Client, known: Register, closed: threading.Event) -> None:
        self._client, self._known, self._closed = client, known, closed
        self._called = threading.Event()
        self._looked, self._pause = -inf, LOOKS[0]
        self._refused = False
        threading.Thread(target=self._run, name="wfl-kubernetes-minder", daemon=True).start()

    def call(self) -> None:
        """Something new waits."""
        self._called.set()

    def note(self, task: Task, stuck: str | None, words: str | None) -> None:
        """What a pod says of why it waits; `stuck`: it will not start by itself."""
        if words is None and task.explained:
            return  # what an event said holds until the pod says something itself
        task.words, task.explained = words, False
        if stuck is None:
            task.stuck = None
        elif task.stuck is None:
            task.stuck = time.monotonic()
            self.call()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                wait = self._look()
            except Exception:  # it is to go on for the others
                log.exception("kubernetes: looking after what waits")
                wait = LOOKS[1]
            self._called.wait(None if wait == inf else wait)
            self._called.clear()
            self._closed.wait(RATHER)  # thousands may be submitted at once

    def _look(self) -> float:
        """Do what is due; seconds until something is again."""
        now, soonest = time.monotonic(), inf
        unexplained: list[Task] = []
        doomed: dict[str, list[Task]] = {}
        for job in list(self._known.jobs.values()):
            if job.start is not None and job.suspended == WAITING and job.prepared:
                due = job.start - time.time()
                if due <= 0:
                    job.start = None
                    self.release(job)
                else:
                    soonest = min(soonest, due)
            if job.suspended is not None or not job.prepared:
                continue
            for task in self._waiting(job):
                if task.stuck is not None:
                    left = task.stuck + job.patience - now
                    if left <= 0:
                        words = f"{task.words or 'it cannot start'} (for {job.patience:g} s, the context's patience)"
                        doomed.setdefault(words, []).append(task)
                    else:
                        soonest = min(soonest, left)
                if task.words is None or task.explained:
                    unexplained.append(task)
        soonest = min(soonest, self._end(doomed))
        return min(soonest, self._explain([task for task in unexplained if not task.over], now))

    def _end(self, doomed: Mapping[str, Sequence[Task]]) -> float:
        """Give up what has waited too long, by its words; seconds until that is to be tried again."""
        try:
            self._look_again(task for tasks in doomed.values() for task in tasks)
        except WflError as error:
            log.debug("kubernetes: whether what waits has got on is not known: %s", error)
            return LOOKS[0]
        left = 0
        for words, all_of_them in doomed.items():
            tasks = [task for task in all_of_them if task.stuck is not None]
            if tasks and not self.give_up(tasks, words):
                left += 1
        return LOOKS[0] if left else inf

    def _look_again(self, tasks: Iterable[Task]) -> None:
        """What an event has said of these may have passed: it is another event that tells that, and nothing else."""
        explained = [task for task in tasks if task.explained and task.pod]
        if not explained:
            return
        events, _ = self._client.list("events")
        stopped, goes = latest(events), latest(events, _GOES_ON)
        for task in explained:
            name = task.pod or ""
            if name in goes and goes[name][0] > stopped.get(name, ("", ""))[0]:
                task.words, task.stuck, task.explained = None, None, False

    @staticmethod
    def _waiting(job: Job) -> list[Task]:
        """Its tasks that have not begun; of an array, while some have pods, only those with one of their own."""
        tasks = [task for task in job.tasks.values() if not (task.begun or task.over)]
        some = any(task.uid for task in job.tasks.values())
        return [task for task in tasks if task.uid] if job.is_array and some else tasks

    def _explain(self, tasks: Sequence[Task], now: float) -> float:
        """Look for the reasons of those that have waited long enough; seconds until the next look."""
        if not tasks:
            self._pause = LOOKS[0]
            return inf
        long = [task for task in tasks if now - task.since >= UNEXPLAINED]
        soon = min((UNEXPLAINED - (now - task.since) for task in tasks if now - task.since < UNEXPLAINED), default=inf)
        if not long:
            return soon
        new = any(task.since + UNEXPLAINED > self._looked for task in long)
        pause = LOOKS[0] if new else self._pause
        if now - self._looked >= pause:
            self._looked, pause = now, min(2 * pause, LOOKS[1])
            self._pause = pause
            self._ask(long)
        return min(soon, max(0.1, self._looked + pause - now))

    def _ask(self, tasks: Sequence[Task]) -> None:
        try:
            events, _ = self._client.list("events", fields="type=Warning")
        except WflError as error:
            if not self._refused:
                log.warning("kubernetes: why %d jobs wait is not known: %s", len(tasks), error)
            self._refused = True
            return
        said = latest(events)
        facts = []
        for task in tasks:
            _, words = said.get(task.pod or "") or said.get(task.job.name) or ("", None)
            if words is not None and words != task.words:
                task.words, task.explained = words, True
                passes = any(text in words for text in _MAY_PASS)
                task.stuck = None if passes else task.stuck or time.monotonic()
                facts.append(fact(id=task.id, state=JobState.QUEUED, annotation=words))
        self.tell(facts)


def latest(events: Sequence[Mapping[str, Any]], reasons: Collection[str] = _MEANT) -> dict[str, tuple[str, str]]:
    """The last of these events on each object, by its name: when it was, and its words."""
    found: dict[str, tuple[str, str]] = {}
    for event in events:
        if event.get("reason") not in reasons:
            continue
        when = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or ""
        name = event["involvedObject"].get("name", "")
        if name not in found or found[name][0] <= when:
            found[name] = (when, " ".join(f"{event['reason']}: {event.get('message', '')}".split()))
    return found
