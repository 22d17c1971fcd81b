"""Ending all jobs of a program that has died: what its helper process does then (see wfl.contexts.undertaker)."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

from wfl.contexts.ssh import attendant
from wfl.contexts.ssh.line import Line, NothingError, Speaks
from wfl.contexts.ssh.login import Login
from wfl.contexts.undertaker import Undertaker, tell, until_none_is_left
from wfl.errors import WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TOGETHER = 16
"""Hosts at once."""
ANSWER = 30.0
"""Seconds that the end of everything on one host may take."""


def watch(
    logins: Sequence[Login],
    speaks: Speaks,
    owner: str,
    *,
    keep: bool,
    lost: Callable[[], object] | None = None,
    log: str = os.devnull,
) -> Undertaker:
    """Start the helper for all jobs of an owner on these hosts; see `Undertaker.start`."""
    told = {
        "logins": msgspec.to_builtins(list(logins)),
        "speaks": msgspec.to_builtins(speaks),
        "owner": owner,
        "keep": keep,
    }
    return Undertaker.start(f"{__name__}:{end_all.__name__}", told, lost=lost, log=log)


def end_all(logins: Sequence[Any], speaks: Mapping[str, Any], owner: str, *, keep: bool) -> None:
    """End all jobs of an owner, on hosts where it has any; see `watch`."""
    left = msgspec.convert(list(logins), list[Login])
    told = msgspec.convert(speaks, Speaks)

    def attempt() -> tuple[int, bool]:
        with ThreadPoolExecutor(TOGETHER) as pool:
            done = list(pool.map(lambda login: _end(login, told, owner, keep=keep), list(left)))
        left[:] = [login for login, ended in zip(left, done, strict=True) if not ended]
        return len(left), False

    until_none_is_left(attempt, f"jobs of {owner}")


def _end(login: Login, speaks: Speaks, owner: str, *, keep: bool) -> bool:
    """Whether nothing of it is left there."""
    try:
        with_line(
            login,
            speaks,
            lambda line: line.ask(
                lambda number: attendant.call("w_close", number, owner, "keep" if keep else "nothing"), timeout=ANSWER
            ),
        )
    except NothingError:
        return True
    except WflError as error:
        tell(f"{login.name}: {error}")
        return False
    return True


def with_line(login: Login, speaks: Speaks, do: Callable[[Line], Any]) -> Any:
    """What `do` gives for a line to a host, on which nothing is made. Raises NothingError where the session is not."""
    ignore: Any = {"tell": _nothing, "back": _nothing, "away": _nothing, "beat": _nothing}
    line = Line(login, speaks, pause=threading.TIMEOUT_MAX, **ignore)
    try:
        line.connected(make=False)
        return do(line)
    finally:
        line.close()


def _nothing(*_: object) -> None:
    """Nobody is told."""


def clean_host(login: Login, speaks: Speaks) -> int:
    """End all jobs of a session on one host, and remove its directory; how many had not ended."""
    try:
        (said,) = with_line(
            login, speaks, lambda line: line.ask(lambda number: attendant.call("w_clean", number), timeout=2 * ANSWER)
        )
    except NothingError:
        return 0
    return int(said.split("\t")[2])
