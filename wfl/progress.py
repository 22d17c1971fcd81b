"""The live line of `synchronize(progress=True)`: how many are done, run, wait and failed; rate and time left.

Drawn by tqdm (extra `progress`), in a terminal or a notebook; nothing is drawn elsewhere.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wfl.drmaa2 import JobState
from wfl.errors import TimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wfl.session import JobSession
    from wfl.task import Task

REFRESH = 0.2
"""Seconds between two looks at the ledger."""


def show(session: JobSession, tasks: Sequence[Task], timeout: float | None) -> None:
    """Wait for all as `session.wait` does, with a line that tells how far they are."""
    bar = _bar(len(tasks))
    if bar is None:
        session.wait(tasks, timeout)
        return
    end = None if timeout is None else session.clock.now() + timeout
    with bar:
        while True:
            left = REFRESH if end is None else min(REFRESH, max(0.0, end - session.clock.now()))
            try:
                session.wait(tasks, left)
            except TimeoutError:
                if end is not None and session.clock.now() >= end:
                    raise
                _draw(bar, tasks)
            else:
                _draw(bar, tasks)
                return


def _bar(total: int) -> Any:
    """A tqdm bar, None where nobody would see it."""
    notebook = "ipykernel" in sys.modules
    if not notebook and not sys.stderr.isatty():
        return None
    try:
        tqdm = import_module("tqdm.notebook" if notebook else "tqdm").tqdm
    except ImportError:
        logging.getLogger("wfl").warning("progress needs tqdm: pip install 'wfl-sdk[progress]'")
        return None
    return tqdm(total=total, unit="task", dynamic_ncols=True)


def _draw(bar: Any, tasks: Sequence[Task]) -> None:
    states = Counter(task._record.state for task in tasks)
    failed, running = states[JobState.FAILED], states[JobState.RUNNING] + states[JobState.SUSPENDED]
    bar.n = states[JobState.DONE] + failed
    bar.set_postfix(running=running, queued=len(tasks) - bar.n - running, failed=failed, refresh=False)
    bar.refresh()
