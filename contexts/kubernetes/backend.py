"""Kubernetes as an execution system: each job is a Job that bears its key, and so is each array.

One watch of pods tells of all ends, one of Jobs of what no pod tells. What both leave out, since nobody listened, the
list that comes before each watch makes good. No thread waits for a job; what costs requests is done in a few of them.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property, partial
from math import inf
from typing import TYPE_CHECKING, Any

from wfl.backend import Action, Answer, Backend, Known, Limits, Report, Stream, Submission, ended
from wfl.contexts import checks
from wfl.contexts.guard import Guard
from wfl.contexts.kubernetes import facts, files, template
from wfl.contexts.kubernetes.answers import PASSING
from wfl.contexts.kubernetes.client import REQUESTS, Client, ExistsError, NotThereError, UnsentError
from wfl.contexts.kubernetes.ending import (
    KILL,
    cancel,
    end_program,
    kill_inside,
    pieces,
    remove_jobs,
    remove_pods,
    watch,
)
from wfl.contexts.kubernetes.jobs import (
    CANCELLED,
    HELD,
    KEY,
    MAKING,
    PATIENCE,
    PAUSED,
    SUSPENDED,
    WAITING,
    Job,
    Register,
    Task,
    suspension,
)
from wfl.contexts.kubernetes.results import Results
from wfl.contexts.kubernetes.trouble import Minder
from wfl.contexts.kubernetes.volumes import is_local
from wfl.contexts.kubernetes.watching import Watch
from wfl.drmaa2 import Capability, JobInfo, JobState, JobTemplate, SubState, fact
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidSessionError,
    InvalidStateError,
    UnsupportedOperationError,
    WflError,
)
from wfl.threads import Clock, Pool, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from wfl.contexts.kubernetes.settings import Place
    from wfl.contexts.undertaker import Undertaker

    Object = Mapping[str, Any]
    _Request = tuple[Sequence[Job], Callable[[Sequence[Job], int], None]]

log = logging.getLogger("wfl")

AWHILE = 10.0
"""Seconds that closing waits for what is under way, and opening for the first list."""
TERMINATE = 3600
"""Seconds of grace for what is asked to end: who asks kills it when the time is up."""
AGAIN = 1.0
"""Seconds after which what failed for want of an answer is tried again."""
STOPPING = 4
"""Requests at once that end many jobs, each some of them."""
SHOWN = 5
"""Jobs that a line for people names one by one."""


class KubernetesBackend(Backend):
    """One session's Jobs in one namespace."""

    name = "kubernetes"
    capabilities = frozenset(
        {
            Capability.BULK_JOBS_MAXPARALLEL,
            Capability.HOLD,
            Capability.JT_ACCOUNTINGID,
            Capability.JT_MAXSLOTS,
            Capability.JT_STAGING,
            Capability.MAX_PARALLEL,
            Capability.NATIVE_ARRAYS,
            Capability.START_TIME,
            Capability.TERMINATE,
            Capability.OUTPUT,
            Capability.STREAM,
            Capability.REATTACH,
            Capability.DETACH,
        }
    )
    fields = template.FIELDS
    extensions = template.EXTENSIONS
    index_fields = template.INDEX_FIELDS
    limits = Limits(submissions=1)  # the client sees to how many requests there are at once

    def __init__(
        self,
        place: Place,
        session: str,
        *,
        defaults: template.Defaults,
        detach: bool,
        patience: float,
        suspend_restarts: bool,
    ) -> None:
        if suspend_restarts:
            self.capabilities = self.capabilities | {Capability.SUSPEND}
        self._where, self._session, self._defaults = place, session, defaults
        self._shell = defaults.helper_shell or "sh"  # of containers for files; jobs of others may have them
        self._detach, self._patience = detach, patience
        self._program = os.urandom(8).hex()
        self._known = Register()
        self._never: set[str] = set()
        self._lock = threading.Lock()
        self._watches: list[Watch] = []
        self._closed = threading.Event()
        self._guard = Guard(self.name, "Jobs", self._closed, None if detach else self._start_helper)
        self._pool = Pool("wfl-kubernetes", REQUESTS)
        self._porters = Pool("wfl-kubernetes-files", REQUESTS // 2)  # ends do not wait for files of others
        self._clock = Clock("wfl-kubernetes-clock")
        self._priorities: dict[int, str] = {}

    def open(self, report: Report, directory: Path | None) -> None:
        """Greet the API server: what cannot be reached is said at once."""
        self._report = report
        self._keep = directory is not None
        self._client = Client(self._where)
        self._results = Results(self._client, self._shell, self._closed)
        log.debug("kubernetes: %s at %s", self._client.version(), self._client.url)

    @cached_property
    def _selector(self) -> str:
        return f"wfl/session={template.label_value(self._session)}"

    # -- submitting --

    def resolve(self, given: JobTemplate) -> JobTemplate:
        """With the paths of this side absolute, whatever directory is gone to before they are used."""
        return checks.from_here(given, is_local)

    def check(self, template_: JobTemplate, indexes: range | None = None) -> None:
        """Refuse by field what no Job can be made of."""
        super().check(template_)
        template.check(template_, self._defaults, indexes)

    def submit(self, submissions: Sequence[Submission]) -> Sequence[str | WflError]:
        """Create one Job, and what belongs to it (limits.submissions is 1)."""
        return [outcome for submission in submissions for outcome in self._outcomes(submission, None, None)]

    def submit_array(
        self, submission: Submission, indexes: range, max_parallel: int | None
    ) -> Sequence[str | WflError]:
        """Create one Indexed Job; an element's id is the array's with its index."""
        return self._outcomes(submission, indexes, max_parallel)

    def _outcomes(
        self, submission: Submission, indexes: range | None, max_parallel: int | None
    ) -> Sequence[str | WflError]:
        try:
            self.check(submission.template, indexes)
            with self._guard.on_its_way():
                job = self._run(submission, indexes, max_parallel)
        except DrmCommunicationError:
            raise
        except WflError as error:
            return [error] * (1 if indexes is None else len(indexes))
        return [task.id for task in job.tasks.values()]

    def _run(self, submission: Submission, indexes: range | None, max_parallel: int | None) -> Job:
        self._listen()
        self._guard.watch()
        given = submission.template
        identity = template.Identity(
            key=submission.key,
            session=self._session,
            program=self._program,
            job_id=submission.job_id,
            index=submission.index,
            detach=self._detach,
            patience=self._patience,
        )
        made = template.manifests(
            given,
            identity,
            self._defaults,
            indexes=indexes,
            max_parallel=max_parallel,
            priority_class=self._priority_class(given),
        )
        job = Job(submission.key, made.job["metadata"]["name"], given, indexes, own=True)
        job.extra, job.copies, job.fetched, job.streams = made.extra, made.copies, made.fetched, made.streams
        job.patience = self._patience
        job.stays = made.suspended
        job.suspended = MAKING if made.extra else made.suspended
        job.start = _start_of(given) if made.suspended == WAITING else None
        self._known.add(job)
        try:
            self._create(job, made.job)
        except DrmCommunicationError:
            raise
        except WflError:
            self._known.forget(job)
            raise
        return job

    def _create(self, job: Job, body: Object) -> None:
        job.asked = time.monotonic()
        try:
            created = self._create_once(job, body)
        except WflError as error:
            if isinstance(error, UnsentError) or not isinstance(error, DrmCommunicationError):
                job.asked = -inf  # it is certain that there is none
            raise
        self._complete(job, created)

    def _create_once(self, job: Job, body: Object) -> Object:
        """A request that was repeated on its way may find its own Job."""
        try:
            return self._client.create("jobs", body)
        except ExistsError:
            found = self._client.get("jobs", job.name)
            if found["metadata"].get("labels") != body["metadata"]["labels"]:
                raise
            return found

    def _complete(self, job: Job, created: Object) -> None:
        """Make what a Job needs and owns, then let it go, or stay held. Nothing is harmed by a second time."""
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": created["metadata"]["uid"]}
        try:
            for body in job.extra:
                owned = {**body, "metadata": {**body["metadata"], "ownerReferences": [owner]}}
                with suppress(ExistsError):
                    self._client.create(f"{body['kind'].lower()}s", owned)
            if suspension(created) == MAKING:  # else that was done before, and its answer was lost
                self._client.patch("jobs", job.name, _completed(job))
            if job.suspended == MAKING:
                job.suspended = job.stays
            job.prepared = True
        except DrmCommunicationError:
            raise
        except WflError:
            self._known.forget(job)  # its end is told by who asked for it
            self._client.delete("jobs", job.name)
            raise
        made = facts.when(created["metadata"].get("creationTimestamp"))  # as the cluster has it
        self._report([fact(id=task.id, submission_time=made) for task in job.tasks.values()])
        self._report_waiting(job)
        self._minder.call()

    def _report_waiting(self, job: Job) -> None:
        """How it stands with what has no pod."""
        state = JobState.QUEUED_HELD if job.suspended == HELD else JobState.QUEUED
        words = "it waits for its start_time" if job.suspended == WAITING else None
        waiting = [task for task in job.unended() if not (task.begun or task.has_pod)]
        self._report([fact(id=task.id, state=state, annotation=words) for task in waiting])

    def _priority_class(self, given: JobTemplate) -> str | None:
        """The class of this priority: Kubernetes knows numbers by their names alone."""
        if given.priority is None:
            return None
        if given.priority not in self._priorities:
            found, _ = self._client.list("priorityclasses")
            self._priorities = {one["value"]: one["metadata"]["name"] for one in found}
        classes = self._priorities
        if given.priority not in classes:
            there = ", ".join(f"{value} ({name})" for value, name in sorted(classes.items()))
            msg = f"priority is {given.priority}, and no PriorityClass has that value; there are {there or 'none'}"
            raise InvalidArgumentError(msg)
        return classes[given.priority]

    def _start_helper(self, lost: Callable[[], None]) -> Undertaker:
        place = self._results.directory()
        shell = self._defaults.shell
        return watch(self._client.place, self._program, keep=self._keep, shell=shell, place=place, lost=lost)

    # -- what the cluster tells --

    def _listen(self) -> None:
        with self._lock:
            if not self._watches:
                self._minder = Minder(self._client, self._known, self._closed)
                self._minder.release, self._minder.give_up = self._release_soon, self._give_up
                self._minder.tell = self._report
                self._watches = [
                    self._watch("pods", self._pods_listed, self._heard_pod),
                    self._watch("jobs", self._jobs_listed, self._heard_job),
                ]
        until = time.monotonic() + AWHILE
        for one in self._watches:
            while not one.ready.wait(AWHILE / 100):
                if isinstance(one.error, DeniedByDrmsError):
                    raise one.error
                if time.monotonic() > until:
                    raise DrmCommunicationError(f"{self._client.url}: the API server does not tell of pods and Jobs")

    def _watch(
        self, kind: str, listed: Callable[[Sequence[Object]], None], heard: Callable[[str, Object], None]
    ) -> Watch:
        return Watch(self._client, kind, self._selector, listed=listed, heard=heard, closed=self._closed)

    def _pods_listed(self, pods: Sequence[Object]) -> None:
        there = set()
        for pod in pods:
            there.add(pod["metadata"]["uid"])
            self._heard_pod("ADDED", pod)
        for task in list(self._known.unended()):
            if task.uid and task.uid not in there:
                self._ended(task, None)

    def _heard_pod(self, what: str, pod: Object) -> None:
        task = self._known.of_pod(pod)
        if task is None:
            return
        if task.over:
            if task.killed and what == "ADDED" and not facts.over(pod):  # it was to be ended before it had a pod
                self._pool.submit(lambda: self._remove("pods", pod))
            return
        if pod["metadata"]["uid"] != task.uid:
            if not self._is_next(task, what, pod):
                return
            if task.killed and not facts.over(pod):  # it came just as its task was told to end
                self._pool.submit(lambda: self._remove("pods", pod))
        if what == "DELETED" or facts.over(pod):
            self._ended(task, pod, deleted=what == "DELETED")
        else:
            self._lives(task, pod)

    def _is_next(self, task: Task, what: str, pod: Object) -> bool:
        """Take this pod for the task's; False for an earlier one, of which nothing is wanted any more."""
        told = pod["metadata"]
        if what == "DELETED" or told["uid"] in task.dismissed or told["creationTimestamp"] < task.born:
            return False
        again = task.begun
        task.pod, task.uid, task.born, task.begun = told["name"], told["uid"], told["creationTimestamp"], False
        task.fed, task.supplied, task.troubled, task.since = -inf, False, 0.0, time.monotonic()
        task.words, task.stuck, task.explained = None, None, False
        if again:
            self._results.drop(task)
            self._report([fact(id=task.id, state=JobState.REQUEUED, annotation="it runs again, in another pod")])
        return True

    def _lives(self, task: Task, pod: Object) -> None:
        task.placed = bool(pod["spec"].get("nodeName"))
        task.going = pod["metadata"].get("deletionGracePeriodSeconds", 0) > KILL
        if not task.has_pod and not self._has_slipped(task, pod):
            return
        if not task.begun and facts.started(pod):
            task.begun, task.stuck = True, None
            self._results.begin(task)
        info = facts.living(task.id, pod)
        if not task.begun:
            self._minder.note(task, facts.stuck(pod), info.annotation)
            if task.job.copies and "running" in facts.container(pod, files.IN):
                self._feed_soon(task, pod)
            task.supplied = task.supplied or facts.went_well(pod, files.IN)
        self._report([info])

    def _has_slipped(self, task: Task, pod: Object) -> bool:
        """Whether a pod has started just as its Job was held: then this was its only run."""
        if task.begun or not facts.started(pod):
            return False
        task.dismissed -= {task.uid}
        task.job.suspended = CANCELLED
        self._pool.submit(lambda: cancel(self._client, {task.job.key: task.job.name}, TERMINATE, pods=False))
        return True

    def _jobs_listed(self, jobs: Sequence[Object]) -> None:
        there = {job["metadata"]["name"] for job in jobs}
        for found in jobs:
            self._heard_job("ADDED", found)
        with self._known.lock:
            gone = [job for job in self._known.jobs.values() if job.prepared and job.name not in there]
        for job in gone:  # or it was made just after this list was
            if job.unended():
                self._pool.submit(partial(self._look_at_job, job))

    def _look_at_job(self, job: Job) -> None:
        try:
            found = self._client.get("jobs", job.name)
        except NotThereError:
            self._job_gone(job)
        except WflError:
            self._later(lambda: self._look_at_job(job))
        else:
            self._heard_job("MODIFIED", found)

    def _heard_job(self, what: str, found: Object) -> None:
        key = found["metadata"].get("labels", {}).get(KEY, "")
        job = self._known.jobs.get(key)
        if job is None:
            if key in self._never and what == "ADDED":  # it came after all, though its task has ended
                self._pool.submit(lambda: self._remove("jobs", found))
            return
        if what == "DELETED":
            self._job_gone(job)
        elif facts.finished(found) and job.unended():
            self._pool.submit(lambda: self._settle(job, found))
        elif job.prepared:
            self._see_suspension(job, found)
            if job.is_array and job.template.rerunnable:
                self._see_given_up(job, found)

    def _see_suspension(self, job: Job, found: Object) -> None:
        """Others may hold and release it, too."""
        why = suspension(found)
        if why in (job.suspended, MAKING):
            return
        if time.monotonic() - job.asked < AGAIN:  # it may be from before what was asked for
            self._later(partial(self._look_at_job, job))
            return
        job.suspended = why
        if why == CANCELLED:
            for task in job.unended():
                if not task.has_pod:
                    self._tell_end(task, facts.vanished(task.id, None, killed=True))
        self._report_waiting(job)
        if why is None:
            again = [task for task in job.unended() if task.begun and not task.has_pod]
            self._report([JobInfo(id=task.id, state=JobState.REQUEUED) for task in again])

    def _see_given_up(self, job: Job, found: Object) -> None:
        """Elements whose pods are gone, and will not be followed by others, are told of by the Job alone."""
        for task in job.unended():
            if task.uid and not (task.has_pod or task.finishing):
                info = facts.end_by_job(task.id, found, task.number, killed=task.killed)
                if info is not None:
                    self._tell_end(task, info)

    def _job_gone(self, job: Job) -> None:
        """Somebody has removed it: its pods tell of their ends, where there are any."""
        for task in job.unended():
            if not task.has_pod:
                self._tell_end(task, facts.vanished(task.id, None, killed=task.killed))
            elif not task.finishing:
                self._pool.submit(partial(self._look_at_pod, task))

    def _look_at_pod(self, task: Task, *, again: bool = False) -> None:
        try:
            self._client.get("pods", task.pod or "")
        except NotThereError:
            if not again:  # what the watch tells of its end may be on its way
                self._later(partial(self._look_at_pod, task, again=True))
            elif not task.finishing:
                self._tell_end(task, facts.vanished(task.id, None, killed=task.killed))
        except WflError:
            return  # the watch of pods tells of it

    def _settle(self, job: Job, found: Object) -> None:
        """A Job is over, and so are its tasks: those whose pods have not told so are asked for."""
        try:
            pods, _ = self._client.list("pods", f"{KEY}={job.key}")
        except WflError as error:
            log.info("kubernetes: %s has ended, how is not known yet: %s", job.name, error)
            self._later(lambda: self._settle(job, found))
            return
        for pod in pods:
            self._heard_pod("MODIFIED", pod)
        alive = {pod["metadata"]["uid"] for pod in pods if not facts.over(pod)}
        for task in job.unended():
            if not (task.finishing or task.uid in alive):
                info = facts.end_by_job(task.id, found, task.number, killed=task.killed)
                self._tell_end(task, info or facts.vanished(task.id, None, killed=task.killed))

    # -- ends --

    def _ended(self, task: Task, pod: Object | None, *, deleted: bool = True) -> None:
        """A pod is over, or gone (None: nobody heard its last words)."""
        if pod is not None and not task.has_pod:  # whoever dismissed it wants nothing of it
            self._pool.submit(partial(self._results.let_go, pod))
        with self._known.lock:
            if task.finishing or task.over or not task.has_pod:
                return
            task.finishing = True
        if pod is not None and task.job.template.rerunnable and not task.killed and (why := facts.disruption(pod)):
            self._dismiss(task)
            self._pool.submit(partial(self._results.let_go, pod))
            task.finishing = False
            self._report([fact(id=task.id, state=JobState.REQUEUED, annotation=why[1])])
            return
        going = pod is None or deleted or bool(pod["metadata"].get("deletionTimestamp"))
        moved = task.job.fetched or task.job.streams or (pod is not None and facts.waits(pod, files.OUT))
        if pod is None or going or moved or task.file("stdout") is not None:
            self._pool.submit(lambda: self._finish(task, pod, going=going))
        else:
            self._tell_end(task, facts.end(task.id, pod, killed=task.killed))

    def _finish(self, task: Task, pod: Object | None, *, going: bool) -> None:
        """Complete an end: what was asked for is brought here, also of a pod that is just going."""
        try:
            info = self._whole_end(task, pod, going=going)
        except PASSING as error:
            log.info("kubernetes: %s has ended, how is not known yet: %s", task.id, error)
            self._later(lambda: self._finish(task, pod, going=going))
            return
        except Exception as error:
            log.exception("kubernetes: %s has ended", task.id)
            info = ended(task.id, sub_state="lost", annotation=f"what is said of its end is not understood: {error}")
        if info is None:
            task.finishing = False
            self._later(partial(self._look_at_job, task.job))  # it may have ended meanwhile
        else:
            self._tell_end(task, info)

    def _whole_end(self, task: Task, pod: Object | None, *, going: bool) -> JobInfo | None:
        """None where it goes on, in this or another pod."""
        why: tuple[SubState, str] | None = None
        if pod is None:  # it was not in a list, or was made just after that
            with suppress(NotThereError):
                pod = self._client.get("pods", task.pod or "")
                if not facts.over(pod):
                    return None
        final = pod is not None and "terminated" in facts.container(pod)
        if going and not task.killed and (pod is None or facts.disruption(pod) is None):
            found = self._job_of(task)
            if suspension(found) == CANCELLED:  # by another program of this session
                task.killed = True
            elif found["spec"].get("suspend"):  # by somebody who does not know that this ends what runs, or by Kueue
                self._held_by_others(task, suspension(found))
                if pod is not None:
                    self._results.let_go(pod)
                return None
            if not final:
                info = facts.end_by_job(task.id, found, task.number, killed=task.killed)
                return self._end_or_again(task, pod, found, info)
            why = facts.overdue(found)
        if pod is None or not facts.over(pod):
            return facts.vanished(task.id, pod, killed=task.killed)
        trouble = self._results.bring_back(task, pod, going=going)
        info = facts.end(task.id, pod, trouble=trouble, killed=task.killed, why=why)
        if task.job.foreign and facts.waits(pod, files.OUT):
            words = "its files are in its pod for the program that knows where they are to go"
            info = info.replace(annotation=info.annotation or words)
        return info

    def _end_or_again(self, task: Task, pod: Object | None, found: Object, info: JobInfo | None) -> JobInfo | None:
        """A pod is gone of which the Job says nothing yet: it may go on, and make another."""
        if info is None and task.job.template.rerunnable and found["metadata"] and not task.killed:
            self._dismiss(task)
            self._report([fact(id=task.id, state=JobState.REQUEUED)])
            return None
        return info or facts.vanished(task.id, pod, killed=task.killed)

    def _job_of(self, task: Task) -> Object:
        """A task's Job, as it is now; one that says nothing where it is gone."""
        try:
            return self._client.get("jobs", task.job.name)
        except NotThereError:
            return {"metadata": {}, "spec": {}}

    def _held_by_others(self, task: Task, why: str | None) -> None:
        self._dismiss(task)
        task.job.suspended = why
        words = "its Job was suspended by somebody" + (": it begins anew when it is released" if task.begun else "")
        waiting, again = JobState.QUEUED_HELD, JobState.REQUEUED_HELD
        if why is None:
            waiting, again = JobState.QUEUED, JobState.REQUEUED
        self._report([fact(id=task.id, state=again if task.begun else waiting, annotation=words)])

    def _tell_end(self, task: Task, info: JobInfo) -> None:
        with self._known.lock:
            if task.over:
                return
            task.over, task.finishing, task.ended = True, False, time.monotonic()
        self._report([info])

    def _later(self, f: Callable[[], None]) -> None:
        """Try again soon, once the API server is there."""

        def again() -> None:
            if all(one.ready.is_set() for one in self._watches):
                self._pool.submit(f)
            else:
                self._later(f)

        if not self._closed.is_set():
            self._clock.after(AGAIN, again)

    # -- files in --

    def _feed_soon(self, task: Task, pod: Object) -> None:
        if task.fed == -inf:
            task.fed = time.monotonic()
            self._porters.submit(lambda: self._feed(task, pod))

    def _feed(self, task: Task, pod: Object) -> None:
        """Put its files into a pod that waits for them."""
        name = pod["metadata"]["name"]
        try:
            with self._guard.on_its_way():
                files.put(self._client, name, task.job.copies, shell=self._shell)
            task.supplied = True
        except (*PASSING, InvalidSessionError, InvalidStateError) as error:  # or it has just got them
            log.info("kubernetes: the files of %s are not in its pod yet: %s", task.id, error)
            task.fed = -inf
            self._later(lambda: self._feed_again(task, name))
        except Exception as error:  # noqa: BLE001 - whatever it was, the job is not to wait for ever
            if self._still_waits(name):
                self._never_fed(task, f"its files cannot be copied in: {error}")

    def _still_waits(self, name: str) -> bool:
        """Whether a pod waits for its files: another program may have brought them meanwhile."""
        try:
            return "running" in facts.container(self._client.get("pods", name), files.IN)
        except NotThereError:
            return False
        except WflError as error:
            log.warning("kubernetes: whether %s waits for its files is not known: %s", name, error)
            return True

    def _feed_again(self, task: Task, name: str) -> None:
        try:
            pod = self._client.get("pods", name)
        except NotThereError:
            return
        except WflError:
            self._later(lambda: self._feed_again(task, name))
            return
        if not task.over and "running" in facts.container(pod, files.IN):
            self._feed_soon(task, pod)

    def _give_up(self, tasks: Sequence[Task], words: str) -> bool:
        """These can never start; whether they could all be ended."""
        with self._known.lock:  # what its pod tells from now on is our own doing
            doomed = [task for task in tasks if not (task.over or task.finishing or task.begun)]
            for task in doomed:
                task.finishing = True
        failures = self._stop(self._known.of_ids(task.id for task in doomed), KILL, words)
        left = [task for task in doomed if task.id in failures]
        for task in doomed:
            if task in left:
                task.finishing = False
            else:
                self._tell_end(task, ended(task.id, sub_state="launch_failure", annotation=words))
        return not left

    def _never_fed(self, task: Task, words: str) -> None:
        if not self._give_up([task], words):
            self._later(lambda: self._never_fed(task, words))

    # -- control --

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """Jobs are held and released as a whole; their tasks are ended in bulk."""
        groups = self._known.of_ids(ids)
        failures: dict[str, WflError] = {
            id: InvalidStateError(f"{id}: it is not known") for id in ids if id not in self._known.tasks
        }

        def one(item: tuple[Job, list[Task]]) -> None:
            job, tasks = item
            try:
                self._control_one(job, tasks, action)
            except WflError as error:
                failures.update({t.id: type(error)(f"{t.id}: cannot {action.value}: {error}") for t in tasks})

        if action in (Action.TERMINATE, Action.KILL):
            failures.update(self._stop(groups, KILL if action is Action.KILL else TERMINATE))
        else:
            in_threads(one, list(groups.items()), REQUESTS, "wfl-kubernetes-control")
        return failures

    def _control_one(self, job: Job, tasks: list[Task], action: Action) -> None:
        left = job.unended()
        if set(left) - set(tasks):
            raise UnsupportedOperationError(
                "an array is held, released and suspended as a whole: its elements are one Job"
            )
        if job.is_kueues:
            raise UnsupportedOperationError("Kueue holds and releases it: its Job has the extension kueue_queue")
        begun = any(task.begun for task in left)
        if action is Action.HOLD:
            if begun or any(task.placed for task in left):
                raise InvalidStateError("it was started: holding it would make it begin anew")
            self._suspend(job, HELD)
            state = JobState.QUEUED_HELD
        elif action is Action.SUSPEND:
            if not begun:
                raise InvalidStateError("it does not run")
            self._suspend(job, PAUSED)
            state = JobState.SUSPENDED
        else:
            wanted, state = (HELD, JobState.QUEUED) if action is Action.RELEASE else (PAUSED, JobState.REQUEUED)
            if job.suspended != wanted:
                raise InvalidStateError("it is not held" if wanted == HELD else "it is not suspended")
            self._release(job)
        self._report([JobInfo(id=task.id, state=state) for task in left])

    def _dismiss(self, task: Task) -> None:
        """Its pod goes, and that is not the task's end."""
        if task.uid:
            task.dismissed |= {task.uid}

    def _suspend(self, job: Job, why: str) -> None:
        before, job.suspended, job.asked = job.suspended, why, time.monotonic()
        for task in job.unended():
            self._dismiss(task)
        try:
            self._client.patch(
                "jobs", job.name, {"spec": {"suspend": True}, "metadata": {"annotations": {SUSPENDED: why}}}
            )
        except WflError:
            for task in job.tasks.values():
                task.dismissed -= {task.uid}
            self._undo(job, before)
            raise

    def _undo(self, job: Job, before: str | None) -> None:
        """What was asked for failed; if it was done all the same, that is seen as if others had done it."""
        job.suspended, job.asked = before, -inf
        self._later(partial(self._look_at_job, job))

    def _release(self, job: Job) -> None:
        start = _start_of(job.template)
        if job.suspended == HELD and start is not None and start > time.time():
            self._suspend(job, WAITING)
            job.start = start
        else:
            before, job.suspended, job.asked = job.suspended, None, time.monotonic()
            try:
                self._client.patch("jobs", job.name, _released(job))
            except WflError:
                self._undo(job, before)
                raise
        for task in job.unended():
            task.since = time.monotonic()
        self._minder.call()

    def _release_soon(self, job: Job) -> None:
        """Its start_time has come."""

        def release() -> None:
            try:
                if job.suspended == WAITING:
                    self._release(job)
                    self._report_waiting(job)
            except NotThereError:
                return
            except WflError as error:
                log.warning("kubernetes: %s is due and cannot be released, trying again: %s", job.name, error)
                self._later(release)

        self._pool.submit(release)

    def _stop(self, groups: Mapping[Job, list[Task]], grace: int, words: str | None = None) -> dict[str, WflError]:
        """End these: by their pods, in bulk where whole Jobs end; without a pod, their Jobs will never make one.

        `words`: they could not be started, and why.
        """
        failures: dict[str, WflError] = {}
        alive = {job: [task for task in tasks if not task.over] for job, tasks in groups.items()}
        alive = {job: tasks for job, tasks in alive.items() if tasks}
        tasks = [task for some in alive.values() for task in some]
        going = [task for task in tasks if task.going and grace == KILL]
        single = {job: some[0].has_pod for job, some in alive.items() if not job.is_array}
        requests: list[_Request] = [
            *((some, self._end_pods) for some in pieces([job for job, has_pod in single.items() if has_pod])),
            *((some, self._cancel) for some in pieces([job for job, has_pod in single.items() if not has_pod])),
            *(([job], partial(self._stop_some, alive[job])) for job in alive if job.is_array),
        ]

        def stop(request: _Request) -> None:
            jobs, how = request
            try:
                how(jobs, grace)
            except WflError as error:
                failures.update({task.id: error for job in jobs for task in alive[job]})

        if grace == KILL:
            self._results.keep(tasks)
        first = [task for task in tasks if not task.killed]
        for task in first:
            task.killed = True
        in_threads(stop, requests, STOPPING, "wfl-kubernetes-control")
        for task in first:
            task.killed = task.id not in failures
        for task in tasks:
            task.going = task.going or task.killed
            if task.killed and not task.has_pod and words is None:
                self._tell_end(task, facts.vanished(task.id, None, killed=True))
        in_threads(self._kill_inside, going, REQUESTS, "wfl-kubernetes-control")
        return failures

    def _end_pods(self, jobs: Sequence[Job], grace: int) -> None:
        remove_pods(self._client, [job.key for job in jobs], grace)

    def _stop_some(self, tasks: Sequence[Task], jobs: Sequence[Job], grace: int) -> None:
        """End elements of an array, with it if these are all that it has left."""
        (job,) = jobs
        if not set(job.unended()) - set(tasks):
            self._results.take(job.tasks.values())
            self._cancel([job], grace)
            return
        pods = [task.pod for task in tasks if task.has_pod and task.pod]
        in_threads(lambda name: self._client.delete("pods", name, grace=grace), pods, REQUESTS, "wfl-kubernetes")

    def _cancel(self, jobs: Sequence[Job], grace: int) -> None:
        before = [job.suspended for job in jobs]
        for job in jobs:
            job.suspended, job.asked = CANCELLED, time.monotonic()
        pods = any(task.has_pod for job in jobs for task in job.tasks.values())
        try:
            cancel(self._client, {job.key: job.name for job in jobs}, grace, pods=pods)
        except WflError:
            for job, why in zip(jobs, before, strict=True):
                self._undo(job, why)
            raise

    def _kill_inside(self, task: Task) -> None:
        words = kill_inside(self._client, task.pod or "", self._defaults.shell)
        if words is not None:
            log.warning("kubernetes: %s was asked to end, and cannot be killed before its time: %s", task.id, words)

    def _remove(self, kind: str, what: Object) -> None:
        """What nobody wants any more."""
        try:
            self._client.delete(kind, what["metadata"]["name"], grace=KILL if kind == "pods" else None)
        except PASSING:
            self._later(lambda: self._remove(kind, what))
        except WflError as error:
            log.warning("kubernetes: %s cannot be removed: %s", what["metadata"]["name"], error)

    # -- output --

    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """From the pod's log, through a file of our own beside the session; errors are in it, unless in a file."""
        task = self._known.tasks.get(id)
        if task is None or task.reaped:
            raise InvalidStateError(f"{id}: its Job was removed (reaped), or belongs to another session")
        if task.discards(stream):
            words = f"{stream} was discarded (/dev/null); leave the path unset to keep it"
            raise UnsupportedOperationError(f"{id}: {words}")
        if task.pod is None or not (task.begun or task.over or task.finishing):
            return b"", True
        return self._results.read(task, stream, offset, limit)

    def reap(self, ids: Sequence[str]) -> None:
        """Remove Jobs with all that belongs to them, and what was read of their output; an array with its last task."""
        groups = self._known.of_ids(ids)
        for tasks in groups.values():
            for task in tasks:
                task.reaped = True
        doomed = [job for job in groups if all(task.reaped for task in job.tasks.values())]
        keys = [job.key for job in doomed]
        waiting = [job.key for job in doomed if job.fetched or job.streams or job.foreign]  # in vain now
        in_threads(lambda some: remove_pods(self._client, some, KILL), pieces(waiting), STOPPING, "wfl-kubernetes-reap")
        in_threads(lambda some: remove_jobs(self._client, some), pieces(keys), STOPPING, "wfl-kubernetes-reap")
        for tasks in groups.values():
            for task in tasks:
                self._results.drop(task)
        for job in doomed:
            self._known.forget(job)

    def ask(self, ids: Sequence[str]) -> Answer:
        """Only what is gone: everything else is told."""
        return Answer(gone=[id for id in ids if id not in self._known.tasks])

    # -- finding again --

    def remembered(self) -> Sequence[Known]:
        """By label, what programs of this session have started detached; the rest is nobody else's concern."""
        found, _ = self._client.list("jobs", f"{self._selector},wfl/detach=true")
        known: list[Known] = []
        for job in sorted((job for job in found if suspension(job) != MAKING), key=_order):
            try:
                known += _remembered(job)
            except Exception as error:  # noqa: BLE001 - anybody may write annotations; the others are remembered
                log.warning("kubernetes: Job %s is left out: its annotations: %r", job["metadata"]["name"], error)
        return known

    def find(self, known: Sequence[Known]) -> Answer:
        """By label; a Job that its program made and never completed is removed, as if it had never been."""
        self._listen()
        listed, _ = self._client.list("jobs", self._selector)
        there = {job["metadata"]["labels"][KEY]: job for job in listed if KEY in job["metadata"].get("labels", {})}
        infos: list[JobInfo] = []
        gone: list[str] = []
        new: dict[str, Object] = {}
        for task in known:
            key = task.key if task.key in there else task.key.rpartition(".")[0] or task.key
            found = there.get(key)
            if found is None:
                if not self._is_coming(self._known.tasks.get(task.key)):
                    self._forget(task.key)
                    gone.append(task.key)
            elif self._is_unmade(key, found):
                self._client.delete("jobs", found["metadata"]["name"])
                gone.append(task.key)
            else:
                try:
                    if self._take_in(key, found, task):
                        new[key] = found
                    infos += self._found(task)
                except DrmCommunicationError:
                    raise
                except WflError:  # what it needs was refused: it is removed again
                    gone.append(task.key)
        self._look_again(new)
        return Answer(infos=infos, gone=gone)

    def _is_coming(self, task: Task | None) -> bool:
        """Whether the API server may still be making it, though nobody waits for its answer any more."""
        if task is None or task.job.prepared:
            return False
        return time.monotonic() - task.job.asked < 2 * self._where.timeout

    def _is_unmade(self, key: str, found: Object) -> bool:
        job = self._known.jobs.get(key)
        return suspension(found) == MAKING and (job is None or not job.own)

    def _forget(self, id: str) -> None:
        task = self._known.tasks.get(id)
        if task is not None and not task.over:
            self._never.add(task.job.key)
            self._known.forget(task.job)

    def _take_in(self, key: str, found: Object, task: Known) -> bool:
        """Know a Job that is there, and go on with one that no answer came for; whether its state is to be told."""
        job = self._known.jobs.get(key)
        if job is not None and not job.prepared:
            self._complete(job, found)
            return False
        if job is None:
            job = Job(key, found["metadata"]["name"], task.template, _indexes_of(found), own=False)
            moved = template.moved(task.template)
            job.copies, job.fetched, job.streams = moved.copies, moved.fetched, moved.streams
            with suppress(WflError, KeyError, ValueError):  # what is in its pod does not depend on paths of this side
                made = template.moved(_recorded(found))
                job.streams, job.foreign = job.streams or made.streams, bool(made.fetched) and not job.fetched
            with suppress(KeyError, ValueError):
                job.patience = float(found["metadata"]["annotations"][PATIENCE])
            job.suspended = suspension(found)
            job.start = _start_of(task.template) if job.suspended == WAITING else None
            self._known.add(job)
        return True

    def _found(self, known: Known) -> list[JobInfo]:
        task = self._known.tasks.get(known.key)
        if task is None:
            return []
        if known.info is not None and known.info.state.ended:
            task.over = True
            task.pod = known.info.extensions.get("pod") if known.info.extensions else None
        return [JobInfo(id=task.id)]

    def _look_again(self, new: Mapping[str, Object]) -> None:
        """Tell how it stands with Jobs that were found: by their pods, and where these are gone by the Jobs."""
        if not new:
            return
        pods, _ = self._client.list("pods", self._selector)
        for pod in pods:
            if pod["metadata"].get("labels", {}).get(KEY) in new:
                self._heard_pod("ADDED", pod)
        for key, found in new.items():
            job = self._known.jobs[key]
            cancelled = job.suspended == CANCELLED
            for task in job.unended():
                if task.uid:
                    continue
                info = facts.end_by_job(task.id, found, task.number, killed=cancelled)
                if info is None and cancelled:
                    info = facts.vanished(task.id, None, killed=True)
                if info is not None:
                    self._tell_end(task, info)
            self._report_waiting(job)
            if job.suspended == PAUSED:
                self._report([JobInfo(id=task.id, state=JobState.SUSPENDED) for task in job.unended()])
        self._minder.call()

    def how_to_cancel(self, ids: Sequence[str]) -> str:  # type: ignore[override]
        """By label: kubectl as it is set up for the same cluster."""
        keys = sorted({task.job.key for id in ids if (task := self._known.tasks.get(id)) is not None})
        which = f"{KEY} in ({','.join(keys)})" if len(keys) <= SHOWN else self._selector
        return f"kubectl --namespace {self._client.namespace} delete jobs --selector '{which}'"

    # -- the end --

    def close(self, *, end: bool) -> None:
        """End what still runs, and remove it and, without a store, all that has ended."""
        if not end:
            self._await_files()
        left = self._guard.close()
        if end:
            mine = [task for task in self._known.unended() if task.job.own]
            self._results.save(mine)
            self._results.release(task for task in mine if task.finishing)
        self._client.hang_up()
        if self._watches:
            self._minder.call()
            left += self._end_all(end=end)
        self._guard.leave(left, partial(self._end_all, end=end))
        self._client.close()
        for one in self._watches:
            one.join(AWHILE)
        self._pool.stop()
        self._porters.stop()
        self._clock.stop()
        self._results.remove()

    def _await_files(self) -> None:
        """What lives on needs its files first: nobody else brings them."""
        until = time.monotonic() + AWHILE

        def left() -> list[Task]:
            tasks = [task for task in self._known.unended() if task.job.own and task.job.copies]
            return [task for task in tasks if not (task.begun or task.supplied)]

        while left() and time.monotonic() < until:
            time.sleep(AGAIN / 10)
        if missing := left():
            rest = "they wait for a later program of this session" if self._keep else "as nobody brings them, they end"
            log.warning("kubernetes: %d jobs have not got their files yet; %s", len(missing), rest)
            if not self._keep:
                self._stop(self._known.of_ids(task.id for task in missing), KILL)

    def _end_all(self, *, end: bool) -> int:
        """Remove what this program made and must not leave; how many could not be."""
        try:
            end_program(self._client, self._program, keep=self._keep, end=end, shell=self._defaults.shell)
        except WflError:
            log.debug("kubernetes: ending the jobs of this program", exc_info=True)
            return max(1, sum(job.own and bool(job.unended()) for job in list(self._known.jobs.values()))) if end else 0
        return 0

    def abandon(self) -> None:
        """In a forked child: the helper must see the end of the program that owns it."""
        self._guard.abandon()


def _completed(job: Job) -> dict[str, Any]:
    """What follows when all is made that a Job needs."""
    return _released(job) if job.stays is None else {"metadata": {"annotations": {SUSPENDED: job.stays}}}


def _released(job: Job) -> dict[str, Any]:
    """What lets a Job go; one that Kueue admits is Kueue's to let go. Its deadline is counted from then on."""
    note = {"metadata": {"annotations": {SUSPENDED: None}}}
    if job.is_kueues:
        return note
    left: dict[str, int] = {}
    if (deadline := job.template.deadline_time) is not None:
        left = {"activeDeadlineSeconds": max(1, math.ceil(deadline.timestamp() - time.time()))}
    return {**note, "spec": {"suspend": False, **left}}


def _start_of(given: JobTemplate) -> float | None:
    return None if given.start_time is None else given.start_time.timestamp()


def _order(found: Object) -> tuple[str, list[int]]:
    """That of submission: by the second, and in a program by the number at the key's end."""
    parts = found["metadata"]["labels"].get(KEY, "").rpartition("-")[2].split(".")
    return found["metadata"]["creationTimestamp"], [int(part) for part in parts if part.isdecimal()]


def _indexes_of(found: Object) -> range | None:
    text = found["metadata"].get("annotations", {}).get("wfl/indexes")
    return None if text is None else range(*map(int, text.split(":")))


def _recorded(found: Object) -> JobTemplate:
    return JobTemplate.from_json(found["metadata"]["annotations"]["wfl/template"])


def _remembered(found: Object) -> list[Known]:
    """The tasks of a Job, as its annotations tell; the environment is not among them.

    Nor are the paths on this side that it was to read and write: anybody who may create Jobs could say that.
    """
    annotations, key = found["metadata"]["annotations"], found["metadata"]["labels"][KEY]
    given = _recorded(found).replace(**dict.fromkeys(checks.HERE))
    submitted = datetime.fromisoformat(found["metadata"]["creationTimestamp"]).astimezone(UTC)
    index, indexes = annotations.get("wfl/index"), _indexes_of(found)
    which: list[tuple[str, int | None]] = [(key, None if index is None else int(index))]
    if indexes is not None:
        which = [(f"{key}.{number}", number) for number in indexes]
    return [
        Known(
            key=id,
            id=id,
            template=given,
            info=JobInfo(id=id, submission_time=submitted),
            job_id=annotations["wfl/job"],
            index=number,
        )
        for id, number in which
    ]
