"""The job server killed at any moment: what it has answered for is kept, the same request again is the same jobs."""

from __future__ import annotations

import contextlib
import http.client
import random
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.asgi import API, SESSION, until
from tests.faults.machine import kills, seed
from tests.server import Running

if TYPE_CHECKING:
    from pathlib import Path

JOBS = 20
"""In one request."""


def request(mark: Path, number: int) -> dict[str, Any]:
    """Jobs that write down that they have run."""
    line = f'echo "$0" >> {mark}'
    return {
        "jobs": [
            {"key": f"{number}.{n}", "template": {"remoteCommand": "sh", "args": ["-c", line, f"{number}.{n}"]}}
            for n in range(JOBS)
        ]
    }


def ids_of(answer: Any) -> list[str]:
    """Of all jobs, each of which was taken."""
    return [str(job["id"]) for job in answer["jobs"]]


def all_have_run_once(server: Running, mark: Path, ids: list[list[str]]) -> None:
    """Every job is done, and has run once."""
    flat = [id for some in ids for id in some]
    assert len({*flat}) == len(flat)

    def states() -> Counter[str]:
        found = server.request("POST", f"{SESSION}/find", {"ids": flat})[1]
        assert found["gone"] == {"keys": [], "ids": []}
        return Counter(job["info"]["state"] for job in found["jobs"])

    until(lambda: states().keys() <= {"done", "failed"})
    assert states() == {"done": len(flat)}
    assert Counter(mark.read_text().split()) == {f"{a}.{b}": 1 for a in range(len(ids)) for b in range(JOBS)}


@pytest.mark.timeout(600)
def test_killed_after_its_answer(tmp_path: Path) -> None:
    """Whatever it has said that it took is there when the next one comes, and runs once, though it dies at once."""
    mark = tmp_path / "ran"
    with Running(tmp_path / "server", log_level="warning") as server:
        ids = []
        for number in range(kills(6)):
            status, answer = server.request("POST", f"{SESSION}/jobs", request(mark, number))
            server.end(signal.SIGKILL)
            assert status == 200
            ids.append(ids_of(answer))
            server.start()
        all_have_run_once(server, mark, ids)
        assert "Traceback" not in server.log


@pytest.mark.timeout(600)
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """A request that has no answer is sent again, to the next server: its jobs run once each, whatever died when."""
    mark, start = tmp_path / "ran", seed()
    moments = random.Random(start)  # noqa: S311 - moments, no secrets
    print("seed", start)  # noqa: T201 - shown by a test that fails
    with Running(tmp_path / "server", log_level="warning") as server:
        ids = []
        for number in range(kills(8)):
            answered: list[Any] = []

            def ask(number: int = number, answered: list[Any] = answered) -> None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    answered.append(server.request("POST", f"{SESSION}/jobs", request(mark, number)))

            asking = threading.Thread(target=ask)
            asking.start()
            time.sleep(moments.uniform(0.0, 0.08))  # the moment is the test
            server.end(signal.SIGKILL)
            asking.join()
            server.start()
            if number % 2:  # another death before the same request comes again
                server.end(signal.SIGKILL)
                server.start()
            answered += [server.request("POST", f"{SESSION}/jobs", request(mark, number)) for _ in range(2)]
            assert [status for status, _ in answered] == [200] * len(answered)
            ids.append(ids_of(answered[-1][1]))
            assert all(ids_of(answer) == ids[-1] for _, answer in answered)
        all_have_run_once(server, mark, ids)
        assert server.request("GET", f"{API}/sessions")[1]["sessions"][0]["jobs"] == len(ids) * JOBS
        assert "Traceback" not in server.log
