"""The bodies of the v1 API as structs: what decodes requests and encodes answers also describes them in OpenAPI.

JobInfo and JobTemplate stay as the text that their own to_json writes and from_json reads.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Raw, Struct, structs

from wfl.drmaa2 import FrozenDict, JobInfo, JobTemplate, MachineInfo, QueueInfo, _fields_from_json
from wfl.errors import InvalidArgumentError
from wfl.server.refusals import Fault, malformed

_T = TypeVar("_T")
KEY = r"^[ -~]{1,200}$"
"""As descriptions have it; in Python `$` would let a line's end through."""
Key = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        pattern=KEY.replace("$", r"\Z"),
        description="yours, and once yours for ever",
        extra_json_schema={"pattern": KEY},
    ),
]
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Info = Annotated[Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/JobInfo"})]
Shown = Annotated[Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/JobTemplate"})]
Given = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": "#/components/schemas/JobTemplate"})]
Machine = Annotated[Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/MachineInfo"})]
Queue = Annotated[Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/QueueInfo"})]
Act = Literal["suspend", "resume", "hold", "release", "terminate", "kill"]
Index = Annotated[int, Meta(ge=0, le=1 << 31)]


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """A request: an unknown field is a mistake."""


class Reply(Struct, omit_defaults=False, kw_only=True):
    """An answer."""


class Wanted(Body):
    """One job to be started. Without a key (here or, for one job, in the header Idempotency-Key) it is started anew."""

    template: Given
    key: Key | None = None


class Jobs(Body):
    """Jobs to be started."""

    jobs: list[Wanted]


class WantedArray(Body):
    """An array to be started; `indexes` are start, stop (not in it) and step."""

    template: Given
    indexes: Annotated[list[Index], Meta(min_length=3, max_length=3)]
    key: Key | None = None
    max_parallel: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None


class Started(Struct, omit_defaults=True, kw_only=True):
    """One job that was started, or why it was not."""

    key: str | None = None
    id: str | None = None
    error: Fault | None = None


class StartedJobs(Reply):
    """In the order of the request."""

    jobs: list[Started]


class StartedElement(Struct, omit_defaults=True, kw_only=True):
    """One element of an array that was started, or why it was not."""

    index: int
    id: str | None = None
    error: Fault | None = None


class StartedArray(Reply):
    """The array's id, and its elements in order."""

    id: str
    jobs: list[StartedElement]


class JobView(Struct, omit_defaults=True, kw_only=True):
    """One job. `array` is the id of the array that it is an element of, `index` its place in that."""

    id: str
    key: str
    array: str | None
    index: int | None
    info: Info
    template: Shown | msgspec.UnsetType = msgspec.UNSET


class JobDetails(JobView, omit_defaults=True, kw_only=True):
    """One job or array, with whose it is, and what its results are called."""

    identity: str
    session: str
    results: list[str] | None = None


class Page(Reply):
    """Jobs in order of submission; `cursor` leads to the next page, null after the last."""

    jobs: list[JobView]
    cursor: str | None = None


class Sought(Body):
    """Jobs by key and by id; an array's stands for all of its elements, KEY.INDEX for one."""

    keys: list[Key] = []
    ids: list[str] = []
    templates: bool = False


class Gone(Struct):
    """What there is no job for."""

    keys: list[str]
    ids: list[str]


class Found(Reply):
    """Jobs, and what there is none for."""

    jobs: list[JobView]
    gone: Gone


class Ids(Body):
    """Jobs; an array's id stands for all of its elements."""

    ids: list[str]


class Control(Body):
    """What to do, to which jobs."""

    ids: list[str]
    action: Act


class Failures(Reply):
    """What could not be done, by job."""

    failures: dict[str, Fault]


class Happened(Struct):
    """A job whose state or info changed, as it is now."""

    id: str
    info: Info


class Events(Reply):
    """What happened since the cursor that was given; after a reset nobody knows, so look at all jobs once more."""

    cursor: str
    reset: bool
    jobs: list[Happened]


class NewUpload(Body):
    """What will be uploaded: one file, or an archive (tar) of one file or directory that is unpacked here."""

    size: Count | None = None
    kind: Literal["file", "tar"] = "file"


class Uploaded(Reply):
    """An upload, with how much of it is there."""

    upload: str
    offset: int
    complete: bool = False


class Complete(Body):
    """SHA-256 of all bytes of an upload, in hexadecimal."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", min_length=64, max_length=64)]


class Who(Struct):
    """Who you are here."""

    name: str
    admin: bool


class Bounds(Struct):
    """Of one request: jobs, elements, ids, bytes of its body; bytes of an upload; seconds of a long poll."""

    submissions: int
    elements: int
    ids: int
    body: int
    upload: int
    wait: float


class About(Reply):
    """The server: `server` is its name for ever, `started` that of this run, `fields` are those of a template."""

    server: str
    started: str
    version: str
    context: str
    capabilities: list[str]
    fields: list[str]
    extensions: list[str]
    identity: Who
    limits: Bounds


class SessionView(Struct):
    """One identity's jobs under one name."""

    identity: str
    session: str
    jobs: int


class Sessions(Reply):
    """Yours; an administrator's are everybody's."""

    sessions: list[SessionView]


class Alive(Struct):
    """One job that has not ended, and whose it is."""

    id: str
    identity: str
    session: str
    info: Info


class Living(Reply):
    """Yours, of all sessions; an administrator's are everybody's. `cursor` leads to the next page, null after it."""

    jobs: list[Alive]
    cursor: str | None = None


class System(Reply):
    """What the server's own system has of what was asked for."""

    machines: list[Machine] = []
    queues: list[Queue] = []
    categories: list[str] = []


def _wire(kind: Any) -> Any:
    """A field's type as JSON has it."""
    if get_origin(kind) is FrozenDict:
        return dict[get_args(kind)]  # type: ignore[misc] # known at run time only
    if kind is timedelta:
        return Annotated[float, Meta(description="seconds")]
    if kind is datetime:
        return Annotated[datetime, Meta(tz=True)]
    if get_args(kind) and type(None) in get_args(kind):
        (inner,) = (one for one in get_args(kind) if one is not type(None))
        return _wire(inner) | None
    return kind


def shape(value: type[Struct]) -> type[Struct]:
    """One of VALUES as it stands in JSON, for its description."""
    fields = [(one.name, _wire(one.type) | msgspec.UnsetType, msgspec.UNSET) for one in structs.fields(value)]
    made: type[Struct] = msgspec.defstruct(value.__name__, fields, rename="camel", omit_defaults=True)
    made.__doc__ = (value.__doc__ or "").partition("\n")[0]
    return made


VALUES = (JobInfo, JobTemplate, MachineInfo, QueueInfo)


def read(body: bytes, kind: type[_T]) -> _T:
    """A request's body. Raises HttpError (400) that says what is wrong with it."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise malformed(f"the body is not as it should be: {error}") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return _read_slowly(body, kind, error)


def _read_slowly(body: bytes, kind: type[_T], problem: Exception) -> _T:
    """File names that are not UTF-8 have lone surrogates in Python (PEP 383), which only the standard library reads.

    Nothing but a template has such names: an id with one could not even be answered.
    """
    if kind not in (Jobs, WantedArray):
        raise malformed(f"the body is no JSON: {problem}") from problem
    try:
        return msgspec.convert(json.loads(body), kind)
    except msgspec.ValidationError as error:
        raise malformed(f"the body is not as it should be: {error}") from error
    except (ValueError, RecursionError):
        raise malformed(f"the body is no JSON: {problem}") from problem


def template_of(data: dict[str, Any]) -> JobTemplate:
    """The template that a body has. Raises InvalidArgumentError."""
    try:
        return JobTemplate(**_fields_from_json(JobTemplate, data))
    except (TypeError, OverflowError, RecursionError) as error:
        raise InvalidArgumentError(f"JSON of JobTemplate: {error}") from error
