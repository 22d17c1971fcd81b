"""How hosts are logged in to: what a name means by ~/.ssh/config, as the ssh command reads it. Nothing is contacted."""

from __future__ import annotations

import getpass
import glob
import os
import re
from typing import TYPE_CHECKING, Any

import msgspec
import paramiko
from msgspec import structs

from wfl.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PORT = 22
DEFAULT = "~/.ssh/config"
_DEEP = 16
"""Files that may include one another, as ssh_config(5) has it."""
_JUMPS = 8
_NAME = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@\s/]+)@)?(?:\[(?P<bracketed>[^\]\s]+)\]|(?P<host>[^:@\s/]+))(?::(?P<port>\d+))?"
)


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """One way to one host. `name` is what the caller calls it; `jumps` are gone through in order."""

    name: str
    host: str
    port: int
    user: str
    keys: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    known_as: str | None = None
    known_hosts: tuple[str, ...] = ()
    command: str | None = None
    jumps: tuple[Login, ...] = ()
    only_these_keys: bool = False
    agent: str | None = None  # a socket; None: SSH_AUTH_SOCK, "none": no agent
    config: str | None = None

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.user}@{self.host}:{self.port}"

    @property
    def by_hand(self) -> str:
        """How a person logs in to it."""
        file = f"-F {self.config} " if self.config not in (None, DEFAULT) else ""
        return f"ssh {file}{f'ssh://{self.name}' if ':' in self.name else self.name}"


def logins(names: tuple[str, ...], config: str | None, *, key: str | None, known_hosts: str | None) -> list[Login]:
    """One for each name: `[user@]host[:port]`, or a Host of the configuration file, which may be None.

    `key` and `known_hosts` come before what that says. Raises InvalidArgumentError.
    """
    book = Book(config)
    return [book.login(name, key=key, known_hosts=known_hosts) for name in names]


class Book:
    """A configuration file with all that it includes, then the machine's own."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._lines: list[str] = []
        if path is not None:
            self._lines = [*_lines(os.path.expanduser(path), os.path.expanduser("~/.ssh"))]
            self._lines += ["Host *", *_lines("/etc/ssh/ssh_config", "/etc/ssh")]

    def _lookup(self, host: str, user: str | None, port: str | None) -> Mapping[str, Any]:
        """What the file says of a host; what was given with its name comes first, in its tokens, too."""
        given = [f"User {user}"] * bool(user) + [f"Port {port}"] * bool(port)
        try:
            return paramiko.SSHConfig.from_text("\n".join(["Host *", *given, "Host *", *self._lines])).lookup(host)
        except (paramiko.SSHException, ImportError, ValueError) as error:
            raise InvalidArgumentError(f"host {host!r}: {self._path} cannot be used: {error}") from error

    def login(self, name: str, *, key: str | None, known_hosts: str | None, depth: int = 0) -> Login:
        """What one name means."""
        if depth > _JUMPS:
            raise InvalidArgumentError(f"host {name!r}: its ProxyJump leads in a circle: {self._path}")
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidArgumentError(f"host {name!r}: expected [user@]host[:port], [user@][address]:port or a Host")
        given = found["host"] or found["bracketed"]
        said = self._lookup(given, found["user"], found["port"])
        host, user = said.get("hostname", given), found["user"] or said.get("user") or getpass.getuser()
        port = _port(name, found["port"] or said.get("port", PORT))
        tokens = {"n": given, "h": host, "p": str(port), "r": user}
        keys = (key,) if key else tuple(said.get("identityfile", ()))
        through = said.get("proxyjump") if said.get("proxyjump", "none") != "none" else None
        way = [
            self.login(one.strip(), key=key, known_hosts=known_hosts, depth=depth + 1)
            for one in (through or "").split(",")
            if one.strip()
        ]
        command = said.get("proxycommand")
        return Login(
            name=name,
            host=host,
            port=port,
            user=user,
            keys=tuple(os.path.expanduser(path) for path in keys),
            certificates=tuple(_filled(path, tokens) for path in _several(said.get("certificatefile"))),
            known_as=said.get("hostkeyalias"),
            known_hosts=_known_hosts(said, known_hosts, tokens),
            command=command if command and command != "none" else None,
            jumps=(*(way[0].jumps if way else ()), *(structs.replace(one, jumps=()) for one in way)),
            only_these_keys=key is not None or said.get("identitiesonly", "no").lower() == "yes",
            agent=_agent(said.get("identityagent"), tokens),
            config=self._path,
        )


def _port(name: str, given: str | int) -> int:
    try:
        port = int(given)
    except ValueError:
        port = 0
    if not 0 < port < 1 << 16:
        raise InvalidArgumentError(f"host {name!r}: its port is {given}")
    return port


def _filled(text: str, tokens: Mapping[str, str]) -> str:
    """A path with its tokens and variables, where paramiko leaves them as they are."""
    known = {"%": "%", "d": os.path.expanduser("~"), "u": getpass.getuser(), **tokens}
    text = re.sub("%(.)", lambda found: known.get(found[1], found[0]), text)
    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], ""), text))


def _agent(said: str | None, tokens: Mapping[str, str]) -> str | None:
    if said is None or said == "SSH_AUTH_SOCK":
        return None
    if said.startswith("$") and not said.startswith("${"):
        return os.environ.get(said[1:], "none")
    return _filled(said, tokens) or "none"


def _known_hosts(said: Mapping[str, Any], given: str | None, tokens: Mapping[str, str]) -> tuple[str, ...]:
    if given is not None:
        return (os.path.expanduser(given),)
    user = said.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")
    system = said.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2")
    return tuple(_filled(path, tokens) for path in f"{user} {system}".split())


def _several(said: str | list[str] | None) -> list[str]:
    return [] if said is None else [said] if isinstance(said, str) else said


def _lines(path: str, place: str, deep: int = 0, block: str = "Host *") -> Iterator[str]:
    """Of a file and of those that it includes, where it does; of one that is not there, none.

    `block` is what its first lines are for. One that is included may be for other hosts from some line on.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidArgumentError(f"{path}: {error.strerror}") from error
    for line in lines:
        word, _, rest = line.strip().replace("=", " ", 1).partition(" ")
        if word.lower() in ("host", "match"):
            block = line
        if word.lower() != "include":
            yield line
        elif deep < _DEEP:
            for pattern in rest.split():
                for one in sorted(glob.glob(os.path.join(place, os.path.expanduser(pattern.strip('"'))))):
                    yield from _lines(one, place, deep + 1, block)
                    yield block
