"""The job server against those who mean it no good: a real server process, and raw bytes on its connections."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import ssl
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import psutil
import pytest

from tests.asgi import API, SESSION, until
from tests.faults.machine import slowness
from tests.faults.servers import Certificates
from tests.server import PATIENCE, Running, received, token_for
from wfl.drmaa2 import JobTemplate
from wfl.server.policy import FIELDS
from wfl.server.routes import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wfl.server.openapi import Endpoint

CANARY = "canary that nobody may read"
IDLE = 5000
"""Connections that say nothing."""
MEMORY = 64 << 20
"""Bytes that requests which are refused may cost at most while they come."""


def name_of(endpoint: Endpoint) -> str:
    """What a test of an endpoint is called after."""
    return f"{endpoint.method} {endpoint.path}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for tests that leave nothing; a file that nobody may read lies beside what it serves."""
    directory = tmp_path_factory.mktemp("misuse")
    (directory / "canary").write_text(CANARY)
    with Running(directory / "server", "--limit", "wait=0.1", "--limit", "heartbeat=0.1") as found:
        yield found
        assert "Traceback" not in found.log
        assert not [status for status in found.statuses() if status >= 500]


def head(server: Running, method: str, target: str, *lines: str) -> bytes:
    """The head of a request of alice's, without the empty line that ends it."""
    words = [f"{method} {target} HTTP/1.1", "Host: server", f"Authorization: Bearer {server.token}", *lines]
    return "\r\n".join(words).encode("latin-1") + b"\r\n"


def status_of(answer: bytes) -> int:
    """What the first line says; 0 where nothing came."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


def submissions(server: Running) -> float:
    """How many jobs it has ever taken."""
    text = server.request("GET", "/metrics")[1].decode()
    found = re.search(r'wfl_submissions_total\{result="accepted"\} (\S+)', text)
    return float(found[1]) if found else 0.0


# -- what is another's --


def bodies(endpoint: Endpoint, id: str) -> Any:
    """A body that the endpoint takes, and that names this job."""
    known = {
        "submit": {"jobs": [{"key": "k", "template": {"remoteCommand": "true"}}]},
        "submit_array": {"template": {"remoteCommand": "true"}, "indexes": [0, 1, 1], "key": "k"},
        "find": {"ids": [id], "keys": ["k"], "templates": True},
        "control": {"ids": [id], "action": "kill"},
        "reap": {"ids": [id]},
        "new_upload": {},
        "complete": {"sha256": "0" * 64},
        "put": b"other",
    }
    return known.get(endpoint.handler)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_what_is_anothers(server: Running, endpoint: Endpoint) -> None:
    """Whatever bob asks, for alice's ids the answer is that for ids that there are not; her jobs stay as they are."""
    key = uuid.uuid4().hex
    id = server.start_job("sleep", "1000", key=key, stageOutFiles={"result:x": "x"})
    _, upload = server.request("POST", f"{SESSION}/uploads", {})
    bob = {"Authorization": f"Bearer {token_for(server.directory, 'bob')}"}
    until(lambda: server.request("GET", f"{API}/info", headers=bob)[0] == 200)  # a new token is seen after a while
    until(lambda: server.state(id) == "running")

    def ask(id: str, upload: str) -> tuple[int, str]:
        names = {
            "id": id,
            "session": "s",
            "upload": upload,
            "action": "kill",
            "stream": "stdout",
            "name": "x",
            "what": "machines",
        }
        path = re.sub(r"\{(\w+)\}", lambda name: names[name[1]], endpoint.path)
        status, answer = server.request(endpoint.method, f"{API}{path}", bodies(endpoint, id), headers=bob)
        text = answer.decode() if isinstance(answer, bytes) else json.dumps(answer)
        return status, text.replace(id, "ID").replace(upload, "UPLOAD")

    if endpoint.handler not in ("submit", "submit_array", "new_upload", "events"):  # those are new each time
        assert ask(id, upload["upload"]) == ask("0123456789-1", "0" * 32)
    elif endpoint.method == "POST":
        assert id not in ask(id, upload["upload"])[1]
    assert server.state(id) == "running"
    found = server.request("POST", f"{SESSION}/find", {"keys": [key]})[1]["jobs"]
    assert [job["id"] for job in found] == [id]
    assert server.request("PUT", f"{SESSION}/uploads/{upload['upload']}?offset=0", b"own")[0] == 200
    server.request("POST", f"{API}/jobs/{id}/kill")
    until(lambda: server.state(id) == "failed")
    assert server.request("DELETE", f"{API}/jobs/{id}")[0] == 200


# -- ways out --

CLIMBS = ("..", "../..", "../../canary", "/etc/passwd", "..%2f..%2fcanary", "%2e%2e/%2e%2e/canary", "....//canary",
          "..\\..\\canary", "%c0%ae%c0%ae/canary", "../server.db", "../identities.json", "a\0b", "~")  # fmt: skip


@pytest.mark.parametrize("endpoint", [one for one in ENDPOINTS if "{" in one.path], ids=name_of)
def test_addresses_that_lead_out(server: Running, endpoint: Endpoint) -> None:
    """No part of an address is a way to a file of the server, as it is or encoded, once or twice."""
    id = server.start_job("echo", "hello", key="ended", stageOutFiles={})
    until(lambda: server.state(id) == "done")
    names = {"id": id, "session": "s", "upload": "0" * 32, "action": "kill", "stream": "stdout", "name": "x"}
    for part in re.findall(r"\{(\w+)\}", endpoint.path):
        for climb in CLIMBS:
            for text in (climb, quote(climb, safe=""), quote(quote(climb, safe=""), safe="")):
                path = endpoint.path
                for name, value in {**names, part: text}.items():
                    path = path.replace(f"{{{name}}}", value)
                sent = head(server, endpoint.method, API + path.replace("\0", "%00"), "Connection: close")
                body = bodies(endpoint, id)
                raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
                lines = f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
                answer = server.raw(sent + lines + raw)
                assert 400 <= status_of(answer) < 500, (path, answer)
                for secret in (CANARY, "root:", "SQLite", "scrypt"):
                    assert secret.encode() not in answer, path


PATHS = ("/etc/passwd", "../../canary", "../server.db", "upload:../canary", "upload:../../../canary", "result:../x",
         "$DRMAA2_HD$/x", "{{home}}/x", "./../x", "x/../../y")  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_templates_that_lead_out(server: Running, path: str) -> None:
    """No field of a template names a file of the server, or a place outside of the job's own directory."""
    before = submissions(server)
    places: list[dict[str, object]] = [
        {"inputPath": path}, {"outputPath": path}, {"errorPath": path}, {"workingDirectory": path},
        {"stageInFiles": {"x": path}}, {"stageInFiles": {path: f"upload:{'0' * 32}"}}, {"stageOutFiles": {path: "x"}},
    ]  # fmt: skip
    if ":" not in path:  # else a file of the job may be called that
        places.append({"stageOutFiles": {"result:x": path}})
    for fields in places:
        template = {"remoteCommand": "true", **fields}
        _, answer = server.request("POST", f"{SESSION}/jobs", {"jobs": [{"template": template}]})
        assert "error" in answer["jobs"][0], fields
        body = {"template": template, "indexes": [0, 2, 1]}
        assert server.request("POST", f"{SESSION}/arrays", body)[0] in (403, 404, 422), fields
    assert submissions(server) == before


VALUES = {
    "priority": 5, "email": ["a@example.com"], "emailOnStarted": True, "emailOnTerminated": True,
    "accountingId": "other", "reservationId": "other", "extensions": {"inherit_environment": "false"},
    "outputPath": "/tmp/x", "errorPath": "/tmp/x", "inputPath": "/etc/passwd", "workingDirectory": "/",
}  # fmt: skip
"""What a template may not have on a server that allows nothing in particular."""


def test_forbidden_fields(server: Running) -> None:
    """A template with a field that costs others, or reaches out, is refused with the field's name; nothing starts."""
    names = dict(zip(JobTemplate.__struct_encode_fields__, JobTemplate.__struct_fields__, strict=True))
    assert {names[field] for field in VALUES} >= {*JobTemplate.__struct_fields__} - FIELDS
    before = submissions(server)
    for field, value in VALUES.items():
        jobs = [{"template": {"remoteCommand": "true", field: value}}]
        status, answer = server.request("POST", f"{SESSION}/jobs", {"jobs": jobs})
        assert status == 200
        assert answer["jobs"][0]["error"]["type"] == "DeniedByDrmsError", field
        assert names[field] in answer["jobs"][0]["error"]["message"]
    unknown = {"jobs": [{"template": {"remoteCommand": "true", "sudo": True}}]}
    assert "error" in server.request("POST", f"{SESSION}/jobs", unknown)[1]["jobs"][0]
    assert submissions(server) == before


# -- headers of others' making --


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_injected_headers(server: Running, endpoint: Endpoint) -> None:
    """What a client writes into its address, query or key becomes no header of the answer, and no line of the log."""
    evil = "%0d%0aX-Evil:%201%0d%0a%0d%0aevil"
    path = re.sub(r"\{\w+\}", evil, endpoint.path)
    keys = [f"Idempotency-Key: {evil}", f"Last-Event-ID: {evil}", "Connection: close"]
    for target in (f"{API}{path}", f"{API}{path}?cursor={evil}&offset={evil}&identity={evil}&wait={evil}"):
        for lines in (keys[2:], keys):
            answer = server.raw(head(server, endpoint.method, target, *lines) + b"\r\n")
            assert status_of(answer) >= 200
            assert b"x-evil" not in answer.partition(b"\r\n\r\n")[0].lower()
    assert not [line for line in server.log.splitlines() if line.lower().startswith(("x-evil", "evil"))]


@pytest.mark.parametrize(
    "line", [b"X: a\rX-Evil: 1", b"X: a\nX-Evil: 1", b"X: \0", b"X : 1", b" X: 1", b"X:1\r\n\tY: 2"]
)
def test_headers_that_are_none(server: Running, line: bytes) -> None:
    """Lines that two programs could read in two ways are refused, or read as one; nothing of them comes back."""
    sent = head(server, "GET", f"{API}/info", "Connection: close", "A: b") + line + b"\r\n\r\n"
    answer = server.raw(sent)
    assert status_of(answer) in (0, 200, 400)
    assert b"evil" not in answer.lower()


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Content-Length: 4", "Content-Length: 5"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: x"],
    ],
)
def test_two_lengths(server: Running, lines: list[str]) -> None:
    """A body of two lengths would hide a second request behind a proxy: it is refused, and nothing more is read."""
    before = submissions(server)
    hidden = json.dumps({"jobs": [{"template": {"remoteCommand": "true"}}]}).encode()
    second = head(server, "POST", f"{SESSION}/jobs", f"Content-Length: {len(hidden)}", "Content-Type: application/json")
    sent = head(server, "POST", f"{SESSION}/find", "Content-Type: application/json", *lines)
    answer = server.raw(sent + b"\r\n0\r\n\r\n" + second + b"\r\n" + hidden)
    assert status_of(answer) in (400, 413, 501)
    assert answer.count(b"HTTP/1.1") == 1
    assert submissions(server) == before


# -- too large, too slow, too many --


def resident(server: Running) -> int:
    """Bytes of memory that the server has now."""
    return int(psutil.Process(server.process.pid).memory_info().rss)


class Peak:
    """The most memory that the server has while this is open, in bytes."""

    def __init__(self, server: Running) -> None:
        self._server, self.most = server, resident(server)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self.most = max(self.most, resident(self._server))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_bodies_that_are_too_large(server: Running) -> None:
    """They are refused by what they say of their size, or as soon as they are larger; memory stays as it was."""
    kind = "Content-Type: application/json"
    before = resident(server)
    with Peak(server) as peak:
        declared = server.raw(head(server, "POST", f"{SESSION}/jobs", kind, f"Content-Length: {1 << 40}") + b"\r\n{")
        assert status_of(declared) == 413
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(head(server, "POST", f"{SESSION}/jobs", kind, "Transfer-Encoding: chunked") + b"\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(16_384):  # a gibibyte
                    connection.sendall(piece)
            answer = received(connection)
        assert status_of(answer) in (0, 413)  # the answer may be overtaken by the reset
    assert peak.most - before < MEMORY
    assert server.request("GET", f"{API}/info")[0] == 200


def test_headers_that_are_too_large(server: Running) -> None:
    """Many, long or endless: refused, and no memory is taken for them."""
    before = resident(server)
    with Peak(server) as peak:
        many = [f"X-{number}: y" for number in range(150)]
        assert status_of(server.raw(head(server, "GET", f"{API}/info", *many) + b"\r\n")) == 431
        assert status_of(server.raw(head(server, "GET", f"{API}/info", "X: " + "y" * 39_000) + b"\r\n")) in (400, 431)
        assert status_of(server.raw(head(server, "GET", f"{API}/info?{'x' * 9_000}") + b"\r\n")) == 414
        endless = head(server, "GET", f"{API}/info") + b"X: " + b"y" * (64 << 20)
        assert status_of(server.raw(endless)) in (0, 400, 431)
    assert peak.most - before < MEMORY
    assert server.request("GET", f"{API}/info")[0] == 200


def dripping(connection: socket.socket, patience: float) -> float:
    """Send a byte now and then until the other side has had enough; the seconds that took."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < patience:
            connection.sendall(b"a")
            time.sleep(0.05)
    return time.monotonic() - began


def test_slow_heads_and_bodies(tmp_path: Path) -> None:
    """Hundreds of clients that send a byte now and then are cut off in time; meanwhile others are served."""
    bounds = ("--limit", "header_seconds=1", "--limit", "body_seconds=1")
    with Running(tmp_path / "slow", *bounds, context="fake") as server:
        kind = "Content-Type: application/json"
        heads = [
            head(server, "GET", f"{API}/info") + b"X: ",
            head(server, "POST", f"{SESSION}/jobs", kind, "Content-Length: 10000") + b"\r\n{",
            head(server, "POST", f"{SESSION}/jobs", kind, "Transfer-Encoding: chunked") + b"\r\n1000\r\n",
        ]
        took: list[float] = []

        def attack(number: int) -> None:
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
                connection.sendall(heads[number % len(heads)])
                took.append(dripping(connection, PATIENCE))

        threads = [threading.Thread(target=attack, args=(number,)) for number in range(150)]
        for thread in threads:
            thread.start()
        times = []
        while any(thread.is_alive() for thread in threads):
            began = time.monotonic()
            assert server.request("GET", f"{API}/info")[0] == 200
            times.append(time.monotonic() - began)
            time.sleep(0.02)  # else it is one who asks too often
        for thread in threads:
            thread.join()
        assert len(took) == len(threads)
        assert max(took) < PATIENCE, "they are cut off"
        assert sorted(times)[len(times) // 2] < 0.5 * slowness()
        assert not [status for status in server.statuses() if status >= 500]


def test_slow_readers(tmp_path: Path) -> None:
    """Who asks for much and takes none of it is cut off in time; what is kept for it meanwhile is little."""
    with Running(tmp_path / "readers", "--limit", "send_seconds=1") as server:
        id = server.start_job("head", "-c", "100000000", "/dev/zero")
        until(lambda: server.state(id) == "done")
        before = resident(server)
        target = f"{API}/jobs/{id}/output/stdout"
        with Peak(server) as peak, contextlib.ExitStack() as stack:
            readers = []
            for _ in range(20):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
                connection.sendall(head(server, "GET", target) + b"\r\n")
                readers.append(connection)
            until(lambda: len([line for line in server.log.splitlines() if target in line]) == len(readers))
            assert server.request("GET", f"{API}/info")[0] == 200
        assert peak.most - before < 3 * MEMORY  # a piece and the socket's buffers for each
        assert "Traceback" not in server.log


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors and CPU time as Linux does")
def test_idle_connections(tmp_path: Path) -> None:
    """Five thousand connections that say nothing cost little memory and no CPU, and others are served as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * IDLE:
        pytest.skip(f"this user may have only {hard} files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        bounds = ("--limit", f"connections={IDLE + 100}", "--limit", "header_seconds=600")
        with Running(tmp_path / "idle", *bounds, context="fake") as server, contextlib.ExitStack() as stack:
            assert server.request("GET", f"{API}/info")[0] == 200
            process, before = psutil.Process(server.process.pid), resident(server)
            idle = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) for _ in range(IDLE)
            ]
            until(lambda: process.num_fds() > IDLE)
            assert resident(server) - before < 4 * MEMORY
            began, cpu = time.monotonic(), sum(process.cpu_times()[:2])
            time.sleep(2)  # a while in which nothing happens: what that costs is what is measured
            assert sum(process.cpu_times()[:2]) - cpu < 0.1 * (time.monotonic() - began)
            times = []
            for number in range(50):
                began = time.monotonic()
                server.start_job("true", key=str(number))
                times.append(time.monotonic() - began)
            assert sorted(times)[len(times) // 2] < 0.1 * slowness()
            for connection in idle[::500]:  # they are kept: this one may still ask
                connection.sendall(head(server, "GET", "/healthz", "Connection: close") + b"\r\n")
                assert status_of(received(connection)) == 200
        with (
            Running(tmp_path / "few", "--limit", "connections=500", context="fake") as server,
            contextlib.ExitStack() as stack,
        ):
            for _ in range(IDLE):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
            assert server.request("GET", f"{API}/info")[0] == 200  # the oldest silent ones make room
            assert psutil.Process(server.process.pid).num_fds() < 700
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections_of_tls(tmp_path: Path) -> None:
    """Hundreds of silent connections that agreed upon TLS, or began to, cost little and are in nobody's way."""
    place = Certificates(tmp_path).server
    files = ("--tls-certificate", place / "cert.pem", "--tls-key", place / "key.pem")
    bounds = ("--limit", "connections=400", "--limit", "header_seconds=600")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(place / "ca.pem")
    trusting.check_hostname = False  # it is for the address
    with Running(tmp_path / "tls", *files, *bounds, context="fake") as server, contextlib.ExitStack() as stack:
        assert server.request("GET", f"{API}/info", tls=trusting)[0] == 200
        before = resident(server)
        for number in range(600):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
            if number % 3 == 1:
                connection.sendall(b"\x16\x03\x01\x02\x00\x01")  # a greeting begins so
            elif number % 3:
                stack.enter_context(trusting.wrap_socket(connection))
        assert server.request("GET", f"{API}/info", tls=trusting)[0] == 200  # the oldest silent ones make room
        assert psutil.Process(server.process.pid).num_fds() < 500
        assert resident(server) - before < MEMORY
        assert "Traceback" not in server.log


def test_wrong_tokens_by_the_thousand(server: Running) -> None:
    """Wrong tokens are refused one like the other, start nothing, and do not lock out who has the right one."""
    before = submissions(server)
    body = {"jobs": [{"template": {"remoteCommand": "true"}}]}
    wrong = ["", "Bearer", "Bearer x", "Bearer wfl_000000000000_" + "A" * 43, server.token, f"Basic {server.token}",
             "Bearer " + server.token[:-1], "Bearer " + server.token + "x", "Digest x", "Bearer \xff"]  # fmt: skip
    for number in range(1000):
        headers = {"Authorization": wrong[number % len(wrong)]}
        status, answer = server.request("POST", f"{SESSION}/jobs", body, headers=headers)
        assert status == 401
        assert answer["error"]["message"] == "a valid token or password is needed"
    assert submissions(server) == before
    assert server.request("GET", f"{API}/info")[0] == 200
