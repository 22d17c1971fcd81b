"""Hosts inside of this process: SSH servers made of paramiko's parts, and the files that they offer. No sshd."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import paramiko
from paramiko import common, sftp

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

PATIENCE = 30.0  # seconds that anything may take on a busy machine
PIECE = 1 << 15


@dataclass
class Disk:
    """The files that a host offers, below a directory here, and what is wrong with them.

    `room`: bytes that can still be written; `cut`: bytes that can still go to and fro before the connection breaks off;
    `lose`: which writes fail, counted from 0, though later ones succeed.
    """

    root: Path
    room: int | None = None
    cut: int | None = None
    lose: frozenset[int] = frozenset()
    listings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What is said to be in a directory, instead of what is."""
    places: Mapping[str, Path] = field(default_factory=dict)
    """Paths that lead anywhere else here."""
    found: Callable[[str, os.stat_result | None], os.stat_result | int | None] = lambda _, found: found
    """What is said of a path, given what it is; a number is an error of SFTP, None is nothing there."""
    before: Callable[[str], object] = lambda _: None
    """Called with the name of each request before it is answered."""
    written: int = 0
    read: int = 0
    writes: int = 0

    def here(self, path: str) -> Path:
        """Where a path is on this machine."""
        return self.places.get(path, self.root / path.lstrip("/"))

    def moved(self, channel: paramiko.Channel, size: int) -> None:
        """Some bytes went to or fro."""
        if self.cut is not None:
            self.cut -= size
            if self.cut < 0:
                channel.get_transport().close()


def _attempt(f: Callable[[], object]) -> int:
    """What SFTP says of a call that does something."""
    try:
        f()
    except OSError as error:
        return paramiko.SFTPServer.convert_errno(error.errno or 0)
    return sftp.SFTP_OK


class _File(paramiko.SFTPHandle):
    def __init__(self, disk: Disk, channel: paramiko.Channel, path: str, flags: int) -> None:
        super().__init__(flags)
        self._disk, self._channel, self._path = disk, channel, path
        self._fd = os.open(disk.here(path), flags, 0o666)

    def close(self) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        self._disk.before("read")
        data = os.pread(self._fd, length, offset)
        self._disk.read += len(data)
        self._disk.moved(self._channel, len(data))
        return data

    def write(self, offset: int, data: Buffer) -> int:
        self._disk.before("write")
        self._disk.writes += 1
        if self._disk.writes - 1 in self._disk.lose:
            return sftp.SFTP_FAILURE
        taken = whole = bytes(data)
        if self._disk.room is not None:
            taken = whole[: self._disk.room]
            self._disk.room -= len(taken)
        os.pwrite(self._fd, taken, offset)
        self._disk.written += len(taken)
        self._disk.moved(self._channel, len(taken))
        return sftp.SFTP_OK if taken == whole else sftp.SFTP_FAILURE

    def stat(self) -> paramiko.SFTPAttributes | int:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self._fd))

    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        return _attempt(lambda: _change(self._disk.here(self._path), attr))


def _change(path: Path, attr: paramiko.SFTPAttributes) -> None:
    if attr.st_mode is not None:
        path.chmod(stat.S_IMODE(attr.st_mode))
    if attr.st_atime is not None and attr.st_mtime is not None:
        os.utime(path, (attr.st_atime, attr.st_mtime))


class _Files(paramiko.SFTPServerInterface):
    """One client's view of a disk."""

    def __init__(self, server: paramiko.ServerInterface, *args: object, **more: object) -> None:
        super().__init__(server, *args, **more)
        self._disk: Disk = cast("Any", server).disk
        self._channel: paramiko.Channel = cast("Any", server).last

    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes] | int:
        self._disk.before("list")
        names = self._disk.listings.get(path)
        if names is None:
            try:
                names = os.listdir(self._disk.here(path))
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno or 0)
        found = []
        for name in names:
            attributes = paramiko.SFTPAttributes()
            attributes.filename = cast("str", os.fsencode(name))  # as it is: no name has to be text
            attributes.st_mode = 0
            found.append(attributes)
        return found

    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        return self._stat(path, os.stat)

    def lstat(self, path: str) -> paramiko.SFTPAttributes | int:
        return self._stat(path, os.lstat)

    def _stat(self, path: str, how: Callable[[Path], os.stat_result]) -> paramiko.SFTPAttributes | int:
        self._disk.before("stat")
        found: os.stat_result | None = None
        with suppress(OSError):
            found = how(self._disk.here(path))
        told = self._disk.found(path, found)
        if isinstance(told, int):
            return told
        return sftp.SFTP_NO_SUCH_FILE if told is None else paramiko.SFTPAttributes.from_stat(told)

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> paramiko.SFTPHandle | int:
        del attr
        self._disk.before("open")
        try:
            return _File(self._disk, self._channel, path, flags)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def remove(self, path: str) -> int:
        return _attempt(self._disk.here(path).unlink)

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        return _attempt(lambda: self._disk.here(oldpath).replace(self._disk.here(newpath)))

    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        del attr
        self._disk.before("mkdir")
        return _attempt(self._disk.here(path).mkdir)

    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        return _attempt(lambda: _change(self._disk.here(path), attr))

    def readlink(self, path: str) -> str | int:
        try:
            return os.readlink(self._disk.here(path))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    def symlink(self, target_path: str, path: str) -> int:
        return _attempt(lambda: self._disk.here(path).symlink_to(target_path))


class Host(paramiko.ServerInterface):
    """What one client meets: who may log in, and what is there then.

    `keys`: those that may log in, None lets everybody in; `disk`: None offers no files; `command`: what runs the words
    of a command, None runs none.
    """

    def __init__(
        self,
        disk: Disk | None,
        *,
        keys: Sequence[paramiko.PKey] | None = None,
        command: Callable[[paramiko.Channel, str], None] | None = None,
        forward: bool = False,
    ) -> None:
        self.disk, self._keys, self._command, self.forward = disk, keys, command, forward
        self.last: paramiko.Channel | None = None
        self.asked: list[str] = []  # fingerprints of the keys that were shown
        self.users: set[str] = set()
        self.channels = 1000  # that may still be opened
        self.before_auth: Callable[[], object] = lambda: None
        self.agreed: dict[int, tuple[str, int]] = {}

    def get_allowed_auths(self, username: str) -> str:
        """By keys."""
        del username
        return "publickey" if self._keys is not None else "none,publickey"

    def check_auth_none(self, username: str) -> int:
        """Only where everybody is let in."""
        del username
        return common.AUTH_SUCCESSFUL if self._keys is None else common.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Only with one of the keys."""
        self.users.add(username)
        self.asked.append(key.fingerprint)
        self.before_auth()
        known = self._keys is None or key in self._keys
        return common.AUTH_SUCCESSFUL if known else common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """As many as there may be."""
        del kind, chanid
        self.channels -= 1
        return common.OPEN_SUCCEEDED if self.channels >= 0 else common.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        """Where this leads on to other hosts."""
        del origin
        if not self.forward:
            return common.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        self.agreed[chanid] = destination
        return common.OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        """Files, where there are any."""
        self.last = channel
        return self.disk is not None and super().check_channel_subsystem_request(channel, name)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        """Commands, where there are any."""
        if self._command is None:
            return False
        words = command.decode()
        threading.Thread(target=self._command, args=(channel, words), name="host-command", daemon=True).start()
        return True


def served(sock: socket.socket, key: paramiko.PKey, host: Host) -> paramiko.Transport:
    """A connection that a host answers."""
    transport = paramiko.Transport(sock)
    transport.add_server_key(key)
    transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files)
    transport.start_server(event=threading.Event(), server=host)
    if host.forward:
        threading.Thread(target=_lead_on, args=(transport, host), name="host-forward", daemon=True).start()
    return transport


def _lead_on(transport: paramiko.Transport, host: Host) -> None:
    """What comes through one host for another."""
    while transport.is_active():
        channel = transport.accept(0.1)
        if channel is not None and channel.get_id() in host.agreed:
            far = socket.create_connection(host.agreed[channel.get_id()])
            for source, target in ((channel, far), (far, channel)):
                threading.Thread(target=_bring, args=(source, target), name="host-forward", daemon=True).start()


def _bring(source: paramiko.Channel | socket.socket, target: paramiko.Channel | socket.socket) -> None:
    with suppress(OSError, EOFError, paramiko.SSHException):
        while piece := source.recv(PIECE):
            target.sendall(piece)
    for end in (source, target):
        end.close()


_KEY: list[paramiko.PKey] = []


def host_key() -> paramiko.PKey:
    """A key for hosts; all of them may have the same."""
    if not _KEY:
        _KEY.append(paramiko.ECDSAKey.generate())
    return _KEY[0]


class Wire:
    """Connections to a host over a pair of sockets, for files; a new one whenever the last is lost."""

    def __init__(self, disk: Disk, most: int = 100) -> None:
        """`most`: how many connections there can be at all."""
        self._disk, self._left = disk, most
        self._ends: list[paramiko.Transport] = []
        self._client: paramiko.SFTPClient | None = None
        self.made = 0

    @contextmanager
    def files(self) -> Iterator[paramiko.SFTPClient]:
        """A channel, as a Connection gives it."""
        if self._client is None or not all(end.is_active() for end in self._ends[-2:]):
            self._client = self._connect()
        yield self._client

    def _connect(self) -> paramiko.SFTPClient:
        if self.made == self._left:
            raise ConnectionRefusedError(111, "Connection refused")
        self.made += 1
        ours, theirs = socket.socketpair()
        self._ends.append(served(theirs, host_key(), Host(self._disk)))
        client = paramiko.Transport(ours)
        self._ends.append(client)
        client.start_client(timeout=PATIENCE)
        client.auth_none("somebody")
        found = paramiko.SFTPClient.from_transport(client)
        assert found is not None
        channel = found.get_channel()
        assert channel is not None
        channel.settimeout(PATIENCE)
        return found

    def close(self) -> None:
        """All of them."""
        for end in reversed(self._ends):
            end.close()


class Shell:
    """Runs commands of a host on this machine, below a home of their own.

    `first`: what is said before anything that a command says; `deaf`: nothing is brought to or from one meanwhile.
    """

    def __init__(self, home: Path, first: bytes = b"") -> None:
        self.home, self.first = home, first
        self.ran: list[str] = []
        self._hears = threading.Event()
        self._hears.set()

    def deaf(self, *, yes: bool) -> None:
        """From now on, or no more."""
        if yes:
            self._hears.clear()
        else:
            self._hears.set()

    def __call__(self, channel: paramiko.Channel, words: str) -> None:
        """To its end, or to that of the connection."""
        self.ran.append(words)
        process = subprocess.Popen(
            ["/bin/sh", "-c", words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"]},
            cwd=self.home,
            start_new_session=True,
        )
        with process, suppress(OSError, EOFError, paramiko.SSHException):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            if self.first:
                channel.sendall(self.first)
            ways = [(process.stdout.fileno(), channel.sendall), (process.stderr.fileno(), channel.sendall_stderr)]
            threads = [threading.Thread(target=self._bring, args=way, daemon=True) for way in ways]
            for thread in (*threads, threading.Thread(target=self._give, args=(channel, process), daemon=True)):
                thread.start()
            for thread in threads:
                thread.join()
            channel.send_exit_status(process.wait() & 0xFF)
            channel.close()

    def _give(self, channel: paramiko.Channel, process: subprocess.Popen[bytes]) -> None:
        """What is said to a command, up to its own end or that of the connection."""
        assert process.stdin is not None
        with suppress(OSError, ValueError, EOFError, paramiko.SSHException):
            while piece := channel.recv(PIECE):
                self._hears.wait(PATIENCE)
                process.stdin.write(piece)
                process.stdin.flush()
        with suppress(OSError):
            process.stdin.close()

    def _bring(self, source: int, bring: Callable[[bytes], object]) -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):
            while piece := os.read(source, PIECE):
                self._hears.wait(PATIENCE)
                bring(piece)


class Server:
    """A host on a port of this machine's loopback interface."""

    def __init__(self, host: Host, key: paramiko.PKey | None = None) -> None:
        self.host, self.key = host, key or host_key()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.made = 0
        self.silent = False
        """Whether connections are taken and nothing is said."""
        self._lines: list[paramiko.Transport | socket.socket] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="host", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self.made += 1
                self._lines.append(sock if self.silent else served(sock, self.key, self.host))

    def cut(self) -> None:
        """All connections, at once."""
        with self._lock:
            lines, self._lines = self._lines, []
        for line in lines:
            line.close()

    def close(self) -> None:
        """Nobody is there any more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PATIENCE)
        self.cut()

    def known(self, path: Path, key: paramiko.PKey | None = None) -> Path:
        """Write down its key, or another one, as ssh does."""
        shown = key or self.key
        path.write_text(f"[127.0.0.1]:{self.port} {shown.get_name()} {shown.get_base64()}\n")
        return path
