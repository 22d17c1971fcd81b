"""Files and output on their way: what breaks off is gone on with, what changes meanwhile is never put together."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="httpx is not in this environment")

import httpx

from tests.unit.test_remote_fake import (
    URL,
    Fault,
    JobServer,
    eventually,
    half,
    put_in_place,
    status,
    swallowed,
    unheard,
)
from wfl import staging
from wfl.contexts.remote import files, following, v1
from wfl.contexts.remote.client import Client
from wfl.contexts.remote.following import Followers
from wfl.contexts.remote.settings import Credentials, Place
from wfl.contexts.remote.v1 import Api
from wfl.errors import DrmCommunicationError, InvalidArgumentError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> JobServer:
    """A server in memory."""
    monkeypatch.setattr(v1, "_REST", 0.001)
    return put_in_place(JobServer(), monkeypatch)


@pytest.fixture
def api(server: JobServer) -> Iterator[Api]:
    """Its calls."""
    del server
    client = Client(Place(base_url=URL, patience=1.0), Credentials())
    yield Api(client, "s")
    client.close()


def made(server: JobServer, source: Path, **known: Any) -> str:
    """A job with one result."""
    job = server._new("s", "k", {"remoteCommand": "stay"}, **known)  # noqa: SLF001 - another program's
    job.results["0"] = {"/data": str(source)}
    return job.id


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [[half] * 6, [status(502), half, swallowed, half], [status(503, Retry_After="0")]])
def test_fetching_goes_on(server: JobServer, api: Api, tmp_path: Path, faults: list[Fault]) -> None:
    """Parts that arrived are not asked for again, and all of them are the file."""
    (tmp_path / "data").write_bytes(bytes(range(256)) * 500)
    id = made(server, tmp_path / "data")
    server.fail("/files/", *faults)
    staging.unpack(api.file(id, "0"), "data", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "data").read_bytes()
    ranges = [request.headers.get("Range") for request in server.requests if "/files/" in request.url.path]
    assert ranges[0] is None
    if half in faults:
        assert ranges[-1] is not None


def test_server_without_ranges(server: JobServer, api: Api, tmp_path: Path) -> None:
    """One that begins anew each time is listened to from where we were."""
    (tmp_path / "data").write_bytes(bytes(range(256)) * 50)
    id = made(server, tmp_path / "data")

    def whole(act: Any) -> httpx.Response:
        server.requests[-1].headers.pop("Range", None)
        return act()  # type: ignore[no-any-return]

    server.fail("/files/", half, whole)
    staging.unpack(api.file(id, "0"), "data", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "data").read_bytes()


def test_changed_file_is_not_put_together(server: JobServer, api: Api, tmp_path: Path) -> None:
    """Parts of two versions are never one file: nothing is written."""
    (tmp_path / "data").write_bytes(b"first" * 1000)
    id = made(server, tmp_path / "data")

    def change(act: Any) -> httpx.Response:
        (tmp_path / "data").write_bytes(b"other" * 1000)
        return act()  # type: ignore[no-any-return]

    server.fail("/files/", half, change)
    with pytest.raises(DrmCommunicationError, match="changed"):
        staging.unpack(api.file(id, "0"), "data", str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_end_that_is_lost_alone(server: JobServer, api: Api, tmp_path: Path) -> None:
    """Where all had come but the word that it was all, the file is whole."""
    (tmp_path / "data").write_bytes(b"x" * 3000)
    id = made(server, tmp_path / "data")

    class Cut(httpx.SyncByteStream):
        def __init__(self, whole: bytes) -> None:
            self._whole = whole

        def __iter__(self) -> Iterator[bytes]:
            yield self._whole
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

    def cut(act: Any) -> httpx.Response:
        answer = act()
        return httpx.Response(200, headers=dict(answer.headers), stream=Cut(answer.content))

    server.fail("/files/", cut)
    staging.unpack(api.file(id, "0"), "data", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"x" * 3000


def test_fetching_is_given_up(server: JobServer, api: Api, tmp_path: Path) -> None:
    """A file that never comes, though the server answers, is given up after some tries."""
    (tmp_path / "data").write_bytes(b"x")
    id = made(server, tmp_path / "data")
    server.fail("/files/", *[status(502)] * 100)
    with pytest.raises(DrmCommunicationError, match="502"):
        list(api.file(id, "0"))
    assert server.count("/files/") == v1.TRIES


@pytest.mark.parametrize("size", [0, 1, v1.PIECE - 1, v1.PIECE, v1.PIECE + 1, 2 * v1.PIECE + 7])
def test_uploads_of_any_size(server: JobServer, api: Api, size: int) -> None:
    """Pieces are put where they belong, however often one of them is lost."""
    data = bytes(range(251)) * (size // 251 + 1)
    server.fail("PUT /api", unheard, half, swallowed, status(503))
    id = api.upload([data[:size]], "file", size)
    assert server.uploads[id] == data[:size]
    assert all(len(request.content) <= v1.PIECE for request in server.requests)


def test_upload_that_is_always_forgotten(server: JobServer, api: Api, tmp_path: Path) -> None:
    """It is begun a few times, and then it is no answer."""
    (tmp_path / "in").write_bytes(b"x")

    def forget(act: Any) -> httpx.Response:
        server.uploads.clear()
        return act()  # type: ignore[no-any-return]

    server.fail("PUT /api", *[forget] * 10)
    with pytest.raises(DrmCommunicationError, match="forgotten"):
        files._send_input(api, str(tmp_path / "in"))  # noqa: SLF001 - not for others
    with pytest.raises(InvalidArgumentError, match="input_path"):
        files._send_input(api, str(tmp_path / "missing"))  # noqa: SLF001


def test_output_is_written_through_faults(server: JobServer, api: Api, tmp_path: Path) -> None:
    """What has come is kept when the server goes away in between, and the rest is asked for."""
    id = made(server, tmp_path)
    server.jobs[id].stdout = data = b"0123456789" * 300_000
    server.fail("/output/", lambda act: act(), *[status(502)] * 1000)
    with pytest.raises(DrmCommunicationError):
        files.write_output(api, id, {"stdout": str(tmp_path / "out")}, tmp_path)
    server.faults.clear()
    assert files.write_output(api, id, {"stdout": str(tmp_path / "out")}, tmp_path) is None
    offsets = [int(request.url.params["offset"]) for request in server.requests if "/output/" in request.url.path]
    assert offsets.count(0) == 1
    assert (tmp_path / "out").read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_output_that_cannot_be_kept(server: JobServer, api: Api, tmp_path: Path) -> None:
    """A full disk is words, not an error of the server's."""
    id = made(server, tmp_path)
    server.jobs[id].stdout = b"x"
    words = files.write_output(api, id, {"stdout": "/dev/full"}, tmp_path)
    assert "No space left" in (words or "")


# --- following --------------------------------------------------------------------------------------------


def followers(api: Api, place: Path) -> Followers:
    """Of one session."""
    return Followers(api, lambda: place, threading.Event())


def test_streams_are_few(server: JobServer, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond their number the server is asked, more rarely the longer nothing comes, and all comes in the end."""
    monkeypatch.setattr(following, "STREAMS", 1)
    found = followers(api, tmp_path)
    ids = [server._new("s", f"k{n}", {"remoteCommand": "stay"}).id for n in range(3)]  # noqa: SLF001
    for _ in range(200):
        for id in ids:
            assert found.read(id, "stdout", 0, 10) == (b"", True)
    assert server.count("/output/") < 30
    for id in ids:
        server.jobs[id].stdout = b"words"
        eventually(lambda id=id: found.read(id, "stdout", 0, 10) == (b"words", True))  # type: ignore[misc]
        server.end(id)
    found.close()
    eventually(lambda: not any(thread.name == "wfl-remote-output" for thread in threading.enumerate()))
    assert not list(tmp_path.iterdir())


def test_broken_stream_is_made_again(server: JobServer, api: Api, tmp_path: Path) -> None:
    """What breaks off is read on from where it was, without a gap or a repetition."""
    found = followers(api, tmp_path)
    id = server._new("s", "k", {"remoteCommand": "stay"}).id  # noqa: SLF001 - another program's
    server.jobs[id].stdout = b"first "
    assert found.read(id, "stdout", 0, 100) == (b"first ", True)
    server.fail("/output/", swallowed)  # the stream itself
    assert found.read(id, "stdout", 6, 100) == (b"", True)
    server.jobs[id].stdout += b"second"
    come = bytearray()

    def more() -> bool:
        with suppress(DrmCommunicationError):
            come.extend(found.read(id, "stdout", 6 + len(come), 2)[0])
        return bytes(come) == b"second"

    eventually(more)
    followed = [request for request in server.requests if "follow" in request.url.params]
    assert {request.extensions["timeout"]["read"] for request in followed} == {v1.SILENCE}
    assert v1.SILENCE <= 60  # a connection that is dead without a word is noticed by that alone
    server.end(id)
    found.drop(id)
