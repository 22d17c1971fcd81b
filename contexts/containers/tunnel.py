"""A daemon on another host, through the ssh command: it reads the user's own configuration, keys, agent and jumps.

Each connection is one ssh process that runs `docker system dial-stdio` there, at the other end of a socket. When the
socket closes, be it that the program was killed, ssh sees the end of its input and leaves.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from docker.transport.unixconn import UnixHTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from wfl.contexts import helper

if TYPE_CHECKING:
    import socket

PATIENCE = 10.0
"""Seconds that an ssh process may take to end."""
CONNECT = 30
"""Most seconds that ssh may take to connect."""
ALIVE = 30
"""Seconds of silence after which ssh looks whether the other host is still there; the third time in vain it ends."""
_WORDS = 400
"""Characters of what ssh says that go into an error."""


class TunnelError(ConnectionError):
    """What ssh said when there was no connection; `program` was to be run there."""

    def __init__(self, words: str, program: str) -> None:
        super().__init__(words)
        self.program = program


def command(url: str, program: str, timeout: float) -> list[str]:
    """The command that connects its standard streams with the daemon at ssh://[user@]host[:port][/path/of/socket].

    It asks nobody anything, forwards nothing, and `program` is what speaks for the daemon there: docker or podman.
    """
    place = urlsplit(url)
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(max(1, int(min(timeout, CONNECT)))),
        "ServerAliveInterval": str(ALIVE),
        "ClearAllForwardings": "yes",
        "RemoteCommand": "none",
    }
    found = ["ssh", "-T", "-a", "-x", *(f"-o{name}={value}" for name, value in options.items())]
    if place.username:
        found += ["-l", unquote(place.username)]
    if place.port:
        found += ["-p", str(place.port)]
    there = [program]
    if place.path.strip("/"):
        there += ["--url" if program == "podman" else "--host", f"unix://{unquote(place.path)}"]
    return [*found, "--", place.hostname or "", shlex.join([*there, "system", "dial-stdio"])]


class Tunnels(UnixHTTPAdapter):  # type: ignore[misc] # docker-py has no types
    """One pool of connections, each an ssh process."""

    def __init__(self, command: list[str], timeout: float, size: int) -> None:
        super().__init__("/", timeout)
        self._command, self._program = command, shlex.split(command[-1])[0]
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._pool = _Pool(self, timeout, size)

    def get_connection(self, url: str, proxies: object = None) -> HTTPConnectionPool:
        """Always the same pool."""
        del url, proxies
        return self._pool

    def dial(self) -> tuple[socket.socket, _Line]:
        """A new connection, which may yet turn out to be none."""
        words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its line
        ours, theirs = helper.pair()
        try:
            with theirs:
                process = subprocess.Popen(
                    self._command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=words.fileno(),
                    env=helper.child_environment(),
                    start_new_session=True,  # no Ctrl-C reaches it
                )
        except BaseException as error:
            ours.close()
            words.close()
            if isinstance(error, FileNotFoundError):
                raise TunnelError("there is no command ssh here: install OpenSSH's client", self._program) from error
            raise
        with self._lock:
            self._processes = {one for one in self._processes if one.poll() is None} | {process}
        return ours, _Line(process, words, self._program)

    def close(self) -> None:
        """End all of them."""
        super().close()
        self._pool.close()
        with self._lock:
            processes, self._processes = self._processes, set()
        for process in processes:
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)


class _Line:
    """An ssh process, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], words: Any, program: str) -> None:
        self._process, self._words, self._program = process, words, program

    def trouble(self) -> TunnelError:
        """Why it ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        said = ""
        with suppress(OSError, ValueError):
            self._words.seek(0)
            lines = self._words.read().decode(errors="replace").splitlines()
            said = "; ".join(line.strip() for line in lines if line.strip())[-_WORDS:]
        said = said.removeprefix("ssh: ") or f"it ended with {self._process.returncode} and no word"
        return TunnelError(f"ssh: {said}", self._program)

    def close(self) -> None:
        self._words.close()


class _Pool(HTTPConnectionPool):
    def __init__(self, tunnels: Tunnels, timeout: float, size: int) -> None:
        super().__init__("localhost", timeout=timeout, maxsize=size)
        self._tunnels = tunnels

    def _new_conn(self) -> Any:
        return _Connection(self._tunnels)


class _Connection(HTTPConnection):
    def __init__(self, tunnels: Tunnels) -> None:
        super().__init__("localhost")
        self._tunnels = tunnels
        self._line: _Line | None = None

    def connect(self) -> None:
        self.sock, self._line = self._tunnels.dial()
        self.sock.settimeout(self.timeout)

    def getresponse(self) -> Any:
        line, self._line = self._line, None  # where it fails, http.client closes all first
        try:
            found = super().getresponse()
        except BaseException as error:
            trouble = line.trouble() if line is not None and isinstance(error, ConnectionError) else None
            if line is not None:
                line.close()
            if trouble is None:
                raise
            raise trouble from error
        self._line = line
        return found

    def close(self) -> None:
        super().close()
        if self._line is not None:
            self._line.close()
            self._line = None
