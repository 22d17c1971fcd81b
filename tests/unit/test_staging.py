"""Staging: what goes into a container and comes out of one is the same, whole, and nowhere else."""

import errno
import io
import os
import socket
import stat
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.errors import DrmCommunicationError, InvalidArgumentError, OutOfResourceError, WflError
from wfl.staging import CHUNK, pack, unpack

HUGE = 9 << 30  # bytes: more than the plain form of a header can say
YEAR_2001 = 1_000_000_000.25


def members_of(copies: dict[str, str], **options: Any) -> dict[str, tarfile.TarInfo]:
    """Return the members of what `pack` gives, by name."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(copies, **options)))) as tar:
        return {member.name: member for member in tar}


def contents_of(copies: dict[str, str]) -> dict[str, bytes]:
    """Return the files in what `pack` gives."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(copies)))) as tar:
        return {member.name: file.read() for member in tar if member.isreg() and (file := tar.extractfile(member))}


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """Return one member of an archive to be made."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def directory(name: str, mode: int = 0o755) -> tarfile.TarInfo:
    """Return a directory as a member."""
    return member(name, tarfile.DIRTYPE, mode=mode)


def archive(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    """Return an archive of members, or of names with contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in members:
            info, data = (entry, b"") if isinstance(entry, tarfile.TarInfo) else (member(entry[0]), entry[1])
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def given_by_daemon(source: Path) -> bytes:
    """Return what the daemon gives of a file or directory: its base name on top."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(source, source.name)
    return buffer.getvalue()


def look(place: Path) -> dict[str, object]:
    """Return what is below a directory: contents, links' texts, and modes."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = (mode, None if path.is_dir() else path.read_bytes())
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a bit of everything."""
    top = tmp_path / "tree"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "a").write_bytes(b"first")
    (top / "sub" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (top / "sub" / "run.sh").chmod(0o750)
    (top / "sub" / "private").write_bytes(b"")
    (top / "sub" / "private").chmod(0o600)
    (top / "sub" / "up").symlink_to("../a")
    (top / "nowhere").symlink_to("not/there")
    (top / ("long" * 40)).write_bytes(b"long name")
    (top / "gr\u00fc\u00dfe").write_bytes(b"umlaut")
    (top / os.fsdecode(b"raw\xff")).write_bytes(b"no text")
    (top / "sub").chmod(0o711)
    return top


# --- into a container -------------------------------------------------------------------------------------


def test_packed_tree_is_the_tree(tree: Path, tmp_path: Path) -> None:
    """What `pack` gives of a directory is, unpacked, the same: contents, links as links, modes, names of all kinds."""
    stream = pack({"/data": str(tree)})
    unpack(stream, "/data", str(tmp_path / "there"))
    assert look(tmp_path / "there") == look(tree)


def test_parents_are_left_to_the_daemon(tree: Path) -> None:
    """Only the target and what is below is in the stream: a parent that is there keeps its mode."""
    names = members_of({"/usr/local/share/x": str(tree / "a"), "/tmp/t": str(tree / "sub" / "empty")})
    assert set(names) == {"usr/local/share/x", "tmp/t"}


def test_several_copies_make_one_stream(tree: Path) -> None:
    """Files and directories go together, each to its own target."""
    found = contents_of({"/x/one": str(tree / "a"), "/two": str(tree / "sub")})
    assert found == {"x/one": b"first", "two/run.sh": b"#!/bin/sh\n", "two/private": b""}


def test_a_source_that_is_a_link_is_followed(tree: Path) -> None:
    """A link named by the user stands for what it leads to; links inside of a directory stay links."""
    (tree.parent / "link").symlink_to(tree / "sub")
    assert contents_of({"/x": str(tree / "sub" / "up")}) == {"x": b"first"}
    names = members_of({"/x": str(tree.parent / "link")})
    assert names["x"].isdir()
    assert (names["x/up"].type, names["x/up"].linkname) == (tarfile.SYMTYPE, "../a")


def test_owner_modes_and_times(tree: Path) -> None:
    """Everything belongs to 0:0 or to who is named, with its own mode and time; nothing is set-user-id for another."""
    (tree / "a").chmod(0o6755)
    os.utime(tree / "a", (0, YEAR_2001))
    found = members_of({"/t": str(tree)})
    assert {(info.uid, info.gid, info.uname) for info in found.values()} == {(0, 0, "")}
    assert (found["t/a"].mode, found["t/a"].mtime) == (0o755, YEAR_2001)
    assert {(info.uid, info.gid) for info in members_of({"/t": str(tree)}, owner=(7, 8)).values()} == {(7, 8)}


@pytest.mark.parametrize(
    ("target", "name"), [("/d/", "d/a"), ("/d/./b", "d/b"), ("//d//b", "d/b"), ("/d/../b", "b"), ("/", "a")]
)
def test_form_of_the_target(tree: Path, target: str, name: str) -> None:
    """A slash at the end names the directory that a file goes into; what is written roundabout is straightened."""
    assert set(members_of({target: str(tree / "a")})) == {name}


def test_directory_into_the_root(tree: Path) -> None:
    """A directory copied to / is merged with the root, which itself is not in the stream."""
    assert set(members_of({"/": str(tree / "sub")})) == {"empty", "private", "run.sh", "up"}


@pytest.mark.parametrize("target", ["data", "", "./x"])
def test_relative_target_is_refused(tree: Path, target: str) -> None:
    """In a container there is no directory that a relative target would be relative to."""
    with pytest.raises(InvalidArgumentError, match=f"tree/a to {target}: in a container, a target begins with /"):
        pack({target: str(tree / "a")})


def test_missing_source_is_told_at_once(tmp_path: Path) -> None:
    """A source that is not there is refused before anything is sent, with source and target."""
    with pytest.raises(InvalidArgumentError, match=r"cannot copy .*/none to /x: No such file or directory$"):
        pack({"/x": str(tmp_path / "none")})


def test_names_as_gnu_has_them(tree: Path) -> None:
    """On request nothing is written that only a tar with POSIX's extended headers reads; contents are the same."""
    extended = [b"".join(pack({"/d": str(tree)}, gnu=gnu)).count(b"path=d/") for gnu in (False, True)]
    assert extended[0] > extended[1] == 0
    unpack(pack({"/d": str(tree)}, gnu=True), "/d", str(tree.parent / "there"))
    assert look(tree.parent / "there") == look(tree)


def test_last_of_all(tree: Path) -> None:
    """On request an empty file comes after everything else."""
    assert [*members_of({"/a": str(tree), "/b": str(tree / "a")}, last=".end")][-2:] == ["b", ".end"]


def test_errors_name_the_place(tree: Path) -> None:
    """What cannot be copied is told with where it was to go, not with its place in the stream."""
    os.mkfifo(tree / "sub" / "pipe")
    with pytest.raises(InvalidArgumentError, match=r"sub/pipe to /data/t/sub/pipe: it is a fifo$"):
        members_of({"/data/t": str(tree)}, place="/data")


def test_sockets_fifos_and_devices_are_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is neither file, directory nor link is refused by its name and kind; a fifo is not waited for."""
    monkeypatch.chdir(tree)  # a socket's path has to be short
    os.mkfifo("sub/pipe")
    with pytest.raises(InvalidArgumentError, match=r"sub/pipe to /t/sub/pipe: it is a fifo$"):
        members_of({"/t": str(tree)})
    (tree / "sub" / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sub/sock")
        with pytest.raises(InvalidArgumentError, match=r"sub/sock to /t/sub/sock: it is a socket$"):
            members_of({"/t": str(tree)})
    with pytest.raises(InvalidArgumentError, match=r"/dev/zero to /z: it is a device$"):
        members_of({"/z": "/dev/zero"})


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, CHUNK),
        lambda path: os.truncate(path, 5 * CHUNK),
        lambda path: os.utime(path, (1, 1)),
    ],
    ids=["shorter", "longer", "rewritten"],
)
def test_file_that_changes_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """A file that changes while it is read is an error with its name, never a mixture."""
    file = tmp_path / "file"
    file.write_bytes(bytes(4 * CHUNK))
    stream = pack({"/x": str(file)})
    next(stream)
    change(file)
    with pytest.raises(InvalidArgumentError, match=r"cannot copy .*/file to /x: it changed while it was read"):
        list(stream)


def test_file_that_goes_away_is_named(tree: Path) -> None:
    """A file that is removed between listing and reading is named, not the directory alone."""
    (tree / "0").write_bytes(bytes(2 * CHUNK))
    stream = pack({"/t": str(tree)})
    next(stream)
    (tree / "a").unlink()
    with pytest.raises(InvalidArgumentError, match=r"tree/a to /t/a: No such file or directory$"):
        list(stream)


def test_big_file_is_streamed(tmp_path: Path) -> None:
    """A big file goes through in pieces of about a mebibyte, never whole, also one with holes."""
    file = tmp_path / "big"
    with file.open("wb") as out:
        out.truncate(64 * CHUNK)
        out.seek(40 * CHUNK)
        out.write(b"not a hole")
    tracemalloc.start()
    try:
        sizes = [len(piece) for piece in pack({"/x": str(file)})]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) >= 64 * CHUNK
    assert max(sizes) <= 2 * CHUNK
    assert peak < 8 * CHUNK


@pytest.mark.parametrize("gnu", [False, True])
def test_huge_file_has_its_size_in_the_header(tmp_path: Path, gnu: bool) -> None:  # noqa: FBT001 - a parameter
    """A file of more than eight gibibytes is announced with its true size."""
    file = tmp_path / "huge"
    file.touch()
    os.truncate(file, HUGE)
    first = next(pack({"/x": str(file)}, gnu=gnu))
    with tarfile.open(fileobj=io.BytesIO(first), mode="r|") as tar:
        info = tar.next()
    assert info is not None
    assert info.size == HUGE


def test_small_files_travel_together(tmp_path: Path) -> None:
    """A thousand small files are a few pieces, not thousands."""
    for number in range(1000):
        (tmp_path / str(number)).write_bytes(b"x" * 100)
    pieces = list(pack({"/x": str(tmp_path)}))
    assert len(pieces) < 5
    assert len(contents_of({"/x": str(tmp_path)})) == 1000


def test_deep_directories(tmp_path: Path) -> None:
    """Depth costs no recursion: as deep as a path may be."""
    steps = [str(tmp_path / "/".join("d" * depth)) for depth in range(1, 1501)]
    for step in steps:
        os.mkdir(step)
    (file := Path(steps[-1], "file")).write_bytes(b"bottom")
    try:
        assert list(contents_of({"/x": steps[0]}).values()) == [b"bottom"]
    finally:
        file.unlink()
        for step in reversed(steps):
            os.rmdir(step)


# --- out of a container -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 511, 513, 100_000])
def test_pieces_do_not_matter(tree: Path, tmp_path: Path, size: int) -> None:
    """However the stream is cut, what arrives is the same."""
    data = given_by_daemon(tree)
    unpack((data[start : start + size] for start in range(0, len(data), size)), "/tree", str(tmp_path / "out"))
    assert look(tmp_path / "out") == look(tree)


def test_file_with_mode_and_time(tmp_path: Path) -> None:
    """A file comes under the target's name, with mode and time, without set-user-id; missing parents are made."""
    info = member("result", mode=0o4754)
    info.mtime = YEAR_2001
    unpack([archive(info)], "/out/result", str(tmp_path / "new" / "place" / "mine"))
    found = (tmp_path / "new" / "place" / "mine").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o754, YEAR_2001)


def test_file_into_a_directory(tmp_path: Path) -> None:
    """A target that is a directory, or says so by a slash, takes the file in under its own name."""
    data = archive(("result", b"x"))
    unpack([data], "/out/result", str(tmp_path))
    unpack([data], "/out/result", f"{tmp_path}/new/")
    assert look(tmp_path) == {"new": (0o755, None), "new/result": (0o644, b"x"), "result": (0o644, b"x")}


def test_file_replaces_a_file(tmp_path: Path) -> None:
    """An old file gives way to the new one; through a link, what the link leads to does."""
    (tmp_path / "old").write_bytes(b"a longer one")
    (tmp_path / "link").symlink_to("old")
    unpack([archive(("r", b"new"))], "/r", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_bytes() == b"new"


def test_directory_is_merged(tmp_path: Path) -> None:
    """A directory that is there keeps what is only there and its mode; what is in both is replaced."""
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub").chmod(0o700)
    (out / "mine").write_bytes(b"mine")
    (out / "sub" / "both").write_bytes(b"old")
    directories = directory("d"), directory("d/sub"), directory("d/more")
    files = ("d/f", b""), ("d/sub/both", b"new"), ("d/more/g", b"g")
    unpack([archive(*directories, *files, member("d/link", tarfile.SYMTYPE, "f"))], "/d", str(out))
    assert look(out) == {
        "f": (0o644, b""),
        "link": "-> f",
        "mine": (0o644, b"mine"),
        "more": (0o755, None),
        "more/g": (0o644, b"g"),
        "sub": (0o700, None),
        "sub/both": (0o644, b"new"),
    }


def test_directory_with_a_slash_or_dot(tmp_path: Path) -> None:
    """`/d/.` comes with a top that is called `.`; it is the same directory."""
    unpack([archive(directory("."), ("./a", b"a"))], "/d/.", str(tmp_path / "out"))
    assert look(tmp_path / "out") == {"a": (0o644, b"a")}


def test_hard_links_stay_one_file(tmp_path: Path) -> None:
    """A second name of a file is a second name here; one of a symbolic link is a second link."""
    links = [member("d/b", tarfile.LNKTYPE, "d/a"), member("d/s", tarfile.SYMTYPE, "a")]
    unpack([archive(directory("d"), ("d/a", b"x"), *links, member("d/t", tarfile.LNKTYPE, "d/s"))], "/d", str(tmp_path))
    assert (tmp_path / "a").samefile(tmp_path / "b")
    assert (tmp_path / "t").readlink() == Path("a")


def test_modes_of_directories(tmp_path: Path) -> None:
    """A directory that its owner could not write to is filled all the same, and stays removable."""
    unpack([archive(directory("d"), directory("d/ro", 0o555), ("d/ro/f", b"x"))], "/d", str(tmp_path / "out"))
    assert look(tmp_path / "out") == {"ro": (0o755, None), "ro/f": (0o644, b"x")}


@pytest.mark.parametrize(
    ("there", "arrives", "words"),
    [
        ("file", directory("d"), "a directory is to come where .*target is"),
        ("directory", member("d/x", tarfile.SYMTYPE, "y"), "a file is to come where .*target/x is, a directory"),
        ("fifo", member("d"), "a file is to come where .*target is, a fifo"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, there: str, arrives: tarfile.TarInfo, words: str) -> None:
    """A directory does not replace a file, nor a file a directory or a device; what was there stays."""
    target = tmp_path / "target"
    if there == "directory":
        (target / "x").mkdir(parents=True)
    elif there == "fifo":
        os.mkfifo(target)
    else:
        target.touch()
    before = target.stat()
    with pytest.raises(InvalidArgumentError, match=words):
        unpack([archive(*([directory("d")] if "/" in arrives.name else []), arrives)], "/d", str(target))
    assert stat.S_IFMT(target.stat().st_mode) == stat.S_IFMT(before.st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


# --- breaking off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4, 5])
def test_broken_off_is_never_half_there(tmp_path: Path, blocks: int) -> None:
    """A stream that ends before the archive does is an error, wherever; nothing of it stays."""
    data = archive(directory("d"), ("d/a", b"x" * 600), ("d/b", b""))
    end = blocks * 512
    with pytest.raises(DrmCommunicationError, match=r"cannot copy /d to .*/out: the stream broke off"):
        unpack([data[:end]], "/d", str(tmp_path / "out"))
    with pytest.raises(DrmCommunicationError):
        unpack([data[: end + 100]], "/d", str(tmp_path / "out"))
    assert not [*tmp_path.iterdir()]


def test_lost_connection_passes_through(tmp_path: Path) -> None:
    """What the stream raises is raised as it is; a file that was there before stays as it was."""
    (tmp_path / "out").write_bytes(b"old")

    def stream() -> Iterator[bytes]:
        yield archive(("r", b"x" * 5000))[:1000]
        assert (tmp_path / "out").read_bytes() == b"old"
        raise DrmCommunicationError("the daemon went away")

    with pytest.raises(DrmCommunicationError, match=r"^the daemon went away$"):
        unpack(stream(), "/r", str(tmp_path / "out"))
    assert look(tmp_path) == {"out": (0o644, b"old")}


def test_stream_is_read_to_its_end(tmp_path: Path) -> None:
    """The padding after an archive is read, too: a connection with a rest in it cannot be used again."""
    stream = iter([archive(("r", b"x")), bytes(512), bytes(10240)])
    unpack(stream, "/r", str(tmp_path / "r"))
    assert list(stream) == []


def test_full_disk(tmp_path: Path) -> None:
    """A full disk is OutOfResourceError with source and target."""

    def stream() -> Iterable[bytes]:
        raise OSError(28, "No space left on device")

    class Full:
        def __iter__(self) -> Iterator[bytes]:
            return iter(stream())

    with pytest.raises(OutOfResourceError, match=r"cannot copy /r to .*/r: No space left on device"):
        unpack(Full(), "/r", str(tmp_path / "r"))


# --- hostile archives -------------------------------------------------------------------------------------

TOP = directory("d")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([TOP, ("/etc/evil", b"x")], "leads out of it: /etc/evil"),
        ([TOP, ("../evil", b"x")], r"leads out of it: \.\./evil"),
        ([TOP, ("d/../../evil", b"x")], "leads out of it"),
        ([TOP, ("e", b"x")], "leads out of it: e"),
        ([("d", b"x"), ("d/e", b"x")], r"File exists \(d/e\)"),
        ([TOP, member("d/l", tarfile.SYMTYPE, "/etc")], "d?l is a symbolic link that leads out of it, to /etc"),
        ([TOP, member("d/l", tarfile.SYMTYPE, "..")], "leads out of it"),
        ([TOP, directory("d/s"), member("d/s/l", tarfile.SYMTYPE, "../../e")], "leads out of it"),
        ([TOP, member("d/l", tarfile.SYMTYPE, "s/..")], "leads out of it"),
        ([TOP, member("d/h", tarfile.LNKTYPE, "/etc/passwd")], "leads out of it"),
        ([TOP, member("d/h", tarfile.LNKTYPE, "../x")], "leads out of it"),
        ([TOP, member("d/h", tarfile.LNKTYPE, "d/none")], r"No such file or directory \(d/h\)$"),
        ([TOP, member("d/l", tarfile.SYMTYPE, "."), ("d/l", b"x")], "twice"),
        ([TOP, ("d/f", b"x"), ("d/f", b"y")], r"File exists \(d/f\)$"),
        ([TOP, ("d/f", b"x"), member("d/f", tarfile.SYMTYPE, ".")], "twice"),
        ([TOP, (500 * "d/" + "f", b"x")], "more than 400 directories"),
        ([TOP, member("d/p", tarfile.FIFOTYPE)], "d/p is a fifo"),
        ([TOP, member("d/n", tarfile.CHRTYPE)], "d/n is a device"),
        ([member("n", tarfile.BLKTYPE)], "it is a device"),
        ([member("l", tarfile.SYMTYPE, "/data/real")], "it is a symbolic link to /data/real; name that"),
    ],
)
def test_hostile_archives_are_refused(
    tmp_path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]], words: str
) -> None:
    """Names and links that lead out, devices, and names that come twice are refused; nothing is left anywhere."""
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(InvalidArgumentError, match=words):
        unpack([archive(*members)], "/d", str(place / "out"))
    assert list(look(tmp_path)) == ["place"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A file below a link of the archive, and one below a link that leads out of the target, are both refused."""
    (tmp_path / "outside").mkdir()
    out = tmp_path / "out"
    hostile = archive(TOP, directory("d/s"), member("d/l", tarfile.SYMTYPE, "s"), ("d/l/f", b"x"))
    with pytest.raises(InvalidArgumentError):
        unpack([hostile], "/d", str(out))
    out.mkdir()
    (out / "s").symlink_to("../outside")
    with pytest.raises(InvalidArgumentError, match="out/s is a symbolic link that leads out of it"):
        unpack([archive(TOP, directory("d/s"), ("d/s/f", b"x"))], "/d", str(out))
    assert not [*(tmp_path / "outside").iterdir()]


def test_links_inside_are_kept(tmp_path: Path) -> None:
    """A link that climbs no higher than the target's top is made as it is, also one that leads nowhere yet."""
    links = {"l": "s/none", "s/up": "../f", "s/self": "self"}
    unpack(
        [archive(TOP, directory("d/s"), *(member(f"d/{name}", tarfile.SYMTYPE, to) for name, to in links.items()))],
        "/d",
        str(tmp_path / "out"),
    )
    assert {name: str((tmp_path / "out" / name).readlink()) for name in links} == links


def test_spoilt_header_is_not_the_end(tmp_path: Path) -> None:
    """An archive with a header that is none is refused whole: what came before it is not taken for all."""
    data = bytearray(archive(TOP, ("d/a", b""), ("d/b", b"")))
    data[1024:1030] = b"spoilt"
    with pytest.raises(InvalidArgumentError, match="the archive is spoilt: bad checksum"):
        unpack([bytes(data)], "/d", str(tmp_path / "out"))
    assert not [*tmp_path.iterdir()]


PARTS = st.sampled_from(["d", "s", "l", "..", ".", "", "f"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])


def is_loop(path: Path) -> bool:
    """Whether a link leads to itself."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


@given(st.lists(st.tuples(PATHS.map("d/".__add__), KINDS, PATHS), max_size=6), st.integers(1, 2))
def test_no_archive_reaches_outside(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, bytes, str]], times: int
) -> None:
    """Whatever names and links an archive has, also taken in twice: only the target changes, and no link leaves it."""
    place = tmp_path_factory.mktemp("hostile")
    (place / "f").write_bytes(b"precious")
    data = archive(TOP, *(member(name, kind, link) for name, kind, link in entries))
    for _ in range(times):
        with suppress(WflError):
            unpack([data], "/d", str(place / "out"))
    assert {path.name for path in place.iterdir()} <= {"f", "out"}
    assert (place / "f").read_bytes() == b"precious"
    for path in place.rglob("*"):
        if path.is_symlink():
            assert path.is_relative_to(place / "out")
            if is_loop(path):  # it leads nowhere, and `realpath` says what it likes
                continue
            assert Path(os.path.realpath(path)).is_relative_to(place / "out")


@given(st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8)), min_size=1, max_size=5))
def test_spoilt_archives_are_errors_of_ours(
    tmp_path_factory: pytest.TempPathFactory, spots: list[tuple[int, bytes]]
) -> None:
    """However its bytes are spoilt, an archive is taken in or refused with an error that names source and target."""
    place = tmp_path_factory.mktemp("spoilt")
    data = bytearray(archive(TOP, ("d/a", b"x" * 600), member("d/l", tarfile.SYMTYPE, "a"), ("d/" + "n" * 120, b"y")))
    for start, spot in spots:
        data[start : start + len(spot)] = spot
    try:
        unpack([bytes(data)], "/d", str(place / "out"))
    except WflError as error:
        assert str(error).startswith(f"cannot copy /d to {place}/out: ")  # noqa: PT017 - only where there is one
    assert {path.name for path in place.iterdir()} <= {"out"}
