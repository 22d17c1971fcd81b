"""What comes back from a job's pod: its log, what it writes to files, and what it was to leave behind."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wfl.contexts.kubernetes import facts, files
from wfl.contexts.kubernetes.client import REQUESTS, NotThereError
from wfl.contexts.kubernetes.output import Output
from wfl.contexts.spool import OutputFile
from wfl.errors import DrmCommunicationError, InvalidStateError, WflError
from wfl.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wfl.backend import Stream
    from wfl.contexts.kubernetes.client import Client
    from wfl.contexts.kubernetes.jobs import Task

    Object = Mapping[str, Any]

TRIES = 5
"""Times that files of an ended job are asked for before it ends without them."""
AGAIN = 1.0
"""Seconds before a log that broke off is followed again."""
FOLLOWERS = 6
"""Jobs whose output is followed at once though nobody reads it, each by a thread: nodes forget what is above 10 MiB.
That of more is read at their ends, unless somebody does."""
PEEK = 0.5
"""Shortest pause in seconds between two commands in a pod that read what it writes to a file."""
LOOK = 0.01
"""Seconds between two looks at whether what is followed has ended, which takes a second at most."""
SHORT = 1 << 20
"""Bytes of output for which no node begins a new file."""


class Results:
    """Of one session; files of this side are in a directory of their own until it is closed."""

    def __init__(self, client: Client, shell: str, closed: threading.Event) -> None:
        """`shell` is the one in the container for files."""
        self._client, self._shell, self._closed = client, shell, closed
        self._lock = threading.Lock()
        self._reading = [threading.Lock() for _ in range(REQUESTS)]  # each for some tasks
        self._followed = 0
        self._numbers = itertools.count(1)
        self._place: Path | None = None

    def read(self, task: Task, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """At most `limit` bytes from `offset`, and whether that is the end for now."""
        if stream in task.job.streams:
            return self._read_file(task, stream, offset, limit)
        if stream == "stderr":  # in the log, as standard output
            return b"", True
        output = self._whole(task) if task.over or task.finishing else self._follow(task)
        try:
            data = output.read(offset, limit)
        except InvalidStateError:
            if task.output is output:
                raise
            data = self._whole(task).read(offset, limit)  # it has just ended, and was read anew
        return data, len(data) < limit

    def _read_file(self, task: Task, stream: Stream, offset: int, limit: int) -> tuple[bytes, bool]:
        """Of a stream that is written to a file: from what was fetched, or while it runs by a command in its pod."""
        if task.over:
            if stream not in task.streams:
                raise InvalidStateError(f"{task.id}: its {stream} is gone: its pod ended before it was fetched")
            data = task.streams[stream].read(offset, limit)
            return data, len(data) < limit
        if time.monotonic() - task.peeked < PEEK:
            return b"", True
        found: list[bytes] = []
        command = f"tail -c +{offset + 1} {task.job.streams[stream]} | head -c {limit}"
        with suppress(NotThereError, InvalidStateError):  # it is just ending
            self._client.exec(task.pod or "", files.OUT, [self._shell, "-c", command], output=found.append)
        data = b"".join(found)
        if len(data) < limit:
            task.peeked = time.monotonic()
        return data, len(data) < limit

    def begin(self, task: Task) -> None:
        """It runs now: follow its log, if there are not too many."""
        if self._followed < FOLLOWERS and self._is_logged(task):
            self._follow(task)

    def _follow(self, task: Task) -> Output:
        """The output of what runs, as it comes."""
        with self._lock:
            if task.output is None:
                task.output = self._output(task)
            if not (task.busy or task.whole):
                task.busy = True
                threading.Thread(target=self._fill, args=(task, task.output), name="wfl-output", daemon=True).start()
            return task.output

    def _output(self, task: Task) -> Output:
        return Output(self._client, self.directory(), f"{task.id}-{next(self._numbers)}")

    def _fill(self, task: Task, output: Output) -> None:
        """While it runs; what is left when this breaks off is read at its end."""
        with self._lock:
            self._followed += 1
        try:
            while task.output is output and not (self._closed.is_set() or task.over or task.finishing):
                output.fill(task.pod or "", follow=True)
                if output.error is None:
                    task.whole = task.output is output
                if not isinstance(output.error, DrmCommunicationError):
                    break
                self._closed.wait(AGAIN)
        finally:
            with self._lock:
                self._followed -= 1
                task.busy = False

    def _whole(self, task: Task) -> Output:
        """The whole output of what has ended. Raises why it cannot be had.

        What is followed ends a second late. Where it is too short for the node to have begun a new file, the log is
        read anew instead; it is of no use then if the pod is gone meanwhile.
        """
        with self._reading[hash(task.id) % len(self._reading)]:
            return self._read_whole(task)

    def _read_whole(self, task: Task) -> Output:
        output = task.output
        if output is not None and task.busy and output.size >= SHORT:
            self._await(task, output)
        if output is None or not task.whole:
            fresh = self._output(task)
            fresh.fill(task.pod or "", follow=False)
            if fresh.error is None or output is None:
                output = self._instead(task, fresh)
            elif isinstance(fresh.error, NotThereError):  # then what was followed is all that there is
                self._await(task, output)
            else:
                raise fresh.error
        if isinstance(output.error, NotThereError):
            raise InvalidStateError(f"{task.id}: its output is gone: its pod was removed")
        if output.error is not None:
            raise output.error
        return output

    def _instead(self, task: Task, output: Output) -> Output:
        with self._lock:
            before, task.output = task.output, output
            task.whole = output.error is None
        if before is not None:
            before.remove()
        return output

    def _await(self, task: Task, output: Output) -> None:
        """Until it has been followed to its end."""
        come, since = output.size, time.monotonic()
        while task.busy:
            time.sleep(LOOK)
            if output.size != come:
                come, since = output.size, time.monotonic()
            elif time.monotonic() - since > self._client.place.timeout:
                raise DrmCommunicationError(f"{self._client.url}: the output of {task.id} has stopped coming")

    def drop(self, task: Task) -> None:
        """It begins anew: what it wrote before is of no use."""
        with self._lock:
            for output in (task.output, *task.streams.values()):
                if output is not None:
                    output.remove()
            task.output, task.streams, task.whole = None, {}, False

    def bring_back(self, task: Task, pod: Object, *, going: bool) -> str | None:
        """Output and stage_out_files; what went wrong, in words."""
        trouble: str | None = None
        try:
            trouble = self._fetch(task, pod)
            trouble = self._write_output(task, keep=going) or trouble
        except DrmCommunicationError as error:
            task.tries += 1
            if task.tries < TRIES:
                raise
            trouble = f"its output and files cannot be had: {error}"
        except (WflError, OSError) as error:
            trouble = f"its output and files cannot be had: {error}"
        return None if task.killed else trouble

    def _fetch(self, task: Task, pod: Object) -> str | None:
        """What waits in the pod for being fetched; what went wrong, in words."""
        name, begun = pod["metadata"]["name"], facts.started(pod)
        if not facts.waits(pod, files.OUT):
            lost = begun and (task.job.fetched or task.job.streams)
            return "its files were not fetched before its pod ended" if lost else None
        trouble = None
        if begun:
            trouble = self._fetch_streams(task, name)
            trouble = files.fetch(self._client, name, task.job.wanted(task), shell=self._shell) or trouble
        files.done(self._client, name, shell=self._shell)
        return trouble

    def let_go(self, pod: Object) -> None:
        """Nothing is wanted of this pod: it need not wait."""
        if facts.waits(pod, files.OUT):
            with suppress(WflError):
                files.done(self._client, pod["metadata"]["name"], shell=self._shell)

    def _fetch_streams(self, task: Task, pod: str) -> str | None:
        """Take in what has been written to files so far."""
        places = {stream: self.directory() / f"{task.id}.{stream}" for stream in task.job.streams}
        wanted = {str(place): task.job.streams[stream] for stream, place in places.items()}
        trouble = files.fetch(self._client, pod, wanted, shell=self._shell)
        task.streams = {stream: OutputFile(place) for stream, place in places.items()}
        return trouble

    def _write_output(self, task: Task, *, keep: bool) -> str | None:
        """Write output_path and error_path; with `keep`, have the log here before its pod is gone. What went wrong."""
        written: str | None = None
        try:
            if (keep or task.file("stdout")) and self._is_logged(task):
                output: Output | OutputFile = self._whole(task)
                if written := task.file("stdout"):
                    output.copy_to(written)
            for stream, output in task.streams.items():
                if written := task.file(cast("Stream", stream)):
                    output.copy_to(written)
        except DrmCommunicationError:
            raise
        except (WflError, OSError) as error:
            return f"its output cannot be written: {error}" if written or task.file("stdout") else None
        return None

    @staticmethod
    def _is_logged(task: Task) -> bool:
        """Whether its output is in the pod's log, and anybody may want it."""
        return bool(task.pod) and "stdout" not in task.job.streams and not task.discards("stdout")

    def keep(self, tasks: Iterable[Task]) -> None:
        """What these have written to files is taken in now: they are killed, and their pods gone in a second."""

        def keep(task: Task) -> None:
            with suppress(WflError, OSError):
                self._fetch_streams(task, task.pod or "")

        in_threads(keep, [task for task in tasks if task.begun and task.job.streams], REQUESTS, "wfl-kubernetes-keep")

    def save(self, tasks: Iterable[Task]) -> None:
        """What these have written until now is kept where it is wanted: in its files."""
        wanted = [task for task in tasks if task.begun and (task.file("stdout") or task.file("stderr"))]

        def save(task: Task) -> None:
            with suppress(WflError, OSError):
                if task.job.streams:
                    self._fetch_streams(task, task.pod or "")
                self._write_output(task, keep=False)

        in_threads(save, wanted, REQUESTS, "wfl-kubernetes-close")

    def directory(self) -> Path:
        """Where files of this side are."""
        if self._place is None:
            self._place = Path(tempfile.mkdtemp(prefix="wfl-"))
        return self._place

    def remove(self) -> None:
        """Remove all of them."""
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
