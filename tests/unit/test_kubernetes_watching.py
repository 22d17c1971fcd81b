"""Watch: whatever becomes of the connection, everything is listed again, and heard from there on."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from wfl.contexts.kubernetes import watching
from wfl.contexts.kubernetes.client import Client, ExpiredError
from wfl.contexts.kubernetes.watching import Object, Watch
from wfl.errors import DeniedByDrmsError, DrmCommunicationError

PATIENCE = 30.0  # seconds that a thread may take on a busy machine
LOST = DrmCommunicationError("the connection was cut")
EXPIRED = ExpiredError("too old resource version")

Event = tuple[str, dict[str, Any]]


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "this did not come"
        time.sleep(0.002)


def thing(version: int, name: str = "p") -> dict[str, Any]:
    """An object in one of its versions."""
    return {"metadata": {"name": name, "resourceVersion": str(version)}}


class Closed(threading.Event):
    """Says how long was waited, and waits no more than a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        """As if the time had gone by."""
        assert timeout is not None
        self.pauses.append(timeout)
        return super().wait(0.001)


class Server:
    """Stands for the client. What it answers is in two lists; when they are at an end, lists are empty, watches silent.

    An error in them is raised; a number is so many seconds that go by.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.lists: list[tuple[list[dict[str, Any]], str] | Exception] = []
        self.watches: list[list[Event | Exception | float]] = []
        self.again: Exception | None = None  # what every later watch ends with
        self.asked: list[tuple[str, ...]] = []
        self.closed = Closed()
        self.silent = threading.Event()

    def list(self, kind: str, selector: str) -> tuple[list[dict[str, Any]], str]:
        """Everything there is."""
        self.asked.append(("list", kind, selector))
        answer = self.lists.pop(0) if self.lists else ([], "1")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def watch(self, kind: str, selector: str, version: str) -> Iterator[Event]:
        """What happens then."""
        self.asked.append(("watch", kind, selector, version))
        if not self.watches:
            if self.again is not None:
                raise self.again
            self.silent.set()
            while not self.closed.is_set():
                time.sleep(0.001)
            return
        for event in self.watches.pop(0):
            if isinstance(event, Exception):
                raise event
            if isinstance(event, float):
                self.now += event
            else:
                yield event

    def monotonic(self) -> float:
        """The time: none goes by unless it is said."""
        return self.now

    @property
    def versions(self) -> Sequence[str]:
        """From which it was watched, and "list" where it was listed."""
        return [asked[3] if asked[0] == "watch" else "list" for asked in [*self.asked]]


class Ear:
    """What is told of it all."""

    def __init__(self) -> None:
        self.listed: list[list[str]] = []
        self.heard: list[tuple[str, str]] = []

    def take_list(self, found: Sequence[Object]) -> None:
        """All there are."""
        self.listed.append([one["metadata"]["name"] for one in found])

    def take(self, what: str, found: Object) -> None:
        """One change."""
        self.heard.append((what, found["metadata"]["resourceVersion"]))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """It ends with the test."""
    made = Server()
    monkeypatch.setattr(watching, "time", made)
    yield made
    made.closed.set()


@pytest.fixture
def ear() -> Ear:
    """It has heard nothing."""
    return Ear()


def watch(server: Server, ear: Ear, **other: Callable[..., None]) -> Watch:
    """Listen to that server."""
    given: Any = {"listed": ear.take_list, "heard": ear.take, **other}
    return Watch(cast("Client", server), "pods", "a=b", closed=server.closed, **given)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said aloud."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_lists_and_watches_from_there(server: Server, ear: Ear) -> None:
    """All there is comes first, then each change, by kind and label; it says when it listens."""
    server.lists = [([thing(3, "p"), thing(5, "q")], "7")]
    server.watches = [[("ADDED", thing(8)), ("MODIFIED", thing(9)), ("DELETED", thing(10))]]
    one = watch(server, ear)
    assert one.ready.wait(PATIENCE)
    until(server.silent.is_set)
    assert server.asked[:2] == [("list", "pods", "a=b"), ("watch", "pods", "a=b", "7")]
    assert ear.listed == [["p", "q"]]
    assert ear.heard == [("ADDED", "8"), ("MODIFIED", "9"), ("DELETED", "10")]


def test_it_says_that_it_listens_when_the_list_was_taken(server: Server, ear: Ear) -> None:
    """Who waits for it knows all that was there before."""
    taken = threading.Event()
    seen: list[bool] = []

    def listed(found: Sequence[Object]) -> None:
        seen.append(one_box[0].ready.is_set() if one_box else False)
        ear.take_list(found)
        taken.set()

    one_box: list[Watch] = []
    one_box.append(watch(server, ear, listed=listed))
    assert one_box[0].ready.wait(PATIENCE)
    assert taken.is_set()
    assert seen == [False]


def test_a_watch_that_ends_well_goes_on_from_the_last_version(server: Server, ear: Ear) -> None:
    """The server ends each after a while; nothing is listed again for that."""
    server.lists = [([], "7")]
    server.watches = [[("ADDED", thing(8))], [("ADDED", thing(9)), ("BOOKMARK", thing(12))]]
    watch(server, ear)
    until(server.silent.is_set)
    assert server.versions == ["list", "7", "8", "12"]
    assert ear.heard == [("ADDED", "8"), ("ADDED", "9")]


def test_a_bookmark_is_no_change(server: Server, ear: Ear) -> None:
    """It is a version alone."""
    server.watches = [[("BOOKMARK", thing(8))]]
    watch(server, ear)
    until(server.silent.is_set)
    assert ear.heard == []
    assert server.versions == ["list", "1", "8"]


def test_an_old_version_is_listed_again_without_a_word(
    server: Server, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    """Every restart of the API server makes all versions old."""
    server.lists = [([thing(3)], "7"), ([thing(9)], "9")]
    server.watches = [[("ADDED", thing(8)), EXPIRED]]
    watch(server, ear)
    until(server.silent.is_set)
    assert server.versions == ["list", "7", "list", "9"]
    assert ear.listed == [["p"], ["p"]]
    assert warnings(caplog) == []


def test_a_lost_connection_is_told_once_and_so_is_its_return(
    server: Server, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is tried in vain; everything is listed when it is there again."""
    server.lists = [([], "7"), LOST, LOST, LOST, ([thing(9)], "9")]
    server.watches = [[LOST], [("BOOKMARK", thing(10)), ("BOOKMARK", thing(11))]]
    watch(server, ear)
    until(server.silent.is_set)
    lost, back = warnings(caplog)
    assert lost == "kubernetes: the watch of pods was lost, trying again: the connection was cut"
    assert back == "kubernetes: the watch of pods is there again"
    assert ear.listed == [[], ["p"]]


def test_any_error_is_tried_again(server: Server, ear: Ear) -> None:
    """Refused credentials may be renewed, and what is no answer at all may be one the next time."""
    server.lists = [DeniedByDrmsError("no"), ValueError("?"), ([], "7")]
    watch(server, ear)
    until(server.silent.is_set)
    assert server.versions == ["list", "list", "list", "7"]


def test_pauses_grow_while_nothing_answers(server: Server, ear: Ear) -> None:
    """From a tenth of a second to five; a watch that lasted makes them short again."""
    server.lists = [*[LOST] * 8, ([], "7"), LOST]
    server.watches = [[("ADDED", thing(8)), 6.0, LOST]]
    watch(server, ear)
    until(server.silent.is_set)
    grown = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert server.closed.pauses[:8] == pytest.approx(grown)
    assert server.closed.pauses[8] == pytest.approx(0.1)


def test_it_is_not_ready_while_it_is_lost(server: Server, ear: Ear) -> None:
    """Who repeats something waits for it."""
    server.lists = [([], "7"), *[LOST] * 100_000]
    server.watches = [[LOST]]
    one = watch(server, ear)
    until(lambda: len(server.asked) > 4)
    assert not one.ready.is_set()
    server.lists = []
    assert one.ready.wait(PATIENCE)


def test_watches_that_never_work_do_not_keep_the_server_busy(
    server: Server, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    """Where lists are answered and watches refused, pauses grow all the same, and it is said once."""
    server.again = DeniedByDrmsError("the right to watch pods is missing")
    watch(server, ear)
    until(lambda: len(server.closed.pauses) > 12)
    assert server.closed.pauses[11] == watching.PAUSE[1]
    assert len([said for said in warnings(caplog) if "was lost" in said]) == 1


def test_watches_that_end_at_once_do_not_keep_the_server_busy(server: Server, ear: Ear) -> None:
    """Something between may answer in the server's place: there are pauses between such watches."""
    server.watches = [[] for _ in range(20)]
    watch(server, ear)
    until(server.silent.is_set)
    assert server.closed.pauses == [0.1] * 20
    assert server.versions == ["list", *["1"] * 21]


def test_watches_that_the_server_ends_in_its_time_follow_at_once(server: Server, ear: Ear) -> None:
    """Nothing is missed between them, and no time is lost."""
    server.watches = [[60.0], [("ADDED", thing(8)), 60.0], [60.0]]
    watch(server, ear)
    until(server.silent.is_set)
    assert server.closed.pauses == []
    assert server.versions == ["list", "1", "1", "8", "8"]


def test_a_change_that_is_not_understood_stops_nothing(
    server: Server, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next is heard."""

    def heard(what: str, found: Object) -> None:
        if found["metadata"]["name"] == "bad":
            raise KeyError("status")
        ear.take(what, found)

    server.watches = [[("ADDED", thing(8, "bad")), ("ADDED", thing(9))]]
    watch(server, ear, heard=heard)
    until(server.silent.is_set)
    assert ear.heard == [("ADDED", "9")]
    assert server.versions == ["list", "1", "9"]
    assert warnings(caplog) == ["kubernetes: ADDED of pods bad"]


def test_it_ends_with_its_session(server: Server, ear: Ear, caplog: pytest.LogCaptureFixture) -> None:
    """What breaks off then is worth no word."""
    one = watch(server, ear)
    until(server.silent.is_set)
    server.closed.set()
    one.join(PATIENCE)
    names = [thread.name for thread in threading.enumerate()]
    assert "wfl-kubernetes-pods" not in names
    assert warnings(caplog) == []


def test_an_error_of_closing_is_not_told(server: Server, ear: Ear, caplog: pytest.LogCaptureFixture) -> None:
    """A session that is closed cuts its streams itself."""

    def heard(what: str, found: Object) -> None:
        del what, found
        server.closed.set()

    server.watches = [[("ADDED", thing(8)), LOST]]
    one = watch(server, ear, heard=heard)
    one.join(PATIENCE)
    assert warnings(caplog) == []
    assert server.versions == ["list", "1"]
