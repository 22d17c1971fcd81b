"""Files into and out of a pod, through the two containers that its manifest has for that.

Any shell and tar do, BusyBox's among them.
"""

from __future__ import annotations

import os
import posixpath
import tempfile
import threading
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING

from wfl.contexts.checks import PASSED
from wfl.contexts.kubernetes.answers import PASSING
from wfl.contexts.kubernetes.template import IN, OUT
from wfl.contexts.kubernetes.volumes import PLACE
from wfl.contexts.spool import OutputFile
from wfl.errors import (
    DrmCommunicationError,
    ImplementationSpecificError,
    InvalidArgumentError,
    InvalidStateError,
    OutOfResourceError,
    WflError,
)
from wfl.staging import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from wfl.contexts.kubernetes.client import Client

__all__ = ["IN", "OUT", "done", "fetch", "fetch_file", "put"]

_WHOLE = ".whole"
_BROKEN_OFF, _MISSING = 75, 66  # EX_TEMPFAIL and EX_NOINPUT of sysexits.h
_NO_PROGRAM = (126, 127)  # of a shell, and of a container in which there is none
_NOT_WHOLE = ("short read", "tar magic", "tar header", "archive")
"""What GNU's, BusyBox's and libarchive's tar say of an archive that was cut short."""
_AHEAD = 16
"""Pieces of an archive that may wait to be unpacked."""

# What an earlier try has left behind, or still writes, stands aside; the files get their name when all are there.
# The shell stays until tar has ended: were it replaced by tar, the node would cut the stream short, and be silent. It
# reads all that is sent: what is not read keeps the node from telling the end.
_PUT = f"""\
trap 's=$?; cat >/dev/null; exit $s' EXIT
cd "$1" || exit
[ ! -e .go ] || exit 0
rm -rf .in-* 2>/dev/null
if [ ! -e in ]; then
  umask 022
  mkdir -p .in-$$/in && tar -xf - -C .in-$$ || exit
  [ -e .in-$$/{_WHOLE} ] || exit {_BROKEN_OFF}
  mv .in-$$/in . || [ -e in ] || exit 1
  rm -rf .in-$$
fi
: > .go
"""
_GET = f"""\
path=$1
[ ! -L "$path" ] || path=$(readlink -f "$path") || exit {_MISSING}
[ -e "$path" ] || exit {_MISSING}
cd "${{path%/*}}/" && tar -cf - "./${{path##*/}}"
exit $?
"""
# GNU's tar fails where a file is written meanwhile. BusyBox's head and wc take 7 seconds for a gigabyte, dd and stat
# take less than one. The size is told last: nodes may cut a stream short, and be silent.
_GET_FILE = f"""\
[ -e "$1" ] || exit {_MISSING}
exec <"$1" || exit
size=$(stat -Lc %s "$1" 2>/dev/null || wc -c <"$1") || exit
dd bs=65536 count=$((size / 65536)) && head -c $((size % 65536))
status=$?
echo $size >&2
exit $status
"""


def put(client: Client, pod: str, copies: Mapping[str, str], *, shell: str = "sh") -> None:
    """Copy what a pod waits for, {place in its volume, such as "in/0": source here}, and let the pod go on.

    Raises InvalidArgumentError for a source that cannot be read, or changes meanwhile, and DrmCommunicationError
    where the connection broke: the same call may be made again, whatever became of the first.
    """
    targets = {posixpath.join(PLACE, place): source for place, source in copies.items()}
    archive = pack(targets, place=PLACE, gnu=True, last=_WHOLE)
    status, words = client.exec(pod, IN, [shell, "-c", _PUT, "wfl", PLACE], input=archive)
    if status:
        raise _not_unpacked(f"{pod}, container {IN}", status, words.strip())


def _not_unpacked(where: str, status: int, words: str) -> WflError:
    lower = words.lower()
    if "no space" in lower or "quota" in lower:
        return OutOfResourceError(f"{where}: no space for the files that are copied in: {words}")
    if status == _BROKEN_OFF or any(said in lower for said in _NOT_WHOLE):
        return DrmCommunicationError(f"{where}: the files that were copied in did not all arrive: {words}")
    if _is_missing(status, words):
        return InvalidArgumentError(f"{where}: its image needs sh and tar, or set helper_image: {words}")
    return ImplementationSpecificError(f"{where}: files cannot be copied in: {words or f'exit status {status}'}")


def fetch(client: Client, pod: str, wanted: Mapping[str, str], *, shell: str = "sh") -> str | None:
    """Copy {target here: source in the pod} out of it; what first went wrong, in words. The others come all the same.

    Raises what time may make good (`answers.PASSING`), as where an archive was cut short: that may be repeated.
    """
    trouble: str | None = None
    for target, source in wanted.items():
        try:
            with closing(_archive(client, pod, source, shell)) as archive:
                _take(archive, source, target)
        except PASSING:
            raise
        except WflError as error:
            words = str(error)
            what = "" if source in words and target in words else f"{source} cannot be copied to {target}: "
            trouble = trouble or f"{what}{words}"
    return trouble


def _take(archive: Generator[bytes], source: str, target: str) -> None:
    """Unpack; where the target is one of the program's own streams, the file is written to that."""
    if target not in PASSED:
        unpack(archive, source, target)
        return
    with tempfile.TemporaryDirectory(prefix="wfl-") as place:
        arrived = os.path.join(place, "file")
        unpack(archive, source, arrived)
        OutputFile(Path(arrived)).copy_to(target)


def fetch_file(client: Client, pod: str, source: str, target: Path, *, shell: str = "sh") -> bool:
    """Copy one file that may still be written: what is in it now. False where there is none.

    The target is replaced when all has come. Raises DrmCommunicationError where the connection broke, or less came than
    there was: that may be repeated; and OSError for what cannot be done here.
    """
    with tempfile.TemporaryDirectory(prefix=".wfl-", dir=target.parent) as aside:
        arrived = OutputFile(Path(aside, "file"))
        try:
            arrived.write(b"")  # an empty file is one, too
            status, words = client.exec(pod, OUT, [shell, "-c", _GET_FILE, "wfl", source], output=arrived.write)
        finally:
            arrived.close()
        if status == _MISSING:
            return False
        if status:
            raise _not_packed(status, words.strip())
        if words.split()[-1:] != [str(arrived.size)]:
            raise DrmCommunicationError(f"{pod}, container {OUT}: {source} broke off after {arrived.size} bytes")
        os.replace(Path(aside, "file"), target)
    return True


class _Unwanted(Exception):  # noqa: N818 - no error
    """Nobody reads on."""


def _archive(client: Client, pod: str, source: str, shell: str) -> Generator[bytes]:
    """What tar makes of a file or a directory, also of one that a link leads to. At its end: raises what went wrong."""
    pieces: Queue[bytes | None] = Queue(_AHEAD)
    unwanted = threading.Event()
    result: Future[tuple[int, str]] = Future()

    def output(piece: bytes) -> None:
        if unwanted.is_set():
            raise _Unwanted
        pieces.put(piece)

    def run() -> None:
        try:
            command = [shell, "-c", _GET, "wfl", posixpath.normpath(source)]
            result.set_result(client.exec(pod, OUT, command, output=output))
        except BaseException as error:  # noqa: BLE001 - raised where the archive is read
            result.set_exception(error)
        pieces.put(None)

    threading.Thread(target=run, name="wfl-fetch", daemon=True).start()
    try:
        yield from iter(pieces.get, None)
        status, words = result.result()
        if status:
            raise _not_packed(status, words.strip())
    finally:
        unwanted.set()
        with suppress(Empty):
            while True:  # one that waits for its place gets it, and is the last
                pieces.get_nowait()


def _is_missing(status: int, words: str) -> bool:
    """Whether there is no program: a container that is just ending gives the same status."""
    return status in _NO_PROGRAM and "not found" in words


def _not_packed(status: int, words: str) -> WflError:
    if status == _MISSING:
        return InvalidArgumentError("no such file or directory")
    if _is_missing(status, words):
        return InvalidArgumentError(f"the image of container {OUT} needs sh and tar, or set helper_image: {words}")
    return ImplementationSpecificError(words or f"exit status {status}")


def done(client: Client, pod: str, *, shell: str = "sh") -> None:
    """Let the pod end: everything was fetched."""
    with suppress(InvalidStateError):  # it has ended already
        status, words = client.exec(pod, OUT, [shell, "-c", ': > "$1/.done"', "wfl", PLACE])
        if status:
            raise ImplementationSpecificError(f"{pod}, container {OUT}, cannot be told to end: {words.strip()}")
