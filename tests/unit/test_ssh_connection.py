"""Logging in to a host, with its key known beforehand, and why that may not be. Hosts are in this process."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.ssh_server import PATIENCE, Disk, Host, Server, Shell
from wfl.contexts.ssh.connection import CHANNELS, Connection, spoken
from wfl.contexts.ssh.doctor import findings
from wfl.contexts.ssh.keys import fingerprint, let_in
from wfl.contexts.ssh.line import Speaks
from wfl.contexts.ssh.login import Login
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, SessionManagementError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHORT = 0.5  # seconds that a host which says nothing is waited for

KINDS: dict[str, Callable[[], Any]] = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without keys, and no agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path


def write_key(path: Path, kind: str = "ecdsa", passphrase: str | None = None) -> paramiko.PKey:
    """Make a private key, as ssh-keygen does."""
    locked = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    text = KINDS[kind]().private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, locked)
    path.write_bytes(text)
    kinds: dict[str, Any] = {"rsa": paramiko.RSAKey, "ecdsa": paramiko.ECDSAKey, "ed25519": paramiko.Ed25519Key}
    made: paramiko.PKey = kinds[kind].from_private_key_file(str(path), passphrase)
    return made


@pytest.fixture
def key(home: Path) -> paramiko.PKey:
    """The user's, in a file called `key`."""
    return write_key(home / "key")


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Hosts as they are asked for."""
    servers: list[Server] = []

    def serve(host: Host, key: paramiko.PKey | None = None) -> Server:
        servers.append(Server(host, key))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


@pytest.fixture
def server(serve: Callable[..., Server], key: paramiko.PKey, home: Path) -> Server:
    """One with files and commands, which lets the user in and whose key is known."""
    (home / "there").mkdir()
    found = serve(Host(Disk(home / "there"), keys=[key], command=Shell(home / "there")))
    found.known(home / "known_hosts")
    return found


def shown(key: paramiko.PKey) -> str:
    """Its fingerprint."""
    return fingerprint(key.asbytes())


def login(server: Server, home: Path, **more: Any) -> Login:
    """How one logs in to a host."""
    settings: dict[str, Any] = {
        "name": "host",
        "host": "127.0.0.1",
        "port": server.port,
        "user": "ann",
        "keys": (str(home / "key"),),
        "known_hosts": (str(home / "known_hosts"),),
        "only_these_keys": True,
    }
    return Login(**(settings | more))


@contextmanager
def connected(to: Login, **more: Any) -> Iterator[Connection]:
    """A connection, and its end."""
    with closing(Connection(to, **({"timeout": PATIENCE} | more))) as connection:
        yield connection


# --- what works -------------------------------------------------------------------------------------------


def test_commands_and_files(server: Server, home: Path) -> None:
    """Over one connection commands are run, and files are seen."""
    with connected(login(server, home)) as connection:
        alive = [connection.alive]
        assert spoken(connection, "sh", "echo here; pwd\n") == f"here\n{home}/there\n"
        (home / "there/file").touch()
        with connection.files() as client:
            assert client.listdir("/") == ["file"]
    assert [*alive, connection.alive] == [True, False]
    assert server.made == 1
    assert server.host.users == {"ann"}
    with pytest.raises(DrmCommunicationError, match="the connection is lost"):
        connection.command("true")
    connection.close()


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_keys(serve: Callable[..., Server], home: Path, kind: str) -> None:
    """Keys of all kinds, with a passphrase or without, for users and for hosts."""
    user = write_key(home / "key", kind, "open sesame")
    server = serve(Host(None, keys=[user]), write_key(home / "host", kind))
    server.known(home / "known_hosts")
    with connected(login(server, home), passphrase="open sesame") as connection:  # noqa: S106 - of no other key
        assert connection.alive


def test_one_of_several_keys(server: Server, home: Path) -> None:
    """Keys are shown one after the other, and those that are not there are passed over."""
    write_key(home / "other", "ed25519")
    keys = tuple(str(home / name) for name in ("none", "other", "key"))
    with connected(login(server, home, keys=keys)) as connection:
        assert connection.alive
    assert len(server.host.asked) >= 2


def test_usual_keys(serve: Callable[..., Server], home: Path) -> None:
    """Without any of its own a host is shown the keys in ~/.ssh."""
    (home / ".ssh").mkdir()
    server = serve(Host(None, keys=[write_key(home / ".ssh/id_ed25519", "ed25519")]))
    server.known(home / "known_hosts")
    with connected(login(server, home, keys=(), only_these_keys=False)) as connection:
        assert connection.alive


# --- hosts' keys ------------------------------------------------------------------------------------------


def test_an_unknown_host(server: Server, home: Path) -> None:
    """A host whose key nobody has looked at is refused, with its fingerprint and with what to do; no key is shown."""
    to = login(server, home, known_hosts=(str(home / "none"), str(home / "other")))
    with pytest.raises(SessionManagementError) as raised:
        Connection(to, timeout=PATIENCE)
    assert str(raised.value) == (
        f"host: the key of [127.0.0.1]:{server.port} is not known: {server.key.get_name()} {shown(server.key)}. "
        f"Compare it with what the host's administrators say, then log in once by `ssh host`, which asks and adds it "
        f"to {home}/none"
    )
    assert server.key.fingerprint == shown(server.key)
    assert server.host.asked == []


def test_another_key_than_before(server: Server, home: Path) -> None:
    """A host whose key is another one now is refused, with both fingerprints; no key is shown."""
    other = paramiko.ECDSAKey.generate()
    server.known(home / "known_hosts", other)
    with pytest.raises(SessionManagementError) as raised:
        Connection(login(server, home), timeout=PATIENCE)
    words = str(raised.value)
    assert words.startswith("host: ")
    assert f"has another key than is known of it: {shown(server.key)} and not {shown(other)}" in words
    assert "ssh-keygen -R" in words
    assert f"[127.0.0.1]:{server.port}" in words
    assert server.host.asked == []


def known_line(server: Server, names: str) -> str:
    """One of a file of hosts' keys."""
    return f"{names} {server.key.get_name()} {server.key.get_base64()}\n"


def test_forms_of_known_hosts(server: Server, home: Path) -> None:
    """A host is found by its name among others, by the hash of it, by its alias, and in any of the files."""
    place = f"[127.0.0.1]:{server.port}"
    path = home / "known_hosts"
    for names in (f"other,{place}", paramiko.HostKeys.hash_host(place)):
        path.write_text(known_line(server, "other") + known_line(server, names))
        with connected(login(server, home)) as connection:
            assert connection.alive
    path.write_text(known_line(server, "alias"))
    with connected(login(server, home, known_as="alias")) as connection:
        assert connection.alive
    with pytest.raises(SessionManagementError, match="is not known"):
        Connection(login(server, home), timeout=PATIENCE)
    server.known(home / "second")
    with connected(login(server, home, known_hosts=(str(path), str(home / "second")))) as connection:
        assert connection.alive


def test_odd_lines_of_known_hosts(server: Server, home: Path) -> None:
    """Lines that cannot be understood hide nothing of the others."""
    path = server.known(home / "known_hosts")
    good = path.read_text()
    odd = [
        "# a comment",
        "",
        "one",
        "host ssh-unknown AAAA",
        "host ssh-rsa AAAAB",
        "host ssh-ed25519 AAAA",
        "host ssh-ed25519 %%%",
        f"@cert-authority *.example {server.key.get_name()} {server.key.get_base64()}",
    ]
    path.write_text("\n".join(odd) + "\n" + good)
    with connected(login(server, home)) as connection:
        assert connection.alive


def test_several_keys_of_one_host(server: Server, home: Path) -> None:
    """Of several keys of a kind that are known of a host any will do, and patterns may stand for it."""
    path = home / "known_hosts"
    other = server.known(home / "other", write_key(home / "k")).read_text()
    path.write_text(other + known_line(server, "![127.0.0.1]:*,*"))
    with pytest.raises(SessionManagementError, match="has another key"):
        Connection(login(server, home), timeout=PATIENCE)
    path.write_text(other + known_line(server, "!one.example,[127.0.0.?]:*"))
    with connected(login(server, home)) as connection:
        assert connection.alive


def test_names_in_small_letters(server: Server, home: Path) -> None:
    """A name is looked for in small letters, as the hash of it is of these; an alias as it stands."""
    path = home / "known_hosts"
    for names in (paramiko.HostKeys.hash_host(f"[localhost]:{server.port}"), f"[localhost]:{server.port}"):
        path.write_text(known_line(server, names))
        with connected(login(server, home, host="LocalHost")) as connection:
            assert connection.alive
    path.write_text(known_line(server, paramiko.HostKeys.hash_host("Alias")))
    with connected(login(server, home, known_as="Alias")) as connection:
        assert connection.alive


def test_a_list_of_revoked_keys(server: Server, home: Path) -> None:
    """No host may have a key of it; where it cannot be read or understood, no host is trusted."""
    path, shown_key = home / "revoked", f"{server.key.get_name()} {server.key.get_base64()}"
    path.write_text(f"# keys\n\nnonsense\nssh-rsa %%%\n{shown_key} root@old\n")
    with pytest.raises(SessionManagementError, match=re.escape(f"is revoked: {shown(server.key)} ({path}, line 5)")):
        Connection(login(server, home, revoked=str(path)), timeout=PATIENCE)
    for content in (b"SSHKRL\n\0\0\0\0\1", None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SessionManagementError, match=f"^host: RevokedHostKeys {path}"):
            Connection(login(server, home, revoked=str(path)), timeout=PATIENCE)
    path.touch()
    assert server.host.asked == []
    with connected(login(server, home, revoked=str(path))) as connection:
        assert connection.alive


def test_a_revoked_key(server: Server, home: Path) -> None:
    """A host whose key is revoked is refused, though the key is known; no key is shown."""
    path = home / "known_hosts"
    path.write_text(f"{known_line(server, '*')}@revoked {known_line(server, '*')}")
    with pytest.raises(SessionManagementError, match=re.escape(f"is revoked: {shown(server.key)} ({path}, line 2)")):
        Connection(login(server, home), timeout=PATIENCE)
    path.write_text(f"{known_line(server, '*')}@revoked {known_line(server, 'another.example')}")
    assert server.host.asked == []
    with connected(login(server, home)) as connection:
        assert connection.alive


# --- who is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_is_not_accepted(server: Server, home: Path, kind: str) -> None:
    """A host that knows none of the keys refuses, which another attempt would not change."""
    write_key(home / "other", kind)
    with pytest.raises(DeniedByDrmsError, match=f"^host: ann@127.0.0.1:{server.port} accepts none of the keys"):
        Connection(login(server, home, keys=(str(home / "other"),)), timeout=PATIENCE)
    assert len(server.host.asked) == 1


def test_no_key_at_all(server: Server, home: Path) -> None:
    """Without any key it is said how to name one."""
    with pytest.raises(DeniedByDrmsError, match=f"^host: no key for ann@127.0.0.1:{server.port}: name one"):
        Connection(login(server, home, keys=(), only_these_keys=False), timeout=PATIENCE)


def test_a_key_that_is_not_there(server: Server, home: Path) -> None:
    """A key that was asked for and is not there is named."""
    with pytest.raises(SessionManagementError, match=f"^host: there is no key {home}/none$"):
        Connection(login(server, home, keys=(f"{home}/none",)), timeout=PATIENCE)


class Gate:
    """A transport of which the host accepts no certificate."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def is_active(self) -> bool:
        """As ever."""
        return True

    def auth_publickey(self, user: str, key: paramiko.PKey) -> list[str]:
        """A key by itself will do."""
        del user
        self.seen.append(key.public_blob is not None)
        if key.public_blob is not None:
            raise paramiko.AuthenticationException("expired")
        return []


@pytest.mark.parametrize("garbled", [False, True])
def test_a_certificate_that_is_not_accepted(key: paramiko.PKey, home: Path, *, garbled: bool) -> None:
    """Both are shown, the certificate first; one that cannot be read does not hide its key."""
    private = serialization.load_ssh_private_key((home / "key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    made = serialization.SSHCertificateBuilder().public_key(private.public_key()).serial(1).key_id(b"ann")
    made = made.type(serialization.SSHCertificateType.USER).valid_principals([b"ann"]).valid_after(1).valid_before(2)
    text = b"ssh-nonsense %%%" if garbled else made.sign(private).public_bytes()
    (home / "key-cert.pub").write_bytes(text)
    gate = Gate()
    there = Login(name="host", host="host", port=22, user="ann", keys=(str(home / "key"),), only_these_keys=True)
    let_in(there, gate, None)  # type: ignore[arg-type]
    assert gate.seen == ([False] if garbled else [True, False])
    assert key.public_blob is None


def test_too_many_keys(serve: Callable[..., Server], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that hangs up after so many keys has refused them; what to do about it is said."""
    server = serve(Host(None, keys=[]))
    server.known(home / "known_hosts")
    monkeypatch.setattr("wfl.contexts.ssh.keys.TRIES", 2)
    paths = [home / f"key{number}" for number in range(4)]
    for path in paths:
        write_key(path)

    def hang_up() -> None:
        if len(server.host.asked) == 3:
            server.cut()

    server.host.before_auth = hang_up
    with pytest.raises(DeniedByDrmsError, match=f"{paths[2]}: refused, as one too many: name the right one"):
        Connection(login(server, home, keys=tuple(map(str, paths))), timeout=PATIENCE)
    assert len(server.host.asked) == 3


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_a_key_that_is_none(server: Server, home: Path, content: bytes) -> None:
    """A file that has no key in it is no reason to try again."""
    (home / "key").write_bytes(content)
    with pytest.raises(DeniedByDrmsError, match=r"^host: .*/key: it is no private key$"):
        Connection(login(server, home), timeout=PATIENCE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_with_a_passphrase(serve: Callable[..., Server], home: Path, kind: str) -> None:
    """A key that is locked is said to be; a wrong passphrase does not open it."""
    server = serve(Host(None, keys=[write_key(home / "key", kind, "open sesame")]))
    server.known(home / "known_hosts")
    with pytest.raises(DeniedByDrmsError, match=r"^host: .*/key: it needs its passphrase: load it into an agent"):
        Connection(login(server, home), timeout=PATIENCE)
    with pytest.raises(DeniedByDrmsError, match=r"^host: .*/key: it is no private key, or has another") as raised:
        Connection(login(server, home), timeout=PATIENCE, passphrase="open says me")  # noqa: S106 - of no key
    assert "open says me" not in str(raised.value)
    assert server.host.asked == []


def test_no_files(serve: Callable[..., Server], key: paramiko.PKey, home: Path) -> None:
    """A host that offers no SFTP is said to: that is no lost connection."""
    server = serve(Host(None, keys=[key]))
    server.known(home / "known_hosts")
    with connected(login(server, home)) as connection:
        with pytest.raises(DeniedByDrmsError, match=r"^host: it offers no SFTP"), connection.files():
            pass
        assert connection.alive


def test_no_commands(serve: Callable[..., Server], key: paramiko.PKey, home: Path) -> None:
    """A host that runs no commands is named."""
    server = serve(Host(None, keys=[key]))
    server.known(home / "known_hosts")
    with connected(login(server, home)) as connection, pytest.raises(WflError, match=r"^host: "):
        connection.command("true")


def test_no_more_channels(server: Server, home: Path) -> None:
    """A host that opens no further channel refuses, and the others go on."""
    server.host.channels = 1
    with connected(login(server, home)) as connection:
        channel = connection.command("cat")
        with pytest.raises(DeniedByDrmsError, match=r"^host: it refuses"):
            connection.command("true")
        channel.sendall(b"still here\n")
        assert channel.recv(100) == b"still here\n"
        channel.close()


@pytest.mark.parametrize(
    ("most", "words"),
    [
        (3, ["3 channels at once; 5 are used at most, 8 of a cluster's login node: MaxSessions of sshd_config"]),
        (6, ["6 channels at once; 8 are used at most of a cluster's login node: MaxSessions of sshd_config"]),
        (8, []),
    ],
)
def test_what_the_doctor_says_of_channels(server: Server, home: Path, most: int, words: list[str]) -> None:
    """How many a host takes, where that may be too few."""
    server.host.channels = 1 + most  # one for its look by the shell, which is closed then
    speaks = Speaks(session="s", directory=".wfl/ssh", shell="/bin/sh", timeout=PATIENCE)
    found = [line for line in findings(login(server, home), speaks) if "channels" in line]
    assert found == [f"it takes {line}" for line in words]


# --- hosts that are away ----------------------------------------------------------------------------------


def test_nobody_there(serve: Callable[..., Server], key: paramiko.PKey, home: Path) -> None:
    """A port where nobody listens is told as the system does."""
    server = serve(Host(None, keys=[key]))
    server.close()
    place = f"ann@127.0.0.1:{server.port}"
    with pytest.raises(DrmCommunicationError, match=f"^host: {place} cannot be reached: Connection refused$"):
        Connection(login(server, home), timeout=PATIENCE)


def test_a_host_that_says_nothing(server: Server, home: Path) -> None:
    """One that takes a connection and says nothing is not waited for longer than that was said."""
    server.silent = True
    begin = time.monotonic()
    with pytest.raises(DrmCommunicationError, match=r"^host: .* cannot be reached: "):
        Connection(login(server, home), timeout=SHORT)
    assert SHORT * 0.8 <= time.monotonic() - begin < PATIENCE


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 1000])
def test_what_is_no_host(home: Path, key: paramiko.PKey, words: bytes) -> None:
    """What speaks anything else, or hangs up, is told in one line."""
    del key
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(words)

        thread = threading.Thread(target=answer)
        thread.start()
        to = Login(name="host", host="127.0.0.1", port=listener.getsockname()[1], user="ann", keys=(f"{home}/key",))
        with pytest.raises(DrmCommunicationError, match=r"^host: .* cannot be reached: .") as raised:
            Connection(to, timeout=PATIENCE)
        thread.join(PATIENCE)
    assert "\n" not in str(raised.value)


def test_a_connection_that_is_lost_while_logging_in(server: Server, home: Path) -> None:
    """A host that goes away before it has looked at a key has not refused it."""
    server.host.before_auth = server.cut
    with pytest.raises(DrmCommunicationError, match=r"^host: "):
        Connection(login(server, home), timeout=PATIENCE)


def test_a_host_that_does_not_look_at_keys(server: Server, home: Path) -> None:
    """Nor has one that says nothing of a key for too long."""
    hears = threading.Event()
    server.host.before_auth = lambda: hears.wait(PATIENCE)
    with pytest.raises(DrmCommunicationError, match=r"^host: "):
        Connection(login(server, home), timeout=SHORT)
    hears.set()


# --- channels for files -----------------------------------------------------------------------------------


def test_channels_are_used_again(server: Server, home: Path) -> None:
    """A channel for files is opened once, and again only where another is in use."""
    with connected(login(server, home)) as connection:
        server.host.channels = 2
        for _ in range(3):
            with connection.files() as one, connection.files() as two:
                assert one is not two
                assert one.listdir("/") == two.listdir("/") == []


def test_not_too_many_channels(server: Server, home: Path) -> None:
    """Who wants one more than there may be waits until one is free."""
    inside, most, lock = 0, 0, threading.Lock()
    with connected(login(server, home)) as connection:

        def look() -> None:
            nonlocal inside, most
            with connection.files() as client:
                with lock:
                    inside += 1
                    most = max(most, inside)
                client.listdir("/")
                with lock:
                    inside -= 1

        threads = [threading.Thread(target=look) for _ in range(3 * CHANNELS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert 1 <= most <= CHANNELS


def test_a_channel_that_is_never_opened(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that says neither yes nor no is a connection that was lost, and not waited for longer than it may take."""
    silent = threading.Event()
    monkeypatch.setattr(Host, "check_channel_subsystem_request", lambda *_: silent.wait(PATIENCE))
    with connected(login(server, home), timeout=1.0) as connection:
        begin = time.monotonic()
        with pytest.raises(DrmCommunicationError, match=r"^host: .* cannot be reached"), connection.files():
            pass
        assert time.monotonic() - begin < PATIENCE / 2
        silent.set()


def look_at_nothing(client: paramiko.SFTPClient) -> None:
    """Ask something after the end of the channel."""
    channel = client.get_channel()
    assert channel is not None
    channel.close()
    client.stat("/")


def test_a_channel_that_broke_is_not_used_again(server: Server, home: Path) -> None:
    """An answer of the host leaves a channel as it is; one that ended is replaced, over the same connection."""
    with connected(login(server, home)) as connection:
        with pytest.raises(FileNotFoundError), connection.files() as first:
            first.stat("/none")
        with connection.files() as second:
            assert second is first
        with pytest.raises((OSError, EOFError, paramiko.SSHException)), connection.files() as client:
            look_at_nothing(client)
        assert client is first
        with connection.files() as client:
            client.close()  # by another thread
        with connection.files() as third:
            assert third is not first
            assert third is not client
            assert third.listdir("/") == []
    assert server.made == 1


# --- ways -------------------------------------------------------------------------------------------------

LEAD = """
import os, socket, sys, threading
far = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
open(sys.argv[2], "w").write(str(os.getpid()))
def bring():
    while piece := os.read(0, 65536):
        far.sendall(piece)
threading.Thread(target=bring, daemon=True).start()
while piece := far.recv(65536):
    os.write(1, piece)
"""


def test_through_a_command(server: Server, home: Path) -> None:
    """A command that leads to the host is as good as a port, and ends with the connection."""
    (home / "lead.py").write_text(LEAD)
    command = f"{sys.executable} {home}/lead.py {server.port} {home}/pid"
    (home / "known_hosts").write_text(known_line(server, "alias"))
    with connected(login(server, home, port=1, known_as="alias", command=command)) as connection:
        assert spoken(connection, "sh", "echo through\n") == "through\n"
        process = int((home / "pid").read_text())
    assert not Path(f"/proc/{process}").exists()


def test_a_command_that_leads_nowhere(server: Server, home: Path) -> None:
    """One that ends at once is a host that cannot be reached."""
    with pytest.raises(DrmCommunicationError, match=r"^host: .* cannot be reached: "):
        Connection(login(server, home, command="exit 3"), timeout=PATIENCE)


def test_through_another_host(serve: Callable[..., Server], server: Server, key: paramiko.PKey, home: Path) -> None:
    """A host on the way is logged in to first, and what is wrong with it is told by its name."""
    before = serve(Host(None, keys=[key], forward=True))
    jump = login(before, home, name="jump")
    place = home / "known_hosts"
    place.write_text("".join(known_line(one, f"[127.0.0.1]:{one.port}") for one in (before, server)))
    with connected(login(server, home, jumps=(jump,))) as connection:
        assert spoken(connection, "sh", "echo through\n") == "through\n"
        before.cut()
        with pytest.raises(WflError):
            spoken(connection, "sh", "echo through\n")
    stranger = login(before, home, name="jump", keys=(str(home / "other"),))
    write_key(home / "other", "ed25519")
    with pytest.raises(DeniedByDrmsError, match=r"^jump: .* accepts none of the keys"):
        Connection(login(server, home, jumps=(stranger,)), timeout=PATIENCE)
    before.host.forward = False
    with pytest.raises(DeniedByDrmsError, match=r"^host: it refuses"):
        Connection(login(server, home, jumps=(jump,)), timeout=PATIENCE)


# --- agents -----------------------------------------------------------------------------------------------


class Agent:
    """An agent that has one key."""

    def __init__(self, path: Path, key: paramiko.PKey) -> None:
        self.asked = 0
        self._key = key
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        threading.Thread(target=self._serve, name="agent", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            self.asked += 1
            threading.Thread(target=self._answer, args=(sock,), name="agent", daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file:
            while size := file.read(4):
                request = paramiko.Message(file.read(struct.unpack(">I", size)[0]))
                answer = paramiko.Message()
                if request.get_byte() == b"\x0b":  # which keys there are
                    answer.add_byte(b"\x0c")
                    answer.add_int(1)
                    answer.add_string(self._key.asbytes())
                    answer.add_string("one")
                else:  # to sign with one
                    request.get_binary()
                    signed = self._key.sign_ssh_data(request.get_binary())
                    answer.add_byte(b"\x0e")
                    answer.add_string(signed.asbytes())
                sock.sendall(struct.pack(">I", len(answer.asbytes())) + answer.asbytes())

    def close(self) -> None:
        """Nobody is there any more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def agent(home: Path) -> Iterator[Agent]:
    """One whose key is not in a file."""
    agent = Agent(home / "agent", write_key(home / "held", "ed25519"))
    (home / "held").unlink()
    yield agent
    agent.close()


def test_agents(serve: Callable[..., Server], agent: Agent, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent that was named is asked, else that of the environment, which stays as it was; or none at all."""
    server = serve(Host(None, keys=[agent._key]))  # noqa: SLF001 - the test's own
    server.known(home / "known_hosts")
    to = login(server, home, keys=(), only_these_keys=False)
    with pytest.raises(DeniedByDrmsError):
        Connection(to, timeout=PATIENCE)
    with connected(login(server, home, keys=(), only_these_keys=False, agent=f"{home}/agent")) as connection:
        assert connection.alive
    assert "SSH_AUTH_SOCK" not in os.environ
    monkeypatch.setenv("SSH_AUTH_SOCK", f"{home}/agent")
    with connected(to) as connection:
        assert connection.alive
    assert agent.asked == 2
    with pytest.raises(DeniedByDrmsError):
        Connection(login(server, home, keys=(), only_these_keys=False, agent="none"), timeout=PATIENCE)
    with pytest.raises(DeniedByDrmsError):
        Connection(login(server, home, keys=(), only_these_keys=False, agent=f"{home}/nobody"), timeout=PATIENCE)
    assert agent.asked == 2
    write_key(home / "key")
    server.host.asked.clear()
    with pytest.raises(DeniedByDrmsError, match=r"/key: refused$"):
        Connection(login(server, home), timeout=PATIENCE)
    assert len(server.host.asked) == 1, "the agent has no key that was named"


@pytest.mark.parametrize("public", [True, False])
def test_only_named_keys_of_an_agent(serve: Callable[..., Server], home: Path, *, public: bool) -> None:
    """A key that is locked, or of which only the public part is here, is the agent's, which has no others shown."""
    user = write_key(home / "key", "ed25519", "open sesame")
    server = serve(Host(None, keys=[user]))
    server.known(home / "known_hosts")
    if public:
        (home / "key").unlink()
        (home / "key.pub").write_text(f"{user.get_name()} {user.get_base64()} me\n")
    agent = Agent(home / "agent", user)
    try:
        with connected(login(server, home, agent=f"{home}/agent")) as connection:
            assert connection.alive
    finally:
        agent.close()
