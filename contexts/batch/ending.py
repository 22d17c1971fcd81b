"""Ending the jobs of a program on a cluster: when its session is closed, and when it has died (see undertaker.py).

Scripts whose `job` file is gone refuse to start (script.py): so these files go first, then the scheduler is told.
"""

from __future__ import annotations

import base64
import logging
import os
import pickle
import threading
import time
from typing import TYPE_CHECKING

from wfl.contexts.batch.client import Client
from wfl.contexts.batch.place import Place, program_of
from wfl.contexts.undertaker import Undertaker, revive, tell, until_none_is_left
from wfl.errors import InvalidSessionError, WflError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from wfl.contexts.batch.scheduler import Scheduler

log = logging.getLogger("wfl")

ANSWER = 20.0
"""Seconds that a command may take at the end, if it may not take less at any time."""


class Ending:
    """The end of what this very program submits: that of its session, and, with `helper`, that of its killing.

    Of several programs in one session each ends its own.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        place: Place,
        *,
        environment: Mapping[str, str],
        timeout: float,
        helper: bool,
    ) -> None:
        self._scheduler, self._place, self._helper = scheduler, place, helper
        self._environment, self._timeout = environment, timeout
        self.keep = False
        """Whether a program that comes back looks for what has ended."""
        self._lock = threading.Lock()
        self._own: set[str] = set()
        self._unsettled: set[str] = set()
        self._programs: dict[str, Undertaker | None] = {}
        self._closed = threading.Event()

    def before(self, key: str) -> None:
        """This is going to be submitted."""
        with self._lock:
            if self._closed.is_set():
                raise InvalidSessionError("the session is closed")
            program = program_of(key)
            if self._helper and program not in self._programs:
                # What waited in the queue of a program before this one has that one's key and place: should this one
                # be killed, it goes on as that one's other jobs do.
                theirs = self._place.is_there(program)
                self._programs[program] = None if theirs else self._start(program)
            self._own.add(key)
            self._unsettled.add(key)

    def after(self, key: str) -> None:
        """It was accepted or refused."""
        with self._lock:
            self._unsettled.discard(key)

    def forget(self, key: str) -> None:
        """It has ended, and nobody wants to know any more of it."""
        with self._lock:
            self._own.discard(key)

    def is_own(self, key: str) -> bool:
        """Whether this program submitted it."""
        return key in self._own

    def _start(self, program: str) -> Undertaker:
        told = {
            "scheduler": base64.b64encode(pickle.dumps((self._scheduler, self._place.machine))).decode(),
            "place": self._place.root,
            "program": program,
            "environment": self._environment,
            "keep": self.keep,
            "late": self._timeout,
        }
        return Undertaker.start(f"{__name__}:{end_all.__name__}", told, lost=lambda: self._lost(program))

    def _lost(self, program: str) -> None:
        def again() -> None:
            with self._lock:
                if not self._closed.is_set():
                    self._programs[program] = self._start(program)

        revive(self._scheduler.name, "jobs", self._closed, again)

    def close(self, ids: Sequence[str]) -> None:
        """End these (arrays by one id each), all that this program has; what fails, the helper goes on with."""
        with self._lock:
            self._closed.set()
        helpers = {program: helper for program, helper in self._programs.items() if helper is not None}
        try:
            for program in helpers:
                self._place.put_away(program)
            timeout = min(self._timeout, ANSWER)
            self._client(timeout).cancel(ids)
        except BaseException as error:
            for helper in helpers.values():
                helper.take_over()
            if not helpers or not isinstance(error, WflError):
                raise
            words = "%s: %d jobs and arrays are not ended yet; a helper process goes on with that: %s"
            log.error(words, self._scheduler.name, len(ids), error)  # noqa: TRY400 - it tells who sees to it
            return
        with self._lock:
            unsettled = {program_of(key) for key in self._unsettled}
        for program, helper in helpers.items():
            if program in unsettled:
                helper.take_over()
            else:
                self._place.leave(program, keep=self.keep)
                helper.goodbye()

    def _client(self, timeout: float) -> Client:
        return Client(self._scheduler, environment=self._environment, timeout=timeout, machine=self._place.machine)

    def goodbye(self) -> None:
        """Whatever runs is left alone."""
        with self._lock:
            self._closed.set()
        for helper in self._programs.values():
            if helper is not None:
                helper.goodbye()

    def abandon(self) -> None:
        """In a forked child."""
        for helper in self._programs.values():
            if helper is not None:
                helper.abandon()


def end_all(
    scheduler: str, place: str, program: str, *, environment: Mapping[str, str], keep: bool, late: float
) -> None:
    """End all jobs of a dead program, and leave nothing of them, or with `keep` what one that comes back looks for.

    `scheduler` is pickled, with its machine; `late`: seconds for which a submission of which nobody has heard may still
    be under way.
    """
    speaks: Scheduler
    speaks, machine = pickle.loads(base64.b64decode(scheduler))  # noqa: S301 - this program's own
    where = Place(*os.path.split(place), machine)
    client = Client(speaks, environment=environment, timeout=ANSWER, machine=machine)
    ids: set[str] = set()
    unheard: dict[str, None] = {}
    patience = 0.0

    def attempt() -> tuple[int, bool]:
        nonlocal patience
        if not patience:
            if not where.is_there(program):  # nothing was ever submitted
                return 0, False
            where.put_away(program)
            found, missing = _submitted(where, program)
            ids.update(found)
            unheard.update(missing)
            patience = time.monotonic() + late
        living: dict[str, None] = {}
        for seen in client.jobs_with_keys() if unheard else client.jobs():
            key = seen.key or ""
            if seen.id in ids or program_of(key) == program:
                unheard.pop(key, None)
                ids.add(seen.id)
                if not seen.info.state.ended:
                    living[seen.id] = None
        client.cancel(list(living))
        waits = bool(unheard) and time.monotonic() < patience
        return len(living) + waits, False

    if until_none_is_left(attempt, f"jobs of {place}/{program}", away=machine.is_away):
        try:
            where.leave(program, keep=keep)
            never = {key.partition("/")[0] for key in unheard} if keep else set()
            where.forget(key for key, given in where.accepted(never).items() if not given)
        except WflError as error:
            tell(error)
    machine.close()


def end_session(client: Client, place: Place) -> int:
    """End all jobs of all programs, and leave nothing of them; how many jobs and arrays had not ended.

    Where the scheduler cannot be told, everything is as it was.
    """
    programs = place.programs()
    for program in programs:
        place.put_away(program)
    try:
        living = _living(client, place, programs) if programs else []
        client.cancel(living)
    except BaseException:
        for program in programs:
            place.leave(program, keep=True)
        raise
    for program in programs:
        place.leave(program, keep=False)
    place.remove()
    return len(living)


def _living(client: Client, place: Place, programs: Collection[str]) -> list[str]:
    """The jobs and arrays of these programs that have not ended."""
    ids = {id for program in programs for id in _submitted(place, program)[0]}
    found: dict[str, None] = {}
    for seen in client.jobs_with_keys():
        theirs = seen.id in ids or program_of(seen.key or "") in programs
        if theirs and not seen.info.state.ended:
            found[seen.id] = None
    return list(found)


def _submitted(place: Place, program: str) -> tuple[set[str], dict[str, None]]:
    """The ids that the scheduler gave to a program that was put away; and the keys of what it gave none to."""
    ids: set[str] = set()
    unheard: dict[str, None] = {}
    (keys,) = place.listed(program, "script")
    entries = place.entries(keys)
    for key, given in place.accepted(keys).items():
        ids.update(given.values())
        for part in entries[key].parts if key in entries else range(1):
            if part not in given:
                unheard[f"{key}/{part}" if part else key] = None
    return ids, unheard
