"""A keeper that goes while a program that came back is still reading what it wrote down."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from tests.faults.machine import PATIENCE
from wfl import Workflow
from wfl.contexts.process import ProcessContext, backend
from wfl.drmaa2 import JobState

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_ends_told_while_the_journal_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tasks end, and with them the keeper, between the look at its journal and the next line: none is lost."""
    gate = tmp_path / "gate"
    store = tmp_path / "store"
    monkeypatch.setattr(backend, "KEEPERS", 1)
    with Workflow(ProcessContext(store=store, detach=True)) as flow:
        job = flow.run_array(5, "sh", "-c", 'while [ ! -e "$0" ]; do sleep 0.02; done; exit $TASK_ID', str(gate))
        for task in job.tasks[0].tasks:  # type: ignore[union-attr]
            task.wait_started(PATIENCE)

    at_end, go_on, over = threading.Event(), threading.Event(), threading.Event()
    hear = backend.ProcessBackend._hear  # noqa: SLF001 - between its lines is where this happens

    def hear_slowly(self: backend.ProcessBackend, link: Any) -> None:
        """The keeper's last words are heard at once, that it is gone only once its tasks are known."""
        last = not link.sock.recv(1, socket.MSG_PEEK)
        if last:
            at_end.set()
            assert go_on.wait(PATIENCE)
        hear(self, link)
        if last:
            over.set()

    class Starts(dict[int, list[Any]]):
        """Looked at when the tasks of the journal are known: now the keeper's end is noticed."""

        def items(self) -> Any:
            go_on.set()
            assert over.wait(PATIENCE)
            return super().items()

    class Journal(backend._Journal):  # noqa: SLF001 - as above
        """When it has been read, the tasks end."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.starts = Starts(self.starts)
            gate.touch()
            assert at_end.wait(PATIENCE)

    monkeypatch.setattr(backend.ProcessBackend, "_hear", hear_slowly)
    monkeypatch.setattr(backend, "_Journal", Journal)
    with Workflow(ProcessContext(store=store)) as flow:
        (job,) = flow.jobs()
        assert over.is_set()
        assert [(info.state, info.exit_status) for info in job.infos()] == [(JobState.FAILED, n) for n in range(1, 6)]
