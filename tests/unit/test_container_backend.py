"""ContainerBackend and the facts of containers: on a client that knows no daemon, and fails as one would."""

import io
import struct
import tarfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import pytest

from wfl import JobTemplate
from wfl.backend import Action, Known, Submission, ended
from wfl.contexts.containers import facts
from wfl.contexts.containers.dialect import Dialect
from wfl.drmaa2 import JobInfo, JobState
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InvalidArgumentError,
    InvalidSessionError,
    InvalidStateError,
    WflError,
)
from wfl.session import JobSession
from wfl.testing import FakeContext, FakeSystem, Outcome

pytest.importorskip("docker", reason="docker-py is not in this environment")

from wfl.contexts import guard
from wfl.contexts.containers import backend as module
from wfl.contexts.containers.backend import FAILED_PULL, TRIES, ContainerBackend
from wfl.contexts.containers.client import NotThereError, UnsentError

PATIENCE = 30.0  # seconds that a thread may take on a busy machine
SHORT = 0.3  # seconds that the daemon may take to answer, where a test waits for that
STARTED, FINISHED = "2030-01-01T00:00:00.000000001Z", "2030-01-01T00:00:05Z"
NEVER = "0001-01-01T00:00:00Z"
RESET = DrmCommunicationError("connection reset")
NO_IMAGE = NotThereError("No such image: busybox:latest")
UNREADABLE = "/proc/self/mem"  # it can be opened; reading its beginning is an input/output error


# --- a daemon that is none --------------------------------------------------------------------------------


@dataclass
class Container:
    """What the daemon knows of one."""

    name: str
    labels: dict[str, str]
    state: str = "created"
    code: int = 0
    created: int = 1000
    log: bytes = b""
    signal: str | None = None  # the one that stops it

    def listed(self) -> dict[str, Any]:
        """As a list has it."""
        labels, names = dict(self.labels), [f"/{self.name}"]
        return {"Id": self.name, "Names": names, "Labels": labels, "State": self.state, "Created": self.created}

    def inspected(self) -> dict[str, Any]:
        """As an inspection has it."""
        found = inspected(self.code, Status=self.state)
        found["Config"]["StopSignal"] = self.signal
        return found


@dataclass
class Daemon:
    """It does at once what its client asks for. `on` has what happens before that, by the name of the call: a function
    of the call's arguments, which may wait or raise; what it returns, if anything, is the answer.
    """

    containers: dict[str, Container] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    on: dict[str, Callable[..., Any]] = field(default_factory=dict)
    told: "SimpleQueue[dict[str, Any] | None]" = field(default_factory=SimpleQueue)
    listening: threading.Event = field(default_factory=threading.Event)

    def called(self, call: str, *arguments: Any) -> Any:
        """Note it, and let happen what is to happen."""
        self.calls.append((call, *arguments))
        hook = self.on.get(call)
        return None if hook is None else hook(*arguments)

    def count(self, call: str) -> int:
        """How often that was asked for."""
        return Counter(name for name, *_ in self.calls)[call]

    def make(self, key: str, **known: Any) -> Container:
        """One more container, made by whomever."""
        labels = {"wfl.session": "s", "wfl.key": key, **known.pop("labels", {})}
        self.containers[f"wfl-{key}"] = made = Container(f"wfl-{key}", labels, **known)
        return made

    def tell(self, key: str, action: str, **attributes: str) -> None:
        """Send an event."""
        self.told.put({"Action": action, "Actor": {"Attributes": {"wfl.key": key, **attributes}}, "time": 1})

    def end(self, key: str, code: int = 0) -> None:
        """The first process of a container ends."""
        made = self.containers[f"wfl-{key}"]
        made.state, made.code = "exited", code
        self.tell(key, "die", exitCode=str(code))


class FakeClient:
    """What ContainerBackend takes for its client."""

    url = "unix:///fake.sock"

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def info(self) -> dict[str, Any]:
        """Nothing worth knowing."""
        return {}

    def hang_up(self) -> None:
        """Nothing streams on."""

    def close(self) -> None:
        """No events any more."""
        self._daemon.told.put(None)

    def _found(self, id: str) -> Container:
        if id not in self._daemon.containers:
            raise NotThereError(f"No such container: {id}")
        return self._daemon.containers[id]

    def create(self, body: Mapping[str, Any], query: Mapping[str, str]) -> str:
        """Make it."""
        self._daemon.called("create", body["Image"])
        name = query["name"]
        self._daemon.containers[name] = Container(name, dict(body["Labels"]))
        return name

    def start(self, id: str) -> None:
        """Start it."""
        self._daemon.called("start", id)
        found = self._found(id)
        found.state = "running" if found.state == "created" else found.state

    def kill(self, id: str, signal: str = "SIGKILL") -> None:
        """Only noted."""
        self._daemon.called("kill", id, signal)
        self._found(id)

    def pause(self, id: str) -> None:
        """Only noted."""
        self._daemon.called("pause", id)

    def unpause(self, id: str) -> None:
        """Only noted."""
        self._daemon.called("unpause", id)

    def remove(self, id: str) -> None:
        """Remove it, if it is there."""
        self._daemon.called("remove", id)
        self._daemon.containers.pop(id, None)

    def discard(self, id: str) -> None:
        """Remove it, if it does not run."""
        self._daemon.called("discard", id)
        if id in self._daemon.containers and self._daemon.containers[id].state == "running":
            raise InvalidStateError("it runs")
        self._daemon.containers.pop(id, None)

    def inspect(self, id: str) -> dict[str, Any]:
        """All of it."""
        answer: dict[str, Any] | None = self._daemon.called("inspect", id)
        return self._found(id).inspected() if answer is None else answer

    def list(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Those with these labels."""
        self._daemon.called("list", dict(labels))
        return [one.listed() for one in [*self._daemon.containers.values()] if labels.items() <= one.labels.items()]

    def events(self, labels: Mapping[str, str], kinds: Sequence[str]) -> Iterator[dict[str, Any] | None]:
        """What a test tells."""
        self._daemon.called("events", dict(labels), kinds)
        yield None
        self._daemon.listening.set()
        while (event := self._daemon.told.get()) is not None:
            yield event

    def logs(self, id: str, *, follow: bool, stamped: bool = False, stdout: bool = True) -> Iterator[bytes]:
        """What it has written, or what a test makes of it."""
        pieces: Iterable[bytes] | None = self._daemon.called("logs", id, follow, stamped, stdout)
        yield b""
        yield from [self._found(id).log] if pieces is None else pieces

    def attach_input(self, id: str) -> "Input":
        """Takes all."""
        self._daemon.called("attach_input", id)
        return Input(self._daemon)

    def put(self, id: str, chunks: Iterable[bytes], place: str = "/") -> None:
        """Take it in."""
        self._daemon.called("put", id, b"".join(chunks), place)

    def get(self, id: str, path: str) -> Iterator[bytes]:
        """One file, whatever is asked for."""
        self._daemon.called("get", id, path)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo(Path(path).name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
        yield buffer.getvalue()

    def pull(self, image: str, platform: str | None) -> None:
        """Only noted."""
        self._daemon.called("pull", image, platform)


class Input:
    """A standard input."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def sendall(self, data: bytes) -> None:
        """Take it."""
        self._daemon.called("input", data)

    def finish(self) -> None:
        """That was all."""
        self._daemon.called("finish")

    def close(self) -> None:
        """It takes no more."""
        self._daemon.called("input closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Helper:
    """What ContainerBackend takes for its undertaker; it notes what it is told at the end."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def goodbye(self) -> None:
        """Nothing is left."""
        self.words.append("goodbye")

    def take_over(self) -> None:
        """Something is."""
        self.words.append("take over")


class Time:
    """The backend's clock, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        """Seconds since some beginning."""
        return time.monotonic() + self.ahead

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time() + self.ahead

    def sleep(self, seconds: float) -> None:
        """Only put forward."""
        self.ahead += seconds


class Told:
    """What the backend reports."""

    def __init__(self) -> None:
        self.infos: list[JobInfo] = []

    def report(self, infos: Iterable[JobInfo]) -> None:
        """Keep them."""
        self.infos += infos

    def states(self, id: str) -> list[JobState]:
        """The states in which that job was said to be."""
        return [info.state for info in [*self.infos] if info.id == id]

    def ends(self, id: str) -> list[JobInfo]:
        """Its ends; there should be one."""
        return [info for info in [*self.infos] if info.id == id and info.state.ended]

    def end(self, id: str) -> JobInfo:
        """Its end, when it is told."""
        until(lambda: self.ends(id))
        (info,) = self.ends(id)
        return info


@dataclass
class Room:
    """A backend and what is around it."""

    backend: ContainerBackend
    daemon: Daemon
    told: Told
    time: Time
    words: list[str]
    """To the helper process, at the end."""

    def submit(self, key: str = "k-1", **fields: Any) -> Any:
        """Submit one job; what became of that."""
        (outcome,) = self.backend.submit([Submission(key, job(**fields), key)])
        return outcome


Open = Callable[..., Room]


@pytest.fixture
def daemon() -> Daemon:
    """Nothing is in it."""
    return Daemon()


@pytest.fixture
def open_room(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens backends on that daemon; they are closed afterwards."""
    opened: list[ContainerBackend] = []
    monkeypatch.setattr(module, "Client", lambda _: FakeClient(daemon))
    monkeypatch.setattr(module, "AGAIN", 0.01)

    def make(*, timeout: float = 60.0, pull: str = "missing", detach: bool = False, keep: Path | None = None) -> Room:
        words: list[str] = []
        clock, told = Time(), Told()
        monkeypatch.setattr(module, "watch", lambda *_, **__: Helper(words))
        monkeypatch.setattr(module, "time", clock)
        settings = {"base_url": FakeClient.url, "timeout": timeout}
        dialect = Dialect(loses_breaks=False)
        made = ContainerBackend("docker", settings, "s", image="busybox", pull=pull, detach=detach, dialect=dialect)
        made.open(told.report, keep)
        opened.append(made)
        return Room(made, daemon, told, clock, words)

    yield make
    daemon.on.clear()
    for one in opened:
        one.close(end=True)


@pytest.fixture
def room(open_room: Open) -> Room:
    """One with the usual settings."""
    return open_room()


def until(condition: Callable[[], object]) -> None:
    """Wait until something is true that threads bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.001)


def in_thread(f: Callable[[], object]) -> threading.Thread:
    """Do it on the side."""
    thread = threading.Thread(target=f, daemon=True)
    thread.start()
    return thread


def job(**fields: Any) -> JobTemplate:
    """One to be run."""
    return JobTemplate(**{"remote_command": "x", **fields})


def fails(*errors: WflError) -> Callable[..., None]:
    """The next calls raise these, one each."""
    left = deque(errors)

    def hook(*_: object) -> None:
        if left:
            raise left.popleft()

    return hook


def always(error: WflError) -> Callable[..., None]:
    """Every call raises this."""

    def hook(*_: object) -> None:
        raise error

    return hook


def frame(data: bytes, kind: int = 1) -> bytes:
    """A piece of output (2: of the errors) as the daemon sends it."""
    return struct.pack(">BxxxI", kind, len(data)) + data


def inspected(code: int = 0, memory: int = 0, **state: Any) -> dict[str, Any]:
    """What an inspection says of a container that was started."""
    return {
        "Id": "c0ffee",
        "State": {"Status": "exited", "ExitCode": code, "StartedAt": STARTED, "FinishedAt": FINISHED, **state},
        "Config": {},
        "HostConfig": {"Memory": memory},
    }


def detached(number: int, **known: Any) -> dict[str, Any]:
    """What `Daemon.make` needs for a container that an earlier program has started detached."""
    labels = {"wfl.detach": "true", "wfl.job": f"e-{number}", "wfl.template": job().to_json()}
    return {"state": "running", **known, "labels": {**labels, **known.get("labels", {})}}


# --- limits of time, as the session keeps them for containers ------------------------------------------------


def limited(system: FakeSystem) -> tuple[JobSession, Any]:
    """A job that has a minute."""
    session = JobSession(FakeContext(system))
    (task,) = session.start([JobTemplate(remote_command="x", resource_limits={"WALLCLOCK_TIME": 60})])
    return session, task


@pytest.mark.parametrize("milliseconds", [-7, 7])
def test_limit_of_time_with_two_tellings_of_one_start(milliseconds: int) -> None:
    """An event and an inspection tell a start with times a little apart: it is one start, and its limit is kept."""
    system = FakeSystem({"x": Outcome(duration=float("inf"))})
    session, task = limited(system)
    try:
        task.wait_started()
        first = task.info()
        again = first.replace(dispatch_time=first.dispatch_time + timedelta(milliseconds=milliseconds))
        seen: list[Any] = []
        system.time.after(30, lambda: system.tell(again))
        system.time.after(31, lambda: seen.append(task.info().dispatch_time))
        task.wait_terminated(timeout=300)
        assert seen == [again.dispatch_time]
        assert (task.state, task.info().sub_state, system.now) == (JobState.FAILED, "timeout", 60)
    finally:
        session.close()


@pytest.mark.parametrize(("seconds", "state"), [(61, JobState.FAILED), (60, JobState.FAILED), (59, JobState.DONE)])
def test_ending_well_too_late(seconds: int, state: JobState) -> None:
    """A job that ends well as its time is up has failed if it took too long by the system's clock, and only then."""
    system = FakeSystem({"x": Outcome(duration=float("inf"), stubborn=True)})
    session, task = limited(system)
    try:
        task.wait_started()
        end = ended(task.id, exit_status=0, wallclock_time=timedelta(seconds=seconds))
        system.time.after(61, lambda: system.tell(end))
        task.wait_terminated(timeout=300)
        how = ("timeout", "its WALLCLOCK_TIME is 60.0 s") if state is JobState.FAILED else ("exited", None)
        assert (task.state, task.info().exit_status) == (state, 0)
        assert (task.info().sub_state, task.info().annotation) == how
    finally:
        session.close()


# --- ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [126, 127])
@pytest.mark.parametrize("log", [[b"\x07what is this"], [frame(b"", 2)[:5]], None], ids=["odd", "broken", "unanswered"])
def test_unreadable_log_of_a_command_that_may_not_have_run(room: Room, code: int, log: list[bytes] | None) -> None:
    """Whether 126 and 127 are the init's or the command's own stands in the log; without it they are an exit status."""
    room.submit()
    room.daemon.on["logs"] = always(RESET) if log is None else lambda *_: log
    room.daemon.end("k-1", code)
    info = room.told.end("k-1")
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "exited", code)


def test_command_that_could_not_be_run(room: Room) -> None:
    """What the init says of a command that is not there is why the job could not be started."""
    room.submit()
    room.daemon.containers["wfl-k-1"].log = frame(b"[FATAL tini (7)] exec x failed: No such file or directory\n", 2)
    room.daemon.end("k-1", 127)
    info = room.told.end("k-1")
    assert (info.sub_state, info.exit_status) == ("launch_failure", None)
    assert info.annotation == "[FATAL tini (7)] exec x failed: No such file or directory"


def test_end_that_cannot_be_understood(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """An inspection without what it must have ends the job, as lost, and says so: it is not asked for for ever."""
    room.submit()
    room.daemon.on["inspect"] = lambda _: {"State": {"Status": "exited"}}
    room.daemon.end("k-1")
    info = room.told.end("k-1")
    assert (info.state, info.sub_state) == (JobState.FAILED, "lost")
    assert info.annotation == "what is said of its end cannot be understood: 'ExitCode'"
    assert "docker: k-1 has ended" in caplog.text


def test_end_that_is_not_answered(room: Room) -> None:
    """An inspection without an answer is made again, and the end is told once."""
    room.submit()
    room.daemon.on["inspect"] = fails(RESET, RESET)
    room.daemon.end("k-1", 3)
    info = room.told.end("k-1")
    assert (info.exit_status, room.daemon.count("inspect")) == (3, 3)


def test_container_started_again(room: Room) -> None:
    """One that somebody starts again after its end runs on; it is not inspected over and over, and its end is told."""
    room.submit()
    made = room.daemon.containers["wfl-k-1"]
    room.daemon.tell("k-1", "die", exitCode="0")
    room.daemon.tell("k-1", "start")
    until(lambda: room.daemon.count("inspect") and len(room.told.states("k-1")) > 1)
    before = room.daemon.count("inspect")
    time.sleep(0.3)  # 30 times as long as it takes to look again
    assert room.daemon.count("inspect") <= before + 2
    assert not room.told.ends("k-1")
    assert made.state == "running"
    room.daemon.end("k-1", 5)
    assert room.told.end("k-1").exit_status == 5


def test_container_that_is_removed(room: Room) -> None:
    """A container that somebody removes as it ends has the exit code that the event told."""
    room.submit()
    del room.daemon.containers["wfl-k-1"]
    room.daemon.tell("k-1", "die", exitCode="4")
    info = room.told.end("k-1")
    assert (info.exit_status, info.annotation) == (4, "its container was removed by somebody")


# --- files that come back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["Could not find the file /out in container wfl-k-1", "permission denied"], ids=["its source", "neither"]
)
def test_failed_stage_out_names_both_places(room: Room, tmp_path: Path, words: str) -> None:
    """The words of a file that cannot be had say from where and to where; the job has failed though it ended well."""
    target = tmp_path / "result"
    room.submit(stage_out_files={str(target): "/out"})
    room.daemon.on["get"] = always(NotThereError(words))
    room.daemon.end("k-1")
    info = room.told.end("k-1")
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "exited", 0)
    assert info.annotation is not None
    assert all(part in info.annotation for part in (words, "/out", str(target)))


@pytest.mark.parametrize(("failures", "state"), [(TRIES - 1, JobState.DONE), (TRIES, JobState.FAILED)])
def test_stage_out_without_an_answer(room: Room, tmp_path: Path, failures: int, state: JobState) -> None:
    """Files that the daemon gives no answer for are asked for a few times; without them the job ends, and says so."""
    target = tmp_path / "result"
    room.submit(stage_out_files={str(target): "/out"})
    room.daemon.on["get"] = fails(*[RESET] * failures)
    room.daemon.end("k-1")
    info = room.told.end("k-1")
    assert (info.state, room.daemon.count("get")) == (state, TRIES)
    assert target.exists() == (state is JobState.DONE)
    words = None if state is JobState.DONE else "its output and files cannot be had: connection reset"
    assert info.annotation == words


# --- output -------------------------------------------------------------------------------------------------


def test_output_that_flows_slowly(open_room: Open) -> None:
    """Output that takes far longer than an answer may take is read whole: something comes all the time."""
    room = open_room(timeout=SHORT)
    room.submit()
    room.daemon.end("k-1")
    room.told.end("k-1")

    def slowly(*_: object) -> Iterator[bytes]:
        for _piece in range(30):
            time.sleep(SHORT / 10)
            yield frame(b"0123456789")

    room.daemon.on["logs"] = slowly
    assert room.backend.read("k-1", "stdout", 0, 1000) == (b"0123456789" * 30, True)


def test_output_that_stalls(open_room: Open) -> None:
    """Output of which nothing comes for as long as an answer may take is an error; later it is read anew, whole."""
    room = open_room(timeout=SHORT)
    room.submit()
    room.daemon.containers["wfl-k-1"].log = frame(b"all of it")
    room.daemon.end("k-1")
    room.told.end("k-1")
    stuck = threading.Event()

    def stalling(*_: object) -> Iterator[bytes]:
        yield frame(b"all")
        stuck.wait(PATIENCE)
        yield frame(b" wrong")

    room.daemon.on["logs"] = stalling
    with pytest.raises(DrmCommunicationError, match="the output of k-1 has stopped coming"):
        room.backend.read("k-1", "stdout", 0, 100)
    room.daemon.on.clear()
    assert room.backend.read("k-1", "stdout", 0, 100) == (b"all of it", True)
    stuck.set()
    assert room.backend.read("k-1", "stdout", 0, 100) == (b"all of it", True)


def test_several_readers_of_output_that_stalls(open_room: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who gives up late does not take away what another reads anew."""
    room = open_room(timeout=SHORT)
    room.submit()
    room.daemon.containers["wfl-k-1"].log = frame(b"all of it")
    room.daemon.end("k-1")
    room.told.end("k-1")
    stuck, late = threading.Event(), threading.Event()

    def stalling(*_: object) -> Iterator[bytes]:
        stuck.wait(PATIENCE)
        yield b""

    room.daemon.on["logs"] = stalling
    drop = ContainerBackend._drop  # noqa: SLF001 - there is no other way between the two

    def dropping(self: ContainerBackend, *arguments: Any) -> None:
        if threading.current_thread() is slow:
            late.wait(PATIENCE)
        drop(self, *arguments)

    monkeypatch.setattr(ContainerBackend, "_drop", dropping)

    def read() -> None:
        with pytest.raises(DrmCommunicationError):
            room.backend.read("k-1", "stdout", 0, 100)

    slow = threading.Thread(target=read, daemon=True)
    slow.start()
    read()
    room.daemon.on.clear()
    assert room.backend.read("k-1", "stdout", 0, 100) == (b"all of it", True)
    late.set()
    slow.join(PATIENCE)
    assert room.backend.read("k-1", "stdout", 0, 100) == (b"all of it", True)
    stuck.set()


# --- input --------------------------------------------------------------------------------------------------


def test_input_that_is_a_directory(room: Room, tmp_path: Path) -> None:
    """It is refused before anything is made."""
    outcome = room.submit(input_path=str(tmp_path))
    assert isinstance(outcome, WflError)
    assert str(tmp_path) in str(outcome)
    assert not room.daemon.count("create")


def test_input_that_has_become_a_directory(room: Room, tmp_path: Path) -> None:
    """A job whose input went away while its container was made is refused, and the container removed."""
    path = tmp_path / "input"
    path.write_bytes(b"data")

    def swap(*_: object) -> None:
        path.unlink()
        path.mkdir()

    room.daemon.on["create"] = swap
    outcome = room.submit(input_path=str(path))
    assert isinstance(outcome, DeniedByDrmsError)
    assert str(path) in str(outcome)
    assert (room.daemon.count("create"), room.daemon.containers) == (1, {})


def test_input_that_cannot_be_read(room: Room) -> None:
    """A job that was fed only in part has failed though it ended well, and says why; its input is closed."""
    room.submit(input_path=UNREADABLE)
    until(lambda: room.daemon.count("input closed"))
    assert (room.daemon.count("input"), room.daemon.count("finish")) == (0, 1)
    room.daemon.end("k-1")
    info = room.told.end("k-1")
    assert (info.state, info.exit_status) == (JobState.FAILED, 0)
    assert info.annotation == f"input_path {UNREADABLE} cannot be read: Input/output error"


# --- images -------------------------------------------------------------------------------------------------


def without_image(daemon: Daemon) -> None:
    """The image is there when it was pulled."""
    pulled = threading.Event()

    def create(*_: object) -> None:
        if not pulled.is_set():
            raise NO_IMAGE

    daemon.on["create"] = create
    daemon.on["pull"] = lambda *_: pulled.set()


@pytest.mark.parametrize(("pull", "there", "pulls"), [("missing", True, 0), ("missing", False, 1), ("always", True, 1)])
def test_when_an_image_is_pulled(open_room: Open, pull: str, there: bool, pulls: int) -> None:  # noqa: FBT001 - a row
    """By default when it is missing; or always, which is once in a session: for the first job."""
    room = open_room(pull=pull)
    if not there:
        without_image(room.daemon)
    assert [room.submit("k-1"), room.submit("k-2")] == ["k-1", "k-2"]
    assert room.daemon.count("pull") == pulls


def test_image_that_is_never_pulled(open_room: Open) -> None:
    """A job whose image is not there is refused, with the reason."""
    room = open_room(pull="never")
    without_image(room.daemon)
    outcome = room.submit()
    assert isinstance(outcome, DeniedByDrmsError)
    assert str(outcome) == "No such image: busybox:latest (pull is 'never')"
    assert (room.daemon.count("pull"), room.daemon.count("create")) == (0, 1)


def test_failing_pull_of_many(room: Room) -> None:
    """However many jobs want an image that cannot be had, it is asked for once, and again only some seconds later."""
    number = 6
    room.daemon.on["create"] = always(NO_IMAGE)

    def pull(*_: object) -> None:
        until(lambda: room.daemon.count("create") >= number)
        raise DeniedByDrmsError("no such image anywhere")

    room.daemon.on["pull"] = pull
    outcomes: list[Any] = []
    threads = [in_thread(lambda n=n: outcomes.append(room.submit(f"k-{n}"))) for n in range(number)]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE)
    room.time.ahead += FAILED_PULL - 2
    outcomes.append(room.submit("k-7"))
    assert [str(outcome) for outcome in outcomes] == ["no such image anywhere"] * (number + 1)
    assert room.daemon.count("pull") == 1
    room.time.ahead += 3
    room.submit("k-8")
    assert room.daemon.count("pull") == 2


# --- control ------------------------------------------------------------------------------------------------


def test_failing_control_of_one(room: Room) -> None:
    """What cannot be done to one job is done to the others; each failure stands under its id, in its own kind."""
    keys = [f"k-{n}" for n in range(1, 5)]
    for key in keys:
        room.submit(key)
    wrong = {"wfl-k-1": InvalidStateError("it is not running"), "wfl-k-3": RESET}

    def pause(id: str) -> None:
        if id in wrong:
            raise wrong[id]

    room.daemon.on["pause"] = pause
    failures = room.backend.control(keys, Action.SUSPEND)
    assert {key: (type(error), str(error)) for key, error in failures.items()} == {
        "k-1": (InvalidStateError, "k-1: cannot suspend: it is not running"),
        "k-3": (DrmCommunicationError, "k-3: cannot suspend: connection reset"),
    }
    assert [JobState.SUSPENDED in room.told.states(key) for key in keys] == [False, True, False, True]


@pytest.mark.parametrize(("given", "sent"), [(None, "SIGTERM"), ("", "SIGTERM"), ("SIGQUIT", "SIGQUIT")])
def test_terminating_with_the_signal_of_the_image(room: Room, given: str | None, sent: str) -> None:
    """The signal is what the container is stopped with; one that is paused goes on, to take it."""
    room.submit()
    room.daemon.containers["wfl-k-1"].signal = given
    room.daemon.on["unpause"] = always(InvalidStateError("it is not paused"))
    assert room.backend.control(["k-1"], Action.TERMINATE) == {}
    calls = [call for call in room.daemon.calls if call[0] in ("kill", "unpause")]
    assert calls == [("kill", "wfl-k-1", sent), ("unpause", "wfl-k-1")]


# --- submissions without an answer --------------------------------------------------------------------------


def known(key: str = "k-1") -> Known:
    """As the session remembers a job of which no answer came."""
    return Known(key, None, job())


def test_container_that_is_found_later(room: Room, tmp_path: Path) -> None:
    """A container that was made though no answer came is filled and started when it is found, and once."""
    path = tmp_path / "file"
    path.write_bytes(b"data")
    fields: dict[str, Any] = {"stage_in_files": {"/file": str(path)}}
    room.daemon.on["create"] = always(RESET)
    with pytest.raises(DrmCommunicationError):
        room.submit("k-1", **fields)
    answer = room.backend.find([known()])
    assert (answer.infos, answer.gone) == ([], [])
    room.daemon.make("k-1")
    (info,) = room.backend.find([known()]).infos
    assert (info.id, info.state) == ("k-1", JobState.UNDETERMINED)
    (info,) = room.backend.find([known()]).infos
    assert (info.id, info.state) == ("k-1", JobState.RUNNING)
    assert (room.daemon.count("put"), room.daemon.count("start")) == (1, 1)


def test_start_without_an_answer(room: Room) -> None:
    """A container that was filled but not started is only started."""
    room.daemon.on["start"] = fails(RESET)
    with pytest.raises(DrmCommunicationError):
        room.submit(input_path="/dev/null")
    room.backend.find([known()])
    assert room.daemon.containers["wfl-k-1"].state == "running"
    assert (room.daemon.count("attach_input"), room.daemon.count("start")) == (1, 2)


def test_container_that_is_never_found(open_room: Open) -> None:
    """That there is none is sure only after twice the time that an answer may take."""
    room = open_room(timeout=1000)
    room.daemon.on["create"] = always(RESET)
    with pytest.raises(DrmCommunicationError):
        room.submit()
    room.time.ahead += 1900
    assert room.backend.find([known()]).gone == []
    room.time.ahead += 101
    assert room.backend.find([known()]).gone == ["k-1"]


def test_refused_connection(room: Room) -> None:
    """Where there was no connection there is no container, and that is sure at once."""
    room.daemon.on["create"] = always(UnsentError("connection refused"))
    with pytest.raises(UnsentError):
        room.submit()
    assert room.backend.find([known()]).gone == ["k-1"]


def test_container_of_another_that_was_never_started(room: Room) -> None:
    """What a program made and did not live to start is removed: its job is gone."""
    room.daemon.make("k-1")
    assert room.backend.find([known()]).gone == ["k-1"]
    assert room.daemon.containers == {}


def test_removal_of_what_was_never_started_is_heard_of(room: Room) -> None:
    """That the daemon tells of this removal first makes no lost job of one that never was."""

    def tell(id: str) -> None:
        del room.daemon.containers[id]
        room.daemon.tell("k-1", "destroy")
        until(room.daemon.told.empty)
        time.sleep(SHORT)

    room.daemon.make("k-1")
    room.daemon.on["discard"] = tell
    assert room.backend.find([known()]).gone == ["k-1"]
    assert room.told.ends("k-1") == []


def test_last_request_of_a_program_that_died(room: Room) -> None:
    """A container that its program's last request starts just as it is to be removed goes on."""
    made = room.daemon.make("k-1")
    room.daemon.on["discard"] = lambda _: setattr(made, "state", "running")
    answer = room.backend.find([known()])
    assert (list(answer.infos), list(answer.gone)) == ([], [])
    (info,) = room.backend.find([known()]).infos
    assert info.state is JobState.RUNNING


# --- what the daemon remembers ------------------------------------------------------------------------------


def test_what_is_remembered(room: Room) -> None:
    """The jobs that were started detached, in order of submission; not those of living programs, or never started."""
    room.daemon.make("e-10", **detached(10))
    room.daemon.make("e-9", **detached(9, state="exited"))
    room.daemon.make("d-11", **detached(11, created=999))
    room.daemon.make("a-1.2", **detached(1, created=2000, labels={"wfl.index": "2"}))
    room.daemon.make("a-1.10", **detached(1, created=2000, labels={"wfl.index": "10"}))
    room.daemon.make("e-1", **detached(1, state="created"))
    room.daemon.make("e-2", **detached(2, labels={"wfl.detach": "false"}))
    room.daemon.make("e-3", state="running")
    found = room.backend.remembered()
    assert [one.key for one in found] == ["d-11", "e-9", "e-10", "a-1.2", "a-1.10"]
    assert [(one.job_id, one.index) for one in found[-2:]] == [("e-1", 2), ("e-1", 10)]
    assert found[0].info is not None
    assert found[0].info.submission_time == datetime.fromtimestamp(999, UTC)


def test_labels_do_not_name_files_of_this_side(room: Room, tmp_path: Path) -> None:
    """Whoever may use the daemon can write labels: they make nothing be written here when the job ends."""
    place = str(tmp_path / "file")
    template = job(output_path=place, error_path=f"{place}2", stage_out_files={f"{place}3": "/out"}, job_name="n")
    room.daemon.make("e-1", **detached(1, labels={"wfl.template": template.to_json()}))
    (found,) = room.backend.remembered()
    assert found.template == job(job_name="n")
    room.backend.find([found])
    room.daemon.end("e-1")
    room.told.end("e-1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"labels": {"wfl.template": "{"}},
        {"labels": {"wfl.template": "[]"}},
        {"labels": {"wfl.template": '{"remoteCommand": 7}'}},
        {"labels": {"wfl.template": '{"tea": "earl grey"}'}},
        {"labels": {"wfl.index": "first"}},
        {"without": "wfl.template"},
        {"without": "wfl.job"},
        {"key": "no-number"},
    ],
    ids=str,
)
def test_odd_labels(room: Room, odd: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """A container whose labels are not as wfl writes them is left out, with a word; the others are remembered."""
    room.daemon.make("e-1", **detached(1))
    made = room.daemon.make(odd.get("key", "e-2"), **detached(2, labels=odd.get("labels", {})))
    made.labels.pop(odd.get("without", ""), None)
    assert [one.key for one in room.backend.remembered()] == ["e-1"]
    assert f"docker: container {made.name} is left out: its labels: " in caplog.text


@pytest.mark.parametrize("key", ["e-1", "../../e-1", ""])
def test_key_that_is_not_in_the_name(room: Room, key: str) -> None:
    """A container is asked for by its name, its output kept under its key: a key that is not in the name is none."""
    room.daemon.make("e-2", **detached(2)).labels["wfl.key"] = key
    assert room.backend.remembered() == []
    assert room.backend.find([Known(key, key, job())]).gone == [key]


def test_another_container_with_the_labels_of_a_job(room: Room) -> None:
    """Labels go along with an image that is made of a container; what is started from it is not the job."""
    room.daemon.make("e-1", **detached(1))
    other = room.daemon.make("other", **detached(9, state="exited"))
    other.labels["wfl.key"] = "e-1"
    (found,) = room.backend.remembered()
    assert found.job_id == "e-1"
    assert [info.state for info in room.backend.find([found]).infos] == [JobState.RUNNING]


# --- closing ------------------------------------------------------------------------------------------------


def test_closing_waits_for_a_submission(room: Room) -> None:
    """What is just being submitted is waited for, and ended; from then on nothing is taken any more."""
    go_on = threading.Event()
    room.daemon.on["start"] = lambda _: go_on.wait(PATIENCE)
    submitting = in_thread(room.submit)
    until(lambda: room.daemon.count("start"))
    closing = in_thread(lambda: room.backend.close(end=True))
    until(lambda: isinstance(room.submit("k-2"), InvalidSessionError))
    assert closing.is_alive()
    assert list(room.daemon.containers) == ["wfl-k-1"]
    go_on.set()
    for thread in (submitting, closing):
        thread.join(PATIENCE)
    assert room.daemon.containers == {}
    assert room.words == ["goodbye"]


def test_nothing_is_taken_after_closing(room: Room) -> None:
    """A submission after the end is refused, and asks for nothing."""
    room.backend.close(end=True)
    assert isinstance(room.submit(), InvalidSessionError)
    assert not room.daemon.count("create")


@pytest.mark.parametrize("call", ["list", "remove"])
def test_what_closing_cannot_end(room: Room, call: str) -> None:
    """Containers that are not ended, as the daemon gives no answer, are left to the helper process."""
    room.submit()
    room.daemon.on[call] = always(RESET)
    room.backend.close(end=True)
    assert room.words == ["take over"]


def test_submission_that_closing_cannot_wait_for(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes too long is left to the helper process, whether its container is there yet or not."""
    monkeypatch.setattr(guard, "PATIENCE", 0.05)
    go_on = threading.Event()
    room.daemon.on["create"] = lambda _: go_on.wait(PATIENCE)
    submitting = in_thread(room.submit)
    until(lambda: room.daemon.count("create"))
    room.backend.close(end=True)
    assert room.words == ["take over"]
    go_on.set()
    submitting.join(PATIENCE)


def test_closing_with_a_store(open_room: Open, tmp_path: Path) -> None:
    """What has ended stays for the next program, with its output; what runs is ended, and stays, too."""
    room = open_room(keep=tmp_path)
    room.submit("k-1")
    room.submit("k-2")
    room.daemon.end("k-1")
    room.told.end("k-1")
    room.backend.close(end=True)
    assert [call for call in room.daemon.calls if call[0] in ("kill", "remove")] == [("kill", "wfl-k-2", "SIGKILL")]
    assert (sorted(room.daemon.containers), room.words) == (["wfl-k-1", "wfl-k-2"], ["goodbye"])


def test_closing_writes_output(room: Room, tmp_path: Path) -> None:
    """What a job that is ended by closing wrote until then is in its file; its container is removed."""
    path = tmp_path / "output"
    room.submit(output_path=str(path))
    room.daemon.containers["wfl-k-1"].log = frame(b"so far")
    room.backend.close(end=True)
    assert path.read_bytes() == b"so far"
    assert room.daemon.containers == {}


def test_closing_after_a_submission_without_an_answer(room: Room) -> None:
    """The daemon may still make its container when all others are removed: the helper process sees to that."""
    room.daemon.on["create"] = always(RESET)
    with pytest.raises(DrmCommunicationError):
        room.submit()
    room.backend.close(end=True)
    assert room.words == ["take over"]


def test_events_of_one_connection_cost_one_list(room: Room) -> None:
    """All containers are listed when the events begin, and then only after a long while."""
    room.daemon.on["create"] = lambda _: room.daemon.listening.wait(PATIENCE)  # no job is there when they begin
    room.submit("k-1")
    room.submit("k-2")
    room.daemon.tell("k-1", "start")
    room.daemon.end("k-2")
    room.told.end("k-2")
    assert room.daemon.count("list") == 0


# --- facts --------------------------------------------------------------------------------------------------


def over(code: int = 0, *, memory: int = 0, trouble: str | None = None, state: Any = None, **how: bool) -> JobInfo:
    """The fact of an end."""
    return facts.over("7", inspected(code, memory, **(state or {})), "node", trouble, **how)


def test_fact_of_an_end() -> None:
    """It has when it ran, for how long, and where."""
    info = over()
    assert (info.state, info.sub_state, info.exit_status, info.annotation) == (JobState.DONE, "exited", 0, None)
    assert info.wallclock_time == timedelta(seconds=5)
    assert (info.allocated_machines, info.extensions) == (("node",), {"container_id": "c0ffee"})


@pytest.mark.parametrize(
    ("code", "memory", "guess", "found"),
    [
        (137, 1 << 20, True, "out_of_memory"),
        (137, 1 << 20, False, "signaled"),
        (137, 0, True, "signaled"),
        (143, 1 << 20, True, "signaled"),
        (1, 1 << 20, True, "exited"),
    ],
)
def test_guess_of_memory(code: int, memory: int, guess: bool, found: str) -> None:  # noqa: FBT001 - a row
    """Only a job with a limit, killed by nobody known, is guessed to have needed more memory than it may have."""
    info = over(code, memory=memory, guess_memory=guess)
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, found, code)
    words = "it was killed by nobody known, so most likely for more than its min_phys_memory"
    assert info.annotation == (words if found == "out_of_memory" else None)


def test_want_of_memory_that_the_daemon_tells() -> None:
    """It needs no guess, and holds for any exit status; other words are kept."""
    info = over(1, state={"OOMKilled": True})
    assert (info.sub_state, info.exit_status) == ("out_of_memory", 1)
    assert info.annotation == "a process of it was killed as it needed more than its min_phys_memory"
    assert over(137, state={"OOMKilled": True}, trouble="no output").annotation == "no output"


@pytest.mark.parametrize(("code", "words"), [(0, False), (1, False), (128, False), (143, True), (137, True)])
def test_words_of_an_end_that_nobody_heard(code: int, words: bool) -> None:  # noqa: FBT001 - a row
    """Where a signal ended it while the daemon was away, that may have been why."""
    assert (over(code, unheard=True).annotation is not None) == words
    assert over(code).annotation is None
    assert over(143, unheard=True, trouble="no output").annotation == "no output"


def test_trouble_fails_a_job_that_ended_well() -> None:
    """Its exit status stays."""
    info = over(trouble="no output")
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "exited", 0)
    assert info.annotation == "no output"


def test_end_before_its_start() -> None:
    """A daemon's clock may be coarse: no job runs for less than no time."""
    info = over(state={"FinishedAt": "2029-12-31T23:59:59.9Z"})
    assert (info.wallclock_time, info.finish_time) == (timedelta(0), info.dispatch_time)


def test_end_without_a_start() -> None:
    """A container that was never started could not be; the daemon says why."""
    info = over(127, state={"StartedAt": NEVER, "FinishedAt": NEVER, "Error": "no such device"})
    assert (info.sub_state, info.annotation, info.exit_status) == ("launch_failure", "no such device", None)
    assert (info.dispatch_time, info.finish_time) == (None, None)


def test_fact_of_what_was_removed() -> None:
    """With its exit code if that was told before; else nobody knows how it ended."""
    now = datetime(2030, 1, 1, tzinfo=UTC)
    info = facts.removed("7", None, "node", now)
    assert (info.state, info.sub_state, info.exit_status) == (JobState.FAILED, "lost", None)
    info = facts.removed("7", 0, "node", now)
    assert (info.state, info.sub_state, info.exit_status) == (JobState.DONE, "exited", 0)
    info = facts.removed("7", 143, "node", now)
    assert (info.sub_state, info.terminating_signal, info.exit_status) == ("signaled", "SIGTERM", 143)
    assert (info.finish_time, info.annotation) == (now, "its container was removed by somebody")


def test_template_in_labels_must_be_one() -> None:
    """Reading it is refused, not guessed."""
    found = Container("wfl-k", {"wfl.job": "k", "wfl.template": '{"tea": 1}'}).listed()
    with pytest.raises(InvalidArgumentError):
        facts.remembered("k", found)
