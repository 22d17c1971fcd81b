"""The contract that an execution system fulfils: submit, control, tell, give output, reap; nothing more.

A backend never waits for a job, never calls user code and keeps no history: it reports facts as `JobInfo` values
(None = not known), as often and in any order it likes, and the session's ledger merges them.
`docs/writing-a-backend.md` is the guide.
"""

from __future__ import annotations

import enum
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import structs

from wfl.drmaa2 import Capability, JobInfo, JobState, JobTemplate, MachineInfo, QueueInfo, SubState, fact
from wfl.errors import (
    DrmCommunicationError,
    InvalidArgumentError,
    UnsupportedAttributeError,
    UnsupportedOperationError,
    WflError,
    nearest,
)

if TYPE_CHECKING:
    from pathlib import Path

Report = Callable[[Iterable[JobInfo]], None]
"""How a backend tells: a batch of facts for the ledger. Cheap, thread-safe, never runs user code."""

Stream = Literal["stdout", "stderr"]

INDEX = "$DRMAA2_INDEX$"
"""The placeholder of an array element's index; see `Backend.index_fields`."""


class Action(enum.Enum):
    """What can be done to a job that the system holds."""

    SUSPEND = "suspend"
    RESUME = "resume"
    HOLD = "hold"
    RELEASE = "release"
    TERMINATE = "terminate"
    KILL = "kill"


class Submission(msgspec.Struct, frozen=True, gc=False):
    """One job to be started. `key` is unique for ever and must be findable in the system (name, label, comment).

    `index` is the element's number in an array (None: not an array element); `job_id` is what the job sees as
    JOB_ID where the system does not set it itself (for an element, the id of its array).
    """

    key: str
    template: JobTemplate
    job_id: str
    index: int | None = None


class Known(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of a job that is to be found again: `id` is None where no answer ever came.

    By the session, or by the system itself. `inherited`: it waited (QUEUED) when its program, which is gone and let its
    jobs live on, last heard of it, and belongs to this program alone now.
    """

    key: str
    id: str | None
    template: JobTemplate
    info: JobInfo | None = None
    job_id: str | None = None
    index: int | None = None
    inherited: bool = False


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the system said when it was reached: facts, and the ids (or keys) that it does not know.

    A job named in neither is one that the system could not speak of now: it is asked about again.
    """

    infos: Sequence[JobInfo] = ()
    gone: Sequence[str] = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How hard the session may press the system. Intervals are seconds; None means no limit.

    requests: calls in flight at once; submissions, ids: how many fit in one call;
    ask_min, ask_max: shortest and longest time between two questions to a backend that must be asked;
    collect: how long the exit status of an ended job may take to become known, while the system answers;
    missing: how long after its submission a job that was never seen may be unknown to the system.
    """

    requests: int | None = None
    submissions: int | None = None
    ids: int | None = None
    ask_min: float = 1.0
    ask_max: float = 60.0
    collect: float = 30.0
    missing: float = 30.0


class UnsettledError(DrmCommunicationError):
    """The outcome of a submission that may have been accepted or not: for this one alone as if `submit` had raised."""


Outcome = str | WflError
"""Of one submission: the system's id for the job, or why it was refused; UnsettledError where nobody can say."""


class Backend(ABC):
    """One execution system as one session sees it. All methods may be called from any thread, several at once.

    A method that cannot reach the system raises DrmCommunicationError; for a submission that means
    *unknown*, and the session settles it with `find`, never by submitting again.
    """

    name: str
    """Short name in messages, such as "process"."""
    capabilities: frozenset[Capability]
    """What the system does itself; what is missing here the session does where it can (holding, starting later,
    limits of time and number, arrays) and refuses where it cannot."""
    fields: frozenset[str]
    """Template fields that are honoured. A set field that is not listed is refused by name."""
    extensions: frozenset[str] = frozenset()
    """Keys of JobTemplate.extensions that are honoured."""
    index_fields: frozenset[str] = frozenset()
    """Of a native array: template fields in which `$DRMAA2_INDEX$` is left to the backend, which gives each element its
    own; with the placeholder elsewhere elements are submitted one by one."""
    limits: Limits = Limits()
    tells: bool = True
    """True: ends are reported by the backend itself. False: the session asks, for all jobs in one question."""
    finds_by_key: bool = True
    """Whether `find` can tell of a job by its key alone. False: the session writes every id down at once."""

    def check(self, template: JobTemplate) -> None:
        """Raise for a template that this system cannot run as it stands. Called before anything is started."""
        values = zip(template.__struct_fields__, structs.astuple(template), strict=True)
        for field, value in values:
            if value is not None and field not in self.fields and value is not False and value not in ("", (), {}):
                msg = f"{self.name} does not honour {field}; remove it (honoured: {', '.join(sorted(self.fields))})"
                raise UnsupportedAttributeError(msg)
        for key in template.extensions or ():
            if key not in self.extensions:
                msg = f"{self.name} has no extension {key!r};{nearest(key, self.extensions)}"
                raise UnsupportedAttributeError(msg)

    @abstractmethod
    def open(self, report: Report, directory: Path | None) -> None:
        """Take the ledger's ear. `directory` is where to keep what must outlive the program (None: no store).

        Contacts the system only as far as needed to say at once that it cannot be used.
        """

    def resolve(self, template: JobTemplate) -> JobTemplate:
        """The template with files of this side named whatever directory a program is in that finds the job again.

        Called before and after placeholders are filled; by default nothing changes. Never raises: `check` refuses.
        """
        return template

    @abstractmethod
    def submit(self, submissions: Sequence[Submission]) -> Sequence[Outcome]:
        """Start these jobs, at most `limits.submissions` of them; one outcome each, in order."""

    def submit_array(
        self, submission: Submission, indexes: range, max_parallel: int | None
    ) -> Sequence[Outcome]:  # pragma: no cover - only called with Capability.NATIVE_ARRAYS
        """Start one native array; one outcome per element. Only called with Capability.NATIVE_ARRAYS."""
        raise UnsupportedOperationError(f"{self.name} has no native arrays: {submission, indexes, max_parallel}")

    @abstractmethod
    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """Do `action` to these jobs; the failures by id. The new state is reported before this returns."""

    @abstractmethod
    def ask(self, ids: Sequence[str]) -> Answer:
        """Where are these jobs? One question for all; never a guess: no answer is DrmCommunicationError."""

    @abstractmethod
    def find(self, known: Sequence[Known]) -> Answer:
        """Find jobs again by key, also those of an earlier program, and tell of them from now on.

        The infos carry the system's id in `id` and our key in `extensions["key"]` where the two differ;
        `gone` lists the *keys* that the system does not know.
        """

    def collect(self, ids: Sequence[str]) -> Sequence[JobInfo]:
        """Exit status and usage of jobs seen ended without them (an end reported with sub_state None)."""
        raise UnsupportedOperationError(f"{self.name} reports ends whole: {ids}")

    @abstractmethod
    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """At most `limit` bytes of output from `offset`, and whether that is the end for now."""

    @abstractmethod
    def reap(self, ids: Sequence[str]) -> None:
        """Remove what the system keeps of these ended jobs: output, records, containers."""

    def remembered(self) -> Sequence[Known]:
        """The jobs of this session that the system itself can tell again without a store: none on most."""
        return ()

    def tidy(self, keys: Collection[str]) -> None:  # noqa: B027 - most leave nothing
        """Remove what earlier programs of this session left that belongs to none of these keys any more."""

    def how_to_cancel(self, ids: Collection[str]) -> str:
        """For a person: how to end these jobs, which may live on after the program; `kill_all` is a Workflow's."""
        del ids
        return "kill_all()"

    @abstractmethod
    def close(self, *, end: bool) -> None:
        """Let go. With `end`, everything of this session that still runs is ended first; else it lives on."""

    def abandon(self) -> None:  # noqa: B027 - most hold nothing that a fork shares
        """The program was forked: drop inherited handles without a word to the system (called in the child)."""


class Monitor(ABC):
    """One execution system as a whole, for a MonitoringSession to look at; nothing is changed by it.

    Made by `Context.monitor`, which contacts the system. All methods may be called from any thread; each asks anew. One
    that cannot reach the system raises DrmCommunicationError; one that the system has no answer to raises
    UnsupportedOperationError with the reason.
    """

    @abstractmethod
    def jobs(self, session_name: str | None) -> Sequence[JobInfo]:
        """The jobs that have not ended, those of others too as far as this user may see them; with a name only those
        of this session.

        The id is the one that the session's own JobInfo has; extensions["session"] is the session's name where the
        system keeps it.
        """

    @abstractmethod
    def machines(self) -> Sequence[MachineInfo]:
        """The machines on which jobs are run."""

    def queues(self) -> Sequence[QueueInfo]:
        """The queues that a template's `queue_name` may name; none where there are none."""
        return ()

    def categories(self) -> Sequence[str]:
        """What a template's `job_category` may name, as far as the system lists it; none where there is nothing."""
        return ()

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go."""


def ended(
    id: str,
    *,
    exit_status: int | None = None,
    signal_name: str | None = None,
    sub_state: SubState | None = None,
    incomplete: bool = False,
    **more: Any,
) -> JobInfo:
    """The fact that a job has ended, in the one form all backends use.

    A signal gives exit status 128 + N and sub_state "signaled", an exit status "exited", unless the backend
    knows better; DONE means exit status 0 and nothing else. `incomplete`: what had to follow the command (its files
    to be copied out) failed, so the job has FAILED whatever its exit status.
    """
    if signal_name is not None and exit_status is None:
        exit_status = 128 + _signal_number(signal_name)
    sub_state = sub_state or ("signaled" if signal_name else "exited")
    done = exit_status == 0 and sub_state == "exited" and not incomplete
    state = JobState.DONE if done else JobState.FAILED
    return fact(
        id=id, state=state, sub_state=sub_state, exit_status=exit_status, terminating_signal=signal_name, **more
    )


def _signal_number(name: str) -> int:
    try:
        return signal.Signals[name].value
    except KeyError:
        raise InvalidArgumentError(f"no signal is named {name!r} here") from None
