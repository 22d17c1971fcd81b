"""One connection to one host: logging in, with the host's key known beforehand; channels for commands and for files."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import paramiko

from wfl.contexts import network
from wfl.contexts.ssh import keys
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, SessionManagementError, WflError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wfl.contexts.ssh.login import Login

KEEPALIVE = 15
"""Seconds of silence after which the host is spoken to, so that what lies between does not forget the connection."""
CHANNELS = 4
"""For files at once: a host may allow ten channels of all kinds (MaxSessions of sshd_config(5))."""
COPIES = CHANNELS - 1
"""Of those, for what may take long."""
LAST = 0.3
"""Seconds in which a connection that was cut ends, after the first of its channels has."""
WINDOW = 1 << 22
"""Bytes that a host may send before it is answered."""
PAUSE = (0.2, 30.0)
"""Seconds between two attempts to connect: the first pause, and the longest."""
LOST = (OSError, EOFError, paramiko.SSHException)
"""What paramiko raises where a connection is lost."""
BROKEN = (EOFError, paramiko.SSHException, paramiko.SFTPError, TimeoutError, ConnectionError)
"""The same in a channel for files, to which an answer may still come then; other OSErrors are the host's answers."""
logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what went wrong is said by our errors


class Attempts:
    """To connect to one host: none for a while after one that failed, and each time for longer."""

    def __init__(self, longest: float = PAUSE[1]) -> None:
        self.failed: WflError | None = None
        """Why the host cannot be reached now."""
        self._longest = longest
        self._until, self._pause = 0.0, PAUSE[0]

    @property
    def rest(self) -> float:
        """Seconds until another one makes sense."""
        return max(0.0, self._until - time.monotonic()) if self.failed is not None else 0.0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """One attempt, made inside of this. Raises what the last one did, if that was a moment ago."""
        if self.failed is not None and self.rest:
            raise self.failed
        try:
            yield
        except WflError as error:
            self.failed = error
            self._until = time.monotonic() + self._pause * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
            self._pause = min(2 * self._pause, self._longest)
            raise
        self.failed, self._pause = None, PAUSE[0]


class Connection:
    """Logged in, until `close` or until the host is heard of no more. Channels may be opened from any thread."""

    def __init__(self, login: Login, *, timeout: float, passphrase: str | None = None) -> None:
        """Raises DrmCommunicationError for a host that does not answer, DeniedByDrmsError for one that refuses, and
        SessionManagementError for one whose key is not known.
        """
        self.login, self._timeout = login, timeout
        self._transports: list[paramiko.Transport] = []  # the jumps' first
        self._command: subprocess.Popen[bytes] | None = None
        self._idle: list[paramiko.SFTPClient] = []
        self._one = threading.Lock()  # paramiko tells one of several only why they were not opened
        self.opened = False
        """Whether the host has ever opened a channel in it."""
        self._borrowed = threading.Semaphore(CHANNELS)
        try:
            for one in (*login.jumps, login):
                self._transports.append(self._log_in(one, self._way_to(one), passphrase))
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it is not known to be lost."""
        return bool(self._transports) and self._transports[-1].is_active()

    def command(self, words: str) -> paramiko.Channel:
        """A channel in which the host's login shell runs a command."""
        with self._opening(f"it runs no command ({words.partition(' ')[0]} …)") as transport:
            channel = transport.open_session(window_size=WINDOW, timeout=self._timeout)
            try:
                channel.settimeout(self._timeout)
                channel.exec_command(words)
            except BaseException:
                channel.close()
                raise
            return channel

    @contextlib.contextmanager
    def files(self) -> Iterator[paramiko.SFTPClient]:
        """A channel for files, which is nobody else's meanwhile: a client takes no questions of two threads at once.

        A request in it raises OSError, EOFError or SSHException.
        """
        with self._borrowed:
            client = self._take_files()
            try:
                yield client
            except Exception as error:
                if isinstance(error, BROKEN):
                    client.close()
                raise
            except BaseException:  # in the middle of anything
                client.close()
                raise
            finally:
                if _is_open(client):
                    self._idle.append(client)

    def spare(self) -> None:
        """Close a channel for files that nobody uses now: the host opens only so many."""
        with contextlib.suppress(IndexError):
            self._idle.pop().close()

    def _take_files(self) -> paramiko.SFTPClient:
        with contextlib.suppress(IndexError):
            while not _is_open(client := self._idle.pop()):
                client.close()
            return client
        with self._opening("it offers no SFTP, which files are copied by") as transport:
            client = transport.open_sftp_client()
            channel = client.get_channel()
            if channel is not None:
                channel.settimeout(self._timeout)
            return client

    @contextlib.contextmanager
    def _opening(self, refusal: str) -> Iterator[paramiko.Transport]:
        """Something is opened in it; a host that takes longer than it may is given up, as paramiko waits for ever."""
        with _told(self.login), self._one:
            transport = self._transport()
            late = threading.Timer(self._timeout, transport.close)
            late.daemon = True
            late.start()
            try:
                yield transport
                self.opened = True
            except paramiko.ChannelException:
                raise
            except (EOFError, paramiko.SSHException) as error:
                transport.join(LAST)  # channels end a moment before their transport does
                if not transport.is_active() or "imeout" in str(error):
                    raise
                raise DeniedByDrmsError(f"{self.login.name}: {refusal}") from error
            finally:
                late.cancel()

    def close(self) -> None:
        """Cut it. May be called from any thread, and again."""
        for transport in reversed(self._transports):
            with contextlib.suppress(*LOST):  # the way to it may be lost
                transport.close()
        if self._command is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._command.pid, 9)
            self._command.wait()

    def abandon(self) -> None:
        """In a forked child: drop the descriptors, without a word to the host."""
        for transport in self._transports:
            sock = getattr(transport, "sock", None)
            if isinstance(sock, socket.socket) and sock.fileno() >= 0:
                os.close(sock.detach())

    def _transport(self) -> paramiko.Transport:
        if not self.alive:
            raise DrmCommunicationError(f"{self.login.name}: the connection is lost")
        return self._transports[-1]

    def _way_to(self, login: Login) -> Any:
        """What the connection to it goes through."""
        if self._transports:
            with _told(login):
                return self._transports[-1].open_channel(
                    "direct-tcpip", (login.host, login.port), ("127.0.0.1", 0), timeout=self._timeout
                )
        if login.command is not None:
            return self._run(login.command)
        with _told(login):
            return socket.create_connection((login.host, login.port), self._timeout)

    def _run(self, command: str) -> socket.socket:
        """A command that leads to the host; the terminal's Ctrl-C is not for it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._command = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                start_new_session=True,
            )
        return ours

    def _log_in(self, login: Login, sock: Any, passphrase: str | None) -> paramiko.Transport:
        transport: paramiko.Transport | None = None
        try:
            with _told(login):
                transport = paramiko.Transport(sock)
                transport.banner_timeout = transport.auth_timeout = transport.channel_timeout = self._timeout
                known = keys.of(login)
                options = transport.get_security_options()
                kinds = {one.kind for one in known if not one.revoked}
                options.key_types = sorted(options.key_types, key=lambda kind: _PLAIN.get(kind, kind) not in kinds)
                transport.start_client(timeout=self._timeout)
                keys.check(login, known, transport.get_remote_server_key())
                keys.let_in(login, transport, passphrase)
        except BaseException:
            if transport is not None:
                transport.close()
            sock.close()
            raise
        transport.set_keepalive(KEEPALIVE)
        return transport


_PLAIN = dict.fromkeys(("rsa-sha2-512", "rsa-sha2-256"), "ssh-rsa")
"""What the key is called that a signature is made with."""


def is_full(error: DeniedByDrmsError) -> bool:
    """Whether a host refuses a channel, which may be one too many at once (MaxSessions of sshd_config(5))."""
    return isinstance(error.__cause__, paramiko.ChannelException)


def _is_open(client: paramiko.SFTPClient) -> bool:
    channel = client.get_channel()
    return channel is not None and not channel.closed


def spoken(connection: Connection, shell: str, script: str) -> str:
    """What a script tells that a host's shell runs to its end. Raises DrmCommunicationError where it does not end."""
    channel = connection.command(f"exec {shell} -s")
    pieces = []
    with _told(connection.login), contextlib.closing(channel):
        channel.sendall(script.encode("utf-8", "surrogateescape"))
        channel.shutdown_write()
        while piece := channel.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces).decode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _told(login: Login) -> Iterator[None]:
    """What goes wrong inside, as an error of ours with the host's name."""
    try:
        yield
    except (DrmCommunicationError, DeniedByDrmsError, SessionManagementError):
        raise
    except paramiko.ChannelException as error:
        raise DeniedByDrmsError(f"{login.name}: it refuses: {error.text}") from error
    except LOST as error:
        raise DrmCommunicationError(f"{login.name}: {login.place} cannot be reached: {network.words(error)}") from error
