"""Who may use the server: named identities with tokens, a password, certificates; only hashes of secrets are kept.

They are in one file, which is written by commands (`python -m wfl.server token create NAME`) and read again by a
running server when it has changed. Nothing here knows of jobs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec import Struct, field

from wfl.errors import InvalidArgumentError, SessionManagementError, nearest
from wfl.server.limits import ServerLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("wfl.server")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
"""What an identity may be called."""
_TOKEN = re.compile(r"wfl_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_MINUTE = 60
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
LOOK = 1.0
"""Seconds between two looks whether the file has changed: a token that was revoked works no longer than that."""
REMEMBERED = 300.0
"""Seconds for which a password that was right is not computed again."""
LONGEST = 1024
"""Characters of a password; more is not computed."""
_COST = {"n": 1 << 14, "r": 8, "p": 1, "maxmem": 64 << 20}
"""Of scrypt: 16 MiB and some 50 ms each."""
_AT_ONCE = 2
_MOST, _MOST_EACH = 16, 4
"""Passwords that are being computed or wait for it: in all, and of one address. Each holds a connection meanwhile."""


class Identity(Struct, frozen=True):
    """Who sent a request, and by which secret that is known: `credential` names it, and is none itself."""

    name: str
    admin: bool = False
    credential: str = ""


class Credentials(Struct, frozen=True):
    """What a request brings along: the Authorization header as it came, and its certificate's fingerprint."""

    authorization: str | None = None
    certificate: str | None = None
    address: str = ""


class Guardian(Protocol):
    """Tells who sent a request."""

    async def identify(self, credentials: Credentials) -> Identity | None:
        """The identity, or None where what was brought along is not good enough."""

    def still(self, identity: Identity) -> bool:
        """Whether that is still so, for a connection that stays open."""


class Anybody:
    """No authentication: everybody is the same identity, which is no administrator."""

    async def identify(self, credentials: Credentials) -> Identity | None:  # noqa: ARG002 - whoever it is
        """That identity."""
        return Identity("anybody")

    def still(self, identity: Identity) -> bool:  # noqa: ARG002 - whoever it is
        """Always."""
        return True


class Token(Struct, forbid_unknown_fields=True):
    """One token: `hash` is SHA-256 of its secret part, times are ISO 8601 in UTC."""

    id: str
    hash: str
    created: str
    expires: str | None = None


class Entry(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One identity in the file; `password` is "scrypt$salt$hash", certificates are SHA-256 of their DER form."""

    name: str
    admin: bool = False
    tokens: list[Token] = field(default_factory=list)
    password: str | None = None
    certificates: list[str] = field(default_factory=list)


class _File(Struct, forbid_unknown_fields=True):
    identities: list[Entry] = field(default_factory=list)


class TooManyError(Exception):
    """Too many passwords; `seconds` is when to come again."""

    def __init__(self, words: str, seconds: int) -> None:
        super().__init__(words)
        self.seconds = seconds


class Identities:
    """The identities in a file.

    passwords: how many wrong ones a name may have tried in a minute from one address; a server says it (ServerLimits).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.passwords = ServerLimits().passwords
        self._broken = False
        self._seen: tuple[int, int, int] | None = None
        self._looked = -LOOK
        self._entries: dict[str, Entry] = {}
        self._tokens: dict[str, tuple[Entry, Token]] = {}
        self._certificates: dict[str, Entry] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, "wfl-server-passwords")
        self._computing: dict[tuple[bytes, str | None], tuple[str, asyncio.Future[bool]]] = {}
        self._right: dict[bytes, tuple[float, str]] = {}
        self._wrong: dict[tuple[str, str], list[float]] = {}
        self._salt = os.urandom(32)
        self._read()

    # -- who is it? --

    async def identify(self, credentials: Credentials) -> Identity | None:
        """By the Authorization header; only without one by the certificate. Raises TooManyError.

        Raises SessionManagementError while the file cannot be read.
        """
        self._look()
        if self._broken:
            raise SessionManagementError("who may use this server cannot be read now; its log says why")
        given = credentials.authorization
        if given is None:
            return self._by_certificate(credentials.certificate)
        scheme, _, rest = given.partition(" ")
        if scheme.lower() == "bearer":
            return self._by_token(rest.strip())
        if scheme.lower() == "basic":
            return await self._by_password(rest.strip(), credentials.address)
        return None

    def still(self, identity: Identity) -> bool:
        """Whether the secret that an identity was known by is still good, and it is what it was."""
        self._look()
        if self._broken:
            return False
        kind, _, id = identity.credential.partition(":")
        entry = self._entries.get(identity.name)
        if entry is None or entry.admin != identity.admin:
            return False
        if kind == "token":
            return id in self._tokens and not _is_over(self._tokens[id][1])
        if kind == "certificate":
            return id in entry.certificates
        return entry.password is not None and _digest(entry.password) == id

    def _by_certificate(self, fingerprint: str | None) -> Identity | None:
        entry = self._certificates.get(fingerprint) if fingerprint else None
        return None if entry is None else Identity(entry.name, entry.admin, f"certificate:{fingerprint}")

    def _by_token(self, text: str) -> Identity | None:
        form = _TOKEN.fullmatch(text)
        if form is None:
            return None
        entry, token = self._tokens.get(form[1], (None, _NO_TOKEN))  # what is unknown takes as long
        right = hmac.compare_digest(_digest(form[2]), token.hash)
        if not right or entry is None or _is_over(token):
            return None
        return Identity(entry.name, entry.admin, f"token:{token.id}")

    async def _by_password(self, text: str, address: str) -> Identity | None:
        try:
            name, mark, password = base64.b64decode(text, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        if not mark or len(password) > LONGEST:
            return None
        entry = self._entries.get(name)
        kept = entry.password if entry is not None and entry.password is not None else None
        proof = hmac.digest(self._salt, f"{name}:{password}".encode(), "sha256")
        until, was = self._right.get(proof, (0.0, ""))
        if kept is None or time.monotonic() > until or not hmac.compare_digest(was, kept):
            if (proof, kept) not in self._computing:  # else it is the same once more
                try_ = self._check_tries(name, address)
                computing = asyncio.ensure_future(self._is_right(password, kept, (name, address), try_))
                self._computing[proof, kept] = address, computing
                computing.add_done_callback(lambda _: self._computing.pop((proof, kept)))
            if not await asyncio.shield(self._computing[proof, kept][1]):
                return None
            self._remember(proof, kept or "")
        if entry is None or kept is None:
            return None
        return Identity(entry.name, entry.admin, f"password:{_digest(kept)}")

    async def _is_right(self, password: str, kept: str | None, whose: tuple[str, str], try_: float) -> bool:
        """A name that is not there, or has no password, takes as long as one that has."""
        found = asyncio.get_running_loop().run_in_executor(self._threads, _fits, password, kept or _NO_PASSWORD)
        right = await found and kept is not None
        if right and try_ in (tries := self._wrong.get(whose, [])):
            tries.remove(try_)
        return right

    def _remember(self, proof: bytes, kept: str) -> None:
        now = time.monotonic()
        self._right = {key: value for key, value in self._right.items() if value[0] > now}
        self._right[proof] = (now + REMEMBERED, kept)

    def _check_tries(self, name: str, address: str) -> float:
        """One more, which counts as wrong until it is known to be right: others may come meanwhile."""
        now = time.monotonic()
        addresses = [whose for whose, _ in self._computing.values()]
        if len(addresses) >= _MOST or addresses.count(address) >= _MOST_EACH:
            raise TooManyError("too many passwords at a time", 1)
        self._wrong = {
            key: left for key, tries in self._wrong.items() if (left := [t for t in tries if now - t < _MINUTE])
        }
        tries = self._wrong.setdefault((name, address), [])
        if len(tries) >= self.passwords:
            raise TooManyError("too many wrong passwords; wait a minute", _MINUTE)
        tries.append(now)
        return now

    # -- the file --

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK:
            self._looked = now
            try:
                self._read()
                self._broken = False
            except (OSError, SessionManagementError) as error:
                if not self._broken:
                    log.error("nobody is let in: %s", error)  # noqa: TRY400 - the words say all
                self._broken, self._seen = True, None

    def _read(self) -> None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self._seen = None
            self._take(_File())
            return
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen != self._seen:
            self._take(_read(self.path))
            self._seen = seen

    def _take(self, file: _File) -> None:
        self._entries = {entry.name: entry for entry in file.identities}
        self._tokens = {token.id: (entry, token) for entry in file.identities for token in entry.tokens}
        self._certificates = {print_: entry for entry in file.identities for print_ in entry.certificates}

    @property
    def empty(self) -> bool:
        """Whether nobody is in it."""
        self._look()
        return not self._entries

    def entries(self) -> list[Entry]:
        """All that are in it now."""
        self._read()
        return [*self._entries.values()]

    # -- commands --

    def create_token(self, name: str, *, admin: bool | None = None, lifetime: timedelta | None = None) -> str:
        """A new token of an identity, which is made if it is not there: shown now, and never again."""
        id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        expires = None if lifetime is None else (now + lifetime).isoformat(timespec="seconds")
        with self._changing() as file:
            entry = _entry(file, name, admin=admin)
            entry.tokens.append(Token(id, _digest(secret), now.isoformat(timespec="seconds"), expires))
        return f"wfl_{id}_{secret}"

    def revoke(self, what: str) -> int:
        """Take away the token of this id, or all tokens of the identity of this name; how many there were."""
        with self._changing() as file:
            count = 0
            for entry in file.identities:
                kept = [token for token in entry.tokens if what not in (token.id, entry.name)]
                count += len(entry.tokens) - len(kept)
                entry.tokens = kept
            known = [entry.name for entry in file.identities]
        if not count:
            raise InvalidArgumentError(f"there is no token {what!r}:{nearest(what, known)}")
        return count

    def set_password(self, name: str, password: str | None, *, admin: bool | None = None) -> None:
        """Give an identity a password; None takes it away."""
        if password is not None and not 8 <= len(password) <= LONGEST:  # noqa: PLR2004
            raise InvalidArgumentError(f"a password has 8 to {LONGEST} characters")
        with self._changing() as file:
            entry = _entry(file, name, admin=admin)
            entry.password = None if password is None else _hashed(password)

    def add_certificate(self, name: str, pem: str, *, admin: bool | None = None) -> str:
        """Let the owner of a certificate be this identity; its fingerprint."""
        import ssl

        try:
            fingerprint = fingerprint_of(ssl.PEM_cert_to_DER_cert(pem.strip()))
        except ValueError as error:
            raise InvalidArgumentError(f"this is no certificate in PEM form: {error}") from error
        with self._changing() as file:
            if any(fingerprint in entry.certificates for entry in file.identities):
                raise InvalidArgumentError(f"the certificate {fingerprint} is an identity's already")
            entry = _entry(file, name, admin=admin)
            entry.certificates.append(fingerprint)
        return fingerprint

    def remove(self, name: str) -> None:
        """Take away an identity with all its secrets. Its jobs stay, and are its own should it come again."""
        with self._changing() as file:
            kept = [entry for entry in file.identities if entry.name != name]
            if len(kept) == len(file.identities):
                known = [entry.name for entry in kept]
                raise InvalidArgumentError(f"there is no identity {name!r}:{nearest(name, known)}")
            file.identities = kept

    @contextmanager
    def _changing(self) -> Iterator[_File]:
        """One command at a time; the file is whole at every moment."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = _read(self.path) if self.path.exists() else _File()
            yield file
            beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as written:
                written.write(msgspec.json.format(msgspec.json.encode(file)) + b"\n")
                written.flush()
                os.fsync(written.fileno())
            os.replace(beside, self.path)
        finally:
            os.close(lock)
        self._read()


def fingerprint_of(der: bytes) -> str:
    """What a certificate is known by: SHA-256 of its DER form, in hexadecimal."""
    return hashlib.sha256(der).hexdigest()


def _read(path: Path) -> _File:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        raise SessionManagementError(f"identities {path}: {error}") from error
    names = [entry.name for entry in file.identities]
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            raise SessionManagementError(f"identities {path}: {name!r} is no name, or is there twice")
    for entry in file.identities:
        for print_ in entry.certificates:
            if not _FINGERPRINT.fullmatch(print_):
                raise SessionManagementError(f"identities {path}: {print_!r} is no fingerprint")
    return file


def _entry(file: _File, name: str, *, admin: bool | None) -> Entry:
    """That of a name, made if it is not there, and made an administrator, or none, where that is said."""
    if not NAME.fullmatch(name):
        raise InvalidArgumentError(f"{name!r} is no name: up to 64 letters, digits, '.', '_', '@' and '-'")
    entry = next((one for one in file.identities if one.name == name), None)
    if entry is None:
        entry = Entry(name)
        file.identities.append(entry)
    entry.admin = entry.admin if admin is None else admin
    return entry


def _digest(secret: str) -> str:
    """Of what is random already: 32 bytes are not guessed, so a slow hash would protect nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _hashed(password: str) -> str:
    salt = os.urandom(16)
    return f"scrypt${salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, dklen=32, **_COST).hex()}"


def _fits(password: str, kept: str) -> bool:
    _, salt, expected = kept.split("$")
    found = hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=bytes.fromhex(salt), dklen=32, **_COST)
    return hmac.compare_digest(found.hex(), expected)


def _is_over(token: Token) -> bool:
    return token.expires is not None and datetime.fromisoformat(token.expires) <= datetime.now(UTC)


_NO_TOKEN = Token("", _digest(""), "")
_NO_PASSWORD = f"scrypt${bytes(16).hex()}${bytes(32).hex()}"
