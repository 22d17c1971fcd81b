"""Results: output of a pod that runs, breaks off and ends, as it is read, saved and kept."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from wfl import JobTemplate
from wfl.backend import Stream
from wfl.contexts.kubernetes import results
from wfl.contexts.kubernetes.client import Client, NotThereError
from wfl.contexts.kubernetes.jobs import Job, Task
from wfl.contexts.kubernetes.results import Results
from wfl.contexts.kubernetes.settings import Place
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    ImplementationSpecificError,
    InvalidStateError,
    OutOfResourceError,
    TryLaterError,
    WflError,
)

PATIENCE = 30.0  # seconds that a thread may take on a busy machine
BEGAN = datetime.fromisoformat("2030-01-01T00:00:00+00:00")
LOST = DrmCommunicationError("the connection was cut")
DENIED = DeniedByDrmsError("the right to get pods/log is missing")


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "this did not come"
        time.sleep(0.002)


def text_of(first: int, end: int) -> bytes:
    """These lines of the job's output."""
    return b"".join(b"line %d\n" % number for number in range(first, end))


class Pod:
    """Stands for the client and for a pod, which writes a line a second and a file."""

    url = "https://fake"
    place = Place(timeout=60)

    def __init__(self) -> None:
        self.kept = self.written = 0  # the first line that the node still has, and the one that comes next
        self.broken: Exception | None = None
        self.over = False
        self.endless = False  # there is always more
        self.asked: list[bool] = []  # whether to follow
        self.files: dict[str, bytes] = {}
        self.lost_after: int | None = None  # bytes of a file

    def log(self, pod: str, *, follow: bool = False, since: str | None = None) -> Iterator[bytes]:
        """As the client."""
        assert pod == "pod"
        self.asked.append(follow)
        number = 0 if since is None else (datetime.fromisoformat(since) - BEGAN) // timedelta(seconds=1)
        number = max(number, self.kept)
        while (broken := self.broken) is None:
            if self.endless and not self.over:
                self.written = max(self.written, number + 1)
                time.sleep(0.0001)
            if number < self.written:
                yield f"{BEGAN + timedelta(seconds=number):%Y-%m-%dT%H:%M:%S}.0Z line {number}\n".encode()
                number += 1
            elif self.over or not follow:
                return
            else:
                time.sleep(0.002)
        raise broken

    def exec(
        self, pod: str, container: str, command: Sequence[str], *, output: Callable[[bytes], object]
    ) -> tuple[int, str]:
        """As the client, of what fetches one file."""
        assert (pod, container) == ("pod", "wfl-out")
        if command[-1] not in self.files:
            return 66, ""
        data = self.files[command[-1]]
        output(data[: self.lost_after])
        if self.lost_after is not None:
            raise LOST
        return 0, f"{len(data)}\n"


@pytest.fixture
def pod() -> Iterator[Pod]:
    """It ends with the test."""
    pod = Pod()
    yield pod
    pod.over = True


@pytest.fixture
def site(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> Iterator[Results]:
    """What is looked at; a kilobyte is much here."""
    monkeypatch.setattr(results, "SHORT", 1000)
    monkeypatch.setattr(results, "AGAIN", 0.01)
    closed = threading.Event()
    site = Results(cast("Client", pod), "/bin/sh", closed)
    yield site
    closed.set()
    site.remove()


def running(output_path: Path | None = None, error_path: Path | None = None) -> Task:
    """A task that runs in that pod."""
    template = JobTemplate(remote_command="true", output_path=output_path, error_path=error_path)
    (task,) = Job("k-1", "name", template, None, own=True).tasks.values()
    task.pod, task.begun = "pod", True
    return task


def to_files(*streams: Stream, output_path: Path | None = None, error_path: Path | None = None) -> Task:
    """One that writes these to files."""
    task = running(output_path, error_path)
    task.job.streams = {stream: f"/wfl/streams/{stream}" for stream in streams}
    return task


def followed(site: Results, task: Task, size: int) -> None:
    """Follow it until so much is here."""
    site.begin(task)
    until(lambda: task.output is not None and task.output.size >= size)


def end(task: Task, pod: Pod) -> None:
    """It ends while its log cannot be had; when nobody follows it, it can be had again."""
    pod.broken = LOST
    until(lambda: task.output is not None and task.output.error is LOST)
    task.finishing = pod.over = True
    until(lambda: not task.busy)
    pod.broken = None
    pod.asked.clear()


def whole(site: Results, task: Task) -> bytes:
    """All that is read of it."""
    return site.read(task, "stdout", 0, 1 << 20)[0]


# --- what broke off ---------------------------------------------------------------------------------------


def test_a_long_output_is_read_on(site: Results, pod: Pod) -> None:
    """The node has begun a new file and has its end alone: what was followed before is not thrown away for that."""
    task, pod.written = running(), 900
    followed(site, task, len(text_of(0, 900)))
    end(task, pod)
    pod.kept, pod.written = 600, 1000
    assert whole(site, task) == text_of(0, 1000)
    assert whole(site, task) == text_of(0, 1000)
    assert pod.asked == [False]


def test_a_short_output_is_read_anew(site: Results, pod: Pod) -> None:
    """Its node has all of it."""
    task, pod.written = running(), 50
    followed(site, task, len(text_of(0, 50)))
    before = task.output
    end(task, pod)
    pod.written = 60
    assert whole(site, task) == text_of(0, 60)
    assert task.output is not before


def test_a_long_output_that_breaks_off_again(site: Results, pod: Pod) -> None:
    """That is told, and what was followed stays for the next try."""
    task, pod.written = running(), 900
    followed(site, task, len(text_of(0, 900)))
    end(task, pod)
    pod.broken, pod.kept, pod.written = LOST, 600, 1000
    for _ in range(2):
        with pytest.raises(DrmCommunicationError, match="was cut"):
            whole(site, task)
    pod.broken = None
    assert whole(site, task) == text_of(0, 1000)


def test_a_long_output_whose_pod_is_gone(site: Results, pod: Pod) -> None:
    """Half of it is not called all of it."""
    task, pod.written = running(), 900
    followed(site, task, len(text_of(0, 900)))
    end(task, pod)
    pod.broken = NotThereError("pod not found")
    with pytest.raises(InvalidStateError, match="k-1: the rest of its output is gone: its pod was removed"):
        whole(site, task)


def test_a_long_output_that_cannot_be_read_on(site: Results, pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the node says something else than output at that place, it is read anew."""
    task, pod.written = running(), 900
    followed(site, task, len(text_of(0, 900)))
    end(task, pod)
    told = pod.log

    def strange(pod: str, *, follow: bool = False, since: str | None = None) -> Iterator[bytes]:
        yield from told(pod, follow=follow, since=since) if since is None else (b"no such file\n",)

    monkeypatch.setattr(pod, "log", strange)
    assert whole(site, task) == text_of(0, 900)


def test_a_server_with_too_much_to_do_is_asked_again(site: Results, pod: Pod) -> None:
    """That passes, and nothing is missed."""
    task, pod.written, pod.broken = running(), 9, TryLaterError("too many requests")
    site.begin(task)
    until(lambda: len(pod.asked) > 2)
    assert site.read(task, "stdout", 0, 100) == (b"", True)
    pod.broken = None
    until(lambda: whole(site, task) == text_of(0, 9))


# --- what cannot be followed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [DENIED, OutOfResourceError("the disk is full"), ImplementationSpecificError("words of the node")]
)
def test_what_stays_wrong_is_told_and_not_tried_again(site: Results, pod: Pod, error: WflError) -> None:
    """What has come can be read; at its end is the error, for one request. After the job's end it is tried afresh."""
    task, pod.written = running(), 9
    followed(site, task, len(text_of(0, 9)))
    pod.broken = error
    until(lambda: not task.busy)
    for _ in range(20):
        assert whole(site, task) == text_of(0, 9)
        with pytest.raises(type(error), match=str(error)):
            site.read(task, "stdout", len(text_of(0, 9)), 100)
    assert pod.asked == [True]
    task.over = pod.over = True
    with pytest.raises(type(error), match=str(error)):
        whole(site, task)
    pod.broken = None
    assert whole(site, task) == text_of(0, 9)


@pytest.mark.parametrize("error", [LOST, NotThereError("pod not found"), InvalidStateError("it has not begun")])
def test_what_may_pass_is_tried_again(site: Results, pod: Pod, error: WflError) -> None:
    """Readers of what runs are not told."""
    task, pod.broken = running(), error
    until(lambda: site.read(task, "stdout", 0, 100) == (b"", True) and len(pod.asked) > 1)
    pod.broken, pod.written = None, 9
    until(lambda: whole(site, task) == text_of(0, 9))


# --- when the session is closed ---------------------------------------------------------------------------


def saved(site: Results, task: Task) -> bytes:
    """What is written by saving, which does not wait for the job's end."""
    saving = threading.Thread(target=site.save, args=([task],), daemon=True)
    saving.start()
    saving.join(PATIENCE)
    assert not saving.is_alive()
    return Path(task.file("stdout") or "").read_bytes()


@pytest.mark.parametrize("many", [False, True], ids=["and now and then", "and all the time"])
def test_what_still_writes_is_not_waited_for(site: Results, pod: Pod, tmp_path: Path, many: bool) -> None:  # noqa: FBT001
    """What has come so far is saved."""
    task, pod.written, pod.endless = running(output_path=tmp_path / "out"), 900, many
    followed(site, task, len(text_of(0, 900)))
    found = saved(site, task)
    assert found == text_of(0, 5000)[: len(found)]
    assert len(found) >= len(text_of(0, 900))
    assert task.busy


def test_what_nobody_has_followed_is_read(
    site: Results, pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that there is."""
    monkeypatch.setattr(results, "FOLLOWERS", 0)
    task, pod.written = running(output_path=tmp_path / "out"), 900
    site.begin(task)
    assert saved(site, task) == text_of(0, 900)
    assert pod.asked == [False]


def test_what_nobody_has_followed_and_has_no_end(
    site: Results, pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as comes in time."""
    monkeypatch.setattr(results, "SAVING", 0.2)
    task, pod.endless = running(output_path=tmp_path / "out"), True
    found = saved(site, task)
    assert found == text_of(0, 20000)[: len(found)]
    assert found


def test_saving_while_the_log_cannot_be_had(site: Results, pod: Pod, tmp_path: Path) -> None:
    """What was followed is saved; where there is nothing, the file is left alone."""
    task, pod.written = running(output_path=tmp_path / "out"), 9
    followed(site, task, len(text_of(0, 9)))
    pod.broken = LOST
    assert saved(site, task) == text_of(0, 9)
    (tmp_path / "other").write_bytes(b"before")
    assert saved(site, running(output_path=tmp_path / "other")) == b"before"


def test_what_is_saved_is_not_the_whole(site: Results, pod: Pod, tmp_path: Path) -> None:
    """A job that ends all the same is read to its end."""
    task, pod.written = running(output_path=tmp_path / "out"), 9
    assert saved(site, task) == text_of(0, 9)
    pod.written, task.over, pod.over = 12, True, True
    assert whole(site, task) == text_of(0, 12)


# --- what is written to files -----------------------------------------------------------------------------


def test_files_of_what_is_killed_are_kept(site: Results, pod: Pod) -> None:
    """As they are at that moment, for reading when the pod is gone."""
    task = to_files("stdout", "stderr")
    pod.files = {"/wfl/streams/stdout": os.urandom(1 << 20), "/wfl/streams/stderr": b""}
    site.keep([task])
    task.over = True
    assert whole(site, task) == pod.files["/wfl/streams/stdout"]
    assert site.read(task, "stderr", 0, 100) == (b"", True)


def test_a_file_that_was_not_fetched_is_not_empty(site: Results, pod: Pod) -> None:
    """Its reader is told, and nothing is left of it."""
    task = to_files("stderr")
    pod.files, pod.lost_after = {"/wfl/streams/stderr": b"why\n"}, 3
    site.keep([task])
    task.over = True
    with pytest.raises(InvalidStateError, match="k-1: its stderr is gone"):
        site.read(task, "stderr", 0, 100)
    assert not [path for path in site.directory().rglob("*") if path.is_file()]


def test_a_file_that_breaks_off_later_leaves_what_was_kept(site: Results, pod: Pod) -> None:
    """The first try has brought more than the second."""
    task = to_files("stdout")
    pod.files = {"/wfl/streams/stdout": b"kept"}
    site.keep([task])
    pod.files, pod.lost_after = {"/wfl/streams/stdout": b"kept and more"}, 2
    site.keep([task])
    task.over = True
    assert whole(site, task) == b"kept"


def test_files_are_saved_though_the_log_is_lost_and_the_reverse(site: Results, pod: Pod, tmp_path: Path) -> None:
    """One is no reason to be without the other."""
    task = to_files("stderr", output_path=tmp_path / "out", error_path=tmp_path / "err")
    pod.written, pod.files, pod.lost_after = 9, {"/wfl/streams/stderr": b"why\n"}, 2
    assert saved(site, task) == text_of(0, 9)
    assert not (tmp_path / "err").exists()
    pod.lost_after = None
    assert saved(site, task) == text_of(0, 9)
    assert (tmp_path / "err").read_bytes() == b"why\n"
