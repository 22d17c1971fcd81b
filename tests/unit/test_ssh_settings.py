"""SshContext: what it is given, and what cannot be meant. Nothing is contacted."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wfl import Context, JobTemplate
from wfl.contexts.ssh import SshContext, clean
from wfl.errors import InvalidArgumentError

SECRET = "correct horse"  # noqa: S105 - of no key


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without a configuration, and nobody to be reached."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def refused(*_: object, **__: object) -> None:
        pytest.fail("something was contacted")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(subprocess, "Popen", refused)


def test_defaults(tmp_path: Path) -> None:
    """One host, without limits, by the user's own configuration."""
    context = SshContext("host")
    assert (context.hosts, context.slots, context.max_parallel) == (("host",), {"host": None}, None)
    assert (context.config, context.identity_file, context.known_hosts) == ("~/.ssh/config", None, None)
    assert (context.directory, context.shell, context.timeout, context.lease) == (".wfl/ssh", "/bin/sh", 30.0, 300.0)
    (login,) = context.logins()
    assert (login.host, login.port) == ("host", 22)
    assert login.known_hosts[0] == f"{tmp_path}/.ssh/known_hosts"


@pytest.mark.parametrize(
    "hosts", ["a, bob@b:2222 ,[::1]:3", ["a", "bob@b:2222", "[::1]:3"], ("a", "bob@b:2222", "[::1]:3")]
)
def test_several_hosts(hosts: Any) -> None:
    """A list, or a text with commas, in the order that was given."""
    context = SshContext(hosts)
    assert context.hosts == ("a", "bob@b:2222", "[::1]:3")
    assert [login.port for login in context.logins()] == [22, 2222, 3]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hosts": ""}, r"hosts is '', expected \[user@\]host"),
        ({"hosts": []}, r"hosts is \[\], expected"),
        ({"hosts": "a,,b"}, "hosts is 'a,,b', expected"),
        ({"hosts": ["a", " "]}, "hosts is .*, expected"),
        ({"hosts": "a,b,a"}, "hosts names one twice: a, b, a; give it more slots"),
        ({"slots": 0}, "slots of host is 0, expected 1 or more"),
        ({"slots": {"host": -1}}, "slots of host is -1, expected 1 or more"),
        ({"slots": {"other": 1}}, "slots has 'other', which is none of the hosts host"),
        ({"timeout": 0}, "timeout is 0, expected seconds above 0"),
        ({"timeout": -1.5}, "timeout is -1.5, expected seconds"),
        ({"timeout": float("nan")}, "timeout is nan, expected seconds"),
        ({"timeout": float("inf")}, "timeout is inf, expected seconds"),
        ({"lease": 0}, "lease is 0, expected seconds above 0"),
        ({"lease": float("inf")}, "lease is inf, expected seconds"),
        ({"directory": ""}, "directory is empty"),
        ({"directory": "a\nb"}, r"directory is 'a\\nb', with characters that cannot be printed"),
        ({"directory": "a\0"}, "directory is .*, with characters that cannot be printed"),
        ({"shell": " "}, "shell is empty"),
        ({"shell": "/bin/sh\n"}, "shell is .*, with characters that cannot be printed"),
        ({"max_parallel": 0}, "max_parallel is 0"),
        ({"session_name": "a/b"}, "session_name is 'a/b'"),
    ],
)
def test_what_cannot_be_meant(settings: dict[str, Any], words: str) -> None:
    """A value that can never work is refused with its setting's name and what is expected."""
    with pytest.raises(InvalidArgumentError, match=f"^{words}"):
        SshContext(**{"hosts": "host", **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hosts": 5}, "int"),
        ({"hosts": ["a", 5]}, "hosts is .*, expected a name or a list of names"),
        ({"hosts": b"a"}, "hosts is b'a', expected a name"),
        ({"slots": "2"}, r"slots of host is '2' \(str\), expected int"),
        ({"slots": True}, r"slots of host is True \(bool\), expected int"),
        ({"slots": {"host": None}}, "slots of host is None"),
        ({"timeout": "30"}, r"timeout is '30' \(str\), expected seconds"),
        ({"timeout": True}, r"timeout is True \(bool\), expected seconds"),
        ({"lease": None}, r"lease is None \(NoneType\), expected seconds"),
        ({"directory": 5}, r"directory is 5 \(int\), expected str"),
        ({"shell": None}, r"shell is None \(NoneType\), expected str"),
        ({"config": 5}, "int"),
        ({"identity_file": 5}, "int"),
        ({"known_hosts": 5}, "int"),
        ({"port": 22}, "port"),
    ],
)
def test_a_wrong_type_is_a_type_error(settings: dict[str, Any], words: str) -> None:
    """A value of another type is Python's own TypeError, and so is a setting that there is not."""
    with pytest.raises(TypeError, match=words):
        SshContext(**{"hosts": "host", **settings})


@pytest.mark.parametrize("hosts", ["a b", "host:x", "::1", "host:99999"])
def test_what_is_no_host(hosts: str) -> None:
    """What cannot be a host's name is said before anything is contacted."""
    with pytest.raises(InvalidArgumentError, match=f"^host '{hosts}'"):
        SshContext(hosts).backend()


def test_paths_of_this_side(tmp_path: Path) -> None:
    """Paths may be given as such, and from the home on."""
    context = SshContext("host", config=tmp_path / "config", identity_file="~/key", known_hosts=tmp_path / "known")
    (login,) = context.logins()
    assert login.keys == (f"{tmp_path}/key",)
    assert login.known_hosts == (f"{tmp_path}/known",)
    assert login.only_these_keys
    assert context.config == f"{tmp_path}/config"


def test_slots_limit_what_runs_at_once() -> None:
    """All slots together are how many tasks may run, unless another number is given or one host has no limit."""
    hosts = ["a", "b", "c"]
    assert SshContext(hosts, slots=4).max_parallel == 12
    assert SshContext(hosts, slots={"a": 1, "b": 2, "c": 3}).max_parallel == 6
    assert SshContext(hosts, slots={"a": 1, "b": 2}).max_parallel is None
    assert SshContext(hosts, slots={"a": 1, "b": 2}).slots == {"a": 1, "b": 2, "c": None}
    assert SshContext(hosts, slots=4, max_parallel=5).max_parallel == 5
    assert SshContext(hosts).max_parallel is None


@pytest.mark.parametrize(
    "text",
    [
        "ssh?hosts=a,bob@b:2222&slots=3&timeout=5&lease=60.5&directory=/tmp/x&config=/none&detach=true",
        "ssh?hosts=a%2C+bob%40b%3A2222&slots=3&timeout=5.0&lease=60.5&directory=%2Ftmp%2Fx&config=%2Fnone&detach=True",
    ],
)
def test_the_environment_names_it(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """All of it can stand in WFL_CONTEXT."""
    monkeypatch.setenv("WFL_CONTEXT", text)
    context = Context.from_environment()
    assert isinstance(context, SshContext)
    assert (context.hosts, context.max_parallel) == (("a", "bob@b:2222"), 6)
    assert (context.timeout, context.lease, context.directory) == (5.0, 60.5, "/tmp/x")
    assert (context.config, context.detach) == ("/none", True)


def test_a_name_without_hosts() -> None:
    """Hosts have to be given."""
    with pytest.raises(TypeError, match="hosts"):
        Context.named("ssh")
    found = Context.named("ssh", hosts=["a", "b"], passphrase="123")  # noqa: S106 - of no key
    assert isinstance(found, SshContext)
    assert found.hosts == ("a", "b")
    texts = Context.named("ssh?hosts=a&passphrase=123&session_name=5")
    assert isinstance(texts, SshContext)
    assert (texts.passphrase, texts.session_name) == ("123", "5")


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """What people see of a context, and of what is made of it, has hosts and session, and no passphrase."""
    context = SshContext(["a", "b"], passphrase=SECRET, session_name="s", store=tmp_path / "store")
    assert repr(context) == f"SshContext('a, b', session_name='s', store='{tmp_path}/store')"
    assert context.speaks().passphrase == SECRET
    backend = context.backend()
    try:
        for thing in (context, context.speaks(), context.logins(), backend, context.monitor()):
            assert SECRET not in repr(thing) + str(thing)
    finally:
        backend.close(end=True)


# --- which host -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["a", "bob@b:2222", "b", "a.example"])
def test_machines_that_are_hosts(tmp_path: Path, machine: str) -> None:
    """A job may name a host as the context does, or by its address alone."""
    (tmp_path / "config").write_text("Host a\nHostName a.example\n")
    backend = SshContext("a,bob@b:2222", config=tmp_path / "config").backend()
    try:
        backend.check(JobTemplate(remote_command="true", candidate_machines=(machine,)))
        backend.check(JobTemplate(remote_command="true", candidate_machines=("elsewhere", machine)))
    finally:
        backend.close(end=True)


def test_machines_that_are_not() -> None:
    """A job that can run on none of the hosts is refused, with their names."""
    backend = SshContext("a,bob@b:2222").backend()
    try:
        with pytest.raises(InvalidArgumentError, match=r"^candidate_machines are c, bob; the hosts are a, bob@b:2222$"):
            backend.check(JobTemplate(remote_command="true", candidate_machines=("c", "bob")))
    finally:
        backend.close(end=True)


def test_more_slots_than_a_host_has() -> None:
    """A job that no host has room for would wait for ever; where one has no limit it does not."""
    backend = SshContext("a,b", slots={"a": 2, "b": 3}).backend()
    unlimited = SshContext("a,b", slots={"a": 2}).backend()
    try:
        backend.check(JobTemplate(remote_command="true", min_slots=3))
        unlimited.check(JobTemplate(remote_command="true", min_slots=30))
        with pytest.raises(InvalidArgumentError, match=r"^min_slots is 4; no host has more than 3$"):
            backend.check(JobTemplate(remote_command="true", min_slots=4))
        for some in (backend, unlimited):
            with pytest.raises(InvalidArgumentError, match=r"^min_slots is 3; no host has more than 2$"):
                some.check(JobTemplate(remote_command="true", min_slots=3, candidate_machines=("a",)))
    finally:
        for some in (backend, unlimited):
            some.close(end=True)


@pytest.mark.parametrize(("priority", "taken"), [(-19, True), (20, True), (-20, False), (21, False)])
def test_priorities(priority: int, taken: bool) -> None:  # noqa: FBT001
    """Priorities are niceness the other way round, and no others."""
    backend = SshContext("a").backend()
    given = JobTemplate(remote_command="true", priority=priority)
    try:
        if taken:
            backend.check(given)
        else:
            with pytest.raises(InvalidArgumentError, match=f"^priority is {priority}; hosts have -19 to 20$"):
                backend.check(given)
    finally:
        backend.close(end=True)


# --- what it needs ----------------------------------------------------------------------------------------

LAZY = """
import sys
from wfl import Context
from wfl.contexts.ssh import SshContext
context = SshContext("a,b", slots=2)
Context.named("ssh", hosts="a")
repr(context)
assert "paramiko" not in sys.modules and "cryptography" not in sys.modules
if len(sys.argv) > 1:
    sys.modules["paramiko"] = None
    for use in (context.backend, context.speaks, context.monitor):
        try:
            use()
        except Exception as error:
            print(type(error).__name__, error)
else:
    context.backend().close(end=True)
    assert "paramiko" in sys.modules
"""


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a program to its end; what it prints."""
    monkeypatch.undo()

    def run(source: str, *arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", source, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_a_context_costs_nothing(program: Any) -> None:
    """Making one imports no client; a backend does, and contacts nothing."""
    assert program(LAZY) == []


def test_without_paramiko(program: Any) -> None:
    """Where the client is missing it is said how to get it."""
    lines = program(LAZY, "without")
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(
            "SessionManagementError jobs on hosts over SSH need paramiko: pip install 'wfl-sdk[ssh]' ("
        )


def test_clean_wants_a_session() -> None:
    """A session that cannot be is no name of a directory on the hosts."""
    with pytest.raises(InvalidArgumentError, match="session_name"):
        clean("../other", SshContext("a"))
