"""Seeing to it that a program's containers end with it, however it dies: a helper process outlives it and ends them.

The helper (vigil.py) knows of the program's death by the end of their socket; it costs 10 MB, and nothing until then.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfl.contexts import helper
from wfl.contexts.containers import facts, vigil
from wfl.contexts.containers.client import REQUESTS, Client
from wfl.errors import InvalidStateError, SessionManagementError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PATIENCE = 10.0
"""Seconds that a helper may take to leave; it takes milliseconds unless the machine is swamped."""
LONGEST = 300.0
"""Seconds in which everything is tried again that did not succeed, or a daemon that is away is waited for."""
REQUEST = 20.0
"""Seconds that one answer is waited for; the daemon itself gives a process 10 to die."""
PAUSE = (0.2, 10.0)
"""Seconds after a failure before the next attempt: the first pause, and the longest."""
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
        settings: Mapping[str, Any],
        label: str,
        *,
        keep: bool = False,
        place: Path | None = None,
        lost: Callable[[], object] | None = None,
        log: str = os.devnull,
    ) -> Undertaker:
        """Start the helper for all containers with a label (NAME=VALUE), and do not wait for it to come up.

        `settings` are the Client's. With `keep` containers that have run stay behind, ended, for a program that comes
        back; the directory `place` never does. `lost` is called, in a thread of its own, if the helper ends before the
        goodbye. Its words go to `log`.
        """
        orders = _orders(settings, label, keep=keep, place=place)
        ours, theirs = helper.pair()
        program = _program()
        try:
            passed = [fd for fd in (theirs.fileno(), program) if fd >= 0]
            arguments = [str(theirs.fileno()), str(program)]
            process = helper.start(vigil.__file__, arguments, passed=passed, log=log)
        except BaseException as error:
            ours.close()
            if not isinstance(error, OSError):
                raise
            msg = f"cannot start the helper process that ends containers when this program dies: {error}"
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
        """Whether the helper is there, so that no container outlives this program."""
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


def _program() -> int:
    """This process as a descriptor (pidfd_open(2)), -1 where the system has none."""
    try:
        return helper.above_standard(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return -1


def _orders(settings: Mapping[str, Any], label: str, *, keep: bool, place: Path | None) -> bytes:
    """What the helper has to know when it must work: one line."""
    try:
        cwd = os.getcwd()
    except OSError:  # it was removed
        cwd = "/"
    orders = {
        "settings": {**settings, "auth": None},  # it fetches no image
        "label": label,
        "keep": keep,
        "place": place,
        "cwd": cwd,
        "path": [*sys.path, str(Path(__file__).absolute().parents[3])],  # wfl itself, should they not lead to it
    }
    return json.dumps(orders, default=os.fspath).encode() + b"\n"


def end_all(settings: Mapping[str, Any], label: str, *, keep: bool = False) -> None:
    """End all containers with a label (NAME=VALUE), and remove them with their volumes; see `Undertaker.start`.

    What fails is tried again, for as long as five minutes; it is not raised but printed.
    """
    deadline, pause = time.monotonic() + LONGEST, PAUSE[0]
    seen_none = False
    while time.monotonic() < deadline:
        try:
            with closing(Client({**settings, "timeout": REQUEST})) as client:
                todo = _unended(client, label, keep=keep)
                done = _in_threads(lambda one: _end(client, one, keep=keep), todo)
        except WflError as error:
            _tell(error)
            time.sleep(pause)
            pause = min(2 * pause, PAUSE[1])
            continue
        if not todo and seen_none:
            return
        seen_none = not todo
        if not todo:
            time.sleep(AFTERMATH)
        elif not all(done):
            time.sleep(pause)
            pause = min(2 * pause, PAUSE[1])
    _tell(f"containers with the label {label} may be left: after {LONGEST:g} s this is given up")


def _unended(client: Client, label: str, *, keep: bool) -> list[dict[str, Any]]:
    name, _, value = label.partition("=")
    return [one for one in client.list({name: value}) if not (keep and one["State"] in facts.OVER)]


def _in_threads(f: Callable[[dict[str, Any]], bool], containers: list[dict[str, Any]]) -> list[bool]:
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(f, containers))


def _end(client: Client, container: Mapping[str, Any], *, keep: bool) -> bool:
    """Whether it has ended."""
    id, state = container["Id"], container["State"]
    try:
        if state == "paused":
            with suppress(WflError):  # it goes on already, or is gone; Docker also kills what is paused
                client.unpause(id)
        if state not in ("created", *facts.OVER):
            with suppress(InvalidStateError):  # it has ended by itself, or is gone
                client.kill(id)
        if state == "created" or not keep:
            client.remove(id)
    except WflError as error:
        _tell(f"{id}: {error}")
        return False
    return True


def _tell(words: object) -> None:
    print(f"wfl undertaker: {words}", file=sys.stderr, flush=True)  # noqa: T201 - its log
