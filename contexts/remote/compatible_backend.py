"""A job server that speaks the compatible protocol alone, as an execution system: it is asked, job by job.

The protocol has no keys. Where the answer to a submission is lost, nobody can tell what became of it; that is said, and
nothing is submitted again.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfl.backend import Action, Answer, Backend, Known, Limits, Report, Stream, Submission, ended
from wfl.contexts.guard import Guard
from wfl.contexts.remote.client import Client
from wfl.contexts.remote.compatible import Calls
from wfl.contexts.remote.connection import UnansweredError
from wfl.contexts.remote.ending import Journal, end_now, reached, watch
from wfl.drmaa2 import Capability, JobInfo, JobTemplate
from wfl.errors import UnsupportedAttributeError, UnsupportedOperationError, WflError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wfl.contexts.remote.settings import Credentials, Place
    from wfl.contexts.undertaker import Undertaker

log = logging.getLogger("wfl")

REQUESTS = 8
"""Requests at once that a session makes."""
PATHS = ("input_path", "output_path", "error_path", "stage_in_files", "stage_out_files")
"""Fields with paths, which are the server's own: the protocol moves no files."""
NOWHERE = "/dev/null"
LOST = (
    "the answer to its submission was lost, and the compatible protocol cannot tell whether it was started: "
    "it may run on the server, where nobody of this session ends it"
)
_ENDING = (Action.TERMINATE, Action.KILL)


class CompatibleBackend(Backend):
    """One session's jobs on one server, which knows no sessions."""

    name = "remote"
    capabilities = frozenset({Capability.SUSPEND, Capability.TERMINATE, Capability.REATTACH, Capability.DETACH})
    fields = frozenset(JobTemplate.__struct_fields__)
    limits = Limits(requests=REQUESTS, submissions=1, ask_min=0.3, ask_max=15.0)
    tells = False
    finds_by_key = False

    def __init__(self, place: Place, credentials: Credentials, base: str, *, paths: bool, detach: bool) -> None:
        """`base`: what follows the server's address before the calls. `paths`: whether who wrote the templates knows
        that their paths are the server's.
        """
        self._place, self._credentials, self._base, self._paths = place, credentials, base, paths
        self._detach = detach
        self._ids: dict[str, str] = {}  # of jobs that this program has submitted, by their keys
        self._over: set[str] = set()
        self._lock = threading.Lock()
        self._unsettled = False
        self._directory: Path | None = None
        self._closed = threading.Event()
        self._guard = Guard(self.name, "jobs", self._closed, None if detach else self._start_helper)

    def open(self, report: Report, directory: Path | None) -> None:
        """Nothing is asked: the server was greeted when the backend was made."""
        self._report, self._keep = report, directory is not None
        self._client = Client(self._place, self._credentials, stopped=self._closed)
        self._calls = Calls(self._client, self._base)

    def _start_helper(self, lost: Any) -> Undertaker:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="wfl-"))
            self._journal = Journal(self._directory)
        return watch(self._where(), self._journal.path, keep=self._keep, lost=lost)

    def _where(self) -> dict[str, Any]:
        """What is told to who ends jobs."""
        return {
            "place": self._place.to_dict(),
            "credentials": self._credentials.to_dict(),
            "protocol": {"base": self._base},
        }

    # -- submitting --

    def check(self, template: JobTemplate) -> None:
        """Refuse paths where the caller may take them for those of this side; what else the server honours, it does not
        tell.
        """
        super().check(template.replace(extensions=None))
        for field in PATHS if not self._paths else ():
            if getattr(template, field) not in (None, "", NOWHERE, {}):
                words = "the compatible protocol moves no files; with protocol='compatible' paths are the server's own"
                raise UnsupportedAttributeError(f"{self.name} does not honour {field} with this server: {words}")

    def submit(self, submissions: Sequence[Submission]) -> Sequence[str | WflError]:
        """One request (limits.submissions is 1), which is not repeated where it may have been carried out."""
        return [self._submit(submission) for submission in submissions]

    def _submit(self, submission: Submission) -> str | WflError:
        with self._guard.on_its_way():
            try:
                self.check(submission.template)
                self._guard.watch()
                id = self._calls.add(submission)
            except UnansweredError as error:
                if error.certain:
                    return error
                self._unsettled = True
                raise
            except WflError as error:
                return error
            except BaseException:  # such as Ctrl-C, while it was on its way
                self._unsettled = True
                raise
            with self._lock:
                self._ids[submission.key] = id
            if not self._detach:
                self._journal.add([id])
            return id

    # -- asking --

    def ask(self, ids: Sequence[str]) -> Answer:
        """One request each, and one where some are not known."""
        answer = self._calls.where(ids)
        self._over.update(info.id for info in answer.infos if info.state.ended)
        return answer

    def find(self, known: Sequence[Known]) -> Answer:
        """By the ids that are known. Where there is none, nobody can tell: that is an end, and is said."""
        ids = {task.key: task.id or self._ids.get(task.key) for task in known}
        keys = {id: key for key, id in ids.items() if id is not None}
        answer = self._calls.where(list(keys))
        infos = [info.replace(extensions={**info.extensions, "key": keys[info.id]}) for info in answer.infos]
        infos += [_lost(key) for key, id in ids.items() if id is None]
        return Answer(infos=infos, gone=[keys[id] for id in answer.gone])

    # -- control and output --

    def control(self, ids: Sequence[str], action: Action) -> dict[str, WflError]:
        """One request each, and one more for the new state."""
        failures = self._calls.control(ids, action)
        if action not in _ENDING:
            self._report(self._calls.where([id for id in ids if id not in failures]).infos)
        return failures

    def read(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:  # noqa: ARG002
        """Not in this protocol."""
        raise UnsupportedOperationError(f"{id}: the compatible protocol gives no output back")

    def reap(self, ids: Sequence[str]) -> None:
        """One request each."""
        failures = self._calls.delete(ids)
        with self._lock:
            self._ids = {key: id for key, id in self._ids.items() if id not in ids or id in failures}
        for id, error in failures.items():
            raise type(error)(f"{id}: cannot be removed: {error}") from error

    # -- the end --

    def close(self, *, end: bool) -> None:
        """End what still runs and, without a store, remove what has ended."""
        left = self._guard.close()
        if end:
            left += self._end_all()
        self._guard.leave(left, self._end_all if end else lambda: 0)
        self._client.close()
        if self._directory is not None:
            self._journal.close()
            if not (left or self._unsettled):  # else the helper reads what is in it, and removes it
                shutil.rmtree(self._directory, ignore_errors=True)
        if self._unsettled:
            log.warning("remote: %s", f"for some jobs {LOST}")

    def _end_all(self) -> int:
        """End what this program has submitted; how many could not be."""
        ids = list(self._ids.values())
        alive = [id for id in ids if id not in self._over]
        if not alive and (self._keep or not ids):
            return 0
        server = reached(**self._where())
        try:
            there = {id: info for id, info in server.look(alive).items() if not info.state.ended}
            over, left = end_now(server, list(there), list(there)) if there else ({}, 0)
            if not self._keep:
                server.remove([id for id in ids if id not in there or id in over])
            return left
        except WflError as error:
            log.debug("remote: ending the jobs of this program: %s", error)
            return len(alive)
        finally:
            server.close()

    def abandon(self) -> None:
        """In a forked child: the helper must see the end of the program that owns it. No connection is touched."""
        self._guard.abandon()


def _lost(key: str) -> JobInfo:
    return ended(key, sub_state="lost", annotation=LOST, extensions={"key": key})
