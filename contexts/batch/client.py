"""Client: a scheduler's language spoken through its commands, by the program and by the helper that outlives it."""

from __future__ import annotations

import getpass
import logging
import os
import shlex
import time
from typing import TYPE_CHECKING

from msgspec import structs

from wfl.backend import Action
from wfl.contexts.batch.command import Commands
from wfl.contexts.batch.machine import HERE
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, InvalidStateError, TryLaterError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from wfl.contexts.batch.machine import Machine
    from wfl.contexts.batch.scheduler import Command, Job, Scheduler, Seen
    from wfl.contexts.ends import Account

log = logging.getLogger("wfl")

IDS = 500
"""Ids on one command line."""
REFUSED = 60.0
"""Seconds after which it is believed that records cannot be had, where the words of the refusal do not say so."""
SHOWN = 5
"""Ids in a line for people."""
ENDING = (Action.TERMINATE, Action.KILL)


class Client:
    """Everything that is asked of one scheduler, or told to it: in bulk, with a time limit for each command.

    Raises DrmCommunicationError where there is no answer, DeniedByDrmsError where the scheduler refuses.
    """

    def __init__(
        self, scheduler: Scheduler, *, environment: Mapping[str, str], timeout: float, machine: Machine = HERE
    ) -> None:
        self.scheduler = scheduler
        self.commands = Commands(
            scheduler.name,
            site=environment,
            answers=scheduler.answers,
            down=scheduler.down,
            timeout=timeout,
            leads=scheduler.leads,
            machine=machine,
        )
        self._rung = 0  # of the scheduler's kinds of records: the first that can be had
        self._refused = 0.0  # since when that is refused
        self._most: int | None = None
        self._most_known = False

    # -- jobs --

    def submit(self, job: Job) -> str:
        """Hand over one job, or one part of an array; its id."""
        surroundings = self.commands.environment(None if job.inherit else self.scheduler.passed)
        for name in self.scheduler.unwanted:
            surroundings.pop(name, None)
        command = self.scheduler.submit(job)
        try:
            return self.scheduler.accepted(self.commands.run(command, surroundings))
        except DeniedByDrmsError as error:
            kind = TryLaterError if self.scheduler.busy(str(error)) else DeniedByDrmsError
            raise kind(f"{error} (asked for: {' '.join(command[1:-1])})") from error

    def highest(self) -> int | None:
        """The highest number that an array's element may have; None: no limit."""
        if not self._most_known:
            command = self.scheduler.limits()
            self._most = None if command is None else self.scheduler.most(self.commands.run(command))
            self._most_known = True
        return self._most

    def jobs(self) -> Iterable[Seen]:
        """All jobs of this user."""
        return self.scheduler.seen(self._answer(self.scheduler.query(self._user())))

    def jobs_with_keys(self) -> list[Seen]:
        """The same, each with our key if it is one of ours, whatever that costs."""
        found = list(self.scheduler.seen(self._answer(self.scheduler.search(self._user()))))
        rest = sorted({seen.id for seen in found if seen.key is None})
        keys = {id: key for key, id in self._described(rest, self.scheduler.keys).items()}
        return [structs.replace(seen, key=seen.key or keys.get(seen.id)) for seen in found]

    def reasons(self, ids: Sequence[str]) -> dict[str, str]:
        """Why these are stuck, where it says so."""
        return self._described(ids, self.scheduler.reasons)

    @property
    def keeps_records(self) -> bool:
        """Whether the scheduler is known, or thought, to keep records of ends."""
        return self._rung < self.scheduler.rungs

    @property
    def forgets(self) -> bool:
        """Whether a job that was deleted before it began may be in no record."""
        return self.scheduler.silent or self._rung >= self.scheduler.rungs - self.scheduler.fading

    def accounts(self, ids: Sequence[str], since: datetime) -> tuple[dict[str, Account], bool]:
        """What the records say of these jobs and arrays, of an array by its elements' ids; and whether that is all.

        It is not where better records than those that have answered may know more.
        """
        rung, rungs, whole = self._rung, self.scheduler.rungs, True
        while rung < rungs:
            try:
                found = self._records(ids, since, rung)
            except DrmCommunicationError:  # what keeps these is away, and not the rest
                rung, whole = rung + 1, False
                if rung == rungs:
                    raise
            except DeniedByDrmsError as error:
                rung, now = rung + 1, time.monotonic()
                self._refused = self._refused or now
                if self.scheduler.keeps_none(str(error)) or now - self._refused > REFUSED:
                    log.info("%s keeps no such records: %s", self.scheduler.name, error)
                    self._rung, self._refused = rung, 0.0
                elif rung == rungs:  # this is no answer, for now
                    raise
                else:
                    whole = False
            else:
                if rung == self._rung:
                    self._refused = 0.0
                return found, whole
        return {}, True

    def _records(self, ids: Sequence[str], since: datetime, rung: int) -> dict[str, Account]:
        found: dict[str, Account] = {}
        for part in _parts(ids):
            for command in self.scheduler.records(part, self._user(), rung, since):
                for account in self.scheduler.accounts(self._answer(command), rung, frozenset(part)):
                    found[self._id(account)] = account
        return found

    def _user(self) -> str:
        return self.commands.machine.user or user()

    def _id(self, account: Account) -> str:
        return account.id if account.number is None else self.scheduler.element(account.id, account.number)

    def _described(self, ids: Sequence[str], read: Callable[[str], Mapping[str, str]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in _parts(ids):
            command = self.scheduler.describe(part)
            if command is not None:
                found |= read(self._answer(command))
        return found

    def _answer(self, command: Command) -> str:
        """What a question is answered with, also where some of the jobs in it are not known any more."""
        return self.commands.run(command, despite=self.scheduler.partly)

    # -- control --

    def order(self, ids: Sequence[str], action: Action) -> None:
        """Tell the scheduler to do it to all of these."""
        commands = self.scheduler.control(ids, action)
        for command in commands:  # of several one does what another cannot, as with what has not begun
            despite = self.scheduler.unknown if len(commands) > 1 and action in ENDING else None
            undone = self.scheduler.undone(self.commands.run(command, despite=despite))
            if undone is not None:
                raise DeniedByDrmsError(f"{self.scheduler.name}: {undone}")

    def cancel(self, ids: Sequence[str]) -> None:
        """Kill these; raises where there is no answer. One that has ended is as it should be."""
        for part in _parts(ids):
            for command in self.scheduler.control(part, Action.KILL):
                try:
                    self.commands.run(command)
                except DeniedByDrmsError as error:
                    if not self.scheduler.unknown(str(error)):
                        log.warning("%s", error)


def ordered(
    ids: Sequence[str], action: Action, order: Callable[[Sequence[str], Action], None], unknown: Callable[[str], bool]
) -> dict[str, WflError]:
    """Order it for all together, and for each half where that is refused, as some may have ended; the failures."""
    found: dict[str, WflError] = {}
    for part in _parts(ids):
        try:
            order(part, action)
        except DrmCommunicationError:
            raise
        except WflError as error:
            if len(part) == 1:
                found[part[0]] = InvalidStateError(str(error)) if unknown(str(error)) else error
            else:
                half = len(part) // 2
                found |= ordered(part[:half], action, order, unknown) | ordered(part[half:], action, order, unknown)
    return found


def how_to_cancel(scheduler: Scheduler, ids: Sequence[str]) -> str:
    """The scheduler's own command for a person to type, with the first ids of many."""
    command = shlex.join(scheduler.control(ids[:SHOWN], Action.TERMINATE)[0])
    return f"{command} … (and {len(ids) - SHOWN} more)" if len(ids) > SHOWN else command


def user() -> str:
    """Who runs this program."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _parts(ids: Sequence[str]) -> list[Sequence[str]]:
    """As many as fit on one command line."""
    return [ids[start : start + IDS] for start in range(0, len(ids), IDS)]
