"""The store: a SQLite file in which a session records its jobs, so that a later program finds them again.

Write-ahead and without an fsync per transition: a killed program loses nothing, a power cut may lose the last moment.
Several programs may have it open; it must lie on a local file system (write-ahead logging needs shared memory).
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wfl.drmaa2 import JobInfo, JobTemplate
from wfl.errors import SessionManagementError
from wfl.program import program_name
from wfl.record import ACCEPTED, ENDED, HERE, SUBMITTING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from wfl.record import Record

VERSION = 1
IDENTITY = 0x77666C73
"""SQLite's application_id, by which a store is told from other databases: "wfls"."""
REMEMBERED = 64
"""Templates whose number is known without a look: those of one burst of submissions."""
PATIENCE = 5.0
"""Seconds to wait for another program's write."""

_WAITED = 4
"""The phase of what is being submitted and waited in a queue before; elsewhere both are SUBMITTING."""
_PHASE = f"case phase when {_WAITED} then {SUBMITTING} else phase end"

_SCHEMA = """
create table templates (number integer primary key autoincrement, json text not null);
create table tasks (
    number integer primary key, key text not null unique, session text not null, job_id text not null,
    task_index integer, template integer not null, source integer not null, max_parallel integer,
    first text not null, attempt integer not null, program text not null, detach integer not null,
    phase integer not null, id text not null, submitted real not null, info text, wish text);
create index tasks_of_session on tasks (session, number);
create index wishes on tasks (program) where wish is not null;
"""
_ROWS = f"""
select key, job_id, task_index, filled.json, given.json, max_parallel, first, attempt, wish, program, detach, {_PHASE},
    phase = {_WAITED}, id, submitted, info
from tasks join templates filled on filled.number = template join templates given on given.number = source
"""  # noqa: S608 - numbers of our own
_UPDATE = f"""
update tasks set phase = case when phase in ({HERE}, {_WAITED}) and ?1 = {SUBMITTING} then phase else ?1 end,
    id = ?2, info = ?3
where key = ?4 and phase != {ENDED} and (phase = {ACCEPTED} or program = ?5)
"""  # noqa: S608 - numbers of our own
_ALL = _ROWS + "where session = ? order by tasks.number"
_ONE = _ROWS + "where key = ?"


class Row(NamedTuple):
    """One stored attempt to run one task.

    `source` is the template as it was given, `max_parallel` that of its array, `first` the key of the first attempt;
    `wish` is what another program wants done to it while it waits, `waited` whether it did until it was submitted.
    """

    key: str
    job_id: str
    element: int | None
    template: JobTemplate
    source: JobTemplate
    max_parallel: int | None
    first: str
    attempt: int
    wish: str | None
    program: str
    detach: bool
    phase: int
    waited: bool
    id: str
    submitted: float
    info: JobInfo | None


class Store:
    """One open store file and the directory beside it, in which backends keep what must outlive the program."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.program = f"{program_name('self')} {os.urandom(4).hex()}"
        self._lock = threading.Lock()
        self._templates: dict[JobTemplate, int] = {}
        self._connection = _open(path)

    def directory(self, session: str) -> Path:
        """Where a backend keeps output and records of this session."""
        place = Path(f"{self.path}.d") / session
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SessionManagementError(f"store {self.path}: cannot make {place}: {error.strerror}") from error
        return place

    def add(self, records: Sequence[Record], phase: int, *, detach: bool, max_parallel: int | None = None) -> None:
        """Record submissions before they happen; `max_parallel` is that of the array whose elements these are."""
        with self._transaction() as connection:
            numbers: dict[int, int] = {}  # elements share their templates: seeing that is cheaper than comparing them

            def number(template: JobTemplate) -> int:
                return numbers.get(id(template)) or numbers.setdefault(
                    id(template), self._template(connection, template)
                )

            rows = [
                (r.key, r.session.name, r.job_id, r.index, number(r.template), number(r.source), max_parallel,
                 r.first, r.attempt, self.program, detach, phase, r.id, r.submitted)
                for r in records
            ]  # fmt: skip
            connection.executemany(
                "insert into tasks (key, session, job_id, task_index, template, source, max_parallel, first, attempt,"
                " program, detach, phase, id, submitted) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def update(self, records: Iterable[Record]) -> None:
        """Write down where these are now. What has ended, or waits in another program's queue, is not written over."""
        with self._transaction() as connection:  # as they are now, not as they were before others' writes
            rows = []
            for record in records:
                phase, info = record.session.snapshot(record)
                rows.append((phase, record.id, info.to_json(), record.key, self.program))
            connection.executemany(_UPDATE, rows)

    def start(self, keys: Sequence[str]) -> dict[str, Row | None]:
        """Write down that these, which waited, are about to be given to the system.

        Those that must not be, as another program has a wish for them, or has them, are returned as they are now
        (None: removed).
        """
        with self._transaction() as connection:
            changed = connection.executemany(
                "update tasks set phase = ?, wish = null"
                " where key = ? and phase = ? and program = ? and (wish is null or wish = 'release')",
                [(_WAITED, key, HERE, self.program) for key in keys],
            ).rowcount
            if changed == len(keys):
                return {}
            rows = {row.key: row for key in keys for row in _read(connection, _ONE, key)}
        refused = {key: rows.get(key) for key in keys}
        return {k: r for k, r in refused.items() if r is None or r.phase != SUBMITTING or r.program != self.program}

    def remove(self, keys: Iterable[str]) -> None:
        """Forget reaped tasks."""
        with self._transaction() as connection:
            connection.executemany("delete from tasks where key = ?", [(key,) for key in keys])

    def claim(self, rows: Iterable[Row]) -> set[str]:
        """Take over what waits from programs that are gone; the keys of those that no other program took before."""
        statement = f"update tasks set program = ? where key = ? and program = ? and {_PHASE} = ?"  # noqa: S608 - ours
        with self._transaction() as connection:
            return {
                row.key
                for row in rows
                if connection.execute(statement, (self.program, row.key, row.program, row.phase)).rowcount == 1
            }

    def wish(self, keys: Sequence[str], action: str) -> bool:
        """Want this to be done to tasks that wait in other programs' queues; False if some do not wait any more.

        The program in whose queue a task waits is the only one that does something to it, so nothing happens twice.
        """
        with self._transaction() as connection:
            changed = connection.executemany(  # an end that is wanted stays wanted
                "update tasks set wish = case when wish in ('terminate', 'kill') then wish else ? end"
                " where key = ? and phase = ?",
                [(action, key, HERE) for key in keys],
            )
            return changed.rowcount == len(keys)

    def wishes(self) -> dict[str, str]:
        """What other programs want done to tasks that wait in the queue of this one: actions by key."""
        statement = "select key, wish from tasks where program = ? and wish is not null and phase = ?"
        with self._lock:
            try:
                return dict(self._connection.execute(statement, (self.program, HERE)).fetchall())
            except sqlite3.Error as error:
                raise _trouble(self.path, error) from error

    def wish_is_done(self, wishes: Iterable[tuple[str, str]]) -> None:
        """These (keys and actions) were done, or cannot be; a wish that came since stays."""
        with self._transaction() as connection:
            connection.executemany("update tasks set wish = null where key = ? and wish = ?", wishes)

    def written(self) -> int:
        """A number that changes when another program has written."""
        with self._lock:
            try:
                return _number(self._connection, "pragma data_version")
            except sqlite3.Error as error:
                raise _trouble(self.path, error) from error

    def leave(self) -> None:
        """What has not ended belongs to no program any more: the next one takes over what waits."""
        with self._transaction() as connection:
            statement = "update tasks set program = '' where program = ? and phase != ?"
            connection.execute(statement, (self.program, ENDED))

    def forget_templates(self) -> None:
        """Remove templates of which no task is left; programs that remember one of them look before they use it."""
        with self._transaction() as connection:
            connection.execute(
                "delete from templates where number not in (select template from tasks union select source from tasks)"
            )

    def load(self, session: str) -> list[Row]:
        """All tasks of a session, in order of submission."""
        with self._lock:
            try:
                return list(_read(self._connection, _ALL, session))
            except sqlite3.Error as error:
                raise _trouble(self.path, error) from error

    def close(self) -> None:
        """Close the file; everything is in it."""
        with self._lock:
            self._connection.close()

    def _template(self, connection: sqlite3.Connection, template: JobTemplate) -> int:
        number = self._templates.get(template)
        if number is None or not connection.execute("select 1 from templates where number = ?", (number,)).fetchone():
            number = connection.execute("insert into templates (json) values (?)", (template.to_json(),)).lastrowid or 0
            if len(self._templates) > REMEMBERED:
                self._templates.clear()
            self._templates[template] = number
        return number

    def _transaction(self) -> _Transaction:
        return _Transaction(self)


def _read(connection: sqlite3.Connection, statement: str, value: str) -> Iterator[Row]:
    found = connection.execute(statement, (value,)).fetchall()
    templates: dict[str, JobTemplate] = {}

    def template(json: str) -> JobTemplate:
        return templates.get(json) or templates.setdefault(json, JobTemplate.from_json(json))

    for key, job_id, index, filled, given, *facts, info in found:
        known = JobInfo.from_json(info) if info else None
        yield Row._make((key, job_id, index, template(filled), template(given), *facts, known))


class _Transaction:
    """One write: the lock, begin, commit or roll back, and SQLite's troubles in words."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> sqlite3.Connection:
        self._store._lock.acquire()
        connection = self._store._connection
        try:
            connection.execute("begin immediate")
        except BaseException as error:
            self._leave()
            if isinstance(error, sqlite3.Error):
                raise _trouble(self._store.path, error) from error
            raise
        return connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        problem = error
        try:
            if error is None:
                self._store._connection.execute("commit")
        except sqlite3.Error as failed:
            problem = failed
        finally:
            self._leave()
        if isinstance(problem, sqlite3.Error):
            raise _trouble(self._store.path, problem) from problem

    def _leave(self) -> None:
        """Also after Ctrl-C at any instruction, nothing is left open and the next one may write."""
        connection = self._store._connection
        try:
            if connection.in_transaction:  # a full disk has rolled back already
                connection.execute("rollback")
                self._store._templates.clear()  # those of this write are not in the file
        except sqlite3.Error:
            self._store._templates.clear()
        finally:
            self._store._lock.release()


def _open(path: str) -> sqlite3.Connection:
    if not os.path.isdir(os.path.dirname(path)):
        raise SessionManagementError(f"store {path}: there is no directory {os.path.dirname(path)}")
    with suppress(OSError):  # it is there, or SQLite says what is the matter
        # SQLite would make it readable by all; what is beside it gets the same mode. It is not opened here: to close it
        # would give up the locks that this program may have on it already.
        os.mknod(path, stat.S_IFREG | 0o600)
    try:
        connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _trouble(path, error) from error
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise _trouble(path, error) from error
    except SessionManagementError:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    _check(connection, path)  # first, so that nothing of what is not ours is changed
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = normal")
    connection.execute("begin immediate")
    if _number(connection, "pragma user_version") == 0:  # another program may have been faster
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"pragma application_id = {IDENTITY}")
        connection.execute(f"pragma user_version = {VERSION}")
    connection.execute("update tasks set phase = phase where number = -1")  # a read-only file is noticed here
    connection.execute("commit")
    damage = connection.execute("pragma quick_check(1)").fetchone()[0]
    if damage != "ok":
        raise SessionManagementError(f"store {path}: the file is damaged ({damage}); restore it or name another")


def _check(connection: sqlite3.Connection, path: str) -> None:
    if not _number(connection, "select count(*) from sqlite_master"):
        return
    if _number(connection, "pragma application_id") != IDENTITY:
        raise SessionManagementError(f"store {path}: this is a database of something else; name another file")
    version = _number(connection, "pragma user_version")
    if version > VERSION:
        msg = f"store {path}: written by a newer wfl (store version {version}, this one reads {VERSION}); update wfl"
        raise SessionManagementError(msg)


def _number(connection: sqlite3.Connection, statement: str) -> int:
    (number,) = connection.execute(statement).fetchone()
    return int(number)


def _trouble(path: str, error: sqlite3.Error) -> SessionManagementError:
    text = str(error)
    if "locked" in text or "busy" in text:
        return SessionManagementError(f"store {path}: another program has kept it locked for {PATIENCE:.0f} s ({text})")
    if "readonly" in text or "unable to open" in text:
        return SessionManagementError(f"store {path}: it cannot be written here ({text}); check rights and file system")
    if "malformed" in text or "not a database" in text or "corrupt" in text:
        return SessionManagementError(f"store {path}: the file is damaged or no wfl store ({text}); name another file")
    return SessionManagementError(f"store {path}: {text}")
