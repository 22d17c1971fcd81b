"""What jobs bring along and leave behind: uploads, a job's own directory, its results. All of it below one directory.

Names that come from outside are numbers that were given here, or match a pattern without slashes; nothing is looked up
by a path that a client has written.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import tarfile
import threading
import time
from contextlib import contextmanager, suppress
from io import FileIO
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from wfl import staging
from wfl.backend import INDEX
from wfl.errors import InvalidArgumentError, InvalidStateError, OutOfResourceError, TryLaterError
from wfl.server.database import UploadRow
from wfl.server.policy import RESULT, RESULT_NAME, UPLOAD, check_upload
from wfl.server.refusals import ConflictError, QuotaError, UnknownError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from wfl.drmaa2 import JobTemplate
    from wfl.server.database import Database
    from wfl.server.limits import ServerLimits

PATIENCE = 5.0
"""Seconds to wait for another request that is at work on the same upload."""
KINDS = ("file", "tar")
MEMBERS = 100_000
"""Files in one archive."""


class Upload:
    """One upload, as it is now: `size` bytes of it are there. Who writes to it does so on the event loop."""

    def __init__(self, row: UploadRow, size: int) -> None:
        self.row, self.size = row, size
        self.busy = threading.Lock()  # one at a time writes
        self.waits: asyncio.Timeout | None = None  # who writes, while it waits for more


class Files:
    """The files of one server. May be used from any thread."""

    def __init__(self, directory: Path, database: Database, limits: ServerLimits, *, own_directories: bool) -> None:
        self._database, self._limits, self._own = database, limits, own_directories
        self._uploads_at, self._work, self._results, self._packed = (
            directory / name for name in ("uploads", "work", "results", "packed")
        )
        for place in (self._uploads_at, self._work, self._results, self._packed):
            place.mkdir(mode=0o700, exist_ok=True)
        # As texts, as these are joined for every job: a Path costs five times as much.
        self._work_at, self._results_at, self._packed_at = map(str, (self._work, self._results, self._packed))
        self._lock = threading.Lock()
        self._packing: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._uploads = {row.id: Upload(row, self._size(row)) for row in database.uploads()}
        for upload in self._uploads.values():
            if upload.row.digest is not None:
                self._drop_packed(upload)  # should the server have died just before

    # -- uploads --

    def new_upload(self, identity: str, session: str, kind: str, size: int | None) -> Upload:
        """Room for one. Raises OutOfResourceError where the identity has too much here already."""
        if size is not None and size > self._limits.upload:
            raise InvalidArgumentError(f"the upload has {size} bytes, this server takes {self._limits.upload}")
        self._check_room(identity, size or 0, new=True)
        row = UploadRow(os.urandom(16).hex(), identity, session, kind, size, None, time.time())
        self._place(row.id).mkdir(mode=0o700)
        self._data(row.id).touch(mode=0o600)
        self._database.add_upload(row)
        upload = Upload(row, 0)
        with self._lock:
            self._uploads[row.id] = upload
        return upload

    def _check_room(self, identity: str, more: int, *, new: bool = False) -> None:
        with self._lock:
            own = [upload for upload in self._uploads.values() if upload.row.identity == identity]
        if len(own) + new > self._limits.uploads or sum(upload.size for upload in own) + more > self._limits.stored:
            words = f"you have {len(own)} uploads, of {self._limits.uploads}, and {self._limits.stored} bytes for all"
            raise QuotaError(words)

    def upload(self, identity: str, session: str, id: str) -> Upload:
        """The one of this id. Raises UnknownError, also for another's."""
        with self._lock:
            upload = self._uploads.get(id)
        if upload is None or (upload.row.identity, upload.row.session) != (identity, session):
            raise UnknownError(f"there is no upload {id!r}; one that is not used is removed after a while")
        return upload

    @contextmanager
    def writing(self, upload: Upload, offset: int) -> Iterator[FileIO]:
        """A file to write to, from `offset`, which is what is there. Raises ConflictError, InvalidStateError."""
        if not upload.busy.acquire(blocking=False):
            if upload.waits is not None:  # its connection may be lost, which nobody would tell us for a long time
                upload.waits.reschedule(0)
            raise ConflictError("another request writes to this upload; it is ended now, so try again")
        try:
            if upload.row.digest is not None:
                raise InvalidStateError("the upload is complete")
            if offset != upload.size:
                raise ConflictError(f"the upload has {upload.size} bytes, so that is the offset of the next")
            with self._opened(upload, "r+") as file:
                file.seek(offset)
                try:
                    yield file
                finally:
                    self._database.touch_upload(upload.row.id)
        finally:
            upload.busy.release()

    def write(self, upload: Upload, file: FileIO, data: bytes) -> None:
        """Append, within the limits."""
        limit = self._limits.upload if upload.row.size is None else upload.row.size
        if upload.size + len(data) > limit:
            raise InvalidArgumentError(f"the upload has more than {limit} bytes")
        self._check_room(upload.row.identity, len(data))
        try:
            while data:
                count = file.write(data) or 0
                upload.size = file.tell()  # not where its request was given up meanwhile: then the file is closed
                data = data[count:]
        except OSError as error:
            raise OutOfResourceError(f"the upload cannot be written: {error.strerror}") from error

    def complete(self, upload: Upload, digest: str) -> None:
        """All is there: check it, and unpack an archive. Once more is no mistake."""
        if not upload.busy.acquire(timeout=PATIENCE):  # it may be the same request, whose answer was lost
            raise TryLaterError("another request is at work on this upload")
        try:
            self._complete(upload, digest)
        finally:
            upload.busy.release()

    def _complete(self, upload: Upload, digest: str) -> None:
        if upload.row.digest is not None:
            if not hmac.compare_digest(upload.row.digest, digest):
                raise ConflictError("the upload is complete, with another sha256")
            return
        if upload.row.size is not None and upload.size != upload.row.size:
            raise ConflictError(f"the upload has {upload.size} of {upload.row.size} bytes")
        with self._opened(upload, "r") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not hmac.compare_digest(found, digest):
            raise InvalidArgumentError(f"what arrived has the sha256 {found}; send it again")
        if upload.row.kind == "tar":
            self._unpack(upload)
        self._database.complete_upload(upload.row.id, digest, upload.size)
        upload.row = upload.row._replace(digest=digest, size=upload.size)
        self._drop_packed(upload)

    def _unpack(self, upload: Upload) -> None:
        data, tree = self._data(upload.row.id), self._tree(upload.row.id)
        _check_archive(data, upload.size)
        shutil.rmtree(tree, ignore_errors=True)  # of a try that broke off
        with open(data, "rb") as file:
            staging.unpack(iter(lambda: file.read(1 << 20), b""), f"{UPLOAD}{upload.row.id}", str(tree))

    def _drop_packed(self, upload: Upload) -> None:
        """Of a complete archive only what was in it is needed."""
        if upload.row.kind == "tar":
            self._data(upload.row.id).unlink(missing_ok=True)

    def _opened(self, upload: Upload, mode: str) -> FileIO:
        try:
            return FileIO(self._data(upload.row.id), mode)
        except FileNotFoundError as error:
            raise UnknownError(f"the upload {upload.row.id!r} is not there any more; begin another one") from error

    def remove_unused(self) -> None:
        """Remove uploads that no job uses and that are old, and archives that nobody has asked for lately."""
        with self._lock:
            busy = {id for id, upload in self._uploads.items() if upload.busy.locked()}
        for id in self._database.take_unused(self._limits.keep_upload, busy):
            with self._lock:
                self._uploads.pop(id, None)
            shutil.rmtree(self._place(id), ignore_errors=True)
        for place in (*self._packed.glob("*/*"),):
            with suppress(OSError):
                if place.stat().st_atime < time.time() - self._limits.keep_upload:
                    place.unlink()

    def _place(self, id: str) -> Path:
        return self._uploads_at / id

    def _data(self, id: str) -> Path:
        return self._place(id) / "data"

    def _tree(self, id: str) -> Path:
        return self._place(id) / "tree"

    def _size(self, row: UploadRow) -> int:
        try:
            return self._data(row.id).stat().st_size
        except FileNotFoundError:  # it was unpacked
            return row.size or 0

    # -- templates --

    def translate(
        self, identity: str, session: str, template: JobTemplate, id: str, *, array: bool
    ) -> tuple[JobTemplate, set[str]]:
        """The template with places on this side for uploads, results and the job's own directory; what it uploaded.

        Raises ForbiddenError, UnknownError or InvalidStateError for uploads that cannot be used.
        """
        used: set[str] = set()
        changes: dict[str, Any] = {}

        def here(field: str, source: str, *, file: bool = False) -> str:
            upload = self.upload(identity, session, check_upload(field, source))
            if upload.row.digest is None:
                raise InvalidStateError(f"{field} has {source!r}, which is not complete")
            if file and upload.row.kind != "file":
                raise InvalidArgumentError(f"{field} is {source!r}, which is an archive")
            used.add(upload.row.id)
            return str((self._tree if upload.row.kind == "tar" else self._data)(upload.row.id))

        element = f"{id}.{INDEX}" if array else id
        if (template.input_path or "").startswith(UPLOAD):
            changes["input_path"] = here("input_path", template.input_path or "", file=True)
        if template.stage_in_files:
            changes["stage_in_files"] = {
                target: here("stage_in_files", source) if source.startswith(UPLOAD) else source
                for target, source in template.stage_in_files.items()
            }
        if template.stage_out_files:
            changes["stage_out_files"] = {
                str(self._results / element / target.removeprefix(RESULT)) if target.startswith(RESULT) else target:
                source for target, source in template.stage_out_files.items()
            }  # fmt: skip
        if self._own and not template.working_directory:
            changes["working_directory"] = f"{self._work_at}/{element}"
        return (template.replace(**changes) if changes else template), used

    def make(self, id: str, template: JobTemplate) -> None:
        """The directories of one job (or element), before it starts."""
        if self._own:
            with suppress(FileExistsError):
                os.mkdir(f"{self._work_at}/{id}", 0o700)
        if template.stage_out_files:
            with suppress(FileExistsError):
                os.mkdir(f"{self._results_at}/{id}", 0o700)

    def remove(self, ids: Iterable[str]) -> None:
        """What these jobs left behind."""
        for id in ids:
            for place in (self._work_at, self._results_at, self._packed_at):
                try:
                    os.rmdir(f"{place}/{id}")  # mostly it is empty, or not there
                except FileNotFoundError:
                    continue
                except OSError:
                    shutil.rmtree(f"{place}/{id}", ignore_errors=True)

    def tidy(self, known: Iterable[str]) -> None:
        """Remove what belongs to none of these jobs, and to no upload: left by a crash."""
        keep = {*known}
        for place in (self._work_at, self._results_at, self._packed_at):
            self.remove({entry.name for entry in os.scandir(place)} - keep)
        for entry in os.scandir(self._uploads_at):
            if entry.name not in self._uploads:
                shutil.rmtree(entry.path, ignore_errors=True)

    # -- results --

    def results(self, id: str) -> list[str]:
        """The names of what a job has left."""
        try:
            return sorted(entry.name for entry in os.scandir(self._results / id) if RESULT_NAME.fullmatch(entry.name))
        except FileNotFoundError:
            return []

    def packed(self, id: str, name: str) -> Path:
        """An archive of one result of an ended job, which stays the same. Raises UnknownError."""
        source, archive = self._results / id / name, self._packed / id / f"{name}.tar"
        if not RESULT_NAME.fullmatch(name) or not os.path.lexists(source) or source.is_symlink():
            raise UnknownError(f"the job has no result {name!r}")
        with self._lock:
            packing = self._packing.setdefault(id, threading.Lock())
        with packing:
            if not archive.exists():
                archive.parent.mkdir(mode=0o700, exist_ok=True)
                beside = archive.with_name(".new")
                try:
                    with open(beside, "wb") as file:
                        file.writelines(staging.pack({f"/{name}": str(source)}))
                except OSError as error:
                    beside.unlink(missing_ok=True)
                    raise OutOfResourceError(f"the result cannot be packed: {error.strerror}") from error
                os.replace(beside, archive)
        os.utime(archive, (time.time(), archive.stat().st_mtime))
        return archive


def _check_archive(path: Path, size: int) -> None:
    """Refuse what becomes more than it is: sparse files, and more names than anybody needs."""
    total = count = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                total, count = total + member.size, count + 1
                if member.issparse() or total > size or count > MEMBERS:
                    words = f"it has sparse files, or more than {MEMBERS} files"
                    raise InvalidArgumentError(f"the archive is not taken: {words}")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"this is no archive of tar's: {error}") from error
