"""The backend of hosts over SSH, with lines that lead nowhere: what is sent is noted, what is told is made up."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from wfl import JobInfo, JobTemplate
from wfl.backend import Action, Submission, ended
from wfl.contexts.ssh import attendant, backend
from wfl.contexts.ssh.connection import Attempts
from wfl.contexts.ssh.line import Speaks
from wfl.contexts.ssh.login import Login
from wfl.drmaa2 import JobState
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, InvalidStateError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

PATIENCE = 10.0  # seconds that anything may take on a busy machine


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


class FakeLine:
    """Stands for a line to a host that does all it is asked for, unless told otherwise."""

    def __init__(self, login: Login, speaks: Speaks, **told: Any) -> None:
        del speaks, told
        self.name, self.login = login.name, login
        self.attempts = Attempts(0.1)
        self.up, self.hello = False, None
        self.owned: set[str] = set()
        self.followed: set[str] = set()
        self.away: WflError | None = None
        self.connecting = threading.Event()  # cleared: nobody gets through
        self.connecting.set()
        self.system = "Linux"
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {}
        """What is said to a request, or raised, or done, by a word that is in it."""

    def connected(self, **more: object) -> attendant.Hello:
        """Who it is, or why it cannot be reached."""
        del more
        self.connecting.wait(PATIENCE)
        if self.up:
            return self.hello  # type: ignore[return-value]
        with self.attempts.one():
            if self.away is not None:
                raise self.away
        self.hello = attendant.Hello(  # type: ignore[assignment]
            "h", "b", 1.0, datetime.now(UTC), 0.0, self.system, "x86_64", True, "/home/u", "/home/u/d/s"
        )
        self.up = True
        return self.hello  # type: ignore[return-value]

    def ask(self, make: Callable[[int], str], timeout: float | None = None) -> list[str]:
        """Note the request."""
        del timeout
        text = make(1)
        self.asked.append(text)
        for word, answer in self.answers.items():
            if word in text:
                found = answer(text) if callable(answer) else answer
                if isinstance(found, Exception):
                    raise found
                return found or []
        return []

    def started(self) -> list[str]:
        """The jobs that it was given, in order."""
        return re.findall(r"w_one p/(\S+)", "".join(list(self.asked)))

    def copies(self) -> Any:
        """Nothing can be copied."""
        raise DeniedByDrmsError("this is where it would be copied")

    def words(self) -> str:
        """It complains of nothing."""
        return ""

    def close(self) -> None:
        """Nothing is open."""


class Session:
    """A backend, its hosts, and what it reports."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slots: dict[str, int | None], **more: Any) -> None:
        monkeypatch.setattr(backend, "Line", FakeLine)
        monkeypatch.setattr(backend, "SLOW", 0.2)
        logins = [Login(name=name, host=name, port=22, user="u") for name in slots]
        speaks = Speaks(session="s", directory="d", shell="sh", timeout=more.pop("timeout", 1.0))
        self.backend = backend.SshBackend(logins, slots, speaks, lease=300, detach=True)
        self.hosts: dict[str, FakeLine] = {line.name: line for line in self.backend._lines}  # type: ignore[misc] # noqa: SLF001
        self.told: dict[str, list[JobInfo]] = defaultdict(list)
        self.backend.open(self._hear, None)

    def _hear(self, infos: Iterable[JobInfo]) -> None:
        for info in infos:
            self.told[info.id].append(info)

    def submit(self, *numbers: int, **fields: Any) -> list[Any]:
        """Jobs of the program p with these numbers."""
        given = JobTemplate(remote_command="true", **fields)
        return list(self.backend.submit([Submission(f"p-{n}", given, f"p-{n}") for n in numbers]))

    def end(self, number: int) -> None:
        """As if the host had told that."""
        self.backend._end(self.backend._jobs[f"p-{number}"], ended(f"p-{number}", exit_status=0))  # noqa: SLF001

    def is_queued(self, number: int) -> bool:
        """Whether it waits for room."""
        return {info.state for info in self.told[f"p-{number}"]} == {JobState.QUEUED}

    def kill(self, number: int) -> dict[str, WflError]:
        """By the user."""
        return self.backend.control([f"p-{number}"], Action.KILL)

    def last(self, number: int) -> JobInfo:
        """What was told of it last."""
        return self.told[f"p-{number}"][-1]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Session]]:
    """Sessions, which are closed."""
    made: list[Session] = []

    def make(slots: dict[str, int | None], **more: Any) -> Session:
        made.append(Session(monkeypatch, slots, **more))
        return made[-1]

    yield make
    for one in made:
        for host in one.hosts.values():
            host.connecting.set()
        one.backend.close(end=False)


class Copying:
    """Stands for copying what jobs need: it lasts until it may end, or fails."""

    def __init__(self, session: Session, *, fails: tuple[str, ...] = ()) -> None:
        self.begun: list[str] = []
        self.may_end = threading.Event()
        self.fails = fails
        session.backend._fill = self._fill  # type: ignore[method-assign] # noqa: SLF001

    def _fill(self, line: Any, hello: Any, some: Sequence[Submission]) -> list[WflError | None]:
        del line, hello
        self.begun += [one.key for one in some]
        self.may_end.wait(PATIENCE)
        return [DeniedByDrmsError("no room for it there") if one.key in self.fails else None for one in some]


# --- who waits for room -----------------------------------------------------------------------------------


def test_room_that_a_failure_leaves(make: Callable[..., Session]) -> None:
    """A job whose files cannot be copied leaves its slots to those that wait."""
    one = make({"n1": 1})
    copying = Copying(one, fails=("p-1",))
    copying.may_end.set()
    first, second = one.submit(1, 2)
    assert isinstance(first, DeniedByDrmsError)
    assert second == "p-2"
    until(lambda: one.hosts["n1"].started() == ["2"])
    assert one.last(2).state is JobState.RUNNING


def test_room_that_a_refusal_leaves(make: Callable[..., Session]) -> None:
    """So does one that its host refuses, and one that goes to another host, as this one is not what it needs."""
    one = make({"n1": 1, "n2": 1})
    one.hosts["n1"].answers["w_one p/1 "] = DeniedByDrmsError("the disk is full")
    first, second = one.submit(1, 2, candidate_machines=("n1",))
    assert isinstance(first, DeniedByDrmsError)
    assert second == "p-2"
    until(lambda: one.hosts["n1"].started() == ["1", "2"])
    one.end(2)
    one.hosts["n2"].system = "Darwin"
    one.hosts["n1"].connecting.clear()
    looks = threading.Thread(target=one.submit, args=(3,), kwargs={"machine_os": "MACOS"})
    looks.start()
    until(lambda: "p-3" in one.backend._jobs)  # noqa: SLF001
    assert one.submit(4, candidate_machines=("n1",)) == ["p-4"]
    assert one.is_queued(4)
    one.hosts["n1"].connecting.set()
    looks.join(PATIENCE)
    until(lambda: one.hosts["n1"].started()[-1] == "4")
    assert one.hosts["n2"].started() == ["3"]


def test_a_host_that_is_away_keeps_nobody_waiting(make: Callable[..., Session]) -> None:
    """Who waits for room on a host that turns out to be away fails as the one before it; none asks again and again."""
    one = make({"n1": 1, "n2": 1})
    one.submit(1, candidate_machines=("n2",))
    one.hosts["n1"].away = DrmCommunicationError("n1 cannot be reached")
    one.hosts["n1"].connecting.clear()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(one.submit(2, candidate_machines=("n1",))))
    thread.start()
    until(lambda: "p-2" in one.backend._jobs)  # noqa: SLF001
    assert one.submit(3, candidate_machines=("n1",)) == ["p-3"]
    assert one.submit(4) == ["p-4"]
    assert one.is_queued(3)
    assert one.is_queued(4)
    one.hosts["n1"].connecting.set()
    thread.join(PATIENCE)
    assert isinstance(found[0], DrmCommunicationError)
    until(lambda: one.told["p-3"][-1].state.ended)
    assert one.last(3).annotation == "n1 cannot be reached"
    times = []
    chosen = one.backend._choose  # noqa: SLF001
    one.backend._choose = lambda *a: (times.append(1), chosen(*a))[1]  # type: ignore[method-assign,func-returns-value] # noqa: SLF001
    time.sleep(0.3)
    assert one.is_queued(4)
    assert len(times) < 5
    one.end(1)
    until(lambda: one.hosts["n2"].started() == ["1", "4"])


def test_one_that_waits_is_killed_meanwhile(make: Callable[..., Session]) -> None:
    """While files are copied for others, or for itself, it can be ended, and then it is never started."""
    one = make({"n1": 2})
    one.submit(1, 2, 3, 4, 5)
    copying = Copying(one)
    one.end(1)
    one.end(2)
    until(lambda: {*copying.begun} == {"p-3", "p-4"})
    assert one.kill(4) == {}
    assert one.kill(5) == {}
    for number in (4, 5):
        assert (one.last(number).sub_state, one.last(number).state) == ("cancelled", JobState.FAILED)
    failures = one.backend.control(["p-3"], Action.SUSPEND)
    assert isinstance(failures["p-3"], InvalidStateError)
    assert "it has not started" in str(failures["p-3"])
    copying.may_end.set()
    until(lambda: one.hosts["n1"].started() == ["1", "2", "3"])
    assert one.submit(6) == ["p-6"]  # there is room again
    assert one.hosts["n1"].started() == ["1", "2", "3", "6"]
    assert "w_reap" in "".join(one.hosts["n1"].asked)  # what was copied for it
    assert one.last(4).sub_state == "cancelled"


def test_none_waits_for_another(make: Callable[..., Session]) -> None:
    """A host for which files are copied for long keeps no other host, and no other slot of its own, from work."""
    one = make({"n1": 2, "n2": 1})
    one.submit(1, 2, candidate_machines=("n1",))
    one.submit(3, candidate_machines=("n2",))
    one.submit(4, 5, candidate_machines=("n1",))
    one.submit(6, candidate_machines=("n2",))
    copying = Copying(one)
    one.end(1)
    until(lambda: copying.begun == ["p-4"])
    Copying(one).may_end.set()
    one.end(3)
    one.end(2)
    until(lambda: one.hosts["n2"].started() == ["3", "6"])
    until(lambda: one.hosts["n1"].started() == ["1", "2", "5"])
    copying.may_end.set()
    until(lambda: one.hosts["n1"].started() == ["1", "2", "5", "4"])


def test_closed_while_one_moves_up(make: Callable[..., Session], caplog: pytest.LogCaptureFixture) -> None:
    """That is no error, and nothing is told of the job, which another program may go on with."""
    one = make({"n1": 1})
    one.submit(1, 2)
    host = one.hosts["n1"]
    host.connecting.clear()
    with caplog.at_level(logging.INFO, "wfl"):
        one.end(1)
        until(lambda: one.backend._jobs["p-2"].line is not None)  # noqa: SLF001
        one.backend._closed.set()  # noqa: SLF001
        host.connecting.set()
        until(lambda: not one.backend._starts._busy)  # noqa: SLF001
    assert "Traceback" not in caplog.text
    assert "goes on after this error" not in caplog.text
    assert one.is_queued(2)
    assert host.started() == ["1"]


# --- what is not certain ----------------------------------------------------------------------------------


def test_a_reason_is_not_lost(make: Callable[..., Session]) -> None:
    """Whoever is refused keeps its reason where the orders of others are lost at the same time."""
    one = make({"n1": None})
    one.submit(1)
    host = one.hosts["n1"]
    host.answers["w_one"] = DrmCommunicationError("the connection was lost")
    copying = Copying(one, fails=("p-3",))
    copying.may_end.set()
    host.answers["w_forbid"] = lambda text: [f"g\t1\t{word}" for word in re.findall(r"p/\d", text)]
    outcomes = one.submit(2, 3)
    assert outcomes[0] == "p-2"
    assert isinstance(outcomes[1], DeniedByDrmsError)
    until(lambda: one.told["p-2"][-1:] and one.last(2).sub_state == "launch_failure")
    given = [
        Submission("p-4", JobTemplate(remote_command="true"), "p-4"),
        Submission("p-5", JobTemplate(remote_command="true", machine_os="MACOS"), "p-5"),
    ]
    first, second = one.backend.submit(given)
    assert first == "p-4"
    assert isinstance(second, DeniedByDrmsError)
    with pytest.raises(DrmCommunicationError):  # nobody knows, and there is nothing else to be told
        one.submit(6)


def test_a_directory_that_goes_again(make: Callable[..., Session]) -> None:
    """One whose directory is made and nothing more is asked for again: it may never have been started."""
    one = make({"n1": None})
    one.submit(1)
    host = one.hosts["n1"]
    host.answers["w_one"] = DrmCommunicationError("the connection was lost")
    says = iter(["r\t1\tp/2\tnowhere\tnone\t", "r\t1\tp/2\tnowhere\tnone\t", "g\t1\tp/2"])
    host.answers["w_forbid"] = lambda _: [next(says)]
    with pytest.raises(DrmCommunicationError):
        one.submit(2)
    one.backend._settle_soon(host, ["p-2"], DrmCommunicationError("lost"))  # type: ignore[arg-type] # noqa: SLF001
    until(lambda: one.told["p-2"])
    assert one.last(2).annotation == "it was never started: the connection to n1 was lost"


def test_a_kill_before_the_orders(make: Callable[..., Session]) -> None:
    """A host that has not heard of a job yet is asked again, and where it never does the kill is no success."""
    one = make({"n1": None})
    one.submit(1)
    host = one.hosts["n1"]
    job = one.backend._jobs["p-1"]  # noqa: SLF001
    job.started = False
    says = iter(["x\t1\tp/1\tover", "x\t1\tp/1\tover"])
    host.answers["w_signal"] = lambda _: [word for word in [next(says, "")] if word]
    assert one.kill(1) == {}
    host.answers["w_signal"] = ["x\t1\tp/1\tover"]
    assert isinstance(one.kill(1)["p-1"], DrmCommunicationError)
    job.started = True
    assert isinstance(one.kill(1)["p-1"], InvalidStateError)


def test_what_a_connection_knows(make: Callable[..., Session]) -> None:
    """That an earlier one was lost is told late: what was told to the next attendant meanwhile is still known."""
    one = make({"n1": None})
    one.submit(1)
    host = one.hosts["n1"]
    host.owned, host.followed = set(), set()  # another connection
    one.submit(2)
    assert "".join(host.asked).count("w_own") == 2
    one.backend._away(host)  # type: ignore[arg-type] # noqa: SLF001
    one.submit(3)
    assert "".join(host.asked).count("w_own") == 2
    assert host.followed == {"p"}


# --- hosts that were there before -------------------------------------------------------------------------


def test_a_host_that_is_away_for_a_moment(make: Callable[..., Session]) -> None:
    """One that was there before is waited for; one that never was, and one that stays away, is not for long."""
    one = make({"n1": None, "n2": None}, timeout=4.0)
    one.hosts["n2"].away = DrmCommunicationError("n2 was never there")
    one.submit(1, candidate_machines=("n1",))
    until(lambda: not one.backend._attempts)  # noqa: SLF001
    host = one.hosts["n1"]
    host.up, host.away = False, DrmCommunicationError("n1 is away")
    begin = time.monotonic()
    (found,) = one.submit(2, candidate_machines=("n2",))
    assert str(found) == "n2 was never there"
    assert time.monotonic() - begin < 3
    threading.Timer(0.4, lambda: setattr(host, "away", None)).start()
    assert one.submit(3) == ["p-3"]
    assert host.started() == ["1", "3"]
    other = make({"n1": None}, timeout=0.5)
    other.submit(1)
    until(lambda: not other.backend._attempts)  # noqa: SLF001
    host = other.hosts["n1"]
    host.up, host.away = False, DrmCommunicationError("n1 is away")
    begin = time.monotonic()
    assert {str(found) for found in other.submit(*range(2, 22))} == {"n1 is away"}
    assert 0.4 < time.monotonic() - begin < 6  # not once for each


# --- output and files -------------------------------------------------------------------------------------


def test_output_that_is_passed_on_twice(
    make: Callable[..., Session], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What is in the program's own output cannot be taken back: another attempt goes on behind it; a file is new."""
    one = make({"n1": None})
    one.submit(1, output_path="/dev/stdout", error_path=str(tmp_path / "err"))
    data, lost = b"one two three", iter([False, True, False, True, False, False, False])

    def read(job: Any, line: Any, stream: str, offset: int, limit: int) -> bytes:
        del job, line, stream, limit
        if next(lost, False):
            raise DrmCommunicationError("the connection was lost")
        return data[offset : offset + 4]

    one.backend._read_once = read  # type: ignore[method-assign] # noqa: SLF001
    one.backend._hear(one.hosts["n1"], "e\tp/1\t0m0s 0m0s\t0m0s 0m0s\tstatus 0\tsaid no\t.\t")  # type: ignore[arg-type] # noqa: SLF001
    until(lambda: one.last(1).state.ended)
    assert one.last(1).state is JobState.DONE
    assert capfd.readouterr().out == data.decode()
    assert (tmp_path / "err").read_bytes() == data


def test_copies_have_their_own_channels(make: Callable[..., Session], tmp_path: Path) -> None:
    """Files are copied both ways by channels that are none of those by which output is read."""
    one = make({"n1": None})
    (tmp_path / "in").write_text("in")
    (found,) = one.submit(1, stage_in_files={"in": str(tmp_path / "in")})
    assert "this is where it would be copied" in str(found)
    one.submit(2, stage_out_files={str(tmp_path / "out"): "out"})
    one.backend._hear(one.hosts["n1"], "e\tp/2\t0m0s 0m0s\t0m0s 0m0s\tstatus 0\tsaid no\t.\t")  # type: ignore[arg-type] # noqa: SLF001
    until(lambda: one.last(2).state.ended)
    assert "this is where it would be copied" in (one.last(2).annotation or "")
