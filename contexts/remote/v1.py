"""The calls of a wfl job server's own interface, version 1, and what it answers with.

The server knows a job by an id of its own making, and by the key that this side gave it: a submission that is made
again with the same key is the same job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import msgspec

from wfl.backend import UnsettledError
from wfl.contexts.remote.client import Client, Question, encoded, pauses
from wfl.contexts.remote.connection import NotThereError, PastEndError, UnansweredError, error_of
from wfl.contexts.remote.facts import info_of
from wfl.drmaa2 import MachineInfo, QueueInfo
from wfl.errors import DrmCommunicationError, InternalError, InvalidStateError, WflError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    import httpx

    from wfl.backend import Action, Stream
    from wfl.drmaa2 import JobInfo, JobTemplate

PREFIX = "/api/v1"
QUIET = 30.0
"""Seconds in which a stream of events is heard of at least: the server sends a sign of life every ten."""
SILENCE = 60.0
"""Seconds after which output that is followed, and says nothing, is asked for again: there is no sign of life in it."""
PIECE = 4 << 20
"""Bytes of a file that are sent in one request."""
TRIES = 5
"""Times that a part of a file is asked for, or sent, without success, though the server answers."""
_PAGE = 1000
_STREAM = "text/event-stream"
_WHOLE = 200
_REST = 0.2  # seconds


class Limits(msgspec.Struct, frozen=True):
    """How much the server takes: submissions and ids in a request, bytes of its body and of an upload, seconds that a
    long poll may wait.
    """

    submissions: int = 100
    ids: int = 500
    body: int = 1 << 20
    upload: int = 1 << 30
    wait: float = 25.0


class Identity(msgspec.Struct, frozen=True):
    """Whom the server takes us for."""

    name: str = ""
    admin: bool = False


class Info(msgspec.Struct, frozen=True):
    """What the server says of itself. `server`: its database; `started`: its process."""

    server: str
    started: str
    version: str = ""
    context: str = ""
    capabilities: Sequence[str] = ()
    fields: Sequence[str] = ()
    extensions: Sequence[str] = ()
    identity: Identity = Identity()
    limits: Limits = Limits()


class Told(msgspec.Struct, frozen=True):
    """One job, as far as it is told."""

    id: str | None = None
    key: str | None = None
    index: int | None = None
    array: str | None = None
    info: msgspec.Raw = msgspec.Raw(b"{}")
    template: msgspec.Raw = msgspec.Raw(b"{}")  # as it was sent
    error: dict[str, Any] | None = None

    @property
    def known(self) -> JobInfo:
        """What is known of it."""
        return info_of(self.id or "", self.info)

    @property
    def outcome(self) -> str | WflError:
        """Of its submission; UnsettledError where the server itself does not know."""
        if self.error is not None:
            error = error_of(self.error)
            return UnsettledError(str(error)) if isinstance(error, DrmCommunicationError | InternalError) else error
        return self.id or UnsettledError("the server does not say what became of a submission")


class Jobs(msgspec.Struct, frozen=True):
    """Many of them; `id` is that of their array, `cursor` where to go on, `reset` that something was missed."""

    jobs: Sequence[Told] = ()
    id: str | None = None
    cursor: str | None = None
    reset: bool = False


class _Gone(msgspec.Struct, frozen=True):
    keys: Sequence[str] = ()
    ids: Sequence[str] = ()


class Found(msgspec.Struct, frozen=True):
    """What was found, and what the server does not know."""

    jobs: Sequence[Told] = ()
    gone: _Gone = _Gone()


class _Failures(msgspec.Struct, frozen=True):
    failures: Mapping[str, dict[str, Any]] = {}


class _Upload(msgspec.Struct, frozen=True):
    upload: str


class Alive(msgspec.Struct, frozen=True):
    """One job that has not ended, and whose it is."""

    id: str
    identity: str
    session: str
    info: msgspec.Raw


class _Living(msgspec.Struct, frozen=True):
    jobs: Sequence[Alive] = ()
    cursor: str | None = None


class System(msgspec.Struct, frozen=True):
    """What the server's system has of what was asked for."""

    machines: Sequence[MachineInfo] = ()
    queues: Sequence[QueueInfo] = ()
    categories: Sequence[str] = ()


class Failed(NamedTuple):
    """Failures by id; `doubtful`: an earlier try of the same request may have succeeded."""

    failures: dict[str, WflError]
    doubtful: bool


class Api:
    """One session's calls. Raises what `Client` raises."""

    def __init__(self, client: Client, session: str) -> None:
        self.client = client
        self._session = f"{PREFIX}/sessions/{quote(session, safe='')}"

    def info(self) -> Info:
        """What the server says of itself, asked for once."""
        found: Info = self.client.json(Question(path=f"{PREFIX}/info"), Info, patience=0)
        return found

    # -- submitting --

    def submit(self, jobs: Sequence[tuple[str, msgspec.Raw]]) -> list[str | WflError]:
        """Start jobs, each given by its key and its template in JSON; their ids, or why not."""
        body = {"jobs": [{"key": key, "template": template} for key, template in jobs]}
        answered = self._told(self._post("/jobs", body))
        if len(answered) != len(jobs):
            raise UnansweredError(f"{self.client.url}: {len(jobs)} jobs were sent, {len(answered)} are answered")
        return [told.outcome for told in answered]

    def submit_array(
        self, key: str, template: JobTemplate, indexes: range, max_parallel: int | None
    ) -> list[str | WflError]:
        """Start an array; the ids of its elements, or why not."""
        body = {
            "key": key,
            "template": raw(template),
            "indexes": [indexes.start, indexes.stop, indexes.step],
            "max_parallel": max_parallel,
        }
        answered = {told.index: told.outcome for told in self._told(self._post("/arrays", body))}
        if answered.keys() != set(indexes):
            raise UnansweredError(f"{self.client.url}: not all elements of the array {key} are answered")
        return [answered[index] for index in indexes]

    def _post(self, path: str, body: Any) -> Question:
        headers = {"Content-Type": "application/json"}
        return Question(method="POST", path=self._session + path, content=encoded(body), headers=headers)

    def _told(self, question: Question) -> Sequence[Told]:
        found: Jobs = self.client.json(question, Jobs)
        return found.jobs

    # -- what is there --

    def jobs(self) -> Iterator[Told]:
        """All jobs of the session, page by page."""
        cursor: str | None = ""
        while cursor is not None:
            query = {"limit": str(_PAGE), **({"cursor": cursor} if cursor else {})}
            page: Jobs = self.client.json(Question(path=f"{self._session}/jobs", query=query), Jobs)
            yield from page.jobs
            cursor = page.cursor

    def find(self, *, keys: Sequence[str] = (), ids: Sequence[str] = (), templates: bool = False) -> Found:
        """Where jobs are, by their keys or ids; not more of them than `Limits.ids`."""
        body = {"keys": keys, "ids": ids, "templates": templates}
        found: Found = self.client.json(self._post("/find", body), Found)
        return found

    def control(self, ids: Sequence[str], action: Action) -> Failed:
        """Do this to jobs; what failed."""
        return self._failures("/control", {"ids": ids, "action": action.value})

    def reap(self, ids: Sequence[str]) -> Failed:
        """Remove what the server keeps of ended jobs; what failed."""
        return self._failures("/reap", {"ids": ids})

    def _failures(self, path: str, body: Any) -> Failed:
        reply = self.client.ask(self._post(path, body))
        found: _Failures = self.client.decoded(reply, _Failures)
        return Failed({id: error_of(said) for id, said in found.failures.items()}, reply.doubtful)

    # -- the system as a whole --

    def living(self, session: str | None) -> Iterator[Alive]:
        """All jobs that have not ended, of every session or of one, page by page."""
        cursor: str | None = ""
        while cursor is not None:
            query = {"cursor": cursor} if cursor else {}
            query |= {} if session is None else {"session": session}
            page: _Living = self.client.json(Question(path=f"{PREFIX}/jobs", query=query), _Living)
            yield from page.jobs
            cursor = page.cursor

    def system(self, what: str) -> System:
        """Its "machines", "queues" or "categories"."""
        found: System = self.client.json(Question(path=f"{PREFIX}/system/{what}"), System)
        return found

    # -- what is told --

    @contextmanager
    def events(self, cursor: str | None) -> Iterator[Iterator[bytes]]:
        """The stream of events after a cursor, or from now on. Raises NotThereError where there is no such stream."""
        headers = {"Accept": _STREAM, **({"Last-Event-ID": cursor} if cursor else {})}
        question = Question(path=f"{self._session}/events", headers=headers, timeout=QUIET)
        with self.client.stream(question) as response:
            if not response.headers.get("Content-Type", "").startswith(_STREAM):
                raise NotThereError(f"{self.client.url}: it has no stream of events")
            yield response.iter_bytes()

    def poll(self, cursor: str | None, wait: float) -> Jobs:
        """What was told after a cursor, as soon as there is something, else after `wait` seconds."""
        query = {} if cursor is None else {"cursor": cursor, "wait": f"{wait:g}"}
        question = Question(path=f"{self._session}/events", query=query, timeout=self.client.timeout + wait)
        found: Jobs = self.client.json(question, Jobs, patience=0)
        return found

    # -- output --

    def output(self, id: str, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """At most `limit` bytes from `offset`, and whether that is the end for now."""
        query = {"offset": str(offset), "limit": str(limit)}
        reply = self.client.ask(Question(path=self._output(id, stream), query=query))
        return reply.data, reply.response.headers.get("X-Wfl-End", "true").lower() == "true"

    @contextmanager
    def follow(self, id: str, stream: Stream, offset: int) -> Iterator[Iterator[bytes]]:
        """The output from `offset` on, as it comes, to the job's end."""
        query = {"offset": str(offset), "follow": "true"}
        with self.client.stream(Question(path=self._output(id, stream), query=query, timeout=SILENCE)) as response:
            yield response.iter_bytes()

    @staticmethod
    def _output(id: str, stream: Stream) -> str:
        return f"{PREFIX}/jobs/{quote(id, safe='')}/output/{stream}"

    # -- files --

    def upload(self, pieces: Iterable[bytes], kind: str, size: int | None) -> str:
        """Send a file ("file"), or files as an archive ("tar"), in pieces; the id of what the server then has.

        Raises NotThereError where the server has forgotten it in between.
        """
        begun: _Upload = self.client.json(self._post("/uploads", {"size": size, "kind": kind}), _Upload)
        path, digest, offset = f"{self._session}/uploads/{quote(begun.upload, safe='')}", hashlib.sha256(), 0
        for piece in _gathered(pieces):
            digest.update(piece)
            self._put(path, piece, offset)
            offset += len(piece)
        done = Question(
            method="POST",
            path=f"{path}/complete",
            content=encoded({"sha256": digest.hexdigest()}),
            headers={"Content-Type": "application/json"},
        )
        self.client.ask(done)
        return begun.upload

    def _put(self, path: str, piece: bytes, offset: int) -> None:
        """One piece to its place, or what of it is not there yet, where an earlier try had no answer."""
        sent = 0
        for number, pause in enumerate(pauses(), start=1):
            try:
                self.client.ask(self._piece(path, piece[sent:], offset + sent), patience=0)
                return
            except NotThereError:
                raise
            except (UnansweredError, InvalidStateError) as error:  # or it is not there where the server goes on
                if number == 2 * TRIES:
                    raise
                self.client.rest(max(pause, getattr(error, "pause", 0.0)))
            sent = self._uploaded(path) - offset
            if sent == len(piece):
                return
            if not 0 <= sent < len(piece):
                raise UnansweredError(f"{self.client.url}: an upload has {offset + sent} bytes, {offset} were sent")

    @staticmethod
    def _piece(path: str, piece: bytes, offset: int) -> Question:
        headers = {"Content-Type": "application/octet-stream"}
        return Question(method="PUT", path=path, query={"offset": str(offset)}, content=piece, headers=headers)

    def _uploaded(self, path: str) -> int:
        """Bytes of an upload that the server has."""
        said = self.client.ask(Question(method="HEAD", path=path)).response.headers.get("Upload-Offset", "")
        if not said.isdecimal():
            raise UnansweredError(f"{self.client.url}: it does not say how much of an upload it has")
        return int(said)

    def file(self, id: str, name: str) -> Generator[bytes]:
        """A file or directory of a job's results as a tar archive; what is broken off is gone on with."""
        path = f"{PREFIX}/jobs/{quote(id, safe='')}/files/{quote(name, safe='')}"
        came, failed, tag = 0, 0, None
        while True:
            before = came
            try:
                with self.client.stream(Question(path=path, headers=_from(came))) as response:
                    tag = _same(response, tag)
                    skip = came if response.status_code == _WHOLE else 0
                    for piece in response.iter_bytes():
                        came += max(0, len(piece) - skip)
                        if skip < len(piece):
                            yield piece[skip:]
                        skip = max(0, skip - len(piece))
                return
            except PastEndError:
                if came:  # all had come but the word that it was all
                    return
                raise
            except UnansweredError as error:
                failed = 1 if came > before else failed + 1
                if failed == min(TRIES, error.tries):
                    raise
                self.client.rest(max(_REST * failed, error.pause))
                self.client.ask(Question(path=f"{PREFIX}/info"))  # until it is there again


def raw(template: JobTemplate) -> msgspec.Raw:
    """In JSON, ready to be put into more of it."""
    return msgspec.Raw(template.to_json().encode())


def _from(offset: int) -> dict[str, str]:
    return {"Range": f"bytes={offset}-"} if offset else {}


def _same(response: httpx.Response, before: str | None) -> str | None:
    """What the server calls the version of a file, so that parts of two are never put together."""
    tag: str | None = response.headers.get("ETag")
    if before is not None and tag != before:
        raise DrmCommunicationError("it changed while it was fetched")
    return tag


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same in pieces of about PIECE."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        for start in range(0, len(piece), PIECE):
            part = piece[start : start + PIECE]
            waiting.append(part)
            size += len(part)
            if size >= PIECE:
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
