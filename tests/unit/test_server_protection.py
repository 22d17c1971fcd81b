"""What every request to the job server passes: who it is, sizes, times, rates, origins, and what is logged of it."""

import base64
import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.asgi import API, SESSION, Client, Open, Served, started, submit, until
from wfl.server import ServerLimits, create_app, identities
from wfl.server.routes import ENDPOINTS
from wfl.testing import FakeContext, FakeSystem, Outcome

Serve = Callable[..., Served]
PASSWORD = "correct horse"  # noqa: S105 - of a test


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers of a fake system, which are stopped afterwards."""
    made: list[Served] = []

    def start(system: FakeSystem | None = None, **settings: Any) -> Served:
        system = system or FakeSystem({"stay": Outcome(duration=math.inf)})
        made.append(Served(tmp_path / str(len(made)), lambda: FakeContext(system), **settings))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def basic(name: str, password: str) -> str:
    """The header of HTTP basic authentication."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


# -- who it is --


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: f"{one.method} {one.path}")
@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic wrong", "Bearer wfl_000000000000_" + "A" * 43])
def test_nothing_without_a_token(serve: Serve, endpoint: Any, authorization: str) -> None:
    """Without a token, or with a wrong one, every endpoint answers the same, and nothing is done."""
    system = FakeSystem()
    served = serve(system)
    path = API + re.sub(r"\{\w+\}", "x", endpoint.path)
    body = {"jobs": [{"template": {"remoteCommand": "x"}}]}
    client = served.open.with_headers(authorization=authorization)
    answer = client.request(endpoint.method, path, body)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="wfl", Basic realm="wfl", charset="UTF-8"'
    assert system.submitted == []


def test_passwords_and_certificates(serve: Serve) -> None:
    """HTTP basic works as a token does, and a certificate that the connection brought along."""
    served = serve()
    served.identities.set_password("alice", PASSWORD)
    fingerprint = "ab" * 32
    assert served.open.with_headers(authorization=basic("alice", PASSWORD)).get(f"{API}/info").status == 200
    assert served.open.with_headers(authorization=basic("alice", "wrong horse")).get(f"{API}/info").status == 401
    assert served.open.get(f"{API}/info", state={"certificate": fingerprint}).status == 401
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(b'x').decode()}\n-----END CERTIFICATE-----\n"
    fingerprint = served.identities.add_certificate("bob", pem)
    answer = served.open.get(f"{API}/info", state={"certificate": fingerprint})
    assert answer.json()["identity"] == {"name": "bob", "admin": False}


def test_guessing_passwords(serve: Serve) -> None:
    """After some wrong ones there is a pause, which the answer tells; tokens go on."""
    served = serve(limits=ServerLimits(passwords=4))
    served.identities.set_password("alice", PASSWORD)
    guess = served.open.with_headers(authorization=basic("alice", "wrong horse"))
    statuses = [guess.get(f"{API}/info").status for _ in range(5)]
    assert statuses == [401] * 4 + [429]
    assert int(guess.get(f"{API}/info").headers["retry-after"]) > 0
    assert served.alice.get(f"{API}/info").status == 200


def test_identities_that_cannot_be_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets in, and who knocks is told to come again, but not where the file is."""
    monkeypatch.setattr(identities, "LOOK", 0.0)
    served = serve()
    served.identities.path.write_text("{")
    for client in (served.open, served.alice, served.alice):
        answer = client.get(f"{API}/info")
        assert answer.error == (503, "SessionManagementError")
        assert int(answer.headers["retry-after"]) > 0
        assert str(served.identities.path) not in answer.message


def test_headers_that_are_there_twice(serve: Serve) -> None:
    """Which of two Authorization headers counts is nobody's guess."""
    served = serve()
    stream = served.alice.begin("GET", f"{API}/info", {"Authorization": "Bearer other"})
    while stream.step():
        pass
    assert stream.status == 400


def test_a_part_of_another_application(tmp_path: Path) -> None:
    """Where it is mounted, too, probes need no token, the description says where it is, and its limits are kept."""
    who = identities.Identities(tmp_path / "identities.json")
    who.set_password("alice", PASSWORD)
    limits = ServerLimits(passwords=1)
    jobs = create_app(FakeContext(), directory=tmp_path / "data", identities=who, limits=limits, open_metrics=True)
    mounts = [Mount("/jobs", jobs), Mount("/again", jobs)]
    client = Client(Starlette(routes=mounts, lifespan=jobs.state.server.running))
    try:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(f"/jobs{path}").status == 200
        assert client.get(f"/jobs{API}/healthz").status == 401
        alice = client.with_headers(authorization=basic("alice", PASSWORD))
        for place in ("/jobs", "/again"):
            assert alice.get(f"{place}{API}/openapi.json").json()["servers"] == [{"url": place + API}]
        guess = client.with_headers(authorization=basic("alice", "wrong horse"))
        assert [guess.get(f"/jobs{API}/info").status for _ in range(2)] == [401, 429]
    finally:
        client.close()


# -- sizes, times, rates --


def test_sizes(serve: Serve) -> None:
    """What is too large is refused before anything is done with it."""
    served = serve(limits=ServerLimits(body=1000, url=200, headers=2000, header_lines=20))
    body = {"jobs": [{"template": {"remoteCommand": "x" * 1000}}]}
    large = served.alice.post(f"{SESSION}/jobs", body)
    assert large.error == (413, "InvalidArgumentError")
    assert large.headers["connection"] == "close"
    assert served.alice.get(f"{API}/info?{'x' * 200}").error == (414, "InvalidArgumentError")
    assert served.alice.with_headers(x="y" * 2000).get(f"{API}/info").error == (431, "InvalidArgumentError")
    many = {f"x-{number}": "y" for number in range(20)}
    assert served.alice.with_headers(**many).get(f"{API}/info").error == (431, "InvalidArgumentError")


def test_a_body_that_lies_about_its_size(serve: Serve) -> None:
    """It is counted as it comes."""
    served = serve(limits=ServerLimits(body=1000))
    for length in ("5", ""):
        stream = served.alice.begin(
            "POST", f"{SESSION}/jobs", {"content-type": "application/json", "content-length": length}
        )
        for _ in range(3):
            stream.say(b"x" * 500)
        while stream.step():
            pass
        assert stream.status == 413
    answer = served.alice.request(
        "POST", f"{SESSION}/jobs", b"{}", headers={"content-type": "application/json", "content-length": "-5"}
    )
    assert answer.status == 413


def test_bodies_that_come_at_once(serve: Serve) -> None:
    """All bodies under way may have so many bytes, and those of one identity: what is more is told to come again."""
    served = serve(limits=ServerLimits(body=1000, bodies=2500, bodies_each=1500))
    kind = {"content-type": "application/json"}

    def begun(client: Client, size: int) -> Open:
        before = served.server.bodies.size
        stream = client.begin("POST", f"{SESSION}/find", kind)
        stream.say(b" " * size)
        until(lambda: stream.future is None or stream.future.done() or served.server.bodies.size > before)
        return stream

    def end(stream: Open, last: bytes = b"{}") -> tuple[int, str]:
        stream.say(last, more=False)
        while stream.step():
            pass
        return stream.status, stream.headers.get("retry-after", "")

    first, second = begun(served.alice, 900), begun(served.alice, 500)
    assert end(begun(served.alice, 200)) == (503, "5")
    hers = begun(served.bob, 900)
    assert end(begun(served.root, 300)) == (503, "5")
    assert [end(stream)[0] for stream in (first, second, hers)] == [200] * 3
    gone = begun(served.alice, 900)
    gone.leave()
    while gone.step():
        pass
    assert served.server.bodies.size == 0
    assert end(begun(served.alice, 990)) == (200, "")


def test_a_body_that_does_not_come(serve: Serve) -> None:
    """Who begins a request and does not end it is told so after a while; who goes away is forgotten."""
    served = serve(limits=ServerLimits(body_seconds=0.02))
    stream = served.alice.begin("POST", f"{SESSION}/jobs", {"content-type": "application/json"})
    stream.say(b"{")
    while stream.step():
        pass
    assert stream.status == 408
    gone = served.alice.begin("POST", f"{SESSION}/jobs", {"content-type": "application/json"})
    gone.leave()
    while gone.step():
        pass
    assert gone.cut


def test_rates(serve: Serve) -> None:
    """Each identity has its own allowance; who uses it up is told when to come again."""
    served = serve(limits=ServerLimits(rate=0.001, burst=3))
    statuses = [served.alice.get(f"{API}/info").status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert 0 < int(served.alice.get(f"{API}/info").headers["retry-after"]) <= 1001
    assert served.bob.get(f"{API}/info").status == 200


def test_an_allowance_comes_back(serve: Serve) -> None:
    """It grows with time."""
    served = serve(limits=ServerLimits(rate=10_000, burst=1))
    assert [served.alice.get(f"{API}/info").status for _ in range(20)].count(200) > 5


# -- other sites --


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://server"}, 200),
        ({"origin": "https://server"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://server.evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ],
)
def test_pages_of_other_sites(serve: Serve, headers: dict[str, str], status: int) -> None:
    """A browser that shows somebody else's page does nothing here for whoever sits before it."""
    assert serve().alice.get(f"{API}/info", headers=headers).status == status


def test_names_that_lead_here(serve: Serve) -> None:
    """Where names are given, a request by another name is refused."""
    served = serve(hosts=["localhost", "127.0.0.1", "[::1]"])
    for host, status in (
        ("localhost", 200), ("localhost:8080", 200), ("LOCALHOST:1", 200), ("127.0.0.1:80", 200), ("[::1]:80", 200),
        ("[::1]", 200), ("evil.example", 403), ("localhost.evil.example:8080", 403), ("", 403),
    ):  # fmt: skip
        assert served.alice.get(f"{API}/info", headers={"host": host}).status == status, host


def test_answers_for_browsers(serve: Serve) -> None:
    """No answer is kept, guessed at, or shown in another page; also not one that is an error."""
    served = serve()
    for answer in (served.alice.get(f"{API}/docs"), served.open.get(f"{API}/info"), served.alice.get("/nothing")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


# -- what there is not --


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", f"{API}", 404), ("GET", f"{API}/", 404), ("GET", f"{API}/info/", 404),
        ("POST", f"{API}/info", 405), ("DELETE", f"{SESSION}/jobs", 405), ("PATCH", f"{API}/jobs/x", 405),
        ("BREW", f"{API}/info", 405), ("GET", f"{API}/jobs/a/b/c", 404), ("GET", f"{API}/jobs/../info", 405),
        ("GET", f"{API}/jobs//output/stdout", 404), ("OPTIONS", f"{API}/info", 405), ("GET", "//etc/passwd", 404),
    ],
)  # fmt: skip
def test_what_there_is_not(serve: Serve, method: str, path: str, status: int) -> None:
    """Errors of addresses and methods have the same form as all others."""
    answer = serve().alice.request(method, path)
    assert answer.error == (status, "InvalidArgumentError")


BODIES = st.one_of(
    st.binary(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["jobs", "template", "key", "ids", "indexes", "remoteCommand"]), inner)
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
)
REQUESTS = st.tuples(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD"]),
    st.sampled_from(ENDPOINTS),
    st.lists(st.text(max_size=8), min_size=4, max_size=4),
    st.text(max_size=12),
)


@settings(max_examples=200)
@given(request=REQUESTS, body=BODIES)
def test_nothing_makes_it_stumble(shared: Client, request: Any, body: bytes) -> None:
    """Whatever is sent, the answer is no mistake of the server."""
    method, endpoint, parts, query = request
    left = iter(parts)
    path = re.sub(r"\{\w+\}", lambda _: quote(next(left) or "x", safe=""), endpoint.path)
    target = f"{API}{path}?wait=0&cursor={quote(query)}&offset={quote(query)}"
    answer = shared.request(method, target, body, headers={"content-type": "application/json"})
    assert answer.status < 500, answer.body


def test_what_is_possible_instead(serve: Serve) -> None:
    """Allow names every method of a path."""
    answer = serve().alice.request("PATCH", f"{API}/jobs/x")
    assert {*answer.headers["allow"].split(", ")} == {"GET", "HEAD", "DELETE"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One client for many requests."""
    served = Served(tmp_path_factory.mktemp("shared"), FakeContext, limits=ServerLimits(rate=1e9, burst=1 << 40))
    yield served.alice
    served.stop()


# -- what is logged and counted --


def test_every_request_is_logged_without_secrets(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Who, what, how it went: one line. Tokens, passwords, queries, bodies and environments are not in it."""
    caplog.set_level(logging.DEBUG)
    served = serve()
    served.identities.set_password("bob", PASSWORD)
    submit(served.alice, {"remoteCommand": "x", "jobEnvironment": {"SECRET": "hidden"}, "args": ["hidden"]})
    served.open.with_headers(authorization=basic("bob", PASSWORD)).get(f"{API}/info?token=hidden")
    served.open.with_headers(authorization="Bearer hidden").get(f"{API}/info")
    lines = [record.getMessage() for record in caplog.records if record.name == "wfl.server"]
    assert [line.split(" ")[:5] for line in lines] == [
        ["192.0.2.1", "alice", "POST", f"{SESSION}/jobs", "200"],
        ["192.0.2.1", "bob", "GET", f"{API}/info", "200"],
        ["192.0.2.1", "-", "GET", f"{API}/info", "401"],
    ]
    for secret in ("hidden", PASSWORD, served.tokens["alice"], base64.b64encode(f"bob:{PASSWORD}".encode()).decode()):
        assert secret not in caplog.text


def test_a_line_stays_a_line(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody writes lines of their own into the log."""
    caplog.set_level(logging.INFO)
    served = serve()
    stream = served.alice.begin("GET", f"{API}/jobs/a", {})
    stream.say(b"", more=False)
    while stream.step():
        pass
    served.alice.request("EVIL\nGET", f"{API}/jobs/a%0ab")
    for record in caplog.records:
        assert "\n" not in record.getMessage()
        assert "EVIL" not in record.getMessage()


def test_probes_are_not_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """They come every few seconds."""
    caplog.set_level(logging.INFO)
    served = serve()
    caplog.clear()
    served.open.get("/healthz")
    assert not [record for record in caplog.records if record.name == "wfl.server"]


def test_metrics(serve: Serve) -> None:
    """Jobs, submissions, requests and times are counted, in Prometheus' form; not for everybody unless told so."""
    served = serve()
    started(served.alice, "stay")
    submit(served.alice, {"remoteCommand": ""})
    served.alice.get(f"{API}/jobs/nothing")
    assert served.open.get("/metrics").status == 401
    answer = served.bob.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    assert 'wfl_jobs{state="running"} 1\n' in text
    assert "# HELP wfl_requests_waiting Requests that run in a thread" in text
    assert "\nwfl_draining 0\n" in text
    assert 'wfl_submissions_total{result="accepted"} 1\n' in text
    assert 'wfl_submissions_total{result="refused"} 1\n' in text
    route = f"{API}/jobs/{{id}}"
    assert f'wfl_requests_total{{method="GET",route="{route}",status="404"}} 1\n' in text
    assert f'wfl_request_seconds_bucket{{route="{route}",le="+Inf"}} 1\n' in text
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) .+|[a-z_]+(\{[^{}]*(\{\w+\}[^{}]*)*\})? -?[0-9.e+-]+", line), line
    assert serve(open_metrics=True).open.get("/metrics").status == 200
