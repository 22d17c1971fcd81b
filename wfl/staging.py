"""Files and directories to where jobs are and back, as tar streams: what contexts and the job server share.

Knows no client: `pack` makes what is unpacked there, `unpack` takes in what was packed there.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple

from wfl.errors import DrmCommunicationError, InvalidArgumentError, OutOfResourceError, WflError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CHUNK = 1 << 20
"""Bytes that are read, and sent, at once."""
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of the system that say that something is used up."""
_MODE = 0o777
DEEPEST = 400
"""Directories in one another that are taken in: what makes and removes them calls itself for each."""


def pack(
    copies: Mapping[str, str],
    *,
    place: str = "/",
    owner: tuple[int, int] = (0, 0),
    gnu: bool = False,
    last: str | None = None,
) -> Iterator[bytes]:
    """One tar stream, to be unpacked in `place`, of all {target below it in the container: source here}.

    `owner` is the user's and the group's number there. Directories are copied whole; links in them stay links, a
    source that is one is followed. A target with a slash at its end is the directory that a file goes into. Missing
    parents of a target are made by who unpacks: were they in the stream, those that are there would change.

    With `gnu`, what a plain header cannot say is said as GNU's tar does: BusyBox's overlooks POSIX's way of telling
    more than eight gibibytes. With `last`, an empty file of that name comes after all others: where it arrived, the
    stream was whole. (That tar ended well does not say so: a stream that ends between two files is whole to it.)

    Raises InvalidArgumentError, at once for a source or target that cannot be, and while the stream is read for what
    cannot be read then or changes meanwhile.
    """
    copied = [_Copy.of(target, source, place) for target, source in copies.items()]
    header = _Header(owner, tarfile.GNU_FORMAT if gnu else tarfile.PAX_FORMAT)
    mark = [] if last is None else [tarfile.TarInfo(last).tobuf(header.form)]
    return _joined(chain((piece for copy in copied for piece in copy.pieces(header)), mark))


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Small pieces put together, so that a thousand small files are not two thousand small messages."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join([*waiting, _END])


class _Copy(NamedTuple):
    """One source on its way into the container; `name` is the target as seen from `place`."""

    source: str
    target: str
    name: str
    place: str

    @classmethod
    def of(cls, target: str, source: str, place: str) -> _Copy:
        with _naming(source, target):
            if not posixpath.isabs(target):
                raise _RefusedError("in a container, a target begins with /")
            kind = os.stat(source).st_mode
        if target.endswith("/") and not stat.S_ISDIR(kind):
            target += os.path.basename(source)
        name = posixpath.relpath(target, place)
        return cls(source, target, "" if name == "." else name, place)

    def pieces(self, header: _Header) -> Iterator[bytes]:
        """The source and all below it. One list of what is still to do, so that depth costs no recursion."""
        todo = [(self.source, self.name)]
        while todo:
            path, name = todo.pop()
            with _naming(path, posixpath.join(self.place, name)):
                found = os.stat(path, follow_symlinks=path == self.source)
                if stat.S_ISDIR(found.st_mode):
                    below = sorted(os.listdir(path), reverse=True)
                    todo += [(os.path.join(path, entry), posixpath.join(name, entry)) for entry in below]
                    if name:  # the container's root is as it is
                        yield header(name, found)
                elif stat.S_ISLNK(found.st_mode):
                    yield header(name, found, link=os.readlink(path))
                elif stat.S_ISREG(found.st_mode):
                    yield from _contents(path, name, header, top=path == self.source)
                else:
                    raise _RefusedError(f"it is {_kind(found.st_mode)}")


def _contents(path: str, name: str, header: _Header, *, top: bool) -> Iterator[bytes]:
    """Header and bytes of a file, which has to stay as it is meanwhile."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if top else os.O_NOFOLLOW)
    with open(os.open(path, flags), "rb", buffering=0) as file:  # the descriptor tells what is really read
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise _RefusedError(f"it has become {_kind(before.st_mode)}")
        yield header(name, before)
        left = before.st_size
        while left and (piece := file.read(min(CHUNK, left))):
            yield piece
            left -= len(piece)
        after = os.fstat(file.fileno())
        if left or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise _RefusedError("it changed while it was read")
        yield bytes(-before.st_size % _BLOCK)


class _Header(NamedTuple):
    """Makes headers: whose all files are to be, and in which of tarfile's forms."""

    owner: tuple[int, int]
    form: Literal[1, 2]

    def __call__(self, name: str, found: os.stat_result, *, link: str | None = None) -> bytes:
        info = tarfile.TarInfo(name)
        info.mode = stat.S_IMODE(found.st_mode) & (_MODE | stat.S_ISVTX)  # as chown does: not set-user-id for another
        info.uid, info.gid = self.owner
        info.mtime = found.st_mtime
        if link is not None:
            info.type, info.linkname = tarfile.SYMTYPE, link
        elif stat.S_ISDIR(found.st_mode):
            info.type = tarfile.DIRTYPE
        else:
            info.size = found.st_size
        return info.tobuf(self.form, "utf-8", "surrogateescape")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a fifo", stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def unpack(stream: Iterable[bytes], source: str, target: str) -> None:
    """Take in an archive of `source`, a file or a directory with its own name on top, as `arriving` has it.

    The archive is not trusted: nothing is written outside of target, and no link is made that leads out of it. That is
    checked here for every Python alike, as tarfile's own filter came with 3.11.4 and was mended several times since.

    Raises InvalidArgumentError for what cannot be copied, DrmCommunicationError where the stream breaks off,
    OutOfResourceError for a full disk, and what `stream` raises.
    """
    with arriving(source, target) as arrived:
        _Archive(arrived).extract(_Reader(stream))


@contextmanager
def arriving(source: str, target: str) -> Iterator[str]:
    """A path to write a copy of `source`, a file or a directory, which is moved to `target` here when it is whole.

    A target that is a directory takes a file in, and is merged with a directory: files replace files, what else is
    there stays. Missing parents are made. Modes (without set-user-id and its like) and times are as they were written.

    What fails inside is raised as InvalidArgumentError, or OutOfResourceError for a full disk, with source and target.
    """
    with _naming(source, target):
        final = os.path.realpath(target)
        os.makedirs(final if target.endswith("/") else os.path.dirname(final), exist_ok=True)
        beside = tempfile.mkdtemp(prefix=".wfl-", dir=final if os.path.isdir(final) else os.path.dirname(final))
        try:
            arrived = os.path.join(beside, "copy")
            yield arrived
            if os.path.isdir(arrived):
                _merge(arrived, final, final)
            else:
                name = posixpath.basename(posixpath.normpath(source))
                _replace(arrived, os.path.join(final, name) if os.path.isdir(final) else final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def check_link(name: str, depth: int, text: str) -> None:
    """Refuse a symbolic link, so deep below what is copied, that leads out of it.

    It may climb as far as it is deep, and only at its beginning: what comes after may be a link, too. Raises what
    `arriving` tells of.
    """
    parts = [part for part in text.split("/") if part not in ("", ".")]
    climbs = next((n for n, part in enumerate(parts) if part != ".."), len(parts))
    if text.startswith("/") or ".." in parts[climbs:] or climbs >= depth:
        raise _RefusedError(f"{name} is a symbolic link that leads out of it, to {text}")


class _Archive:
    """What is read from one archive into `root`, where nothing is before.

    Symbolic links are made last: no name in the archive can be written through one.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._top: list[str] | None = None
        self._links: dict[str, str] = {}
        self._directories: dict[str, tarfile.TarInfo] = {}

    def extract(self, reader: _Reader) -> None:
        with tarfile.open(fileobj=reader, mode="r|", bufsize=1 << 16, tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # else all of them are kept
                try:
                    self._take(tar, member)
                except OSError as error:
                    error.filename = member.name  # not that of the place where it is for now
                    raise
        for path, text in self._links.items():
            os.symlink(text, path)
        for path in sorted(self._directories, reverse=True):  # what is below comes first
            _dress(path, self._directories[path], more=stat.S_IRWXU)  # its owner can remove it
        left = CHUNK
        while left and (padding := reader.read(left)):  # so that the connection can be used again
            left -= len(padding)

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        below = self._below(member.name)
        path = os.path.join(self._root, *below)
        if below:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        elif member.issym():
            raise _RefusedError(f"it is a symbolic link to {member.linkname}; name that")
        if path in self._links:
            raise _RefusedError(f"{member.name} is in the archive twice")
        if member.isdir():
            os.makedirs(path, exist_ok=True)
            self._directories[path] = member
        elif member.issym():
            self._link(path, below, member.linkname)
        elif member.islnk():
            other = os.path.join(self._root, *self._below(member.linkname))
            if other in self._links:
                self._link(path, below, self._links[other])
            else:
                os.link(other, path)
        elif member.isreg():
            with open(path, "xb") as file:
                shutil.copyfileobj(tar.extractfile(member) or file, file, CHUNK)
            _dress(path, member)
        else:
            kind = "a fifo" if member.isfifo() else "a device"
            raise _RefusedError(f"{member.name} is {kind}" if below else f"it is {kind}")

    def _below(self, name: str) -> list[str]:
        """The parts of a name below the archive's single top."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if self._top is None:
            self._top = parts
        depth = len(self._top)
        if name.startswith("/") or ".." in parts or parts[:depth] != self._top:
            raise _RefusedError(f"the archive has a name that leads out of it: {name}")
        if len(parts) > DEEPEST:
            raise _RefusedError(f"the archive has more than {DEEPEST} directories in one another")
        return parts[depth:]

    def _link(self, path: str, below: list[str], text: str) -> None:
        check_link("/".join(below), len(below), text)
        if os.path.lexists(path):
            raise _RefusedError(f"{'/'.join(below)} is in the archive twice")
        self._links[path] = text


class _Member(tarfile.TarInfo):
    """One member; that its header is missing or spoilt is never taken for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        if len(buf) < _BLOCK:
            raise _BrokenOffError
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise _RefusedError(f"the archive is spoilt: {error}") from error


class _Reader(io.RawIOBase):
    """Pieces of any size as the file that tarfile reads."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self._pieces = iter(stream)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # that is what read() gives
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _dress(path: str, member: tarfile.TarInfo, *, more: int = 0) -> None:
    os.chmod(path, member.mode & _MODE | more)
    with suppress(OverflowError, ValueError, OSError):  # a time that cannot be: it stays the time of copying
        os.utime(path, (member.mtime, member.mtime))


def _merge(arrived: str, place: str, final: str) -> None:
    """Move a directory to its place; where one is already, what is in it."""
    todo = [(arrived, place)]
    while todo:
        arrived, place = todo.pop()
        if not os.path.lexists(place):
            os.rename(arrived, place)
        elif os.path.islink(arrived) or not os.path.isdir(arrived):
            _replace(arrived, place)
        elif not os.path.isdir(place):
            raise _RefusedError(f"a directory is to come where {place} is")
        elif os.path.commonpath([os.path.realpath(place), final]) != final:
            raise _RefusedError(f"{place} is a symbolic link that leads out of it")
        else:
            todo += [(os.path.join(arrived, name), os.path.join(place, name)) for name in os.listdir(arrived)]


def _replace(arrived: str, place: str) -> None:
    """Move a file or a link to where nothing is, or another."""
    with suppress(FileNotFoundError):
        there = os.lstat(place).st_mode
        if not (stat.S_ISREG(there) or stat.S_ISLNK(there)):
            raise _RefusedError(f"a file is to come where {place} is, {_kind(there)}")
    os.replace(arrived, place)


class _RefusedError(Exception):
    """What cannot be copied, told to whoever knows source and target."""


class _BrokenOffError(Exception):
    """The stream ended before the archive did."""


@contextmanager
def _naming(source: str, target: str) -> Iterator[None]:
    """What fails inside is told with source and target."""
    what = f"cannot copy {source} to {target}"
    try:
        yield
    except WflError:
        raise
    except OSError as error:
        kind = OutOfResourceError if error.errno in FULL else InvalidArgumentError
        where = f" ({error.filename})" if error.filename not in (None, source, target) else ""
        raise kind(f"{what}: {error.strerror or error}{where}") from error
    except (_BrokenOffError, tarfile.ReadError, tarfile.StreamError) as error:
        raise DrmCommunicationError(f"{what}: the stream broke off") from error
    except (_RefusedError, tarfile.TarError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(f"{what}: {error}") from error
