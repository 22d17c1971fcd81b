"""Files of a template that are on the program's side, where a session works on another machine: copied in before a job
is submitted, and back when it has ended. On one machine the job's script copies them (script.py).
"""

from __future__ import annotations

import logging
import posixpath
import threading
from typing import TYPE_CHECKING

from wfl.contexts import checks
from wfl.drmaa2 import JobTemplate
from wfl.errors import DrmCommunicationError, WflError
from wfl.threads import Pool

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wfl.contexts.batch.machine import Copies, Machine
    from wfl.contexts.batch.place import Entry

log = logging.getLogger("wfl")

STAGED = ("stage_in_files", "stage_out_files")
COPIES = 4
"""Jobs whose files are copied back at once."""
BREAKS = 5
"""In a row, without anything more arriving, after which files are not to be had. An unreachable machine has none."""


class Carrier:
    """The copies of one session. One that works on this machine has none to make."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self.away = machine, machine.is_away
        self._pool = Pool("wfl-batch-copy", COPIES)
        self._lock = threading.Lock()
        self._fetched: dict[str, str | None] = {}  # by key: what went wrong, None while it goes on
        self._left: dict[str, tuple[Copies, dict[str, str]]] = {}  # by key: what is still to be copied, and how
        self._down = False
        self._closed = threading.Event()

    def resolve(self, template: JobTemplate) -> JobTemplate:
        """With the paths of this side absolute."""
        if not self.away or not _stages(template):
            return template
        here = checks.from_here(JobTemplate(**{name: getattr(template, name) for name in STAGED}))
        return template.replace(**{name: getattr(here, name) for name in STAGED})

    def check(self, template: JobTemplate) -> None:
        """Raise for files of this side that cannot be copied."""
        if self.away:
            checks.sources(template.stage_in_files or {})
            checks.targets(template.stage_out_files or {})

    def scripted(self, template: JobTemplate) -> JobTemplate:
        """What is left for the job's script to do."""
        return template.replace(**dict.fromkeys(STAGED)) if self.away and _stages(template) else template

    def bring(self, entry: Entry) -> None:
        """Copy in what a job, or an array, needs."""
        files = entry.template.stage_in_files if self.away else None
        if not files:
            return
        todo = {posixpath.join(entry.template.working_directory or "", name): source for name, source in files.items()}
        self._machine.copies(f"wfl-{entry.key}").put_all(todo, self._closed.wait)

    def fetched(self, entry: Entry, key: str) -> str | None:
        """Copy back what a job that has ended has left; None while that goes on, "" when all is here, or what is not.

        To be asked again, until it is no longer None.
        """
        if not self.away or not entry.template.stage_out_files:
            return ""
        with self._lock:
            if key not in self._fetched and not self._closed.is_set():
                self._fetched[key] = None
                if key not in self._left:
                    self._left[key] = self._machine.copies(f"wfl-{key}"), dict(entry.template.stage_out_files)
                copies, left = self._left[key]
                self._pool.submit(lambda: self._fetch(entry, key, copies, left))
            return self._fetched.get(key)

    def _fetch(self, entry: Entry, key: str, copies: Copies, left: dict[str, str]) -> None:
        trouble: str | None = "stage_out_files: they were not copied"
        try:
            place = entry.template.working_directory or ""
            for target, source in list(left.items()):
                copies.get(posixpath.join(place, source), target, self._closed.wait)
                del left[target]
            trouble, self._down = "", False
        except DrmCommunicationError as error:
            trouble = f"stage_out_files: {error}" if copies.breaks >= BREAKS else None
            if not self._down and not self._closed.is_set():
                log.warning("files cannot be copied back now, trying again: %s", error)
            self._down = True
        except (WflError, OSError) as error:
            trouble = f"stage_out_files: {error}"
        finally:
            with self._lock:
                if trouble is None:
                    self._fetched.pop(key, None)  # it is asked for again
                else:
                    self._left.pop(key, None)
                    if key in self._fetched:
                        self._fetched[key] = trouble

    def forget(self, keys: Iterable[str]) -> None:
        """These are no longer asked for."""
        with self._lock:
            for key in keys:
                self._fetched.pop(key, None)
                self._left.pop(key, None)

    def close(self) -> None:
        """Nothing more is copied back."""
        with self._lock:
            self._closed.set()
        self._pool.drain(0)


def _stages(template: JobTemplate) -> bool:
    return bool(template.stage_in_files or template.stage_out_files)
