"""What is known here of the session's Jobs and of their tasks: a job has one, an array one for each element."""

from __future__ import annotations

import os
import threading
import time
from math import inf
from typing import TYPE_CHECKING, Any

from wfl.backend import INDEX
from wfl.contexts.kubernetes import facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from wfl.backend import Stream
    from wfl.contexts.kubernetes.output import Output
    from wfl.contexts.spool import OutputFile
    from wfl.drmaa2 import JobTemplate

    Object = Mapping[str, Any]

KEY = "wfl/key"
"""Label of Jobs and pods: the session's key for a job or an array."""
PATIENCE = "wfl/patience"
"""The annotation for how long, in seconds, what cannot start is waited for, whichever program sees to that."""
SUSPENDED = "wfl/suspended"
"""Annotation of a Job that is suspended: one of the reasons below."""
KUEUE = "kueue.x-k8s.io/queue-name"
"""Label of a Job that Kueue suspends until its queue has room for it."""
MAKING, HELD, WAITING, PAUSED, CANCELLED = "making", "held", "waiting", "paused", "cancelled"


def suspension(found: Object) -> str | None:
    """Why a Job is suspended, if it is; by others than wfl that is like being held."""
    told = found["metadata"]
    if not found["spec"].get("suspend"):
        return None
    why: str | None = (told.get("annotations") or {}).get(SUSPENDED)
    return why or (None if KUEUE in told.get("labels", {}) else HELD)


class Task:
    """One job, or one element of an array, as its pod shows it."""

    __slots__ = (
        "begun",
        "born",
        "busy",
        "dismissed",
        "ended",
        "explained",
        "fed",
        "finishing",
        "going",
        "id",
        "index",
        "job",
        "killed",
        "number",
        "output",
        "over",
        "peeked",
        "placed",
        "pod",
        "reaped",
        "since",
        "streams",
        "stuck",
        "supplied",
        "troubled",
        "uid",
        "whole",
        "words",
    )

    def __init__(self, job: Job, id: str, index: int | None, number: int | None) -> None:
        self.job, self.id, self.index, self.number = job, id, index, number
        self.pod: str | None = None  # its latest pod's name
        self.uid = ""
        self.born = ""
        self.dismissed: frozenset[str] = frozenset()  # pods whose ends are not the task's
        self.going = False  # its pod was told to end, with all the time that it has for that
        self.begun = False  # its command was seen running, in whatever pod
        self.over = self.killed = self.finishing = self.reaped = False
        self.placed = False  # its pod has a node
        self.fed = -inf  # when its files were last put into its pod
        self.troubled = 0.0  # since when its output and files cannot be had
        self.supplied = False  # they are there
        self.since = time.monotonic()  # it waits
        self.ended = -inf  # when its end was told, in this program
        self.stuck: float | None = None  # since when it waits for something that somebody must do
        self.words: str | None = None  # why it waits
        self.explained = False  # by an event, not by its pod
        self.output: Output | None = None
        self.streams: dict[str, OutputFile] = {}  # of those that are in files, what is here of them
        self.peeked = -inf  # when one was looked at while it was written
        self.busy = False  # somebody reads it while it is written
        self.whole = False  # all of it is here

    @property
    def has_pod(self) -> bool:
        """Whether there is one whose end is the task's."""
        return bool(self.uid) and self.uid not in self.dismissed

    def path(self, field: str) -> str | None:
        """Where on this side a stream of output goes, if it goes anywhere."""
        given: str | None = getattr(self.job.template, field)
        if not given:
            return None
        return given if self.index is None else given.replace(INDEX, str(self.index))

    def file(self, stream: Stream) -> str | None:
        """The file that a stream is written to on this side; None where it is kept, or thrown away, or in the other."""
        path = self.path("output_path" if stream == "stdout" else "error_path")
        if path == os.devnull or (stream == "stderr" and stream not in self.job.streams):
            return None
        return path

    def discards(self, stream: Stream) -> bool:
        """Whether this stream goes nowhere."""
        return self.path("output_path" if stream == "stdout" else "error_path") == os.devnull


class Job:
    """One object of the kind Job."""

    __slots__ = (
        "asked",
        "copies",
        "extra",
        "fetched",
        "foreign",
        "key",
        "name",
        "own",
        "patience",
        "prepared",
        "start",
        "stays",
        "streams",
        "suspended",
        "tasks",
        "template",
    )

    def __init__(self, key: str, name: str, template: JobTemplate, indexes: range | None, *, own: bool) -> None:
        self.key, self.name, self.template = key, name, template
        self.own = own  # made by this program, and ended with it
        self.asked = time.monotonic()
        self.prepared = not own  # all is made that it needs
        self.patience = 300.0  # seconds
        self.suspended: str | None = None
        self.stays: str | None = None  # why it stays suspended when all is made
        self.start: float | None = None  # when it is to be released, as time.time()
        self.extra: tuple[dict[str, Any], ...] = ()
        self.copies: Mapping[str, str] = {}
        self.fetched: Mapping[str, str] = {}
        self.streams: Mapping[str, str] = {}
        self.foreign = False  # what is to be fetched, another program knows where to
        self.tasks: dict[int | None, Task] = {}
        if indexes is None:
            self.tasks[None] = Task(self, key, None, None)
        for number, index in enumerate(indexes or ()):
            self.tasks[number] = Task(self, f"{key}.{index}", index, number)

    @property
    def is_kueues(self) -> bool:
        """Whether Kueue suspends and releases it."""
        return "kueue_queue" in (self.template.extensions or {})

    @property
    def is_array(self) -> bool:
        """Whether it has elements."""
        return None not in self.tasks

    def wanted(self, task: Task) -> dict[str, str]:
        """What is to be fetched from a task's pod at its end, by target on this side."""
        if task.index is None:
            return dict(self.fetched)
        return {target.replace(INDEX, str(task.index)): source for target, source in self.fetched.items()}

    def unended(self) -> list[Task]:
        """The tasks that have not ended."""
        return [task for task in self.tasks.values() if not task.over]


class Register:
    """All Jobs of the session that are known here, and their tasks by id. Any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.jobs: dict[str, Job] = {}
        self.tasks: dict[str, Task] = {}

    def add(self, job: Job) -> None:
        """Take it in, unless it is known already."""
        with self.lock:
            if job.key not in self.jobs:
                self.jobs[job.key] = job
                self.tasks.update({task.id: task for task in job.tasks.values()})

    def forget(self, job: Job) -> None:
        """It does not exist."""
        with self.lock:
            self.jobs.pop(job.key, None)
            for task in job.tasks.values():
                self.tasks.pop(task.id, None)

    def of_pod(self, pod: Object) -> Task | None:
        """Whose pod this is."""
        labels = pod["metadata"].get("labels", {})
        job, number = self.jobs.get(labels.get(KEY, "")), labels.get(facts.INDEX, "")
        if job is None:
            return None
        return job.tasks.get(int(number) if job.is_array and number.isdecimal() else None)

    def of_ids(self, ids: Iterable[str]) -> dict[Job, list[Task]]:
        """These tasks by their Jobs."""
        found: dict[Job, list[Task]] = {}
        for id in ids:
            if (task := self.tasks.get(id)) is not None:
                found.setdefault(task.job, []).append(task)
        return found

    def unended(self) -> Iterator[Task]:
        """All tasks that have not ended."""
        with self.lock:
            jobs = list(self.jobs.values())
        return (task for job in jobs for task in job.tasks.values() if not task.over)
