"""The DRMAA library in this process: loaded once, one session shared by all of wfl's, one thread that waits for ends.

DRMAA 1 (GFD.133) has one session per process, and a job's end is told once, to whoever asks first. It knows nothing of
templates and backends.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import logging
import os
import threading
import time
from logging import DEBUG, WARNING
from typing import TYPE_CHECKING, Any

import msgspec

from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    ImplementationSpecificError,
    InvalidArgumentError,
    InvalidStateError,
    OutOfResourceError,
    SessionManagementError,
    TryLaterError,
    UnsupportedAttributeError,
    WflError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

log = logging.getLogger("wfl")
WAIT = 1
"""Seconds that one call waits for an end: so long may leaving the system's session take at most."""
BATCH = 1000
"""Ends that are told at once, where so many have come."""
KEPT = 100_000
"""Ends that nobody asked for yet, and that are remembered: a submission's answer may be read after its job's end."""
_TEXT = 1024
"""Bytes for an id or for words: DRMAA_ERROR_STRING_BUFFER."""
_NO_USAGE = 24
_ERRORS: dict[str, type[WflError]] = {
    "AuthorizationException": DeniedByDrmsError,
    "ConflictingAttributeValuesException": InvalidArgumentError,
    "DeniedByDrmException": DeniedByDrmsError,
    "DrmCommunicationException": DrmCommunicationError,
    "DrmsExitException": SessionManagementError,
    "DrmsInitException": SessionManagementError,
    "HoldInconsistentStateException": InvalidStateError,
    "InvalidArgumentException": InvalidArgumentError,
    "InvalidAttributeFormatException": InvalidArgumentError,
    "InvalidAttributeValueException": InvalidArgumentError,
    "InvalidContactStringException": SessionManagementError,
    "InvalidJobException": InvalidStateError,
    "NoActiveSessionException": SessionManagementError,
    "NoDefaultContactStringSelectedException": SessionManagementError,
    "OutOfMemoryException": OutOfResourceError,
    "ReleaseInconsistentStateException": InvalidStateError,
    "ResumeInconsistentStateException": InvalidStateError,
    "SuspendInconsistentStateException": InvalidStateError,
    "TryLaterException": TryLaterError,
    "UnsupportedAttributeException": UnsupportedAttributeError,
}
_TLS = (
    "start Python with GLIBC_TUNABLES=glibc.rtld.optional_static_tls=16384 in its environment (or with LD_PRELOAD set"
    " to the library that is named here)"
)
_SETTINGS = " Read the site's settings before Python is started: . DIRECTORY/default/common/settings.sh"
_NOT_FOUND = "set DRMAA_LIBRARY_PATH to the scheduler's libdrmaa.so"


class Waited(msgspec.Struct, frozen=True, gc=False):
    """How a job has ended, as the library tells it once. `usage` has its numbers as text, if it has any."""

    id: str
    exit_status: int | None
    signal: str | None
    aborted: bool
    usage: Mapping[str, str]


class Library:
    """The calls that wfl needs, with wfl's errors. `calls` counts them by name."""

    def __init__(self) -> None:
        self._drmaa = _loaded()
        self._wrappers = importlib.import_module("drmaa.wrappers")
        self._helpers = importlib.import_module("drmaa.helpers")
        self.calls: dict[str, int] = {}

    def initialize(self, contact: str | None) -> None:
        """Begin this process's session."""
        try:
            self._call("initialize", self._drmaa.Session.initialize, contact)
        except WflError as error:
            raise SessionManagementError(str(error)) from error

    def exit(self) -> None:
        """End it; jobs go on."""
        self._call("exit", self._drmaa.Session.exit)

    def contact(self) -> str:
        """What another program has to give to take this session over."""
        return str(self._call("contact", lambda: self._drmaa.Session.contact))

    def system(self) -> str:
        """The name of the scheduler, with its version. Needs no session."""
        return str(self._call("drmsInfo", lambda: self._drmaa.Session().drmsInfo))

    def run(self, attributes: Mapping[str, Any]) -> str:
        """Submit one job; its id."""
        with _Template(self, attributes) as template:
            return str(self._call("runJob", self._drmaa.Session.runJob, template))

    def run_bulk(self, attributes: Mapping[str, Any], numbers: range) -> list[str]:
        """Submit an array; the ids of its elements."""
        with _Template(self, attributes) as template:
            bulk = self._drmaa.Session.runBulkJobs
            return list(self._call("runBulkJobs", bulk, template, numbers[0], numbers[-1], numbers.step))

    def control(self, id: str, action: str) -> None:
        """suspend, resume, hold, release or terminate."""
        self._call("control", self._drmaa.Session.control, id, action)

    def status(self, id: str) -> str:
        """The state's name. Raises InvalidStateError for a job that the system does not know (any more)."""
        return str(self._call("jobStatus", self._drmaa.Session.jobStatus, id))

    def wait(self, seconds: int) -> Waited | None:
        """The next end of any job of this session; None if there was none. InvalidStateError: there are no jobs.

        The package's own wait() loses the id of a job that has ended without having run.
        """
        wrappers, c = self._wrappers, self._helpers.c
        status, usage = ctypes.c_int(), ctypes.pointer(ctypes.POINTER(wrappers.drmaa_attr_values_t)())
        id, words = ctypes.create_string_buffer(_TEXT), ctypes.create_string_buffer(_TEXT)
        whichever = self._drmaa.Session.JOB_IDS_SESSION_ANY
        arguments = (whichever, id, _TEXT, ctypes.byref(status), seconds, usage, words, _TEXT)
        try:
            wrappers.drmaa_wait(*arguments)
        except Exception as error:  # the package has a bare one for this
            if str(error).startswith(f"code {_NO_USAGE}:"):
                return Waited(id.value.decode(), None, None, aborted=True, usage={})
            if type(error).__name__ == "ExitTimeoutException":
                return None
            raise _translated(error, words.value.decode(errors="replace")) from error
        said = {name: ctypes.c_int() for name in ("wifexited", "wifsignaled", "wifaborted", "wexitstatus")}
        for name, value in said.items():
            c(getattr(wrappers, f"drmaa_{name}"), ctypes.byref(value), status)
        signal = ctypes.create_string_buffer(_TEXT)
        if said["wifsignaled"].value:
            c(wrappers.drmaa_wtermsig, signal, _TEXT, status)
        return Waited(
            id.value.decode(),
            said["wexitstatus"].value if said["wifexited"].value else None,
            signal.value.decode() or None,
            aborted=bool(said["wifaborted"].value),
            usage=self._helpers.adapt_rusage(usage),
        )

    def template(self, attributes: Mapping[str, Any]) -> Any:
        """The library's own template, which has to be deleted."""
        template = self._call("template", self._drmaa.JobTemplate)
        try:
            for name, value in attributes.items():
                self._call("attribute", setattr, template, name, value)
        except WflError:
            self.delete(template)
            raise
        return template

    def delete(self, template: Any) -> None:
        """Give the library's own template back."""
        self._call("delete", template.delete)

    def _call(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        self.calls[name] = self.calls.get(name, 0) + 1
        try:
            return call(*arguments)
        except self._drmaa.errors.DrmaaException as error:
            raise _translated(error, str(error).partition(": ")[2]) from error


class _Template:
    """A template of the library, as long as it is needed."""

    def __init__(self, library: Library, attributes: Mapping[str, Any]) -> None:
        self._library, self._attributes = library, attributes

    def __enter__(self) -> Any:
        self._template = self._library.template(self._attributes)
        return self._template

    def __exit__(self, *_: object) -> None:
        self._library.delete(self._template)


def _translated(error: Exception, words: str) -> WflError:
    """The error of wfl for one of the library's, with its words."""
    name = type(error).__name__
    text = " ".join(words.split()) or name.removesuffix("Exception")
    if "SGE_ROOT" in text:
        return SessionManagementError(f"drmaa: {text}{_SETTINGS}")
    return _ERRORS.get(name, ImplementationSpecificError)(f"drmaa: {text}")


def _loaded() -> Any:
    """The package, which loads the scheduler's library when it is imported."""
    try:
        return importlib.import_module("drmaa")
    except ModuleNotFoundError as error:
        words = "drmaa: the Python package is not here; install it: pip install 'wfl-sdk[drmaa]'"
        raise SessionManagementError(words) from error
    except (OSError, RuntimeError, AttributeError) as error:
        text = " ".join(str(error).split())
        cure = _TLS if "static TLS" in text else _NOT_FOUND
        raise SessionManagementError(f"drmaa: the scheduler's library cannot be loaded ({text}): {cure}") from error


class Connection:
    """The one session that this process may have with the library, for all of wfl's sessions in it."""

    def __init__(self, make: Callable[[], Library] = Library) -> None:
        self._make = make
        self._lock = threading.RLock()
        self._there = threading.Condition(self._lock)
        self._users: set[object] = set()
        self._owners: dict[str, Callable[[Sequence[Waited]], None]] = {}
        self._unclaimed: dict[str, Waited] = {}
        self._library: Library | None = None
        self._contact: str | None = None
        self._pid = 0
        self._round = 0  # sessions begun: a thread of an earlier one ends

    @property
    def library(self) -> Library:
        """The library, with a session. Raises where there is none, as in a forked child: there its calls would hang."""
        self.check()
        if self._library is None:
            raise SessionManagementError("drmaa: its session was closed")
        return self._library

    @property
    def contact(self) -> str | None:
        """What another program gives as `contact` to take this session over; None while there is no session."""
        return self._contact

    def check(self) -> None:
        """Raise in a forked child."""
        if self._pid not in (0, os.getpid()):
            raise SessionManagementError(
                "drmaa: this process was forked from one that uses the library, whose calls would hang here: start it"
                " anew instead (multiprocessing: the start method 'spawn')"
            )

    def enter(self, user: object, contact: str | None) -> None:
        """One more of wfl's sessions; the first begins the library's."""
        self.check()
        with self._lock:
            if self._library is None:
                self._begin(contact)
            elif contact is not None and contact != self._contact:
                raise SessionManagementError(
                    f"drmaa: this process is attached to {self._contact!r}, and the library takes one contact at a"
                    f" time: close that session first, or leave contact={contact!r} out"
                )
            self._users.add(user)

    def _begin(self, contact: str | None) -> None:
        library = self._make()
        library.initialize(contact)
        self._library, self._contact, self._pid = library, library.contact(), os.getpid()
        self._round += 1
        log.info("drmaa: %s, contact %s", library.system(), self._contact)
        atexit.register(self._exit)
        thread = threading.Thread(target=self._wait, args=(library, self._round), name="wfl-drmaa-wait", daemon=True)
        thread.start()

    def system(self) -> str:
        """The name of the scheduler that the library belongs to; nothing is contacted."""
        self.check()
        with self._lock:
            return (self._library or self._make()).system()

    def leave(self, user: object) -> None:
        """One less; the last ends the library's session. Jobs go on."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._users.discard(user)
            if not self._users:
                self._exit()

    def _exit(self) -> None:
        if self._pid != os.getpid():
            return
        with self._lock:
            library, self._library, self._contact, self._pid = self._library, None, None, 0
            self._owners.clear()
            self._unclaimed.clear()
            self._there.notify_all()
            if library is not None:
                atexit.unregister(self._exit)
                try:
                    library.exit()
                except WflError as error:
                    log.info("drmaa: leaving: %s", error)

    def claim(self, ids: Iterable[str], told: Callable[[Sequence[Waited]], None]) -> None:
        """From now on the ends of these are told here, also those that came before anybody asked."""
        with self._lock:
            early = []
            for id in ids:
                waited = self._unclaimed.pop(id, None)
                if waited is None:
                    self._owners[id] = told
                else:
                    early.append(waited)
            self._there.notify_all()
        if early:
            told(early)

    def disclaim(self, ids: Iterable[str]) -> None:
        """Nobody wants to know of these any more."""
        with self._lock:
            for id in ids:
                self._owners.pop(id, None)
                self._unclaimed.pop(id, None)

    def _wait(self, library: Library, number: int) -> None:
        """The thread: ends, as they come, to whose they are."""
        trouble = False
        while self._round == number and self._library is library:
            try:
                found = self._ends(library)
                trouble = False
            except InvalidStateError:  # there is no job that could end
                with self._lock:
                    if self._library is library and not self._owners:
                        self._there.wait(WAIT)
                        continue
                time.sleep(WAIT / 10)  # nobody tells of these: their records have to
                continue
            except WflError as error:
                if self._library is not library:
                    return
                log.log(DEBUG if trouble else WARNING, "drmaa: waiting for ends: %s; trying again", error)
                trouble = True
                time.sleep(WAIT)
                continue
            if found:
                self._distribute(found)

    @staticmethod
    def _ends(library: Library) -> list[Waited]:
        """The next end, and what else is there already."""
        found: list[Waited] = []
        waited = library.wait(WAIT)
        while waited is not None:
            found.append(waited)
            if len(found) == BATCH:
                break
            try:
                waited = library.wait(0)
            except WflError:  # it was the last; or it comes again at the next call
                break
        return found

    def _distribute(self, found: Sequence[Waited]) -> None:
        told: dict[Callable[[Sequence[Waited]], None], list[Waited]] = {}
        with self._lock:
            for waited in found:
                owner = self._owners.pop(waited.id, None)
                if owner is not None:
                    told.setdefault(owner, []).append(waited)
                    continue
                log.debug("drmaa: %s has ended, which nobody here has asked about yet", waited.id)
                self._unclaimed[waited.id] = waited
                if len(self._unclaimed) > KEPT:
                    self._unclaimed.pop(next(iter(self._unclaimed)))
        for owner, some in told.items():
            owner(some)


connection = Connection()
"""This process's."""
