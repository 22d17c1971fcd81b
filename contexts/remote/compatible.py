"""The calls of the compatible protocol, which job servers of the Go implementation speak, and its forms of templates.

It knows no sessions, no keys, no output and no files; errors come as texts in answers that are successes to HTTP; and
what changes something is a GET, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from wfl.backend import Action, Answer
from wfl.contexts.remote.client import Client, Question, encoded
from wfl.contexts.remote.connection import UnansweredError
from wfl.contexts.remote.facts import AS_WANTED, compatible
from wfl.drmaa2 import WALLCLOCK_TIME
from wfl.errors import DeniedByDrmsError, InvalidStateError, WflError
from wfl.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from wfl.backend import Submission
    from wfl.drmaa2 import JobInfo

PREFIX = "/jobserver/jobmanagement"
"""Where our own server has it, unless told otherwise; servers in Go have it wherever somebody put it."""
REQUESTS = 4
"""Requests at once that ask, or control, one job each."""
_NEVER = "0001-01-01T00:00:00Z"
_SPELLED = {"rerunnable": "reRunnable", "accountingId": "accountingID", "reservationId": "reservationID"}
"""Names of fields that the protocol writes in another way than DRMAA2's camel case."""
_EMPTY: dict[str, Any] = {
    "accountingID": "",
    "args": [],
    "candidateMachines": [],
    "deadlineTime": _NEVER,
    "email": [],
    "emailOnStarted": False,
    "emailOnTerminated": False,
    "errorPath": "",
    "extension": {},
    "inputPath": "",
    "jobCategory": "",
    "jobEnvironment": {},
    "jobName": "",
    "joinFiles": False,
    "machineArch": "",
    "machineOs": "",
    "maxSlots": 0,
    "minPhysMemory": 0,
    "minSlots": 0,
    "outputPath": "",
    "priority": 0,
    "queueName": "",
    "reRunnable": False,
    "remoteCommand": "",
    "reservationID": "",
    "resourceLimits": {},
    "stageInFiles": {},
    "stageOutFiles": {},
    "startTime": _NEVER,
    "submitAsHold": False,
    "workingDirectory": "",
}
"""All of them are always sent: servers in Go refuse what is not whole."""
_MINE = ("submit_as_hold", "start_time", "deadline_time")
"""Fields that the session sees to: what waits is not submitted before."""


def body(submission: Submission) -> bytes:
    """A template as /addjob takes it. The index, and the job's id as far as it is known, go with its environment."""
    given = submission.template.replace(**dict.fromkeys(_MINE))
    environment = {"JOB_ID": submission.job_id, **(given.job_environment or {})}
    if submission.index is not None:
        environment["TASK_ID"] = str(submission.index)
    told: dict[str, Any] = msgspec.json.decode(given.to_json())
    told["extension"] = told.pop("extensions", {})
    told["jobEnvironment"] = environment
    told["resourceLimits"] = {
        name: str(int(value) if value == int(value) else value)
        for name, value in told.get("resourceLimits", {}).items()
        if name != WALLCLOCK_TIME
    }
    return encoded({**_EMPTY, **{_SPELLED.get(name, name): value for name, value in told.items()}})


class Calls:
    """One server's. Raises what `Client` raises; what the server refuses is a DeniedByDrmsError with its words."""

    def __init__(self, client: Client, base: str) -> None:
        """`base`: what follows the server's address before the names of the calls."""
        self._client, self._base = client, base

    def jobs(self) -> list[str]:
        """The ids of all jobs that the server knows, whoever's they are."""
        found = self._get("listjobs", {}, list[str] | None)
        return list(found or ())

    def categories(self) -> list[str]:
        """What a template's job_category may name, as far as the server lists it."""
        found = self._get("listjobcategories", {}, list[str] | None)
        return list(found or ())

    def add(self, submission: Submission) -> str:
        """Start a job; its id. The request is made once, unless it is certain that nothing came of it."""
        question = Question(
            method="POST",
            path=f"{self._base}/addjob",
            content=body(submission),
            headers={"Content-Type": "application/json"},
            once=True,
        )
        told = _folded(self._client.json(question, dict[str, Any]))
        if told.get("error"):
            raise DeniedByDrmsError(str(told["error"]))
        if not told.get("jobid"):
            raise UnansweredError(f"{self._client.url}: the answer to addjob has neither an id nor an error")
        return str(told["jobid"])

    def where(self, ids: Sequence[str]) -> Answer:
        """Where jobs are. The protocol has no way to say that a job is not there but an error's text: what has one,
        and is not listed, is gone.
        """
        infos: list[JobInfo] = []
        failed: list[str] = []

        def one(id: str) -> None:
            told = self._get("jobinfo", {"jobID": id}, dict[str, Any])
            if _folded(told).get("error"):
                failed.append(id)
            else:
                infos.append(compatible(told).replace(id=id))

        in_threads(one, ids, REQUESTS, "wfl-remote-ask")
        listed = set(self.jobs()) if failed else set()
        return Answer(infos=infos, gone=[id for id in failed if id not in listed])

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """Do this to jobs; what failed. There is no way to kill but to terminate."""
        verb = Action.TERMINATE if action is Action.KILL else action
        return self._each(ids, lambda id: self._change("jobcontrol", {"jobID": id, "action": verb.value}, id, action))

    def delete(self, ids: Sequence[str]) -> dict[str, WflError]:
        """Remove what the server keeps of ended jobs; what failed, and is still there."""
        failures = self._each(ids, lambda id: self._change("deletejob", {"jobID": id}, id, None))
        listed = set(self.jobs()) if failures else set()
        return {id: error for id, error in failures.items() if id in listed}

    def _each(self, ids: Sequence[str], f: Callable[[str], None]) -> dict[str, WflError]:
        failures: dict[str, WflError] = {}

        def one(id: str) -> None:
            try:
                f(id)
            except UnansweredError:
                raise
            except WflError as error:
                failures[id] = error

        in_threads(one, ids, REQUESTS, "wfl-remote-control")
        return failures

    def _change(self, call: str, query: Mapping[str, str], id: str, action: Action | None) -> None:
        words = self._get(call, query, str)
        if not words:
            return
        info = self._known(id)
        if info is None:
            raise InvalidStateError(f"{id}: {words}")
        if action is not None and info.state in AS_WANTED[action]:  # it was so before, or an earlier try did it
            return
        if action is not None and info.state.ended:
            raise InvalidStateError(f"{id}: cannot {action.value}: it has ended")
        raise DeniedByDrmsError(f"{id}: {words}")

    def _known(self, id: str) -> JobInfo | None:
        return next(iter(self.where([id]).infos), None)

    def _get(self, call: str, query: Mapping[str, str], kind: Any) -> Any:
        return self._client.json(Question(path=f"{self._base}/{call}", query=query), kind)


def _folded(told: Mapping[str, Any]) -> dict[str, Any]:
    """Keys in any case, as Go takes them."""
    return {key.lower(): value for key, value in told.items()}
