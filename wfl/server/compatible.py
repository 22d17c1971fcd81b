"""The protocol of wfl for Go's remote job tracker, byte by byte as its server speaks it.

Ids are those of the v1 API; all jobs are in the client session "legacy". Its GETs change things, so that part of it is
off unless asked for. Errors are texts in answers of status 200, as clients of that protocol expect.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.routing import Route

from wfl.backend import Action
from wfl.drmaa2 import CPU_TIME, WALLCLOCK_TIME, JobInfo, JobState, JobTemplate
from wfl.errors import InvalidArgumentError, WflError
from wfl.server.jobs import Array, Asked, check_indexes
from wfl.server.refusals import HttpError, words
from wfl.server.routes import identity_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

    from wfl.server.app import JobServer
    from wfl.server.events import Owner
    from wfl.server.jobs import Job

SESSION = "legacy"
ZERO_TIME = "0001-01-01T00:00:00Z"
UNKNOWN_JOB = "job does not exist"
_ACTIONS = {
    "suspend": Action.SUSPEND,
    "resume": Action.RESUME,
    "hold": Action.HOLD,
    "release": Action.RELEASE,
    "terminate": Action.TERMINATE,
}
_TEXTS = {
    "accountingid": "accounting_id", "errorpath": "error_path", "inputpath": "input_path",
    "jobcategory": "job_category", "jobname": "job_name", "machinearch": "machine_arch", "machineos": "machine_os",
    "outputpath": "output_path", "queuename": "queue_name", "remotecommand": "remote_command",
    "reservationid": "reservation_id", "workingdirectory": "working_directory",
}  # fmt: skip
_LISTS = {"args": "args", "candidatemachines": "candidate_machines", "email": "email"}
_FLAGS = {
    "emailonstarted": "email_on_started", "emailonterminated": "email_on_terminated", "joinfiles": "join_files",
    "rerunnable": "rerunnable", "submitashold": "submit_as_hold",
}  # fmt: skip
_NUMBERS = {
    "maxslots": "max_slots",
    "minphysmemory": "min_phys_memory",
    "minslots": "min_slots",
    "priority": "priority",
}
_MAPS = {
    "jobenvironment": "job_environment", "resourcelimits": "resource_limits", "stageinfiles": "stage_in_files",
    "stageoutfiles": "stage_out_files", "extension": "extensions",
}  # fmt: skip
_TIMES = {"deadlinetime": "deadline_time", "starttime": "start_time"}
_RANGE = ("begin", "end", "step", "maxparallel")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_INT32 = 1 << 31
_INT64 = 1 << 63


class MalformedError(Exception):
    """A body that Go's decoder does not take."""


class Compatible:
    """The routes of one server. Without `control`, GETs that change something are refused."""

    def __init__(self, server: JobServer, *, control: bool) -> None:
        self._server, self._control = server, control

    def routes(self, base: str) -> list[Route]:
        """All of them, below a path."""
        table: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "listjobs", self.list_jobs),
            ("GET", "listarrayjobs", self.list_array_jobs),
            ("POST", "addjob", self.add_job),
            ("POST", "addarrayjob", self.add_array_job),
            ("GET", "jobstate", self.job_state),
            ("GET", "jobinfo", self.job_info),
            ("GET", "jobcontrol", self.job_control),
            ("GET", "deletejob", self.delete_job),
            ("GET", "listjobcategories", self.list_job_categories),
        ]
        return [
            Route(f"{base}/{name}", self._server.endpoint(f"{base}/{name}", handler), methods=[method])
            for method, name, handler in table
        ]

    # -- lists --

    async def list_jobs(self, request: Request) -> Response:
        """All ids. What it is to skip, and the limit, are looked at and not heeded, as there."""
        problem = _check_numbers(request)
        return problem or _success(self._server.ledger.ids(_owner(request)))

    async def list_array_jobs(self, request: Request) -> Response:
        """The ids of an array's elements."""
        id = request.query_params.get("arrayJobID")
        if not id:
            return _missing("arrayJobID")
        problem = _check_numbers(request)
        if problem is not None:
            return problem
        found = self._find(request, id)
        return _success([job.id for job in found.jobs] if isinstance(found, Array) else [])

    async def list_job_categories(self, request: Request) -> Response:
        """The images, queues or classes that a template may name; null where none are known."""
        found = await self._server.looking.run(_owner(request)[0], self._server.categories)
        return _success(found or None)

    # -- submitting --

    async def add_job(self, request: Request) -> Response:
        """One job."""
        try:
            template = template_of(_object(await self._body(request)))
        except MalformedError:
            return _error("can't unmarshal body")
        except (WflError, TypeError) as error:
            return self._added("", error)
        return await self._submit(request, Asked(None, template))

    async def add_array_job(self, request: Request) -> Response:
        """One array: from `begin` to `end`, which is in it."""
        try:
            body = _object(await self._body(request))
            begin, end, step, most = (_number(body, name) for name in _RANGE)
            template = template_of(body)
            indexes = check_indexes(begin, end + 1, step or 1, self._server.limits.elements)
            if most < 0:
                raise InvalidArgumentError(f"maxParallel is {most}, expected 0 or more")
        except MalformedError:
            return _error("can't read body")  # here the original has no other words
        except (WflError, TypeError) as error:
            return self._added("", error)
        return await self._submit(request, Asked(None, template, indexes, most or None))

    async def _submit(self, request: Request, asked: Asked) -> Response:
        server = self._server
        try:
            owner = _owner(request)
            (answer,) = await server.acting.run(owner[0], server.ledger.submit, owner, [asked])
        except WflError as error:
            answer = error
        if isinstance(answer, Array) and not answer.jobs:
            answer = next(iter(answer.errors.values()))
        server.metrics.submitted(int(not isinstance(answer, WflError)), int(isinstance(answer, WflError)))
        return self._added("", answer) if isinstance(answer, WflError) else self._added(answer.id, None)

    def _added(self, id: str, error: Exception | None) -> Response:
        return _success({"JobID": id, "Error": "" if error is None else self._words(error)})

    # -- one job --

    async def job_state(self, request: Request) -> Response:
        """The state; that of a job that nobody knows is undetermined."""
        id = request.query_params.get("jobID")
        if not id:
            return _missing("jobID")
        found = self._find(request, id)
        info = (
            None
            if found is None
            else await self._server.looking.run(_owner(request)[0], self._server.ledger.info, found)
        )
        state = JobState.UNDETERMINED if info is None else info.state
        return _success({"JobState": str(state), "JobSubState": (info.sub_state if info else None) or ""})

    async def job_info(self, request: Request) -> Response:
        """All that is known; of a job that nobody knows nothing, and words that say so."""
        id = request.query_params.get("jobID")
        if not id:
            return _missing("jobID")
        found = self._find(request, id)
        if found is None:
            return _success({**info_of(None), "Error": UNKNOWN_JOB})
        info = await self._server.looking.run(_owner(request)[0], self._server.ledger.info, found)
        if info.annotation:
            info = info.replace(annotation=self._server.ledger.shown(info.annotation))
        return _success({**info_of(info), "Error": ""})

    async def job_control(self, request: Request) -> Response:
        """Do something to a job: "" or why not."""
        if not self._control:
            return _switched_off("jobcontrol")
        id, action = request.query_params.get("jobID"), request.query_params.get("action")
        if not id:
            return _missing("jobID")
        if not action:
            return _missing("action")
        found, verb = self._find(request, id), _ACTIONS.get(action)
        if found is None:
            return _success(UNKNOWN_JOB)
        if verb is None:
            return _success(f"undefined job operation {action}")
        jobs = [job for job in found.jobs if job.task is not None and (job.array is None or not job.ended)]
        return await self._acted(request, lambda: self._server.ledger.control(jobs, verb))

    async def delete_job(self, request: Request) -> Response:
        """Forget a job that has ended: "" or why not."""
        if not self._control:
            return _switched_off("deletejob")
        id = request.query_params.get("jobID")
        if not id:
            return _missing("jobID")
        found = self._find(request, id)
        if found is None:
            return _success(UNKNOWN_JOB)
        jobs = found.jobs
        return await self._acted(request, lambda: self._server.ledger.reap(jobs))

    async def _acted(self, request: Request, act: Callable[[], Mapping[str, WflError]]) -> Response:
        try:
            failures = await self._server.acting.run(_owner(request)[0], act)
        except WflError as error:
            return _success(self._words(error))
        return _success(next((self._words(error) for error in failures.values()), ""))

    # -- what they have in common --

    def _find(self, request: Request, id: str) -> Job | Array | None:
        try:
            return self._server.ledger.get(identity_of(request), id, _owner(request))
        except WflError:
            return None

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page of another site cannot send that unasked
            raise HttpError(415, InvalidArgumentError("the body is of another type than application/json"))
        return await self._server.bodies.read(request)

    def _words(self, error: Exception) -> str:
        return self._server.ledger.shown(words(str(error)))


def _owner(request: Request) -> Owner:
    return identity_of(request).name, SESSION


def info_of(info: JobInfo | None) -> dict[str, Any]:
    """A JobInfo as it is sent there; None: all zero."""
    known = info or JobInfo()
    return {
        "allocatedMachines": [*known.allocated_machines] if info else None,
        "annotation": known.annotation or "",
        "cpuTime": _seconds(known.cpu_time),
        "dispatchTime": _sent(known.dispatch_time),
        "exitStatus": known.exit_status or 0,
        "extension": dict(sorted(known.extensions.items())),
        "finishTime": _sent(known.finish_time),
        "id": known.id,
        "jobOwner": known.job_owner or "",
        "queueName": known.queue_name or "",
        "slots": known.slots or 0,
        "state": str(known.state) if info else "unset",
        "subState": known.sub_state or "",
        "submissionMachine": known.submission_machine or "",
        "submissionTime": _sent(known.submission_time),
        "terminatingSignal": known.terminating_signal or "",
        "wallclockTime": _seconds(known.wallclock_time),
    }


def _sent(when: datetime | None) -> str:
    """As Go writes times: without zeros at the end of what is below a second."""
    if when is None:
        return ZERO_TIME
    text = when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    below = f".{when.microsecond:06d}".rstrip("0") if when.microsecond else ""
    return f"{text}{below}Z"


def _seconds(span: timedelta | None) -> int:
    return 0 if span is None else int(span.total_seconds())


def template_of(body: Mapping[str, Any]) -> JobTemplate:
    """The template in a body, where zero means unset.

    Raises MalformedError for what is of the wrong type, InvalidArgumentError for what can be no template.
    """
    fields: dict[str, Any] = {}
    for key, value in body.items():
        if value is None:
            continue
        if name := _TEXTS.get(key):
            fields[name] = _typed(value, str) or None
        elif name := _LISTS.get(key):
            fields[name] = tuple(_typed(item, str) if item is not None else "" for item in _typed(value, list)) or None
        elif name := _FLAGS.get(key):
            fields[name] = _typed(value, bool) or None
        elif name := _NUMBERS.get(key):
            fields[name] = _number(body, key) or None
        elif name := _MAPS.get(key):
            fields[name] = _map(name, value) or None
        elif name := _TIMES.get(key):
            fields[name] = _time(value)
    return JobTemplate(**fields)


def _map(name: str, value: Any) -> dict[str, Any]:
    found = {key: _typed(text, str) if text is not None else "" for key, text in _typed(value, dict).items()}
    return {key: _limit(key, text) for key, text in found.items()} if name == "resource_limits" else found


def _limit(name: str, text: str) -> float:
    """There, limits are texts."""
    try:
        return float(text) if name in (CPU_TIME, WALLCLOCK_TIME) else int(text)
    except ValueError:
        raise InvalidArgumentError(f"resourceLimits[{name!r}] is {text!r}, expected a number") from None


def _time(value: Any) -> datetime | None:
    text = _typed(value, str)
    if not _TIME.fullmatch(text):
        raise MalformedError(text)
    if text == ZERO_TIME:
        return None
    head, _, below = text.replace("Z", "+00:00").partition(".")
    if below:  # nanoseconds
        digits, zone = below[:-6], below[-6:]
        head = f"{head}.{digits[:6].ljust(6, '0')}{zone}"
    try:
        return datetime.fromisoformat(head)
    except ValueError as error:
        raise MalformedError(text) from error


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise MalformedError(value)
    return _SURROGATES.sub("\ufffd", value) if isinstance(value, str) else value


def _number(body: Mapping[str, Any], key: str) -> int:
    value = body.get(key)
    if value is None:
        return 0
    number: int = _typed(value, int)
    if not -_INT64 <= number < _INT64:
        raise MalformedError(number)
    return number


def _object(body: bytes) -> dict[str, Any]:
    """What Go's decoder sees: names in any case, the last of several wins."""
    try:
        found = json.loads(body.decode("utf-8", "replace"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedError(error) from error
    if not isinstance(found, dict):
        raise MalformedError(found)
    return {key.lower(): value for key, value in found.items()}


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _check_numbers(request: Request) -> Response | None:
    for name in ("skip", "limit"):
        text = request.query_params.get(name)
        if text:
            if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
                return _invalid(name, text, "invalid syntax")
            if not -_INT32 <= int(text) < _INT32:
                return _invalid(name, text, "value out of range")
    return None


def _invalid(name: str, text: str, why: str) -> Response:
    quoted = json.dumps(text, ensure_ascii=False)
    told = f"error binding string parameter: strconv.ParseInt: parsing {quoted}: {why}"
    return _error(f"Invalid format for parameter {name}: {told}")


def _missing(name: str) -> Response:
    return _error(f"Query argument {name} is required, but not found")


def _error(text: str) -> Response:
    """As Go's http.Error answers."""
    return Response(text + "\n", 400, media_type="text/plain")


def _switched_off(name: str) -> Response:
    text = f"{name} by GET is switched off on this server: the API of version 1 has a POST and a DELETE for it"
    return Response(_encoded(text), 405, {"Allow": ""}, "application/json")


def _success(value: Any) -> Response:
    return Response(_encoded(value), media_type="application/json")


def _encoded(value: Any) -> bytes:
    """As Go's json.Marshal: no spaces, and what HTML might take for its own as numbers."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return words(text.translate(_ESCAPED)).encode()


_ESCAPED = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}
_SURROGATES = re.compile("[\ud800-\udfff]")
