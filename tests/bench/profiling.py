"""Where the CPU time goes: one scene under cProfile, in the program's threads and in every keeper."""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.references import BUILD
from wfl.contexts import helper

_BOOT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
report, name = sys.argv.pop(1), sys.argv.pop(1)
import cProfile, importlib, time
script = importlib.import_module(name)
profile = cProfile.Profile(time.thread_time)
try:
    profile.runcall(script.main, sys.argv[1:])
finally:
    profile.dump_stats(report)
"""
SHOWN = 35
"""Functions listed of each."""


def profile(name: str, scene: Callable[[], object]) -> None:
    """Run a scene once and print what its threads and its keepers spent their CPU time on."""
    place = BUILD / "profile" / name
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    with keepers_report_to(place), threads_report_to(place):
        report = cProfile.Profile(time.thread_time)
        report.runcall(scene)
    report.dump_stats(place / "main")
    for kind in ("main", "thread", "keeper"):
        show(kind, sorted(place.glob(f"{kind}*")))
    print(f"the reports are in {place}; CPU time, in seconds, itself slowed by the profiler")


def show(kind: str, reports: list[Path]) -> None:
    """Print the costliest functions of several reports together."""
    if not reports:
        return
    print(f"== {kind}: {len(reports)} of them together")
    stats = pstats.Stats(*map(str, reports))
    stats.strip_dirs().sort_stats("tottime").print_stats(SHOWN)


@contextmanager
def keepers_report_to(place: Path) -> Iterator[None]:
    """Keepers that are started from now on run under cProfile and write a report at their end."""
    original = helper._command  # noqa: SLF001 - the one place where the keeper's command line is made
    started = 0

    def command(script: str, arguments: Sequence[str]) -> list[str]:
        nonlocal started
        started += 1
        room, file = os.path.split(os.path.abspath(script))
        name = os.path.splitext(file)[0]
        report = str(place / f"{name}-{started}")
        return [sys.executable, "-I", "-S", "-c", _BOOT, room, report, name, *arguments]

    helper._command = command  # noqa: SLF001
    try:
        yield
    finally:
        helper._command = original  # noqa: SLF001


@contextmanager
def threads_report_to(place: Path) -> Iterator[None]:
    """Every thread that is started from now on has a profiler of its own (up to Python 3.11: later only one may)."""
    original = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        report = cProfile.Profile(time.thread_time)
        try:
            report.runcall(original, thread)
        finally:
            report.dump_stats(place / f"thread-{thread.name}-{thread.ident}")

    if sys.version_info < (3, 12):
        threading.Thread.run = run  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        threading.Thread.run = original  # type: ignore[method-assign]
