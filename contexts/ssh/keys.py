"""Keys: a host's, which has to be known beforehand, and ours, one of which it has to accept."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import socket
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import paramiko
import paramiko.agent

from wfl.contexts.ssh.login import PORT, matches
from wfl.errors import DeniedByDrmsError, SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from wfl.contexts.ssh.login import Login

TRIES = 5
"""Keys after which sshd hangs up with the next one (MaxAuthTries of sshd_config(5))."""
_KINDS = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
_USUAL = ("id_rsa", "id_ecdsa", "id_ed25519")
_CERTIFICATE = "-cert.pub"


# -- the host's --


class Known(msgspec.Struct, frozen=True):
    """A key that a file has of a host, and where."""

    kind: str
    blob: bytes
    file: str
    line: int
    revoked: bool


def of(login: Login) -> list[Known]:
    """What is known of a host. A line that means nothing is passed over, as ssh does."""
    found = [] if login.revoked is None else _revoked(login, login.revoked)
    for path in login.known_hosts:
        with suppress(OSError):
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
            found += [one for number, line in enumerate(lines, 1) if (one := _known(line, _name(login), path, number))]
    return found


def _revoked(login: Login, path: str) -> list[Known]:
    """Keys that no host may have. Raises SessionManagementError for a file that cannot be understood, as ssh refuses
    all hosts then.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SessionManagementError(f"{login.name}: RevokedHostKeys {path}: {error.strerror}") from error
    if data.startswith(b"SSHKRL"):
        raise SessionManagementError(
            f"{login.name}: RevokedHostKeys {path} is no list of public keys, but a binary one"
        )
    found = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        kind, _, rest = line.strip().partition(" ")
        with suppress(binascii.Error, ValueError):
            blob = base64.b64decode(rest.split(" ")[0], validate=True)
            found += [Known(kind, blob, path, number, revoked=True)] if blob else []
    return found


def _name(login: Login) -> str:
    """How it is looked for: in small letters; an alias as it stands."""
    host = login.host.lower()
    return login.known_as or (host if login.port == PORT else f"[{host}]:{login.port}")


def _known(line: str, name: str, path: str, number: int) -> Known | None:
    words = line.split()
    mark = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#") or mark not in ("", "@revoked"):  # noqa: PLR2004 - names, kind, key
        return None
    names, kind, text = words[:3]
    try:
        blob = base64.b64decode(text, validate=True)
        if paramiko.Message(blob).get_text() != kind or not _is_for(names, name):
            return None
    except (binascii.Error, ValueError, IndexError, paramiko.SSHException):
        return None
    return Known(kind, blob, path, number, mark == "@revoked")


def _is_for(names: str, name: str) -> bool:
    """Whether these are of the host: patterns, or a hash of its name."""
    if names.startswith("|1|"):
        salt, told = (base64.b64decode(part, validate=True) for part in names[3:].split("|"))
        return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), told)
    patterns = names.lower().split(",")
    found = [not one.startswith("!") for one in patterns if matches(one.removeprefix("!"), name.lower())]
    return bool(found) and all(found)


def check(login: Login, known: Iterable[Known], key: paramiko.PKey) -> None:
    """Raises SessionManagementError for a host whose key is not known."""
    shown, same = fingerprint(key.asbytes()), [one for one in known if one.blob == key.asbytes()]
    for one in same:
        if one.revoked:
            where = f"{one.file}, line {one.line}"
            raise SessionManagementError(f"{login.name}: the key of {_name(login)} is revoked: {shown} ({where})")
    if same:
        return
    for one in known:
        if not one.revoked:
            raise SessionManagementError(
                f"{login.name}: {_name(login)} has another key than is known of it: {shown} and not "
                f"{fingerprint(one.blob)}. Somebody may listen in. Where it was changed for good: "
                f"ssh-keygen -R {_name(login)} -f {one.file}"
            )
    raise SessionManagementError(
        f"{login.name}: the key of {_name(login)} is not known: {key.get_name()} {shown}. Compare it with what the "
        f"host's administrators say, then log in once by `{login.by_hand}`, which asks and adds it to "
        f"{login.known_hosts[0] if login.known_hosts else '~/.ssh/known_hosts'}"
    )


def fingerprint(blob: bytes) -> str:
    """As OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


# -- ours --


def let_in(login: Login, transport: paramiko.Transport, passphrase: str | None) -> None:
    """Show the host one key after another, until it accepts one: those that were named, an agent's, the usual ones.

    Raises DeniedByDrmsError with what came of each; what a lost connection raises is paramiko's.
    """
    named = [path for path in (*login.certificates, *login.keys) if any(map(os.path.exists, (path, _public(path))))]
    if login.only_these_keys and not named:
        raise SessionManagementError(f"{login.name}: there is no key {', '.join(login.keys)}")
    places = [] if login.only_these_keys else [os.path.expanduser(f"~/.ssh/{name}") for name in _USUAL]
    usual = [path for path in places if os.path.isfile(path) and path not in named]
    allowed = {_blob(path) for path in named} if login.only_these_keys else None
    told: dict[str, str] = {}
    shown = 0
    with _agent(login) as held:
        agents = [key for key in held if allowed is None or key.asbytes() in allowed]
        of_agent = ((f"the agent's {fingerprint(key.asbytes())}", key) for key in agents)
        for what, key in chain(_read(named, passphrase, told), of_agent, _read(usual, passphrase, told)):
            problem = _show(login, transport, key, last=shown >= TRIES)
            if problem is None:
                return
            told[what] = problem
            shown += 1
            if not transport.is_active():
                break
    if not told:
        words = f"no key for {login.place}: name one (identity_file=…, IdentityFile), or ssh-add"
    else:
        each = "; ".join(f"{what}: {words}" for what, words in told.items())
        words = f"{login.place} accepts none of the keys, of which one has to be in authorized_keys there: {each}"
    raise DeniedByDrmsError(f"{login.name}: {words}")


def _show(login: Login, transport: paramiko.Transport, key: paramiko.PKey, *, last: bool) -> str | None:
    """Why the host does not let one in by a key, or None. It may hang up with the last."""
    try:
        rest = transport.auth_publickey(login.user, key)
    except paramiko.BadAuthenticationType as error:
        kinds = ", ".join(error.allowed_types)
        raise DeniedByDrmsError(f"{login.name}: {login.place} takes no keys, but {kinds}") from error
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error) or not (last or transport.is_active()):
            raise paramiko.SSHException(f"it was lost while logging in: {error}") from error
        more = "" if transport.is_active() else ", as one too many: name the right one (IdentityFile, IdentitiesOnly)"
        return f"refused{more}"
    return f"accepted, but {', '.join(rest)} is wanted besides" if rest else None


def _read(paths: Iterable[str], passphrase: str | None, told: dict[str, str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """Keys in files, with their names; `told` is why one of them cannot be used."""
    for path in dict.fromkeys(path.removesuffix(_CERTIFICATE) for path in paths):
        try:
            if (key := _load(path, passphrase)) is None:
                told[path] = "it is no private key" + (", or has another passphrase" if passphrase else "")
                continue
            if os.path.isfile(path + _CERTIFICATE):
                with suppress(paramiko.SSHException, ValueError, IndexError, TypeError, OSError):
                    key.load_certificate(path + _CERTIFICATE)
                    yield path + _CERTIFICATE, key
                    key.public_blob = None  # it may have expired, where the key itself is accepted
            yield path, key
        except FileNotFoundError:  # its public part is there
            told[path] = "an agent has to have it (ssh-add)"
        except paramiko.PasswordRequiredException:
            told[path] = "it needs its passphrase: load it into an agent (ssh-add), or give passphrase=…"
        except OSError as error:
            told[path] = f"it cannot be read: {error.strerror}"


def _load(path: str, passphrase: str | None) -> paramiko.PKey | None:
    if path.endswith(".pub"):
        raise FileNotFoundError(path)
    locked: paramiko.PasswordRequiredException | None = None
    for kind in _KINDS:
        try:
            key = kind.from_private_key_file(path, passphrase)
        except paramiko.PasswordRequiredException as error:
            locked = error
        except (paramiko.SSHException, ValueError, IndexError, TypeError):
            continue
        else:
            return key
    if locked is not None:
        raise locked
    return None


def _public(path: str) -> str:
    return path if path.endswith(".pub") else f"{path}.pub"


def _blob(path: str) -> bytes:
    """The public part of a key; a private one of OpenSSH has it unlocked. Nothing where it cannot be seen."""
    with suppress(OSError, ValueError, IndexError):
        return base64.b64decode(Path(_public(path)).read_text(encoding="ascii").split()[1])
    with suppress(OSError, ValueError, IndexError, paramiko.SSHException):
        text = Path(path).read_text(encoding="ascii")
        data = base64.b64decode("".join(text.split("-----")[2].split()))
        message = paramiko.Message(data.removeprefix(b"openssh-key-v1\0"))
        for _ in ("cipher", "kdf", "its options"):
            message.get_binary()
        message.get_int()  # how many there are
        return message.get_binary()
    with suppress(OSError, ValueError, paramiko.SSHException):
        for kind in _KINDS:
            with suppress(paramiko.SSHException):
                return kind.from_private_key_file(path).asbytes()
    return b""


class _Agent(paramiko.agent.AgentSSH):
    """One at a socket: paramiko itself knows that of the environment only."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
            self._connect(self._socket)  # type: ignore[attr-defined] # untyped
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()


@contextmanager
def _agent(login: Login) -> Iterator[Sequence[paramiko.PKey]]:
    """The keys of the agent that the configuration names, if it is there."""
    path = login.agent or os.environ.get("SSH_AUTH_SOCK", "none")
    agent = None
    if path != "none":
        with suppress(OSError, paramiko.SSHException):
            agent = _Agent(path)
    try:
        yield agent.get_keys() if agent is not None else ()
    finally:
        if agent is not None:
            agent.close()
