"""What the server counts, in the text format that Prometheus reads. Kept on the event loop alone."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds."""
MEDIA = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Requests by method, route and status; times by route; submissions by how they went."""

    def __init__(self) -> None:
        self._started = time.time()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._times: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self._submissions: Counter[str] = Counter()
        self.streams = 0

    def request(self, method: str, route: str, status: int, seconds: float, *, stream: bool) -> None:
        """One was answered; the time of a stream says nothing."""
        self._requests[method, route, status] += 1
        if stream:
            return
        buckets = self._times.setdefault(route, [0] * (len(BUCKETS) + 1))
        buckets[next((number for number, limit in enumerate(BUCKETS) if seconds <= limit), len(BUCKETS))] += 1
        self._sums[route] = self._sums.get(route, 0.0) + seconds

    def submitted(self, accepted: int, refused: int) -> None:
        """So many jobs were submitted."""
        self._submissions["accepted"] += accepted
        self._submissions["refused"] += refused

    def text(self, states: Mapping[str, int], *, waiting: int, draining: bool) -> str:
        """All of it, with the jobs by state, and what else is known elsewhere."""
        lines = [
            *_family("wfl_jobs", "gauge", "Jobs that the server knows.", _by("state", states)),
            *_family("wfl_submissions_total", "counter", "Jobs submitted.", _by("result", self._submissions)),
            *_family("wfl_requests_total", "counter", "Requests answered.", self._by_request()),
            *_family("wfl_request_seconds", "histogram", "Time to answer.", self._histogram()),
            *_family("wfl_streams", "gauge", "Clients that wait for events or output.", [("", self.streams)]),
            *_family(
                "wfl_requests_waiting", "gauge", "Requests that run in a thread or wait for one.", [("", waiting)]
            ),
            *_family("wfl_draining", "gauge", "1 while the server is being stopped.", [("", int(draining))]),
            *_family("process_start_time_seconds", "gauge", "When it was started.", [("", self._started)]),
        ]
        return "\n".join([*lines, ""])

    def _by_request(self) -> list[tuple[str, float]]:
        return [
            (f'{{method="{_escaped(method)}",route="{_escaped(route)}",status="{status}"}}', count)
            for (method, route, status), count in sorted(self._requests.items())
        ]

    def _histogram(self) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = []
        for route, counts in sorted(self._times.items()):
            name, total = _escaped(route), 0
            for limit, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
                total += count
                found.append((f'_bucket{{route="{name}",le="{limit}"}}', total))
            found += [(f'_sum{{route="{name}"}}', self._sums[route]), (f'_count{{route="{name}"}}', total)]
        return found


def _by(label: str, values: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(f'{{{label}="{_escaped(name)}"}}', value) for name, value in values.items()]


def _family(name: str, kind: str, about: str, values: Iterable[tuple[str, float]]) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *(f"{name}{labels} {value}" for labels, value in values)]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
