"""Files and directories to and from a host by SFTP: beside their places first, whole or not at all, sizes compared.

What broke off goes on where it was, as long as the caller tries again with the same Copies.
"""

from __future__ import annotations

import os
import posixpath
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import paramiko

from wfl.contexts import network
from wfl.contexts.ssh.connection import BROKEN
from wfl.errors import DrmCommunicationError, InvalidArgumentError, OutOfResourceError
from wfl.staging import DEEPEST, FULL, arriving, check_link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    Files = Callable[[], AbstractContextManager[paramiko.SFTPClient]]

PIECE = 32768
"""Bytes of one request (SFTP version 3 has servers take that much)."""
AHEAD = 64
"""Requests that are under way at once, so that the distance to the host does not count."""
PAUSES = (0.05, 0.2, 0.8, 3.2)
"""Seconds before another attempt to copy what broke off."""
_MODE = 0o777


class Copies:
    """Copies to and from one host, for one job. `files` gives a channel, a new one where the old one was lost."""

    def __init__(self, files: Files, mark: str) -> None:
        """`mark` is in the names of what is still on its way."""
        self._files, self._mark = files, mark
        self._sent: dict[str, os.stat_result] = {}  # by the name on its way: the source, as it was then
        self._there: dict[tuple[str, str], os.stat_result] = {}  # the same of what is in its place, with its target
        self._found: dict[str, tuple[int | None, int | None]] = {}  # by its path here: a source's size and time
        self._arrived = 0  # bytes in this attempt to have a source, with all that it goes on after
        self._most = 0  # bytes of the source that is wanted now, in the best of such attempts
        self.breaks = 0
        """How often in a row copying back broke off on a host that was reached, without anything more arriving."""

    # -- there --

    def put_all(self, files: Mapping[str, str], wait: Callable[[float], object]) -> None:
        """Several, the sources by their targets; again where the connection broke off, if `wait` waits for that time.

        Raises as `put`.
        """
        left = dict(files)
        for pause in (*PAUSES, None):
            try:
                for target, source in files.items():
                    if target in left:
                        self.put(source, target)
                        del left[target]
            except DrmCommunicationError:
                if pause is None or wait(pause):
                    raise
            else:
                return

    def put(self, source: str, target: str) -> None:
        """A file or a directory from here. A directory takes a file in; missing parents are made.

        Raises InvalidArgumentError for what cannot be copied, DrmCommunicationError where the connection broke off, and
        OutOfResourceError for a full disk.
        """
        with _naming(source, target), self._files() as client:
            if os.path.isdir(source):
                self._put_directory(client, source, target.rstrip("/") or "/")
                return
            if target.endswith("/") or _is_directory(client, target):
                target = posixpath.join(target, os.path.basename(source))
            make_directories(client, posixpath.dirname(target))
            self._put_file(client, source, target)

    def _put_directory(self, client: paramiko.SFTPClient, source: str, target: str) -> None:
        """What an earlier attempt has sent whole is not sent again."""
        todo = [(source, target)]
        make_directories(client, target)
        dressed = []
        while todo:
            here, there = todo.pop()
            dressed.append((here, there))
            for name in sorted(os.listdir(here)):
                one, its = os.path.join(here, name), posixpath.join(there, name)
                found = os.lstat(one)
                if stat.S_ISLNK(found.st_mode):
                    with suppress(OSError):
                        client.remove(its)
                    client.symlink(os.readlink(one), its)
                elif stat.S_ISDIR(found.st_mode):
                    make_directories(client, its)
                    todo.append((one, its))
                elif not stat.S_ISREG(found.st_mode):
                    raise InvalidArgumentError(f"{one} is no file, directory or link")
                elif not _same(self._there.get((one, its)), found):
                    self._put_file(client, one, its)
                    self._there[one, its] = found
        for here, there in reversed(dressed):
            _dress(client, there, os.stat(here), more=stat.S_IRWXU)
        self._there.clear()

    def _put_file(self, client: paramiko.SFTPClient, source: str, target: str) -> None:
        """Beside its place, going on behind what is there of an earlier attempt, then over what is there."""
        place, name = posixpath.split(target)
        beside = posixpath.join(place, f".{name[:200]}.{self._mark}")
        with open(source, "rb", opener=_at_once) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise InvalidArgumentError(f"{source} is no file, directory or link")
            earlier = self._sent.get(beside)
            begin = _size(client, beside) if _same(earlier, before) else 0
            if earlier is not None and not begin:
                with suppress(FileNotFoundError):
                    client.remove(beside)  # its mode may be one that nobody writes to
            self._sent[beside] = before
            written = True
            if not begin or begin != before.st_size:
                file.seek(begin)
                with client.open(beside, "r+" if begin else "w") as remote:
                    remote.seek(begin)
                    written = _write(remote, file)
            after = os.fstat(file.fileno())
            if not (written and _same(before, after) and _size(client, beside) == before.st_size):
                client.remove(beside)
                if not _same(before, after):
                    raise InvalidArgumentError(f"{source} changed while it was read")
                raise OutOfResourceError(f"{target} did not arrive whole: is the disk full, or a quota used up?")
        _dress(client, beside, before)
        client.posix_rename(beside, target)
        del self._sent[beside]

    # -- back --

    def get(self, source: str, target: str, wait: Callable[[float], object]) -> None:
        """A file or a directory to here, as `staging.arriving` has it; links that lead out of it are refused.

        Goes on where the connection broke off, if `wait` waits for that time, until several attempts in a row have
        brought nothing more.
        """
        with arriving(source, target) as arrived, _naming(source, target):
            self._found.clear()
            self._arrived = before = 0
            pauses = iter(PAUSES)
            while True:
                reached = False
                try:
                    with self._files() as client:
                        reached = True
                        self._get(client, source, arrived)
                except (DrmCommunicationError, *BROKEN, OSError) as error:
                    if not (isinstance(error, DrmCommunicationError) or is_broken(error)):
                        raise
                    if self._arrived > before:
                        before, pauses = self._arrived, iter(PAUSES)
                    else:
                        self.breaks += reached
                    if self._arrived > self._most:
                        self._most, self.breaks = self._arrived, 0
                    pause = next(pauses, None)
                    if pause is None or wait(pause):
                        raise
                else:
                    self._most = self.breaks = 0
                    return

    def _get(self, client: paramiko.SFTPClient, source: str, arrived: str) -> None:
        """Links are made last: nothing that the host tells, now or in another attempt, can be written through one."""
        todo = [(source, arrived, 0)]
        dressed = []
        links = {}
        while todo:
            there, here, depth = todo.pop()
            found = client.lstat(there) if depth else client.stat(there)
            kind = found.st_mode or 0
            if depth > DEEPEST:
                raise InvalidArgumentError(f"more than {DEEPEST} directories are in one another: {there}")
            if stat.S_ISDIR(kind):
                os.makedirs(here, exist_ok=True)
                dressed.append((here, found))
                for name in sorted(set(client.listdir(there))):
                    if "/" in name or name in ("", ".", ".."):
                        raise InvalidArgumentError(f"{there} has an entry {name!r}")
                    todo.append((posixpath.join(there, name), os.path.join(here, name), depth + 1))
            elif stat.S_ISLNK(kind):
                text = client.readlink(there) or ""
                check_link(there, depth, text)
                links[here] = text
            elif stat.S_ISREG(kind):
                self._get_file(client, there, here, found)
                dressed.append((here, found))
            else:
                raise InvalidArgumentError(f"{there} is no file, directory or link")
        for here, text in links.items():
            os.symlink(text, here)
        for here, found in reversed(dressed):  # not before: another attempt writes into them once more
            _dress_here(here, found, more=stat.S_IRWXU if stat.S_ISDIR(found.st_mode or 0) else 0)

    def _get_file(self, client: paramiko.SFTPClient, source: str, target: str, found: paramiko.SFTPAttributes) -> None:
        size, now = found.st_size or 0, (found.st_size, found.st_mtime)
        goes_on = self._found.get(target) == now
        self._found[target] = now
        if goes_on and os.path.exists(target) and os.path.getsize(target) == size:
            return
        with open(target, "ab" if goes_on else "wb") as file, client.open(source, "r") as remote:
            for piece in _pieces(remote, file.tell(), size):
                file.write(piece)
                self._arrived += len(piece)
            if file.tell() != size:
                raise InvalidArgumentError(f"{source} became shorter while it was read")


def _write(remote: paramiko.SFTPFile, file: BinaryIO) -> bool:
    """All that is left of a file here; whether the host says that it has all of it.

    Many pieces are under way at once, and of those paramiko looks at answers now and then only: with the last one it
    waits for all.
    """
    piece = file.read(PIECE)
    try:
        while piece:
            following = file.read(PIECE)
            remote.set_pipelined(bool(following))
            remote.write(piece)
            piece = following
    except OSError as error:
        if error.errno is not None or is_broken(error):
            raise
        return False  # SFTP has one word for all that may have failed
    return True


def make_directories(client: paramiko.SFTPClient, path: str) -> None:
    """This one and those above it, where they are missing."""
    missing = []
    while path not in ("", "/") and not _is_directory(client, path):
        missing.append(path)
        path = posixpath.dirname(path)
    for one in reversed(missing):
        try:
            client.mkdir(one)
        except OSError as error:
            if not _is_directory(client, one):  # else another job has just made it
                raise InvalidArgumentError(f"{one} cannot be made: {network.words(error)}") from error


def read_part(client: paramiko.SFTPClient, path: str, offset: int, limit: int) -> bytes:
    """At most `limit` bytes of a file from `offset`; fewer are all that there are now. Raises OSError."""
    with client.open(path, "r") as file:
        size = file.stat().st_size or 0
        return b"".join(_pieces(file, offset, min(size, offset + limit)))


def _pieces(file: paramiko.SFTPFile, offset: int, end: int) -> Iterator[bytes]:
    """What is in it from here to there, asked for ahead; less where it has become shorter."""
    ahead = offset
    file.seek(offset)
    while offset < end:
        if offset >= ahead:
            ahead = min(end, offset + AHEAD * PIECE)
            if ahead - offset > PIECE:
                _prefetch(file, ahead)
        piece = file.read(min(PIECE, ahead - offset))
        if not piece:
            file.stat()  # raises where the connection is lost, which paramiko takes for the file's end
            return
        yield piece
        offset += len(piece)


def _prefetch(file: paramiko.SFTPFile, size: int) -> None:
    """Ask for what comes up to there. A lost connection is told to who reads; paramiko's thread prints it as well."""
    ask: Callable[..., None] = file._prefetch_thread  # type: ignore[attr-defined] # noqa: SLF001

    def quietly(*arguments: Any) -> None:
        with suppress(*BROKEN, OSError):
            ask(*arguments)

    file._prefetch_thread = quietly  # type: ignore[attr-defined] # noqa: SLF001
    file.prefetch(size)  # told how many at once, its thread would wait for ever for a connection that is lost


def read_all(client: paramiko.SFTPClient, path: str) -> bytes:
    """The whole of a small file."""
    with client.open(path, "r") as file:
        data = file.read()
        file.stat()  # as above
        return data


def _at_once(path: str, flags: int) -> int:
    """For open(): what is no file is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _same(one: os.stat_result | None, other: os.stat_result) -> bool:
    return one is not None and (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _size(client: paramiko.SFTPClient, path: str) -> int:
    try:
        return client.stat(path).st_size or 0
    except FileNotFoundError:
        return 0


def _is_directory(client: paramiko.SFTPClient, path: str) -> bool:
    try:
        return stat.S_ISDIR(client.stat(path).st_mode or 0)
    except FileNotFoundError:
        return False


def _dress(client: paramiko.SFTPClient, path: str, found: os.stat_result, *, more: int = 0) -> None:
    client.chmod(path, stat.S_IMODE(found.st_mode) & _MODE | more)
    with suppress(OSError):
        client.utime(path, (found.st_atime, found.st_mtime))


def _dress_here(path: str, found: paramiko.SFTPAttributes, *, more: int = 0) -> None:
    os.chmod(path, stat.S_IMODE(found.st_mode or 0o644) & _MODE | more)
    if found.st_mtime is not None:
        with suppress(OSError):
            os.utime(path, (found.st_mtime, found.st_mtime))


def is_broken(error: BaseException) -> bool:
    """Whether the connection is at fault; paramiko has no type of error for one that it finds closed."""
    return isinstance(error, BROKEN) or (isinstance(error, OSError) and error.args == ("Socket is closed",))


@contextmanager
def _naming(source: str, target: str) -> Iterator[None]:
    """What fails inside is told with source and target."""
    what = f"cannot copy {source} to {target}"
    try:
        yield
    except (*BROKEN, OSError) as error:
        if is_broken(error):
            raise DrmCommunicationError(f"{what}: {network.words(error)}") from error
        kind = OutOfResourceError if getattr(error, "errno", None) in FULL else InvalidArgumentError
        raise kind(f"{what}: {network.words(error)}") from error
    except UnicodeError as error:  # a name that is no text
        raise InvalidArgumentError(f"{what}: {network.words(error)}") from error
