"""The client of the API server, against a small server that answers as one does: questions, TLS, errors, streams.

Commands in containers, TLS and rights are also tested on a real cluster.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("kubernetes")

import yaml
from kubernetes.client.configuration import Configuration
from kubernetes.config import incluster_config, kube_config
from websocket import ABNF

from wfl.contexts.kubernetes import client as module
from wfl.contexts.kubernetes import command, configuration
from wfl.contexts.kubernetes.client import Client, ExistsError, ExpiredError, NotThereError, UnsentError
from wfl.contexts.kubernetes.settings import Place
from wfl.errors import (
    DeniedByDrmsError,
    DrmCommunicationError,
    InternalError,
    InvalidArgumentError,
    InvalidStateError,
    SessionManagementError,
    TryLaterError,
    UnsupportedOperationError,
    WflError,
)


@dataclass
class Asked:
    """One request as the server has got it."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    handler: BaseHTTPRequestHandler
    certificate: str | None
    """Whose certificate came along."""

    @property
    def sent(self) -> Any:
        """Its JSON."""
        return json.loads(self.body)


@dataclass
class Reply:
    """An answer: JSON or bytes; an iterable is streamed, a part as it comes."""

    body: Mapping[str, Any] | bytes | Iterable[bytes] = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[Asked], Reply | None]


def owner(connection: socket.socket) -> str | None:
    """Of the certificate that the other end has shown."""
    shown: Any = connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else None
    return next((value for ((_, value),) in (shown or {}).get("subject", ())), None)


class Server(ThreadingHTTPServer):
    """It keeps what it was asked, and answers as `answer` says; None: the connection is dropped."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[Asked] = []
        self.answer: Answer = lambda asked: Reply({"path": asked.path})
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that were cut are expected."""


class Handler(BaseHTTPRequestHandler):
    """As the API server: connections are kept, streams are chunked."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _do(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = parse_qs(parts.query, keep_blank_values=True)
        asked = Asked(self.command, parts.path, query, self.headers, body, self, owner(self.connection))
        self.server.asked.append(asked)
        reply = self.server.answer(asked)
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if isinstance(reply.body, bytes | Mapping):
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in reply.body:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815 - http.server's names


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is known of any cluster."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(configuration, "SERVICE_ACCOUNT", str(tmp_path / "serviceaccount"))
    monkeypatch.setattr(module, "REPEATS", (0.01, 0.01))


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a free port."""
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def write_config(
    path: Path,
    url: str,
    *,
    user: Mapping[str, Any] | None = None,
    cluster: Mapping[str, Any] | None = None,
    **context: str,
) -> Path:
    """A kubeconfig with one context, named "here"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": url, **(cluster or {})}}],
        "users": [{"name": "u", "user": dict(user or {"token": "secret"})}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", **context}}],
    }
    path.write_text(yaml.safe_dump(said))
    return path


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Client]:
    """A client of the server, in the namespace "ns"."""
    path = write_config(tmp_path / "config", server.url, namespace="ns")
    made = Client(Place(kubeconfig=str(path), timeout=5.0))
    yield made
    made.close()


def refused(status: int, message: str, reason: str = "", **headers: str) -> Reply:
    """A Status, as the API server tells its errors."""
    said = {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": status}
    return Reply(said, status, headers)


def in_turn(*replies: Reply | None) -> Answer:
    """One after the other; the last again and again."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def as_lines(*events: Mapping[str, Any]) -> list[bytes]:
    """Events as a watch has them."""
    return [json.dumps(event).encode() + b"\n" for event in events]


# --- the configuration ------------------------------------------------------------------------------------


def test_the_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kubeconfig given wins over KUBECONFIG, and that over the pod and the file in the home directory."""
    home = write_config(tmp_path / "home/.kube/config", "http://home")
    first = Client(Place())
    assert (first.url, first.place.kubeconfig) == ("http://home", str(home))
    monkeypatch.setenv("KUBECONFIG", str(write_config(tmp_path / "b", "http://environment")))
    assert Client(Place()).url == "http://environment"
    given = write_config(tmp_path / "a", "http://argument")
    assert Client(Place(kubeconfig=str(given))).url == "http://argument"


def test_several_files_are_merged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the files in KUBECONFIG the first that names a context decides, and those that are missing do not matter."""
    (tmp_path / "a").write_text("current-context: ''\n")
    first = write_config(tmp_path / "b", "http://b", namespace="one")
    second = write_config(tmp_path / "c", "http://c")
    second.write_text(
        second.read_text().replace("here", "there").replace("name: c", "name: d").replace("cluster: c", "cluster: d")
    )
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/missing:{tmp_path}/a:{first}:{second}")
    assert (Client(Place()).url, Client(Place()).namespace) == ("http://b", "one")
    chosen = Client(Place(context="there"))
    assert (chosen.url, chosen.namespace) == ("http://c", "default")
    assert Client(Place(namespace="mine")).namespace == "mine"


def test_the_place_is_pinned(client: Client, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A helper in another directory finds the same cluster, also after somebody has chosen another context."""
    monkeypatch.chdir(tmp_path)
    there = Client(Place(kubeconfig="config")).place
    assert (there.kubeconfig, there.context, there.namespace) == (str(tmp_path / "config"), "here", "ns")
    path = tmp_path / "config"
    path.write_text(path.read_text().replace("current-context: here", "current-context: elsewhere"))
    again = Client(Place.from_dict(json.loads(json.dumps(there.to_dict()))))
    assert again.get("pods", "p")["path"] == "/api/v1/namespaces/ns/pods/p"
    assert server.url == client.url == again.url


def in_a_pod(monkeypatch: pytest.MonkeyPatch, keys: Path, url: str) -> Path:
    """From now on this is a pod of the cluster there; its service account."""
    account = Path(configuration.SERVICE_ACCOUNT)
    account.mkdir()
    for name, text in {"token": "old\n", "ca.crt": (keys / "ca.crt").read_text(), "namespace": "of-the-pod\n"}.items():
        (account / name).write_text(text)
    parts = urlsplit(url)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(parts.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(parts.port))
    return account


def test_a_pod_is_found(monkeypatch: pytest.MonkeyPatch, keys: Path) -> None:
    """In a pod the service account's files tell of the cluster and the namespace."""
    account = in_a_pod(monkeypatch, keys, "https://10.0.0.1:443")
    found = Client(Place())
    assert (found.url, found.namespace) == ("https://10.0.0.1:443", "of-the-pod")
    for broken in ("c", ""):
        (account / "ca.crt").write_text(broken)
        with pytest.raises(SessionManagementError, match=r"^the pod's service account [^\n]*$"):
            Client(Place())
    (account / "ca.crt").unlink()
    with pytest.raises(SessionManagementError, match="service account"):
        Client(Place())


def test_a_pods_token_changes(monkeypatch: pytest.MonkeyPatch, keys: Path, secure: Server) -> None:
    """A new token in the service account's file is taken after a minute, or at once when the old one is refused."""
    account = in_a_pod(monkeypatch, keys, secure.url)
    client = Client(Place())
    client.list("pods")
    (account / "token").write_text("new\n")
    secure.answer = only("new", "bearer")
    client.list("pods")
    assert [asked.headers["authorization"] for asked in secure.asked] == ["bearer old", "bearer old", "bearer new"]
    (account / "token").write_text("newer\n")
    secure.answer = only("newer", "bearer")
    later = datetime.now() + timedelta(seconds=61)  # noqa: DTZ005 - as the official client has it
    clock = SimpleNamespace(datetime=SimpleNamespace(now=lambda: later), timedelta=timedelta)
    monkeypatch.setattr(incluster_config, "datetime", clock)
    client.list("pods")
    assert [asked.headers["authorization"] for asked in secure.asked[3:]] == ["bearer newer"]


def test_no_cluster_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line tells where a cluster was looked for, and what to do."""
    with pytest.raises(
        SessionManagementError, match=r"^no cluster is known: KUBECONFIG .*no pod.*\.kube/config; give [^\n]*$"
    ):
        Client(Place())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(SessionManagementError, match="has no service account"):
        Client(Place())
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/missing")
    with pytest.raises(SessionManagementError, match=r"KUBECONFIG is .*missing.*no such file"):
        Client(Place())
    with pytest.raises(InvalidArgumentError, match="kubeconfig '/nowhere/x'"):
        Client(Place(kubeconfig="/nowhere/x"))


@pytest.mark.parametrize("text", ["", "a: [", "words", "- a", "contexts: 1", "current-context: here", "clusters: [{}]"])
def test_a_file_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    """What is no kubeconfig is refused in one line with its path."""
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=f"^kubeconfig {path}[^\n]*$"):
        Client(Place(kubeconfig=str(path)))


def test_a_context_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A wrong context is answered with the one that was meant."""
    path = write_config(tmp_path / "config", "http://a")
    with pytest.raises(InvalidArgumentError, match=r"no context 'her':.*'here'"):
        Client(Place(kubeconfig=str(path), context="her"))


def test_the_programs_own_configuration_stays(client: Client) -> None:
    """The default configuration of the official client is neither used nor set."""
    default = Configuration(host="http://other")
    Configuration.set_default(default)
    try:
        client.list("pods")
        assert Configuration.get_default_copy().host == "http://other"
    finally:
        Configuration.set_default(None)


# --- TLS --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and a certificate with its key for a server (two names), and for a client "ann"."""
    if not shutil.which("openssl"):
        pytest.skip("keys are made with openssl")
    made = tmp_path_factory.mktemp("keys")

    def openssl(line: str) -> None:
        subprocess.run(["openssl", *line.split()], cwd=made, check=True, capture_output=True, timeout=60)

    (made / "names").write_text("subjectAltName = IP:127.0.0.1, DNS:api.example")
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 2")
    for name, more in {"server": "-extfile names", "ann": ""}.items():
        openssl(f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
        openssl(f"x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 {more} -out {name}.crt")
    openssl("rsa -in ann.key -aes128 -passout pass:secret -out locked.key")
    return made


@pytest.fixture
def secure(server: Server, keys: Path) -> Server:
    """The server behind TLS. It asks for a client's certificate, and takes commands, too."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=keys / "ca.crt")
    tls.load_cert_chain(keys / "server.crt", keys / "server.key")
    tls.verify_mode = ssl.CERT_OPTIONAL
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as API servers
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.url = server.url.replace("http:", "https:")
    server.answer = lambda asked: Peer(asked).end(SUCCESS) if asked.path.endswith("exec") else Reply()
    return server


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where temporary files are made."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    program_ends()


def program_ends() -> None:
    """What the official client does then."""
    kube_config._cleanup_temp_files()  # type: ignore[no-untyped-call] # noqa: SLF001 - it is registered with atexit


def inline(path: Path) -> str:
    """A file as a kubeconfig has it."""
    return base64.b64encode(path.read_bytes()).decode()


def ann(keys: Path, path: Path, url: str) -> Path:
    """A kubeconfig that holds all keys itself."""
    user = {"client-certificate-data": inline(keys / "ann.crt"), "client-key-data": inline(keys / "ann.key")}
    cluster = {"certificate-authority-data": inline(keys / "ca.crt")}
    return write_config(path, url, user=user, cluster=cluster, namespace="ns")


def test_no_secret_stays_in_a_file(secure: Server, keys: Path, tmp_path: Path, temporary: Path) -> None:
    """Keys of the kubeconfig are in no file once they are loaded, nor loaded anew; all connections have them."""
    client = Client(Place(kubeconfig=str(ann(keys, tmp_path / "config", secure.url))))
    assert list(temporary.iterdir()) == []
    program_ends()
    client.list("pods")
    assert client.exec("p", "main", ["true"]) == (0, "")
    secure.answer = in_turn(refused(401, "Unauthorized"), Reply())
    client.list("pods")
    assert list(temporary.iterdir()) == []
    assert [asked.certificate for asked in secure.asked] == ["ann"] * 4
    assert len({asked.handler for asked in secure.asked}) == 3  # connections: one each for the command, and anew


def programs_files(path: Path) -> list[Path]:
    """What the program's own client of this cluster keeps in files; the official client shares them."""
    found = Configuration()
    load: Any = kube_config.load_kube_config
    load(str(path), client_configuration=found)
    return [Path(str(name)) for name in (found.ssl_ca_cert, found.cert_file, found.key_file)]


def test_the_programs_own_files_stay(secure: Server, keys: Path, tmp_path: Path, temporary: Path) -> None:
    """The program's own client of the same cluster keeps its files; those that it has lost, nobody needs."""
    path = ann(keys, tmp_path / "config", secure.url)
    Client(Place(kubeconfig=str(path))).list("pods")
    first = programs_files(path)
    assert [file.exists() for file in first] == [True] * 3
    Client(Place(kubeconfig=str(path))).list("pods")
    assert sorted(temporary.iterdir()) == sorted(first)
    for file in first:
        file.unlink()
    Client(Place(kubeconfig=str(path))).list("pods")
    assert list(temporary.iterdir()) == []
    assert [file.exists() for file in programs_files(path)] == [True] * 3


def test_others_load_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, keys: Path, tmp_path: Path, temporary: Path
) -> None:
    """The program's own client, loaded while there are files of ours, is not handed these."""
    path = ann(keys, tmp_path / "config", "https://127.0.0.1")
    made: Any = configuration._tls  # noqa: SLF001 - the moment at which there are files
    theirs: list[Path] = []

    def meanwhile(found: Any) -> ssl.SSLContext:
        theirs.extend(programs_files(path))
        return made(found)  # type: ignore[no-any-return]

    monkeypatch.setattr(configuration, "_tls", meanwhile)
    Client(Place(kubeconfig=str(path)))
    assert [file.exists() for file in theirs] == [True] * 3
    assert sorted(temporary.iterdir()) == sorted(theirs)


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"certificate-authority": "ca.crt"}, None),
        ({"certificate-authority": "ca.crt", "tls-server-name": "api.example"}, None),
        ({"certificate-authority": "ca.crt", "tls-server-name": "other.example"}, "Hostname mismatch"),
        ({"tls-server-name": "api.example"}, "certificate verify failed"),
        ({"insecure-skip-tls-verify": True}, None),
    ],
)
def test_whom_to_trust(
    secure: Server, keys: Path, tmp_path: Path, cluster: Mapping[str, Any], words: str | None
) -> None:
    """The server's certificate is compared with the authority and the name of the kubeconfig, for commands, too."""
    shutil.copy(keys / "ca.crt", tmp_path)  # relative paths are seen from the kubeconfig
    client = Client(Place(kubeconfig=str(write_config(tmp_path / "config", secure.url, cluster=cluster))))
    for ask in (lambda: client.exec("p", "main", ["true"]), lambda: client.list("pods")):
        if words is None:
            assert ask()
        else:
            with pytest.raises(DrmCommunicationError, match=words):
                ask()
    assert len(secure.asked) == (2 if words is None else 0)


@pytest.mark.parametrize(
    ("key", "words"), [("server.key", "TLS: key values mismatch"), ("locked.key", "TLS: "), ("names", "TLS: ")]
)
def test_a_key_that_is_of_no_use(keys: Path, tmp_path: Path, temporary: Path, key: str, words: str) -> None:
    """A key of another certificate, or behind a password, is refused in one line; nobody is asked for anything."""
    path = ann(keys, tmp_path / "config", "https://127.0.0.1")
    path.write_text(path.read_text().replace(inline(keys / "ann.key"), inline(keys / key)))
    with pytest.raises(InvalidArgumentError, match=rf"^kubeconfig {path} cannot be used: {words}[^\n]*$"):
        Client(Place(kubeconfig=str(path)))
    assert list(temporary.iterdir()) == []


# --- questions --------------------------------------------------------------------------------------------


def test_paths(client: Client, server: Server) -> None:
    """Each kind has the path of its group; what belongs to the cluster, and lists of everything, have no namespace."""
    asks: dict[str, Callable[[], object]] = {
        "GET /api/v1/namespaces/ns/pods/a": lambda: client.get("pods", "a"),
        "GET /apis/batch/v1/namespaces/ns/jobs/a%2Fb": lambda: client.get("jobs", "a/b"),
        "GET /api/v1/nodes": lambda: client.list("nodes"),
        "GET /api/v1/namespaces": lambda: client.list("namespaces"),
        "GET /apis/scheduling.k8s.io/v1/priorityclasses": lambda: client.list("priorityclasses"),
        "GET /apis/batch/v1/jobs": lambda: client.list("jobs", everywhere=True),
        "GET /apis/metrics.k8s.io/v1beta1/nodes": lambda: client.list("metrics.k8s.io/v1beta1/nodes"),
        "GET /apis/metrics.k8s.io/v1beta1/namespaces/ns/pods": lambda: client.list("metrics.k8s.io/v1beta1/pods"),
        "POST /api/v1/namespaces/ns/configmaps": lambda: client.create("configmaps", {"a": 1}),
        "POST /api/v1/namespaces/ns/secrets": lambda: client.create("secrets", {}),
        "PATCH /apis/batch/v1/namespaces/ns/jobs/j": lambda: client.patch("jobs", "j", {"spec": {"suspend": False}}),
        "DELETE /api/v1/namespaces/ns/persistentvolumeclaims/p": lambda: client.delete("persistentvolumeclaims", "p"),
        "DELETE /api/v1/namespaces/ns/events": lambda: client.delete_all("events", "a=b"),
    }
    for expected, ask in asks.items():
        ask()
        assert f"{server.asked[-1].method} {server.asked[-1].path}" == expected
    assert client.requests == len(server.asked) == len(asks)


def test_bodies_and_headers(client: Client, server: Server) -> None:
    """Objects are sent as JSON that may hold nothing unknown, changes as a merge patch, with who asks and by what."""
    client.create("jobs", {"a": "ü"})
    client.patch("jobs", "j", {"b": None})
    first, second = server.asked
    assert (first.query, second.query) == ({"fieldValidation": ["Strict"]}, {})
    assert (first.sent, first.headers["Content-Type"]) == ({"a": "ü"}, "application/json")
    assert (second.sent, second.headers["Content-Type"]) == ({"b": None}, "application/merge-patch+json")
    assert (first.headers["authorization"], first.headers["User-Agent"]) == ("Bearer secret", "wfl-sdk")
    assert "Impersonate-User" not in first.headers


def test_impersonation(server: Server, tmp_path: Path) -> None:
    """A user and groups go along with each request; those of the kubeconfig count where none are given."""
    path = write_config(tmp_path / "config", server.url, user={"token": "t", "as": "bob", "as-groups": ["x"]})
    Client(Place(kubeconfig=str(path), impersonate="ann", impersonate_groups=("a", "b"))).list("pods")
    Client(Place(kubeconfig=str(path))).list("pods")
    first, second = (asked.headers for asked in server.asked)
    assert (first["Impersonate-User"], first.get_all("Impersonate-Group")) == ("ann", ["a", "b"])
    assert (second["Impersonate-User"], second.get_all("Impersonate-Group")) == ("bob", ["x"])


def test_deletion(client: Client, server: Server) -> None:
    """Jobs go with their pods, grace is passed on, and what is not there is no error."""
    assert client.delete("jobs", "j")
    assert client.delete("pods", "p", grace=0)
    client.delete_all("jobs", "a=b", grace=1, fields="metadata.name=x")
    server.answer = in_turn(refused(404, "no"))
    assert not client.delete("jobs", "j")
    queries = [asked.query for asked in server.asked]
    assert queries[:3] == [
        {"propagationPolicy": ["Background"]},
        {"gracePeriodSeconds": ["0"]},
        {
            "labelSelector": ["a=b"],
            "fieldSelector": ["metadata.name=x"],
            "propagationPolicy": ["Background"],
            "gracePeriodSeconds": ["1"],
        },
    ]


def test_nothing_is_removed_without_a_selector(client: Client, server: Server) -> None:
    """A forgotten selector cannot empty a namespace."""
    with pytest.raises(InternalError):
        client.delete_all("jobs", "")
    assert server.asked == []


def test_long_lists_come_in_pages(client: Client, server: Server) -> None:
    """All pages are read, with the selector each time; the version is that of the list."""
    server.answer = in_turn(
        Reply({"metadata": {"continue": "more", "resourceVersion": "7"}, "items": [{"n": 1}]}),
        Reply({"metadata": {"resourceVersion": "7"}, "items": [{"n": 2}]}),
    )
    assert client.list("pods", "a=b", fields="c=d") == ([{"n": 1}, {"n": 2}], "7")
    first, second = (asked.query for asked in server.asked)
    assert first == {"labelSelector": ["a=b"], "fieldSelector": ["c=d"], "limit": ["500"]}
    assert second == {**first, "continue": ["more"]}


def test_a_list_begins_again_when_its_version_is_forgotten(client: Client, server: Server) -> None:
    """410 between two pages: everything is asked for at once, and nothing appears twice."""
    server.answer = in_turn(
        Reply({"metadata": {"continue": "more"}, "items": [{"n": 1}]}),
        refused(410, "expired", "Expired"),
        Reply({"metadata": {"resourceVersion": "9"}, "items": [{"n": 1}, {"n": 2}]}),
    )
    assert client.list("pods", "a=b") == ([{"n": 1}, {"n": 2}], "9")
    assert server.asked[-1].query == {"labelSelector": ["a=b"]}
    server.answer = in_turn(refused(410, "expired", "Expired"))
    with pytest.raises(ExpiredError):
        client.list("pods")


def test_text_that_is_no_unicode_is_refused(client: Client, server: Server) -> None:
    """The name of a file that is no UTF-8 would arrive as another: it is not sent."""
    with pytest.raises(InvalidArgumentError, match=r"\\udc80"):
        client.create("jobs", {"a": "\udc80"})
    assert server.asked == []


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "BadRequest", InvalidArgumentError),
        (404, "NotFound", NotThereError),
        (405, "MethodNotAllowed", DeniedByDrmsError),
        (409, "AlreadyExists", ExistsError),
        (409, "Other", InvalidStateError),
        (410, "Expired", ExpiredError),
        (413, "RequestEntityTooLarge", InvalidArgumentError),
        (422, "Invalid", InvalidArgumentError),
        (429, "TooManyRequests", TryLaterError),
        (500, "InternalError", DrmCommunicationError),
        (503, "ServiceUnavailable", DrmCommunicationError),
        (302, "", DrmCommunicationError),
    ],
)
def test_refusals(client: Client, server: Server, status: int, reason: str, kind: type[WflError]) -> None:
    """Each status is an error of its kind; nothing that was refused for good is asked for again."""
    server.answer = in_turn(refused(status, "why\nnot", reason))
    with pytest.raises(WflError, match=r"why not|HTTP 302") as caught:
        client.create("jobs", {})
    assert type(caught.value) is kind
    assert len(server.asked) == 1


def test_a_missing_right_is_named(client: Client, server: Server) -> None:
    """The error tells verb, resource, namespace and where the rights that are needed are written down."""
    words = 'jobs.batch is forbidden: User "u" cannot create resource "jobs" in API group "batch" in the namespace "ns"'
    server.answer = in_turn(refused(403, words, "Forbidden"))
    with pytest.raises(
        DeniedByDrmsError, match=r"create jobs in namespace 'ns'.*User \"u\".*docs/kubernetes-role\.yaml"
    ):
        client.create("jobs", {})
    with pytest.raises(DeniedByDrmsError, match=r"the cluster.*docs/kubernetes-cluster-role\.yaml"):
        client.list("nodes")


def test_a_quota_keeps_the_servers_words(client: Client, server: Server) -> None:
    """No right is missing where a quota is used up."""
    server.answer = in_turn(refused(403, 'pods "a" is forbidden: exceeded quota: q, requested: pods=1', "Forbidden"))
    with pytest.raises(DeniedByDrmsError, match=r"^pods .* exceeded quota: q, requested: pods=1$"):
        client.create("pods", {})


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"[]", b"", b"\xff"])
def test_what_is_no_api_is_said(client: Client, server: Server, body: bytes) -> None:
    """A 200 with anything but a JSON object is no answer."""
    server.answer = in_turn(Reply(body))
    with pytest.raises(DrmCommunicationError, match=rf"^{server.url}: what answers there is no Kubernetes API"):
        client.get("pods", "a")


def test_version(client: Client, server: Server) -> None:
    """The greeting tells the server's version, or in one line why there is none."""
    server.answer = in_turn(Reply({"gitVersion": "v1.34.4"}))
    assert client.version() == "v1.34.4"
    assert server.asked[0].path == "/version"
    server.answer = in_turn(Reply({"other": 1}))
    with pytest.raises(DrmCommunicationError, match="no Kubernetes API"):
        client.version()


def test_nobody_listens(tmp_path: Path) -> None:
    """Where there is no connection it is certain that nothing was asked for."""
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        client = Client(Place(kubeconfig=str(write_config(tmp_path / "config", url))))
        with pytest.raises(UnsentError, match=rf"^{url}: Connection refused\. `kubectl version` [^\n]*$"):
            client.version()
        with pytest.raises(UnsentError, match="Connection refused"):
            client.create("jobs", {})
        with pytest.raises(UnsentError, match="Connection refused"):
            next(client.log("p"))
        with pytest.raises(UnsentError, match="Connection refused"):
            client.exec("p", "main", ["true"])


def test_only_questions_are_repeated(client: Client, server: Server) -> None:
    """A lost answer is asked for again where nothing changes, and else never: it may have been done."""
    server.answer = in_turn(None, None, Reply({"a": 1}))
    assert client.get("pods", "a") == {"a": 1}
    assert client.requests == 3
    server.answer = in_turn(None)
    for change in (
        lambda: client.create("jobs", {}),
        lambda: client.patch("jobs", "a", {}),
        lambda: client.delete("jobs", "a"),
        lambda: client.delete_all("jobs", "a=b"),
    ):
        server.asked.clear()
        with pytest.raises(DrmCommunicationError, match=r"Remote end closed connection|cut|reset") as caught:
            change()
        assert not isinstance(caught.value, UnsentError)
        assert len(server.asked) == 1


def test_a_silent_server(server: Server, tmp_path: Path) -> None:
    """After the timeout there was no answer; the question is not asked again, as it took all the time there was."""
    free = threading.Event()

    def wait(_: Asked) -> None:
        free.wait(10)

    server.answer = wait
    client = Client(Place(kubeconfig=str(write_config(tmp_path / "config", server.url)), timeout=0.2))
    with pytest.raises(DrmCommunicationError, match="nothing was heard in time"):
        client.get("pods", "a")
    free.set()
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_throttling_is_waited_for(client: Client, server: Server, status: int) -> None:
    """Who is told to come back does, also with a change: it was not carried out."""
    server.answer = in_turn(refused(status, "busy", **{"Retry-After": "0"}), Reply({"a": 1}))
    assert client.create("jobs", {"b": 1}) == {"a": 1}
    assert [asked.sent for asked in server.asked] == [{"b": 1}, {"b": 1}]


def test_throttling_has_an_end(client: Client, server: Server) -> None:
    """A wait that is longer than the timeout is not begun."""
    server.answer = in_turn(refused(429, "busy", **{"Retry-After": "60"}))
    begun = time.monotonic()
    with pytest.raises(TryLaterError, match="busy"):
        client.create("jobs", {})
    assert (len(server.asked), time.monotonic() - begun < 4) == (1, True)


def test_conflicts_with_others_are_tried_again(client: Client, server: Server) -> None:
    """A quota that many change at once refuses some, who only have to ask again; not for ever."""
    conflict = refused(409, "the object has been modified", "Conflict")
    server.answer = in_turn(conflict, conflict, Reply({"a": 1}))
    assert client.create("pods", {}) == {"a": 1}
    server.asked.clear()
    server.answer = in_turn(conflict)
    with pytest.raises(InvalidStateError, match="modified"):
        client.patch("jobs", "a", {})
    assert len(server.asked) == module.CONFLICTS + 1


# --- credentials ------------------------------------------------------------------------------------------


def only(token: str, kind: str = "Bearer") -> Answer:
    """A server that takes this token alone."""

    def answer(asked: Asked) -> Reply:
        if asked.headers["authorization"] == f"{kind} {token}":
            return Reply({"metadata": {"resourceVersion": "1"}, "items": []})
        return refused(401, "Unauthorized")

    return answer


def test_renewed_credentials_are_found(server: Server, tmp_path: Path) -> None:
    """A token that was renewed in its file is taken after the old one was refused, also for a change."""
    token = tmp_path / "token"
    token.write_text("old\n")
    path = write_config(tmp_path / "config", server.url, user={"tokenFile": str(token)})
    client = Client(Place(kubeconfig=str(path)))
    server.answer = only("old")
    client.list("pods")
    token.write_text("new\n")
    server.answer = only("new")
    client.create("jobs", {})
    client.create("jobs", {})
    assert [asked.headers["authorization"] for asked in server.asked[1:]] == ["Bearer old", "Bearer new", "Bearer new"]
    token.write_text("newer\n")
    server.answer = only("newer")
    assert list(client.log("p"))


def test_credentials_that_stay_wrong(client: Client, server: Server, tmp_path: Path) -> None:
    """They are loaded anew once for each request, and then the refusal is told."""
    server.answer = only("other")
    with pytest.raises(DeniedByDrmsError, match=rf"^{server.url}: the credentials were refused \(Unauthorized\)"):
        client.create("jobs", {})
    assert len(server.asked) == 2
    (tmp_path / "config").unlink()
    with pytest.raises(DeniedByDrmsError, match="cannot be loaded anew: kubeconfig"):
        client.list("pods")


@dataclass
class Plugin:
    """A command that makes credentials; it counts its runs."""

    path: Path

    def says(self, **status: str) -> None:
        """From now on; RUN is replaced by the number of the run."""
        said = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
        self.path.with_name("said").write_text(json.dumps(said))
        self._write(f"echo x >> {self._runs}; sed s/RUN/$(wc -l < {self._runs})/ {self.path}-says")
        self.path.with_name("said").rename(f"{self.path}-says")

    def fails(self) -> None:
        """From now on."""
        self._write("echo not logged in >&2; exit 1")

    def _write(self, line: str) -> None:
        self.path.write_text(f"#!/bin/sh\n{line}\n")
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    @property
    def _runs(self) -> Path:
        return self.path.with_name("runs")

    @property
    def runs(self) -> int:
        """So far."""
        return len(self._runs.read_text().split())

    @property
    def user(self) -> Mapping[str, Any]:
        """As a kubeconfig has it."""
        version = "client.authentication.k8s.io/v1"
        return {"exec": {"apiVersion": version, "command": str(self.path), "interactiveMode": "Never"}}


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """One that has nothing to say yet."""
    return Plugin(tmp_path / "plugin")


def test_a_plugin_makes_credentials(server: Server, tmp_path: Path, plugin: Plugin) -> None:
    """A command of the kubeconfig is run when the client is made, and again when its token is refused."""
    plugin.says(token="RUN")  # noqa: S106
    path = write_config(tmp_path / "config", server.url, user=plugin.user)
    client = Client(Place(kubeconfig=str(path)))
    server.answer = only("2")
    client.list("pods")
    client.list("pods")
    assert plugin.runs == 2
    plugin.fails()
    with pytest.raises(SessionManagementError, match=r"plugin' gave no credentials \(.*not logged in\); .*kubectl"):
        Client(Place(kubeconfig=str(path)))
    plugin.says(clientCertificateData="c")
    with pytest.raises(SessionManagementError, match=r"plugin' gave no credentials \(neither a token"):
        Client(Place(kubeconfig=str(path)))


def certificate(keys: Path) -> dict[str, str]:
    """As plugins tell it."""
    return {"clientCertificateData": (keys / "ann.crt").read_text(), "clientKeyData": (keys / "ann.key").read_text()}


def test_a_plugins_token_that_ends_soon(server: Server, keys: Path, tmp_path: Path, plugin: Plugin) -> None:
    """It is made anew before the server refuses it; where that fails, it is used as long as the server takes it."""
    plugin.says(token="RUN", expirationTimestamp="2026-01-01T00:00:00Z", **certificate(keys))  # noqa: S106
    client = Client(Place(kubeconfig=str(write_config(tmp_path / "config", server.url, user=plugin.user))))
    client.get("pods", "p")
    plugin.fails()
    client.get("pods", "p")
    plugin.says(token="RUN", expirationTimestamp="2999-01-01T00:00:00Z", **certificate(keys))  # noqa: S106
    client.get("pods", "p")
    client.get("pods", "p")
    assert [asked.headers["authorization"] for asked in server.asked] == [f"Bearer {run}" for run in (2, 2, 3, 3)]


def test_a_plugin_makes_certificates(
    secure: Server, keys: Path, tmp_path: Path, temporary: Path, plugin: Plugin
) -> None:
    """A certificate and its key count as a token does, and stay in no file either."""
    plugin.says(**certificate(keys))
    cluster = {"certificate-authority": str(keys / "ca.crt")}
    client = Client(Place(kubeconfig=str(write_config(tmp_path / "c", secure.url, user=plugin.user, cluster=cluster))))
    assert list(temporary.iterdir()) == []
    secure.answer = in_turn(refused(401, "Unauthorized"), Reply())
    client.list("pods")
    assert list(temporary.iterdir()) == []
    assert [asked.certificate for asked in secure.asked] == ["ann", "ann"]
    assert plugin.runs == 2


# --- streams ----------------------------------------------------------------------------------------------


def test_a_watch(client: Client, server: Server) -> None:
    """Events come as they are told, however they are cut into pieces; the end is quiet."""
    events = [
        {"type": "ADDED", "object": {"metadata": {"name": "a"}}},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "8"}}},
        {"type": "DELETED", "object": {"metadata": {"name": "a"}}},
    ]
    text = b"".join(as_lines(*events))
    server.answer = in_turn(Reply([text[:10], text[10:50], text[50:]]))
    assert list(client.watch("pods", "a=b", "7")) == [(event["type"], event["object"]) for event in events]
    assert server.asked[0].query == {
        "labelSelector": ["a=b"],
        "resourceVersion": ["7"],
        "watch": ["1"],
        "allowWatchBookmarks": ["true"],
    }


@pytest.mark.parametrize(("code", "kind"), [(410, ExpiredError), (504, ExpiredError), (500, DrmCommunicationError)])
def test_a_watch_that_cannot_go_on(client: Client, server: Server, code: int, kind: type[WflError]) -> None:
    """A version that is forgotten, or not known yet, says to list again; as an event or as the answer."""
    said = {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "why"}}
    server.answer = in_turn(Reply(as_lines({"type": "ADDED", "object": {}}, said)))
    watch = client.watch("pods", "", "7")
    assert next(watch) == ("ADDED", {})
    with pytest.raises(kind, match="why") as caught:
        next(watch)
    assert type(caught.value) is kind
    server.answer = in_turn(refused(code, "why"))
    with pytest.raises(kind, match="why"):
        next(client.watch("pods", "", "7"))


@contextmanager
def endless(first: bytes) -> Iterator[Callable[[], Reply]]:
    """Streams that say one thing, and then nothing, until the end of the test."""
    free = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield first
        free.wait(20)

    try:
        yield lambda: Reply(pieces())
    finally:
        free.set()


def test_a_silent_watch_is_dead(client: Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even a bookmark comes, somebody between has lost the connection."""
    monkeypatch.setattr(module, "SILENCE", 0.2)
    with endless(as_lines({"type": "ADDED", "object": {}})[0]) as reply:
        server.answer = lambda _: reply()
        watch = client.watch("pods", "", "7")
        assert next(watch) == ("ADDED", {})
        with pytest.raises(DrmCommunicationError, match="nothing was heard"):
            next(watch)


def test_a_watch_that_is_cut_is_no_end(client: Client, server: Server) -> None:
    """A server that is killed does not finish its stream, which is told apart from a quiet end."""

    def broken(asked: Asked) -> Iterator[bytes]:
        yield as_lines({"type": "ADDED", "object": {}})[0]
        asked.handler.connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionError

    server.answer = lambda asked: Reply(broken(asked))
    with pytest.raises(DrmCommunicationError, match="cut"):
        list(client.watch("pods", "", "7"))


def test_a_log(client: Client, server: Server) -> None:
    """The output is raw, with times, and asked for from a time on if so wanted."""
    server.answer = in_turn(Reply([b"2026 a\xff\r\n", b"2026 b"]))
    assert b"".join(client.log("p")) == b"2026 a\xff\r\n2026 b"
    list(client.log("p", follow=True, since="2026-01-01T00:00:00Z", container="other"))
    first, second = (asked.query for asked in server.asked)
    assert server.asked[0].path == "/api/v1/namespaces/ns/pods/p/log"
    assert first == {"container": ["main"], "timestamps": ["true"]}
    assert second == {
        "container": ["other"],
        "timestamps": ["true"],
        "sinceTime": ["2026-01-01T00:00:00Z"],
        "follow": ["true"],
    }


def test_a_dead_connection_of_a_log_is_noticed(client: Client, server: Server) -> None:
    """A program may say nothing for days: the system asks whether the other end is there, and gives up in time."""
    expected = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
    asked_for: list[object] = []

    def look(_: object) -> None:
        (stream,) = client._streams  # noqa: SLF001 - the connection itself
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        there = [name for name in expected if hasattr(socket, name)]
        found = {name: stream.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in there}
        assert found == {name: expected[name] for name in there}
        asked_for.append(stream.gettimeout())

    with endless(b"2026 a\n") as reply:
        server.answer = lambda _: reply()
        log = client.log("p", follow=True)
        look(next(log))
        log.close()
    assert asked_for == [None]

    def talk(peer: Peer) -> None:
        peer.send(b"\x01a")
        peer.end(SUCCESS)

    commands(server, talk)
    client.exec("p", "main", ["x"], output=look)
    assert len(asked_for) == 2


def test_a_log_that_is_not_there(client: Client, server: Server) -> None:
    """A container that has not begun is in the wrong state; a pod that is gone is not there."""
    server.answer = in_turn(refused(400, 'container "main" in pod "p" is waiting to start', "BadRequest"))
    with pytest.raises(InvalidStateError, match="waiting to start"):
        next(client.log("p"))
    server.answer = in_turn(refused(404, "gone", "NotFound"))
    with pytest.raises(NotThereError, match="gone"):
        next(client.log("p"))


@pytest.mark.parametrize("end", ["hang_up", "close"])
def test_streams_are_cut(client: Client, server: Server, end: str) -> None:
    """Whoever reads from a stream is told at once that it was cut, even if nothing comes."""
    with endless(b"2026 a\n") as reply:
        server.answer = lambda _: reply()
        log = client.log("p", follow=True)
        assert next(log) == b"2026 a\n"
        threading.Timer(0.1, getattr(client, end)).start()
        with pytest.raises(DrmCommunicationError, match="cut"):
            next(log)
    if end == "close":
        with pytest.raises(DrmCommunicationError, match="were closed"):
            next(client.log("p"))
        with pytest.raises(DrmCommunicationError, match="were closed"):
            client.list("pods")


def test_a_stream_that_is_left_ends_its_connection(client: Client, server: Server) -> None:
    """Closing the generator closes the connection, so that the server stops."""
    gone = threading.Event()

    def pieces(asked: Asked) -> Iterator[bytes]:
        yield b"2026 a\n"
        if asked.handler.connection.recv(1) == b"":
            gone.set()

    server.answer = lambda asked: Reply(pieces(asked))
    log = client.log("p", follow=True)
    assert next(log) == b"2026 a\n"
    log.close()
    assert gone.wait(5)


def test_only_some_requests_at_once(client: Client, server: Server) -> None:
    """However many threads ask, the server is asked by REQUESTS at a time; streams do not count."""
    now, most, lock = 0, 0, threading.Lock()
    full = threading.Barrier(module.REQUESTS)

    def answer(_: Asked) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        full.wait(10)  # each time as many as may come are there
        with lock:
            now -= 1
        return Reply()

    server.answer = answer
    threads = [threading.Thread(target=client.get, args=("pods", "a")) for _ in range(3 * module.REQUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == module.REQUESTS
    assert client.requests == len(server.asked) == 3 * module.REQUESTS


# --- commands in containers -------------------------------------------------------------------------------


class Peer:
    """The server's end of a command's connection."""

    def __init__(self, asked: Asked, protocol: str = "v5.channel.k8s.io") -> None:
        key = asked.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()  # noqa: S324 - RFC 6455
        self._read, self._write = asked.handler.rfile, asked.handler.wfile
        lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
        told = (*lines, f"Sec-WebSocket-Accept: {accept}", f"Sec-WebSocket-Protocol: {protocol}", "", "")
        self._write.write("\r\n".join(told).encode())

    def send(self, data: bytes, code: int = ABNF.OPCODE_BINARY, *, last: bool = True) -> None:
        """One frame."""
        header = bytes((code | (0x80 if last else 0),))
        size = bytes((len(data),)) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2)
        self._write.write(header + size + data)

    def end(self, status: Mapping[str, Any]) -> None:
        """The command's end, and the connection's."""
        self.send(b"\x03" + json.dumps(status).encode())
        self.send(b"", ABNF.OPCODE_CLOSE)

    def receive(self) -> tuple[int, bytes]:
        """One frame: its code and content."""
        code, size = self._read.read(2)
        size &= 0x7F
        if size > 125:
            size = int.from_bytes(self._read.read(2 if size == 126 else 8))
        mask = self._read.read(4)
        data = self._read.read(size)
        return code & 15, bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))


SUCCESS = {"status": "Success"}


def exit_status(status: int) -> dict[str, Any]:
    """What is said of a command that ended otherwise."""
    causes = [{"reason": "ExitCode", "message": str(status)}]
    return {"status": "Failure", "reason": "NonZeroExitCode", "message": "x", "details": {"causes": causes}}


def commands(server: Server, talk: Callable[[Peer], object], protocol: str = "v5.channel.k8s.io") -> None:
    """Every command is one of these conversations."""

    def answer(asked: Asked) -> None:
        talk(Peer(asked, protocol))

    server.answer = answer


def test_a_command(client: Client, server: Server) -> None:
    """Its output comes as it is, in parts; its errors as text; its exit status as a number."""

    def talk(peer: Peer) -> None:
        peer.send(b"\x01")
        peer.send(b"\x01a\0\xff", last=False)
        peer.send(b"b" * 300, ABNF.OPCODE_CONT)
        peer.send(b"ask", ABNF.OPCODE_PING)
        assert peer.receive() == (ABNF.OPCODE_PONG, b"ask")
        peer.send(b"\x02\xffwrong")
        peer.end(exit_status(3))

    commands(server, talk)
    out: list[bytes] = []
    assert client.exec("p", "main", ["a", "b c", ""], output=out.append) == (3, "\ufffdwrong")
    assert b"".join(out) == b"a\0\xff" + b"b" * 300
    asked = server.asked[0]
    assert asked.path == "/api/v1/namespaces/ns/pods/p/exec"
    assert asked.query == {"container": ["main"], "stdout": ["1"], "stderr": ["1"], "command": ["a", "b c", ""]}
    assert asked.headers["authorization"] == "Bearer secret"


def test_input(client: Client, server: Server) -> None:
    """Standard input arrives whole and in order, and is closed; empty parts do not matter."""
    got: list[bytes] = []

    def talk(peer: Peer) -> None:
        while True:
            code, data = peer.receive()
            assert code == ABNF.OPCODE_BINARY
            if data[0] == 255:
                assert data == b"\xff\0"
                break
            got.append(data)
        peer.end(SUCCESS)

    commands(server, talk)
    sent = [os.urandom(100), b"", os.urandom(300_000)]
    assert client.exec("p", "main", ["cat"], input=iter(sent)) == (0, "")
    assert {data[0] for data in got} == {0}
    assert b"".join(data[1:] for data in got) == b"".join(sent)
    assert server.asked[0].query["stdin"] == ["1"]


def test_output_is_read_while_there_is_input(client: Client, server: Server) -> None:
    """A command that writes before it reads on does not hang."""
    piece = b"\x01" + b"x" * 60_000

    def talk(peer: Peer) -> None:
        for _ in range(200):  # 12 MB, of which nothing may be left lying
            peer.send(piece)
        while peer.receive()[1] != b"\xff\0":
            pass
        peer.end(SUCCESS)

    commands(server, talk)
    count = 0

    def output(data: bytes) -> None:
        nonlocal count
        count += len(data)

    assert client.exec("p", "main", ["x"], input=[bytes(100_000)] * 20, output=output, timeout=60) == (0, "")
    assert count == 200 * 60_000


def test_a_server_that_cannot_close_the_input(client: Client, server: Server) -> None:
    """An old server would let the command wait for ever; commands without input are possible."""
    commands(server, lambda peer: peer.end(SUCCESS), "v4.channel.k8s.io")
    assert client.exec("p", "main", ["true"]) == (0, "")
    with pytest.raises(UnsupportedOperationError, match=r"1\.30"):
        client.exec("p", "main", ["cat"], input=[b"a"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ('exec: "nosuch": executable file not found in $PATH: unknown', 127),
        ('exec: "/nosuch": stat /nosuch: no such file or directory: unknown', 127),
        ('exec: "/etc/passwd": permission denied: unknown', 126),
        ('unable to upgrade connection: container not found ("main")', InvalidStateError),
        ("error dialing backend: dial tcp 10.0.0.1:10250: connect: connection refused", DrmCommunicationError),
    ],
)
def test_commands_that_do_not_begin(client: Client, server: Server, words: str, expected: Any) -> None:
    """A missing command is told as a shell does; no container, and no node, are errors."""
    commands(server, lambda peer: peer.end({"status": "Failure", "reason": "InternalError", "message": words}))
    if isinstance(expected, int):
        assert client.exec("p", "main", ["x"]) == (expected, words)
    else:
        with pytest.raises(expected, match=r"container not found|dialing") as caught:
            client.exec("p", "main", ["x"])
        assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidStateError),
        (401, DeniedByDrmsError),
        (403, DeniedByDrmsError),
        (404, NotThereError),
        (500, DrmCommunicationError),
    ],
)
def test_commands_that_are_refused(client: Client, server: Server, status: int, kind: type[WflError]) -> None:
    """The server's own words are told, and credentials are loaded anew for a command, too."""
    server.answer = in_turn(refused(status, "why not"))
    with pytest.raises(kind, match="why not"):
        client.exec("p", "main", ["x"])
    assert len(server.asked) == (2 if status == 401 else 1)


def test_a_command_whose_end_is_not_told(client: Client, server: Server) -> None:
    """A connection that ends without a status says nothing of the command."""
    commands(server, lambda peer: peer.send(b"\x01a"))
    with pytest.raises(DrmCommunicationError, match=server.url):
        client.exec("p", "main", ["x"])
    commands(server, lambda peer: peer.send(b"", ABNF.OPCODE_CLOSE))
    with pytest.raises(DrmCommunicationError, match="broke off"):
        client.exec("p", "main", ["x"])


def test_a_command_that_takes_too_long(client: Client, server: Server) -> None:
    """After `timeout` the connection is closed."""
    commands(server, lambda peer: bool(peer.receive()) and None)
    with pytest.raises(DrmCommunicationError, match=r"longer than 0\.2 s"):
        client.exec("p", "main", ["x"], timeout=0.2)


def test_a_connection_that_is_dead(client: Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent command is asked whether it is there; where no answer comes, it is not."""
    monkeypatch.setattr(command, "PING", 0.1)
    monkeypatch.setattr(command, "SILENCE", 0.5)
    codes: list[int] = []
    done = threading.Event()

    def talk(peer: Peer) -> None:
        codes.extend(peer.receive()[0] for _ in range(2))
        done.wait(10)

    commands(server, talk)
    with pytest.raises(DrmCommunicationError, match="nothing was heard"):
        client.exec("p", "main", ["x"])
    done.set()
    assert codes == [ABNF.OPCODE_PING] * 2


def test_what_the_caller_raises_stays(client: Client, server: Server) -> None:
    """An error in reading the input, or in keeping the output, is the caller's own."""

    def unreadable() -> Iterator[bytes]:
        yield b"a"
        raise PermissionError("mine")

    def full(_: bytes) -> None:
        raise OSError("full")

    commands(server, lambda peer: peer.send(b"\x01a"))
    with pytest.raises(OSError, match="full"):
        client.exec("p", "main", ["x"], output=full)
    commands(server, lambda peer: bool(peer.receive()) and None)
    with pytest.raises(PermissionError, match="mine"):
        client.exec("p", "main", ["x"], input=unreadable())


def test_a_command_is_cut(client: Client, server: Server) -> None:
    """Hanging up ends commands, too."""
    begun = threading.Event()

    def talk(peer: Peer) -> None:
        peer.send(b"\x01a")
        peer.receive()

    commands(server, talk)

    def cut() -> None:
        begun.wait(5)
        client.hang_up()

    threading.Thread(target=cut).start()
    with pytest.raises(DrmCommunicationError, match=server.url):
        client.exec("p", "main", ["x"], output=lambda _: begun.set())
