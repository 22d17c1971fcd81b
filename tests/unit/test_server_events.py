"""Events of the job server: streams and long polls, cursors, resets, and that they are made once for all listeners."""

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.asgi import API, SESSION, Client, Open, Served, ended, started, state, submit, until
from wfl.record import Record
from wfl.server import ServerLimits, identities
from wfl.server.events import FEW, ROUND, Hub
from wfl.server.streams import events
from wfl.testing import FakeContext, FakeSystem, Outcome

EVENTS = f"{SESSION}/events"
STREAM = {"accept": "text/event-stream"}
FOREVER = Outcome(duration=math.inf)
Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers of a fake system, which are stopped afterwards."""
    made: list[Served] = []

    def start(**limits: Any) -> Served:
        system = FakeSystem({"stay": FOREVER, "slow": Outcome(duration=1)})
        bounds = ServerLimits(**{"heartbeat": 60.0, **limits})
        made.append(Served(tmp_path / str(len(made)), lambda: FakeContext(system, detach=True), limits=bounds))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def told(body: bytes) -> list[tuple[str, str, Any]]:
    """The whole events in a stream: id, kind, data."""
    found = []
    for text in body.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in text.split("\n") if not line.startswith(":"))
        if lines:
            found.append((lines["id"], lines["event"], json.loads(lines["data"])))
    return found


def states(body: bytes, id: str) -> list[str]:
    """What was told of one job, in order."""
    jobs = [job for _, _, data in told(body) for job in data.get("jobs", ())]
    return [job["info"]["state"] for job in jobs if job["id"] == id]


def has_ended(id: str) -> Callable[[bytes], bool]:
    """Whether a stream has told the end of a job."""
    return lambda body: {"done", "failed"} & {*states(body, id)} != set()


def listen(client: Client, target: str = EVENTS, **headers: str) -> Any:
    """A stream of events."""
    return client.stream(target, **STREAM, **headers)


def is_there(stream: Open) -> None:
    """It has begun, so that nothing is missed from now on."""
    stream.until(lambda body: b"\n\n" in body)


# -- streams --


def test_ends_are_told(serve: Serve) -> None:
    """Who listens is told each change of state with the info that is known then, in order."""
    served = serve()
    with listen(served.alice) as stream:
        is_there(stream)
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
        id = started(served.alice, "slow")
        body = stream.until(has_ended(id))
    assert states(body, id)[-1] == "done"
    (first, *_, last) = told(body)
    assert first[1:] == ("jobs", {"jobs": []})
    assert last[2]["jobs"][-1]["info"]["id"] == id
    assert [int(id.partition(".")[2]) for id, _, _ in told(body)] == [*range(len(told(body)))]


def test_others_are_told_nothing(serve: Serve) -> None:
    """What happens to one identity's jobs, or in another session, is told there only; administrators may ask for it."""
    served = serve()
    other = f"{API}/sessions/other/events"
    with ExitStack() as stack:
        hers, bobs, elsewhere, roots = (
            stack.enter_context(one)
            for one in (
                listen(served.alice),
                listen(served.bob),
                listen(served.alice, other),
                listen(served.root, f"{EVENTS}?identity=alice"),
            )
        )
        for stream in (hers, bobs, elsewhere, roots):
            is_there(stream)
        id = started(served.alice)
        hers.until(has_ended(id))
        roots.until(has_ended(id))
        own = started(served.bob)
        bobs.until(has_ended(own))
        assert id.encode() not in bobs.body
        assert elsewhere.body.count(b"data:") == 1


def test_coming_back(serve: Serve) -> None:
    """Who comes back with the cursor of what was heard last is told what came since, and nothing twice."""
    served = serve()
    with listen(served.alice) as stream:
        is_there(stream)
        first = started(served.alice)
        last = told(stream.until(has_ended(first)))[-1][0]
    second = started(served.alice)
    ended(served.alice, second)
    for headers, query in (({"last-event-id": last}, ""), ({}, f"?cursor={last}")):
        with listen(served.alice, EVENTS + query, **headers) as stream:
            body = stream.until(has_ended(second))
        assert states(body, first) == []
        assert told(body)[0][0] == last  # should it break off now, nothing is skipped


@pytest.mark.parametrize(
    "cursor", ["x", "1.2", ".", "0.0", "{started}.999999", "{started}.-1", "{started}.x", "{started}."]
)
def test_a_cursor_that_is_not_known(serve: Serve, cursor: str) -> None:
    """Nobody knows what was missed: that is said, with a cursor to go on from."""
    served = serve()
    given = cursor.format(started=served.server.hub.started)
    with listen(served.alice, f"{EVENTS}?cursor={given}") as stream:
        is_there(stream)
        assert told(stream.body)[0] == (served.server.hub.cursor, "reset", {})
        id = started(served.alice)
        stream.until(has_ended(id))
    poll = served.alice.get(f"{EVENTS}?cursor={given}&wait=5").json()
    assert (poll["reset"], poll["jobs"]) == (True, [])


def test_another_run_of_the_server(serve: Serve) -> None:
    """A cursor of the run before is not known any more."""
    served = serve()
    cursor = served.alice.get(EVENTS).json()["cursor"]
    served.restart()
    assert served.alice.get(f"{EVENTS}?cursor={cursor}").json()["reset"]


def test_what_fell_out(serve: Serve) -> None:
    """Only so much is kept; who comes back after more than that is told to look at everything."""
    served = serve(events=2000)
    cursor = served.alice.get(EVENTS).json()["cursor"]
    for _ in range(10):
        ended(served.alice, started(served.alice))
    until(lambda: served.alice.get(f"{EVENTS}?cursor={cursor}").json()["reset"])
    assert served.server.hub._size <= 2000  # noqa: SLF001 - what is kept


def test_signs_of_life(serve: Serve) -> None:
    """In between there are comments, so that both sides notice a connection that is dead."""
    served = serve(heartbeat=0.01)
    with listen(served.alice) as stream:
        stream.until(lambda body: body.count(b": alive\n\n") > 2)


def test_a_revoked_token_ends_the_stream(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no right any more is told nothing any more."""
    monkeypatch.setattr(identities, "LOOK", 0.0)
    served = serve(heartbeat=0.01)
    with listen(served.alice) as stream:
        is_there(stream)
        served.identities.revoke("alice")
        while stream.step():
            pass
    assert not served.server.metrics.streams


def test_leaving(serve: Serve) -> None:
    """Who goes away is noticed at once, and leaves nothing behind."""
    served = serve()
    with listen(served.alice) as stream:
        is_there(stream)
        assert served.server.metrics.streams == 1
    channel = served.server.hub._channels[("alice", "s")]  # noqa: SLF001 - what would stay
    assert (served.server.metrics.streams, channel.listeners, len(channel.waiters)) == (0, 0, 0)


def test_places_for_listeners(serve: Serve) -> None:
    """There are so many, and so many for each identity; one more is told to come again."""
    each = serve(streams_each=1)
    with listen(each.alice) as stream, listen(each.bob) as other:
        is_there(stream)
        is_there(other)
        assert each.alice.get(EVENTS, headers=STREAM).error == (503, "TryLaterError")
    served = serve(streams=1)
    with listen(served.alice) as stream:
        is_there(stream)
        answer = served.bob.get(EVENTS, headers=STREAM)
        assert answer.error == (503, "TryLaterError")
        cursor = served.bob.get(EVENTS).json()["cursor"]
        assert served.bob.get(f"{EVENTS}?cursor={cursor}&wait=1").error == (503, "TryLaterError")
    with listen(served.bob) as stream:
        is_there(stream)


def test_the_end_of_the_server(serve: Serve) -> None:
    """Streams and polls end when it is told to stop."""
    served = serve()
    cursor = served.alice.get(EVENTS).json()["cursor"]
    with listen(served.alice) as stream, served.alice.stream(f"{EVENTS}?cursor={cursor}&wait=60") as poll:
        is_there(stream)
        until(lambda: served.server.metrics.streams == 2)
        served.open.call(served.server.drain)
        for one in (stream, poll):
            while one.step():
                pass
        assert json.loads(poll.body) == {"cursor": cursor, "reset": False, "jobs": []}
        assert not stream.cut


def test_many_listeners_are_sent_the_same(serve: Serve) -> None:
    """What happens is made into an event once, however many listen."""
    served = serve()
    described: list[Record] = []
    describe = served.server.hub._describe  # noqa: SLF001 - what is counted

    def count(record: Record) -> Any:
        described.append(record)
        return describe(record)

    served.server.hub._describe = count  # noqa: SLF001
    with ExitStack() as stack:
        streams = [stack.enter_context(listen(served.alice)) for _ in range(50)]
        for stream in streams:
            is_there(stream)
        id = started(served.alice, "slow")
        bodies = {stream.until(has_ended(id)) for stream in streams}
    assert len(bodies) == 1
    assert len(described) <= 4


def test_what_is_refused_is_not_told(serve: Serve) -> None:
    """A job that was refused never was one."""
    served = serve()
    with listen(served.alice) as stream:
        is_there(stream)
        (refused,) = submit(served.alice, {"remoteCommand": ""})
        assert "error" in refused
        id = started(served.alice)
        body = stream.until(has_ended(id))
    assert {job["id"] for _, _, data in told(body) for job in data["jobs"]} == {id}


# -- long polls --


def test_polls(serve: Serve) -> None:
    """Without a cursor the present one; with it what came since, at once or as soon as something does."""
    served = serve()
    first = served.alice.get(f"{EVENTS}?wait=60").json()
    assert (first["reset"], first["jobs"]) == (False, [])
    assert served.alice.get(f"{EVENTS}?cursor={first['cursor']}").json() == first  # wait is 0
    assert served.alice.get(f"{EVENTS}?cursor={first['cursor']}&wait=0.01").json() == first
    with served.alice.stream(f"{EVENTS}?cursor={first['cursor']}&wait=60") as poll:
        until(lambda: served.server.metrics.streams)
        id = started(served.alice, "stay")
        while poll.step():
            pass
    heard = json.loads(poll.body)
    assert {job["id"] for job in heard["jobs"]} == {id}
    until(lambda: state(served.alice, id) == "running")
    seen: list[str] = []
    cursor = first["cursor"]
    while "running" not in seen:
        answer = served.alice.get(f"{EVENTS}?cursor={cursor}&wait=60").json()
        assert not answer["reset"]
        cursor = answer["cursor"]
        seen += [job["info"]["state"] for job in answer["jobs"]]
    assert re.fullmatch(r"[0-9a-f]{12}\.\d+", cursor)


@pytest.mark.parametrize("wait", ["x", "-1", "", "nan", "inf", "1_0", "+5", "1e9999", "٣"])
def test_waits_that_are_wrong(serve: Serve, wait: str) -> None:
    """They are malformed."""
    served = serve()
    cursor = served.alice.get(EVENTS).json()["cursor"]
    assert served.alice.get(f"{EVENTS}?cursor={cursor}&wait={wait}").error == (400, "InvalidArgumentError")


def test_nobody_waits_longer_than_the_server_lets_them(serve: Serve) -> None:
    """A long poll has an end."""
    served = serve(wait=0.01)
    cursor = served.alice.get(EVENTS).json()["cursor"]
    assert served.alice.get(f"{EVENTS}?cursor={cursor}&wait=1000").json()["jobs"] == []


# -- the hub itself --


def changed(*keys: str) -> list[Record]:
    """Records, as far as the hub looks at them."""
    return [SimpleNamespace(key=key) for key in keys]  # type: ignore[misc] # no more than that


def hub_of(describe: Any, limit: int = 1 << 20) -> Hub:
    """A hub on this loop."""
    hub = Hub(describe, limit)
    hub.open()
    return hub


def test_what_happens_together_is_told_together() -> None:
    """Many changes are a few events, each with the job as it is then, and the loop is not kept for long."""
    owner = ("a", "s")

    async def run() -> list[int]:
        hub = hub_of(lambda record: (owner, record.key.encode()))
        channel = hub.channel(owner)
        hub.changed(changed(*map(str, range(2 * ROUND + FEW))))
        hub.changed(changed("0"))  # once more before it was told
        while sum(one.jobs.count(b",") + 1 for one in channel.told) < 2 * ROUND + FEW:
            await hub.wait(channel, 5)
        return [one.jobs.count(b",") + 1 for one in channel.told]

    assert asyncio.run(run()) == [ROUND, ROUND, FEW]


def test_nothing_is_kept_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of sessions that nobody ever asked for are not made; those that nobody asks for any more are forgotten."""
    owner = ("a", "s")

    async def run() -> None:
        hub = hub_of(lambda record: (owner, record.key.encode()))
        hub._tell(changed("1"))  # noqa: SLF001 - without the loop's turn
        assert (hub.number, hub._size) == (0, 0)  # noqa: SLF001
        channel = hub.channel(owner)
        hub._tell(changed("1"))  # noqa: SLF001
        cursor = f"{hub.started}.0"
        assert hub.position(channel, cursor) == 0
        hub.tidy()
        assert hub.position(hub.channel(owner), cursor) == 0
        monkeypatch.setattr("wfl.server.events.IDLE", -1.0)
        hub.tidy()
        assert hub.position(hub.channel(owner), cursor) is None
        assert (hub._size, len(hub._kept)) == (0, 0)  # noqa: SLF001

    asyncio.run(run())


def test_nobody_is_forgotten_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names are asked for: who is just being told is not forgotten, nor what another identity had."""
    monkeypatch.setattr("wfl.server.events.MOST", 3)

    async def run() -> None:
        hub = hub_of(lambda _: None)
        heard, others = hub.channel(("a", "heard")), hub.channel(("b", "s"))
        heard.listeners += 1
        for number in range(10):
            hub.channel(("a", str(number)))
        assert hub.channel(("a", "heard")) is heard
        assert hub.channel(("b", "s")) is others
        assert len(hub._channels) == 4  # noqa: SLF001 - what would grow

    asyncio.run(run())


def test_a_busy_stream_ends_with_its_token() -> None:
    """A stream that always has something to tell is ended, too, when its token is revoked."""
    owner = ("a", "s")

    async def run() -> None:
        hub = hub_of(lambda record: (owner, record.key.encode()))
        good = [True]
        stream = events(
            hub, owner, None, asyncio.get_running_loop().create_future(), heartbeat=60, still=lambda: good[0]
        )
        assert b"event: jobs" in await anext(stream)
        hub._tell(changed("1"))  # noqa: SLF001 - without the loop's turn
        assert b"1" in await anext(stream)
        hub._tell(changed("2"))  # noqa: SLF001
        good[0] = False
        assert [piece async for piece in stream] == []

    asyncio.run(run())


def test_names_of_sessions_cost_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for ever more names makes the server forget the oldest that nobody listens to, and nothing grows."""
    monkeypatch.setattr("wfl.server.events.MOST", 3)
    served = serve()
    with listen(served.alice) as stream:
        is_there(stream)
        for number in range(10):
            served.alice.get(f"{API}/sessions/n{number}/events")
            served.alice.get(f"{API}/sessions/n{number}/jobs")
        assert len(served.server.hub._channels) <= 4  # noqa: SLF001 - what would grow
        assert not served.server.ledger._sessions  # noqa: SLF001
        id = started(served.alice)
        stream.until(has_ended(id))


def test_a_listener_that_is_too_slow(serve: Serve) -> None:
    """Who does not keep up is told to look at everything, and then goes on."""
    served = serve(events=1)
    with listen(served.alice) as stream:
        is_there(stream)
        ids = [one["id"] for one in submit(served.alice, *[{"remoteCommand": "slow"}] * 3)]
        stream.until(lambda body: b"event: reset" in body or has_ended(ids[-1])(body))


def test_changes_after_the_loop_is_gone() -> None:
    """A change that comes when nobody can be told any more is no error."""
    hub = Hub(lambda _: None, 1)

    async def run() -> None:
        hub.open()
        await asyncio.sleep(0)

    asyncio.run(run())
    hub.changed(changed("1"))
    hub.changed(changed("2"))
