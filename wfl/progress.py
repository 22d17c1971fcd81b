"""The live line of `synchronize(progress=True)`: how many have ended, run, wait and failed; rate and time left.

Drawn by tqdm (extra `progress`), in a terminal or a notebook; nothing is drawn elsewhere.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import suppress
from functools import cache
from importlib import import_module
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from wfl.drmaa2 import JobState
from wfl.log import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wfl.session import JobSession
    from wfl.task import Task

REFRESH = 0.2
"""Seconds between two looks at the ledger."""


def show(session: JobSession, tasks: Sequence[Task], timeout: float | None) -> None:
    """Wait for all as `session.wait` does, with a line that tells how far they are; none if all have ended."""
    bar = _bar(tasks)
    if bar is None:
        session.wait(tasks, timeout)
        return
    over = Event()

    def redraw() -> None:
        while not over.wait(REFRESH):
            _draw(bar, tasks)

    drawer = Thread(target=redraw, name="wfl-progress", daemon=True)
    with bar:
        try:
            drawer.start()
            session.wait(tasks, timeout)
        finally:
            over.set()
            if drawer.is_alive():
                drawer.join()
            _draw(bar, tasks)


def _bar(tasks: Sequence[Task]) -> Any:
    """A tqdm bar, None where nobody would see it or there is nothing to wait for."""
    done, postfix = _count(tasks)
    notebook = _in_notebook()
    terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    if done == len(tasks) or not (notebook or terminal):
        return None
    how = {"total": len(tasks), "initial": done, "postfix": postfix, "unit": "task", "dynamic_ncols": True}
    if notebook:
        with suppress(ImportError):  # no tqdm, or no ipywidgets: a line of text, then
            return _ours(import_module("tqdm.notebook").tqdm)(**how)
    try:
        return _ours(import_module("tqdm").tqdm)(**how)
    except ImportError:
        _tell_missing()
        return None


def _in_notebook() -> bool:
    """Whether this program is a Jupyter kernel; that somebody has imported IPython does not make it one."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _ours(kind: Any) -> Any:
    """This kind of bar without tqdm's own thread, which would stay for as long as the program runs; and several at
    once leave whole lines: one that is closed moves those below up by the line that it has left.
    """

    def close(bar: Any) -> None:
        if bar.disable:
            return
        with bar.get_lock():
            kind.close(bar)
            for other in kind._instances:
                if getattr(other, "pos", 0) > bar.pos:
                    other.pos -= 1

    return type(kind.__name__, (kind,), {"monitor_interval": 0, "close": close})


@cache
def _tell_missing() -> None:
    log.warning("progress needs tqdm: pip install 'wfl-sdk[progress]'")


def _count(tasks: Sequence[Task]) -> tuple[int, str]:
    """How many have ended, and in words what else there is to tell."""
    states = Counter(task._record.state for task in tasks)
    failed, running = states[JobState.FAILED], states[JobState.RUNNING] + states[JobState.SUSPENDED]
    ended = states[JobState.DONE] + failed
    numbers = {"running": running, "queued": len(tasks) - ended - running, "failed": failed}
    return ended, ", ".join(f"{number} {name}" for name, number in numbers.items() if number)


def _draw(bar: Any, tasks: Sequence[Task]) -> None:
    bar.n, postfix = _count(tasks)
    bar.set_postfix_str(postfix, refresh=False)
    bar.refresh()
