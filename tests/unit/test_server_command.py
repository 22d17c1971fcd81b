"""The commands of the job server, and the server on real sockets: addresses, TLS, slow clients, signals, restarts."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tests.asgi import API, SESSION, until
from tests.server import PATIENCE, Running, received
from wfl.errors import InvalidArgumentError
from wfl.server import __main__ as command
from wfl.server.serving import Tls, is_loopback, listen


def run(*arguments: object) -> int:
    """Run a command in this process."""
    return command.main([*map(str, arguments)])


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that succeeds prints."""
    assert run(*arguments) == 0
    return capsys.readouterr().out.strip()


# -- identities --


def test_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A token is shown when it is made, and never again; it is listed and revoked by its id."""
    token = printed(capsys, "token", "create", "alice", "--directory", tmp_path, "--admin")
    other = printed(capsys, "token", "create", "bob", "--directory", tmp_path, "--days", "7")
    listed = printed(capsys, "token", "list", "--directory", tmp_path).splitlines()
    assert [line.split(",")[0] for line in listed] == [
        "alice admin", f"  token {token.split('_')[1]}", "bob", f"  token {other.split('_')[1]}",
    ]  # fmt: skip
    assert "expires" in listed[3]
    assert token not in "".join(listed)
    for option, shown in (("--no-admin", "alice"), ("--admin", "alice admin")):
        printed(capsys, "token", "create", "alice", "--directory", tmp_path, option)
        assert printed(capsys, "token", "list", "--directory", tmp_path).splitlines()[0] == shown
    assert printed(capsys, "token", "revoke", "bob", "--directory", tmp_path) == "1 revoked"
    assert run("token", "revoke", "bob", "--directory", tmp_path) == 1
    assert "there is no token 'bob'" in capsys.readouterr().err


def test_passwords_and_certificates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password comes from standard input or is asked for twice; certificates are files; all goes with `remove`."""
    where = ("--directory", tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse\n"))
    assert run("password", "alice", *where) == 0
    certificate = tmp_path / "client.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n")
    assert len(printed(capsys, "certificate", "alice", certificate, *where)) == 64
    assert printed(capsys, "token", "list", *where) == "alice password 1 certificates"
    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    assert run("password", "alice", *where) == 1
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    answers = iter(["first password", "other password", "third password", "third password"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert run("password", "alice", *where) == 1
    assert run("password", "alice", "--admin", *where) == 0
    assert run("password", "alice", "--remove", *where) == 0
    assert run("certificate", "alice", tmp_path / "nothing", *where) == 1
    capsys.readouterr()
    assert printed(capsys, "token", "list", *where) == "alice admin 1 certificates"
    assert run("remove", "alice", *where) == 0
    assert printed(capsys, "token", "list", *where) == ""


# -- what is refused before anything is opened --


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:0"], "--tls-certificate, or --insecure-plaintext"),
        (["--listen", "[::]:0"], "--tls-certificate, or --insecure-plaintext"),
        (["--listen", "192.0.2.1:0", "--insecure-plaintext", "--no-authentication"], "--insecure-anybody"),
        (["--listen", "example.com:0"], "--tls-certificate, or --insecure-plaintext"),
        (["--listen", "localhost"], "expected HOST:PORT"),
        (["--listen", "localhost:99999"], "expected HOST:PORT"),
        (["--tls-key", "x"], "TLS needs --tls-certificate"),
        (["--require-client-certificate", "--tls-certificate", "x"], "--require-client-certificate needs --client-ca"),
        (["--tls-certificate", "/nothing"], "TLS cannot be set up"),
        (["--limit", "bdy=5"], "expected NAME=NUMBER"),
        (["--limit", "body=x"], "expected NAME=NUMBER"),
        (["--limit", "body=0"], "expected more than 0"),
        (["--allow-field", "priorety"], "did you mean 'priority'"),
        (["--base-path", "wfl"], "expected '' or a path"),
        (["--context", "nothing"], "there is no context 'nothing'"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    """An address that others reach needs TLS and identities; what makes no sense is said in one line."""
    run("token", "create", "alice", "--directory", tmp_path)
    capsys.readouterr()
    assert run("serve", "--directory", tmp_path, "--context", "fake", *arguments) == 1
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_nobody_could_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an identity a server would only refuse."""
    assert run("serve", "--directory", tmp_path, "--context", "fake") == 1
    assert "token create NAME" in capsys.readouterr().err


def test_policies_and_limits_of_the_command_line() -> None:
    """What is allowed is added up."""
    options = command._parser().parse_args([  # noqa: SLF001 - what the command makes of its words
        "serve", "--directory", "x", "--allow-command", "train", "--allow-command", "test*",
        "--allow-field", "priority", "--refuse-field", "queue_name",
        "--allow-extension", "user=1000", "--allow-extension", "user=guest*",
        "--allow-extension", "platform", "--limit", "body=10", "--limit", "rate=0.5", "--allow-environment", "LR",
    ])  # fmt: skip
    policy, limits = command._policy(options), command._limits(options.limit)  # noqa: SLF001
    assert policy.commands == ["train", "test*"]
    assert policy.extensions == {"user": ["1000", "guest*"], "platform": None}
    assert "priority" in policy.fields
    assert "queue_name" not in policy.fields
    assert (policy.images, policy.environment) == (None, ["LR"])
    assert (limits.body, limits.rate) == (10, 0.5)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("[::1]", True), ("::1", True),
        (".".join("0000"), False), ("[::]", False), ("192.168.0.1", False), ("localhost.example", False), ("", False),
    ],
)  # fmt: skip
def test_what_only_this_machine_reaches(host: str, expected: bool) -> None:  # noqa: FBT001
    """Loopback, and nothing else."""
    assert is_loopback(host) is expected


def test_an_address_that_is_taken() -> None:
    """It is said."""
    with listen("127.0.0.1", 0) as taken, pytest.raises(InvalidArgumentError, match="cannot listen on 127"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_the_extra_is_named() -> None:
    """Where the packages are missing, the error says how to get them; `import wfl` needs none of them."""
    code = """
import sys
sys.modules["starlette"] = None
import wfl
assert not [name for name in sys.modules if name.startswith("wfl.server")]
try:
    import wfl.server
except wfl.errors.SessionManagementError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "pip install 'wfl-sdk[server]'" in done.stdout


def test_the_command_wfl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`wfl` is installed as a script, does the same, and calls itself so; without the extra it says what to install."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    main = resolve_name(project["scripts"]["wfl"])
    assert main(["token", "create", "alice", "--directory", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("wfl_")
    assert run("token", "list", "--directory", tmp_path) == 0
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    ours = capsys.readouterr().out.partition("usage: ")[2]
    with pytest.raises(SystemExit, match="0"):
        run("serve", "--help")
    assert ours.startswith("wfl serve ")
    assert capsys.readouterr().out.split()[-20:] == ours.split()[-20:]
    lacks = (
        "import sys; sys.modules['uvicorn'] = None; import wfl.__main__ as command; sys.exit(command.main(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", lacks], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the job server needs starlette and uvicorn: pip install 'wfl-sdk[server]'")


# -- on sockets --


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers, which are ended afterwards."""
    made: list[Running] = []

    def start(*arguments: object, **more: str) -> Running:
        made.append(Running(tmp_path / str(len(made)), *arguments, **more))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.end()


def test_a_job_survives_its_server(serve: Callable[..., Running]) -> None:
    """After SIGKILL and a restart the server knows all jobs; what ran goes on, and ends truly."""
    server = serve()
    go = server.directory / "go"
    ended = server.start_job("/bin/sh", "-c", "exit 3", key="ended")
    runs = server.start_job("/bin/sh", "-c", f"while [ ! -e {go} ]; do sleep 0.02; done; echo whole", key="runs")
    until(lambda: server.state(ended) == "failed")
    until(lambda: server.state(runs) == "running")
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    server.start()
    assert server.start_job("/bin/sh", "-c", "exit 3", key="ended") == ended
    assert server.request("GET", f"{API}/jobs/{ended}")[1]["info"]["exitStatus"] == 3
    assert server.state(runs) == "running"
    go.touch()
    until(lambda: server.state(runs) == "done")
    assert server.request("GET", f"{API}/jobs/{runs}/output/stdout") == (200, b"whole\n")


def test_being_told_to_stop(serve: Callable[..., Running]) -> None:
    """SIGTERM ends streams and the server, with status 0; with --end-jobs its jobs, too."""
    server = serve("--end-jobs")
    mark = server.directory / "pid"
    server.start_job("/bin/sh", "-c", f"echo $$ > {mark}.new; mv {mark}.new {mark}; exec sleep 1000")
    until(mark.exists)
    pid = int(mark.read_text())
    stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {server.token}", "Accept": "text/event-stream"}
    stream.request("GET", f"{SESSION}/events", headers=headers)
    answer = stream.getresponse()
    began = time.monotonic()
    assert server.end() == 0
    assert b"event: jobs" in answer.read()
    assert time.monotonic() - began < PATIENCE / 2
    stream.close()
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_connections_that_say_nothing(serve: Callable[..., Running]) -> None:
    """They are closed after a while; where there are too many, the silent ones go first, and others are served."""
    server = serve("--limit", "header_seconds=0.5", "--limit", "connections=20", context="fake")
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) for _ in range(60)]
    assert server.request("GET", "/healthz") == (200, b"ok\n")
    slow = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < PATIENCE:  # a byte now and then does not help
            slow.sendall(b"a")
            time.sleep(0.05)
    assert time.monotonic() - began < PATIENCE
    for one in [*silent, slow]:
        with contextlib.suppress(ConnectionError):
            assert one.recv(1) == b""
        one.close()
    assert server.request("GET", "/healthz") == (200, b"ok\n")


def test_requests_one_after_another(serve: Callable[..., Running]) -> None:
    """A connection that asks again and again is no silent one; each answer comes at once."""
    server = serve("--limit", "header_seconds=0.2", context="fake")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    for pause in (0.0, 0.3, 0.3, 0.0):
        time.sleep(pause)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
    port = connection.sock.getsockname()[1]
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    assert connection.sock.getsockname()[1] == port
    connection.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /api/v1/info HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http(serve: Callable[..., Running], request_: bytes) -> None:
    """It is refused, with a line in the log that tells the address, and the server goes on."""
    server = serve("--limit", "header_seconds=0.2", context="fake")
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(request_)
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(1000)
            assert not answer or int(answer.split(b" ")[1]) in (400, 401, 431), answer
    until(lambda: re.search(r" 127\.0\.0\.1(: what came is no request|: cut off| - )", server.log))
    assert server.request("GET", "/healthz") == (200, b"ok\n")


# -- TLS --


def certificate_of(name: str, directory: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key, as files."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / f"{name}.pem", directory / f"{name}.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    return files


def test_tls_and_client_certificates(
    serve: Callable[..., Running], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It speaks TLS 1.2 or newer with its certificate; a client's own is its identity, without any token."""
    own, key = certificate_of("server", tmp_path)
    client, client_key = certificate_of("client", tmp_path)
    server = serve("--tls-certificate", own, "--tls-key", key, "--client-ca", client, context="fake")
    printed(capsys, "certificate", "bob", client, "--directory", server.directory)
    trusting = ssl.create_default_context(cafile=own)
    status, about = server.request("GET", f"{API}/info", tls=trusting)
    assert (status, about["identity"]["name"]) == (200, "alice")
    server.token = ""
    assert server.request("GET", f"{API}/info", tls=trusting)[0] == 401
    trusting.load_cert_chain(client, client_key)

    def knows() -> bool:  # the file of identities is looked at once a second
        connection = http.client.HTTPSConnection("localhost", server.port, context=trusting, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", f"{API}/info")
            answer = connection.getresponse()
            found = json.loads(answer.read())
            return answer.status == 200 and found["identity"]["name"] == "bob"

    until(knows)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(own)
    with pytest.warns(DeprecationWarning, match="TLS"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError, match=r"."):
        server.request("GET", f"{API}/info", tls=old)


def test_tls_that_is_not_agreed_upon(serve: Callable[..., Running], tmp_path: Path) -> None:
    """Until TLS is agreed upon a connection counts, has as little time as one that does not ask, and is logged."""
    own, key = certificate_of("server", tmp_path)
    bounds = ("--limit", "header_seconds=1", "--limit", "connections=20")
    server = serve("--tls-certificate", own, "--tls-key", key, *bounds, context="fake")
    trusting = ssl.create_default_context(cafile=own)
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE / 2))
            for _ in range(60)
        ]
        assert server.request("GET", "/healthz", tls=trusting) == (200, b"ok\n")
        assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 60
        for one in silent:
            with contextlib.suppress(ConnectionError):
                assert one.recv(1) == b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        received(plain)
    until(lambda: "127.0.0.1: TLS was not agreed upon: [SSL: HTTP_REQUEST]" in server.log)
    assert "Traceback" not in server.log


@pytest.mark.parametrize("options", [("user", "user=1000"), ("user=1000", "user")])
def test_extensions_with_and_without_patterns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    """Both for one extension is refused: which of them is meant nobody knows."""
    words = [word for one in options for word in ("--allow-extension", one)]
    assert run("serve", "--directory", tmp_path, "--no-authentication", *words) == 1
    assert "--allow-extension user is given with a pattern and without one" in capsys.readouterr().err


def test_files_of_tls_that_cannot_be_used(tmp_path: Path) -> None:
    """Which they are is said."""
    own, key = certificate_of("server", tmp_path)
    other, _ = certificate_of("other", tmp_path)
    with pytest.raises(InvalidArgumentError, match="TLS cannot be set up"):
        Tls(certificate=str(other), key=str(key)).context()
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidArgumentError, match="empty"):
        Tls(certificate=str(own), key=str(key), client_authorities=str(tmp_path / "empty")).context()
    made = Tls(certificate=str(own), key=str(key), client_authorities=str(own), required=True).context()
    assert made.verify_mode is ssl.CERT_REQUIRED


def test_nothing_is_left(serve: Callable[..., Running]) -> None:
    """After many requests the server has as many descriptors and threads as after a few."""
    server = serve()

    def held() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{server.process.pid}/fd")), len(os.listdir(f"/proc/{server.process.pid}/task"))

    def use(number: int) -> None:
        ids = [server.start_job("true", key=f"{number} {count}") for count in range(20)]
        until(lambda: all(server.state(id) == "done" for id in ids))
        server.request("POST", f"{SESSION}/reap", {"ids": ids})

    use(0)
    before = held()
    for number in range(1, 4):
        use(number)
    after = held()
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 8
