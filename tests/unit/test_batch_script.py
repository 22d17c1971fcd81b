"""The script that a scheduler runs, run by this machine's shells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl import JobTemplate
from wfl.contexts.batch.place import Entry, Place, Wave
from wfl.contexts.batch.script import script
from wfl.contexts.ends import End
from wfl.contexts.posix import becoming

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[End | None, str]]

SHELLS = [shell for shell in ("sh", "dash", "bash", "ksh", "zsh") if shutil.which(shell)]
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@pytest.fixture(params=SHELLS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run a template's script with this shell, as the element with this index if there is one; its end and output."""
    numbers = iter(range(1000))

    def run(template: JobTemplate, index: int | None = None) -> tuple[End | None, str]:
        place = Place(str(tmp_path), "session")
        indexes = None if index is None else range(index, index + 1)
        entry = Entry(
            f"p-{next(numbers)}", template, "4711", indexes=indexes, waves=[Wave(indexes)] if indexes else None
        )
        place.enter(entry, script(entry, place, number="NUMBER"))
        environment = os.environ | ({} if index is None else {"NUMBER": str(index)})
        subprocess.run([request.param, place.path("script", entry.key)], env=environment, check=False, timeout=60)
        key = entry.key if index is None else f"{entry.key}.{index}"
        try:
            with open(place.path("out", key), encoding="utf-8") as file:
                return place.end(key), file.read()
        except FileNotFoundError:
            return place.end(key), ""

    return run


def shown(*arguments: str, **environment: str) -> JobTemplate:
    """A job that prints its arguments and its environment."""
    command = ("-c", SHOW, *arguments)
    return JobTemplate(remote_command=sys.executable, args=command, job_environment=environment)


@given(texts=st.lists(TEXT, min_size=4, max_size=4))
def test_texts_arrive(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Whatever is in an argument or a variable, a carriage return too, which Slurm would not take in a script."""
    place = Place(str(tmp_path_factory.mktemp("place")), "session")
    entry = Entry("p-1", shown(*texts[:2], ONE=texts[2], TWO=texts[3]), "4711")
    text = script(entry, place, number="NUMBER")
    assert "\r" not in text
    place.enter(entry, text)
    subprocess.run(["sh", place.path("script", "p-1")], check=False, timeout=60)
    with open(place.path("out", "p-1"), encoding="utf-8") as file:
        arguments, environment = json.load(file)
    assert [*arguments, environment["ONE"], environment["TWO"]] == texts


def test_variables_change_no_script(run: Run) -> None:
    """Variables that mean something to shells, or to the script, arrive and do nothing else."""
    odd = dict.fromkeys(("IFS", "UID", "EUID", "PPID", "OPTIND", "PS4", "wfl_end", "wfl_status", "wfl_id"), "7")
    odd |= {"PATH": "/nowhere", "HOME": "/nowhere", "LC_ALL": "C", "ENV": "/nowhere"}
    end, output = run(shown("$DRMAA2_INDEX$", **odd), 3)
    assert end is not None
    assert (end.status, end.refused) == (0, None)
    arguments, environment = json.loads(output)
    assert arguments == ["3"]
    assert {name: environment[name] for name in odd} == odd


def test_what_a_shell_complains_of_is_no_end(run: Run) -> None:
    """A locale that is not there makes some shells complain, which is no sign that a signal has ended the command."""
    end, _ = run(JobTemplate(remote_command="sh", args=("-c", "exit 137"), job_environment={"LC_ALL": "xx_YY.UTF-8"}))
    assert end is not None
    assert (end.status, end.said) == (137, False)


def test_variables_that_shells_see_to(run: Run) -> None:
    """They arrive as they were given, and no value stands on a command line but of those that cannot come otherwise."""
    names = ("LINENO", "RANDOM", "SRANDOM", "SECONDS", "GROUPS", "FUNCNAME", "DIRSTACK", "HISTCMD", "BASHPID", "SHLVL")
    given = dict.fromkeys((*names, "w_token", "wfl_token"), "07 x")
    _, output = run(shown(**given))
    environment = json.loads(output)[1]
    assert {name: environment.get(name) for name in given} == given
    exec_line = becoming(shown(**given), "4711", element=False)[-1]
    assert "RANDOM=" in exec_line
    assert "token" not in exec_line


def test_ids_win(run: Run) -> None:
    """The job's own id and the element's index stand in the environment whatever the template says."""
    _, output = run(shown("$DRMAA2_INDEX$", JOB_ID="mine", TASK_ID="mine"), 5)
    arguments, environment = json.loads(output)
    assert (arguments, environment["JOB_ID"], environment["TASK_ID"]) == (["5"], "4711", "5")
    _, output = run(shown(TASK_ID="mine"))
    assert "TASK_ID" not in json.loads(output)[1]


@pytest.mark.parametrize("odd", ["a\r1z", "a\u20281z", "a\n.\n1m2s", "a'\"`$x\\", "a$DRMAA2_INDEX$x"])
def test_refusal_is_one_line(run: Run, odd: str) -> None:
    """A directory that is not there is refused by name, whatever is in the name."""
    end, output = run(JobTemplate(remote_command="true", working_directory=f"/nowhere/{odd}"), 8)
    assert end is not None
    assert output == ""
    name = " ".join(odd.replace("$DRMAA2_INDEX$", "8").split())
    assert end.refused == f"working_directory /nowhere/{name} cannot be entered"


def test_an_odd_record_is_none(tmp_path: Path) -> None:
    """What no script can have written is no record of an end, and no error."""
    place = Place(str(tmp_path), "session")
    place.enter(Entry("p-1", JobTemplate(remote_command="true"), "p-1"), "")
    (tmp_path / "session/p/end/1").write_text("status one\n1z\n.\n", encoding="utf-8")
    assert place.end("p-1") is None
