"""Spool: the daemon's log stream is taken apart whatever its pieces, and what was written is never written twice."""

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.backend import Stream
from wfl.contexts.containers.spool import CUT, Demultiplexer, Spool
from wfl.errors import DrmCommunicationError, ImplementationSpecificError, InvalidStateError, OutOfResourceError

PATIENCE = 30  # seconds that a thread may take on a busy machine
OUT, ERR, SYSTEM = 1, 2, 3

Frames = list[tuple[int, bytes]]
frames_of_a_log = st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.binary(max_size=40)), max_size=12)


def frame(kind: int, payload: bytes) -> bytes:
    """Return one frame as the daemon writes it."""
    return bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def log_of(frames: Frames) -> bytes:
    """Return the whole stream."""
    return b"".join(frame(kind, payload) for kind, payload in frames)


def payload_of(frames: Frames, *kinds: int) -> bytes:
    """Return what the frames of these kinds carry."""
    return b"".join(payload for kind, payload in frames if kind in kinds)


def pieces_of(log: bytes, cuts: list[int]) -> list[bytes]:
    """Cut a stream at these places (modulo its length)."""
    places = sorted({0, len(log), *(cut % (len(log) + 1) for cut in cuts)})
    return [log[start:end] for start, end in pairwise(places)]


def broken(pieces: list[bytes]) -> Iterator[bytes]:
    """Give these pieces, then lose the connection."""
    yield from pieces
    raise DrmCommunicationError("the connection was lost")


def whole(spool: Spool, stream: Stream = "stdout") -> bytes:
    """Return all that there is now."""
    return spool.read(stream, 0, 1 << 20)


# --- the stream -------------------------------------------------------------------------------------------


@given(frames_of_a_log, st.lists(st.integers(0, 2000)))
def test_pieces_do_not_matter(frames: Frames, cuts: list[int]) -> None:
    """However a stream is cut, each stream's payload comes whole and in order."""
    demultiplexer = Demultiplexer()
    pairs = [demultiplexer.feed(piece) for piece in pieces_of(log_of(frames), cuts)]
    demultiplexer.finish()
    assert b"".join(out for out, _ in pairs) == payload_of(frames, OUT)
    assert b"".join(err for _, err in pairs) == payload_of(frames, ERR)


@given(frames_of_a_log, st.lists(st.integers(0, 2000)))
def test_merged_keeps_the_order_of_frames(frames: Frames, cuts: list[int]) -> None:
    """Merged, everything is standard output, in the order in which the daemon noted it."""
    demultiplexer = Demultiplexer(merged=True)
    pairs = [demultiplexer.feed(piece) for piece in pieces_of(log_of(frames), cuts)]
    assert b"".join(out for out, _ in pairs) == payload_of(frames, OUT, ERR)
    assert not any(err for _, err in pairs)


def test_frame_is_handed_on_before_it_is_whole() -> None:
    """What has come of a long frame is given at once: who follows a job does not wait, and nothing is hoarded."""
    demultiplexer = Demultiplexer()
    assert demultiplexer.feed(frame(ERR, b"abcdef")[:10]) == (b"", b"ab")
    assert demultiplexer.feed(b"cd") == (b"", b"cd")
    assert demultiplexer.feed(b"ef" + frame(OUT, b"x")) == (b"x", b"ef")


@given(frames_of_a_log.filter(bool), st.integers(1))
def test_end_within_a_frame_is_an_error(frames: Frames, cut: int) -> None:
    """A stream that ends in a header or before a payload is whole broke off; between two frames it may end."""
    log = log_of(frames)
    end = cut % len(log)
    demultiplexer = Demultiplexer()
    demultiplexer.feed(log[:end])
    borders = {len(log_of(frames[:n])) for n in range(len(frames))}
    if end in borders:
        demultiplexer.finish()
    else:
        with pytest.raises(DrmCommunicationError, match="in the middle of a frame"):
            demultiplexer.finish()


@pytest.mark.parametrize("start", [b"just text", b"\x01\x00\x00\x01\x00\x00\x00\x01x", b"\x04" + bytes(7)])
def test_other_streams_are_refused(start: bytes) -> None:
    """What does not begin as a frame does, such as a terminal's output, is an error and not mangled output."""
    with pytest.raises(DrmCommunicationError, match="not a stream of frames"):
        Demultiplexer().feed(start)


def test_words_of_the_daemon_are_no_output() -> None:
    """What the daemon says of its own trouble is raised at the end, in its words, and is not taken for output."""
    demultiplexer = Demultiplexer()
    log = frame(OUT, b"a") + frame(SYSTEM, b"Error grabbing logs: unexpected EOF\n") + frame(ERR, b"b")
    assert demultiplexer.feed(log) == (b"a", b"b")
    with pytest.raises(ImplementationSpecificError, match=r"^Error grabbing logs: unexpected EOF$"):
        demultiplexer.finish()


# --- the files --------------------------------------------------------------------------------------------


# --- line breaks that were lost ---------------------------------------------------------------------------


def lines_as_docker_has_them(lines: list[tuple[int, bytes]]) -> tuple[list[bytes], list[bytes]]:
    """The log of lines (kind, text without break) as the driver "local" of Docker 20.10 tells it: plain and stamped."""
    plain, stamped = [], []
    for number, (kind, text) in enumerate(lines):
        parts = [text[i : i + CUT] for i in range(0, len(text), CUT)] or [b""]
        if len(text) >= CUT and len(text) % CUT == 0:
            parts.append(b"")
        for part in parts:
            payload = part if len(parts) > 1 else part + b"\n"
            plain.append(frame(kind, payload))
            stamped.append(frame(kind, b"2026-11-21T10:00:00.%09dZ " % number + payload))
    return plain, stamped


LONG = [
    (1, b"a"),
    (1, b"b" * 40000),
    (2, b"c" * CUT),
    (2, b""),
    (1, b"d" * 3 * CUT),
    (2, b"e" * (CUT + 1)),
    (1, b"f"),
    (2, b"g"),
]


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_lost_breaks_are_put_back(tmp_path: Path, size: int) -> None:
    """Those of lines that Docker has cut, of any length, in both streams and however the log arrives."""
    plain, stamped = ([bytes(b"".join(log))] for log in lines_as_docker_has_them(LONG))
    pieces = [stamped[0][i : i + size] for i in range(0, len(stamped[0]), size)]
    spool = Spool(tmp_path, "job")
    spool.fill(plain, stamped=[pieces])
    assert spool.error is None
    for stream, number in (("stdout", 1), ("stderr", 2)):
        assert whole(spool, cast("Stream", stream)) == b"".join(text + b"\n" for kind, text in LONG if kind == number)


def test_lost_breaks_where_both_are_one(tmp_path: Path) -> None:
    """Merged, lines stay lines."""
    plain, stamped = lines_as_docker_has_them(LONG)
    spool = Spool(tmp_path, "job", merged=True)
    spool.fill(plain, stamped=[stamped])
    assert whole(spool) == b"".join(text + b"\n" for _, text in LONG)


def test_nothing_is_put_where_nothing_was_lost(tmp_path: Path) -> None:
    """A daemon that keeps the breaks, and a last line that had none."""
    stamp = b"2026-11-21T10:00:00.1Z "
    plain = [frame(1, b"x" * CUT), frame(1, b"y\n"), frame(1, b"z" * CUT), frame(1, b"end")]
    stamped = [
        frame(1, stamp + b"x" * CUT), frame(1, stamp + b"y\n"),
        frame(1, b"2" + stamp + b"z" * CUT), frame(1, b"2" + stamp + b"end"),
    ]  # fmt: skip
    spool = Spool(tmp_path, "job")
    spool.fill(plain, stamped=[stamped])
    assert whole(spool) == b"x" * CUT + b"y\n" + b"z" * CUT + b"end"


def test_what_was_written_before_the_first_cut_line_stays(tmp_path: Path) -> None:
    """A log that is followed goes on with its stamped form, and is read once more in that form."""
    plain, stamped = lines_as_docker_has_them(LONG)
    spool = Spool(tmp_path, "job")
    spool.fill(plain, iter(()), stamped=[stamped[:4], stamped])
    assert spool.error is None
    assert whole(spool) == b"".join(text + b"\n" for kind, text in LONG if kind == 1)


def test_both_streams_are_read_by_ranges(tmp_path: Path) -> None:
    """Each stream is read from any offset, in any portion; past the end there is nothing."""
    spool = Spool(tmp_path, "job")
    spool.fill([log_of([(OUT, b"0123"), (ERR, b"bad"), (OUT, b"456")])])
    assert spool.complete.is_set()
    assert spool.error is None
    assert (spool.read("stdout", 0, 100), spool.read("stdout", 2, 3)) == (b"0123456", b"234")
    assert (spool.read("stderr", 1, 100), spool.read("stderr", 3, 100)) == (b"ad", b"")


def test_merged_spool_has_one_stream(tmp_path: Path) -> None:
    """With merged, standard output has both streams in order, and standard error is empty."""
    spool = Spool(tmp_path, "job", merged=True)
    spool.fill([log_of([(OUT, b"1"), (ERR, b"2"), (OUT, b"3")])])
    assert (whole(spool), whole(spool, "stderr")) == (b"123", b"")


def test_files_are_made_when_there_is_something(tmp_path: Path) -> None:
    """A job without output leaves no file; those that are made are for their owner alone."""
    directory = tmp_path / "new" / "place"
    spool = Spool(directory, "job")
    assert whole(spool) == b""
    spool.fill([frame(OUT, b"")])
    assert not directory.exists()
    spool.fill([frame(ERR, b"x")])
    (file,) = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_read_while_it_is_filled(tmp_path: Path) -> None:
    """What has come can be read before the rest has; `complete` is set only when all of it is there."""
    spool = Spool(tmp_path, "job")
    came, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield frame(OUT, b"first ")
        came.set()
        assert go_on.wait(PATIENCE)
        yield frame(OUT, b"second")

    thread = threading.Thread(target=spool.fill, args=(slow(),))
    thread.start()
    try:
        assert came.wait(PATIENCE)
        assert whole(spool) == b"first "
        assert not spool.complete.is_set()
    finally:
        go_on.set()
        thread.join(PATIENCE)
    assert spool.complete.is_set()
    assert whole(spool) == b"first second"


@given(frames_of_a_log, st.lists(st.integers(0, 2000)), st.lists(st.integers(0, 2000), max_size=3), st.booleans())
def test_filled_again_after_breaking_off(
    tmp_path_factory: pytest.TempPathFactory,
    frames: Frames,
    cuts: list[int],
    breaks: list[int],
    merged: bool,  # noqa: FBT001 - drawn
) -> None:
    """Wherever the connection was lost, and however often, the log read again doubles and loses nothing."""
    log = log_of(frames)
    spool = Spool(tmp_path_factory.mktemp("spool"), "job", merged=merged)
    for place in breaks:
        spool.fill(broken(pieces_of(log[: place % (len(log) + 1)], cuts)))
        assert spool.complete.is_set()
        assert isinstance(spool.error, DrmCommunicationError)
    spool.fill(pieces_of(log, cuts))
    assert spool.error is None
    assert whole(spool) == (payload_of(frames, OUT, ERR) if merged else payload_of(frames, OUT))
    assert whole(spool, "stderr") == (b"" if merged else payload_of(frames, ERR))


def test_log_read_once_more(tmp_path: Path) -> None:
    """A followed log that ended short is completed by the same log read again; only then is it complete."""
    log = log_of([(OUT, b"abc"), (ERR, b"x"), (OUT, b"def"), (ERR, b"y")])
    spool = Spool(tmp_path, "job")
    between: list[bool] = []

    def again() -> Iterator[bytes]:
        between.append(spool.complete.is_set())
        yield log

    spool.fill([log[:20]], again())
    assert between == [False]
    assert spool.complete.is_set()
    assert (whole(spool), whole(spool, "stderr")) == (b"abcdef", b"xy")


def test_log_is_not_read_once_more_after_an_error(tmp_path: Path) -> None:
    """Where the first reading fails the second is not begun: the container may still run."""
    spool = Spool(tmp_path, "job")
    spool.fill(broken([frame(OUT, b"a")]), broken([frame(OUT, b"ab")]))
    assert str(spool.error) == "the connection was lost"
    assert whole(spool) == b"a"


def test_another_program_goes_on(tmp_path: Path) -> None:
    """A spool whose files an earlier program left behind half filled is completed, not doubled."""
    log = log_of([(OUT, b"abc"), (ERR, b"x"), (OUT, b"def")])
    Spool(tmp_path, "job").fill(broken([log[:9]]))
    again = Spool(tmp_path, "job")
    again.fill([log])
    assert (whole(again), whole(again, "stderr")) == (b"abcdef", b"x")


def test_filling_again_takes_the_end_back(tmp_path: Path) -> None:
    """While it is filled again it is not complete, and the old error is forgotten."""
    spool = Spool(tmp_path, "job")
    spool.fill(broken([]))
    seen: list[object] = []

    def look() -> Iterator[bytes]:
        seen.extend([spool.complete.is_set(), spool.error])
        yield frame(OUT, b"x")

    spool.fill(look())
    assert seen == [False, None]


def test_end_within_a_frame_is_kept_as_error(tmp_path: Path) -> None:
    """A stream that ends quietly in the middle of a frame is not taken for the whole of it."""
    spool = Spool(tmp_path, "job")
    spool.fill([frame(OUT, b"abcdef")[:-2]])
    assert isinstance(spool.error, DrmCommunicationError)
    assert whole(spool) == b"abcd"


def test_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full is OutOfResourceError with the file's name; when there is room again nothing is doubled."""
    write, spool = os.write, Spool(tmp_path, "job")
    room = [3]

    def scarce(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(data[: room[0]])
        return write(descriptor, data[:3])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", scarce)
        spool.fill([frame(OUT, b"abcdef")])
    assert isinstance(spool.error, OutOfResourceError)
    assert "job.stdout: No space left" in str(spool.error)
    spool.fill([frame(OUT, b"abcdef")])
    assert whole(spool) == b"abcdef"


def test_remove_while_it_is_filled(tmp_path: Path) -> None:
    """Removed means gone: what still comes makes no file again, and reading says so."""
    spool = Spool(tmp_path, "job")

    def late() -> Iterator[bytes]:
        yield log_of([(OUT, b"a"), (ERR, b"b")])
        spool.remove()
        yield log_of([(OUT, b"a"), (ERR, b"b")])

    spool.fill(late())
    assert not [*tmp_path.iterdir()]
    with pytest.raises(InvalidStateError, match=r"job\.stdout was removed"):
        whole(spool)
    spool.remove()


def test_file_removed_by_somebody(tmp_path: Path) -> None:
    """Output that was there and is gone is an error, never empty output."""
    spool = Spool(tmp_path, "job")
    spool.fill([frame(OUT, b"a")])
    (tmp_path / "job.stdout").unlink()
    with pytest.raises(InvalidStateError, match="was removed"):
        whole(spool)
    assert whole(spool, "stderr") == b""


def test_copied_to_a_file(tmp_path: Path) -> None:
    """A stream is copied into a file, which is emptied first; one that cannot be written is named."""
    spool, target = Spool(tmp_path / "spool", "job"), tmp_path / "out"
    payload = bytes(range(256)) * 6000
    spool.fill([frame(OUT, payload)])
    target.write_bytes(payload + payload)
    spool.copy_to("stdout", str(target))
    assert target.read_bytes() == payload
    spool.copy_to("stderr", str(target))
    assert target.read_bytes() == b""
    with pytest.raises(InvalidStateError, match=r"cannot write .*nowhere/out: No such file"):
        spool.copy_to("stdout", str(tmp_path / "nowhere" / "out"))


def test_a_copy_to_the_programs_own_output_follows_what_is_there(tmp_path: Path) -> None:
    """A program whose output goes to a file loses nothing of it: that file is not emptied by a copy to /dev/stdout."""
    code = (
        "from pathlib import Path; from wfl.contexts.containers.spool import Spool; print('before', flush=True); "
        f"s = Spool(Path({str(tmp_path)!r}), 'x'); s.fill([bytes([1, 0, 0, 0, 0, 0, 0, 7]) + b'within\\n']); "
        "s.copy_to('stdout', '/dev/stdout'); print('after')"
    )
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nwithin\nafter\n"
