"""Output, uploads and results of the job server, with real processes: by ranges, resumed, checked, and bounded."""

import hashlib
import io
import math
import os
import sqlite3
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.asgi import API, PATIENCE, SESSION, Answer, Client, Served, ended, started, state, submit, until
from wfl import staging
from wfl.contexts.process import ProcessContext
from wfl.drmaa2 import JobTemplate
from wfl.errors import DrmCommunicationError
from wfl.server import Policy, ServerLimits
from wfl.server.database import Database
from wfl.testing import FakeContext, FakeSystem, Outcome

Serve = Callable[..., Served]
FOREVER = Outcome(duration=math.inf)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers of this machine's processes, or of a fake system; they are stopped afterwards."""
    made: list[Served] = []

    def start(system: FakeSystem | None = None, default_template: JobTemplate | None = None, **settings: Any) -> Served:
        make = ProcessContext if system is None else lambda: FakeContext(system, default_template=default_template)
        made.append(Served(tmp_path / str(len(made)), make, **settings))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def shell(client: Client, line: str, **fields: Any) -> str:
    """Start a shell; the job's id."""
    return started(client, "/bin/sh", "-c", line, **fields)


def output(client: Client, id: str, query: str = "", stream: str = "stdout", **headers: str) -> Answer:
    """Read output."""
    return client.get(f"{API}/jobs/{id}/output/{stream}{query}", headers=headers)


def upload(client: Client, data: bytes, kind: str = "file", *, complete: bool = True) -> str:
    """Upload something; its id."""
    id = client.post(f"{SESSION}/uploads", {"size": len(data), "kind": kind}).json()["upload"]
    put = client.request("PUT", f"{SESSION}/uploads/{id}?offset=0", data)
    assert put.json() == {"upload": id, "offset": len(data), "complete": False}
    if complete:
        answer = finish(client, id, data)
        assert answer.json() == {"upload": id, "offset": len(data), "complete": True}, answer.body
    return str(id)


def finish(client: Client, id: str, data: bytes) -> Answer:
    """Say that all is there."""
    return client.post(f"{SESSION}/uploads/{id}/complete", {"sha256": hashlib.sha256(data).hexdigest()})


def packed(source: Path) -> bytes:
    """A file or directory as the contexts pack it."""
    return b"".join(staging.pack({f"/{source.name}": str(source)}))


# -- output --


def test_output_in_parts(serve: Serve) -> None:
    """Output is there whole, from an offset, so many bytes of it, or as a range; the headers say where one is."""
    served = serve()
    id = shell(served.alice, "printf 0123456789; printf wrong >&2")
    ended(served.alice, id)
    whole = output(served.alice, id)
    assert (whole.body, whole.headers["x-wfl-offset"], whole.headers["x-wfl-end"]) == (b"0123456789", "0", "true")
    assert whole.headers["content-type"] == "application/octet-stream"
    assert output(served.alice, id, stream="stderr").body == b"wrong"
    part = output(served.alice, id, "?offset=2&limit=3")
    assert (part.body, part.headers["x-wfl-offset"], part.headers["x-wfl-end"]) == (b"234", "2", "false")
    last = output(served.alice, id, "?offset=8&limit=3")
    assert (last.body, last.headers["x-wfl-end"]) == (b"89", "true")
    assert output(served.alice, id, "?offset=7").body == b"789"
    assert output(served.alice, id, "?offset=99&limit=1").body == b""
    ranged = output(served.alice, id, range="bytes=3-5")
    assert (ranged.status, ranged.body, ranged.headers["content-range"]) == (206, b"345", "bytes 3-5/*")
    open_end = output(served.alice, id, range="bytes=8-")
    assert (open_end.status, open_end.body, open_end.headers["content-range"]) == (206, b"89", "bytes 8-9/*")
    assert output(served.alice, id, range="bytes=10-").error == (416, "InvalidArgumentError")
    for other in ("bytes=5-3", "bytes=-3", "lines=1-2", "bytes=0-1,3-4", "bytes=a-b"):
        assert (output(served.alice, id, range=other).status, output(served.alice, id, range=other).body) == (
            200,
            b"0123456789",
        )


@pytest.mark.parametrize(
    "query", ["?offset=-1", "?offset=x", "?limit=x", "?follow=yes", "?offset=99999999999999999999"]
)
def test_output_queries_that_are_wrong(serve: Serve, query: str) -> None:
    """They are malformed."""
    served = serve(FakeSystem())
    id = started(served.alice)
    assert output(served.alice, id, query).error == (400, "InvalidArgumentError")


def test_output_of_what_there_is_none(serve: Serve) -> None:
    """No other stream, no array, nothing of another; nothing yet is nothing."""
    served = serve(FakeSystem({"stay": FOREVER}))
    id = started(served.alice, "stay", submitAsHold=True)
    assert output(served.alice, id).body == b""
    assert output(served.alice, id, stream="stdin").error == (404, "InvalidArgumentError")
    assert output(served.bob, id).error == (404, "InvalidArgumentError")
    body = {"template": {"remoteCommand": "stay"}, "indexes": [0, 2, 1]}
    array = served.alice.post(f"{SESSION}/arrays", body).json()["id"]
    assert output(served.alice, array).error == (422, "InvalidArgumentError")


def test_following(serve: Serve) -> None:
    """Output is sent as it is written, to the end of the job."""
    served = serve()
    id = shell(served.alice, "echo one; while [ ! -e go ]; do sleep 0.02; done; echo two")
    with served.alice.stream(f"{API}/jobs/{id}/output/stdout?follow=true") as stream:
        stream.until(lambda body: b"one\n" in body)
        (served.directory / "data" / "work" / id / "go").touch()
        while stream.step():
            pass
    assert stream.body == b"one\ntwo\n"
    assert not stream.cut
    again = output(served.alice, id, "?follow=true&offset=4")
    assert again.body == b"two\n"


def test_following_ends_with_the_server(serve: Serve) -> None:
    """Who follows is let go when the server is told to stop, and who leaves is noticed."""
    served = serve(FakeSystem({"stay": Outcome(duration=math.inf, output="x")}))
    id = started(served.alice, "stay")
    target = f"{API}/jobs/{id}/output/stdout?follow=true"
    with served.alice.stream(target) as stream:
        stream.until(lambda body: body == b"x")
    assert served.server.metrics.streams == 0
    with served.alice.stream(target) as stream:
        stream.until(lambda body: body == b"x")
        served.open.call(served.server.drain)
        while stream.step():
            pass


@pytest.mark.parametrize("query", ["", "?follow=true"])
def test_a_revoked_token_ends_output(serve: Serve, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    """Output that is being sent is cut off when the secret is revoked, although there is always more of it."""
    served = serve(FakeSystem({"x": Outcome(output="x" * (3 << 20))}))
    id = started(served.alice, "x")
    ended(served.alice, id)
    answers = iter([True, False])
    monkeypatch.setattr(served.identities, "still", lambda _: next(answers))
    with served.alice.stream(f"{API}/jobs/{id}/output/stdout{query}") as stream:
        while stream.step():
            pass
    assert (len(stream.body), stream.cut) == (1 << 20, True)


def test_output_takes_a_place(serve: Serve) -> None:
    """Also output as a whole is one of the streams that an identity may have open."""
    served = serve(FakeSystem({"stay": Outcome(duration=math.inf, output="x")}), limits=ServerLimits(streams_each=1))
    id = started(served.alice, "stay")
    with served.alice.stream(f"{API}/jobs/{id}/output/stdout?follow=true") as stream:
        stream.until(len)
        assert output(served.alice, id).error == (503, "TryLaterError")
    until(lambda: not served.server.metrics.streams)
    assert output(served.alice, id).body == b"x"


def test_output_that_breaks_off(serve: Serve) -> None:
    """Where the system fails in the middle, the connection is cut: what came is not taken for the whole."""
    system = FakeSystem({"x": Outcome(output="x" * (3 << 20))})
    served = serve(system)
    id = started(served.alice)
    ended(served.alice, id)
    with served.alice.stream(f"{API}/jobs/{id}/output/stdout") as stream:
        stream.until(len)
        system.fail("read", DrmCommunicationError("gone"), times=10)
        while stream.step():
            pass
    assert stream.cut or len(stream.body) == 3 << 20


def test_output_of_the_head_alone(serve: Serve) -> None:
    """HEAD says the same without a body."""
    served = serve()
    id = shell(served.alice, "echo hello")
    ended(served.alice, id)
    answer = served.alice.request("HEAD", f"{API}/jobs/{id}/output/stdout")
    assert (answer.status, answer.body) == (200, b"")


# -- uploads --


def test_a_job_with_what_was_uploaded(serve: Serve, tmp_path: Path) -> None:
    """Files and directories that were uploaded are where the template wants them, and on standard input."""
    served = serve()
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "b").write_text("in a directory\n")
    text, archive = upload(served.alice, b"a file\n"), upload(served.alice, packed(tree), "tar")
    stage = {"here/a": f"upload:{text}", "dir": f"upload:{archive}"}
    id = shell(served.alice, "cat; cat here/a dir/sub/b", stageInFiles=stage, inputPath=f"upload:{text}")
    assert ended(served.alice, id) == "done", output(served.alice, id, stream="stderr").body
    assert output(served.alice, id).body == b"a file\na file\nin a directory\n"


def test_results(serve: Serve, tmp_path: Path) -> None:
    """What a job leaves is fetched as an archive after its end, whole or in parts, and goes when it is reaped."""
    served = serve()
    stage = {"result:dir": "out", "result:file.txt": "x.txt"}
    line = "mkdir out; echo 1 > out/1; echo hello > x.txt; [ -e go ] || sleep 0.1"
    id = shell(served.alice, line, stageOutFiles=stage)
    assert ended(served.alice, id) == "done", output(served.alice, id, stream="stderr").body
    assert served.alice.get(f"{API}/jobs/{id}").json()["results"] == ["dir", "file.txt"]
    for name, there, text in (("dir", "1", "1\n"), ("file.txt", "", "hello\n")):
        answer = served.alice.get(f"{API}/jobs/{id}/files/{name}")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-tar")
        staging.unpack([answer.body], name, str(tmp_path / "got" / name))
        assert (tmp_path / "got" / name / there).read_text() == text if there else True
        head = served.alice.request("HEAD", f"{API}/jobs/{id}/files/{name}")
        assert int(head.headers["content-length"]) == len(answer.body)
        rest = served.alice.get(f"{API}/jobs/{id}/files/{name}", headers={"range": "bytes=100-"})
        assert (rest.status, rest.body) == (206, answer.body[100:])
        assert rest.headers["etag"] == answer.headers["etag"]
    assert (tmp_path / "got" / "file.txt").read_text() == "hello\n"
    for name in ("nothing", "..", "%2e%2e", ".", "..%2fdir"):
        assert served.alice.get(f"{API}/jobs/{id}/files/{name}").status == 404
    assert served.bob.get(f"{API}/jobs/{id}/files/dir").error == (404, "InvalidArgumentError")
    data = served.directory / "data"
    served.alice.request("DELETE", f"{API}/jobs/{id}")
    assert [list((data / place).iterdir()) for place in ("work", "results", "packed")] == [[], [], []]


def test_results_of_elements(serve: Serve) -> None:
    """Each element of an array has results of its own."""
    served = serve()
    template = {
        "remoteCommand": "/bin/sh", "args": ["-c", "echo $TASK_ID > out"], "stageOutFiles": {"result:out": "out"},
    }  # fmt: skip
    id = served.alice.post(f"{SESSION}/arrays", {"template": template, "indexes": [1, 3, 1]}).json()["id"]
    assert ended(served.alice, id) == "done"
    for index in (1, 2):
        archive = served.alice.get(f"{API}/jobs/{id}.{index}/files/out").body
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            file = tar.extractfile("out")
            assert file is not None
            assert file.read() == b"%d\n" % index


def test_results_before_the_end(serve: Serve) -> None:
    """They are not there yet."""
    served = serve(FakeSystem({"stay": FOREVER}))
    id = started(served.alice, "stay")
    assert served.alice.get(f"{API}/jobs/{id}/files/x").error == (409, "InvalidStateError")


def test_results_are_packed_side_by_side(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one of one job holds up nobody who fetches another's."""
    served = serve()
    large, small = (shell(served.alice, "echo x > x", stageOutFiles={"result:x": "x"}) for _ in range(2))
    for id in (large, small):
        ended(served.alice, id)
    began, go_on, pack = threading.Event(), threading.Event(), staging.pack

    def packed_slowly(sources: dict[str, str]) -> Iterator[bytes]:
        if large in sources["/x"]:
            began.set()
            assert go_on.wait(PATIENCE)
        return pack(sources)

    monkeypatch.setattr(staging, "pack", packed_slowly)
    answers: list[Answer] = []
    fetch = threading.Thread(target=lambda: answers.append(served.alice.get(f"{API}/jobs/{large}/files/x")))
    fetch.start()
    assert began.wait(PATIENCE)
    try:
        assert served.alice.get(f"{API}/jobs/{small}/files/x").status == 200
    finally:
        go_on.set()
        fetch.join()
    assert answers[0].status == 200


def test_a_result_that_is_a_link(serve: Serve) -> None:
    """A link that stands where a result should be is not followed: it could lead anywhere."""
    served = serve()
    id = shell(served.alice, "echo x > x", stageOutFiles={"result:x": "x"})
    ended(served.alice, id)
    place = served.directory / "data" / "results" / id / "x"
    place.unlink()
    place.symlink_to("/etc/passwd")
    assert served.alice.get(f"{API}/jobs/{id}/files/x").status == 404


def test_jobs_have_directories_of_their_own(serve: Serve) -> None:
    """Two jobs do not see each other's files, nor the place where the server was started."""
    served = serve()
    ids = [shell(served.alice, "ls; pwd; touch file") for _ in range(2)]
    for id in ids:
        ended(served.alice, id)
        place = served.directory / "data" / "work" / id
        assert output(served.alice, id).body.decode() == f"{place}\n"


def test_jobs_without_directories_of_their_own(serve: Serve) -> None:
    """Then they start where the server does, and nothing can be staged."""
    served = serve(own_directories=False)
    id = shell(served.alice, "pwd")
    ended(served.alice, id)
    assert output(served.alice, id).body.decode() == f"{os.getcwd()}\n"
    (refused,) = submit(served.alice, {"remoteCommand": "true", "stageOutFiles": {"result:x": "x"}})
    assert refused["error"]["type"] == "DeniedByDrmsError"
    assert not {"stage_in_files", "stage_out_files"} & {*served.alice.get(f"{API}/info").json()["fields"]}


def test_a_directory_that_all_jobs_share(serve: Serve, tmp_path: Path) -> None:
    """Where the server's own template names one, nothing can be staged there: it would be among others' files."""
    (tmp_path / "shared").mkdir()
    system = FakeSystem()
    served = serve(system, default_template=JobTemplate(working_directory=str(tmp_path / "shared")))
    text = upload(served.alice, b"x")
    for field, value in (("stageOutFiles", {"result:x": "hers"}), ("stageInFiles", {"hers": f"upload:{text}"})):
        (refused,) = submit(served.alice, {"remoteCommand": "x", field: value}, keys=False)
        assert refused["error"]["type"] == "DeniedByDrmsError"
        assert "no directory of their own" in refused["error"]["message"]
    assert not {"stage_in_files", "stage_out_files"} & {*served.alice.get(f"{API}/info").json()["fields"]}
    id = started(served.alice)
    ended(served.alice, id)
    assert system.submitted[0].template.working_directory == str(tmp_path / "shared")
    assert os.listdir(served.directory / "data" / "work") == []


def test_an_upload_in_parts(serve: Serve) -> None:
    """It goes on where it broke off; what would leave a hole, or come twice, is a conflict."""
    served = serve(FakeSystem())
    id = served.alice.post(f"{SESSION}/uploads", {}).json()["upload"]
    target = f"{SESSION}/uploads/{id}"
    assert served.alice.request("PUT", f"{target}?offset=0", b"01234").headers["upload-offset"] == "5"
    assert served.alice.request("HEAD", target).headers["upload-offset"] == "5"
    for offset in (0, 4, 6):
        assert served.alice.request("PUT", f"{target}?offset={offset}", b"x").error == (409, "InvalidStateError")
    with served.alice.stream(target):  # GET is not for uploads
        pass
    stream = served.alice.begin("PUT", f"{target}?offset=5", {})
    stream.say(b"567")
    stream.leave()  # broken off in between
    while stream.step():
        pass
    served.alice.request("PUT", f"{target}?offset={served.server.files.upload('alice', 's', id).size}", b"")
    size = int(served.alice.request("HEAD", target).headers["upload-offset"])
    assert size in (5, 8)
    served.alice.request("PUT", f"{target}?offset={size}", b"0123456789"[size:])
    assert finish(served.alice, id, b"0123456789").status == 200
    assert finish(served.alice, id, b"0123456789").status == 200  # once more
    assert finish(served.alice, id, b"other").error == (409, "InvalidStateError")
    assert served.alice.request("PUT", f"{target}?offset=10", b"x").error == (409, "InvalidStateError")
    assert served.alice.request("HEAD", target).headers["upload-complete"] == "true"


def test_an_upload_survives_a_restart(serve: Serve) -> None:
    """Also there it goes on, and what is complete stays."""
    served = serve(FakeSystem())
    whole, half = upload(served.alice, b"x"), upload(served.alice, b"half", complete=False)
    served.restart()
    assert served.alice.request("HEAD", f"{SESSION}/uploads/{half}").headers["upload-offset"] == "4"
    assert finish(served.alice, half, b"half").status == 200
    id = started(served.alice, inputPath=f"upload:{whole}")
    assert ended(served.alice, id) == "done"


def test_uploads_that_are_wrong(serve: Serve) -> None:
    """Another's, one that is not complete, one that arrived otherwise, one of another kind: none can be used."""
    served = serve(FakeSystem())
    hers, half = upload(served.alice, b"x"), upload(served.alice, b"half", complete=False)
    archive_is_none = upload(served.alice, b"x" * 2000, "tar", complete=False)
    target = f"{SESSION}/uploads/{hers}"
    for client, there in ((served.bob, target), (served.alice, target.replace("/s/", "/t/")), (served.root, target)):
        assert client.request("HEAD", there).status == 404
        assert client.request("PUT", there, b"").status == 404
        assert finish_at(client, there).status == 404
    assert finish(served.alice, half, b"other").error == (422, "InvalidArgumentError")
    assert finish(served.alice, archive_is_none, b"x" * 2000).error == (422, "InvalidArgumentError")
    for client, id, kind in (
        (served.bob, hers, "InvalidArgumentError"),
        (served.alice, half, "InvalidStateError"),
        (served.alice, "0" * 32, "InvalidArgumentError"),
    ):
        (answer,) = submit(client, {"remoteCommand": "x", "inputPath": f"upload:{id}"}, keys=False)
        assert answer["error"]["type"] == kind
    body = {"template": {"remoteCommand": "x", "stageInFiles": {"a": f"upload:{hers}"}}, "indexes": [0, 2, 1]}
    assert served.bob.post(f"{SESSION}/arrays", body).error == (404, "InvalidArgumentError")


def finish_at(client: Client, target: str) -> Answer:
    """Say that all of an upload at an address is there."""
    return client.post(f"{target}/complete", {"sha256": "0" * 64})


def test_an_archive_is_no_standard_input(serve: Serve, tmp_path: Path) -> None:
    """That has to be a file."""
    served = serve(FakeSystem())
    (tmp_path / "d").mkdir()
    id = upload(served.alice, packed(tmp_path / "d"), "tar")
    (answer,) = submit(served.alice, {"remoteCommand": "x", "inputPath": f"upload:{id}"})
    assert answer["error"]["type"] == "InvalidArgumentError"


def archive_of(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """An archive made by somebody else."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """One member of such."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    "archive",
    [
        archive_of(member("d", tarfile.DIRTYPE), member("d/../../evil"), data=b"x"),
        archive_of(member("/etc/evil"), data=b"x"),
        archive_of(member("d", tarfile.DIRTYPE), member("d/l", tarfile.SYMTYPE, "/etc"), member("d/l/evil"), data=b"x"),
        archive_of(member("d", tarfile.DIRTYPE), member("d/l", tarfile.SYMTYPE, "../../x")),
        archive_of(member("d", tarfile.DIRTYPE), member("d/l", tarfile.LNKTYPE, "../../server.db")),
        archive_of(member("d", tarfile.DIRTYPE), member("d/f", tarfile.FIFOTYPE)),
        archive_of(member("d", tarfile.DIRTYPE), member("d/f", tarfile.CHRTYPE)),
        archive_of(member("l", tarfile.SYMTYPE, "/etc/passwd")),
        archive_of(member("d", tarfile.DIRTYPE), member("d/a"), data=b"x" * 5000)[:4000],
        archive_of(member("a"), member("b"), data=b"x"),
    ],
)
def test_archives_that_lead_out(serve: Serve, archive: bytes, tmp_path: Path) -> None:
    """An archive cannot write, or point, outside of itself; nothing of it stays where it could be used."""
    served = serve(FakeSystem())
    before = {path for path in tmp_path.rglob("*") if "uploads" not in path.parts}
    id = upload(served.alice, archive, "tar", complete=False)
    answer = finish(served.alice, id, archive)
    assert answer.status in (422, 503)
    assert {path for path in tmp_path.rglob("*") if "uploads" not in path.parts} == before
    (refused,) = submit(served.alice, {"remoteCommand": "x", "stageInFiles": {"a": f"upload:{id}"}})
    assert refused["error"]["type"] == "InvalidStateError"


def test_an_archive_that_grows(serve: Serve) -> None:
    """A small archive cannot become a large file: sparse files are refused."""
    sparse = tarfile.TarInfo("bomb")
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(1 << 40),
                          "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,1", "GNU.sparse.name": "bomb"}  # fmt: skip
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        sparse.size = 1
        tar.addfile(sparse, io.BytesIO(b"x"))
    served = serve(FakeSystem())
    id = upload(served.alice, file.getvalue(), "tar", complete=False)
    answer = finish(served.alice, id, file.getvalue())
    assert answer.error == (422, "InvalidArgumentError")
    assert "sparse" in answer.message


def test_how_much_may_be_uploaded(serve: Serve) -> None:
    """One upload, and all of an identity together, have a limit, whether they say their size or not."""
    served = serve(FakeSystem(), limits=ServerLimits(upload=10, stored=25))
    new = f"{SESSION}/uploads"
    assert served.alice.post(new, {"size": 11}).error == (422, "InvalidArgumentError")
    id = served.alice.post(new, {}).json()["upload"]
    assert served.alice.request("PUT", f"{new}/{id}", b"x" * 11).error == (422, "InvalidArgumentError")
    id = served.alice.post(new, {"size": 3}).json()["upload"]
    assert served.alice.request("PUT", f"{new}/{id}", b"x" * 4).error == (422, "InvalidArgumentError")
    for _ in range(2):
        upload(served.alice, b"x" * 10, complete=False)
    assert served.alice.post(new, {"size": 10}).error == (422, "OutOfResourceError")
    id = served.alice.post(new, {}).json()["upload"]
    assert served.alice.request("PUT", f"{new}/{id}", b"x" * 10).error == (422, "OutOfResourceError")
    upload(served.bob, b"x" * 10)


def test_how_many_may_be_uploaded(serve: Serve) -> None:
    """Their number has a limit, too; what is there can still be gone on with."""
    served = serve(FakeSystem(), limits=ServerLimits(uploads=1))
    id = served.alice.post(f"{SESSION}/uploads", {}).json()["upload"]
    assert served.alice.post(f"{SESSION}/uploads", {}).error == (422, "OutOfResourceError")
    assert served.alice.request("PUT", f"{SESSION}/uploads/{id}", b"x").status == 200
    upload(served.bob, b"x")


@pytest.mark.parametrize("body", [{"size": -1}, {"size": "1"}, {"kind": "zip"}, {"more": 1}, {"size": 1 << 63}, []])
def test_uploads_that_are_malformed(serve: Serve, body: object) -> None:
    """What says otherwise than the description does is refused."""
    assert serve(FakeSystem()).alice.post(f"{SESSION}/uploads", body).error == (400, "InvalidArgumentError")


def test_uploads_that_nobody_uses(serve: Serve) -> None:
    """They go after a while; those of a job stay as long as that, and then go, too."""
    served = serve(FakeSystem({"stay": FOREVER}), limits=ServerLimits(keep_upload=1e-6))
    used, unused = upload(served.alice, b"x"), upload(served.alice, b"y")
    id = started(served.alice, "stay", inputPath=f"upload:{used}")
    time.sleep(0.001)
    served.server.files.remove_unused()
    there = served.directory / "data" / "uploads"
    assert os.listdir(there) == [used]
    assert served.alice.request("HEAD", f"{SESSION}/uploads/{unused}").status == 404
    served.alice.post(f"{API}/jobs/{id}/kill")
    ended(served.alice, id)
    served.alice.request("DELETE", f"{API}/jobs/{id}")
    served.server.files.remove_unused()
    assert os.listdir(there) == []


def test_archives_of_results_that_nobody_fetches(serve: Serve) -> None:
    """What was packed for somebody goes after a while, and is packed again for the next."""
    served = serve(limits=ServerLimits(keep_upload=1e-6))
    id = shell(served.alice, "echo x > x", stageOutFiles={"result:x": "x"})
    ended(served.alice, id)
    first = served.alice.get(f"{API}/jobs/{id}/files/x")
    served.server.files.remove_unused()
    assert not list((served.directory / "data" / "packed").glob("*/*"))
    assert served.alice.get(f"{API}/jobs/{id}/files/x").body == first.body


def test_what_a_crash_left(serve: Serve) -> None:
    """Directories of jobs and uploads that nobody knows are removed at the start."""
    served = serve(FakeSystem())
    kept = upload(served.alice, b"x")
    served.stop()
    data = served.directory / "data"
    for place in ("work", "results", "packed", "uploads"):
        (data / place / "gone").mkdir()
        (data / place / "gone" / "file").touch()
    with closing(sqlite3.connect(data / "server.db")) as connection, connection:
        assert connection.execute("select count(*) from uploads").fetchone() == (1,)
    served.start()
    assert [sorted(os.listdir(data / place)) for place in ("work", "results", "packed", "uploads")] == [
        [],
        [],
        [],
        [kept],
    ]


def test_a_slow_upload(serve: Serve) -> None:
    """Who sends a body byte by byte is cut off."""
    served = serve(FakeSystem(), limits=ServerLimits(body_seconds=0.05))
    id = served.alice.post(f"{SESSION}/uploads", {}).json()["upload"]
    stream = served.alice.begin("PUT", f"{SESSION}/uploads/{id}?offset=0", {})
    stream.say(b"x")
    while stream.step():
        pass
    assert stream.status == 408
    assert served.server.files.upload("alice", "s", id).busy.acquire(blocking=False)


def test_completing_twice_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says once more that all is there, as no answer came, has that of the first; it is no conflict."""
    served = serve(FakeSystem())
    id = upload(served.alice, b"x", complete=False)
    began, go_on, complete = threading.Event(), threading.Event(), Database.complete_upload

    def slowly(*arguments: Any) -> None:
        began.set()
        assert go_on.wait(PATIENCE)
        complete(*arguments)

    monkeypatch.setattr(Database, "complete_upload", slowly)
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(finish(served.alice, id, b"x"))) for _ in range(2)]
    threads[0].start()
    assert began.wait(PATIENCE)
    with monkeypatch.context() as patch:
        patch.setattr("wfl.server.files.PATIENCE", 0.01)
        later = finish(served.alice, id, b"x")
    assert later.error == (503, "TryLaterError")
    assert later.headers["retry-after"]
    threads[1].start()
    until(lambda: served.server.reading.pending == 2)
    go_on.set()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [200, 200]


def test_a_death_as_an_archive_is_unpacked(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What came is there until it is written down that all is complete, so that the same request ends it later."""
    served = serve()
    (tmp_path / "file").write_text("in an archive\n")
    data = packed(tmp_path / "file")
    id = upload(served.alice, data, "tar", complete=False)
    place = served.directory / "data" / "uploads" / id

    def die(*_: object) -> None:
        raise RuntimeError("died")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "complete_upload", die)
        assert finish(served.alice, id, data).status == 500
    served.restart()
    assert served.alice.request("HEAD", f"{SESSION}/uploads/{id}").headers["upload-offset"] == str(len(data))
    assert finish(served.alice, id, data).status == 200
    (place / "data").write_bytes(data)  # as if it had died once more
    served.restart()
    assert os.listdir(place) == ["tree"]
    job = shell(served.alice, "cat file", stageInFiles={"file": f"upload:{id}"})
    assert ended(served.alice, job) == "done"
    assert output(served.alice, job).body == b"in an archive\n"


def test_an_upload_whose_bytes_are_gone(serve: Serve) -> None:
    """It is unknown, so that its client begins another one."""
    served = serve(FakeSystem())
    id = served.alice.post(f"{SESSION}/uploads", {}).json()["upload"]
    (served.directory / "data" / "uploads" / id / "data").unlink()
    assert served.alice.request("PUT", f"{SESSION}/uploads/{id}?offset=0", b"x").status == 404
    assert finish(served.alice, id, b"").status == 404


def test_archives_count_after_a_restart(serve: Serve, tmp_path: Path) -> None:
    """What was unpacked is as large as it came."""
    (tmp_path / "file").write_text("x")
    data = packed(tmp_path / "file")
    served = serve(FakeSystem(), limits=ServerLimits(stored=len(data) + 10))
    id = served.alice.post(f"{SESSION}/uploads", {"kind": "tar"}).json()["upload"]
    served.alice.request("PUT", f"{SESSION}/uploads/{id}?offset=0", data)
    assert finish(served.alice, id, data).status == 200
    for _ in range(2):
        assert served.alice.request("HEAD", f"{SESSION}/uploads/{id}").headers["upload-offset"] == str(len(data))
        assert served.alice.post(f"{SESSION}/uploads", {"size": 11}).error == (422, "OutOfResourceError")
        served.restart()


def test_an_upload_that_takes_long(serve: Serve) -> None:
    """What is just written is not taken for what nobody needs, and after it was broken off it is young."""
    served = serve(FakeSystem(), limits=ServerLimits(keep_upload=60))
    id = served.alice.post(f"{SESSION}/uploads", {}).json()["upload"]
    files = served.server.files
    one = files.upload("alice", "s", id)

    def wait_long() -> None:
        with closing(sqlite3.connect(served.directory / "data" / "server.db")) as connection, connection:
            connection.execute("update uploads set touched = touched - 100")

    with suppress(InterruptedError), files.writing(one, 0) as file:
        files.write(one, file, b"x")
        wait_long()
        files.remove_unused()
        files.write(one, file, b"y")
        raise InterruptedError
    files.remove_unused()
    assert served.alice.request("HEAD", f"{SESSION}/uploads/{id}").headers["upload-offset"] == "2"
    wait_long()
    files.remove_unused()
    assert served.alice.request("HEAD", f"{SESSION}/uploads/{id}").status == 404


def test_a_write_that_nobody_waits_for(serve: Serve) -> None:
    """One that ends after its request was given up counts nothing: another may be writing by then."""
    served = serve(FakeSystem())
    id = served.alice.post(f"{SESSION}/uploads", {}).json()["upload"]
    one = served.server.files.upload("alice", "s", id)

    class GivenUp(io.FileIO):
        def write(self, data: Any, /) -> int:
            count = super().write(data)
            self.close()
            return count

    with (
        GivenUp(served.directory / "data" / "uploads" / id / "data", "r+") as file,
        pytest.raises(ValueError, match="closed"),
    ):
        served.server.files.write(one, file, b"x")
    assert one.size == 0


def test_two_who_write_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one writes to an upload at a time; where it waits for more, which may never come, it makes way."""
    monkeypatch.setattr("wfl.server.files.PATIENCE", 0.01)
    served = serve(FakeSystem())
    id = served.alice.post(f"{SESSION}/uploads", {}).json()["upload"]
    stream = served.alice.begin("PUT", f"{SESSION}/uploads/{id}?offset=0", {})
    stream.say(b"x")
    until(lambda: served.server.files.upload("alice", "s", id).waits)
    assert finish(served.alice, id, b"x").error == (503, "TryLaterError")
    assert served.alice.request("PUT", f"{SESSION}/uploads/{id}?offset=0", b"y").error == (409, "InvalidStateError")
    while stream.step():
        pass
    assert stream.status == 408
    assert served.alice.request("PUT", f"{SESSION}/uploads/{id}?offset=0", b"y").status == 200
    assert finish(served.alice, id, b"y").status == 200


def test_paths_of_the_server_where_they_are_allowed(serve: Serve, tmp_path: Path) -> None:
    """A server whose identities are trusted can let them name its paths."""
    served = serve(policy=Policy(server_paths=True))
    (tmp_path / "in").write_text("hello")
    fields = {"inputPath": str(tmp_path / "in"), "outputPath": str(tmp_path / "out"), "workingDirectory": str(tmp_path)}
    id = started(served.alice, "cat", **fields)
    assert ended(served.alice, id) == "done"
    assert (tmp_path / "out").read_text() == "hello"


def test_a_job_that_needs_more_room_than_there_is(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be made for it is said; it is no job."""
    served = serve()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(served.server.files, "make", full)
    answer = served.alice.post(f"{SESSION}/jobs", {"jobs": [{"key": "k", "template": {"remoteCommand": "true"}}]})
    assert answer.error == (503, "OutOfResourceError")
    monkeypatch.undo()
    (one,) = submit(served.alice, {"remoteCommand": "true"})
    assert ended(served.alice, one["id"]) == "done"
    assert state(served.alice, one["id"]) == "done"
