"""Where a daemon of containers is, by arguments and surroundings; and what is said where it cannot be. No daemon."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers import silence
from wfl.contexts.containers.settings import auth_of, client_of, host_of, registry_of
from wfl.contexts.docker import DockerContext
from wfl.contexts.podman import PodmanContext
from wfl.errors import DrmCommunicationError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The docker command's directory; nothing else is said of daemons."""
    silence(monkeypatch, tmp_path)
    return tmp_path


def found() -> dict[str, Any]:
    """What the surroundings say."""
    return client_of(None, None, 60.0, None)


def write_context(home: Path, name: str, endpoint: dict[str, Any], *certificates: str) -> Path:
    """Write a docker context as the docker command does; where its certificates are."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta, tls = home / "contexts" / "meta" / digest, home / "contexts" / "tls" / digest / "docker"
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}))
    if certificates:
        tls.mkdir(parents=True)
    for certificate in certificates:
        (tls / f"{certificate}.pem").touch()
    return tls


# --- arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "127.0.0.1:2375"},
        {"base_url": "npipe:////./pipe/docker_engine"},
        {"base_url": "unix://"},
        {"base_url": "tcp://"},
        {"base_url": "tcp://host"},
        {"base_url": "tcp://host:port"},
        {"base_url": "ssh://:22"},
        {"base_url": "ssh://user:password@host"},
        {"base_url": ""},
        {"image": ""},
        {"pull": "sometimes"},
        {"timeout": 0},
        {"tls": {"verify": True}},
        {"tls": {"verify": True}, "base_url": "unix:///a"},
        {"tls": {"cert": "a"}, "base_url": "tcp://host:1"},
        {"registry_auth": {"name": "a"}, "image": "a"},
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any]) -> None:
    """A value that can never work is refused when the context is made, with its name."""
    with pytest.raises(InvalidArgumentError, match=next(iter(settings))):
        DockerContext(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": 1},
        {"image": b"a"},
        {"timeout": "1"},
        {"timeout": True},
        {"tls": "a"},
        {"registry_auth": {"username": 1}},
    ],
)
def test_wrong_types_are_refused(settings: dict[str, Any]) -> None:
    """A value of the wrong type is a TypeError with its name."""
    with pytest.raises(TypeError, match=next(iter(settings))):
        DockerContext(**{"image": "a", "base_url": "tcp://host:1", **settings})


@pytest.mark.parametrize(
    "url", ["unix:///a", "tcp://host:1", "tcp://[::1]:1", "ssh://host", "ssh://user@host:22/a", "https://host"]
)
def test_addresses(url: str) -> None:
    """An address that is given counts, whatever the surroundings say."""
    assert DockerContext(base_url=url).client_settings()["base_url"] == url
    assert PodmanContext(base_url=url).client_settings()["base_url"] == url


# --- surroundings -----------------------------------------------------------------------------------------


def test_nothing_said() -> None:
    """The socket at its usual place."""
    assert found()["base_url"] == "unix:///var/run/docker.sock"
    assert found()["tls"] is None


def test_docker_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_HOST comes before any docker context; a wrong one is named."""
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    monkeypatch.setenv("DOCKER_HOST", "ssh://host")
    assert found()["base_url"] == "ssh://host"
    monkeypatch.setenv("DOCKER_HOST", "host:1")
    with pytest.raises(InvalidArgumentError, match="DOCKER_HOST is 'host:1'"):
        found()


def test_variables_of_tls(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Certificates are in DOCKER_CERT_PATH or DOCKER_CONFIG; they are for ports, and what is not there is not given."""
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_HOST", "unix:///a")
    assert found()["tls"] is None
    monkeypatch.setenv("DOCKER_HOST", "tcp://host:1")
    assert found()["tls"] == {"client_cert": None, "ca_cert": None, "verify": True}
    for name in ("ca", "cert", "key"):
        (home / f"{name}.pem").touch()
    pair = (f"{home}/cert.pem", f"{home}/key.pem")
    assert found()["tls"] == {"client_cert": pair, "ca_cert": f"{home}/ca.pem", "verify": True}
    monkeypatch.delenv("DOCKER_TLS_VERIFY")
    assert found()["tls"] is None
    monkeypatch.setenv("DOCKER_CERT_PATH", str(home))
    assert found()["tls"] == {"client_cert": pair, "ca_cert": f"{home}/ca.pem", "verify": False}


def test_docker_contexts(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """The context in use, or the one that DOCKER_CONTEXT names, with its certificates."""
    write_context(home, "far", {"Host": "ssh://host", "SkipTLSVerify": False})
    tls = write_context(home, "safe", {"Host": "tcp://host:1", "SkipTLSVerify": False}, "ca", "cert", "key")
    write_context(home, "careless", {"Host": "tcp://host:2", "SkipTLSVerify": True}, "cert", "key")
    (home / "config.json").write_text(json.dumps({"currentContext": "far"}))
    assert found()["base_url"] == "ssh://host"
    monkeypatch.setenv("DOCKER_CONTEXT", "safe")
    assert found()["base_url"] == "tcp://host:1"
    pair = (f"{tls}/cert.pem", f"{tls}/key.pem")
    assert found()["tls"] == {"client_cert": pair, "ca_cert": f"{tls}/ca.pem", "verify": True}
    monkeypatch.setenv("DOCKER_CONTEXT", "careless")
    assert found()["tls"]["verify"] is False
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert found()["base_url"] == "unix:///var/run/docker.sock"


def test_wrong_docker_contexts(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A context that is not there, or a file that cannot be read, is named."""
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    with pytest.raises(InvalidArgumentError, match="no docker context 'nowhere'"):
        found()
    monkeypatch.delenv("DOCKER_CONTEXT")
    (home / "config.json").write_text("{")
    with pytest.raises(InvalidArgumentError, match=r"config\.json cannot be read"):
        found()


def test_podman_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CONTAINER_HOST; else an ordinary user's own service, if it is there, before root's, and root's for root."""
    own = tmp_path / "podman" / "podman.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 1000)
    assert PodmanContext().base_url == "unix:///run/podman/podman.sock"
    own.parent.mkdir()
    own.touch()
    assert PodmanContext().base_url == f"unix://{own}"
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert PodmanContext().base_url == "unix:///run/podman/podman.sock"
    monkeypatch.setenv("CONTAINER_HOST", "ssh://host/a")
    assert PodmanContext().base_url == "ssh://host/a"
    assert PodmanContext(base_url="unix:///b").base_url == "unix:///b"


# --- registries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("busybox", "docker.io"),
        ("busybox:1.36", "docker.io"),
        ("library/busybox", "docker.io"),
        ("index.docker.io/library/busybox", "docker.io"),
        ("localhost/a", "localhost"),
        ("registry.example.com/a/b:1", "registry.example.com"),
        ("host:5000/a@sha256:0", "host:5000"),
    ],
)
def test_registry_of_an_image(image: str, registry: str) -> None:
    """The first part of a name is a registry if it looks like a host."""
    assert registry_of(image) == registry


@pytest.mark.parametrize(
    ("address", "registry"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("host:5000", "host:5000"),
        ("http://host:5000/v2/", "host:5000"),
    ],
)
def test_registry_at_an_address(address: str, registry: str) -> None:
    """Scheme and path do not matter."""
    assert host_of(address) == registry


def test_credentials_have_a_registry() -> None:
    """That of the context's image, unless one is named."""
    assert auth_of({"username": "a"}, "host:1/b") == {"username": "a", "serveraddress": "host:1"}
    assert auth_of({"serveraddress": "c"}, "host:1/b") == {"serveraddress": "c"}
    assert auth_of(None, "host:1/b") is None


# --- what cannot be reached -------------------------------------------------------------------------------


def why(url: str, tls: dict[str, Any] | None = None) -> str:
    """What a client says of it, in one line."""
    pytest.importorskip("docker")
    from wfl.contexts.containers.client import Client

    with pytest.raises(DrmCommunicationError) as raised:
        Client({**client_of(url, tls, 10.0, None), "cure": "CURE"})
    text = str(raised.value)
    assert text.startswith(f"{url}: ")
    assert "\n" not in text
    return text.removeprefix(f"{url}: ")


@contextmanager
def answering(answer: bytes, heard: list[bytes] | None = None) -> Iterator[str]:
    """A server that is no daemon: it says something to each and closes; what it `heard` is put there."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    request = peer.recv(1 << 16)
                    if heard is not None:
                        heard.append(request)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_no_socket(tmp_path: Path) -> None:
    """A socket that is not there, and one that nobody listens at."""
    assert why(f"unix://{tmp_path}/a") == "No such file or directory. CURE"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "b"))
    assert why(f"unix://{tmp_path}/b") == "Connection refused. CURE"


def test_no_port() -> None:
    """A port that nobody listens at, and a host that has no address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert why(f"tcp://127.0.0.1:{port}") == "Connection refused. CURE"
    assert why("tcp://no.such.host.invalid:1").endswith(". CURE")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
        b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\n{"a": 1}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n\xff",
    ],
)
def test_no_daemon(answer: bytes) -> None:
    """A web server that is no daemon."""
    with answering(answer) as url:
        assert why(url).startswith("what answers there is no daemon of containers (HTTP ")


def test_headers_of_the_configuration(home: Path) -> None:
    """HTTP headers that the docker configuration names go with every request, from the first one on."""
    pytest.importorskip("docker")
    from wfl.contexts.containers.client import Client

    (home / "config.json").write_text(json.dumps({"HttpHeaders": {"X-Gate": "open"}}))
    body, heard = b'{"ApiVersion": "1.41"}', list[bytes]()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    with answering(answer, heard) as url:
        client = Client(client_of(url, None, 10.0, None))
        client.info()
        client.start("one")
        client.close()
    paths = [request.split(b" ")[1] for request in heard]
    assert paths == [b"/_ping", b"/version", b"/v1.41/info", b"/v1.41/containers/one/start"]
    assert all(b"\r\nX-Gate: open\r\n" in request for request in heard)


def test_no_http() -> None:
    """A server that does not even speak HTTP, or says nothing at all."""
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as url:
        assert why(url).endswith(". CURE")
        assert "DOCKER_CERT_PATH" in why(url, {"verify": True})
    with answering(b"") as url:
        assert why(url) == "Remote end closed connection without response. CURE"


def test_no_permission() -> None:
    """Who may not use the socket is told how to be allowed to."""
    pytest.importorskip("docker")
    from wfl.contexts.containers.connection import unreached

    text = unreached("unix:///a", PermissionError(errno.EACCES, "Permission denied"), "CURE")
    assert text.startswith("unix:///a: Permission denied. ")
    assert "usermod -aG docker" in text


def test_words_of_tls() -> None:
    """A library's words for a TLS failure lose their decoration."""
    pytest.importorskip("docker")
    from wfl.contexts.containers.connection import words

    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    error.reason = "WRONG_VERSION_NUMBER"
    assert words(error) == "TLS: wrong version number"


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    """Files that are missing are named."""
    pytest.importorskip("docker")
    from wfl.contexts.containers.client import Client

    tls = {"client_cert": (f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem")}
    with pytest.raises(InvalidArgumentError, match=r"cert\.pem"):
        Client(client_of("tcp://127.0.0.1:1", tls, 10.0, None))


def test_ssh_command() -> None:
    """Nobody is asked, nothing is forwarded, and words of an address cannot become options or shell commands."""
    pytest.importorskip("docker")
    from wfl.contexts.containers.tunnel import command

    found = command("ssh://user@Host.example:2222/run/a b.sock", "podman", 5.0)
    assert found[0] == "ssh"
    assert "-oBatchMode=yes" in found
    assert "-oConnectTimeout=5" in found
    assert found[found.index("-l") :] == [
        "-l", "user", "-p", "2222", "--", "host.example", "podman --url 'unix:///run/a b.sock' system dial-stdio",
    ]  # fmt: skip
    found = command("ssh://-oProxyCommand=x", "docker", 60.0)
    assert found[-3] == "--"
    assert found[-1] == "docker system dial-stdio"
    assert "-p" not in found  # the port is the configuration's business


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_without_docker_py(name: str) -> None:
    """Without docker-py the extra is named, and contexts can be made all the same."""
    source = f"""
import sys
sys.modules["docker"] = None
from wfl import Context, Workflow
from wfl.contexts.{name} import clean
flow = Workflow(Context.named("{name}", image="a"))
print(flow.error)
try:
    clean("a")
except Exception as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=True)
    first, second = run.stdout.splitlines()
    assert f"pip install 'wfl-sdk[{name}]'" in first
    assert f"pip install 'wfl-sdk[{name}]'" in second


def test_settings_say_what_to_do() -> None:
    """What a context hands on tells how its daemon is started, and what speaks for it at the other end of ssh."""
    docker, podman = DockerContext().client_settings(), PodmanContext().client_settings()
    assert (docker["remote"], podman["remote"]) == ("docker", "podman")
    assert "DOCKER_HOST" in docker["cure"]
    assert "podman.socket" in podman["cure"]
