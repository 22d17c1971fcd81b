"""What the keeper is told to start: every field of a template, and every refusal that can be made beforehand."""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.contexts import checks, helper
from wfl.contexts.process import launch
from wfl.drmaa2 import JobTemplate
from wfl.errors import DeniedByDrmsError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENV = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that the program is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without rights of root."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)


def order(command: str = "/bin/sh", env: Mapping[str, str] = ENV, /, **fields: Any) -> dict[str, Any]:
    """What is made of a template."""
    return launch.order(JobTemplate(remote_command=command, **fields), env)


def refused(words: str, command: str = "/bin/sh", **fields: Any) -> None:
    """The template is refused as invalid, in these words (a regular expression)."""
    with pytest.raises(InvalidArgumentError, match=words):
        order(command, **fields)


def denied(words: str, **fields: Any) -> None:
    """The template asks for what this host or user cannot have, in these words."""
    with pytest.raises(DeniedByDrmsError, match=words):
        order(**fields)


def deny(monkeypatch: pytest.MonkeyPatch, path: Path, mode: int) -> None:
    """Let the system refuse this kind of access to a path (root is refused nothing)."""
    real = os.access
    answer = lambda place, wanted: not (str(place) == str(path) and wanted & mode) and real(place, wanted)  # noqa: E731
    monkeypatch.setattr("os.access", answer)


def program(path: Path, mode: int = 0o755) -> Path:
    """A script at this path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


# --- the whole --------------------------------------------------------------------------------------------


def test_a_command_alone_says_nothing_that_is_not_asked_for(here: Path) -> None:
    """A path, its arguments, where it runs, kept output: no limit, niceness, time or copy comes along."""
    assert order() == {
        "path": "/bin/sh",
        "argv": ["/bin/sh"],
        "cwd": str(here),
        "join": False,
        "out": None,
        "err": None,
    }


def test_arguments_pass_as_they_are(here: Path) -> None:
    """No word is split, expanded or dropped; the command is its own first argument, as it was written."""
    args = ("", "a b", "$HOME", "*", "ü", "\udc80", "a\nb")
    found = order("sh", args=args)
    assert found["argv"] == ["sh", *args]
    assert os.path.isabs(found["path"])
    assert found["cwd"] == str(here)


@pytest.mark.parametrize("command", [None, ""])
def test_no_command_is_refused(command: str | None) -> None:
    """Nothing to run is wrong use, named by the field."""
    with pytest.raises(InvalidArgumentError, match="remote_command is empty"):
        launch.order(JobTemplate(remote_command=command), ENV)


# --- the program ------------------------------------------------------------------------------------------


def test_a_program_is_looked_for_in_the_path_of_the_task(here: Path) -> None:
    """Not in the program's own PATH; the first that can be run wins."""
    program(here / "a" / "tool", 0o644)
    program(here / "b" / "tool")
    program(here / "c" / "tool")
    path = f"{here}/none:{here}/a:{here}/b:{here}/c"
    assert order("tool", {"PATH": path})["path"] == f"{here}/b/tool"
    refused(r"'tool': not found in PATH \(/usr/bin:/bin\)", "tool")


def test_relative_places_count_from_the_working_directory(here: Path) -> None:
    """As in the task itself: a command with a slash, and a relative or empty entry of PATH."""
    program(here / "work" / "bin" / "tool")
    program(here / "work" / "near")
    assert order("bin/tool", working_directory="work")["path"] == f"{here}/work/bin/tool"
    assert order("tool", {"PATH": "bin"}, working_directory="work")["path"] == f"{here}/work/bin/tool"
    assert os.path.samefile(order("near", {"PATH": ":/bin"}, working_directory="work")["path"], here / "work" / "near")


@pytest.mark.parametrize("env", [{}, {"PATH": ""}])
def test_without_path_the_default_of_the_system_counts(env: dict[str, str]) -> None:
    """An empty environment still finds what every system has."""
    assert order("sh", env)["path"] in [f"{place}/sh" for place in os.defpath.split(":")]


def test_what_cannot_be_run_is_refused_with_the_reason(here: Path) -> None:
    """Not there, a directory, without the right to run it, a whole shell line: each in its own words."""
    program(here / "plain", 0o644)
    (here / "folder").mkdir()
    refused("'./none': there is no such file$", "./none")
    refused(f"{here}/./plain is not executable", "./plain")
    refused(f"{here}/./folder is not a program", "./folder")
    with pytest.raises(InvalidArgumentError, match="plain is not executable"):
        order("plain", {"PATH": str(here)})
    refused(r"'sort a \| uniq': not found .*; give arguments one by one, or use wfl.shell\(\)", "sort a | uniq")
    refused(r"there is no such file; give arguments", "/bin/echo x")


def test_a_program_for_others_only_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With some rights to run it set, the system is asked whether this user has one."""
    tool = program(here / "tool", 0o744)
    assert order("./tool")["path"] == f"{here}/./tool"
    monkeypatch.setattr("os.access", lambda place, mode: not (os.path.samefile(place, tool) and mode == os.X_OK))
    refused("is not executable", "./tool")


def test_a_program_that_is_copied_in_first_need_not_be_there(here: Path) -> None:
    """A path may be the target of a copy; a bare name is looked up all the same."""
    source = program(here / "source")
    found = order("./tool", stage_in_files={"tool": str(source)})
    assert found["path"] == f"{here}/./tool"
    refused("not found in PATH", "no-such-tool", stage_in_files={"tool": str(source)})


@given(st.lists(st.sampled_from(["none", "plain", "good", "other"]), max_size=6))
def test_the_program_is_the_one_that_execvp_would_run(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    """Whatever the order of places in PATH: the first with a runnable file, or a refusal."""
    base = tmp_path_factory.getbasetemp() / "execvp"
    if not base.exists():
        program(base / "plain" / "tool", 0o644)
        program(base / "good" / "tool")
        program(base / "other" / "tool")
    path = ":".join(str(base / name) for name in names)
    good = [name for name in names if name in ("good", "other")]
    if good:
        assert launch.find_program("tool", "/", path) == str(base / good[0] / "tool")
    else:
        with pytest.raises(InvalidArgumentError, match="not executable" if "plain" in names else "not found in PATH"):
            launch.find_program("tool", "/", path)


# --- the working directory --------------------------------------------------------------------------------


def test_the_working_directory_is_absolute(here: Path) -> None:
    """Unset or empty: the program's; relative: from the program's; it is looked up at submission."""
    (here / "sub").mkdir()
    assert order(working_directory="")["cwd"] == str(here)
    assert order(working_directory="sub")["cwd"] == f"{here}/sub"
    assert order(working_directory="/")["cwd"] == "/"
    os.chdir(here / "sub")
    assert order()["cwd"] == f"{here}/sub"


def test_a_working_directory_that_cannot_be_used_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, a file, or not to be entered: named by its whole path."""
    (here / "file").touch()
    (here / "closed").mkdir()
    refused(f"working_directory {here}/none is not there", working_directory="none")
    refused(f"working_directory {here}/file is not there", working_directory="file")
    deny(monkeypatch, here / "closed", os.X_OK)
    refused(f"working_directory {here}/closed cannot be entered", working_directory="closed")


def test_a_program_in_a_removed_directory_is_told_so(here: Path) -> None:
    """Only where the answer depends on it: an absolute working_directory does not."""
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    refused("the directory that the program is in was removed")
    refused("the directory that the program is in was removed", working_directory="sub")
    staged = {"working_directory": str(here)}
    refused("stage_in_files 'a': the directory that the program is in was", stage_in_files={"b": "a"}, **staged)
    refused("stage_out_files 'a': the directory that the program is in was", stage_out_files={"a": "b"}, **staged)
    assert order(working_directory=str(here))["cwd"] == str(here)


# --- input and output -------------------------------------------------------------------------------------


def test_paths_of_output_pass_as_written(here: Path) -> None:
    """Relative ones too, as the keeper opens them in the working directory; empty is kept, as unset is."""
    (here / "input").touch()
    found = order(input_path="input", output_path="out", error_path=f"{here}/err")
    assert (found["in"], found["out"], found["err"], found["join"]) == ("input", "out", f"{here}/err", False)
    assert not (here / "out").exists()
    kept = order(input_path="", output_path="", error_path="")
    assert (kept["out"], kept["err"], "in" in kept) == (None, None, False)


@pytest.mark.parametrize(
    ("fields", "out"),
    [
        ({"join_files": True}, None),
        ({"join_files": True, "error_path": ""}, None),
        ({"join_files": True, "output_path": "out"}, "out"),
        ({"output_path": "out", "error_path": "out"}, "out"),
        ({"output_path": "out", "error_path": "./sub/../out"}, "out"),
        ({"output_path": "link/out", "error_path": "sub/out"}, "link/out"),
        ({"output_path": "/dev/null", "error_path": "/dev/null"}, "/dev/null"),
    ],
)
def test_errors_join_the_output(here: Path, fields: dict[str, Any], out: str | None) -> None:
    """When asked for, or when both are one file by whatever names: opened twice, they would overwrite each other."""
    (here / "sub").mkdir()
    (here / "link").symlink_to("sub")
    found = order(**fields)
    assert (found["join"], found["out"], found["err"]) == (True, out, None)


def test_joined_output_with_a_path_for_errors_is_refused() -> None:
    """Two answers to one question."""
    refused("join_files sends errors to the output", join_files=True, error_path="err")


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/stdout", "/dev/stderr"])
def test_the_program_s_own_streams_are_not_looked_at(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are handed over as descriptors, also where they are pipes or cannot be opened by name."""
    monkeypatch.setattr("os.access", lambda place, mode: mode == os.X_OK and place != path)
    reader, writer = os.pipe()
    number = checks.PASSED[path]
    saved = os.dup(number)
    os.dup2(reader, number)
    try:
        found = order(**{"input_path" if number == 0 else "output_path": path})
    finally:
        os.dup2(saved, number)
        for fd in (saved, reader, writer):
            os.close(fd)
    assert found["in" if number == 0 else "out"] == path


def test_a_named_pipe_is_refused_without_opening_it(here: Path) -> None:
    """The keeper would wait for the other end, and every task with it."""
    os.mkfifo(here / "pipe")
    for field in ("input_path", "output_path", "error_path"):
        refused(f"{field} {here}/pipe is a named pipe", **{field: "pipe"})


def test_input_that_cannot_be_read_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing or without the right to; a file that is copied in first may be missing."""
    (here / "secret").touch()
    refused(f"input_path {here}/none cannot be read", input_path="none")
    assert order(input_path="none", stage_in_files={"none": f"{here}/secret"})["in"] == "none"
    deny(monkeypatch, here / "secret", os.R_OK)
    refused(f"input_path {here}/secret cannot be read", input_path="secret")


@pytest.mark.parametrize("field", ["output_path", "error_path"])
def test_output_that_cannot_be_written_is_refused(here: Path, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory, a missing directory, no right, a read-only file system: each in its own words."""
    (here / "file").touch()
    (here / "folder").mkdir()
    refused(f"{field} {here}/folder is a directory", **{field: "folder"})
    refused(f"{field} {here}/none/out: there is no directory {here}/none", **{field: "none/out"})
    refused("there is no directory", **{field: "file/out"})
    with monkeypatch.context() as change:
        deny(change, here / "file", os.W_OK)
        refused(f"{field} {here}/file cannot be written", **{field: "file"})
    with monkeypatch.context() as change:
        deny(change, here / "folder", os.W_OK)
        refused(f"{field} {here}/folder/out: no right to create files in", **{field: "folder/out"})
    with monkeypatch.context() as change:
        change.setattr("os.statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
        refused(f"{field} {here}/out: the file system is read-only", **{field: "out"})
        assert order(**{field: "/dev/null"})
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder"]


def test_output_into_what_is_copied_in_first_is_left_to_the_keeper(here: Path) -> None:
    """The directory of the output may be among the files that come."""
    (here / "source").mkdir()
    found = order(output_path="job/out", stage_in_files={"job": f"{here}/source"})
    assert found["out"] == "job/out"


@pytest.mark.parametrize("field", ["output_path", "error_path"])
@pytest.mark.parametrize("path", ["data", "./data", "link"])
def test_output_into_its_own_input_is_refused(here: Path, field: str, path: str) -> None:
    """By whatever name: opening it for writing empties it before it is read."""
    (here / "data").write_text("precious")
    (here / "link").symlink_to("data")
    refused(f"{field} and input_path are the same file", input_path="data", **{field: path})
    assert (here / "data").read_text() == "precious"
    assert order(input_path="/dev/null", **{field: "/dev/null"})["in"] == "/dev/null"


# --- size -------------------------------------------------------------------------------------------------


def test_an_argument_is_as_long_as_the_system_takes() -> None:
    """128 KiB with its final zero (execve(2)); counted in bytes, not in characters."""
    longest = 131072 - 1
    assert len(order(args=("x" * longest,))["argv"][1]) == longest
    refused("an argument has 131073 bytes, the system takes 131072", args=("short", "x" * (longest + 1)))
    refused("an argument has 131073 bytes", args=("é" * 65536,))
    refused(r"job_environment\['A'\] has 131073 bytes", job_environment={"A": "x" * 131070})


def test_arguments_are_no_more_than_the_system_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All strings and their pointers together, the environment with them."""
    real = os.sysconf
    monkeypatch.setattr("os.sysconf", lambda name: 1_000_000 if name == "SC_ARG_MAX" else real(name))
    args = ("x" * 991,) * 900
    assert order(args=args)
    with pytest.raises(InvalidArgumentError, match=r"args and environment need \d+ bytes, the system takes 1000000"):
        order("/bin/sh", {**ENV, "A": "x" * 120_000}, args=args)
    refused("args and environment need", args=("x" * 991,) * 1000)
    own = {f"A{number}": "x" * 100_000 for number in range(10)}
    with pytest.raises(InvalidArgumentError, match="args and environment need"):
        order("/bin/sh", {**ENV, **own}, job_environment=own)


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("CORE_FILE_SIZE", 0, (resource.RLIMIT_CORE, 0, 0)),
        ("CORE_FILE_SIZE", 3, (resource.RLIMIT_CORE, 3072, 3072)),
        ("DATA_SEGMENT_SIZE", 1 << 20, (resource.RLIMIT_DATA, 1 << 30, 1 << 30)),
        ("FILE_SIZE", 1, (resource.RLIMIT_FSIZE, 1024, 1024)),
        ("OPEN_FILES", 64, (resource.RLIMIT_NOFILE, 64, 64)),
        ("STACK_SIZE", 1024, (resource.RLIMIT_STACK, 1 << 20, 1 << 20)),
        ("VIRTUAL_MEMORY", 1 << 20, (resource.RLIMIT_AS, 1 << 30, 1 << 30)),
        ("CPU_TIME", 60, (resource.RLIMIT_CPU, 60, 62)),
        ("CPU_TIME", 1.6, (resource.RLIMIT_CPU, 2, 4)),
        ("CPU_TIME", 0.1, (resource.RLIMIT_CPU, 1, 3)),
    ],
)
def test_a_limit_in_the_units_of_the_system(
    name: str, value: float, limit: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """KiB become bytes; CPU time is whole seconds, at least one, with two more until the kill."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert order(resource_limits={name: value})["limits"] == [[*limit, name]]


def test_time_is_no_limit_of_the_system() -> None:
    """WALLCLOCK_TIME is watched over by the keeper; it may stand beside real limits."""
    assert order(resource_limits={"WALLCLOCK_TIME": 1.5})["seconds"] == 1.5
    assert "limits" not in order(resource_limits={"WALLCLOCK_TIME": 1.5})
    both = order(resource_limits={"WALLCLOCK_TIME": 2, "OPEN_FILES": 9})
    assert (both["seconds"], len(both["limits"])) == (2, 1)
    assert "seconds" not in order(resource_limits={"OPEN_FILES": 9})


@pytest.mark.usefixtures("no_root")
def test_more_than_the_hard_limit_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user cannot raise a hard limit, and the kill after CPU_TIME comes no later than it."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (10, 100))
    denied(
        r"resource_limits\['OPEN_FILES'\] is 101, above this host's limit of 100", resource_limits={"OPEN_FILES": 101}
    )
    assert order(resource_limits={"OPEN_FILES": 100})["limits"][0][1:3] == [100, 100]
    assert order(resource_limits={"CPU_TIME": 99})["limits"][0][1:3] == [99, 100]


def test_root_may_have_more_than_the_hard_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """For root the hard limit is no bound."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("resource.getrlimit", lambda _: (10, 100))
    assert order(resource_limits={"OPEN_FILES": 101})["limits"][0][1:3] == [101, 101]


# --- priority, time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "priority", "nice"), [(0, 0, 0), (0, -7, 7), (5, -3, 8), (5, 5, 0), (0, -19, 19)])
def test_priority_counts_from_the_niceness_of_the_program(
    own: int, priority: int, nice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Higher is more: priority 5 is five nicenesses less."""
    monkeypatch.setattr("os.getpriority", lambda *_: own)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert order(priority=priority)["nice"] == nice


@pytest.mark.parametrize("priority", [-20, 21, 1000])
def test_a_priority_out_of_range_is_refused(priority: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would quietly take the nearest; here the range is told."""
    monkeypatch.setattr("os.getpriority", lambda *_: 0)
    refused("niceness goes from -20 to 19", priority=priority)


@pytest.mark.usefixtures("no_root")
def test_a_priority_that_needs_rights_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLIMIT_NICE says how far down a user may go (20 minus niceness, getrlimit(2)); up is always free."""
    monkeypatch.setattr("os.getpriority", lambda *_: 0)
    monkeypatch.setattr("resource.getrlimit", lambda _: (0, 0))
    denied("priority 1 needs niceness -1, which this user may not set", priority=1)
    assert order(priority=-1)["nice"] == 1
    monkeypatch.setattr("resource.getrlimit", lambda _: (25, 25))
    assert order(priority=5)["nice"] == -5
    denied("niceness -6", priority=6)


def test_a_deadline_is_a_point_in_time() -> None:
    """In seconds since the epoch; whether it has passed is for those to say who watch the clock."""
    assert order(deadline_time=datetime(2030, 1, 1, tzinfo=UTC))["until"] == 1893456000.0


# --- staging ----------------------------------------------------------------------------------------------


def test_files_of_the_program_s_side_are_absolute(here: Path) -> None:
    """Sources to copy in and targets to copy out lie where the program is; the other side where the task is."""
    (here / "work").mkdir()
    (here / "data").touch()
    found = order(working_directory="work", stage_in_files={"in": "data"}, stage_out_files={"result": "out"})
    assert found["stage_in"] == {"in": f"{here}/data"}
    assert found["stage_out"] == {f"{here}/result": "out"}


def test_a_source_that_cannot_be_read_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, or without the right to; one bad file among good ones is named."""
    (here / "good").touch()
    (here / "secret").touch()
    refused(f"stage_in_files: {here}/none cannot be read", stage_in_files={"a": "good", "b": "none"})
    deny(monkeypatch, here / "secret", os.R_OK)
    refused(f"stage_in_files: {here}/secret cannot be read", stage_in_files={"a": "secret"})


# --- the host ---------------------------------------------------------------------------------------------


def test_this_host_by_any_of_its_names() -> None:
    """One of several machines may be this one; others are somewhere else."""
    own = socket.gethostname()
    for machines in [(own,), (own.partition(".")[0],), ("localhost",), ("elsewhere", own), ()]:
        assert order(candidate_machines=machines)
    denied(
        f"candidate_machines are elsewhere, nowhere; processes run on {own}",
        candidate_machines=("elsewhere", "nowhere"),
    )


@pytest.mark.parametrize(
    ("machine", "good", "bad"),
    [("x86_64", ["X64", "x64", "x86_64"], ["ARM64", "X86", "any"]), ("aarch64", ["ARM64", "aarch64"], ["X64", "ARM"])],
)
def test_architecture_in_drmaa2_s_words_or_the_system_s(
    machine: str, good: list[str], bad: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either spelling, whatever its case; another one is denied and this host's is told."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    for arch in good:
        assert order(machine_arch=arch)
    for arch in bad:
        denied(f"machine_arch is {arch}; this host is {good[0]}", machine_arch=arch)


@pytest.mark.parametrize(("system", "good", "bad"), [("Linux", "LINUX", "MACOS"), ("Darwin", "macos", "Linux")])
def test_operating_system_in_drmaa2_s_words(system: str, good: str, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its case; another one is denied and this host's is told."""
    monkeypatch.setattr("platform.system", lambda: system)
    assert order(machine_os=good)
    denied(f"machine_os is {bad}; this host runs {good.upper()}", machine_os=bad)
    assert platform.system() == system


# --- the environment --------------------------------------------------------------------------------------


def test_children_see_the_environment_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, as a copy, also what only a frozen program would leave out."""
    monkeypatch.delattr(sys, "frozen", raising=False)
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", "x")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/lib")
    monkeypatch.setenv("STRANGE", "\udc80")
    env = helper.child_environment()
    assert env == dict(os.environ)
    env["NEW"] = "x"
    assert "NEW" not in os.environ


def test_children_of_a_frozen_program_do_not_see_its_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library path is what it was before the program came up; its own variables are gone, the user's stay."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", "/tmp/_MEIx", raising=False)
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", "/app")
    monkeypatch.setenv("MY_PYI_THING", "mine")
    for name, value in (("LD_LIBRARY_PATH", "/tmp/_MEIx:/opt"), ("LD_LIBRARY_PATH_ORIG", "/opt")):
        monkeypatch.setenv(name, value)
    env = helper.child_environment()
    assert env["LD_LIBRARY_PATH"] == "/opt"
    assert not {"LD_LIBRARY_PATH_ORIG", "_PYI_ARCHIVE_FILE"} & set(env)
    assert env["MY_PYI_THING"] == "mine"
    monkeypatch.delenv("LD_LIBRARY_PATH_ORIG")
    assert "LD_LIBRARY_PATH" not in helper.child_environment()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/user/own")
    assert helper.child_environment()["LD_LIBRARY_PATH"] == "/user/own"
