"""Ending all containers of a program that has died: what its helper process does then (see wfl.contexts.undertaker)."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from wfl.contexts.containers import facts
from wfl.contexts.containers.client import REQUESTS, Client
from wfl.contexts.undertaker import Undertaker, tell, until_none_is_left
from wfl.errors import InvalidStateError, WflError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

REQUEST = 20.0
"""Seconds that one answer is waited for; the daemon itself gives a process 10 to die."""


def watch(
    settings: Mapping[str, Any],
    label: str,
    *,
    keep: bool = False,
    place: Path | None = None,
    lost: Callable[[], object] | None = None,
    log: str = os.devnull,
) -> Undertaker:
    """Start the helper for all containers with a label (NAME=VALUE); see `Undertaker.start`.

    `settings` are the Client's. With `keep` containers that have run stay behind, ended, for a program that comes back;
    the directory `place` never does.
    """
    told = {"settings": {**settings, "auth": None}, "label": label, "keep": keep, "place": place}  # it fetches no image
    return Undertaker.start(f"{__name__}:{end_all.__name__}", told, lost=lost, log=log)


def end_all(settings: Mapping[str, Any], label: str, *, keep: bool = False, place: str | None = None) -> None:
    """End all containers with a label (NAME=VALUE), and remove them with their volumes; see `watch`."""
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)

    def attempt() -> tuple[int, bool]:
        with closing(Client({**settings, "timeout": REQUEST})) as client:
            todo = _unended(client, label, keep=keep)
            with ThreadPoolExecutor(REQUESTS) as pool:
                return len(todo), all(list(pool.map(lambda one: _end(client, one, keep=keep), todo)))

    until_none_is_left(attempt, f"containers with the label {label}")


def _unended(client: Client, label: str, *, keep: bool) -> list[dict[str, Any]]:
    name, _, value = label.partition("=")
    return [one for one in client.list({name: value}) if not (keep and one["State"] in facts.OVER)]


def _end(client: Client, container: Mapping[str, Any], *, keep: bool) -> bool:
    """Whether it has ended."""
    id, state = container["Id"], container["State"]
    try:
        if state == "paused":
            with suppress(WflError):  # it goes on already, or is gone; Docker also kills what is paused
                client.unpause(id)
        if state not in ("created", *facts.OVER):
            with suppress(InvalidStateError):  # it has ended by itself, or is gone
                client.kill(id)
        if state == "created" or not keep:
            client.remove(id)
    except WflError as error:
        tell(f"{id}: {error}")
        return False
    return True
