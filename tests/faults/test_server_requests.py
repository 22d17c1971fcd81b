"""Thousands of requests made of the job server's own description: none makes it stumble, or starts what it must not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.asgi import API, SESSION, until
from tests.server import Running, token_for
from wfl.server.routes import ENDPOINTS

REQUESTS = int(os.environ.get("WFL_REQUESTS", "10000"))
"""How many are sent with a token."""
SEED = os.environ.get("WFL_FAULTS_SEED", "7")
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance",
)  # fmt: skip
"""What every answer is looked at for: no 5xx, and nothing but what the description says."""
ALLOWED = "allowed"
"""The one command that may be run there."""


def send(server: Running, directory: Path, *options: str, each: int, known: dict[str, list[str]]) -> None:
    """Have schemathesis make requests of the description, `each` for an operation. It fails with what it found.

    `known`: parameters with the only values that they have: what is really there.
    """
    if not (directory / "openapi.json").exists():
        (directory / "openapi.json").write_text(json.dumps(server.request("GET", f"{API}/openapi.json")[1]))
    lines = ["[parameters]", *(f'"{name}" = {values!r}' for name, values in known.items())]
    (directory / "schemathesis.toml").write_text("\n".join(lines) + "\n")
    words = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", directory / "schemathesis.toml", "run",
        directory / "openapi.json", "--url", f"http://127.0.0.1:{server.port}{API}", "--seed", SEED,
        "--max-examples", str(each), "--phases", "coverage,fuzzing", "--no-shrink",
        "--continue-on-failure", "--generation-database", "none",
        "--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off", *options,
    ]  # fmt: skip
    done = subprocess.run([*map(str, words)], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


def accepted(server: Running) -> int:
    """How many jobs it has taken."""
    text = server.request("GET", "/metrics")[1].decode()
    found = re.search(r'wfl_submissions_total\{result="accepted"\} (\d+)', text)
    return int(found[1]) if found else 0


@pytest.fixture
def server(tmp_path: Path) -> Running:
    """One that takes many requests, and lets only one command be run; the caller ends it."""
    bounds = ("wait=0.01", "heartbeat=0.05", "rate=1000000", "burst=10000000", "passwords=1000000", "header_seconds=60")
    limits = [word for one in bounds for word in ("--limit", one)]
    return Running(tmp_path / "server", *limits, "--allow-command", ALLOWED, context="fake")


@pytest.mark.timeout(1800)
def test_requests_of_the_description(server: Running, tmp_path: Path) -> None:
    """Ten thousand requests with a token: no 5xx, no traceback, and no job of a command that is not allowed."""
    with server:
        jobs = [server.start_job(ALLOWED, key=str(number)) for number in range(20)]
        uploads = [server.request("POST", f"{SESSION}/uploads", {})[1]["upload"] for _ in range(20)]
        token = ("-H", f"Authorization: Bearer {server.token}", "-c", ",".join(CHECKS))
        send(server, tmp_path, *token, each=REQUESTS * 6 // len(ENDPOINTS) // 10, known={})
        known = {"path.id": jobs, "path.upload": uploads, "path.session": ["s"]}
        send(server, tmp_path, *token, each=REQUESTS * 6 // len(ENDPOINTS) // 10, known=known)
        statuses = server.statuses()
        assert len(statuses) >= REQUESTS
        assert not [status for status in statuses if status >= 500]
        assert 200 in statuses
        for session in server.request("GET", f"{API}/sessions")[1]["sessions"]:
            ids = [job["id"] for job in server.request("GET", f"{API}/sessions/{session['session']}/jobs")[1]["jobs"]]
            for id in ids:
                assert server.request("GET", f"{API}/jobs/{id}")[1]["template"]["remoteCommand"] == ALLOWED
        assert "Traceback" not in server.log
        assert server.end() == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "revoked"])
def test_requests_without_rights(server: Running, tmp_path: Path, authorization: str | None) -> None:
    """Without a token, with a wrong one or one that was taken back, everything is refused, and nothing starts."""
    with server:
        if authorization == "revoked":
            authorization = f"Bearer {token_for(server.directory, 'bob')}"
            headers = {"Authorization": authorization}
            revoke = [
                sys.executable,
                "-m",
                "wfl.server",
                "token",
                "revoke",
                "bob",
                "--directory",
                str(server.directory),
            ]
            subprocess.run(revoke, check=True)
            until(lambda: server.request("GET", f"{API}/info", headers=headers)[0] == 401)
        before = len(server.statuses("-"))
        given = () if authorization is None else ("-H", f"Authorization: {authorization}")
        words = ["-c", "not_a_server_error,status_code_conformance", *given]
        send(server, tmp_path, *words, each=max(1, REQUESTS // len(ENDPOINTS) // 20), known={})
        refused = server.statuses("-")[before:]
        assert {*refused} <= {400, 401, 413, 414, 431}
        assert len(refused) >= REQUESTS // 20
        assert accepted(server) == 0
        assert server.request("GET", f"{API}/sessions")[1] == {"sessions": []}
        assert "Traceback" not in server.log
        assert server.end() == 0
