"""Copies to and from a host by SFTP: whole or not at all, and nowhere else. The host is in this process."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ssh_server import Disk, Wire
from wfl.contexts.ssh import transfer
from wfl.contexts.ssh.connection import LOST
from wfl.contexts.ssh.transfer import PIECE, Copies
from wfl.errors import DrmCommunicationError, InvalidArgumentError, OutOfResourceError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import paramiko

# Where a connection is lost, paramiko's own thread for what is read ahead says so by an exception of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Exception in thread .*_prefetch_thread")

YEAR_2001 = 1_000_000_000
MANY = 120 * PIECE  # bytes: more requests than paramiko lets be unanswered
SEVERAL = 5 * PIECE + 17


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Our side."""
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """The host's side."""
    path = tmp_path / "there"
    path.mkdir()
    return Disk(path)


@pytest.fixture
def wire(disk: Disk) -> Iterator[Wire]:
    """Connections to the host."""
    wire = Wire(disk)
    yield wire
    wire.close()


@pytest.fixture
def copies(wire: Wire) -> Copies:
    """For one job."""
    return Copies(wire.files, "wfl-p-1")


def at_once(_: float) -> bool:
    """No pause before another attempt."""
    return False


def data(size: int) -> bytes:
    """Bytes of which no two pieces are the same."""
    return b"".join(number.to_bytes(4, "big") for number in range(-(-size // 4)))[:size]


def written(path: Path, content: bytes = b"x", mode: int = 0o640) -> Path:
    """A file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, (YEAR_2001, YEAR_2001))
    return path


def names(place: Path) -> list[str]:
    """All that is below a directory."""
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def facts(path: Path) -> tuple[int, int]:
    """Mode and time of a file."""
    found = path.stat()
    return stat.S_IMODE(found.st_mode), int(found.st_mtime)


# --- there and back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, SEVERAL, MANY + 3])
def test_a_file_there_and_back(copies: Copies, disk: Disk, here: Path, size: int) -> None:
    """Contents, mode and time of a file arrive, whatever its size, and missing directories are made."""
    source = written(here / "source", data(size), 0o750)
    copies.put(str(source), "/a/b/target")
    target = disk.root / "a/b/target"
    assert target.read_bytes() == data(size)
    assert facts(target) == (0o750, YEAR_2001)
    assert names(disk.root) == ["a", "a/b", "a/b/target"]
    copies.get("/a/b/target", str(here / "c/d"), at_once)
    assert (here / "c/d").read_bytes() == data(size)
    assert facts(here / "c/d") == (0o750, YEAR_2001)
    assert names(here) == ["c", "c/d", "source"]


@settings(max_examples=15)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
            lambda name: name not in (".", "..")
        ),
        st.binary(max_size=50),
        max_size=4,
    )
)
def test_any_names_and_contents(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    """Whatever files are called, and whatever is in them."""
    place = tmp_path_factory.mktemp("place")
    for name in ("here", "there"):
        (place / name).mkdir()
    for name, content in files.items():
        (place / "here" / name).write_bytes(content)
    wire = Wire(Disk(place / "there"))
    copies = Copies(wire.files, "wfl-p-1")
    copies.put(str(place / "here"), "/target")
    copies.get("/target", str(place / "back"), at_once)
    wire.close()
    for name in ("there/target", "back"):
        assert {path.name: path.read_bytes() for path in (place / name).iterdir()} == files


def test_a_file_into_a_directory(copies: Copies, disk: Disk, here: Path) -> None:
    """A target that is a directory takes a file in, and so does one that ends with a slash, which is made."""
    source = written(here / "source")
    (disk.root / "there").mkdir()
    copies.put(str(source), "/there")
    copies.put(str(source), "/new/")
    assert names(disk.root) == ["new", "new/source", "there", "there/source"]
    (here / "in").mkdir()
    copies.get("/there/source", str(here / "in"), at_once)
    assert names(here) == ["in", "in/source", "source"]


def test_a_file_replaces_another(copies: Copies, disk: Disk, here: Path) -> None:
    """What was there before is there until the new one is whole."""
    target = written(disk.root / "target", b"old, and longer")
    copies.put(str(written(here / "source", b"new")), "/target")
    assert target.read_bytes() == b"new"
    written(here / "target", b"older, and longer")
    copies.get("/target", str(here / "target"), at_once)
    assert (here / "target").read_bytes() == b"new"


def tree(place: Path) -> None:
    """Directories, files and links in one another."""
    written(place / "a/file", b"1", 0o600)
    written(place / "a/b/program", b"2", 0o755)
    (place / "empty").mkdir()
    (place / "a/up").symlink_to("../empty")
    (place / "a/b/dangling").symlink_to("no such")
    (place / "to-a").symlink_to("a")
    (place / "a/b").chmod(0o500)
    for path in ("a/b", "a", "empty", ""):
        os.utime(place / path, (YEAR_2001, YEAR_2001))


def test_a_directory_there_and_back(copies: Copies, disk: Disk, here: Path) -> None:
    """All below a directory arrives; links stay links, and their targets' modes stay theirs."""
    source = here / "source"
    source.mkdir()
    tree(source)
    copies.put(str(source), "/x/target")
    copies.get("/x/target", str(here / "back"), at_once)
    for place in (disk.root / "x/target", here / "back"):
        assert names(place) == names(source)
        for link in ("a/up", "a/b/dangling", "to-a"):
            assert os.readlink(place / link) == os.readlink(source / link)
        assert (place / "a/b/program").read_bytes() == b"2"
        assert facts(place / "a/b/program") == (0o755, YEAR_2001)
        assert facts(place / "a/file") == (0o600, YEAR_2001)
        assert facts(place / "a/b") == (0o700, YEAR_2001)  # its owner can remove it
        assert facts(place) == (stat.S_IMODE(source.stat().st_mode), YEAR_2001)


def test_a_directory_is_merged(copies: Copies, disk: Disk, here: Path) -> None:
    """A directory that is there takes another's files in; what else is in it stays, and a link is replaced."""
    source = here / "source"
    source.mkdir()
    tree(source)
    written(disk.root / "target/a/file", b"old")
    written(disk.root / "target/a/other", b"stays")
    (disk.root / "target/to-a").symlink_to("somewhere else")
    copies.put(str(source), "/target/")
    assert (disk.root / "target/a/file").read_bytes() == b"1"
    assert (disk.root / "target/a/other").read_bytes() == b"stays"
    assert os.readlink(disk.root / "target/to-a") == "a"
    written(here / "back/a/file", b"old")
    written(here / "back/a/mine", b"stays")
    copies.get("/target", str(here / "back"), at_once)
    assert (here / "back/a/file").read_bytes() == b"1"
    assert (here / "back/a/mine").read_bytes() == b"stays"


def test_a_link_is_followed_at_the_top(copies: Copies, disk: Disk, here: Path) -> None:
    """A source that is a link is what it leads to, on both sides."""
    written(here / "file")
    (here / "link").symlink_to("file")
    copies.put(str(here / "link"), "/target")
    assert not (disk.root / "target").is_symlink()
    (disk.root / "link").symlink_to("target")
    copies.get("/link", str(here / "back"), at_once)
    assert (here / "back").read_bytes() == b"x"
    assert not (here / "back").is_symlink()


def test_no_mode_of_another_user(copies: Copies, disk: Disk, here: Path) -> None:
    """A file that runs as its owner does so no more after it was copied."""
    copies.put(str(written(here / "source", mode=0o4755)), "/target")
    assert facts(disk.root / "target")[0] == 0o755
    written(disk.root / "other", mode=0o6755)
    copies.get("/other", str(here / "back"), at_once)
    assert facts(here / "back")[0] == 0o755


# --- a connection that breaks off -------------------------------------------------------------------------


def test_sending_goes_on_where_it_was(copies: Copies, wire: Wire, disk: Disk, here: Path) -> None:
    """After a break the same Copies send the rest alone; until then the target is what it was."""
    source = written(here / "source", data(MANY))
    target = written(disk.root / "target", b"old")
    disk.cut = MANY // 2
    with pytest.raises(DrmCommunicationError, match=f"^cannot copy {source} to /target: "):
        copies.put(str(source), "/target")
    disk.cut = None
    assert target.read_bytes() == b"old"
    before = disk.written
    assert before > 0
    copies.put(str(source), "/target")
    assert wire.made == 2
    assert target.read_bytes() == data(MANY)
    assert disk.written - before <= MANY // 2 + PIECE
    assert names(disk.root) == ["target"]


def test_what_was_sent_of_a_directory_is_not_sent_again(copies: Copies, disk: Disk, here: Path) -> None:
    """After a break in a directory the files that had arrived whole stay as they are."""
    for number in range(3):
        written(here / f"d/{number}", data(SEVERAL), mode=0o444)
    disk.cut = 2 * SEVERAL + SEVERAL // 2
    with pytest.raises(DrmCommunicationError):
        copies.put(str(here / "d"), "/d")
    disk.cut, before = None, disk.written
    written(here / "d/0", data(SEVERAL)[::-1])  # it was sent, and is another one now
    os.utime(here / "d/0")
    copies.put(str(here / "d"), "/d")
    assert disk.written - before <= 2 * SEVERAL
    assert (disk.root / "d/0").read_bytes() == data(SEVERAL)[::-1]
    assert (disk.root / "d/1").read_bytes() == (disk.root / "d/2").read_bytes() == data(SEVERAL)


def test_a_break_before_a_file_is_in_its_place(
    copies: Copies, disk: Disk, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has all arrived, and has its mode already, is not opened once more: nobody may write to it."""
    source = written(here / "source", data(SEVERAL), mode=0o444)
    opened: list[str] = []
    disk.before = lambda what: opened.append(what) if what == "open" else None

    def lost(*_: object) -> None:
        raise EOFError

    with monkeypatch.context() as once:
        once.setattr("paramiko.SFTPClient.posix_rename", lost)
        with pytest.raises(DrmCommunicationError):
            copies.put(str(source), "/target")
    copies.put(str(source), "/target")
    assert opened == ["open"]
    assert (disk.root / "target").read_bytes() == data(SEVERAL)


def test_what_was_sent_of_another_file_does_not_count(copies: Copies, disk: Disk, here: Path) -> None:
    """A source that has changed since the break is sent from its beginning."""
    source = written(here / "source", data(SEVERAL))
    disk.cut = SEVERAL // 2
    with pytest.raises(DrmCommunicationError):
        copies.put(str(source), "/target")
    disk.cut = None
    source.write_bytes(data(SEVERAL)[::-1])
    copies.put(str(source), "/target")
    assert (disk.root / "target").read_bytes() == data(SEVERAL)[::-1]


def test_what_another_has_sent_does_not_count(wire: Wire, disk: Disk, here: Path) -> None:
    """What is on its way for one job is not another's, and a new attempt at all begins anew."""
    source = written(here / "source", data(SEVERAL))
    disk.cut = SEVERAL // 2
    with pytest.raises(DrmCommunicationError):
        Copies(wire.files, "wfl-p-1").put(str(source), "/target")
    disk.cut = None
    (left,) = names(disk.root)
    assert left == ".target.wfl-p-1"
    (disk.root / left).write_bytes(b"?" * 100)
    Copies(wire.files, "wfl-p-2").put(str(source), "/target")
    Copies(wire.files, "wfl-p-1").put(str(source), "/other")
    Copies(wire.files, "wfl-p-1").put(str(source), "/target")
    for name in ("target", "other"):
        assert (disk.root / name).read_bytes() == data(SEVERAL)


def test_fetching_goes_on_where_it_was(copies: Copies, wire: Wire, disk: Disk, here: Path) -> None:
    """A connection that breaks off is replaced, and only the rest is read; a whole directory goes on, too."""
    for number in range(3):
        written(disk.root / f"d/{number}", data(SEVERAL))
    disk.cut = SEVERAL + SEVERAL // 2
    disk.before = lambda _: None if wire.made < 2 else setattr(disk, "cut", None)
    copies.get("/d", str(here / "back"), at_once)
    assert wire.made == 2
    assert disk.read <= 3 * SEVERAL + transfer.AHEAD * PIECE
    for number in range(3):
        assert (here / f"back/{number}").read_bytes() == data(SEVERAL)
        assert facts(here / f"back/{number}") == (0o640, YEAR_2001)


def test_fetching_goes_on_when_the_host_is_back(wire: Wire, disk: Disk, here: Path) -> None:
    """A host that is away for a while costs what was on its way, and not what had arrived."""
    written(disk.root / "file", data(MANY))
    asked: list[bool] = []

    @contextmanager
    def files() -> Iterator[paramiko.SFTPClient]:
        asked.append(disk.cut is None)
        if len(asked) in (2, 3):
            raise DrmCommunicationError("the connection is lost")
        disk.cut = None if len(asked) > 3 else MANY - 2 * PIECE
        with wire.files() as client:
            yield client

    copies = Copies(files, "wfl-p-1")
    copies.get("/file", str(here / "target"), at_once)
    assert (here / "target").read_bytes() == data(MANY)
    assert len(asked) == 4
    assert disk.read < MANY + transfer.AHEAD * PIECE


def test_waiting_for_a_host_has_an_end(here: Path) -> None:
    """A host that does not come back is given up after the pauses, or at once where nobody waits any more."""
    waited: list[float] = []

    def files() -> AbstractContextManager[paramiko.SFTPClient]:
        raise DrmCommunicationError("the connection is lost")

    for is_over, pauses in [(False, transfer.PAUSES), (True, transfer.PAUSES[:1])]:
        waited.clear()

        def wait(pause: float, is_over: bool = is_over) -> bool:  # noqa: FBT001
            waited.append(pause)
            return is_over

        copies = Copies(files, "wfl-p-1")
        with pytest.raises(DrmCommunicationError):
            copies.get("/file", str(here / "target"), wait)
        assert waited == [*pauses]
        assert copies.breaks == 0  # the host was never reached
    assert names(here) == []


def test_modes_come_last(copies: Copies, disk: Disk, here: Path) -> None:
    """What nobody may write to is opened once more after a break: until all is here, files are ours to write to."""
    for number in range(3):
        written(disk.root / f"d/{number}", data(SEVERAL), mode=0o444)
    disk.cut = SEVERAL + SEVERAL // 2
    modes: list[int] = []

    def wait(_: float) -> None:
        disk.cut = None
        modes.extend(path.stat().st_mode for path in here.rglob("*"))

    copies.get("/d", str(here / "back"), wait)
    assert len(modes) > 2
    assert all(mode & stat.S_IWUSR for mode in modes)
    assert {facts(here / f"back/{number}") for number in range(3)} == {(0o444, YEAR_2001)}


def test_a_source_that_changed_while_the_host_was_away(copies: Copies, disk: Disk, here: Path) -> None:
    """What has arrived of a file as it was before is not put together with the rest of another."""
    path = written(disk.root / "file", data(SEVERAL))
    disk.cut = 2 * PIECE

    def wait(_: float) -> None:
        disk.cut = None
        path.write_bytes(data(SEVERAL)[::-1])

    copies.get("/file", str(here / "target"), wait)
    assert (here / "target").read_bytes() == data(SEVERAL)[::-1]


def test_a_break_is_told_once(wire: Wire, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads is told that the connection broke off, wherever it did; no thread of the client prints it."""
    printed: list[object] = []
    monkeypatch.setattr("threading.excepthook", printed.append)
    written(disk.root / "file", data(MANY))
    for cut in range(0, 8 * PIECE, PIECE):
        disk.cut = cut
        with pytest.raises(LOST), wire.files() as client:
            transfer.read_part(client, "/file", 0, MANY)
    end = time.monotonic() + 10
    while any("quietly" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert printed == []


def test_a_break_is_no_end(wire: Wire, disk: Disk) -> None:
    """A small file whose reading broke off is not taken for a shorter one."""
    written(disk.root / "file", data(PIECE))
    disk.cut = PIECE // 2
    with pytest.raises(LOST), wire.files() as client:
        transfer.read_all(client, "/file")


def test_no_other_connection(disk: Disk, here: Path) -> None:
    """Where there is no other connection that is told, and nothing has arrived."""
    wire = Wire(disk, most=1)
    written(disk.root / "file", data(SEVERAL))
    written(here / "target", b"old")
    disk.cut = SEVERAL // 2

    @contextmanager
    def files() -> Iterator[paramiko.SFTPClient]:
        try:
            with wire.files() as client:
                yield client
        except ConnectionRefusedError as error:
            raise DrmCommunicationError("the connection is lost") from error

    with pytest.raises(DrmCommunicationError, match="the connection is lost"):
        Copies(files, "wfl-p-1").get("/file", str(here / "target"), at_once)
    assert (here / "target").read_bytes() == b"old"
    assert names(here) == ["target"]
    wire.close()


def test_a_file_at_which_it_always_breaks(copies: Copies, wire: Wire, disk: Disk, here: Path) -> None:
    """A host that breaks off at the same place each time is not asked for ever."""
    written(disk.root / "file", data(SEVERAL))

    def cut(what: str) -> None:
        if what == "read":
            disk.cut = 0

    disk.before = cut
    with pytest.raises(DrmCommunicationError, match=r"^cannot copy /file to "):
        copies.get("/file", str(here / "target"), at_once)
    assert wire.made < 10
    assert names(here) == []


# --- what does not arrive whole ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SEVERAL, MANY])
def test_a_full_disk(copies: Copies, disk: Disk, here: Path, size: int) -> None:
    """What the host has no room for is a lack of room, and leaves neither a part of it nor a changed target."""
    source = written(here / "source", data(size))
    written(disk.root / "target", b"old")
    disk.room = size // 2
    with pytest.raises(OutOfResourceError, match=r"^/target did not arrive whole: is the disk full"):
        copies.put(str(source), "/target")
    assert (disk.root / "target").read_bytes() == b"old"
    assert names(disk.root) == ["target"]


def test_a_hole(copies: Copies, disk: Disk, here: Path) -> None:
    """A write that failed is not made good by later ones that succeed, though the size is right."""
    source = written(here / "source", data(SEVERAL))
    disk.lose = frozenset({2})
    with pytest.raises(WflError, match="/target"):
        copies.put(str(source), "/target")
    assert names(disk.root) == []
    copies.put(str(source), "/target")
    assert (disk.root / "target").read_bytes() == data(SEVERAL)


@pytest.mark.parametrize("size", [10, SEVERAL])
def test_a_source_that_changes(copies: Copies, disk: Disk, here: Path, size: int) -> None:
    """A file that is written to while it is read is refused, as it would arrive as it never was."""
    source = written(here / "source", data(size))
    written(disk.root / "target", b"old")

    def change(what: str) -> None:
        if what == "open":
            with source.open("ab") as file:
                file.write(b"more")

    disk.before = change
    with pytest.raises(InvalidArgumentError, match=f"^{source} changed while it was read$"):
        copies.put(str(source), "/target")
    assert (disk.root / "target").read_bytes() == b"old"
    assert names(disk.root) == ["target"]


def test_a_file_that_becomes_shorter(copies: Copies, disk: Disk, here: Path) -> None:
    """A file that ends before the size that the host told is not whole."""
    path = written(disk.root / "file", data(SEVERAL))

    def cut(what: str) -> None:
        if what == "open":
            os.truncate(path, SEVERAL // 2)

    disk.before = cut
    with pytest.raises(InvalidArgumentError, match="/file became shorter while it was read"):
        copies.get("/file", str(here / "target"), at_once)
    assert names(here) == []


def test_a_file_that_grows(copies: Copies, disk: Disk, here: Path) -> None:
    """Of a file that is still written to arrives what was there at first."""
    path = written(disk.root / "file", data(SEVERAL))

    def grow(what: str) -> None:
        if what == "read":
            with path.open("ab") as file:
                file.write(b"more")

    disk.before = grow
    copies.get("/file", str(here / "target"), at_once)
    assert (here / "target").read_bytes() == data(SEVERAL)


# --- what cannot be copied --------------------------------------------------------------------------------


def test_what_is_not_there(copies: Copies, disk: Disk, here: Path) -> None:
    """A source that is not there is told with source and target, on either side, and nothing is made."""
    with pytest.raises(InvalidArgumentError, match=f"^cannot copy {here}/none to /target: No such file"):
        copies.put(f"{here}/none", "/target")
    with pytest.raises(InvalidArgumentError, match=f"^cannot copy /none to {here}/target: No such file"):
        copies.get("/none", f"{here}/target", at_once)
    assert names(disk.root) == names(here) == []


def test_what_may_not_be_read_or_written(copies: Copies, disk: Disk, here: Path) -> None:
    """What the host forbids is told in its words; a connection is not at fault."""
    source = written(here / "source")
    disk.found = lambda path, found: 3 if path.startswith("/closed") else found
    with pytest.raises(InvalidArgumentError, match=f"^cannot copy {source} to /closed/target: Permission denied"):
        copies.put(str(source), "/closed/target")
    with pytest.raises(InvalidArgumentError, match=f"^cannot copy /closed to {here}/target: Permission denied"):
        copies.get("/closed", f"{here}/target", at_once)


def test_a_target_below_a_file(copies: Copies, disk: Disk, here: Path) -> None:
    """Where a directory cannot be made because a file is in its way, that is told."""
    written(disk.root / "file")
    with pytest.raises(InvalidArgumentError, match="/file cannot be made"):
        copies.put(str(written(here / "source")), "/file/a/b")
    (disk.root / "d").mkdir()
    written(disk.root / "d/x")
    (here / "tree/x").mkdir(parents=True)
    with pytest.raises(InvalidArgumentError, match="/d/x cannot be made"):
        copies.put(str(here / "tree"), "/d")


@pytest.mark.timeout(30)
def test_what_is_no_file(copies: Copies, disk: Disk, here: Path) -> None:
    """A pipe, a socket or a device is refused at once, and not waited for."""
    (here / "d").mkdir()
    os.mkfifo(here / "d/pipe")
    for source in (here / "d", here / "d/pipe"):
        with pytest.raises(InvalidArgumentError, match=f"{here}/d/pipe is no file, directory or link"):
            copies.put(str(source), "/target")
    (disk.root / "d").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(disk.root / "d/socket"))
    for path in ("/d", "/d/socket"):
        with pytest.raises(InvalidArgumentError, match="/d/socket is no file, directory or link"):
            copies.get(path, str(here / "target"), at_once)
    assert names(here) == ["d", "d/pipe"]


def test_names_that_are_no_text(copies: Copies, disk: Disk, here: Path) -> None:
    """SFTP has names as text: one that is none is refused, with source and target, and hurts nothing else."""
    for place in (here / "d", disk.root / "d"):
        place.mkdir()
        (place / os.fsdecode(b"\xff")).write_bytes(b"x")
    with pytest.raises(InvalidArgumentError, match=f"^cannot copy {here}/d to /target: "):
        copies.put(str(here / "d"), "/target")
    with pytest.raises(InvalidArgumentError, match=f"^cannot copy /d to {here}/target: "):
        copies.get("/d", str(here / "target"), at_once)
    copies.put(str(written(here / "source")), "/afterwards")
    assert (disk.root / "afterwards").read_bytes() == b"x"


# --- hosts that mean ill ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["/etc/passwd", "..", "../../x", "b/../../..", "./../.."])
def test_links_that_lead_out(copies: Copies, disk: Disk, here: Path, text: str) -> None:
    """A link that leads out of what is copied is refused by name, and nothing arrives."""
    (disk.root / "d/a").mkdir(parents=True)
    (disk.root / "d/link").symlink_to(text)
    with pytest.raises(InvalidArgumentError, match=r"/d/link is a symbolic link that leads out of it"):
        copies.get("/d", str(here / "target"), at_once)
    assert names(here) == []


def test_a_link_at_the_top(copies: Copies, disk: Disk, here: Path) -> None:
    """A host that says that what a link leads to is a link is not believed."""
    (disk.root / "link").symlink_to("link")
    disk.found = lambda _, found: found or os.lstat(disk.root / "link")
    with pytest.raises(InvalidArgumentError, match="leads out of it"):
        copies.get("/link", str(here / "target"), at_once)
    assert names(here) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", ""])
def test_names_that_lead_out(copies: Copies, disk: Disk, here: Path, name: str) -> None:
    """An entry of a directory that is no name of one is refused, and nothing arrives."""
    (disk.root / "d").mkdir()
    written(disk.root / "x")
    disk.listings = {"/d": [name]}
    with pytest.raises(InvalidArgumentError, match=f"/d has an entry {name!r}"):
        copies.get("/d", str(here / "target"), at_once)
    assert names(here) == []


def turning(
    disk: Disk, *kinds: Callable[[Path], object]
) -> Callable[[str, os.stat_result | None], os.stat_result | None]:
    """A path that is something else each time that it is looked at."""
    made = []
    for number, kind in enumerate(kinds):
        kind(disk.root / f"kind{number}")
        made.append(os.lstat(disk.root / f"kind{number}"))
    seen: dict[str, int] = {}

    def found(path: str, known: os.stat_result | None) -> os.stat_result | None:
        if not path.endswith("/turns"):
            return known
        seen[path] = seen.get(path, -1) + 1
        return made[min(seen[path], len(made) - 1)]

    return found


def test_names_that_come_twice(copies: Copies, disk: Disk, here: Path) -> None:
    """A name that is a link at first and a directory then does not lead anywhere else."""
    there = disk.root / "d/e/f"
    there.mkdir(parents=True)
    first, second = "/d/e/f/turns", "/d/e/f/turns/turns"
    disk.listings = {"/d/e/f": ["turns", "turns"], first: ["turns", "turns"], second: ["evil"]}
    disk.found = turning(disk, lambda path: path.symlink_to("../.."), Path.mkdir)
    disk.places = {
        first: disk.root / "kind0",
        second: disk.root / "kind0",
        f"{second}/evil": written(disk.root / "evil"),
    }
    target = here / "in" / "target"
    with suppress(WflError):
        copies.get("/d", str(target), at_once)
    outside = [path for path in here.rglob("evil") if not path.is_relative_to(target)]
    assert outside == []


def test_what_turns_while_it_is_fetched_again(copies: Copies, wire: Wire, disk: Disk, here: Path) -> None:
    """A link of a first attempt is not gone through in a second, where it is said to be a directory."""
    written(disk.root / "d/a", data(SEVERAL))
    (disk.root / "d/z").mkdir()
    (disk.root / "d/z/turns").symlink_to("../z")
    disk.found = turning(disk, lambda path: path.symlink_to("x"), Path.mkdir)
    disk.listings = {"/d/z/turns": []}
    disk.cut = SEVERAL // 2
    disk.before = lambda _: None if wire.made < 2 else setattr(disk, "cut", None)
    copies.get("/d", str(here / "target"), at_once)
    assert wire.made == 2
    assert stat.S_ISDIR((here / "target/z/turns").lstat().st_mode)


def test_depth_without_end(copies: Copies, disk: Disk, here: Path) -> None:
    """A directory that has itself in it, for all that the host says, is refused before this side breaks by it."""
    (disk.root / "d").mkdir()
    known = os.lstat(disk.root / "d")

    class Endless(dict[str, list[str]]):
        def get(self, key: str, default: object = None) -> list[str]:
            del key, default
            return ["d"]

    disk.listings = Endless()
    disk.found = lambda _path, _found: known
    with pytest.raises(InvalidArgumentError, match="/d/d/d"):
        copies.get("/d", str(here / "target"), at_once)
    assert names(here) == []


def test_a_size_without_end(copies: Copies, disk: Disk, here: Path) -> None:
    """A size that cannot be is no reason to make room for it."""
    path = written(disk.root / "file")

    def found(name: str, known: os.stat_result | None) -> os.stat_result | None:
        if known is None or name != "/file":
            return known
        return os.stat_result([*known[:6], 1 << 62, *known[7:10]])

    disk.found = found
    with pytest.raises(InvalidArgumentError, match="/file became shorter while it was read"):
        copies.get("/file", str(here / "target"), at_once)
    assert names(here) == []
    assert path.exists()


# --- smaller things ---------------------------------------------------------------------------------------


def test_parts_of_a_file(wire: Wire, disk: Disk) -> None:
    """Output is read from where one is, never more than asked for, and as far as it goes."""
    written(disk.root / "out", data(SEVERAL))
    with wire.files() as client:
        for offset, limit in [(0, 10), (7, PIECE), (PIECE, 3 * PIECE), (0, 2 * SEVERAL), (SEVERAL - 1, 5)]:
            assert transfer.read_part(client, "/out", offset, limit) == data(SEVERAL)[offset : offset + limit]
        for offset, limit in [(SEVERAL, 1), (SEVERAL + 5, 10), (0, 0), (5, 0)]:
            assert transfer.read_part(client, "/out", offset, limit) == b""
        assert transfer.read_all(client, "/out") == data(SEVERAL)
        with pytest.raises(FileNotFoundError):
            transfer.read_part(client, "/none", 0, 10)


def test_two_make_the_same_directory(wire: Wire, disk: Disk) -> None:
    """A directory that another job has just made is there, and no error."""

    def make(what: str) -> None:
        if what == "mkdir":
            with suppress(FileExistsError):
                (disk.root / "a").mkdir()

    disk.before = make
    with wire.files() as client:
        transfer.make_directories(client, "/a/b")
        transfer.make_directories(client, "/")
    assert names(disk.root) == ["a", "a/b"]


def test_the_disk_here_is_full(copies: Copies, disk: Disk, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room on this side is told as that."""
    written(disk.root / "file")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(here / "x"))

    monkeypatch.setattr("os.chmod", full)
    with pytest.raises(OutOfResourceError, match="No space left"):
        copies.get("/file", str(here / "target"), at_once)
