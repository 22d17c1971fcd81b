"""Files of a pod: all of a copy arrives or none, in both directions, and what broke off may be repeated."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from wfl.contexts.kubernetes import files
from wfl.contexts.kubernetes.client import Client, NotThereError
from wfl.errors import (
    DrmCommunicationError,
    ImplementationSpecificError,
    InvalidArgumentError,
    OutOfResourceError,
)

PIECE = 1 << 15  # bytes in which a command's output comes


class Pod:
    """Stands for the client and for a pod of it: commands are run here, with another directory in place of /wfl."""

    def __init__(self, place: Path, env: Mapping[str, str]) -> None:
        self.place, self.env = place, env
        self.asked: list[tuple[str, str, float | None]] = []
        self.sent: Callable[[Iterable[bytes]], Iterable[bytes]] = lambda pieces: pieces
        self.came: Callable[[Iterable[bytes]], Iterable[bytes]] = lambda pieces: pieces
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[tuple[int, str]], tuple[int, str]] = lambda result: result

    def exec(
        self,
        pod: str,
        container: str,
        command: Sequence[str],
        *,
        input: Iterable[bytes] | None = None,  # noqa: A002 - the client's
        output: Callable[[bytes], object] | None = None,
        timeout: float | None = None,
    ) -> tuple[int, str]:
        """Run a command as the client does."""
        self.asked.append((pod, container, timeout))
        self.before()
        words = [str(self.place) if word == "/wfl" else word for word in command]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=self.env) as process:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            try:
                self._send(process.stdin, input or ())
                for piece in self.came(iter(lambda: process.stdout.read(PIECE), b"")):  # type: ignore[union-attr]
                    if output:
                        output(piece)
            except BaseException:
                process.kill()
                raise
            return self.after((process.wait(), process.stderr.read().decode()))

    def _send(self, stdin: Any, pieces: Iterable[bytes]) -> None:
        try:
            for piece in self.sent(pieces):
                stdin.write(piece)
            stdin.close()
        except BrokenPipeError:  # the command has ended: its status tells why
            pass

    @property
    def client(self) -> Client:
        """As what it stands for."""
        return cast("Client", self)

    @property
    def waits(self) -> bool:
        """Whether the job in it has not been let go yet."""
        return not (self.place / ".go").exists()


def cut_to(size: int) -> Callable[[Iterable[bytes]], Iterator[bytes]]:
    """Return what lets only so many bytes of a stream through, and ends it quietly."""

    def cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
        left = size
        for piece in pieces:
            yield piece[:left]
            left = max(0, left - len(piece))

    return cut


def lost(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Give the first piece, then lose the connection."""
    for piece in pieces:
        yield piece
        break
    raise DrmCommunicationError("the connection was lost")


def tree_of(place: Path) -> dict[str, object]:
    """Return what is below a directory: modes and contents, or where links lead."""
    return {
        str(path.relative_to(place)): path.readlink()
        if path.is_symlink()
        else (path.stat().st_mode, None if path.is_dir() else path.read_bytes())
        for path in place.rglob("*")
    }


@pytest.fixture(scope="session")
def applets(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A directory of BusyBox's commands, or None where there is none."""
    busybox = shutil.which("busybox")
    if busybox is None:
        return None
    place = tmp_path_factory.mktemp("applets")
    subprocess.run([busybox, "--install", "-s", str(place)], check=True)
    return place


@pytest.fixture(params=["system", "busybox"])
def pod(request: pytest.FixtureRequest, tmp_path: Path, applets: Path | None) -> Pod:
    """A pod with the commands of this system, and one with BusyBox's."""
    place = tmp_path / "wfl"
    place.mkdir()
    if request.param == "system":
        return Pod(place, dict(os.environ))
    if applets is None:
        pytest.skip("busybox is not installed")
    return Pod(place, {"PATH": str(applets)})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with a bit of everything."""
    top = tmp_path / "source"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "sub").chmod(0o711)
    (top / "a").write_bytes(bytes(range(256)) * 5000)
    (top / "run.sh").write_bytes(b"#!/bin/sh\n")
    (top / "run.sh").chmod(0o750)
    (top / "sub" / "up").symlink_to("../a")
    (top / "sub" / "nowhere").symlink_to("not/there")
    (top / ("long" * 40)).write_bytes(b"long name")
    (top / "gr\u00fc\u00dfe").write_bytes(b"umlaut")
    (top / os.fsdecode(b"raw\xff")).write_bytes(b"no text")
    (top / " blank\nbreak").write_bytes(b"odd")
    return top


# --- into a pod -------------------------------------------------------------------------------------------


def test_files_are_put_and_the_pod_goes_on(pod: Pod, source: Path) -> None:
    """Files and directories arrive as they are, at their places; then, and not before, the pod may go on."""
    assert pod.waits
    files.put(pod.client, "pod-1", {"in/0": str(source), "in/stdin": str(source / "a")})
    assert tree_of(pod.place / "in" / "0") == tree_of(source)
    assert (pod.place / "in" / "stdin").read_bytes() == (source / "a").read_bytes()
    assert sorted(path.name for path in pod.place.iterdir()) == [".go", "in"]
    assert {(name, container) for name, container, _ in pod.asked} == {("pod-1", "wfl-in")}


def test_a_thousand_files(pod: Pod, tmp_path: Path) -> None:
    """Many small files are no other matter."""
    (tmp_path / "many").mkdir()
    for number in range(1000):
        (tmp_path / "many" / str(number)).write_text(str(number))
    files.put(pod.client, "pod", {"in/0": str(tmp_path / "many")})
    assert tree_of(pod.place / "in" / "0") == tree_of(tmp_path / "many")


def test_the_size_of_a_huge_file_is_understood(pod: Pod, tmp_path: Path) -> None:
    """More than eight gibibytes are told in a way that every tar reads."""
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(9 << 30)
    heads: list[bytes] = []

    def look(pieces: Iterable[bytes]) -> Iterator[bytes]:
        heads.append(next(iter(pieces)))
        yield from lost(heads)

    pod.sent = look
    with pytest.raises(DrmCommunicationError):
        files.put(pod.client, "pod", {"in/0": str(tmp_path / "huge")})
    listed = subprocess.run(["tar", "-tvf", "-"], input=heads[0], env=pod.env, capture_output=True, check=False)
    assert b" 9663676416 " in listed.stdout


@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["nothing", "half", "nearly all"])
def test_a_stream_cut_short_is_no_success(pod: Pod, source: Path, share: float) -> None:
    """A stream that ends early is an error that may be repeated, and the pod waits on; the repetition succeeds."""
    pod.sent = cut_to(int(share * 256 * 5000))
    with pytest.raises(DrmCommunicationError, match=r"pod-1, container wfl-in: .* did not all arrive"):
        files.put(pod.client, "pod-1", {"in/0": str(source / "a")})
    assert pod.waits
    assert not (pod.place / "in").exists()
    pod.sent = lambda pieces: pieces
    files.put(pod.client, "pod-1", {"in/0": str(source / "a")})
    assert (pod.place / "in" / "0").read_bytes() == (source / "a").read_bytes()
    assert not pod.waits


def test_a_stream_cut_between_two_files_is_no_success(pod: Pod, tmp_path: Path) -> None:
    """Where the first of two files is whole, and the end looks like an archive's: the second is missed."""
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(512))

    def first_alone(pieces: Iterable[bytes]) -> Iterator[bytes]:
        yield b"".join(pieces)[:1024] + bytes(1024)

    pod.sent = first_alone
    with pytest.raises(DrmCommunicationError, match="did not all arrive"):
        files.put(pod.client, "pod", {"in/0": str(tmp_path / "a"), "in/1": str(tmp_path / "b")})
    assert pod.waits


def test_a_broken_connection_is_told_and_may_be_repeated(pod: Pod, source: Path) -> None:
    """A connection that broke leaves a pod that waits, and nothing that disturbs the next try."""
    pod.sent = lost
    for _ in range(2):
        with pytest.raises(DrmCommunicationError, match="connection was lost"):
            files.put(pod.client, "pod", {"in/0": str(source)})
        assert pod.waits
    pod.sent = lambda pieces: pieces
    files.put(pod.client, "pod", {"in/0": str(source)})
    assert tree_of(pod.place / "in" / "0") == tree_of(source)
    assert sorted(path.name for path in pod.place.iterdir()) == [".go", "in"]


def test_a_lost_answer(pod: Pod, source: Path) -> None:
    """Where all was done and only the answer was lost, the next try leaves the job's files alone."""
    pod.after = lambda _: next(cast("Any", lost([])))
    with pytest.raises(DrmCommunicationError):
        files.put(pod.client, "pod", {"in/0": str(source / "a")})
    assert not pod.waits
    (pod.place / "in" / "0").write_bytes(b"the job has changed it")
    pod.after = lambda result: result
    files.put(pod.client, "pod", {"in/0": str(source / "a")})
    assert (pod.place / "in" / "0").read_bytes() == b"the job has changed it"


def test_a_try_that_hangs_does_not_disturb_the_next(pod: Pod, source: Path) -> None:
    """A first try, whose shell still waits for more, is overtaken; what it does then changes nothing."""
    waiting, go_on = threading.Event(), threading.Event()
    told: list[Exception] = []

    def stalled(pieces: Iterable[bytes]) -> Iterator[bytes]:
        everything = b"".join(pieces)
        yield everything[:1000]
        while not [*pod.place.glob(".in-*/in")]:  # ends with the test's time at the latest
            time.sleep(0.01)
        waiting.set()
        assert go_on.wait(60)
        yield everything[1000:]

    def first() -> None:
        try:
            files.put(slow.client, "pod", {"in/0": str(source)})
        except Exception as error:  # noqa: BLE001 - looked at below
            told.append(error)

    slow = Pod(pod.place, pod.env)
    slow.sent = stalled
    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert waiting.wait(60)
        files.put(pod.client, "pod", {"in/0": str(source)})
    finally:
        go_on.set()
        thread.join()
    assert len(told) == 1  # its directory was taken away
    assert tree_of(pod.place / "in" / "0") == tree_of(source)
    assert not (pod.place / "in" / "in").exists()


def test_a_missing_source_is_named(pod: Pod, tmp_path: Path) -> None:
    """A source that cannot be read is an error with its name, before the pod is asked for anything."""
    with pytest.raises(InvalidArgumentError, match=r"cannot copy .*/none to /wfl/in/0: No such file"):
        files.put(pod.client, "pod", {"in/0": str(tmp_path / "none")})
    assert not pod.asked


def test_a_source_that_changes_is_an_error(pod: Pod, tmp_path: Path) -> None:
    """A file that changes while it is copied is an error with its name, and the pod does not go on."""
    file = tmp_path / "file"
    file.write_bytes(bytes(4 << 20))

    def changing(pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            os.truncate(file, 1)

    pod.sent = changing
    with pytest.raises(InvalidArgumentError, match=r"cannot copy .*/file to /wfl/in/0: it changed while it was read"):
        files.put(pod.client, "pod", {"in/0": str(file)})
    assert pod.waits
    assert not (pod.place / "in").exists()


@pytest.mark.parametrize(
    ("result", "kind", "match"),
    [
        ((1, "tar: write error: No space left on device\n"), OutOfResourceError, "no space for the files"),
        ((127, "sh: tar: not found\n"), InvalidArgumentError, "needs sh and tar, or set helper_image"),
        ((1, "tar: can't create 'x': Read-only file system\n"), ImplementationSpecificError, "Read-only file system$"),
        ((127, "unable to create new parent process"), ImplementationSpecificError, "copied in: unable to create"),
        ((137, ""), ImplementationSpecificError, "exit status 137$"),
        ((2, "tar: Unexpected EOF in archive\n"), DrmCommunicationError, "did not all arrive"),
        ((1, "tar: short read\n"), DrmCommunicationError, "did not all arrive"),
    ],
)
def test_what_tar_says(
    tmp_path: Path, source: Path, result: tuple[int, str], kind: type[Exception], match: str
) -> None:
    """Why files were not unpacked is told with pod and container; only a stream cut short is worth another try."""
    pod = Pod(tmp_path, dict(os.environ))
    pod.after = lambda _: result
    with pytest.raises(kind, match=match) as caught:
        files.put(pod.client, "pod-1", {"in/0": str(source)})
    assert "pod-1, container wfl-in: " in str(caught.value)


# --- out of a pod -----------------------------------------------------------------------------------------


def test_files_are_fetched(pod: Pod, source: Path, tmp_path: Path) -> None:
    """A file and a directory come as they are, under the targets' names."""
    wanted = {str(tmp_path / "out" / "tree"): f"{source}/", str(tmp_path / "x"): str(source / " blank\nbreak")}
    assert files.fetch(pod.client, "pod-1", wanted) is None
    assert tree_of(tmp_path / "out" / "tree") == tree_of(source)
    assert (tmp_path / "x").read_bytes() == b"odd"
    assert {(name, container) for name, container, _ in pod.asked} == {("pod-1", "wfl-out")}


def test_names_that_look_like_options(pod: Pod, tmp_path: Path) -> None:
    """A file whose name begins with a dash is a file."""
    (tmp_path / "--help").write_bytes(b"text")
    assert files.fetch(pod.client, "pod", {str(tmp_path / "out"): str(tmp_path / "--help")}) is None
    assert (tmp_path / "out").read_bytes() == b"text"


def test_a_link_is_followed(pod: Pod, source: Path, tmp_path: Path) -> None:
    """A link that is asked for stands for what it leads to; one that leads nowhere is no file."""
    (tmp_path / "link").symlink_to("source/sub/up")
    (tmp_path / "none").symlink_to("source/sub/nowhere")
    assert files.fetch(pod.client, "pod", {str(tmp_path / "x"): str(tmp_path / "link")}) is None
    assert (tmp_path / "x").read_bytes() == (source / "a").read_bytes()
    words = files.fetch(pod.client, "pod", {str(tmp_path / "y"): str(tmp_path / "none")})
    assert words == f"{tmp_path}/none cannot be copied to {tmp_path}/y: no such file or directory"


def test_the_first_trouble_is_told_and_the_others_come(pod: Pod, source: Path, tmp_path: Path) -> None:
    """What is missing is told in words; whatever else is wanted is there."""
    wanted = {
        str(tmp_path / "1"): "/none/at/all",
        str(tmp_path / "2"): str(source / "a"),
        str(tmp_path / "3"): "/none/either",
    }
    words = files.fetch(pod.client, "pod", wanted)
    assert words == f"/none/at/all cannot be copied to {tmp_path}/1: no such file or directory"
    assert (tmp_path / "2").read_bytes() == (source / "a").read_bytes()


def test_what_cannot_be_written_here_is_told(pod: Pod, source: Path, tmp_path: Path) -> None:
    """A target that cannot be is trouble with both names, and a big file that nobody takes is not waited for."""
    (tmp_path / "file").touch()
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(64 << 20)
    target = str(tmp_path / "file" / "below")
    words = files.fetch(pod.client, "pod", {target: str(big)})
    assert words is not None
    assert words.startswith(f"cannot copy {big} to {target}: ")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a").mkdir()
    words = files.fetch(pod.client, "pod", {str(tmp_path / "taken"): str(source / "a")})
    assert (
        words
        == f"cannot copy {source}/a to {tmp_path}/taken: a file is to come where {tmp_path}/taken/a is, a directory"
    )


@pytest.mark.parametrize("size", [0, 100, 512, 600_000, 256 * 5000 + 512])
def test_an_archive_cut_short_is_no_success(pod: Pod, source: Path, tmp_path: Path, size: int) -> None:
    """An archive that ends early is an error that may be repeated; what was at the target before is still there."""
    target = tmp_path / "out"
    target.write_bytes(b"before")
    pod.came = cut_to(size)
    with pytest.raises(DrmCommunicationError, match="the stream broke off"):
        files.fetch(pod.client, "pod", {str(target): str(source / "a")})
    assert target.read_bytes() == b"before"
    pod.came = lambda pieces: pieces
    assert files.fetch(pod.client, "pod", {str(target): str(source / "a")}) is None
    assert target.read_bytes() == (source / "a").read_bytes()


def test_a_broken_connection_is_raised(pod: Pod, source: Path, tmp_path: Path) -> None:
    """A connection that broke is no word about the file: it is raised, and nothing is left at the target."""
    pod.came = lost
    with pytest.raises(DrmCommunicationError, match="connection was lost"):
        files.fetch(pod.client, "pod", {str(tmp_path / "out"): str(source)})
    assert not (tmp_path / "out").exists()


def test_a_failing_tar_is_told(pod: Pod, source: Path, tmp_path: Path) -> None:
    """An archive that looks whole, of a tar that failed, is not taken; its words are told."""
    pod.after = lambda _: (1, "tar: b: Permission denied\n")
    target = str(tmp_path / "out")
    words = files.fetch(pod.client, "pod", {target: str(source)})
    assert words == f"{source} cannot be copied to {target}: tar: b: Permission denied"
    assert not (tmp_path / "out").exists()


def test_a_pod_that_is_gone_is_told(pod: Pod, tmp_path: Path) -> None:
    """What the client knows for certain is trouble in words."""

    def gone() -> None:
        raise NotThereError('pods "pod" not found')

    pod.before = gone
    words = files.fetch(pod.client, "pod", {str(tmp_path / "out"): "/x"})
    assert words == f'/x cannot be copied to {tmp_path}/out: pods "pod" not found'


def test_a_file_to_the_programs_own_stream(tmp_path: Path) -> None:
    """Standard error that goes to the program's own is written there, not to a file of that name."""
    (tmp_path / "stderr").write_bytes(b"from the job\n")
    code = (
        "import os; from pathlib import Path; from tests.unit.test_kubernetes_files import Pod, files; "
        f"pod = Pod(Path({str(tmp_path)!r}), dict(os.environ)); "
        f"print(files.fetch(pod.client, 'pod', {{'/dev/stderr': {str(tmp_path / 'stderr')!r}}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"None\n", b"from the job\n")


@pytest.mark.parametrize("size", [0, 1, 65536, 1_000_003])
def test_a_file_that_is_still_written(pod: Pod, tmp_path: Path, size: int) -> None:
    """What was in it at the beginning comes, whatever is written meanwhile; no more, and no less."""
    source, target = tmp_path / "stdout", tmp_path / "here"
    before = os.urandom(size)
    source.write_bytes(before)
    target.write_bytes(b"of an earlier try")

    def growing(pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            with source.open("ab") as file:
                file.write(bytes(1000))
            yield piece

    pod.came = growing
    assert files.fetch_file(pod.client, "pod-1", str(source), target)
    assert target.read_bytes() == before
    assert pod.asked == [("pod-1", "wfl-out", None)]
    assert {path.name for path in tmp_path.iterdir()} == {"wfl", "stdout", "here"}


def test_a_file_that_was_never_written(pod: Pod, tmp_path: Path) -> None:
    """None is there, and none comes."""
    assert not files.fetch_file(pod.client, "pod", str(tmp_path / "stdout"), tmp_path / "here")
    assert [path.name for path in tmp_path.iterdir()] == ["wfl"]


@pytest.mark.parametrize("way", [lost, cut_to(0), cut_to(100_000)], ids=["told", "nothing", "a part"])
def test_half_a_file_is_none(pod: Pod, tmp_path: Path, way: Callable[[Iterable[bytes]], Iterator[bytes]]) -> None:
    """What broke off, also silently, is an error that may be repeated; what an earlier try has brought stays."""
    source, target = tmp_path / "stdout", tmp_path / "here"
    source.write_bytes(os.urandom(1_000_003))
    target.write_bytes(b"of an earlier try")
    pod.came = way
    with pytest.raises(DrmCommunicationError, match=r"the connection was lost|broke off after (0|100000) bytes"):
        files.fetch_file(pod.client, "pod", str(source), target)
    assert target.read_bytes() == b"of an earlier try"
    assert {path.name for path in tmp_path.iterdir()} == {"wfl", "stdout", "here"}
    pod.came = lambda pieces: pieces
    assert files.fetch_file(pod.client, "pod", str(source), target)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("result", "kind", "match"),
    [
        ((0, ""), DrmCommunicationError, "broke off after 3 bytes"),
        ((1, "dd: error reading: Input/output error\n3\n"), ImplementationSpecificError, "Input/output error"),
        ((127, "sh: dd: not found\n3\n"), InvalidArgumentError, "set helper_image"),
        ((137, ""), ImplementationSpecificError, "exit status 137"),
    ],
)
def test_why_a_file_does_not_come(
    pod: Pod, tmp_path: Path, result: tuple[int, str], kind: type[Exception], match: str
) -> None:
    """The command's words are told, and no file is made."""
    (tmp_path / "stdout").write_bytes(b"abc")
    pod.after = lambda _: result
    with pytest.raises(kind, match=match):
        files.fetch_file(pod.client, "pod", str(tmp_path / "stdout"), tmp_path / "here")
    assert not (tmp_path / "here").exists()


# --- the end ----------------------------------------------------------------------------------------------


def test_done_lets_the_pod_end(pod: Pod) -> None:
    """The sign that everything was fetched is made; where the pod has ended already, it is not missed."""
    files.done(pod.client, "pod-1")
    assert (pod.place / ".done").exists()
    assert pod.asked == [("pod-1", "wfl-out", None)]

    def ended() -> None:
        raise NotThereError("gone")

    pod.before = ended
    files.done(pod.client, "pod-1")


def test_done_that_fails_is_told(pod: Pod) -> None:
    """Where the sign cannot be made, that is an error with the container's words."""
    shutil.rmtree(pod.place)
    with pytest.raises(ImplementationSpecificError, match=r"pod-1, container wfl-out, cannot be told to end: .*\.done"):
        files.done(pod.client, "pod-1")
