"""Ways to a daemon of containers: each is tried with the real one, and leaves no process, thread or container."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers import IMAGE, SERVICES, Daemon, Own, address, reached, silence
from tests.faults.machine import PATIENCE, Program, children_of, command_of, wait_until
from tests.faults.servers import PROXY, Certificates, Proxy, Rootless, Sshd, free_port, needed
from wfl import Workflow
from wfl.contexts import docker, podman
from wfl.contexts.docker import DockerContext
from wfl.contexts.podman import PodmanContext
from wfl.drmaa2 import JobState
from wfl.errors import DrmCommunicationError, InvalidArgumentError, UnsupportedOperationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wfl import Context

SIZE = 300_000
"""Bytes of standard input: more than a socket holds."""
FIELDS: dict[str, Any] = {"extensions": {"network": "none"}}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is said of daemons but by the test."""
    silence(monkeypatch, tmp_path / "docker")


@pytest.fixture(scope="module", params=["docker", "podman"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """Each of the two."""
    with reached(request.param) as found:
        yield found


@pytest.fixture(scope="module")
def dockerd() -> Iterator[Daemon]:
    """The one where both would be the same."""
    with reached("docker") as found:
        yield found


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A way to this machine over ssh, where the daemons are found without being named."""
    found = Sshd(tmp_path_factory.mktemp("ssh"), address("docker"), address("podman"))
    yield found
    found.close()


class Secure:
    """A dockerd of our own, which listens at a port for clients with a certificate of our authority."""

    def __init__(self, directory: Path) -> None:
        self.certificates = Certificates(directory)
        self.own = Own("docker")
        self.port = free_port()
        self.url = f"tcp://127.0.0.1:{self.port}"
        files = [f"--tls{name}={self.certificates.server}/{name}.pem" for name in ("cert", "key")]
        authority = f"--tlscacert={self.certificates.client}/ca.pem"
        self.own.strike(signal.SIGTERM)
        self.own.start("--host", self.url, "--tlsverify", authority, *files)

    def tls(self, **changes: Any) -> dict[str, Any]:
        """The right settings, but for the changes."""
        client = self.certificates.client
        pair = (f"{client}/cert.pem", f"{client}/key.pem")
        return {"client_cert": pair, "ca_cert": f"{client}/ca.pem", "verify": True, **changes}


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """The dockerd with TLS."""
    found = Secure(tmp_path_factory.mktemp("tls"))
    yield found
    found.own.strike(signal.SIGTERM)
    found.own.close()


def lines() -> list[int]:
    """The ssh processes of this program."""
    return [pid for pid in children_of(os.getpid()) if b"dial-stdio" in command_of(pid)]


def threads() -> set[threading.Thread]:
    """Those of this program, without the proxy's."""
    return {thread for thread in threading.enumerate() if thread.name != PROXY}


def run_through(context: Context, tmp_path: Path) -> None:
    """Everything that goes over a connection in one way or another works, and nothing of it is left."""
    before = threads()
    (tmp_path / "in").write_bytes(b"x" * SIZE)
    with Workflow(context, raise_errors=True) as flow:
        fed = flow.run("wc", "-c", input_path=str(tmp_path / "in"), **FIELDS)
        elements = flow.run_array(8, "sh", "-c", "echo $TASK_ID; echo e$TASK_ID >&2", **FIELDS)
        staged = flow.run(
            "sh", "-c", "cat /in > /out",
            stage_in_files={"/in": str(tmp_path / "in")}, stage_out_files={str(tmp_path / "out"): "/out"}, **FIELDS,
        )  # fmt: skip
        spoken = flow.run("sh", "-c", "echo one; sleep 600", **FIELDS)
        assert fed.output() == str(SIZE)
        assert sorted(elements.outputs().values()) == [str(n) for n in range(1, 9)]
        assert elements.error_output().split() == [f"e{n}" for n in range(1, 9)]
        assert staged.wait(PATIENCE).success()
        assert (tmp_path / "out").stat().st_size == SIZE
        following = spoken.stream()
        assert next(following) == "one"
        spoken.suspend().resume().kill().wait(PATIENCE)
        assert list(following) == []
        assert spoken.state is JobState.FAILED
    wait_until("all threads have ended", lambda: threads() <= before)
    assert lines() == []
    gc.collect()  # what was not closed would be told of now


def session() -> str:
    """A session's name of our own."""
    return f"connections-{uuid.uuid4().hex}"


def why(context: Context) -> str:
    """What is said, in one line, of a daemon that cannot be reached."""
    with Workflow(context) as flow:
        assert isinstance(flow.error, DrmCommunicationError)
        text = str(flow.error)
    assert "\n" not in text
    assert lines() == []
    gc.collect()
    return text


# --- sockets, ports and TLS -------------------------------------------------------------------------------


def test_unix_socket(daemon: Daemon, tmp_path: Path) -> None:
    """A base_url of a unix socket."""
    name = session()
    run_through(daemon.context(session_name=name), tmp_path)
    daemon.is_empty(name)


def test_port(daemon: Daemon, tmp_path: Path) -> None:
    """A base_url of a host and port, without TLS."""
    name = session()
    with Proxy(daemon.url) as proxy:
        run_through(daemon.context(session_name=name, base_url=proxy.url), tmp_path)
    daemon.is_empty(name)


def test_port_with_certificates(secure: Secure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base_url with TLS, where certificates of the surroundings do not stand in the way."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secure.certificates.other / "ca.pem"))
    run_through(DockerContext(image=IMAGE, base_url=secure.url, tls=secure.tls()), tmp_path)


def test_variables(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_HOST or CONTAINER_HOST; what is said of TLS is not for a socket of this machine."""
    monkeypatch.setenv("DOCKER_HOST" if daemon.name == "docker" else "CONTAINER_HOST", daemon.url)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    name = session()
    run_through(daemon.context(session_name=name, base_url=None), tmp_path)
    daemon.is_empty(name)


def test_variables_of_tls(secure: Secure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_HOST with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH."""
    monkeypatch.setenv("DOCKER_HOST", secure.url)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(secure.certificates.client))
    run_through(DockerContext(image=IMAGE), tmp_path)


def test_wrong_certificates(secure: Secure) -> None:
    """What is wrong with TLS is said, with what to give."""
    own, other = secure.certificates.client, secure.certificates.other
    cases = {
        "certificate verify failed": secure.tls(ca_cert=f"{other}/ca.pem"),
        "TLS: ": secure.tls(client_cert=(f"{other}/cert.pem", f"{other}/key.pem")),
        "certificate": {"ca_cert": f"{own}/ca.pem", "verify": True},
    }
    for words, tls in cases.items():
        text = why(DockerContext(image=IMAGE, base_url=secure.url, tls=tls))
        assert text.startswith(f"{secure.url}: TLS: "), text
        assert words in text
        assert "DOCKER_CERT_PATH" in text
    text = why(DockerContext(image=IMAGE, base_url=secure.url))
    assert "speaks TLS only" in text
    missing = DockerContext(image=IMAGE, base_url=secure.url, tls=secure.tls(ca_cert="/nowhere/ca.pem"))
    with Workflow(missing) as flow:
        assert isinstance(flow.error, InvalidArgumentError)
        assert "/nowhere/ca.pem" in str(flow.error)


def test_tls_where_there_is_none(dockerd: Daemon, secure: Secure) -> None:
    """Certificates for a daemon without TLS are an error that says so."""
    with Proxy(dockerd.url) as proxy:
        text = why(DockerContext(image=IMAGE, base_url=proxy.url, tls=secure.tls()))
    assert "TLS: wrong version number" in text or "TLS: record layer failure" in text


# --- docker contexts --------------------------------------------------------------------------------------


def create_context(name: str, endpoint: str) -> None:
    """Let the docker command make a context."""
    command = [needed("docker", "docker.io"), "context", "create", name, "--docker", endpoint]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)


def test_docker_context(dockerd: Daemon, secure: Secure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_CONTEXT, the context in use, with certificates or without, in DOCKER_CONFIG; DOCKER_HOST comes first."""
    client = secure.certificates.client
    create_context("plain", f"host={dockerd.url}")
    create_context("tls", f"host={secure.url},ca={client}/ca.pem,cert={client}/cert.pem,key={client}/key.pem")
    name = session()
    monkeypatch.setenv("DOCKER_CONTEXT", "plain")  # there is no config.json yet
    run_through(DockerContext(image=IMAGE, session_name=name), tmp_path)
    monkeypatch.setenv("DOCKER_CONTEXT", "tls")
    assert machine(DockerContext()) == secure.url
    monkeypatch.delenv("DOCKER_CONTEXT")
    for used, url in (("plain", dockerd.url), ("tls", secure.url)):
        subprocess.run(["docker", "context", "use", used], check=True, capture_output=True, timeout=PATIENCE)
        assert machine(DockerContext()) == url
    monkeypatch.setenv("DOCKER_HOST", dockerd.url)
    assert machine(DockerContext()) == dockerd.url
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    with Workflow(DockerContext(image=IMAGE)) as flow:
        assert isinstance(flow.error, InvalidArgumentError)
        assert "no docker context 'nowhere'" in str(flow.error)
    dockerd.is_empty(name)


def machine(context: DockerContext) -> str:
    """Which daemon is reached."""
    from wfl.contexts.containers.client import Client

    client = Client(context.client_settings())
    try:
        client.info()
        return client.url
    finally:
        client.close()


# --- ssh --------------------------------------------------------------------------------------------------


def test_ssh(daemon: Daemon, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through ssh, with the user's own configuration: eight at once, events beside them, and no process is left."""
    monkeypatch.setenv("PATH", sshd.path)
    name = session()
    run_through(daemon.context(session_name=name, base_url="ssh://there"), tmp_path)
    wait_until("sshd serves nobody any more", lambda: sshd.sessions() == 0)
    daemon.is_empty(name)


def test_ssh_to_a_socket(daemon: Daemon, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address may say which socket on the other host; a jump host is the configuration's business."""
    monkeypatch.setenv("PATH", sshd.path)
    name = session()
    url = f"ssh://behind{daemon.url.removeprefix('unix://')}"
    with Workflow(daemon.context(session_name=name, base_url=url), raise_errors=True) as flow:
        assert flow.run("echo", "there").output() == "there"
    wait_until("sshd serves nobody any more", lambda: sshd.sessions() == 0)
    daemon.is_empty(name)


def test_ssh_says_why(sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host whose key is not known is no question but an error, as is all else that ssh says."""
    monkeypatch.setenv("PATH", sshd.path)
    port = free_port()
    cases = {
        "ssh://stranger": "Host key verification failed",
        "ssh://nobody@there": "Permission denied",
        "ssh://there/nowhere.sock": "/nowhere.sock",
        f"ssh://127.0.0.1:{port}": "Connection refused",
    }
    for url, words in cases.items():
        text = why(DockerContext(image=IMAGE, base_url=url))
        assert text.startswith(f"{url}: ssh: ")
        assert words in text
        assert text.endswith("docker version")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no command ssh" in why(DockerContext(image=IMAGE, base_url="ssh://there"))


def test_killed_program_leaves_no_ssh(dockerd: Daemon, sshd: Sshd, tmp_path: Path) -> None:
    """A program that is killed leaves neither containers nor ssh processes behind, at either end."""
    source = """
import sys
from wfl import Workflow
from wfl.contexts.docker import DockerContext
flow = Workflow(DockerContext(image=sys.argv[2], base_url="ssh://there", session_name=sys.argv[1]), raise_errors=True)
for _ in range(4):
    flow.run("sleep", "600", extensions={"network": "none"})
for task in (task for job in flow.jobs() for task in job.tasks):
    task.wait_started(60)
print("ready", flush=True)
sys.stdin.readline()
"""
    name = session()
    with Program(source, tmp_path, name, IMAGE, PATH=sshd.path) as program:
        program.expect("ready")
        assert dockerd.states(name) == ["running"] * 4
        assert sshd.sessions() > 0
        program.kill()
        wait_until("no container is left", lambda: not dockerd.states(name))
        wait_until("no process is left", lambda: not [one for one in program.left() if one.startswith("process")])
        wait_until("sshd serves nobody any more", lambda: sshd.sessions() == 0)
    dockerd.is_empty(name)


# --- what is there is not what is wanted ------------------------------------------------------------------


def test_newer_daemon(dockerd: Daemon, tmp_path: Path) -> None:
    """A daemon that no longer speaks our version is spoken to in the oldest that it does."""
    heard: list[bytes] = []

    def asks(data: bytes) -> bytes:
        heard.append(data)
        return data.replace(b"/v1.44/", b"/v1.41/")

    def answers(data: bytes) -> bytes:
        return data.replace(b'"ApiVersion":"1.41"', b'"ApiVersion":"1.52"').replace(
            b'"MinAPIVersion":"1.12"', b'"MinAPIVersion":"1.44"'
        )

    name = session()
    with Proxy(dockerd.url, asks, answers) as proxy:
        run_through(dockerd.context(session_name=name, base_url=proxy.url), tmp_path)
    assert any(b" /v1.44/containers/create" in data for data in heard)
    assert not any(b" /v1.41/" in data for data in heard)
    dockerd.is_empty(name)


def test_older_daemon(dockerd: Daemon) -> None:
    """A daemon that would pass over what it does not know yet is refused, with what it must be."""
    with (
        Proxy(dockerd.url, answers=lambda data: data.replace(b'"ApiVersion":"1.41"', b'"ApiVersion":"1.40"')) as proxy,
        Workflow(dockerd.context(base_url=proxy.url)) as flow,
    ):
        assert isinstance(flow.error, UnsupportedOperationError)
        assert "API 1.40" in str(flow.error)
        assert "Docker 20.10" in str(flow.error)


# --- rootless ---------------------------------------------------------------------------------------------


@pytest.fixture
def rootless() -> Iterator[Rootless]:
    """Podman of an ordinary user."""
    image = subprocess.run([SERVICES / "images" / "busybox.sh"], check=True, capture_output=True, timeout=4 * PATIENCE)
    found = Rootless(image.stdout)
    yield found
    found.close()


def test_rootless_podman(rootless: Rootless, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user's own service is found where it is, and runs jobs."""
    with monkeypatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(rootless.runtime))
        patch.setattr(os, "getuid", lambda: 65534)
        context = PodmanContext(image=IMAGE, session_name=session())
    assert context.base_url == rootless.url
    (tmp_path / "in").write_bytes(b"x" * SIZE)
    with Workflow(context, raise_errors=True) as flow:
        assert flow.run("wc", "-c", input_path=str(tmp_path / "in"), **FIELDS).output() == str(SIZE)
        assert flow.run("sh", "-c", "exit 3", **FIELDS).exit_status() == 3
        endless = flow.run("sleep", "600", **FIELDS)
        endless.tasks[0].wait_started(PATIENCE)
        assert endless.kill().wait(PATIENCE).state is JobState.FAILED
        flow.run("sleep", "600", **FIELDS).tasks[0].wait_started(PATIENCE)
        assert podman.clean(context.session_name, context) == 4


# --- cleaning ---------------------------------------------------------------------------------------------


def test_clean(daemon: Daemon, tmp_path: Path) -> None:
    """All that a session left is removed, in whatever state, and counted; other sessions are not touched."""
    source = """
import os, sys
from wfl import Context, Workflow
settings = {"image": sys.argv[3], "base_url": sys.argv[2], "detach": True}
for name in sys.argv[4:]:
    flow = Workflow(Context.named(sys.argv[1], session_name=name, **settings), raise_errors=True)
    fields = {"extensions": {"network": "none"}}
    ended = flow.run("true", **fields).wait(60)
    paused = flow.run("sleep", "600", **fields)
    for job in (flow.run("sleep", "600", **fields), paused):
        job.tasks[0].wait_started(60)
    paused.suspend()
os._exit(0)
"""
    clean = docker.clean if daemon.name == "docker" else podman.clean
    name, other = session(), session()
    try:
        with Program(source, tmp_path, daemon.name, daemon.url, IMAGE, name, other) as program:
            program.finish()
        assert daemon.states(name) == daemon.states(other) == ["exited", "paused", "running"]
        assert clean(name, daemon.context()) == 3  # type: ignore[arg-type]
        assert daemon.states(name) == []
        assert daemon.states(other) == ["exited", "paused", "running"]
        assert clean(name, daemon.context()) == 0  # type: ignore[arg-type]
        assert docker.clean(other, daemon.context()) == 3  # type: ignore[arg-type]
        daemon.is_empty(name, other)
    finally:
        daemon.remove_all(name, other)


@pytest.mark.parametrize("clean", [docker.clean, podman.clean])
def test_clean_wants_a_name(clean: Any) -> None:
    """No session at all is not every session."""
    with pytest.raises(InvalidArgumentError, match="session_name is empty"):
        clean("")
    with pytest.raises(TypeError, match="session_name"):
        clean(None)
