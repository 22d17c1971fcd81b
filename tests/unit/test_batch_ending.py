"""The end of a program's jobs on a cluster, with a scheduler that is a few files: what is cancelled, what is left."""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wfl import JobInfo, JobState, JobTemplate
from wfl.backend import Action
from wfl.contexts import undertaker
from wfl.contexts.batch import client, ending
from wfl.contexts.batch.command import Commands
from wfl.contexts.batch.machine import HERE, Here
from wfl.contexts.batch.place import Entry, Place, Wave
from wfl.contexts.batch.scheduler import Command, Job, Scheduler, Seen
from wfl.contexts.batch.slurm import Slurm
from wfl.contexts.ends import Account
from wfl.errors import DrmCommunicationError, InvalidSessionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from wfl.contexts.batch.machine import Machine

BAD = "no answer"
LIST = f"""
if os.path.exists("away"):
    raise SystemExit({BAD!r})
for name in sorted(os.listdir("jobs")):
    print(name, open("jobs/" + name).read())
"""
CANCEL = """
print(*NAMES, file=open("told", "a"))
for name in NAMES:
    os.remove("jobs/" + name)
"""


class Away(Here):
    """This machine as one that may be away."""

    is_away = True


class Files(Scheduler):
    """A job is a file `id` in a directory, with its key in it; `told` notes what is cancelled, `away` hinders all."""

    name = "files"
    fields = frozenset[str]()
    extensions = frozenset[str]()
    number = "NUMBER"

    def __init__(self, place: str) -> None:
        self.place = place

    def submit(self, job: Job) -> Command:
        """Not used here."""
        raise NotImplementedError

    def accepted(self, output: str) -> str:
        """Not used here."""
        raise NotImplementedError

    def query(self, user: str) -> Command:
        """A line for each file."""
        del user
        return _python(LIST, self.place)

    def seen(self, output: str) -> Iterator[Seen]:
        """A job whose key ends in "!" has ended."""
        for line in output.splitlines():
            id, _, key = line.partition(" ")
            state = JobState.DONE if key.endswith("!") else JobState.RUNNING
            yield Seen(id, None, JobInfo(state=state), key.removesuffix("!") or None)

    def accounting(self, ids: Sequence[str], user: str, rung: int) -> Sequence[Command]:
        """Not used here."""
        raise NotImplementedError

    def accounts(self, output: str, rung: int, ids: Collection[str] = ()) -> Iterable[Account]:
        """Not used here."""
        raise NotImplementedError

    def control(self, ids: Sequence[str], action: Action) -> Sequence[Command]:
        """Remove the files."""
        del action
        lines = CANCEL.replace("NAMES", repr(list(ids)))
        return [_python(lines, self.place)] if ids else []

    def down(self, words: str) -> bool:
        """As it says itself."""
        return BAD in words


def _python(lines: str, place: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", f"import os; os.chdir({place!r})\n{lines}"]


class Room:
    """Such a scheduler, and a session's directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.scheduler = root, Files(str(root))
        (root / "jobs").mkdir()
        self.place = Place(str(root / "place"), "session")

    def enter(self, key: str, *ids: str, waves: int = 1, listed: bool = True, said: str = "") -> None:
        """A submission that is written down, with the ids that were heard of; it is in the scheduler's list."""
        many = [Wave(range(1, 3), 0, 1)] * waves
        indexes = range(1, 1 + 2 * waves) if waves > 1 else None
        entry = Entry(key, JobTemplate(remote_command="x"), key, indexes=indexes, waves=many if waves > 1 else None)
        self.place.enter(entry, "#!/bin/sh\n")
        if ids:
            self.place.accept(key, dict(enumerate(ids)))
        for id in ids if listed else ():
            self.submit(id, said)

    def submit(self, id: str, key: str = "") -> None:
        """Into the scheduler's list."""
        (self.root / "jobs" / id).write_text(key)

    def end_all(self, program: str = "p", *, keep: bool = False, late: float = 0.0, machine: Machine = HERE) -> None:
        """As the helper does it."""
        scheduler = base64.b64encode(pickle.dumps((self.scheduler, machine))).decode()
        ending.end_all(scheduler, self.place.root, program, environment={}, keep=keep, late=late)

    @property
    def jobs(self) -> list[str]:
        """What the scheduler has."""
        return sorted(os.listdir(self.root / "jobs"))

    @property
    def told(self) -> list[str]:
        """What was cancelled, a line for each command."""
        path = self.root / "told"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    """With nothing in it, and without long pauses."""
    monkeypatch.setattr(undertaker, "AFTERMATH", 0.01)
    monkeypatch.setattr(undertaker, "PAUSE", (0.01, 0.05))
    return Room(tmp_path)


def test_all_of_a_program_ends(room: Room) -> None:
    """In one command; of other programs nothing is touched, and of this one nothing is left."""
    room.enter("p-1", "10")
    room.enter("p-2", "11", "12", waves=2)
    room.enter("q-1", "13")
    room.end_all()
    assert room.jobs == ["13"]
    assert room.told == ["10 11 12"]
    assert os.listdir(room.place.root) == ["q"]


def test_a_machine_that_is_away_for_long(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """By way of a login node jobs are ended whenever it comes back, and not only within five minutes."""
    monkeypatch.setattr(undertaker, "LONGEST", 0.0)
    room.enter("p-1", "10")
    room.end_all()
    assert room.jobs == ["10"]
    room.end_all(machine=Away())
    assert room.jobs == []


def test_what_has_ended_is_not_cancelled(room: Room) -> None:
    """Neither what the list does not have any more nor what it calls ended: the id may be somebody else's by now."""
    room.enter("p-1", "10", listed=False)
    room.enter("p-2", "11", said="p-2!")
    room.end_all()
    assert room.told == []
    assert not os.path.exists(room.place.root)


def test_scripts_are_stopped_before_anything_is_asked(
    room: Room, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scheduler that is away starts nothing of it any more; after a time this is given up, and said."""
    room.enter("p-1", "10")
    (room.root / "away").touch()
    monkeypatch.setattr(undertaker, "LONGEST", 0.3)
    room.end_all()
    assert not os.path.exists(room.place.path("job", "p-1"))
    assert os.path.exists(room.place.path("script", "p-1"))
    words = capsys.readouterr().err
    assert BAD in words
    assert "may be left" in words


def test_a_submission_without_an_answer_is_found_by_its_key(room: Room) -> None:
    """Also one part of an array."""
    room.enter("p-1")
    room.enter("p-2", "11", waves=2)
    room.submit("10", "p-1")
    room.submit("12", "p-2/1")
    room.end_all()
    assert room.jobs == []
    assert room.told == ["10 11 12"]


def test_a_submission_that_comes_late_is_waited_for(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be under way when the program dies: as long as a command may take."""
    room.enter("p-1")
    looks: list[int] = []
    run = Commands.run

    def look(self: Commands, argv: Sequence[str], *arguments: Any, **more: Any) -> str:
        looks.append(len(looks))
        if len(looks) == 4:
            room.submit("10", "p-1")
        return run(self, argv, *arguments, **more)

    monkeypatch.setattr(Commands, "run", look)
    room.end_all(late=60)
    assert room.told == ["10"]
    assert not os.path.exists(room.place.root)


def test_for_a_program_that_comes_back(room: Room) -> None:
    """Everything is as it was, but for what was never submitted."""
    room.enter("p-1", "10")
    room.enter("p-2")
    before = json.loads(Path(room.place.path("job", "p-1")).read_text())
    room.end_all(keep=True)
    assert room.jobs == []
    assert json.loads(Path(room.place.path("job", "p-1")).read_text()) == before
    assert [entry.key for entry in room.place.all_entries()] == ["p-1"]


def test_without_a_submission_nothing_is_asked(room: Room) -> None:
    """The scheduler need not even be there."""
    (room.root / "away").touch()
    room.end_all()
    assert room.told == []


def test_closing_without_a_helper_tells_of_a_failure(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody goes on with it, the session says so."""
    end = ending.Ending(Slurm(), room.place, environment={}, timeout=5, helper=False)
    scancel = room.root / "scancel"
    scancel.write_text("#!/bin/sh\necho Unable to contact slurm controller >&2; exit 1\n")
    scancel.chmod(0o755)
    monkeypatch.setenv("PATH", f"{room.root}:{os.environ['PATH']}")
    with pytest.raises(DrmCommunicationError):
        end.close(["1"])
    with pytest.raises(InvalidSessionError):
        end.before("p-1")


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["1"], "scancel 1"),
        (["1", "2_3"], "scancel 1 2_3"),
        (list("123456789"), "scancel 1 2 3 4 5 … (and 4 more)"),
    ],
)
def test_how_to_cancel(ids: list[str], words: str) -> None:
    """The scheduler's command as one would type it, with the first few ids."""
    assert client.how_to_cancel(Slurm(), ids) == words
