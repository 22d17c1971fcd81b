"""One connection to one host: logging in, with the host's key known beforehand; channels for commands and for files."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import paramiko

from wfl.contexts import network
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wfl.contexts.ssh.login import Login

KEEPALIVE = 15
"""Seconds of silence after which the host is spoken to, so that what lies between does not forget the connection."""
CHANNELS = 4
"""For files at once: a host may allow ten channels of all kinds (MaxSessions of sshd_config(5))."""
WINDOW = 1 << 22
"""Bytes that a host may send before it is answered."""
logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what went wrong is said by our errors


class Connection:
    """Logged in, until `close` or until the host is heard of no more. Channels may be opened from any thread."""

    def __init__(self, login: Login, *, timeout: float, passphrase: str | None = None) -> None:
        """Raises DrmCommunicationError for a host that does not answer, DeniedByDrmsError for one that refuses, and
        SessionManagementError for one whose key is not known.
        """
        self.login, self._timeout = login, timeout
        self._clients: list[paramiko.SSHClient] = []
        self._command: subprocess.Popen[bytes] | None = None
        self._idle: list[paramiko.SFTPClient] = []
        self._borrowed = threading.Semaphore(CHANNELS)
        try:
            for one in (*login.jumps, login):
                self._clients.append(self._log_in(one, self._way_to(one), passphrase))
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it is not known to be lost."""
        transport = self._clients[-1].get_transport() if self._clients else None
        return transport is not None and transport.is_active()

    def command(self, words: str) -> paramiko.Channel:
        """A channel in which the host's login shell runs a command."""
        with _told(self.login):
            channel = self._transport().open_session(window_size=WINDOW, timeout=self._timeout)
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
            except (EOFError, TimeoutError, ConnectionError, paramiko.SSHException):
                client.close()
                raise
            except BaseException:
                self._idle.append(client)
                raise
            self._idle.append(client)

    def _take_files(self) -> paramiko.SFTPClient:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        with _told(self.login, "it offers no SFTP, which files are copied by"):
            client = self._transport().open_sftp_client()
            if client is None:
                raise DrmCommunicationError(f"{self.login.place}: no channel for files")
            channel = client.get_channel()
            if channel is not None:
                channel.settimeout(self._timeout)
            return client

    def close(self) -> None:
        """Cut it. May be called from any thread, and again."""
        for client in reversed(self._clients):
            client.close()
        if self._command is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._command.pid, 9)
            self._command.wait()

    def abandon(self) -> None:
        """In a forked child: drop the descriptors, without a word to the host."""
        for client in self._clients:
            sock = getattr(client.get_transport(), "sock", None)
            if isinstance(sock, socket.socket) and sock.fileno() >= 0:
                os.close(sock.detach())

    def _transport(self) -> paramiko.Transport:
        transport = self._clients[-1].get_transport()
        if transport is None or not transport.is_active():
            raise DrmCommunicationError(f"{self.login.place}: the connection is lost")
        return transport

    def _way_to(self, login: Login) -> Any:
        """What the connection to it goes through."""
        if self._clients:
            before = self._clients[-1].get_transport()
            with _told(login):
                if before is None:
                    raise DrmCommunicationError(f"{login.place}: the jump before it was lost")
                return before.open_channel(
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

    def _log_in(self, login: Login, sock: Any, passphrase: str | None) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_Strict(login))
        for path in login.known_hosts:
            with contextlib.suppress(OSError):
                client.load_system_host_keys(path)
        name = login.known_as or login.host
        try:
            with _told(login), _agent(login):
                client.connect(
                    name,
                    port=PORT_22 if login.known_as else login.port,  # an alias is looked for as it stands
                    username=login.user,
                    sock=sock,
                    key_filename=_keys(login) or None,  # type: ignore[arg-type] # it takes a list
                    passphrase=passphrase,
                    allow_agent=login.agent != "none",
                    look_for_keys=not login.only_these_keys,
                    timeout=self._timeout,
                    banner_timeout=self._timeout,
                    auth_timeout=self._timeout,
                    channel_timeout=self._timeout,
                )
        except BaseException:
            client.close()
            sock.close()
            raise
        transport = client.get_transport()
        if transport is not None:
            transport.set_keepalive(KEEPALIVE)
        return client


PORT_22 = 22


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


def _keys(login: Login) -> list[str]:
    """Those that are there; a certificate by its own name stands for its key, too (paramiko looks for both)."""
    paths = [*login.certificates, *login.keys]
    there = [path for path in paths if os.path.exists(path)]
    if login.only_these_keys and not there:
        raise SessionManagementError(f"{login.name}: there is no key {', '.join(login.keys)}")
    return there


@contextlib.contextmanager
def _agent(login: Login) -> Iterator[None]:
    """The agent that the configuration names: paramiko knows that of the environment only."""
    if login.agent in (None, "none"):
        yield
        return
    with _switching:
        before = os.environ.get("SSH_AUTH_SOCK")
        os.environ["SSH_AUTH_SOCK"] = str(login.agent)
        try:
            yield
        finally:
            if before is None:
                del os.environ["SSH_AUTH_SOCK"]
            else:
                os.environ["SSH_AUTH_SOCK"] = before


_switching = threading.Lock()


class _Strict(paramiko.MissingHostKeyPolicy):
    """A key that nobody has looked at is refused."""

    def __init__(self, login: Login) -> None:
        self._login = login

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        del client
        login = self._login
        raise SessionManagementError(
            f"{login.name}: the key of {hostname} is not known: {key.get_name()} {fingerprint(key)}. Compare it with "
            f"what the host's administrators say, then log in once by `{login.by_hand}`, which asks and adds it to "
            f"{login.known_hosts[0] if login.known_hosts else '~/.ssh/known_hosts'}"
        )


def fingerprint(key: paramiko.PKey) -> str:
    """As OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


@contextlib.contextmanager
def _told(login: Login, refusal: str = "it refuses") -> Iterator[None]:
    """What goes wrong inside, as an error of ours with the host's name."""
    try:
        yield
    except (DrmCommunicationError, DeniedByDrmsError, SessionManagementError):
        raise
    except paramiko.BadHostKeyException as error:
        expected, got = fingerprint(error.expected_key), fingerprint(error.key)
        raise SessionManagementError(
            f"{login.name}: {error.hostname} has another key than is known of it: {got} and not {expected}. Somebody "
            f"may listen in. Where it was changed for good: ssh-keygen -R {error.hostname}"
        ) from error
    except paramiko.PasswordRequiredException as error:
        words = f"{login.name}: a key needs its passphrase: load it into an agent (ssh-add), or give passphrase=…"
        raise SessionManagementError(words) from error
    except paramiko.AuthenticationException as error:
        words = f"{login.name}: {login.place} accepts none of the keys: {network.words(error)}"
        raise DeniedByDrmsError(words) from error
    except paramiko.ChannelException as error:
        raise DeniedByDrmsError(f"{login.name}: {refusal}: {error.text}") from error
    except (OSError, EOFError, paramiko.SSHException) as error:
        if "No authentication methods" in str(error):
            words = f"{login.name}: no key for {login.place}: name one (identity_file=…, IdentityFile), or ssh-add"
            raise DeniedByDrmsError(words) from error
        raise DrmCommunicationError(f"{login.name}: {login.place} cannot be reached: {network.words(error)}") from error
