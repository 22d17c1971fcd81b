"""The server's own SQLite file: which identity's submissions became which jobs, and what was uploaded.

What a job is and does, the session's store beside it knows. Here is only what the session cannot know, and what has to
be written down before a job is handed over: so that the same request sent twice is one job, also after a crash between.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from wfl.errors import SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from pathlib import Path

VERSION = 1
IDENTITY = 0x77666C76
"""SQLite's application_id: "wflv"."""
PATIENCE = 5.0
CHUNK = 500
"""Values in one statement; SQLite takes 999 at least."""

_SCHEMA = """
create table meta (name text primary key, value text not null);
create table templates (digest blob primary key, json text not null) without rowid;
create table submissions (
    number integer primary key autoincrement, id text not null unique, identity text not null, session text not null,
    key text not null, body blob not null, template blob not null, start integer, stop integer, step integer,
    max_parallel integer, created real not null, reaped integer not null default 0,
    unique (identity, session, key));
create table uploads (
    id text primary key, identity text not null, session text not null, kind text not null, size integer,
    digest text, touched real not null) without rowid;
create table uses (upload text not null, job text not null, primary key (upload, job)) without rowid;
create index uses_of_job on uses (job);
"""


class Row(NamedTuple):
    """One submission. `id` is the job's own key, `key` the client's; `body` is the digest of all that was asked for.

    `indexes` and `max_parallel` are those of an array. `number` counts submissions (0: not written yet).
    """

    number: int
    id: str
    identity: str
    session: str
    key: str
    body: bytes
    template: bytes
    indexes: range | None
    max_parallel: int | None
    created: float
    reaped: bool = False


class UploadRow(NamedTuple):
    """One upload: `digest` is there when it is complete, `touched` when it was made or used last (seconds of Unix).

    `size`: what its client said that it has, or None; when it is complete, what it had.
    """

    id: str
    identity: str
    session: str
    kind: str
    size: int | None
    digest: str | None
    touched: float


class Database:
    """The open file. One server at a time has a directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "server.db"
        self._lock = threading.Lock()
        self._claim = _claim(directory)
        try:
            self._keep_private(directory)
            self._connection = sqlite3.connect(
                self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        except BaseException as error:
            os.close(self._claim)
            if isinstance(error, sqlite3.Error | OSError):
                raise _trouble(self.path, error) from error
            raise
        self.id = self._identity()

    def _keep_private(self, directory: Path) -> None:
        """Others are not to read what jobs are given, in whatever directory; SQLite gives its -wal the same mode."""
        with suppress(OSError):  # it is there, or SQLite says what is the matter
            os.mknod(self.path, stat.S_IFREG | 0o600)
        for name in ("server.db", "jobs.db"):
            for path in (directory / f"{name}{end}" for end in ("", "-wal", "-shm")):
                if path.exists() and path.stat().st_uid == os.geteuid():
                    path.chmod(0o600)

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        version, mark = (connection.execute(f"pragma {name}").fetchone()[0] for name in _MARKS)
        if not connection.execute("select count(*) from sqlite_master").fetchone()[0]:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"pragma application_id = {IDENTITY}")
                connection.execute(f"pragma user_version = {VERSION}")
        elif mark != IDENTITY or version > VERSION:
            raise SessionManagementError(f"{self.path}: this is of something else, or of a newer wfl; name another")

    def _identity(self) -> str:
        """This server's name for ever."""
        with self._transaction() as connection:
            connection.execute("insert or ignore into meta values ('id', ?)", (os.urandom(8).hex(),))
            return str(connection.execute("select value from meta where name = 'id'").fetchone()[0])

    def close(self) -> None:
        """Close it, and let another server have the directory."""
        with self._lock:
            self._connection.close()
            os.close(self._claim)

    # -- submissions --

    def rows(self) -> list[Row]:
        """All submissions, in order."""
        with self._lock:
            found = self._connection.execute(
                "select number, id, identity, session, key, body, template, start, stop, step, max_parallel, created,"
                " reaped from submissions order by number"
            ).fetchall()
        return [
            Row._make((*row[:7], None if row[7] is None else range(*row[7:10]), row[10], row[11], bool(row[12])))
            for row in found
        ]

    def add(self, rows: Sequence[Row], templates: dict[bytes, str], uses: Iterable[tuple[str, str]]) -> Sequence[int]:
        """Write down what is about to be submitted, with the uploads (and jobs) that it uses; the rows' numbers."""
        with self._transaction() as connection:
            connection.executemany("insert or ignore into templates values (?, ?)", templates.items())
            numbers = [
                connection.execute(
                    "insert into submissions (id, identity, session, key, body, template, start, stop, step,"
                    " max_parallel, created) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (r.id, r.identity, r.session, r.key, r.body, r.template, *_parts(r.indexes), r.max_parallel,
                     r.created),
                ).lastrowid or 0
                for r in rows
            ]  # fmt: skip
            self._use(connection, uses)
        return numbers

    def use(self, uses: Iterable[tuple[str, str]]) -> None:
        """These uploads are used by these jobs."""
        with self._transaction() as connection:
            self._use(connection, uses)

    @staticmethod
    def _use(connection: sqlite3.Connection, uses: Iterable[tuple[str, str]]) -> None:
        pairs = [*uses]
        connection.executemany("insert or ignore into uses values (?, ?)", pairs)
        now = time.time()
        connection.executemany("update uploads set touched = ? where id = ?", [(now, upload) for upload, _ in pairs])

    def template(self, digest: bytes) -> str:
        """The JSON of a template as it was given."""
        with self._lock:
            found = self._connection.execute("select json from templates where digest = ?", (digest,)).fetchone()
        return found[0] if found else "{}"

    def reaping(self, ids: Iterable[str], *, over: bool = False) -> None:
        """These are about to be forgotten: should we die meanwhile, nobody takes them for what never was. `over`: after
        all they are not.
        """
        with self._transaction() as connection:
            connection.executemany("update submissions set reaped = ? where id = ?", [(not over, id) for id in ids])

    def forget(self, ids: Iterable[str]) -> None:
        """Remove submissions, and what they use."""
        values = [(id,) for id in ids]
        with self._transaction() as connection:
            connection.executemany("delete from submissions where id = ?", values)
            connection.executemany("delete from uses where job = ?", values)

    def tidy(self) -> None:
        """Remove templates that no submission has any more."""
        with self._transaction() as connection:
            connection.execute("delete from templates where digest not in (select template from submissions)")

    # -- uploads --

    def uploads(self) -> list[UploadRow]:
        """All uploads."""
        with self._lock:
            found = self._connection.execute(
                "select id, identity, session, kind, size, digest, touched from uploads"
            ).fetchall()
        return [UploadRow(*row) for row in found]

    def add_upload(self, row: UploadRow) -> None:
        """A new one."""
        with self._transaction() as connection:
            connection.execute("insert into uploads values (?, ?, ?, ?, ?, ?, ?)", row)

    def complete_upload(self, id: str, digest: str, size: int) -> None:
        """All of it is there."""
        with self._transaction() as connection:
            statement = "update uploads set digest = ?, size = ?, touched = ? where id = ?"
            connection.execute(statement, (digest, size, time.time(), id))

    def touch_upload(self, id: str) -> None:
        """Something of it came."""
        with self._transaction() as connection:
            connection.execute("update uploads set touched = ? where id = ?", (time.time(), id))

    def take_unused(self, age: float, busy: Container[str]) -> list[str]:
        """Forget the uploads that no job uses and that were not touched for so many seconds, but not those that are
        just written; their ids.
        """
        with self._transaction() as connection:
            statement = "select id from uploads where touched < ? and id not in (select upload from uses)"
            found = [id for (id,) in connection.execute(statement, (time.time() - age,)) if id not in busy]
            connection.executemany("delete from uploads where id = ?", [(id,) for id in found])
        return found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One write: all of it or nothing."""
        with self._lock:
            connection = self._connection
            try:
                connection.execute("begin immediate")
                try:
                    yield connection
                    connection.execute("commit")
                finally:
                    if connection.in_transaction:
                        connection.execute("rollback")
            except sqlite3.Error as error:
                raise _trouble(self.path, error) from error


_MARKS = ("user_version", "application_id")


def _parts(indexes: range | None) -> tuple[int | None, int | None, int | None]:
    return (None, None, None) if indexes is None else (indexes.start, indexes.stop, indexes.step)


def _claim(directory: Path) -> int:
    """A lock on the directory that goes with this program, however it ends."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise SessionManagementError(f"{directory}: another server is at work in it") from error
    return descriptor


def _trouble(path: Path, error: Exception) -> SessionManagementError:
    return SessionManagementError(f"{path}: {error}")
