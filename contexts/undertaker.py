"""Seeing to it that a program's jobs end with it, however it dies: a helper process outlives it and ends them.

The helper (vigil.py) knows of the program's death by the end of their socket; it costs 10 MB, and nothing until then.
How jobs are ended is the room's: a function that the helper calls then.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfl.contexts import helper, vigil
from wfl.errors import SessionManagementError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("wfl")

PATIENCE = 10.0
"""Seconds that a helper may take to leave; it takes milliseconds unless the machine is swamped."""
LONGEST = 300.0
"""Seconds in which everything is tried again that did not succeed, or a system that is away is waited for."""
PAUSE = (0.2, 10.0)
"""Seconds after a failure before the next attempt: the first pause, and the longest."""
AWAY = (86400.0, 60.0)
"""Seconds in which that is done by way of a machine that may be away, and the longest pause then."""
AFTERMATH = 1.0
"""Seconds after which there is another look: what the program asked for last may still have been under way."""


class Undertaker:
    """The program's end of the connection: as long as the other end is there, no death goes unnoticed."""

    def __init__(
        self, sock: socket.socket, process: subprocess.Popen[bytes], lost: Callable[[], object] | None
    ) -> None:
        self._sock, self._process, self._lost = sock, process, lost
        self._gone = self._goodbye = False
        self._watcher = threading.Thread(target=self._watch, name="wfl-undertaker", daemon=True)
        self._watcher.start()

    @classmethod
    def start(
        cls,
        function: str,
        arguments: Mapping[str, Any],
        *,
        lost: Callable[[], object] | None = None,
        log: str = os.devnull,
    ) -> Undertaker:
        """Start the helper, and do not wait for it to come up: after this program's death it calls a function.

        `function` is its name ("package.module:name"); what it is called with is told as JSON, paths as strings. `lost`
        is called, in a thread of its own, if the helper ends before the goodbye. Its words go to `log`.
        """
        orders = _orders(function, arguments)
        ours, theirs = helper.pair()
        program = _program()
        try:
            passed = [fd for fd in (theirs.fileno(), program) if fd >= 0]
            process = helper.start(vigil.__file__, [str(theirs.fileno()), str(program)], passed=passed, log=log)
        except BaseException as error:
            ours.close()
            if not isinstance(error, OSError):
                raise
            msg = f"cannot start the helper process that ends jobs when this program dies: {error}"
            raise SessionManagementError(msg) from error
        finally:
            theirs.close()
            if program >= 0:
                os.close(program)
        with suppress(OSError):  # it has ended already: that is seen as at any other time
            ours.sendall(orders)
        return cls(ours, process, lost)

    @property
    def alive(self) -> bool:
        """Whether the helper is there, so that no job outlives this program."""
        return not self._gone

    def goodbye(self) -> None:
        """All is in order: the helper leaves, and whatever runs is left alone. May be called twice."""
        self._goodbye = True
        with suppress(OSError):
            self._sock.sendall(b"bye\n")
        self._watcher.join(PATIENCE)
        if self._watcher.is_alive():
            self._process.kill()

    def take_over(self) -> None:
        """What is left is the helper's to end, as if this program had died."""
        self._goodbye = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def abandon(self) -> None:
        """In a forked child: the socket must close with the program that owns it. No lock is touched."""
        self._gone = True
        self._process.returncode = 0  # no child of this process: no warning that nobody waits for it
        if self._sock.fileno() >= 0:
            os.close(self._sock.detach())

    def _watch(self) -> None:
        """Wait for the end of the helper, which never says anything."""
        with suppress(OSError):
            self._sock.recv(1)
        self._gone = True
        self._sock.close()
        self._process.wait()
        if not self._goodbye and self._lost is not None:
            self._lost()


def revive(name: str, things: str, closed: threading.Event, start: Callable[[], object]) -> None:
    """A helper was lost: start another, until that succeeds or the session is closed. For `lost` of Undertaker.start.

    Raises nothing that is not a defect; `things` are what the helper ends, for people.
    """
    while not closed.wait(1.0):  # one that cannot live does not keep the machine busy
        log.error("%s: the helper that ends %s after this program is gone; starting another", name, things)
        try:
            start()
        except WflError:
            log.exception("%s: if this program is killed now, its %s go on", name, things)
        else:
            return


def _program() -> int:
    """This process as a descriptor (pidfd_open(2)), -1 where the system has none."""
    try:
        return helper.above_standard(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return -1


def _orders(function: str, arguments: Mapping[str, Any]) -> bytes:
    """What the helper has to know when it must work: one line."""
    try:
        cwd = os.getcwd()
    except OSError:  # it was removed
        cwd = "/"
    orders = {
        "function": function,
        "arguments": dict(arguments),
        "cwd": cwd,
        "path": [*sys.path, str(Path(__file__).absolute().parents[2])],  # wfl itself, should they not lead to it
    }
    return json.dumps(orders, default=os.fspath).encode() + b"\n"


# -- in the helper, after the program's death --


def until_none_is_left(attempt: Callable[[], tuple[int, bool]], what: str, *, away: bool = False) -> bool:
    """Call `attempt` until it has found nothing twice in a row; False if that takes more than five minutes.

    It ends all that it finds; how many these were, and whether all have ended. What fails is tried again; it is not
    raised but printed. `away`: it is done by way of a machine that may not be reached for long; there is a day for it.
    """
    longest, slowest = AWAY if away else (LONGEST, PAUSE[1])
    deadline, pause = time.monotonic() + longest, PAUSE[0]
    seen_none = False
    while time.monotonic() < deadline:
        try:
            found, done = attempt()
        except WflError as error:
            tell(error)
            found, done = -1, False
        if not found and seen_none:
            return True
        seen_none = seen_none if found < 0 else not found
        if not found:
            time.sleep(AFTERMATH)
        elif not done:
            time.sleep(pause)
            pause = min(2 * pause, slowest)
    tell(f"{what} may be left: after {longest:g} s this is given up")
    return False


def tell(words: object) -> None:
    """Into the helper's log."""
    print(f"wfl undertaker: {words}", file=sys.stderr, flush=True)  # noqa: T201 - its log
