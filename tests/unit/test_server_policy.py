"""The job server's policy: what a template may say, and everything that is refused unless it is allowed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.drmaa2 import JobTemplate
from wfl.errors import InvalidArgumentError
from wfl.placeholders import fill
from wfl.server import Policy
from wfl.server.policy import RESULT_NAME
from wfl.server.refusals import ForbiddenError

ID = "0123456789abcdef" * 2
UPLOAD = f"upload:{ID}"
BASE = {"remote_command": "x"}


def check(policy: Policy, *, isolated: bool = False, defaults: JobTemplate | None = None, **fields: Any) -> None:
    """Have it look at a template."""
    policy.check(JobTemplate(**{**BASE, **fields}), defaults or JobTemplate(), isolated=isolated)


def refused(policy: Policy, *, isolated: bool = False, **fields: Any) -> str:
    """Why it is."""
    with pytest.raises(ForbiddenError) as caught:
        check(policy, isolated=isolated, **fields)
    return str(caught.value)


ALLOWED: list[dict[str, Any]] = [
    {"args": ["/etc/passwd", "../x", "$DRMAA2_HOME_DIR$"]},
    {"job_environment": {"LD_PRELOAD": "x"}, "job_name": "n", "job_category": "image", "queue_name": "q"},
    {"resource_limits": {"WALLCLOCK_TIME": 5}, "min_slots": 2, "join_files": True, "submit_as_hold": True},
    {"output_path": "/dev/null", "error_path": "/dev/null", "input_path": "/dev/null"},
    {"output_path": "", "error_path": "", "input_path": "", "working_directory": "", "email": [], "extensions": {}},
    {"input_path": UPLOAD, "stage_in_files": {"in/put": UPLOAD, "x-$DRMAA2_INDEX$": UPLOAD}},
    {"stage_out_files": {"result:a.tar": "out", "result:b": "out/$DRMAA2_INDEX$.txt"}},
    {"email_on_started": False, "priority": None},
]

PATHS: list[dict[str, Any]] = [
    {"working_directory": "/etc"},
    {"working_directory": "relative"},
    {"working_directory": "$DRMAA2_HOME_DIR$"},
    {"input_path": "/etc/passwd"},
    {"input_path": "relative"},
    {"input_path": "/dev/stdin"},
    {"input_path": "/dev/null/../../etc/passwd"},
    {"input_path": "upload:../../etc/passwd"},
    {"input_path": f"{UPLOAD}/../../x"},
    {"input_path": f"{UPLOAD}\n"},
    {"input_path": UPLOAD.upper()},
    {"input_path": "upload:$DRMAA2_INDEX$"},
    {"output_path": "/tmp/x"},
    {"output_path": "/dev/stdout"},
    {"output_path": "x"},
    {"output_path": "{{.ID}}"},
    {"error_path": "/tmp/x"},
    {"error_path": "result:x"},
    {"stage_in_files": {"x": "/etc/passwd"}},
    {"stage_in_files": {"x": "bind:/etc"}},
    {"stage_in_files": {"x": "volume:data"}},
    {"stage_in_files": {"x": "secret:token"}},
    {"stage_in_files": {"x": "result:x"}},
    {"stage_in_files": {"x": "upload:"}},
    {"stage_in_files": {"a": UPLOAD, "x": "/etc/passwd"}},
    {"stage_out_files": {"/tmp/x": "out"}},
    {"stage_out_files": {"x": "out"}},
    {"stage_out_files": {"result:": "out"}},
    {"stage_out_files": {"result:..": "out"}},
    {"stage_out_files": {"result:.": "out"}},
    {"stage_out_files": {"result:../x": "out"}},
    {"stage_out_files": {"result:a/b": "out"}},
    {"stage_out_files": {"result:a\n": "out"}},
    {"stage_out_files": {"result:$DRMAA2_INDEX$": "out"}},
    {"stage_out_files": {f"result:{'x' * 129}": "out"}},
]
"""Refused wherever jobs run."""

OUTSIDE: list[dict[str, Any]] = [
    {"stage_in_files": {"/etc/cron.d/x": UPLOAD}},
    {"stage_in_files": {"../x": UPLOAD}},
    {"stage_in_files": {"a/../../x": UPLOAD}},
    {"stage_in_files": {"a/..": UPLOAD}},
    {"stage_in_files": {".$DRMAA2_INDEX$./x": UPLOAD}},
    {"stage_in_files": {"a/.$DRMAA2_INDEX$.": UPLOAD}},
    {"stage_in_files": {"$DRMAA2_INDEX$/etc/x": UPLOAD}},
    {"stage_out_files": {"result:x": "/etc/shadow"}},
    {"stage_out_files": {"result:x": "../../x"}},
    {"stage_out_files": {"result:x": "$DRMAA2_INDEX$/etc/shadow"}},
]
"""Refused where a job shares the server's file system."""

PLACEHOLDERS: list[dict[str, Any]] = [
    {"stage_in_files": {"$DRMAA2_HOME_DIR$/x": UPLOAD}},
    {"stage_in_files": {"$DRMAA2_WORKING_DIR$/x": UPLOAD}},
    {"stage_in_files": {"$DRMAA2_$DRMAA2_INDEX$HOME_DIR$/x": UPLOAD}},
    {"stage_out_files": {"result:x": "$DRMAA2_HOME_DIR$/.ssh/id_rsa"}},
    {"stage_out_files": {"result:x": "$DRMAA2_HOME$DRMAA2_INDEX$_DIR$/.ssh"}},
]

COSTLY: list[dict[str, Any]] = [
    {"priority": 5},
    {"email": ["all@example.com"]},
    {"email_on_started": True},
    {"accounting_id": "theirs"},
    {"reservation_id": "r"},
    {"extensions": {"privileged": "true"}},
    {"extensions": {"user": "root"}},
]


@pytest.mark.parametrize("fields", ALLOWED)
@pytest.mark.parametrize("isolated", [False, True])
def test_what_is_allowed(fields: dict[str, Any], isolated: bool) -> None:  # noqa: FBT001
    """By default identities run what they like, with what they have uploaded, in their own place."""
    check(Policy(), isolated=isolated, **fields)


@pytest.mark.parametrize("fields", [*PATHS, *PLACEHOLDERS, *COSTLY])
@pytest.mark.parametrize("isolated", [False, True])
def test_what_is_refused_everywhere(fields: dict[str, Any], isolated: bool) -> None:  # noqa: FBT001
    """Paths of the server, its home, and what costs others are refused by name of the field."""
    if "working_directory" in fields and isolated:
        check(Policy(), isolated=True, **fields)  # there it is a path of the container
        return
    assert next(iter(fields)) in refused(Policy(), isolated=isolated, **fields)


@pytest.mark.parametrize("fields", OUTSIDE)
def test_what_leads_out_of_a_jobs_directory(fields: dict[str, Any]) -> None:
    """Where jobs share the server's files, their own paths stay below their directory, whatever placeholders become."""
    assert next(iter(fields)) in refused(Policy(), **fields)
    check(Policy(), isolated=True, **fields)


@pytest.mark.parametrize("fields", [*PATHS, *OUTSIDE])
def test_paths_of_the_server_can_be_allowed(fields: dict[str, Any]) -> None:
    """With server_paths all of that is the execution system's own business."""
    check(Policy(server_paths=True), **fields)


@given(st.text("./a$DRMAA2_INDEXHOMEWKG{}.", max_size=60), st.sampled_from([None, 0, 7]))
def test_no_placeholder_leads_out(path: str, index: int | None) -> None:
    """Whatever path is let through, after placeholders are filled it is below the job's directory."""
    if not path:
        return
    template = JobTemplate(remote_command="x", stage_in_files={path: UPLOAD}, working_directory="/w")
    try:
        check(Policy(), stage_in_files={path: UPLOAD})
    except ForbiddenError:
        return
    filled = fill(template, index, lambda: 1).stage_in_files
    assert filled is not None
    (target,) = filled
    assert not target.startswith("/")
    assert ".." not in target.split("/")


@pytest.mark.parametrize("fields", [{"stage_in_files": {"x": UPLOAD}}, {"stage_out_files": {"result:x": "x"}}])
def test_without_directories_of_their_own(fields: dict[str, Any]) -> None:
    """Where all jobs start in one directory, which may be the server's, nothing is put there or fetched from there."""
    template = JobTemplate(**{**BASE, **fields})
    with pytest.raises(ForbiddenError, match="no directory of their own"):
        Policy().check(template, JobTemplate(), isolated=False, own=False)
    Policy().check(template, JobTemplate(), isolated=True, own=False)
    Policy(server_paths=True).check(template, JobTemplate(), isolated=False, own=False)


def test_commands() -> None:
    """Only commands that match; a path that climbs matches nothing, nor does a placeholder, nor no command at all."""
    policy = Policy(commands=["train", "/opt/tools/*"])
    check(policy, remote_command="train")
    check(policy, remote_command="/opt/tools/sort")
    for command in ("sh", "/bin/train", "train2", "/opt/tools/../../bin/sh", "$DRMAA2_HOME_DIR$/x", "", None, "Train"):
        assert "remote_command" in refused(policy, remote_command=command)
    policy.check(JobTemplate(), JobTemplate(remote_command="default"), isolated=False)  # the server's own choice
    with pytest.raises(ForbiddenError):
        policy.check(JobTemplate(remote_command=""), JobTemplate(remote_command="default"), isolated=False)


def test_commands_and_the_environment() -> None:
    """Where commands are restricted no variable may be set, as PATH could make them others, but those allowed."""
    assert "PATH" in refused(Policy(commands=["train"]), remote_command="train", job_environment={"PATH": "/tmp"})
    policy = Policy(commands=["train"], environment=["LR", "MODEL_*"])
    check(policy, remote_command="train", job_environment={"LR": "1", "MODEL_X": "2"})
    assert "LD_PRELOAD" in refused(policy, remote_command="train", job_environment={"LR": "1", "LD_PRELOAD": "x"})


def test_images() -> None:
    """Only images that match; where none is named it is the context's."""
    policy = Policy(images=["registry.example/team/*", "busybox"])
    check(policy)
    check(policy, job_category="busybox")
    check(policy, job_category="registry.example/team/a:1")
    for image in ("alpine", "busybox:2", "registry.example/team/../other", "x/registry.example/team/a"):
        assert "job_category" in refused(policy, job_category=image)


def test_extensions() -> None:
    """Those that are allowed, with the values that are."""
    policy = Policy(extensions={"user": ["1000", "guest*"], "platform": None})
    check(policy, extensions={"user": "1000", "platform": "anything"})
    check(policy, extensions={"user": "guest7"})
    for extensions in ({"user": "0"}, {"user": "root"}, {"privileged": "true"}, {"user": "1000", "x": "y"}):
        assert "extensions[" in refused(policy, extensions=extensions)


def test_fields() -> None:
    """More fields, or fewer."""
    check(Policy(fields=["remote_command", "priority"]), priority=5)
    assert "args" in refused(Policy(fields=["remote_command"]), args=["a"])
    with pytest.raises(InvalidArgumentError, match="did you mean 'priority'"):
        Policy(fields=["priorety"])
    with pytest.raises(TypeError, match="commands is a str"):
        Policy(commands="sh")


@given(st.text(max_size=10))
def test_names_of_results(name: str) -> None:
    """A result's name is that of one file in one directory."""
    if RESULT_NAME.fullmatch(name):
        assert "/" not in name
        assert name not in (".", "..")
        assert name.isascii()
        assert name.isprintable()
