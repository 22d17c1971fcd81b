"""The line to one host, with the attendant in a shell of this machine behind an SSH server in this process."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko
import pytest

from tests.ssh_server import PATIENCE, Disk, Host, Server, Shell
from wfl import JobTemplate
from wfl.backend import Submission
from wfl.contexts.ssh import attendant
from wfl.contexts.ssh.connection import CHANNELS
from wfl.contexts.ssh.line import Line, Speaks
from wfl.contexts.ssh.login import Login
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, SessionManagementError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHORT = 0.3  # seconds that a host which says nothing is waited for


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


class Place:
    """A host, the line to it, and what that line tells."""

    def __init__(self, home: Path) -> None:
        self.home = home
        key = paramiko.ECDSAKey.generate()
        key.write_private_key_file(str(home / "key"))
        (home / "there").mkdir()
        self.shell = Shell(home / "there")
        self.host = Host(Disk(home / "there"), keys=[key], command=self.shell)
        self.server = Server(self.host)
        self.lines: list[Line] = []
        self.told: list[str] = []
        self.backs = self.aways = self.beats = 0
        self.request: str | None = None
        """What is said as a sign of life."""

    def line(self, *, pause: float = PATIENCE, timeout: float = PATIENCE, shell: str = "/bin/sh") -> Line:
        """A line, not yet connected."""
        to = Login(
            name="host",
            host="127.0.0.1",
            port=self.server.port,
            user="ann",
            keys=(f"{self.home}/key",),
            known_hosts=(str(self.server.known(self.home / "known_hosts")),),
            only_these_keys=True,
        )
        speaks = Speaks(session="s", directory="d", shell=shell, timeout=timeout)
        told: dict[str, Any] = {"tell": self._tell, "back": self._back, "away": self._away, "beat": self._beat}
        self.lines.append(Line(to, speaks, pause=pause, **told))
        return self.lines[-1]

    def _tell(self, line: Line, text: str) -> None:
        del line
        self.told.append(text)
        if text == "e\tbad":
            raise ValueError(text)

    def _back(self, line: Line) -> None:
        del line
        self.backs += 1

    def _away(self, line: Line) -> None:
        del line
        self.aways += 1

    def _beat(self, line: Line) -> str | None:
        del line
        self.beats += 1
        return self.request

    def close(self) -> None:
        """All of it."""
        self.shell.deaf(yes=False)
        for line in self.lines:
            line.close()
        self.server.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A host that one can log in to; at the end no thread of a line is left."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    place = Place(tmp_path)
    yield place
    place.close()
    until(lambda: not [one for one in threading.enumerate() if one.name.startswith("wfl-ssh")])


def say(text: str) -> Callable[[int], str]:
    """A request that has the host say this, before its answer."""
    return lambda number: f"printf '{text}' >&9; w_say '+ {number}'\n"


def later(line: Line, make: Callable[[int], str], **more: Any) -> Callable[[], object]:
    """Ask in another thread; what came of it can be waited for."""
    found: list[object] = []

    def ask() -> None:
        try:
            found.append(line.ask(make, **more))
        except WflError as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()

    def result() -> object:
        thread.join(PATIENCE)
        assert found, "there is no answer"
        return found[0]

    return result


# --- to and fro -------------------------------------------------------------------------------------------


def test_requests_and_answers(place: Place) -> None:
    """A line knows its host when it is connected; a request brings what belongs to it, in order."""
    line = place.line()
    before = (line.up, line.hello)
    hello = line.connected()
    assert (before, line.up) == ((False, None), True)
    assert line.connected() is hello is line.hello
    assert hello.root == f"{place.home}/there/d/s"
    assert place.shell.ran == ["exec /bin/sh -s"]
    answer = line.ask(lambda n: f"w_say 'g\t{n}\tp/1'; w_say 'x\t{n + 1}\tp/2'; w_say 'r\t{n}\tp/3'; w_say '+ {n}'\n")
    assert [text.split("\t")[2] for text in answer] == ["p/1", "p/3"]
    assert line.ask(say("")) == []
    with pytest.raises(DeniedByDrmsError, match=r"^host: no room for it$"):
        line.ask(lambda n: f"w_no {n} no room for it\n")
    with pytest.raises(DeniedByDrmsError, match=r"^host: it cannot be done there$"):
        line.ask(lambda n: f"w_no {n}\n")
    assert place.server.made == 1


def test_jobs_over_a_line(place: Place) -> None:
    """A job is started, and its end comes by itself."""
    line = place.line()
    hello = line.connected()
    line.ask(lambda number: attendant.call("w_own", number, "p", "owner", 0))
    job = Submission("p-1", JobTemplate(remote_command="sh", args=("-c", "echo x; exit 3")), "p-1")
    line.ask(lambda number: attendant.start(number, [job], hello, "owner"))
    until(lambda: place.told)
    assert attendant.ended_as(attendant.seen(place.told[0]), hello, "host").exit_status == 3
    with line.files() as client:
        assert client.listdir("/d/s/p/1")
    line.ask(lambda number: attendant.call("w_close", number, "owner", "nothing"))


def test_many_ask_at_once(place: Place) -> None:
    """Each has the answer to its own question."""
    line = place.line()
    line.connected()

    def asks(text: str) -> Callable[[int], str]:
        return lambda n: f"w_say 'g\t{n}\t{text}'; w_say '+ {n}'\n"

    answers = [result() for result in [later(line, asks(str(k))) for k in range(20)]]
    assert [[text.split("\t")[2] for text in texts] for texts in answers if isinstance(texts, list)] == [
        [str(k)] for k in range(20)
    ]


def test_long_requests(place: Place) -> None:
    """What does not fit in one packet arrives as a whole."""
    line = place.line()
    line.connected()
    words = "x" * 300_000
    (text,) = line.ask(lambda n: f"w_text=$(printf %s {words}); w_say \"g\t{n}\t${{#w_text}}\"; w_say '+ {n}'\n")
    assert text.endswith("\t300000")


def test_a_greeting_before_it(place: Place) -> None:
    """What a login prints before is passed over, whatever it is."""
    place.shell.first = b"Welcome!\n\n+ 1\n\xff\xfe\nhello there\n" + b"x" * 100_000 + b"\n"
    assert place.line().connected().root == f"{place.home}/there/d/s"


def test_words_of_the_shell(place: Place) -> None:
    """What the host's shell complains of can be had, once."""
    line = place.line()
    assert line.words() == ""
    line.connected()
    line.ask(lambda n: f"echo some  complaint >&2; w_say '+ {n}'\n")
    found: list[str] = []

    def heard() -> bool:
        found.append(line.words())
        return any(found)

    until(heard)
    assert found[-1] == "some complaint"
    assert line.words() == ""


# --- what a host says that it should not ------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "\\n",
        "\\n\\n\\n",
        " \\n",
        " x\\n",
        "+\\n",
        "+ \\n",
        "- \\n",
        "+ many\\n",
        "+ 99999\\n",
        "x\\n",
        "f\\tx\\ty\\n",
        "g\\t\\n",
        "r\\t99999\\tp/1\\n",
        "xterm: no\\n",
        "\\377\\376\\n",
        "sh: 1: not found\\n",
    ],
)
def test_garbage(place: Place, text: str) -> None:
    """A line that means nothing is passed over: the next answer comes, and the connection stays."""
    line = place.line()
    line.connected()
    assert line.ask(say(text)) == []
    assert line.ask(say("")) == []
    assert line.up
    assert (place.aways, place.server.made) == (0, 1)


def test_who_is_told_fails(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """An error in who is told of jobs is logged, and the line goes on."""
    line = place.line()
    line.connected()
    assert line.ask(say("e\\tbad\\n")) == []
    assert line.ask(say("e\\tgood\\n")) == []
    assert place.told == ["e\tbad", "e\tgood"]
    assert "the line goes on after this error" in caplog.text
    assert line.up


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("/nowhere/sh", "^host: /nowhere/sh cannot be used there: .*not found"),
        ("false", "^host: false cannot be used there: the shell ended at once"),
        ("cat /dev/null;", "^host: cat /dev/null; cannot be used there: "),
    ],
)
def test_no_shell(place: Place, shell: str, words: str) -> None:
    """A shell that is none is named, with its words; nothing of the connection is left."""
    line = place.line(shell=shell)
    with pytest.raises(SessionManagementError, match=words):
        line.connected()
    assert not line.up
    assert isinstance(line.attempts.failed, SessionManagementError)


def test_a_shell_that_says_nothing(place: Place) -> None:
    """One that neither begins nor ends is not waited for longer than that was said."""
    line = place.line(shell="sleep 30 #", timeout=1.0)
    with pytest.raises(DrmCommunicationError, match=r"^host: "):
        line.connected()
    assert not line.up


def test_a_session_that_is_not_there(place: Place) -> None:
    """To look at a session makes none, whatever else the login has complained of."""
    line = place.line(shell="sh -c 'echo complaint >&2; exec sh -s' #")
    with pytest.raises(SessionManagementError, match=r": nothing$"):
        line.connected(make=False)
    assert list((place.home / "there").iterdir()) == []


# --- connections that are lost ----------------------------------------------------------------------------


def test_what_is_asked_when_it_is_lost(place: Place) -> None:
    """Whoever waits for an answer is told at once that there is none, and nobody can ask until it is back."""
    line = place.line()
    line.connected()
    results = [later(line, lambda n: f"w_said=yes; sleep 30; w_say '+ {n}'\n") for _ in range(3)]
    until(lambda: len(line._waiting) == 3)  # noqa: SLF001 - they are under way then
    begin = time.monotonic()
    place.server.cut()
    for result in results:
        error = result()
        assert isinstance(error, DrmCommunicationError)
        assert "host: the connection was lost" in str(error)
    assert time.monotonic() - begin < PATIENCE / 2
    until(lambda: place.aways == 1)
    assert not line.up
    with pytest.raises(DrmCommunicationError, match=r"^host: the connection is lost$"):
        line.ask(say(""))
    with pytest.raises(DrmCommunicationError, match=r"^host: the connection is lost$"), line.files():
        pass


def test_connected_again(place: Place) -> None:
    """A line that was lost is made again when it is wanted, and says so; numbers of requests go on."""
    line = place.line()
    first = line.connected()
    assert line.ask(say("")) == []
    place.server.cut()
    until(lambda: not line.up and place.aways == 1)
    assert place.backs == 0
    second = line.connected()
    assert second is not first
    assert second.root == first.root
    until(lambda: place.backs == 1)
    assert line.ask(say("e\\tagain\\n")) == []
    assert place.told == ["e\tagain"]
    with line.files() as client:
        assert client.listdir("/") == ["d"]
    assert place.server.made == 2


def test_several_want_it_at_once(place: Place) -> None:
    """Of many that want a connection one makes it."""
    line = place.line()
    threads = [threading.Thread(target=line.connected) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert line.up
    assert place.server.made == 1


class Clock:
    """Stands for the time of a line."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds, which we set."""
        return self.now


def test_a_host_that_stays_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried ever more seldom, and in between everybody is told at once why it cannot be reached."""
    clock = Clock()
    monkeypatch.setattr("wfl.contexts.ssh.connection.time", clock)
    place.host.before_auth = place.server.cut
    line = place.line()
    rests = []
    for attempt in range(1, 12):
        with pytest.raises(DrmCommunicationError) as first:
            line.connected()
        with pytest.raises(DrmCommunicationError) as second:
            line.connected()
        assert second.value is first.value is line.attempts.failed
        assert place.server.made == attempt
        rests.append(line.attempts.rest)
        clock.now += line.attempts.rest + 0.001
    assert 0.1 <= rests[0] <= 0.3
    assert all(later > 1.2 * earlier for earlier, later in pairwise(rests[:7]))
    assert max(rests) <= 36
    assert min(rests[-2:]) >= 20
    place.host.before_auth = lambda: None
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(place.home))
    line.attempts._until = 0.0  # noqa: SLF001 - as if that time had passed
    assert line.connected().root
    assert line.attempts.failed is None
    assert line.attempts.rest <= 0.3


def test_no_answer(place: Place) -> None:
    """A host that does not answer in time is taken for lost: what it was asked for is to be settled anew."""
    line = place.line()
    line.connected()
    place.shell.deaf(yes=True)
    with pytest.raises(DrmCommunicationError, match=r"^host does not answer$"):
        line.ask(say(""), timeout=SHORT)
    until(lambda: place.aways == 1)
    assert not line.up
    place.shell.deaf(yes=False)
    line.connected()
    assert line.ask(say("")) == []


def test_a_host_that_falls_silent(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to ask for it to be noticed that a host says nothing any more."""
    line = place.line(pause=0.1, timeout=1.0)
    line.connected()
    until(lambda: place.beats >= 3)
    assert place.aways == 0
    with caplog.at_level(logging.WARNING, "wfl"):
        place.shell.deaf(yes=True)
        until(lambda: place.aways == 1)
    assert not line.up
    assert "host: nothing was answered for 1 s, connecting again" in caplog.text


def test_a_host_that_is_at_work(place: Place) -> None:
    """It does one thing after the other: an answer may take as long as was said, and signs of life wait for it."""
    line = place.line(pause=0.1)
    line.connected()
    assert line.ask(lambda n: f"sleep 1; w_say '+ {n}'\n") == []
    assert (place.aways, place.server.made) == (0, 1)


def test_copies_leave_a_channel(place: Place) -> None:
    """However many copies are under way, output can be read."""
    line = place.line()
    line.connected()
    over, under_way = threading.Event(), []

    def copy() -> None:
        with line.copies():
            under_way.append(1)
            over.wait(PATIENCE)

    threads = [threading.Thread(target=copy) for _ in range(CHANNELS + 1)]
    for thread in threads:
        thread.start()
    until(lambda: len(under_way) == CHANNELS - 1)
    with line.files() as client:
        assert client.listdir("/d") == ["s"]
    assert len(under_way) == CHANNELS - 1
    over.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(under_way) == CHANNELS + 1


def test_what_each_connection_is_told(place: Place) -> None:
    """What an attendant was told of is known for its own connection alone."""
    line = place.line()
    line.connected()
    line.owned.add("p")
    line.followed.add("p")
    place.server.cut()
    until(lambda: not line.up)
    line.connected()
    assert (line.owned, line.followed) == (set(), set())


def test_signs_of_life(place: Place) -> None:
    """Every now and then the host is told that this program lives, by the request that was given."""
    place.request = "w_say 'e\tbeat'; w_say '+ 0'\n"
    line = place.line(pause=0.05)
    line.connected()
    until(lambda: len(place.told) >= 3)
    assert set(place.told) == {"e\tbeat"}
    assert line.up


def test_the_shell_ends(place: Place) -> None:
    """A shell that was killed on the host is a connection that was lost."""
    line = place.line()
    line.connected()
    result = later(line, lambda _: "kill -9 $$\n")
    assert isinstance(result(), DrmCommunicationError)
    until(lambda: place.aways == 1)
    line.connected()
    assert line.ask(say("")) == []


# --- the end ----------------------------------------------------------------------------------------------


def test_closing(place: Place) -> None:
    """A line that is closed is not missed, ends what waits for it, and is not made again."""
    line = place.line()
    line.connected()
    result = later(line, lambda n: f"sleep 30; w_say '+ {n}'\n")
    until(lambda: len(line._waiting) == 1)  # noqa: SLF001 - it is under way then
    line.close()
    assert isinstance(result(), DrmCommunicationError)
    assert not line.up
    assert (place.aways, place.backs) == (0, 0)
    line.close()
    with pytest.raises(DrmCommunicationError, match=r"^host: the connection was closed$"):
        line.connected()
    with pytest.raises(DrmCommunicationError):
        line.ask(say(""))
    assert place.server.made == 1


def test_closing_what_was_never_connected(place: Place) -> None:
    """Nothing is contacted for it."""
    line = place.line()
    line.close()
    assert place.server.made == 0


def test_closing_while_it_is_connecting(place: Place) -> None:
    """A host that says nothing yet keeps nobody from closing, and no connection to it is left when it does."""
    answers = threading.Event()
    place.host.before_auth = lambda: answers.wait(PATIENCE)
    line = place.line()
    failed: list[WflError] = []

    def connect() -> None:
        try:
            line.connected()
        except WflError as error:
            failed.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    until(lambda: place.host.asked)
    line.close()
    assert thread.is_alive()
    answers.set()
    thread.join(PATIENCE)
    assert [str(error) for error in failed] == ["host: the connection was closed"]
    assert not line.up


def test_closing_while_everything_is_lost(place: Place) -> None:
    """To close, to ask and to lose a connection at the same time is no trap."""
    for _ in range(5):
        line = place.line()
        line.connected()
        results = [later(line, say("")) for _ in range(4)]
        cutter = threading.Thread(target=place.server.cut)
        cutter.start()
        line.close()
        cutter.join(PATIENCE)
        for result in results:
            with suppress(AssertionError):
                assert isinstance(result(), DrmCommunicationError | list)
        assert not line.up
