"""The vocabulary of DRMAA2 (GFD.231) in Python's spelling: JobTemplate, JobInfo, JobState, Capability, and what a
monitoring session tells: MachineInfo, QueueInfo.

Values only: frozen, compared and hashed by content, without behaviour. They know no session and no system.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum, auto
from sys import intern
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self, TypedDict, TypeVar, get_args

import msgspec
from msgspec import structs

from wfl.errors import InvalidArgumentError, nearest
from wfl.timing import seconds

if TYPE_CHECKING:
    from typing import Unpack

_K = TypeVar("_K")
_V = TypeVar("_V")
_Check = Callable[[str, Any], Any]
"""Takes a field's name and a value, returns the value as it is kept, or raises."""

# --- states, capabilities, names --------------------------------------------------------------------------


class JobState(StrEnum):
    """Where a job is in its life; as text, DRMAA2's name: ``JobState.QUEUED_HELD == "queuedHeld"``.

    `ended`: the job is DONE or FAILED, for good. `started`: it runs, is suspended, or has ended, so that a
    wait for the start is over. A requeued job has not started: it is waiting once more.
    """

    UNDETERMINED = "undetermined"
    QUEUED = "queued"
    QUEUED_HELD = "queuedHeld"
    RUNNING = "running"
    SUSPENDED = "suspended"
    REQUEUED = "requeued"
    REQUEUED_HELD = "requeuedHeld"
    DONE = "done"
    FAILED = "failed"

    ended: bool
    started: bool

    def __init__(self, name: str) -> None:
        # Plain attributes, set once: a ledger of many jobs reads them all the time.
        self.ended = name in {"done", "failed"}
        self.started = self.ended or name in {"running", "suspended"}

    def __repr__(self) -> str:
        return f"JobState.{self.name}"


class Capability(StrEnum):
    """What a backend can do: DRMAA2's capabilities first, then those that DRMAA2 has no name for."""

    ADVANCE_RESERVATION = auto()
    RESERVE_SLOTS = auto()
    CALLBACK = auto()
    BULK_JOBS_MAXPARALLEL = auto()
    JT_EMAIL = auto()
    JT_STAGING = auto()
    JT_DEADLINE = auto()
    JT_MAXSLOTS = auto()
    JT_ACCOUNTINGID = auto()
    RT_STARTNOW = auto()
    RT_DURATION = auto()
    RT_MACHINEOS = auto()
    RT_MACHINEARCH = auto()
    # control
    SUSPEND = auto()
    HOLD = auto()
    TERMINATE = auto()
    # output
    OUTPUT = auto()
    STREAM = auto()
    # arrays and order
    NATIVE_ARRAYS = auto()
    MAX_PARALLEL = auto()
    # life beyond the program
    REATTACH = auto()
    DETACH = auto()
    # limits and times
    WALLCLOCK_LIMIT = auto()
    START_TIME = auto()
    DEADLINE = auto()
    # what is known after the end
    RUSAGE = auto()
    PEAK_MEMORY = auto()


SubState = Literal[
    "exited",
    "signaled",
    "timeout",
    "out_of_memory",
    "cancelled",
    "preempted",
    "evicted",
    "node_failure",
    "launch_failure",
    "lost",
]
"""Why a job ended."""
SUB_STATES: frozenset[str] = frozenset(get_args(SubState))

CORE_FILE_SIZE = "CORE_FILE_SIZE"
CPU_TIME = "CPU_TIME"
DATA_SEGMENT_SIZE = "DATA_SEGMENT_SIZE"
FILE_SIZE = "FILE_SIZE"
OPEN_FILES = "OPEN_FILES"
STACK_SIZE = "STACK_SIZE"
VIRTUAL_MEMORY = "VIRTUAL_MEMORY"
WALLCLOCK_TIME = "WALLCLOCK_TIME"
RESOURCE_LIMITS = (
    CORE_FILE_SIZE,
    CPU_TIME,
    DATA_SEGMENT_SIZE,
    FILE_SIZE,
    OPEN_FILES,
    STACK_SIZE,
    VIRTUAL_MEMORY,
    WALLCLOCK_TIME,
)


class FrozenDict(dict[_K, _V]):
    """A dict that cannot change, and so can be hashed; equal to any dict of the same content."""

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override] # dict says None: it may change, this one may not
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("this mapping belongs to a frozen value; make a new one: {**old, key: value}")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


# --- checks: one per kind of field ------------------------------------------------------------------------


def _wrong(name: str, value: object, expected: str) -> TypeError:
    return TypeError(f"{name} is {value!r} ({type(value).__name__}), expected {expected}")


def _words(name: str, value: Any) -> str:
    """Text that a system wrote: any characters."""
    if type(value) is str:
        return value
    if not isinstance(value, str):
        raise _wrong(name, value, "str")
    return str.__str__(value)


def _shared(name: str, value: Any) -> str:
    """A system's text that many jobs have in common is kept once."""
    return intern(_words(name, value))


def _text(name: str, value: Any) -> str:
    if type(value) is str and "\0" not in value:  # nearly always so, hence first
        return value
    text = _words(name, value)
    if "\0" in text:
        raise InvalidArgumentError(f"{name} contains a NUL character, which no system takes: {text!r}")
    return text


def _path(name: str, value: Any) -> str:
    if type(value) is str and "\0" not in value:
        return value
    return _text(name, os.fspath(value) if hasattr(value, "__fspath__") else value)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if type(value) is not tuple and type(value) is not list and not _is_sequence(value):
        raise _wrong(name, value, "a list or tuple of str")
    return tuple(
        [
            item if type(item) is str and "\0" not in item else _path(f"{name}[{index}]", item)
            for index, item in enumerate(value)
        ]
    )


def _machines(name: str, value: Any) -> tuple[str, ...]:
    return tuple(map(intern, _texts(name, value)))


_NO_PAIRS: FrozenDict[str, str] = FrozenDict()  # one for all: most jobs have none


def _pairs(name: str, value: Any) -> FrozenDict[str, str]:
    if type(value) is not dict and not isinstance(value, Mapping):
        raise _wrong(name, value, "a mapping of str to str")
    if not value:
        return _NO_PAIRS
    pairs: FrozenDict[str, str] = FrozenDict(
        [
            (
                key if type(key) is str and "\0" not in key else _path(f"a key of {name}", key),
                text if type(text) is str and "\0" not in text else _path(f"{name}[{key!r}]", text),
            )
            for key, text in value.items()
        ]
    )
    if "" in pairs:
        raise InvalidArgumentError(f"{name} has an empty key")
    return pairs


def _environment(name: str, value: Any) -> FrozenDict[str, str]:
    pairs = _pairs(name, value)
    for key in pairs:
        if "=" in key:
            raise InvalidArgumentError(f"{name} has the key {key!r}: the name of a variable cannot contain '='")
    return pairs


def _staging(name: str, value: Any) -> FrozenDict[str, str]:
    pairs = _pairs(name, value)
    for target, source in pairs.items():
        if not source:
            raise InvalidArgumentError(f"{name}[{target!r}] is empty, expected the source of the file")
    return pairs


def _flag(name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    raise _wrong(name, value, "True or False")


def _whole(name: str, value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise _wrong(name, value, "int")
    return operator.index(value)


def _at_least(minimum: int) -> _Check:
    def check(name: str, value: Any) -> int:
        number = _whole(name, value)
        if number < minimum:
            raise InvalidArgumentError(f"{name} is {number}, expected {minimum} or more")
        return number

    return check


def _instant(name: str, value: Any) -> datetime:
    """Kept in UTC: the same instant is the same value in whichever zone it was written."""
    if not isinstance(value, datetime):
        raise _wrong(name, value, "an aware datetime")
    if value.utcoffset() is None:
        raise InvalidArgumentError(f"{name} is {value!r}, without a time zone; for local time use .astimezone()")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidArgumentError(f"{name} is {value!r}, outside of the years 1 to 9999 in UTC") from None


def _span(name: str, value: Any) -> timedelta:
    return value if type(value) is timedelta else timedelta(seconds=seconds(value, name))


def _load(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number")
    if not value >= 0:
        raise InvalidArgumentError(f"{name} is {value}, expected 0 or more")
    return float(value)


def _limits(name: str, value: Any) -> FrozenDict[str, float]:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "a mapping of limit names to numbers")
    return FrozenDict({_limit_name(name, key): _limit(name, key, limit) for key, limit in value.items()})


def _limit_name(name: str, value: Any) -> str:
    key = _words(f"a key of {name}", value)
    if key not in RESOURCE_LIMITS:
        raise InvalidArgumentError(f"{name} has no limit {key!r}:{nearest(key.upper(), RESOURCE_LIMITS)}")
    return key


def _limit(field: str, key: str, value: Any) -> float:
    name = f"{field}[{key!r}]"
    if key not in {CPU_TIME, WALLCLOCK_TIME}:
        return int(_natural(name, value))
    limit = seconds(value, name)
    if not limit:
        raise InvalidArgumentError(f"{name} is 0, expected a time above 0 (leave it unset for no limit)")
    return limit


def _state(name: str, value: Any) -> JobState:
    if type(value) is JobState:
        return value
    try:
        return JobState(value)
    except ValueError:
        raise InvalidArgumentError(f"{name} is {value!r}:{nearest(str(value), JobState)}") from None


def _sub_state(name: str, value: Any) -> str:
    if value not in SUB_STATES:
        raise InvalidArgumentError(f"{name} is {value!r}:{nearest(str(value), SUB_STATES)}")
    return _shared(name, value)


_natural = _at_least(0)
_positive = _at_least(1)

_TEMPLATE: dict[str, _Check] = {
    "remote_command": _path,
    "args": _texts,
    "submit_as_hold": _flag,
    "rerunnable": _flag,
    "job_environment": _environment,
    "working_directory": _path,
    "job_category": _text,
    "email": _texts,
    "email_on_started": _flag,
    "email_on_terminated": _flag,
    "job_name": _text,
    "input_path": _path,
    "output_path": _path,
    "error_path": _path,
    "join_files": _flag,
    "reservation_id": _text,
    "queue_name": _text,
    "min_slots": _positive,
    "max_slots": _positive,
    "priority": _whole,
    "candidate_machines": _texts,
    "min_phys_memory": _natural,
    "machine_os": _text,
    "machine_arch": _text,
    "start_time": _instant,
    "deadline_time": _instant,
    "stage_in_files": _staging,
    "stage_out_files": _staging,
    "resource_limits": _limits,
    "accounting_id": _text,
    "extensions": _pairs,
}

_INFO: dict[str, _Check] = {
    "id": _words,
    "state": _state,
    "sub_state": _sub_state,
    "exit_status": _whole,
    "terminating_signal": _shared,
    "annotation": _words,
    "allocated_machines": _machines,
    "submission_machine": _shared,
    "job_owner": _shared,
    "slots": _natural,
    "queue_name": _shared,
    "wallclock_time": _span,
    "cpu_time": _span,
    "submission_time": _instant,
    "dispatch_time": _instant,
    "finish_time": _instant,
    "extensions": _pairs,
}

_MACHINE: dict[str, _Check] = {
    "name": _text,
    "available": _flag,
    "cores": _positive,
    "sockets": _positive,
    "cores_per_socket": _positive,
    "threads_per_core": _positive,
    "load": _load,
    "phys_memory": _natural,
    "virt_memory": _natural,
    "machine_os": _text,
    "machine_os_version": _text,
    "machine_arch": _text,
}

_QUEUE: dict[str, _Check] = {"name": _text}

TEXT_FIELDS: tuple[str, ...] = tuple(
    name for name, check in _TEMPLATE.items() if check in {_text, _path, _texts, _pairs, _environment, _staging}
)
"""The template fields that hold text: strings, sequences of strings, mappings of strings to strings."""
_texts_of = operator.attrgetter(*TEXT_FIELDS)
_JOINED = ("job_environment", "stage_in_files", "stage_out_files")

_OTHER_NAMES = {
    "account": "accounting_id",
    "argv": "args",
    "begin": "start_time",
    "cmd": "remote_command",
    "command": "remote_command",
    "container": "job_category",
    "cores": "min_slots",
    "cpus": "min_slots",
    "cwd": "working_directory",
    "directory": "working_directory",
    "env": "job_environment",
    "environ": "job_environment",
    "environment": "job_environment",
    "error": "error_path",
    "executable": "remote_command",
    "hold": "submit_as_hold",
    "hosts": "candidate_machines",
    "image": "job_category",
    "input": "input_path",
    "mem": "min_phys_memory (in KiB)",
    "memory": "min_phys_memory (in KiB)",
    "mounts": "stage_in_files",
    "name": "job_name",
    "nodes": "candidate_machines",
    "ntasks": "min_slots",
    "output": "output_path",
    "partition": "queue_name",
    "project": "accounting_id",
    "queue": "queue_name",
    "requeue": "rerunnable",
    "stderr": "error_path",
    "stdin": "input_path",
    "stdout": "output_path",
    "time_limit": 'resource_limits={"WALLCLOCK_TIME": seconds}',
    "timeout": 'resource_limits={"WALLCLOCK_TIME": seconds}',
    "volumes": "stage_in_files",
    "walltime": 'resource_limits={"WALLCLOCK_TIME": seconds}',
    "workdir": "working_directory",
}
"""What other tools call these fields."""


# --- the values -------------------------------------------------------------------------------------------


class _Checked(msgspec.StructMeta):
    """Checks what is given before the struct is made: nothing is spent on fields that are unset."""

    if not TYPE_CHECKING:  # a type checker reads the constructor from the class itself

        def __call__(cls, /, *values: object, **fields: Any) -> _Value:  # noqa: N805 - a class's call
            return _make(cls, *values, **_checked(cls, fields))


_make = msgspec.StructMeta.__call__


def _checked(cls: type[_Value], fields: dict[str, Any]) -> dict[str, Any]:
    checks = cls._checks
    for name, value in fields.items():
        check = checks.get(name)
        if check is None:
            raise _unknown(cls.__name__, name, checks)
        if value is not None:
            fields[name] = check(name, value)
    return fields


def _unknown(kind: str, name: str, known: Iterable[str]) -> TypeError:
    other = _OTHER_NAMES.get(name) if kind == "JobTemplate" else None
    end = f" did you mean '{other}'?" if other else nearest(name, known)
    return TypeError(f"{kind} has no field {name!r}:{end}")


class _Value(msgspec.Struct, metaclass=_Checked, frozen=True, kw_only=True, rename="camel"):
    """What all values share: checks, replace, JSON."""

    _checks: ClassVar[dict[str, _Check]] = {}
    _json_aliases: ClassVar[dict[str, str]] = {}

    def _replaced(self, fields: dict[str, Any]) -> Self:
        return structs.replace(self, **_checked(type(self), fields))

    if not TYPE_CHECKING:

        def __replace__(self, /, **changes: Any) -> Self:  # for copy.replace; the struct's own checks nothing
            return self.replace(**changes)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what to_json wrote; every mistake in it is an InvalidArgumentError."""
        fields = _fields_from_json(cls, _decoded(cls.__name__, text))
        try:
            return cls(**fields)
        except TypeError as error:
            raise InvalidArgumentError(f"JSON of {cls.__name__}: {error}") from error


def _fields_from_json(cls: type[_Value], data: dict[str, Any]) -> dict[str, Any]:
    names = dict(zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True)) | cls._json_aliases
    fields = {}
    for key, value in data.items():
        name = names.get(key)
        if name is None:
            raise InvalidArgumentError(f"JSON of {cls.__name__} has no field {key!r}:{nearest(key, names)}")
        fields[name] = _parsed_time(key, value) if cls._checks[name] is _instant else value
    return fields


def _parsed_time(key: str, value: Any) -> Any:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise InvalidArgumentError(
            f"JSON field {key} is {value!r}, expected a time like 2030-12-31T23:59:59Z"
        ) from None


def _encoded(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8 has lone surrogates in Python (PEP 383); only the standard library
        # writes them.
        import json

        return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))


def _decoded(kind: str, text: str | bytes) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        data = _decoded_slowly(kind, text)
    if not isinstance(data, dict):
        raise InvalidArgumentError(f"JSON of {kind} is not an object in braces")
    return data


def _decoded_slowly(kind: str, text: str | bytes) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"this is not JSON of {kind}: {error}") from error


_StrPath = str | os.PathLike[str]


class TemplateFields(TypedDict, total=False):
    """What may be given to JobTemplate(...), .replace(...) and every ``**fields``; for type checkers."""

    remote_command: _StrPath | None
    args: Sequence[_StrPath] | None
    submit_as_hold: bool | None
    rerunnable: bool | None
    job_environment: Mapping[str, str] | None
    working_directory: _StrPath | None
    job_category: str | None
    email: Sequence[str] | None
    email_on_started: bool | None
    email_on_terminated: bool | None
    job_name: str | None
    input_path: _StrPath | None
    output_path: _StrPath | None
    error_path: _StrPath | None
    join_files: bool | None
    reservation_id: str | None
    queue_name: str | None
    min_slots: int | None
    max_slots: int | None
    priority: int | None
    candidate_machines: Sequence[str] | None
    min_phys_memory: int | None
    machine_os: str | None
    machine_arch: str | None
    start_time: datetime | None
    deadline_time: datetime | None
    stage_in_files: Mapping[str, _StrPath] | None
    stage_out_files: Mapping[str, _StrPath] | None
    resource_limits: Mapping[str, float | timedelta] | None
    accounting_id: str | None
    extensions: Mapping[str, str] | None


class JobTemplate(
    _Value, frozen=True, kw_only=True, rename="camel", omit_defaults=True, repr_omit_defaults=True, gc=False
):
    """What to run and under which conditions. None is *unset*, so that "" or () can override a default.

    Lists become tuples, paths become str, mappings become immutable, times become UTC. A wrong type, and a
    field that does not exist, is a TypeError; a value that can never work is an InvalidArgumentError.

    Units: `min_phys_memory` and the sizes in `resource_limits` are KiB, OPEN_FILES is a number, CPU_TIME and
    WALLCLOCK_TIME are seconds or a timedelta (kept as float seconds). Staging maps are {target: source}.
    """

    _checks: ClassVar[dict[str, _Check]] = _TEMPLATE
    _json_aliases: ClassVar[dict[str, str]] = {
        "reservationID": "reservation_id",
        "accountingID": "accounting_id",
    }

    remote_command: str | None = None
    args: tuple[str, ...] | None = None
    submit_as_hold: bool | None = None
    rerunnable: bool | None = None
    job_environment: FrozenDict[str, str] | None = None
    working_directory: str | None = None
    job_category: str | None = None  # container image, queue class
    email: tuple[str, ...] | None = None
    email_on_started: bool | None = None
    email_on_terminated: bool | None = None
    job_name: str | None = None
    input_path: str | None = None
    output_path: str | None = None
    error_path: str | None = None
    join_files: bool | None = None
    reservation_id: str | None = None
    queue_name: str | None = None
    min_slots: int | None = None
    max_slots: int | None = None
    priority: int | None = None
    candidate_machines: tuple[str, ...] | None = None
    min_phys_memory: int | None = None
    machine_os: str | None = None
    machine_arch: str | None = None
    start_time: datetime | None = None
    deadline_time: datetime | None = None
    stage_in_files: FrozenDict[str, str] | None = None
    stage_out_files: FrozenDict[str, str] | None = None
    resource_limits: FrozenDict[str, float] | None = None
    accounting_id: str | None = None
    extensions: FrozenDict[str, str] | None = None

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[TemplateFields]) -> None: ...

    def __post_init__(self) -> None:
        if (high := self.max_slots) is not None and (low := self.min_slots) is not None and high < low:
            raise InvalidArgumentError(f"max_slots is {high}, below min_slots, which is {low}")
        if (end := self.deadline_time) is not None and (start := self.start_time) is not None and end < start:
            raise InvalidArgumentError(f"deadline_time is {end}, before start_time, which is {start}")

    def replace(self, **changes: Unpack[TemplateFields]) -> JobTemplate:
        """Return a copy with some fields changed; None unsets a field."""
        changed = self._replaced(dict(changes))
        changed.__post_init__()
        return changed

    def merged_with(self, defaults: JobTemplate) -> JobTemplate:
        """Return this template with its unset fields taken from `defaults`.

        The environment and the two staging maps are joined key by key; every other field is taken whole.
        """
        if defaults == _UNSET:
            return self
        filled: dict[str, Any] = {}
        for name, own, default in zip(
            self.__struct_fields__, structs.astuple(self), structs.astuple(defaults), strict=True
        ):
            if default is None:
                continue
            if own is None:
                filled[name] = default
            elif name in _JOINED:
                filled[name] = FrozenDict({**default, **own})
        merged = structs.replace(self, **filled)
        merged.__post_init__()
        return merged

    def to_json(self) -> str:
        """Return the set fields as a JSON object with DRMAA2's camelCase names; times are RFC 3339."""
        return _encoded(self)


_UNSET = JobTemplate()


class JobInfo(_Value, frozen=True, kw_only=True, rename="camel", repr_omit_defaults=True, gc=False):
    """What is known about a job. None is *not known*, or not yet.

    A job killed by signal N has `terminating_signal` "SIGNAME" and `exit_status` 128 + N; one that never ran
    has `exit_status` None. `sub_state` says why it ended, `annotation` has the system's own words.
    Durations may be given in seconds; in JSON they are seconds.
    """

    _checks: ClassVar[dict[str, _Check]] = _INFO

    id: str = ""
    state: JobState = JobState.UNDETERMINED
    sub_state: SubState | None = None
    exit_status: int | None = None
    terminating_signal: str | None = None
    annotation: str | None = None
    allocated_machines: Sequence[str] = ()
    submission_machine: str | None = None
    job_owner: str | None = None
    slots: int | None = None
    queue_name: str | None = None
    wallclock_time: timedelta | None = None
    cpu_time: timedelta | None = None
    submission_time: datetime | None = None
    dispatch_time: datetime | None = None
    finish_time: datetime | None = None
    extensions: Mapping[str, str] = _NO_PAIRS

    def replace(self, **changes: Any) -> JobInfo:
        """Return a copy with some fields changed."""
        return self._replaced(changes)

    def to_json(self) -> str:
        """Return what is known as a JSON object with DRMAA2's camelCase names."""
        known = zip(self.__struct_encode_fields__, structs.astuple(self), strict=True)
        return _encoded(
            {
                name: value.total_seconds() if type(value) is timedelta else value
                for name, value in known
                if value is not None
            }
        )


def fact(**fields: Any) -> JobInfo:
    """Make a JobInfo of values that are as it keeps them (tuples, UTC datetimes, FrozenDict): not checked, so fast."""
    info: JobInfo = _make(JobInfo, **fields)
    return info


def agrees(info: JobInfo, like: JobInfo) -> bool:
    """DRMAA2's filter: equal where `like` says something, machines contained, times and durations not less."""
    for name in like.__struct_fields__:
        wanted, value = getattr(like, name), getattr(info, name)
        if wanted is None or wanted in ("", (), {}, JobState.UNDETERMINED):
            continue
        if name.endswith("_time"):
            if value is None or value < wanted:
                return False
        elif name == "allocated_machines":
            if not set(wanted) <= set(value):
                return False
        elif value != wanted:
            return False
    return True


class _Shown(_Value, frozen=True, kw_only=True, rename="camel", omit_defaults=True, repr_omit_defaults=True, gc=False):
    """What a system shows of itself."""

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return self._replaced(changes)

    def to_json(self) -> str:
        """Return what is known as a JSON object with DRMAA2's camelCase names."""
        return _encoded(self)


class MachineInfo(
    _Shown, frozen=True, kw_only=True, rename="camel", omit_defaults=True, repr_omit_defaults=True, gc=False
):
    """A machine that jobs may run on. None is *not known*: most systems tell only some of this.

    `available`: jobs can be run there now. `cores`: its processors as the operating system counts them, hardware
    threads included (DRMAA2 has no name for it, and systems tell it more often than sockets and their cores).
    `load`: the average of the last minute, as `uptime` tells it. `phys_memory`, `virt_memory` (with swap): KiB.
    `machine_os`, `machine_arch`: DRMAA2's names, such as "LINUX" and "X64", else the system's own; where the system is
    Linux, `machine_os_version` is the kernel's.
    """

    _checks: ClassVar[dict[str, _Check]] = _MACHINE
    _json_aliases: ClassVar[dict[str, str]] = {
        "machineOS": "machine_os",
        "machineOSVersion": "machine_os_version",
    }

    name: str
    available: bool | None = None
    cores: int | None = None
    sockets: int | None = None
    cores_per_socket: int | None = None
    threads_per_core: int | None = None
    load: float | None = None
    phys_memory: int | None = None
    virt_memory: int | None = None
    machine_os: str | None = None
    machine_os_version: str | None = None
    machine_arch: str | None = None


class QueueInfo(
    _Shown, frozen=True, kw_only=True, rename="camel", omit_defaults=True, repr_omit_defaults=True, gc=False
):
    """A queue that jobs can be given to, by the name that `queue_name` takes."""

    _checks: ClassVar[dict[str, _Check]] = _QUEUE

    name: str


# --- texts of a template ----------------------------------------------------------------------------------


def map_text(template: JobTemplate, f: Callable[[str], str], fields: Iterable[str] | None = None) -> JobTemplate:
    """Return `template` with `f` applied to every text in it: strings, items, keys and values of mappings.

    `fields` narrows it to some of TEXT_FIELDS. The template itself comes back if nothing changed.
    """
    names = TEXT_FIELDS if fields is None else tuple(fields)
    values = _texts_of(template) if fields is None else [getattr(template, name) for name in names]
    changed: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        if value is not None and (mapped := _mapped(name, value, f)) != value:
            changed[name] = mapped
    return template.replace(**changed) if changed else template


def _mapped(name: str, value: Any, f: Callable[[str], str]) -> Any:
    if type(value) is str:
        return f(value)
    if type(value) is tuple:
        return tuple([f(item) for item in value])
    mapped = {f(key): f(text) for key, text in value.items()}
    if len(mapped) < len(value):
        raise InvalidArgumentError(f"{name}: two keys become one after replacement: {list(value)} -> {list(mapped)}")
    return mapped
