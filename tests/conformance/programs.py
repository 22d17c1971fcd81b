"""Programs that a case starts, kills and asks: scripts of wfl in interpreters of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wfl import Context
    from wfl.testing.conformance.site import Site

_BEGIN = """\
import sys
from wfl import *
from wfl.testing.conformance.programs import maker
open_context = maker({name!r})
arguments = sys.argv[1:]
def say(*words):
    print(*words, flush=True)
"""


def hear_signals() -> None:
    """Undo the deafness of what was started by `&` or nohup, which all programs that it starts would inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # still deaf itself, but what it starts is not


def maker(name: str) -> Callable[..., Context]:
    """In such a program: the function "package.module:attribute" that makes contexts (of a Site: its factory)."""
    module, _, attribute = name.partition(":")
    found: Any = import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return partial(getattr(found, "context", found))


class Program:
    """A running program; what it says, line by line, can be waited for."""

    def __init__(self, site: Site, source: str, path: Path, arguments: Iterable[object]) -> None:
        self._site = site
        path.write_text(_BEGIN.format(name=site.program) + source)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)}
        env.pop("COVERAGE_PROCESS_START", None)
        self._errors = path.with_suffix(".err")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(path), *map(str, arguments)],
                env=env,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                process_group=0,
            )
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, idle: float = 60.0) -> str:
        """The next line that it says."""
        try:
            line = self._lines.get(timeout=self._site.seconds(idle))
        except Empty:
            pytest.fail(f"the program says nothing; its error output: {self.errors()}")
        if line is None:
            pytest.fail(f"the program has ended; its error output: {self.errors()}")
        return line

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send it a signal; with `group` to its process group, as a terminal does."""
        if group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def wait(self, idle: float = 60.0) -> int:
        """Wait for its end; its exit status."""
        try:
            return self._process.wait(self._site.seconds(idle))
        except subprocess.TimeoutExpired:
            pytest.fail(f"the program does not end; its error output: {self.errors()}")

    def errors(self) -> str:
        """Its error output so far."""
        return self._errors.read_text()

    def clean(self) -> None:
        """End it and close its pipe."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(self._site.seconds(10))
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()
