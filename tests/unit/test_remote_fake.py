"""A job server in memory that speaks both protocols, and fails as networks and servers do; and that it is one."""

import hashlib
import itertools
import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pytest

pytest.importorskip("httpx", reason="httpx is not in this environment")

import httpx

from wfl import staging
from wfl.contexts.remote import client, connection, events

URL = "http://localhost:1"
PATIENCE = 20.0  # seconds that a thread may take on a busy machine
Act = Callable[[], httpx.Response]
Fault = Callable[[Act], httpx.Response]
_SUMMED = {"true": 0, "false": 1}


# --- what goes wrong --------------------------------------------------------------------------------------


def refused(_: Act) -> httpx.Response:
    """Nobody listens."""
    raise httpx.ConnectError("[Errno 111] Connection refused")


def swallowed(_: Act) -> httpx.Response:
    """The request is lost on its way, and nothing is heard."""
    raise httpx.ReadTimeout("timed out")


def unheard(act: Act) -> httpx.Response:
    """It is carried out, and the answer is lost."""
    act()
    raise httpx.ReadTimeout("timed out")


def reset(act: Act) -> httpx.Response:
    """It is carried out, and the connection is reset."""
    act()
    raise httpx.ReadError("[Errno 104] Connection reset by peer")


def half(act: Act) -> httpx.Response:
    """Half of the answer arrives."""
    whole = act()
    return httpx.Response(whole.status_code, headers=dict(whole.headers), stream=_Half(whole.content))


def status(code: int, **headers: str) -> Fault:
    """Somebody else answers: it is not carried out."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda _: httpx.Response(code, headers=named, text="<html>gateway</html>")


def status_after(code: int) -> Fault:
    """It is carried out, and a gateway answers in the server's place."""

    def answer(act: Act) -> httpx.Response:
        act()
        return httpx.Response(code)

    return answer


class _Half(httpx.SyncByteStream):
    def __init__(self, whole: bytes) -> None:
        self._whole = whole

    def __iter__(self) -> Iterator[bytes]:
        yield self._whole[: len(self._whole) // 2]
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


# --- the server -------------------------------------------------------------------------------------------


@dataclass
class Job:
    """What the server has of one job."""

    id: str
    key: str
    session: str
    template: dict[str, Any]
    array: str | None = None
    index: int | None = None
    state: str = "running"
    more: dict[str, Any] = field(default_factory=dict)
    stdout: bytes = b""
    stderr: bytes = b""
    results: dict[str, dict[str, str]] = field(default_factory=dict)

    def info(self) -> dict[str, Any]:
        """As it is told."""
        began = {"dispatchTime": "2030-01-01T00:00:00Z", "slots": 1} if self.state != "queuedHeld" else {}
        return {"id": self.id, "state": self.state, **began, **self.more}

    def view(self, *, template: bool = False) -> dict[str, Any]:
        """As it is found."""
        shown = {"template": self.template} if template else {}
        return {"id": self.id, "key": self.key, "array": self.array, "index": self.index, "info": self.info(), **shown}


class JobServer:
    """Both protocols. `started` counts how often each key was started: nothing may be started twice."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.keys: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
        self.started: dict[str, int] = {}
        self.requests: list[httpx.Request] = []
        self.faults: deque[tuple[str, Fault]] = deque()
        self.uploads: dict[str, bytearray] = {}
        self.told: list[tuple[int, list[dict[str, Any]]]] = []
        self.server, self.run = "server-1", 1
        self.numbers, self.told_number = itertools.count(1), 0
        self.changed = threading.Condition(threading.RLock())
        self.v1, self.base, self.stream = True, "/jobserver/jobmanagement", True
        self.silent = False  # the stream of events is kept back by something on its way
        self.timed_out = False  # what keeps it back has been waited for in vain
        self.hold = False  # commands do not end by themselves
        self.limits = {"submissions": 10, "ids": 10, "body": 100_000, "upload": 1 << 20, "wait": 0.2}
        self.fields = [
            "remoteCommand", "args", "submitAsHold", "startTime", "jobEnvironment", "joinFiles", "inputPath",
            "stageInFiles", "stageOutFiles", "jobName", "resourceLimits", "queueName", "minSlots", "extensions",
        ]  # fmt: skip
        self.capabilities = ["output", "stream", "suspend", "jt_staging", "of_the_future"]
        self.token: str | None = None

    # -- the test's side --

    def fail(self, path: str, *faults: Fault) -> None:
        """The next requests whose method and path contain this go wrong in these ways."""
        self.faults.extend((path, fault) for fault in faults)

    def restart(self) -> None:
        """Another process on the same database: what was told before is forgotten, connections end."""
        with self.changed:
            self.run += 1
            self.told.clear()
            self.changed.notify_all()

    def end(self, id: str, code: int = 0, stdout: bytes = b"", *, quietly: bool = False, **more: Any) -> None:
        """A job ends."""
        job = self.jobs[id]
        job.stdout = job.stdout or stdout
        end = {"exitStatus": code, "subState": "exited", "finishTime": "2030-01-01T00:00:05Z"}
        self.turn(id, "done" if code == 0 else "failed", quietly=quietly, **{**end, **more})

    def turn(self, id: str, state: str, *, quietly: bool = False, **more: Any) -> None:
        """A job is in a new state, and that is told, or not."""
        with self.changed:
            job = self.jobs[id]
            job.state, job.more = state, {**job.more, **more}
            if not quietly:
                self.told_number += 1
                self.told.append((self.told_number, [{"id": id, "info": job.info()}]))
                self.changed.notify_all()

    def only(self) -> Job:
        """The one job that there is."""
        (job,) = self.jobs.values()
        return job

    def count(self, what: str) -> int:
        """How many requests had this in their method and path."""
        return sum(what in f"{request.method} {request.url.path}" for request in self.requests)

    # -- HTTP --

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """One request, which may go wrong."""
        request.read()
        self.requests.append(request)
        name = f"{request.method} {request.url.path}"
        for number, (path, fault) in enumerate(self.faults):
            if path in name:
                del self.faults[number]
                return fault(lambda: self.answer(request))
        return self.answer(request)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Carry it out."""
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return problem(401, "DeniedByDrmsError", f"nobody knows {request.headers.get('Authorization')}")
        path = request.url.path
        with self.changed:
            if self.v1 and path.startswith("/api/v1"):
                parts = request.url.raw_path.decode().partition("?")[0].split("/")[3:]
                return self._v1(request, [unquote(part) for part in parts])
            if path.startswith(f"{self.base}/"):
                return self._compatible(request, path.removeprefix(f"{self.base}/"))
        return httpx.Response(404, text="404 page not found\n")

    def _v1(self, request: httpx.Request, parts: list[str]) -> httpx.Response:
        if parts == ["info"]:
            return answered(self._info())
        if parts[0] == "jobs":
            return self._of_job(request, *parts[1:])
        if parts[0] == "sessions" and len(parts) > 2:
            return self._of_session(request, parts[1], parts[2:])
        return problem(404, "InvalidArgumentError", f"there is no {request.url.path}")

    def _info(self) -> dict[str, Any]:
        return {
            "server": self.server, "started": f"run-{self.run}", "version": "0", "context": "fake",
            "capabilities": self.capabilities, "fields": self.fields, "extensions": ["known"],
            "identity": {"name": "me", "admin": False}, "limits": self.limits,
        }  # fmt: skip

    def _of_job(self, request: httpx.Request, id: str, what: str, name: str) -> httpx.Response:
        if what == "output":
            return self._output(id, name, request.url.params)
        return self._file(id, name, request.headers.get("Range"))

    def _of_session(self, request: httpx.Request, session: str, parts: list[str]) -> httpx.Response:
        data = json.loads(request.content) if request.content and request.method == "POST" else {}
        if len(parts) > 1:
            return self._upload(request, parts[1], parts[2:], data)
        handlers: dict[str, Callable[[], httpx.Response]] = {
            "POST jobs": lambda: answered({"jobs": [self._start(session, one) for one in data["jobs"]]}),
            "POST arrays": lambda: self._array(session, data),
            "GET jobs": lambda: self._page(session, int(request.url.params.get("cursor", "0"))),
            "POST find": lambda: self._find(session, data),
            "POST control": lambda: answered({"failures": self._control(data["ids"], data["action"])}),
            "POST reap": lambda: answered({"failures": self._reap(data["ids"])}),
            "GET events": lambda: self._events(request),
            "POST uploads": self._new_upload,
        }
        return handlers[f"{request.method} {parts[0]}"]()

    def _new_upload(self) -> httpx.Response:
        id = f"{next(self.numbers):032x}"
        self.uploads[id] = bytearray()
        return answered({"upload": id})

    def _new(self, session: str, key: str, template: dict[str, Any], **more: Any) -> Job:
        job = Job(more.pop("id", f"job-{next(self.numbers)}"), key, session, template, **more)
        self.jobs[job.id] = job
        self.started[key] = self.started.get(key, 0) + 1
        if template.get("submitAsHold"):
            job.state = "queuedHeld"
        elif not self.hold and template.get("remoteCommand") in _SUMMED:
            self.end(job.id, _SUMMED[template["remoteCommand"]])
        return job

    def _start(self, session: str, one: dict[str, Any]) -> dict[str, Any]:
        key, digest = one["key"], json.dumps(one["template"], sort_keys=True)
        known = self.keys.get((session, key))
        if known is not None:
            return known[1] if known[0] == digest else fault("InvalidStateError", "the key was used", key=key)
        if one["template"].get("remoteCommand") == "nonsense":
            return fault("InvalidArgumentError", "there is no nonsense", key=key)
        if one["template"].get("remoteCommand") == "unsure":
            return fault("DrmCommunicationError", "the system is away", key=key)
        answer = {"key": key, "id": self._new(session, key, one["template"]).id}
        self.keys[session, key] = (digest, answer)
        return answer

    def _array(self, session: str, data: dict[str, Any]) -> httpx.Response:
        key, digest = data["key"], json.dumps(data, sort_keys=True)
        known = self.keys.get((session, key))
        if known is None:
            id = f"array-{next(self.numbers)}"
            jobs = [
                {
                    "index": n,
                    "id": self._new(session, f"{key}.{n}", data["template"], id=f"{id}.{n}", array=id, index=n).id,
                }
                for n in range(*data["indexes"])
            ]
            known = self.keys[session, key] = (digest, {"id": id, "jobs": jobs})
        return answered(known[1])

    def _page(self, session: str, start: int) -> httpx.Response:
        jobs = [job.view() for job in self.jobs.values() if job.session == session]
        return answered({"jobs": jobs[start : start + 2], "cursor": str(start + 2) if len(jobs) > start + 2 else None})

    def _find(self, session: str, data: dict[str, Any]) -> httpx.Response:
        assert len(data["keys"]) + len(data["ids"]) <= self.limits["ids"]
        found: list[Job] = []
        gone: dict[str, list[str]] = {"keys": [], "ids": []}
        for key in data["keys"]:
            some = [job for job in self.jobs.values() if job.session == session and key in (job.key, _whole(job))]
            found += some
            gone["keys"] += [] if some else [key]
        for id in data["ids"]:
            found += [self.jobs[id]] if id in self.jobs else []
            gone["ids"] += [] if id in self.jobs else [id]
        return answered({"jobs": [job.view(template=data["templates"]) for job in found], "gone": gone})

    def _control(self, ids: list[str], action: str) -> dict[str, Any]:
        states = {"suspend": "suspended", "resume": "running", "hold": "queuedHeld", "release": "running"}
        failures: dict[str, Any] = {}
        for id in ids:
            if id not in self.jobs:
                failures[id] = {"type": "InvalidArgumentError", "message": f"there is no job {id}"}
            elif self.jobs[id].state in ("done", "failed", states.get(action)):
                failures[id] = {"type": "InvalidStateError", "message": f"{id} is {self.jobs[id].state}"}
            elif action in states:
                self.turn(id, states[action])
            else:
                name = "SIGKILL" if action == "kill" else "SIGTERM"
                self.end(id, 137, terminatingSignal=name, subState="cancelled")
        return failures

    def _reap(self, ids: list[str]) -> dict[str, Any]:
        failures: dict[str, Any] = {}
        for id in ids:
            if id not in self.jobs:
                failures[id] = {"type": "InvalidArgumentError", "message": f"there is no job {id}"}
            elif self.jobs[id].state not in ("done", "failed"):
                failures[id] = {"type": "InvalidStateError", "message": f"{id} has not ended"}
            else:
                del self.jobs[id]
        return failures

    # -- events --

    def _after(self, cursor: str | None) -> tuple[int, bool]:
        """The number of the last event that was heard, and whether some may be missing."""
        if not cursor:
            return self.told_number, False
        run, _, number = cursor.partition(".")
        return (self.told_number, True) if run != f"run-{self.run}" else (int(number), False)

    def _events(self, request: httpx.Request) -> httpx.Response:
        cursor = request.headers.get("Last-Event-ID") or request.url.params.get("cursor")
        if request.headers.get("Accept") == "text/event-stream":
            if not self.stream:
                return problem(404, "InvalidArgumentError", "there is no stream")
            ours, theirs = socket.socketpair()
            stream = _Events(self, cursor, ours, theirs)
            given = {"network_stream": _Network(ours)}
            return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=stream, extensions=given)
        after, missed = self._after(cursor)
        jobs: list[dict[str, Any]] = []
        if cursor and not missed:
            wait = float(request.url.params.get("wait", "0"))
            run = self.run
            self.changed.wait_for(lambda: self.told_number > after or run != self.run, wait)
            if run != self.run:
                raise httpx.ReadError("[Errno 104] Connection reset by peer")
            jobs = [job for number, some in self.told if number > after for job in some]
        return answered({"cursor": f"run-{self.run}.{self.told_number}", "reset": missed, "jobs": jobs})

    def frames(self, cursor: str | None, closed: socket.socket) -> Iterator[bytes]:
        """Server-sent events, until the server is restarted or the connection closed."""
        with self.changed:
            after, missed = self._after(cursor)
            run = self.run
        if not self.silent:
            yield b": here\n\n"
        if missed:
            yield f"id: run-{run}.{after}\nevent: reset\ndata: {{}}\n\n".encode()
        while not select.select([closed], [], [], 0.0)[0]:
            if self.timed_out:
                raise httpx.ReadTimeout("timed out")
            with self.changed:
                if run != self.run:
                    return
                if self.told_number <= after:
                    self.changed.wait(0.02)
                new = [(number, jobs) for number, jobs in self.told if number > after]
            for number, jobs in [] if self.silent else new:
                after = number
                data = json.dumps({"jobs": jobs}, ensure_ascii=False)
                yield f"id: run-{run}.{number}\nevent: jobs\ndata: {data}\n\n".encode()

    # -- bytes --

    def _output(self, id: str, stream: str, query: httpx.QueryParams) -> httpx.Response:
        if id not in self.jobs:
            return problem(404, "InvalidArgumentError", f"there is no job {id}")
        job, offset = self.jobs[id], int(query.get("offset", "0"))
        data: bytes = getattr(job, stream)
        if query.get("follow"):
            return httpx.Response(200, stream=_Followed(self, job, stream, offset))
        piece = data[offset : offset + int(query["limit"])]
        end = str(offset + len(piece) >= len(data)).lower()
        return httpx.Response(200, content=piece, headers={"X-Wfl-Offset": str(offset), "X-Wfl-End": end})

    def _file(self, id: str, name: str, wanted: str | None) -> httpx.Response:
        if name not in self.jobs[id].results:
            return problem(404, "InvalidArgumentError", f"the job has no result {name!r}")
        data = b"".join(staging.pack(self.jobs[id].results[name]))
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if start >= len(data):
            return problem(416, "InvalidArgumentError", "there is nothing there")
        headers = {"ETag": hashlib.sha256(data).hexdigest()}
        return httpx.Response(206 if wanted else 200, content=data[start:], headers=headers)

    def _upload(self, request: httpx.Request, id: str, rest: list[str], data: dict[str, Any]) -> httpx.Response:
        if id not in self.uploads:
            return problem(404, "InvalidArgumentError", f"there is no upload {id}")
        upload = self.uploads[id]
        if request.method == "HEAD":
            return httpx.Response(200, headers={"Upload-Offset": str(len(upload))})
        if request.method == "PUT":
            if int(request.url.params["offset"]) != len(upload):
                return problem(409, "InvalidStateError", f"the upload has {len(upload)} bytes")
            upload += request.content
        elif rest == ["complete"] and hashlib.sha256(upload).hexdigest() != data["sha256"]:
            return problem(422, "InvalidArgumentError", "the sha256 is another one")
        return answered({"upload": id, "offset": len(upload)})

    # -- the compatible protocol --

    def _compatible(self, request: httpx.Request, call: str) -> httpx.Response:
        id, action = request.url.params.get("jobID", ""), request.url.params.get("action", "")
        handlers: dict[str, Callable[[], Any]] = {
            "GET listjobs": lambda: list(self.jobs) or None,
            "POST addjob": lambda: self._add(json.loads(request.content)),
            "GET jobinfo": lambda: _old_info(self.jobs.get(id)),
            "GET jobcontrol": lambda: self._control([id], action).get(id, {"message": ""})["message"],
            "GET deletejob": lambda: self._reap([id]).get(id, {"message": ""})["message"],
        }
        handler = handlers.get(f"{request.method} {call}")
        return httpx.Response(405) if handler is None else answered(handler())

    def _add(self, template: dict[str, Any]) -> dict[str, str]:
        if template["remoteCommand"] == "nonsense":
            return {"JobID": "", "Error": "fork/exec nonsense: no such file or directory"}
        made = self._new("legacy", template["jobEnvironment"]["JOB_ID"], template, id=str(next(self.numbers)))
        return {"JobID": made.id, "Error": ""}


def _whole(job: Job) -> str | None:
    return None if job.index is None else job.key.removesuffix(f".{job.index}")


def _old_info(job: Job | None) -> dict[str, Any]:
    zero = "0001-01-01T00:00:00Z"
    found: dict[str, Any] = {
        "allocatedMachines": None, "annotation": "", "cpuTime": 0, "dispatchTime": zero, "exitStatus": 0,
        "extension": {}, "finishTime": zero, "id": "", "jobOwner": "", "queueName": "", "slots": 0, "state": "unset",
        "subState": "", "submissionMachine": "", "submissionTime": zero, "terminatingSignal": "", "wallclockTime": 0,
        "Error": "" if job else "job does not exist",
    }  # fmt: skip
    return {**found, **job.info()} if job else found


class _Network:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def get_extra_info(self, _: str) -> socket.socket:
        return self._sock

    def close(self) -> None:
        self._sock.close()


class _Events(httpx.SyncByteStream):
    def __init__(self, server: JobServer, cursor: str | None, ours: socket.socket, closed: socket.socket) -> None:
        self._server, self._cursor, self._ours, self._closed = server, cursor, ours, closed

    def __iter__(self) -> Iterator[bytes]:
        yield from self._server.frames(self._cursor, self._closed)

    def close(self) -> None:
        self._ours.close()
        self._closed.close()


class _Followed(httpx.SyncByteStream):
    """Output as it comes, to the job's end."""

    def __init__(self, server: JobServer, job: Job, stream: str, offset: int) -> None:
        self._server, self._job, self._stream, self._offset = server, job, stream, offset

    def __iter__(self) -> Iterator[bytes]:
        while True:
            over = self._job.state in ("done", "failed")
            data = getattr(self._job, self._stream)[self._offset :]
            self._offset += len(data)
            if data:
                yield data
            elif over:
                return
            time.sleep(0.005)


def answered(what: Any) -> httpx.Response:
    """JSON."""
    return httpx.Response(200, content=json.dumps(what), headers={"Content-Type": "application/json"})


def problem(code: int, kind: str, words: str) -> httpx.Response:
    """What is refused."""
    return httpx.Response(code, json=fault(kind, words))


def fault(kind: str, words: str, **more: Any) -> dict[str, Any]:
    """One error."""
    return {**more, "error": {"type": kind, "message": words}}


def put_in_place(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> JobServer:
    """Every client that is made talks to this server, and is not patient."""

    def connected(_: Any, credentials: Any, *, fresh: bool = False) -> httpx.Client:
        del fresh
        return httpx.Client(transport=httpx.MockTransport(server), headers=credentials.headers())

    monkeypatch.setattr(connection, "connected", connected)
    monkeypatch.setattr(client, "REPEAT", (0.001, 0.02))
    monkeypatch.setattr(events, "RECONNECT", (0.005, 0.02))
    return server


def eventually(true: Callable[[], object], what: str = "it") -> None:
    """Wait until something is true, within bounds."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, f"{what} did not come true"
        time.sleep(0.002)


def test_same_key_starts_one_job() -> None:
    """The server in memory starts a job once for a key, and refuses the key for another template."""
    server = JobServer()
    with httpx.Client(transport=httpx.MockTransport(server), base_url=URL) as http:
        body = {"jobs": [{"key": "k", "template": {"remoteCommand": "true"}}]}
        first, second = (http.post("/api/v1/sessions/s/jobs", json=body).json() for _ in range(2))
        other = {"jobs": [{"key": "k", "template": {"remoteCommand": "false"}}]}
        refusal = http.post("/api/v1/sessions/s/jobs", json=other).json()
    assert first == second == {"jobs": [{"key": "k", "id": "job-1"}]}
    assert refusal["jobs"][0]["error"]["type"] == "InvalidStateError"
    assert server.started == {"k": 1}


def test_faults_are_made() -> None:
    """Faults are taken in order by the requests that they are meant for; an answer may be lost after the deed."""
    server = JobServer()
    server.fail("POST /api/v1/sessions/s/jobs", unheard, half)
    body = {"jobs": [{"key": "k", "template": {"remoteCommand": "true"}}]}
    with httpx.Client(transport=httpx.MockTransport(server), base_url=URL) as http:
        assert http.get("/api/v1/info").json()["server"] == "server-1"
        with pytest.raises(httpx.ReadTimeout):
            http.post("/api/v1/sessions/s/jobs", json=body)
        with pytest.raises(httpx.RemoteProtocolError):
            http.post("/api/v1/sessions/s/jobs", json=body)
    assert server.started == {"k": 1}
