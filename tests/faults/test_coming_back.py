"""A program comes back to keepers that do not answer, that are being left, or whose records are damaged."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.machine import PATIENCE, keepers_of, stat_of, wait_until
from wfl import Workflow
from wfl.backend import Answer, Known
from wfl.contexts.process import ProcessContext, backend, link
from wfl.contexts.process.backend import ProcessBackend
from wfl.contexts.process.link import Link
from wfl.drmaa2 import JobInfo, JobState, JobTemplate
from wfl.errors import DrmCommunicationError
from wfl.program import program_lives, program_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GATED = 'while [ ! -e "$0" ]; do sleep 0.02; done; exit 3'
LONG_AGO = 10 * backend.TIDY_AGE


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store's path."""
    return tmp_path / "store"


@pytest.fixture
def place(store: Path) -> Path:
    """Where the keepers of the store's session have their directories."""
    directory = store.with_name("store.d") / "wfl"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def facts() -> list[JobInfo]:
    """What was reported."""
    return []


@pytest.fixture
def coming(place: Path, facts: list[JobInfo]) -> Iterator[ProcessBackend]:
    """The backend of a program that comes back."""
    one = ProcessBackend(detach=True)
    one.open(facts.extend, place)
    yield one
    one.close(end=False)


def known(directory: Path) -> list[Known]:
    """All tasks that a keeper took."""
    messages = [json.loads(line) for line in (directory / "journal").read_text().splitlines()]
    keys = [key for message in messages if message[0] == "take" for _, key in message[1]]
    return [Known(key, key, JobTemplate(remote_command="x")) for key in keys]


def age(directory: Path) -> None:
    """Let the last news of a keeper be old."""
    for path in (*directory.iterdir(), directory):
        os.utime(path, (time.time() - LONG_AGO,) * 2)


# -- keepers that do not answer --


def test_what_one_keeper_knows_is_told_while_another_is_silent(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is waited for to its end; what the silent one has is neither lost nor ended, and found later."""
    keepers: list[int] = []
    for name in ("first", "second"):
        before = set(keepers_of(os.getpid()))
        with Workflow(ProcessContext(store=store, detach=True)) as flow:
            flow.run("sh", "-c", GATED, str(tmp_path / name)).tasks[0].wait_started(PATIENCE)
            keepers += set(keepers_of(os.getpid())) - before
    (tmp_path / "first").touch()
    wait_until("the first keeper is gone", lambda: (stat_of(keepers[0]) or "Z")[0] == "Z")
    monkeypatch.setattr(link, "PATIENCE", 0.2)
    os.kill(keepers[1], signal.SIGSTOP)
    try:
        with Workflow(ProcessContext(store=store, detach=True)) as flow:
            first, second = flow.jobs()
            assert first.wait(PATIENCE).exit_status() == 3
            assert not second.state.ended
            os.kill(keepers[1], signal.SIGCONT)
            (tmp_path / "second").touch()
            assert second.wait(PATIENCE).exit_status() == 3
    finally:
        os.kill(keepers[1], signal.SIGCONT)
        (tmp_path / "second").touch()
    assert "does not answer" in caplog.text


class NotedLock:
    """A lock that says which threads have come to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.came: list[str] = []

    def __enter__(self) -> None:
        self.came.append(threading.current_thread().name)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_two_that_look_at_once_both_hear_of_ends(
    store: Path, coming: ProcessBackend, facts: list[JobInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that is told while one thread reads the journal, and another comes to do so, is not lost."""
    gate = store.with_name("gate")
    monkeypatch.setattr(backend, "KEEPERS", 1)
    with Workflow(ProcessContext(store=store, detach=True)) as flow:
        job = flow.run_array(2, "sh", "-c", GATED, str(gate))
        for task in job.tasks[0].tasks:  # type: ignore[union-attr]
            task.wait_started(PATIENCE)
    reading, go_on, told = (threading.Event() for _ in range(3))

    class Journal(backend._Journal):  # noqa: SLF001 - between its lines is where this happens
        """Long: the first thread is still at it when the tasks end."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if threading.current_thread().name == "first":
                reading.set()
                assert go_on.wait(PATIENCE)

    hear = ProcessBackend._told  # noqa: SLF001 - as above

    def hear_and_say(*arguments: Any) -> None:
        hear(*arguments)
        if arguments[3]:
            told.set()

    monkeypatch.setattr(backend, "_Journal", Journal)
    monkeypatch.setattr(ProcessBackend, "_told", hear_and_say)
    lock = coming._finding = NotedLock()  # type: ignore[assignment]  # noqa: SLF001 - as above
    (directory,) = store.with_name("store.d").glob("wfl/*")
    tasks = known(directory)

    def look(task: Known) -> None:
        while not (infos := coming.find([task]).infos):  # one that just leaves is asked again
            time.sleep(0.05)
        facts.extend(infos)

    threads = [
        threading.Thread(target=look, args=(task,), name=name, daemon=True)
        for name, task in zip(("first", "second"), tasks, strict=True)
    ]
    threads[0].start()
    assert reading.wait(PATIENCE)
    threads[1].start()
    wait_until("the second has come", lambda: "second" in lock.came)
    gate.touch()
    assert told.wait(PATIENCE)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    wait_until("both ends are told", lambda: {task.key for task in tasks} == {i.id for i in facts if i.state.ended})


# -- closing meanwhile --


@pytest.mark.parametrize("coming_up", [True, False])
def test_closing_while_a_keeper_is_asked_says_nothing_of_its_tasks(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    coming_up: bool,  # noqa: FBT001
) -> None:
    """They are neither unknown nor lost, whether the keeper has written down that it took them or is coming up yet."""
    coming = ProcessBackend(detach=True)
    coming.open(list[JobInfo]().extend, place)
    directory = place / "keeper"
    directory.mkdir()
    if not coming_up:
        lines: list[list[Any]] = [["keeper", 1, 1, "boot"], ["take", [[1, "key"]], "/"]]
        (directory / "journal").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asking, answers = threading.Event(), list[Answer]()
    ask = Link.ask

    def ask_and_say(self: Link, *arguments: Any) -> Any:
        asking.set()
        return ask(self, *arguments)

    monkeypatch.setattr(Link, "ask", ask_and_say)
    task = Known("key", "key", JobTemplate(remote_command="x"))
    with link._listen(directory):  # noqa: SLF001 - a keeper that does not answer
        looking = threading.Thread(target=lambda: answers.append(coming.find([task])))
        looking.start()
        assert asking.wait(PATIENCE)
        coming.close(end=False)
        looking.join(PATIENCE)
        assert answers == [Answer(infos=[], gone=[])]
        with pytest.raises(DrmCommunicationError, match="closed"):
            coming.find([task])


# -- what earlier programs left --


def test_output_stays_while_its_task_is_in_the_store(
    store: Path, place: Path, coming: ProcessBackend, facts: list[JobInfo]
) -> None:
    """However old it is, whoever looks for other tasks; and it goes when the task is in the store no more."""
    with Workflow(ProcessContext(store=store)) as flow:
        assert flow.run("echo", "precious").output() == "precious"
    (directory,) = place.iterdir()
    age(directory)
    stranger = Known("another", None, JobTemplate(remote_command="x"))
    assert coming.find([stranger]).gone == ["another"]
    with Workflow(ProcessContext(store=store)) as flow:
        (job,) = flow.jobs()
        assert job.output() == "precious"
    coming.tidy(["another", *(task.key for task in known(directory))])
    assert directory.exists()
    with Workflow(ProcessContext(store=store)) as flow:
        flow.jobs()[0].reap_all()
    age(directory)
    coming.tidy(["another"])
    assert not directory.exists()
    assert facts == []


def test_young_and_living_keepers_are_not_tidied_away(store: Path, place: Path, coming: ProcessBackend) -> None:
    """What they have may not have been in the store when it was read; no other program's haste is an error."""
    with Workflow(ProcessContext(store=store, detach=True)) as flow:
        job = flow.run("sleep", "600")
        job.tasks[0].wait_started(PATIENCE)
        (directory,) = place.iterdir()
        coming.tidy([])
        assert directory.exists()
        age(directory)
        coming.tidy([])
        assert directory.exists()
        job.kill().wait(PATIENCE)
    wait_until("its keeper is gone", lambda: Link.attach(directory) is None)
    coming.tidy([])
    assert directory.exists()
    age(directory)
    coming.tidy([])
    assert not directory.exists()


def test_another_program_tidies_at_the_same_time(
    place: Path, coming: ProcessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has removed meanwhile is no error, here or while journals are read."""
    gone = place / "gone"
    monkeypatch.setattr(coming, "_places", lambda: [gone])
    coming.tidy([])
    task = Known("key", "key", JobTemplate(remote_command="x"))
    assert coming.find([task]).gone == ["key"]


# -- records that are damaged --


def test_a_damaged_journal_is_read_as_far_as_it_can_be(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk or a power cut leaves half a line in the middle, or zeros: said once, and the rest is read."""
    with Workflow(ProcessContext(store=store)) as flow:
        assert flow.run("echo", "whole").output() == "whole"
    (journal,) = store.with_name("store.d").glob("wfl/*/journal")
    first, second, *rest = journal.read_bytes().splitlines()
    damaged = [first, b'["tell",[[1,' + first, b"\0" * 40, b"", second, b"\xff", *rest]
    journal.write_bytes(b"".join(line + b"\n" for line in damaged))
    for _ in range(2):
        with Workflow(ProcessContext(store=store)) as flow:
            (job,) = flow.jobs()
            assert (job.state, job.output()) == (JobState.DONE, "whole")
    assert [record.levelno for record in caplog.records if "damaged" in record.message] == [logging.WARNING]


# -- hosts that change their names --


def test_a_renamed_host_knows_its_own_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead are dead and the living live; of those in another container nobody can tell: they are left alone."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as program:
        name = f"{program_name(program.pid)} 0"
        monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
        assert program_lives(name)
        program.communicate(timeout=PATIENCE)
    assert not program_lives(name)
    host, boot, pid, started, number = name.split(" ")
    assert program_lives(f"{host} {boot.partition('/')[0]}/1 {pid} {started} {number}")
