"""How hosts are logged in to: what a name means by ~/.ssh/config, as the ssh command reads it. Nothing is contacted."""

from __future__ import annotations

import getpass
import glob
import grp
import os
import pwd
import re
import socket
import stat
import subprocess
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from msgspec import structs

from wfl.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

PORT = 22
DEFAULT = "~/.ssh/config"
_DEEP = 16
"""Files that may include one another, as ssh_config(5) has it."""
_JUMPS = 8
_NAME = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@\s/]+)@)?(?:\[(?P<bracketed>[^\]\s]+)\]|(?P<host>[^:@\s/]+))(?::(?P<port>\d+))?"
)
_SPECIAL = (
    re.compile(r"""-|.*['`"\\$;&<>|(){}\0-\x20\x7f]""", re.DOTALL),
    re.compile(r"""-|.*(?:['`";&<>|(){}\0-\x1f\x7f]|\\$)""", re.DOTALL),
)
"""Hosts, and users, whose names ssh refuses: what stands for them in ProxyCommand and Match exec is a shell's."""


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
    revoked: str | None = None  # a file of keys that no host may have
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
    """A configuration file with all that it includes; after the user's usual one, the machine's own."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._files: list[_Lines] = []
        if path is not None:
            self._files = [
                _lines(os.path.expanduser(path), os.path.expanduser("~/.ssh"), guarded=path == DEFAULT),
            ]
            if path == DEFAULT:
                self._files.append(_lines("/etc/ssh/ssh_config", "/etc/ssh", guarded=False))

    def _lookup(self, host: str, user: str | None, port: str | None) -> _Said:
        """What the files say of a host; what was given with its name comes first, in its tokens, too."""
        given = {"user": user, "port": port}
        said = _Said(host, {keyword: [value] for keyword, value in given.items() if value})
        try:
            for said.final in (False, True):
                for lines in self._files:
                    said.read(lines)
                if not said.again:
                    break
        except ValueError as error:
            raise InvalidArgumentError(f"host {host!r}: {self._path} cannot be used: {error}") from error
        return said

    def login(self, name: str, *, key: str | None, known_hosts: str | None, depth: int = 0) -> Login:
        """What one name means."""
        if depth > _JUMPS:
            raise InvalidArgumentError(f"host {name!r}: its ProxyJump leads in a circle: {self._path}")
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidArgumentError(f"host {name!r}: expected [user@]host[:port], [user@][address]:port or a Host")
        given = found["host"] or found["bracketed"]
        for word, special in zip((given, found["user"] or ""), _SPECIAL, strict=True):
            if special.match(word):
                raise InvalidArgumentError(f"host {name!r}: {word!r} has characters that ssh refuses, too")
        said = self._lookup(given, found["user"], found["port"])
        port = _port(name, said.one("port", str(PORT)))
        tokens = said.tokens()
        keys = (key,) if key else tuple(_filled(path, tokens) for path in said.all("identityfile"))
        through = _percent(said.one("proxyjump", "none"), tokens)
        way = [
            self.login(one.strip(), key=key, known_hosts=known_hosts, depth=depth + 1)
            for one in through.split(",")
            if one.strip() and through != "none"
        ]
        command = said.one("proxycommand", "none")
        return Login(
            name=name,
            host=tokens["h"],
            port=port,
            user=tokens["r"],
            keys=tuple(os.path.expanduser(path) for path in keys),
            certificates=tuple(_filled(path, tokens) for path in said.all("certificatefile")),
            known_as=said.one("hostkeyalias") or None,
            known_hosts=_known_hosts(said, known_hosts, tokens),
            revoked=_revoked(said.one("revokedhostkeys", "none"), tokens),
            command=_percent(command, tokens) if command.lower() != "none" else None,
            jumps=(*(way[0].jumps if way else ()), *(structs.replace(one, jumps=()) for one in way)),
            only_these_keys=key is not None or said.one("identitiesonly").lower() == "yes",
            agent=_agent(said.one("identityagent"), tokens),
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


def _percent(text: str, tokens: Mapping[str, str]) -> str:
    return re.sub("%(.)", lambda found: tokens.get(found[1], found[0]), text)


def _filled(path: str, tokens: Mapping[str, str]) -> str:
    """A path with its tokens and variables."""
    text = _percent(path, tokens)
    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], ""), text))


def _agent(said: str, tokens: Mapping[str, str]) -> str | None:
    if said in ("", "SSH_AUTH_SOCK"):
        return None
    if said.startswith("$") and not said.startswith("${"):
        return os.environ.get(said[1:], "none")
    return _filled(said, tokens) or "none"


def _known_hosts(said: _Said, given: str | None, tokens: Mapping[str, str]) -> tuple[str, ...]:
    if given is not None:
        return (os.path.expanduser(given),)
    user = said.all("userknownhostsfile") or ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"]
    system = said.all("globalknownhostsfile") or ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"]
    return tuple(_filled(path, tokens) for path in (*user, *system) if path.lower() != "none")


def _revoked(said: str, tokens: Mapping[str, str]) -> str | None:
    return None if said.lower() == "none" else _filled(said, tokens)


# -- files of configuration --

_Lines: TypeAlias = "list[tuple[str, str, list[_Lines]]]"
"""Keywords in small letters with their values; those of Include with what is in the files."""
_LINE = re.compile(r"(\w+)(?:\s*=\s*|\s+)(.+)")
_SEVERAL = frozenset({"identityfile", "certificatefile"})
"""Keywords of which each line adds a value; of all others the first line counts."""
_COMMANDS = frozenset({"proxycommand", "localcommand", "remotecommand", "knownhostscommand"})
"""Keywords whose values are taken as they stand."""
_WORD = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|\\["'\\ ]|[^\s"'])+)""")
_PART = re.compile(r""""([^"]*)"|'([^']*)'|\\(["'\\ ])""")


def _words(text: str) -> list[str]:
    """What stands in a line, up to a comment. Raises ValueError for a quotation that has no end."""
    found, place = [], 0
    while place < len(text):
        word = _WORD.match(text, place)
        if word is None:
            raise ValueError(f"what is {text!r}?")
        if word[1].startswith("#"):
            break
        found.append(_PART.sub(lambda part: part[1] or part[2] or part[3] or "", word[1]))
        place = word.end()
    return found


def _lines(path: str, place: str, deep: int = 0, *, guarded: bool = True) -> _Lines:
    """Of a file and of those that it includes; of one that is not there, none.

    One that is not named by the caller must not be another user's to write to, as there are commands in it.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            if guarded and _is_open_to_others(os.fstat(file.fileno())):
                raise InvalidArgumentError(
                    f"{path}: others can write to it, or own it, and ssh refuses that: chmod go-w"
                )
            texts = file.read().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidArgumentError(f"{path}: {error.strerror}") from error
    lines: _Lines = []
    for text in texts:
        if not (line := text.strip()) or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        keyword, value = (found[1].lower(), found[2]) if found else (line, "")
        files: list[_Lines] = []
        if keyword == "include" and deep < _DEEP:
            try:
                patterns = _words(value)
            except ValueError as error:
                raise InvalidArgumentError(f"{path}: {error}") from error
            for pattern in patterns:
                paths = sorted(glob.glob(os.path.join(place, os.path.expanduser(pattern))))
                files += [_lines(one, place, deep + 1) for one in paths]
        lines.append((keyword, value, files))
    return lines


def _is_open_to_others(found: os.stat_result) -> bool:
    """As ssh has it where each user has a group of his own, which may write, too."""
    if found.st_uid not in (0, os.getuid()) or found.st_mode & stat.S_IWOTH:
        return True
    if not found.st_mode & stat.S_IWGRP:
        return False
    try:
        group, owner = grp.getgrgid(found.st_gid), pwd.getpwuid(found.st_uid)
    except KeyError:
        return True
    return group.gr_name != owner.pw_name or not {owner.pw_name}.issuperset(group.gr_mem)


class _Said:
    """What files say of one host, as far as they are read. Raises ValueError for what cannot be understood."""

    def __init__(self, host: str, values: dict[str, list[str]]) -> None:
        self._host, self._values = host, values
        self.final = self.again = False
        """Whether this is the last time that they are read, and whether there is to be another (Match final)."""

    def one(self, keyword: str, default: str = "") -> str:
        """The value of a keyword."""
        return " ".join(self._values.get(keyword, [default]))

    def all(self, keyword: str) -> list[str]:
        """Its values."""
        return self._values.get(keyword, [])

    def tokens(self) -> dict[str, str]:
        """What stands for what in values."""
        own, here = getpass.getuser(), socket.gethostname()
        return {
            "%": "%",
            "d": os.path.expanduser("~"),
            "h": _percent(self.one("hostname", self._host), {"h": self._host, "%": "%"}),
            "L": here.partition(".")[0],
            "l": here,
            "n": self._host,
            "p": self.one("port", str(PORT)),
            "r": self.one("user", own),
            "u": own,
        }

    def read(self, lines: _Lines, *, holds: bool = True) -> None:
        """Take in a file, or where it does not hold for this host, nothing of it, whatever it says itself."""
        here = holds
        for keyword, value, files in lines:
            if not value:
                raise ValueError(f"what is {keyword!r}?")
            if keyword == "host":
                here = holds and _one_of(_words(value), self._host)
            elif keyword == "match":
                here = holds and self._matches(_words(value))
            elif not here:
                continue
            elif keyword == "include":
                for one in files:
                    self.read(one)
            else:
                self._take(keyword, [value] if keyword in _COMMANDS else _words(value))

    def _take(self, keyword: str, words: list[str]) -> None:
        if not words:
            raise ValueError(f"what is {keyword!r}?")
        if keyword in _SEVERAL:
            known, one = self._values.setdefault(keyword, []), " ".join(words)
            known += [one] if one not in known else []
        elif keyword not in self._values and keyword != self._settled():
            self._values[keyword] = words

    def _settled(self) -> str | None:
        """Which of the two ways to a host is no more to be had; that there is no jump says nothing of a command."""
        if "proxycommand" in self._values:
            return "proxyjump"
        return "proxycommand" if self.one("proxyjump", "none") != "none" else None

    def _matches(self, words: list[str]) -> bool:
        """A line of Match; one by anything that is not known here does not hold."""
        while words:
            word = words.pop(0)
            kind = word.removeprefix("!").lower()
            argument = "" if kind in ("all", "canonical", "final") else words.pop(0) if words else None
            if argument is None:
                raise ValueError(f"what does Match {word} mean?")
            fits = self._fits(kind, argument)
            if fits is None or fits is word.startswith("!"):
                return False
        return True

    def _fits(self, kind: str, argument: str) -> bool | None:
        tokens = self.tokens()
        if kind == "final":
            self.again = True
        elif kind == "exec":  # by the shell of whoever asks, as ssh does
            command = [os.environ.get("SHELL") or "/bin/sh", "-c", _percent(argument, tokens)]
            null = subprocess.DEVNULL
            return subprocess.run(command, stdin=null, stdout=null, check=False).returncode == 0
        known = {"host": tokens["h"], "originalhost": self._host, "user": tokens["r"], "localuser": tokens["u"]}
        if kind in known:
            return _one_of(argument.split(","), known[kind])
        return {"all": True, "canonical": False, "final": self.final}.get(kind)


def _one_of(patterns: list[str], text: str) -> bool:
    """Whether one of them matches, and none of those with a `!`."""
    found = [not pattern.startswith("!") for pattern in patterns if matches(pattern.removeprefix("!"), text)]
    return bool(found) and all(found)


def matches(pattern: str, text: str) -> bool:
    """By `*` and `?`, as in all files of ssh."""
    known = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(known, text, re.DOTALL) is not None
