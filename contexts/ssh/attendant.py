"""What is said to the attendant on a host (attendant.sh), and what it says: texts alone, nothing of connections.

A request is a piece of shell for it to run; free text in it is quoted, so that any byte arrives as it is.
"""

from __future__ import annotations

import json
import os
import posixpath
import shlex
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from wfl.backend import Known, Submission
from wfl.contexts import checks
from wfl.contexts.ends import WHOLE, how_it_ended, read_end
from wfl.contexts.posix import becoming, quoted
from wfl.drmaa2 import JobTemplate
from wfl.errors import DrmCommunicationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wfl.drmaa2 import JobInfo

TOGETHER = 64
"""Jobs in one request, which become one pipeline of processes."""
HERE = "here"
NO_ORDERS = "its orders did not arrive"
LEASED = "lease\n"
"""What the record of an end begins with that came of a host which heard nothing of the program."""
NOBODY = "nobody"
"""The owner of jobs that outlive their program."""


@cache
def text() -> str:
    """The attendant itself."""
    return files("wfl.contexts.ssh").joinpath("attendant.sh").read_text(encoding="ascii")


def path_of(key: str) -> str:
    """A job's directory below its session's."""
    program, _, number = key.rpartition("-")
    return f"{program}/{number}"


def key_of(path: str) -> str:
    """And back."""
    return path.replace("/", "-", 1)


class Room(msgspec.Struct, frozen=True, gc=False):
    """The session's directory on one host."""

    root: str

    def path(self, kind: str, key: str) -> str:
        """The file of this kind for a job."""
        return f"{self.root}/{path_of(key)}/{kind}"

    def input(self, key: str) -> str:
        """The file for a job's standard input, which comes before its directory is made."""
        program, _, number = key.rpartition("-")
        return f"{self.root}/{program}/in.{number}"


class Hello(msgspec.Struct, frozen=True, gc=False):
    """What an attendant says first: of its host, and what the time is there.

    `up`: seconds since the host began, which no clock that is set can change; None where the host does not count them.
    `skew`: seconds that its clock is ahead of ours. `groups`: whether a job can have a process group of its own.
    """

    host: str
    boot: str
    up: float | None
    heard: datetime
    skew: float
    system: str
    machine: str
    groups: bool
    home: str
    root: str

    @classmethod
    def read(cls, line: str, heard: datetime) -> Hello:
        """Raises DrmCommunicationError with the words of a shell that cannot do it."""
        kind, *said = line.split("\t")
        if kind != "hello" or len(said) != 8:  # noqa: PLR2004 - see w_begin
            raise DrmCommunicationError(line.removeprefix("fail ") or "no answer")
        host, boot, up, now, kind, groups, home, root = said
        system, _, machine = kind.partition(" ")
        skew = float(now) + 0.5 - heard.timestamp()  # it counts whole seconds
        return cls(host, boot, float(up) if up else None, heard, skew, system, machine, bool(groups), home, root)

    def when(self, up: float | None) -> datetime | None:
        """Our time when that many seconds had passed on the host."""
        if up is None or self.up is None:
            return None
        return self.heard + timedelta(seconds=up - self.up)

    def ours(self, seconds: float) -> datetime:
        """Our time for one of the host's clock."""
        return datetime.fromtimestamp(seconds - self.skew, UTC)


# -- requests --


def enter(shell_directory: str, session: str, *, make: bool = True) -> str:
    """The attendant, in the session's directory; relative paths begin at the user's home."""
    place = f"w_enter {quoted(shell_directory)} {quoted(session)} {'make' if make else 'look'}"
    return f"{text()}\n{place}\nw_begin\n"


def start(request: int, submissions: Sequence[Submission], hello: Hello, owner: str) -> str:
    """Make the jobs' directories, and start them, all of these or none; `owner` is who ends them.

    One that `w_forbid` has made before keeps them from it.
    """
    room, texts = Room(hello.root), _Texts()
    jobs = " ".join(path_of(one.key) for one in submissions)
    made, chain = [], []
    for one in submissions:
        path, text = path_of(one.key), texts.number(one, room, hello)
        made.append(f'w_put {path} {owner} {shlex.quote(_job(one))} "$w_text{text}"')
        chain.append(f"w_one {path} {'-' if one.index is None else one.index} w_body{text}")
    put, begun = " &&\n".join(made), " | ".join(chain)
    return (
        f"{texts.told()}if ! mkdir {jobs}; then\nw_no {request}; w_drop {jobs}\n"
        f"elif {put}; then\n( ( w_batch; {begun} | w_leave ) 9>&-; : ) 2>/dev/null\nw_say '+ {request}'\n"
        f"else\nw_no {request}; rm -rf -- {jobs}\nfi\n"
    )


class _Texts:
    """What jobs of one request do, each text once: elements of an array have the same."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._known: dict[tuple[int, str, bool], int] = {}

    def number(self, one: Submission, room: Room, hello: Hello) -> int:
        """Of this job's text."""
        known = (id(one.template), one.job_id, one.index is None)
        number = self._known.get(known)
        if number is None:
            text = job_script(one, room, hello)
            number = self._numbers.setdefault(text, len(self._numbers))
            if not one.template.input_path:  # which is another for each job
                self._known[known] = number
        return number

    def told(self) -> str:
        """All of them, as variables and, so that no job's shell has to read its own again, as functions."""
        return "".join(
            f'w_text{number}={shlex.quote(text)}\neval "w_body{number}() {{\n$w_text{number}\n}}"\n'
            for text, number in self._numbers.items()
        )


def call(name: str, *words: object) -> str:
    """One call of one of its functions, of which nothing is done before all of it is there."""
    return f"{{ {name} {' '.join(quoted(str(word)) for word in words)}; }}\n"


def job_script(submission: Submission, room: Room, hello: Hello) -> str:
    """What the process does that becomes a job's command; files of the caller's side are there, or fetched afterwards.

    It begins with the template, for a program that comes back.
    """
    given = submission.template
    joined = given.join_files or (given.output_path and given.output_path == given.error_path)
    paths: dict[str, Any] = {
        "input_path": room.input(submission.key) if given.input_path else None,
        "output_path": os.devnull if given.output_path == os.devnull else None,
        "error_path": os.devnull if given.error_path == os.devnull and not joined else None,
    }
    template = given.replace(
        working_directory=posixpath.join(hello.home, given.working_directory or ""),
        stage_in_files=None,
        stage_out_files=None,
        join_files=bool(joined),
        **paths,
    )
    last, by = [], "$w_group "
    if given.priority:  # what may not be nicer is only told of that by `nice`, and begun all the same
        nicer = -given.priority
        words = f"priority {given.priority} means a niceness that this user may not set there"
        last = [f'[ "$(nice -n {nicer} nice)" = "$(($(nice) + {nicer}))" ] || wfl_refuse {shlex.quote(words)}']
        by += f"nice -n {nicer} "
    asked = json.dumps(json.loads(_without_ours(given).to_json()))
    last += ['umask "$w_umask"']
    element = submission.index is not None
    return "\n".join([f"# {asked}", *becoming(template, submission.job_id, element=element, last=last, by=by)])


def _job(submission: Submission) -> str:
    """What a program that comes back has to know besides."""
    return json.dumps({"key": submission.key, "job_id": submission.job_id, "index": submission.index})


def _without_ours(template: JobTemplate) -> JobTemplate:
    """What a host may say of a job: not which files of this side are read or written for it."""
    return template.replace(**dict.fromkeys(checks.HERE))


# -- what is told --

Where = Literal["ended", "running", "suspended", "lost", "rebooted", "elsewhere", "gone", "unknown"]


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What is said of one job; `record` is what it has written of its end."""

    key: str
    where: Where
    record: str | None = None
    ours: bool = True  # of this boot, so that its times can be told
    host: str | None = None

    @property
    def never_began(self) -> bool:
        """Whether `w_forbid` came before its orders."""
        return self.record is not None and self.record.startswith(f"refused {NO_ORDERS}")


def seen(line: str) -> Seen:
    """What a line tells of a job: one that comes by itself ("e"), or one of an answer to `w_look`."""
    kind, *said = line.split("\t")
    if kind == "e":
        return Seen(key_of(said[0]), "ended", "\n".join(said[1:]))
    if kind == "f":
        return Seen(key_of(said[1]), "ended", "\n".join(said[3:]), ours=said[2] == HERE)
    if kind == "g":
        return Seen(key_of(said[1]), "gone")
    _, path, home, how, ran = said
    return Seen(key_of(path), _where(home, how), host=ran or None)


def _where(home: str, how: str) -> Where:
    if home == "before":
        return "rebooted"
    if home == "there":
        return "elsewhere"
    if home == "nowhere":
        return "unknown"
    if how == "alonenone":
        return "lost"
    return "suspended" if how.removeprefix("alone") in ("T", "t") else "running"


def ended_as(one: Seen, hello: Hello, name: str, written: datetime | None = None) -> JobInfo:
    """The end that a job has written down on the host called `name`; `written`: when, if its times do not say."""
    record = (one.record or "").removeprefix(LEASED).rstrip("\n")
    if not record.endswith(f"\n{WHOLE}"):  # cut: what counts comes first
        record = f"{record}\n{WHOLE}"
    over = next((line[5:] for line in record.split("\n") if line.startswith("over ") and line[5:]), None)
    told = hello.when(float(over)) if over and one.ours else None
    end = read_end(record, told or written or datetime.now(UTC))
    info = how_it_ended(one.key, end)
    if (one.record or "").startswith(LEASED) and info.terminating_signal == "SIGKILL":
        info = info.replace(annotation=f"{name} ended it: it had heard nothing of the program for as long as the lease")
    return info.replace(allocated_machines=(name,), slots=1) if end is not None and end.refused is None else info


def remembered(text: bytes) -> tuple[str, Known]:
    """What a job's script tells a program that comes back: its owner, and the job."""
    owner, said, template = (
        line.removeprefix("# ") for line in text.decode("utf-8", "surrogateescape").split("\n")[:3]
    )
    job = json.loads(said)
    given = JobTemplate.from_json(template)
    return owner, Known(job["key"], job["key"], _without_ours(given), job_id=job["job_id"], index=job["index"])


def programs(keys: Iterable[str]) -> list[str]:
    """The programs that these jobs belong to."""
    return sorted({key.rpartition("-")[0] for key in keys})
