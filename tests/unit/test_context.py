"""Context: common settings and their checks, finding one by name, choosing one by the environment."""

import importlib.metadata
import os
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl import errors
from wfl.context import BUILT_IN, VARIABLE, Context
from wfl.contexts.batch.slurm import SlurmContext
from wfl.contexts.process import ProcessContext
from wfl.drmaa2 import JobTemplate
from wfl.testing import FakeContext
from wfl.workflow import Workflow


def install(monkeypatch: pytest.MonkeyPatch, **contexts: str) -> None:
    """Let other distributions bring these contexts."""
    points = [EntryPoint(name, value, "wfl.contexts") for name, value in contexts.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: points)


def test_defaults() -> None:
    """Without settings: no defaults, session "wfl", no limit, no store, jobs end with the program."""
    context = FakeContext()
    assert context.default_template == JobTemplate()
    assert (context.session_name, context.max_parallel, context.store) == ("wfl", None, None)
    assert context.detach is False


def test_making_a_context_contacts_nothing() -> None:
    """Only a workflow opens it."""
    context = FakeContext()
    assert not context.system.calls
    with Workflow(context):
        assert context.system.calls["open"] == 1


def test_default_template_fills_what_is_unset() -> None:
    """Own values win, environments are joined, and the source of a resubmission stays as it was given."""
    default = JobTemplate(queue_name="long", job_environment={"A": "1", "B": "1"}, job_name="d")
    with Workflow(FakeContext(default_template=default)) as flow:
        job = flow.run("x", job_name="own", job_environment={"B": "2"})
        assert job.template == JobTemplate(
            remote_command="x", job_name="own", queue_name="long", job_environment={"A": "1", "B": "2"}
        )


def test_store_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that changes its directory later does not move its store."""
    monkeypatch.chdir(tmp_path)
    assert FakeContext(store="jobs").store == os.fspath(tmp_path / "jobs")
    assert FakeContext(store=tmp_path / "jobs").store == os.fspath(tmp_path / "jobs")


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "7", "wfl-1"])
def test_session_names(name: str) -> None:
    """Letters, digits and the signs . _ - make a name."""
    assert FakeContext(session_name=name).session_name == name


@pytest.mark.parametrize("name", ["", "a/b", "a b", "..", ".hidden", "a\0", "a\n"])
def test_session_names_that_are_no_file_names(name: str) -> None:
    """A session name becomes a directory and part of native names; others are refused with what is allowed."""
    with pytest.raises(errors.InvalidArgumentError, match=r"session_name is .*use letters, digits"):
        FakeContext(session_name=name)


def test_unique_session_names() -> None:
    """Every one is new, and valid."""
    names = {Context.unique_session_name() for _ in range(1000)}
    assert len(names) == 1000
    name = names.pop()
    assert FakeContext(session_name=name).session_name == name


@pytest.mark.parametrize("value", [0, -1])
def test_max_parallel_below_one(value: int) -> None:
    """A limit at which nothing could ever run is refused."""
    with pytest.raises(errors.InvalidArgumentError, match=f"max_parallel is {value}, expected 1 or more"):
        FakeContext(max_parallel=value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_parallel", "4"),
        ("max_parallel", True),
        ("max_parallel", 2.0),
        ("default_template", {}),
        ("session_name", 7),
    ],
)
def test_wrong_types(setting: str, value: Any) -> None:
    """A setting of the wrong type is a TypeError that names it."""
    with pytest.raises(TypeError, match=setting):
        FakeContext(**{setting: value})


def test_unknown_setting() -> None:
    """A setting that does not exist is a TypeError that names it."""
    with pytest.raises(TypeError, match="max_paralel"):
        FakeContext(max_paralel=2)


def test_task_numbers_run_on() -> None:
    """The number behind {{.ID}} belongs to the context: two workflows on it never share one."""
    context = FakeContext(default_template=JobTemplate(output_path="o{{.ID}}"))
    with Workflow(context) as one, Workflow(context) as two:
        assert [flow.run("x").template for flow in (one, two, one)] == [
            JobTemplate(remote_command="x", output_path=f"o{number}") for number in (1, 2, 3)
        ]


_NEEDED = {"ssh": {"hosts": "somewhere"}, "remote": {"base_url": "https://somewhere"}}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contexts of wfl are found by the name that they bear, with no look at what is installed (that is slow)."""
    monkeypatch.delattr(importlib.metadata, "entry_points")
    needed = _NEEDED.get(name, {})
    context = Context.named(name, session_name="mine", **needed)
    assert type(context).__name__.lower() == f"{name}context"
    assert (context.name, context.session_name) == (name, "mine")


def test_built_in_contexts_are_announced() -> None:
    """Who looks through the entry points finds the same contexts as wfl itself; the fake one is for tests alone."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["wfl.contexts"] == {n: place for n, place in BUILT_IN.items() if n != "fake"}


def test_entry_points_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that another distribution brings is found by its entry point."""
    install(monkeypatch, other="wfl.testing:FakeContext")
    assert isinstance(Context.named("other", max_parallel=2), FakeContext)


def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nobody knows: the nearest that somebody does is proposed."""
    install(monkeypatch, nomad="somewhere:NomadContext")
    with pytest.raises(errors.InvalidArgumentError, match="there is no context 'nomda': did you mean 'nomad'"):
        Context.named("nomda")


def test_context_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point whose module is missing is an error that says which, not an ImportError from within."""
    install(monkeypatch, broken="no_such_package:Context")
    with pytest.raises(errors.SessionManagementError, match=r"context 'broken' .*no_such_package"):
        Context.named("broken")


def test_without_the_variable_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that names no context runs processes."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert isinstance(Context.from_environment(), ProcessContext)


def test_variable_chooses_context_and_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """WFL_CONTEXT gives name and settings: numbers and truth values are meant as such, and text may be quoted."""
    monkeypatch.setenv(VARIABLE, f"fake?max_parallel=3&detach=true&store={tmp_path}%2Fa%20b&session_name=mine")
    context = Context.from_environment()
    assert isinstance(context, FakeContext)
    assert (context.max_parallel, context.detach, context.session_name) == (3, True, "mine")
    assert context.store == f"{tmp_path}/a b"


def test_name_with_settings(tmp_path: Path) -> None:
    """Settings may stand in the name; each is of the type that its context has for it, and those beside it win."""
    context = Context.named(f"slurm?directory={tmp_path}&timeout=30&session_name=2026&detach=false", max_parallel=2)
    assert isinstance(context, SlurmContext)
    assert (context.directory, context.timeout, context.session_name) == (os.fspath(tmp_path), 30.0, "2026")
    assert (context.detach, context.max_parallel) == (False, 2)
    fake = Context.named("fake?session_name=7&max_parallel=3", max_parallel=4)
    assert (fake.session_name, fake.max_parallel) == ("7", 4)
    with pytest.raises(errors.InvalidArgumentError, match=re.escape("the context is 'fake?a', expected NAME?SETTING")):
        Context.named("fake?a")


def test_settings_of_a_context_without_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a context says nothing of a setting's type, whole numbers and truth values are meant as such."""
    given: dict[str, object] = {}

    class Other(FakeContext):
        def __init__(self, **settings: object) -> None:
            super().__init__()
            given.update(settings)

    monkeypatch.setitem(BUILT_IN, "fake", "wfl.testing:OtherContext")
    monkeypatch.setattr("wfl.testing.OtherContext", Other, raising=False)
    Context.named("fake?a=7&b=TRUE&c=seven&d=0.5&e=")
    assert given == {"a": 7, "b": True, "c": "seven", "d": "0.5", "e": ""}


def test_workflow_takes_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow without a context uses the variable's: the script stays as it is."""
    monkeypatch.setenv(VARIABLE, "fake")
    with Workflow() as flow:
        assert flow.run("no such command").success()


@pytest.mark.parametrize("text", ["fake?max_parallel", "fake?a=1&b"])
def test_variable_that_is_no_query(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Settings without a value are an error that names the variable and how it should look."""
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(errors.InvalidArgumentError, match=re.escape(f"{VARIABLE} is {text!r}")):
        Context.from_environment()


@given(st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", fullmatch=True))
def test_any_file_name_can_be_a_session(name: str) -> None:
    """Names of these characters are all valid."""
    assert FakeContext(session_name=name).session_name == name
