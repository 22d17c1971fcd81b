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
from wfl.contexts.kubernetes.answers import PASSING
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

LONG, BRIEFLY = 600.0, 5.0
"""Seconds that output and files of an ended job are asked for, and of a killed one, before it ends without them."""
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
SAVING = 10.0
"""Seconds for reading what a job has written that still runs when the session is closed."""


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
        lives = not (task.over or task.finishing)
        output = self._follow(task) if lives else self._whole(task)
        try:
            data = output.read(offset, limit)
        except InvalidStateError:
            if task.output is output:
                raise
            data = self._whole(task).read(offset, limit)  # it has just ended, and was read anew
        if lives and not data and not task.busy and (error := _lasting(output)) is not None:
            raise error
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
            if not (task.busy or task.whole or _lasting(task.output)):
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
                if not isinstance(output.error, PASSING):
                    break
                self._closed.wait(AGAIN)
        finally:
            with self._lock:
                self._followed -= 1
                task.busy = False

    def _whole(self, task: Task) -> Output:
        """The whole output of what has ended. Raises why it cannot be had.

        What is followed ends a second late. Where it is too short for the node to have begun a new file, the log is
        read anew instead; it is of no use then if the pod is gone meanwhile. Where it is longer, the node may have no
        more than the end of it: then what was followed is read on.
        """
        with self._reading[hash(task.id) % len(self._reading)]:
            return self._read_whole(task)

    def _read_whole(self, task: Task) -> Output:
        output = task.output
        if output is not None and output.size >= SHORT:
            self._await(task, output)
            self._read_on(task, output)
            if task.whole or isinstance(output.error, (*PASSING, NotThereError)):
                return _had(task, output)
        if output is None or not task.whole:
            fresh = self._output(task)
            fresh.fill(task.pod or "", follow=False)
            if fresh.error is None or output is None:
                output = self._instead(task, fresh)
            elif isinstance(fresh.error, NotThereError):  # then what was followed is all that there is
                self._await(task, output)
            else:
                raise fresh.error
        return _had(task, output)

    def _read_on(self, task: Task, output: Output) -> None:
        """What was followed, unless all of it is here."""
        if not task.whole:
            output.fill(task.pod or "", follow=False)
            with self._lock:
                task.whole = output.error is None and task.output is output

    def _so_far(self, task: Task) -> Output:
        """What has come of the output of what still runs: its end is not waited for. Raises why there is nothing."""
        followed = task.output
        if followed is not None and followed.size >= SHORT:
            return followed
        fresh = self._output(task)
        threading.Thread(target=fresh.fill, args=(task.pod or "", False), name="wfl-output", daemon=True).start()
        fresh.complete.wait(SAVING)  # of what writes fast enough there is always more
        output = fresh if followed is None or fresh.size >= followed.size else followed
        if fresh.error is not None and not output.size:
            raise fresh.error
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
        except PASSING as error:
            task.troubled = task.troubled or time.monotonic()
            if time.monotonic() - task.troubled < (BRIEFLY if task.killed else LONG):
                raise
            trouble = f"its output and files cannot be had: {error}"
        except (WflError, OSError) as error:
            trouble = f"its output and files cannot be had: {error}"
        return None if task.killed else trouble

    def _fetch(self, task: Task, pod: Object) -> str | None:
        """What waits in the pod for being fetched; what went wrong, in words."""
        name, begun = pod["metadata"]["name"], facts.started(pod)
        if not facts.waits(pod, files.OUT):
            lost = begun and (task.job.fetched or task.job.streams) and not facts.went_well(pod, files.OUT)
            return "its files were not fetched before its pod ended" if lost else None
        trouble = None
        if begun:
            trouble = self._fetch_streams(task, name)
            trouble = files.fetch(self._client, name, task.job.wanted(task), shell=self._shell) or trouble
        if trouble is not None:
            pod = self._client.get("pods", name)
            if facts.went_well(pod, files.OUT):  # another program has fetched them meanwhile
                return None
        if not task.job.foreign:
            files.done(self._client, name, shell=self._shell)
        return trouble

    def let_go(self, pod: Object) -> None:
        """Nothing is wanted of this pod: it need not wait."""
        if facts.waits(pod, files.OUT):
            self._done(pod["metadata"]["name"])

    def _done(self, pod: str) -> None:
        with suppress(WflError):
            files.done(self._client, pod, shell=self._shell)

    def _fetch_streams(self, task: Task, pod: str) -> str | None:
        """Take in what has been written to files so far; what went wrong, in words. No file: nothing was written."""
        trouble: str | None = None
        for stream, source in task.job.streams.items():
            place = self.directory() / f"{task.id}.{stream}"
            try:
                files.fetch_file(self._client, pod, source, place, shell=self._shell)
            except PASSING:
                raise
            except (WflError, OSError) as error:
                trouble = trouble or f"its {stream} cannot be fetched: {error}"
            else:
                task.streams = {**task.streams, stream: OutputFile(place)}
        return trouble

    def _write_output(self, task: Task, *, keep: bool) -> str | None:
        """Write output_path and error_path; with `keep`, have the log here before its pod is gone. What went wrong."""
        written: str | None = None
        try:
            if (keep or task.file("stdout")) and self._is_logged(task):
                ends = task.over or task.finishing
                output: Output | OutputFile = self._whole(task) if ends else self._so_far(task)
                if written := task.file("stdout"):
                    output.copy_to(written)
            for stream, output in task.streams.items():
                if written := task.file(cast("Stream", stream)):
                    output.copy_to(written)
        except PASSING:
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

    def take(self, tasks: Iterable[Task]) -> None:
        """The output of those that have just ended, whose pods may go with those of others."""

        def take(task: Task) -> None:
            with suppress(WflError, OSError):
                self._whole(task)

        new = [task for task in tasks if time.monotonic() - task.ended < facts.LATE and self._is_logged(task)]
        in_threads(take, [task for task in new if not task.whole], REQUESTS, "wfl-kubernetes-keep")

    def release(self, tasks: Iterable[Task]) -> None:
        """Nobody fetches from the pods of these any more."""
        waiting = [task.pod or "" for task in tasks if task.job.fetched or task.job.streams]
        in_threads(self._done, waiting, REQUESTS, "wfl-kubernetes-close")

    def save(self, tasks: Iterable[Task]) -> None:
        """What these have written until now is kept where it is wanted: in its files."""
        wanted = [task for task in tasks if task.begun and (task.file("stdout") or task.file("stderr"))]

        def save(task: Task) -> None:
            with suppress(WflError, OSError):
                self._fetch_streams(task, task.pod or "")
            with suppress(WflError, OSError):
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


def _lasting(output: Output) -> Exception | None:
    """What keeps a log from being followed, and will: a right that is missing, a full disk."""
    return None if isinstance(output.error, (*PASSING, InvalidStateError)) else output.error


def _had(task: Task, output: Output) -> Output:
    """It, or why it cannot be had."""
    if isinstance(output.error, NotThereError):
        what = "the rest of its output" if output.size else "its output"
        raise InvalidStateError(f"{task.id}: {what} is gone: its pod was removed")
    if output.error is not None:
        raise output.error
    return output
