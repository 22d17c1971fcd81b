"""MonitoringSession: a system as a whole. It reads what a context's Monitor tells, and knows no session of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TypeVar

from wfl.context import Context
from wfl.drmaa2 import MachineInfo, QueueInfo, agrees
from wfl.errors import InvalidSessionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from types import TracebackType

    from wfl.backend import Monitor
    from wfl.drmaa2 import JobInfo

_Named = TypeVar("_Named", MachineInfo, QueueInfo)


class MonitoringSession:
    """DRMAA2's monitoring session: jobs of all sessions, machines, queues and job categories of a context's system.

    It reads, and changes nothing. Every call asks the system anew and raises what that says; opening does, too, and is
    an UnsupportedOperationError where the context shows nothing of its system. Calls may come from any thread. What
    runs goes on when it is closed.
    """

    def __init__(self, context: Context) -> None:
        if not isinstance(context, Context):
            raise TypeError(f"context is {context!r} ({type(context).__name__}), expected a Context")
        self.context = context
        self._monitor = context.monitor()
        self._closed = False

    def get_all_jobs(self, like: JobInfo | None = None, *, session_name: str | None = None) -> list[JobInfo]:
        """The jobs that have not ended, as far as the system shows them: also other programs' and other users'.

        like: only those that agree with it where it says something, as in JobSession.get_jobs.
        session_name: only those of this session; UnsupportedOperationError where the system does not keep the name.

        Ids are those of the jobs' own sessions. What only waits in a session (held, or over its max_parallel) is not
        known to the system yet.
        """
        if session_name is not None and not isinstance(session_name, str):
            raise TypeError(f"session_name is {session_name!r} ({type(session_name).__name__}), expected str or None")
        infos = self._look().jobs(session_name)
        return [info for info in infos if like is None or agrees(info, like)]

    def get_all_machines(self, names: Collection[str] | None = None) -> list[MachineInfo]:
        """The machines on which jobs are run; with `names` only those of them that are there."""
        return _chosen(self._look().machines(), names)

    def get_all_queues(self, names: Collection[str] | None = None) -> list[QueueInfo]:
        """The queues that `queue_name` may name; with `names` only those of them that are there."""
        return _chosen(self._look().queues(), names)

    def get_all_job_categories(self) -> list[str]:
        """What `job_category` may name, as far as the system lists it: of containers, the images that are there."""
        return list(self._look().categories())

    def _look(self) -> Monitor:
        if self._closed:
            raise InvalidSessionError("this monitoring session was closed; open a new one")
        return self._monitor

    def close(self) -> None:
        """Let go of the system; closing again does nothing."""
        if not self._closed:
            self._closed = True
            self._monitor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MonitoringSession({self.context!r}, {'closed' if self._closed else 'open'})"


def _chosen(infos: Iterable[_Named], names: Collection[str] | None) -> list[_Named]:
    if isinstance(names, str):
        raise TypeError(f"names is {names!r} (str), expected a list of names or None")
    return [info for info in infos if names is None or info.name in names]
