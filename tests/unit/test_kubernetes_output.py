"""Output: a log's text without its stamps, whatever pieces it comes in, and nothing twice however often it is read."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.contexts.kubernetes.client import Client, NotThereError
from wfl.contexts.kubernetes.output import Output
from wfl.errors import DrmCommunicationError, ImplementationSpecificError, InvalidStateError, OutOfResourceError

BEGAN = datetime.fromisoformat("2026-01-01T00:00:58+00:00")
LOST = DrmCommunicationError("the connection was lost")

Line = tuple[int, bytes]  # nanoseconds since BEGAN, text with its line break
texts = st.binary(max_size=12).map(lambda text: text.replace(b"\n", b"x"))


def stamp_of(moment: int, zone: str = "Z") -> bytes:
    """Return a stamp as a node writes it, in its own time zone."""
    hours = 0 if zone == "Z" else int(zone[:3])
    second = BEGAN + timedelta(seconds=moment // 10**9, hours=hours)
    return f"{second:%Y-%m-%dT%H:%M:%S}.{moment % 10**9:09}{zone} ".encode()


def log_of(lines: Iterable[Line], zone: str = "Z") -> bytes:
    """Return what the server gives of these lines."""
    return b"".join(stamp_of(moment, zone) + text for moment, text in lines)


def text_of(lines: Iterable[Line]) -> bytes:
    """Return what was written."""
    return b"".join(text for _, text in lines)


def pieces_of(log: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut a stream at these places (modulo its length)."""
    places = sorted({0, len(log), *(cut % (len(log) + 1) for cut in cuts)})
    return [log[start:end] for start, end in pairwise(places)]


class Node:
    """Stands for the client: has a log, of which each asking is answered by the next of some ways."""

    def __init__(self, lines: list[Line], *, zone: str = "Z", cuts: Iterable[int] = ()) -> None:
        self.lines, self.zone, self.cuts = lines, zone, cuts
        self.asked: list[tuple[bool, str | None]] = []
        self.ways: list[Callable[[bytes], Iterator[bytes]]] = []

    def log(
        self, pod: str, *, follow: bool = False, since: str | None = None, container: str = "main"
    ) -> Iterator[bytes]:
        """Answer as the server does, which knows whole seconds only."""
        assert (pod, container) == ("pod", "main")
        self.asked.append((follow, since))
        start = None if since is None else (datetime.fromisoformat(since) - BEGAN) // timedelta(seconds=1) * 10**9
        told = log_of([(moment, text) for moment, text in self.lines if start is None or moment >= start], self.zone)
        way = self.ways.pop(0) if self.ways else iter_all
        for piece in way(told):
            yield from pieces_of(piece, self.cuts)

    @property
    def client(self) -> Client:
        """As what it stands for."""
        return cast("Client", self)


def iter_all(log: bytes) -> Iterator[bytes]:
    """Give all of it."""
    yield log


def breaking_at(place: int) -> Callable[[bytes], Iterator[bytes]]:
    """Return what gives so much of a log (modulo its length) and then loses the connection."""

    def way(log: bytes) -> Iterator[bytes]:
        yield log[: place % (len(log) + 1)]
        raise LOST

    return way


def whole(output: Output) -> bytes:
    """Return all that there is now."""
    return output.read(0, 1 << 30)


def numbered(count: int, *, apart: int = 1000) -> list[Line]:
    """Return so many lines, so many nanoseconds apart."""
    return [(number * apart, b"%d\n" % number) for number in range(count)]


def check(output: Output, text: bytes) -> None:
    """Assert that this is all, and that nothing went wrong."""
    assert output.error is None
    assert whole(output) == text


# --- stamps -----------------------------------------------------------------------------------------------


@given(st.lists(texts, max_size=8), texts, st.lists(st.integers(0, 1000)), st.sampled_from(["Z", "+05:30", "-03:00"]))
def test_stamps_are_taken_away(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], last: bytes, cuts: list[int], zone: str
) -> None:
    """Any bytes, in any pieces, from a node in any time zone: the text is what was written, and only that."""
    written = [(number, line + b"\n") for number, line in enumerate(lines)] + ([(99, last)] if last else [])
    output = Output(Node(written, zone=zone, cuts=cuts).client, tmp_path_factory.mktemp("output"), "job")
    output.fill("pod", False)
    assert output.error is None
    assert whole(output) == text_of(written)


def test_text_that_looks_like_stamps(tmp_path: Path) -> None:
    """Only the first stamp of a line is one: what the program has written stays."""
    lines = [(n, stamp_of(7) + stamp_of(8) + ending) for n, ending in enumerate([b"\n", b"text\n", b""])]
    output = Output(Node(lines).client, tmp_path, "job")
    output.fill("pod", follow=False)
    assert whole(output) == text_of(lines)


def test_stamps_of_fewer_digits(tmp_path: Path) -> None:
    """A node may leave out zeros at the end of a fraction, and the whole of it."""
    node = Node([])
    node.ways = [lambda _: iter([b"2026-01-01T00:00:00.5Z a\n2026-01-01T00:00:01Z b\n2026-01-01T00:00:01.25Z c\n"])] * 2
    output = Output(node.client, tmp_path, "job")
    for _ in range(2):
        output.fill("pod", follow=False)
        assert whole(output) == b"a\nb\nc\n"
    assert node.asked == [(False, None), (False, "2026-01-01T00:00:01Z")]


@pytest.mark.parametrize("words", [b"unable to retrieve container logs", b"failed to watch: too many open files\n"])
def test_words_of_the_node_are_no_output(tmp_path: Path, words: bytes) -> None:
    """What bears no stamp is the node's own trouble: it is an error in its words, after all that is output."""
    node = Node(numbered(3))
    node.ways = [lambda log: iter([log + words])]
    output = Output(node.client, tmp_path, "job")
    output.fill("pod", follow=False)
    assert isinstance(output.error, ImplementationSpecificError)
    assert str(output.error).endswith(words.decode().strip())
    assert whole(output) == b"0\n1\n2\n"


def test_a_container_removed_before_its_pod(tmp_path: Path) -> None:
    """Its node says so in place of output: then what was followed is all that there is."""
    node = Node(numbered(3))
    node.ways = [iter_all, *[lambda _: iter([b"unable to retrieve container logs for containerd://c58664278f6e"])] * 2]
    output = Output(node.client, tmp_path, "job")
    output.fill("pod", follow=True)
    check(output, b"0\n1\n2\n")
    output.fill("pod", follow=False)
    assert isinstance(output.error, NotThereError)
    assert whole(output) == b"0\n1\n2\n"


def test_endless_words_are_not_hoarded(tmp_path: Path) -> None:
    """Something else than a log, as a proxy's page, is an error long before its end."""
    node = Node([])
    taken = []

    def page(_: bytes) -> Iterator[bytes]:
        for number in range(1000):
            taken.append(number)
            yield b"<p>" * 100

    node.ways = [page]
    output = Output(node.client, tmp_path, "job")
    output.fill("pod", follow=False)
    assert isinstance(output.error, ImplementationSpecificError)
    assert len(taken) < 50


def test_an_end_within_a_stamp(tmp_path: Path) -> None:
    """A log that ends in the middle of a stamp broke off, and can be read on."""
    node = Node(numbered(3))
    node.ways = [lambda log: iter([log[:-5]])]
    output = Output(node.client, tmp_path, "job")
    output.fill("pod", follow=False)
    assert isinstance(output.error, DrmCommunicationError)
    output.fill("pod", follow=False)
    check(output, b"0\n1\n2\n")


# --- going on ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 6), texts), min_size=1, max_size=8),
    texts,
    st.tuples(*[st.lists(st.integers(0, 1000), max_size=4)] * 2),
    st.sampled_from([1, 3 * 10**8]),
)
def test_filled_again_after_breaking_off(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, bytes]],
    last: bytes,
    places: tuple[list[int], list[int]],
    unit: int,
) -> None:
    """Wherever the connection was lost, and however often, nothing is doubled and nothing lost; stamps may be alike."""
    breaks, cuts = places
    moment, lines = 0, []
    for step, text in [*steps, (1, last)]:
        moment += step * unit
        lines.append((moment, text + b"\n"))
    lines[-1] = (moment, last)
    node = Node([line for line in lines if line[1]], cuts=cuts)
    node.ways = [breaking_at(place) for place in breaks]
    output = Output(node.client, tmp_path_factory.mktemp("output"), "job")
    for _ in breaks:
        output.fill("pod", follow=True)
        assert output.error is LOST
        assert output.complete.is_set()
        assert text_of(lines).startswith(whole(output))
    output.fill("pod", follow=True)
    assert output.error is None
    assert whole(output) == text_of(lines)


def test_only_what_is_new_is_asked_for(tmp_path: Path) -> None:
    """A further reading begins with the second of the last whole line, not with the first."""
    node = Node(numbered(10, apart=10**9))
    node.ways = [breaking_at(len(log_of(node.lines)) - 2)]
    output = Output(node.client, tmp_path, "job")
    output.fill("pod", follow=True)
    assert whole(output) == b"".join(b"%d\n" % n for n in range(9))
    output.fill("pod", follow=True)
    assert whole(output) == text_of(node.lines)
    assert node.asked == [(True, None), (True, "2026-01-01T00:01:06Z"), (False, "2026-01-01T00:01:07Z")]


def test_a_clock_that_was_put_back(tmp_path: Path) -> None:
    """Lines that bear earlier stamps than lines before them are output as all others, also after a break."""
    lines = [(900, b"a\n"), (901, b"b\n"), (200, b"c\n"), (201, b"d\n"), (902, b"e\n")]
    node = Node(lines)
    node.ways = [breaking_at(len(log_of(lines[:2])))]
    output = Output(node.client, tmp_path, "job")
    output.fill("pod", follow=True)
    output.fill("pod", follow=False)
    assert whole(output) == b"a\nb\nc\nd\ne\n"


def test_another_program_goes_on(tmp_path: Path) -> None:
    """What an earlier program has left half filled is completed, not doubled."""
    node = Node(numbered(5))
    node.ways = [breaking_at(100)]
    Output(node.client, tmp_path, "job").fill("pod", follow=False)
    again = Output(node.client, tmp_path, "job")
    again.fill("pod", follow=False)
    assert whole(again) == text_of(node.lines)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is OutOfResourceError with the file's name; when there is room again nothing is doubled or lost."""
    node, write, room = Node([(n, b"line %d\n" % n) for n in range(9)]), os.write, [31]
    output = Output(node.client, tmp_path, "job")

    def scarce(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[: room[0]]
        room[0] -= len(data)
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", scarce)
        output.fill("pod", follow=False)
    assert isinstance(output.error, OutOfResourceError)
    assert "job.log: No space left" in str(output.error)
    assert output.size == 31
    output.fill("pod", follow=False)
    check(output, text_of(node.lines))


# --- following --------------------------------------------------------------------------------------------


def test_a_follow_that_ended_at_an_old_file_is_read_on(tmp_path: Path) -> None:
    """A node that ends a follow with the old one of two files is asked for the rest until there is no more."""
    lines = numbered(9)
    node = Node(lines)
    node.ways = [
        lambda _: iter([log_of(lines[:3])]),
        lambda _: iter([log_of(lines[3:6])]),  # a new file begins with new lines
        lambda _: iter([log_of(lines[3:])]),
    ]
    output = Output(node.client, tmp_path, "job")
    output.fill("pod", follow=True)
    check(output, text_of(lines))
    assert [follow for follow, _ in node.asked] == [True, False, False, False]


def test_a_log_that_is_not_followed_is_read_once(tmp_path: Path) -> None:
    """Without following, one reading is all that is asked for."""
    node = Node(numbered(3))
    output = Output(node.client, tmp_path, "job")
    output.fill("pod", follow=False)
    assert node.asked == [(False, None)]


def test_a_line_that_goes_on_in_a_new_file(tmp_path: Path) -> None:
    """The second part of a long line, that begins a node's new file, bears a stamp of its own; the line is whole."""
    new = log_of([(9, b"second part\n"), (10, b"next\n")])
    node = Node([])
    node.ways = [lambda _: iter([log_of([(1, b"line\n"), (2, b"first part, ")])]), lambda _: iter([new])]
    node.ways += [lambda _: iter([new])] * 2
    output = Output(node.client, tmp_path, "job")
    for _ in range(2):
        output.fill("pod", follow=True)
        check(output, b"line\nfirst part, second part\nnext\n")


def test_a_pod_removed_after_it_was_followed(tmp_path: Path) -> None:
    """What was followed to its end is all that there is, when the pod is removed before it can be asked once more."""

    def gone(log: bytes) -> Iterator[bytes]:
        yield from [log][:0]
        raise NotThereError("pod not found")

    node = Node(numbered(3))
    node.ways = [iter_all, gone, gone]
    output = Output(node.client, tmp_path, "job")
    output.fill("pod", follow=True)
    check(output, b"0\n1\n2\n")
    output.fill("pod", follow=False)
    assert isinstance(output.error, NotThereError)
    assert whole(output) == b"0\n1\n2\n"


def test_read_while_it_is_filled(tmp_path: Path) -> None:
    """What has come can be read before the rest has, also of a line that is not whole; the end is not told early."""
    node = Node([])
    output = Output(node.client, tmp_path, "job")
    seen = []

    def slow(_: bytes) -> Iterator[bytes]:
        for piece in (stamp_of(1) + b"a\n" + stamp_of(2) + b"pass", b"word: ", b"ok\n"):
            yield piece
            seen.append((whole(output), output.size, output.complete.is_set()))

    node.ways = [slow]
    output.fill("pod", follow=False)
    assert seen == [(b"a\npass", 6, False), (b"a\npassword: ", 12, False), (b"a\npassword: ok\n", 15, False)]
    assert output.complete.is_set()


# --- the file ---------------------------------------------------------------------------------------------


def test_ranges_and_copies(tmp_path: Path) -> None:
    """Output is read from any offset, and copied to a file, which is emptied first."""
    node = Node(numbered(3))
    output = Output(node.client, tmp_path / "new", "job")
    assert (whole(output), output.size) == (b"", 0)
    output.fill("pod", follow=False)
    assert (output.read(2, 3), output.read(6, 10)) == (b"1\n2", b"")
    (tmp_path / "copy").write_bytes(bytes(100))
    output.copy_to(str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"0\n1\n2\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["job.log"]


def test_removed_while_it_is_filled(tmp_path: Path) -> None:
    """Removed means gone: what still comes is not waited for, makes no file again, and reading says so."""
    node = Node([])
    output = Output(node.client, tmp_path, "job")

    def late(_: bytes) -> Iterator[bytes]:
        yield log_of(numbered(1))
        output.remove()
        yield log_of(numbered(2))
        pytest.fail("it is read on")

    node.ways = [late]
    output.fill("pod", follow=False)
    assert output.error is None
    assert not [*tmp_path.iterdir()]
    with pytest.raises(InvalidStateError, match=re.escape("job.log was removed")):
        whole(output)


def test_many_lines_cost_no_call_each(tmp_path: Path) -> None:
    """A hundred thousand short lines take a small part of a second, and one long line no more."""
    lines = [*numbered(100_000), (10**9, b"x" * 5_000_000 + b"\n")]
    log = log_of(lines)
    node = Node([])
    node.ways = [lambda _: (log[start : start + 65536] for start in range(0, len(log), 65536))]
    output = Output(node.client, tmp_path, "job")
    began = time.process_time()
    output.fill("pod", follow=False)
    assert time.process_time() - began < 2  # it takes about 0.1 seconds; a cost that grows with the square would show
    assert whole(output) == text_of(lines)
