"""Ending all Jobs of a program: when its session is closed, and in its helper process when it has died."""

from __future__ import annotations

import os
import shutil
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from wfl.contexts.kubernetes import facts
from wfl.contexts.kubernetes.client import REQUESTS, Client, NotThereError
from wfl.contexts.kubernetes.jobs import CANCELLED, KEY, MAKING, SUSPENDED, suspension
from wfl.contexts.kubernetes.settings import Place
from wfl.contexts.undertaker import Undertaker, until_none_is_left
from wfl.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

KILL = 1
"""Seconds of grace for what is killed: less takes a pod off the list while its processes go on."""
REQUEST = 20.0
"""Seconds that the helper waits for one answer."""
PIECE = 50
"""Keys that one selector names: it is part of a URL."""
_T = TypeVar("_T")


def watch(
    where: Place,
    program: str,
    *,
    keep: bool = False,
    place: Path | None = None,
    lost: Callable[[], object] | None = None,
    log: str = os.devnull,
) -> Undertaker:
    """Start the helper for all Jobs of a program; see `Undertaker.start`.

    With `keep` Jobs stay behind, ended, for a program that comes back; the directory `place` never does.
    """
    told = {"where": where.to_dict(), "program": program, "keep": keep, "place": place}
    return Undertaker.start(f"{__name__}:{end_all.__name__}", told, lost=lost, log=log)


def end_all(where: Mapping[str, Any], program: str, *, keep: bool = False, place: str | None = None) -> None:
    """End all Jobs of a program that has died; see `watch`."""
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)

    def attempt() -> tuple[int, bool]:
        with closing(Client(Place.from_dict({**where, "timeout": REQUEST}))) as client:
            return end_program(client, program, keep=keep, end=True), True

    until_none_is_left(attempt, f"Jobs with the label wfl/program={program}")


def end_program(client: Client, program: str, *, keep: bool, end: bool) -> int:
    """End a program's Jobs; how many there were. Without `end`: only those that were never completed.

    Without `keep` they are removed, also those that have ended.
    """
    selector = f"wfl/program={program}"
    found, _ = client.list("jobs", selector)
    if not end:
        unmade = [job["metadata"]["labels"][KEY] for job in found if suspension(job) == MAKING]
        for some in pieces(unmade):
            remove_jobs(client, some)
        return 0
    if keep:
        doomed = [job for job in found if not facts.finished(job) and suspension(job) != CANCELLED]
        cancel(client, {job["metadata"]["labels"][KEY]: job["metadata"]["name"] for job in doomed}, KILL)
        return len(doomed)
    if found:
        remove_all(client, selector)
    return len(found)


def remove_all(client: Client, selector: str) -> None:
    """Remove Jobs with their pods, whatever they do."""
    client.delete_all("pods", selector, grace=KILL)  # first: a Job's end gives them all the time that they have
    client.delete_all("jobs", selector)
    client.delete_all("pods", selector, grace=KILL)


def cancel(client: Client, names: Mapping[str, str], grace: int, *, pods: bool = True) -> None:
    """End these Jobs (names by key): no pod is started any more; they stay as the record of what they were."""
    keys = pieces(list(names))
    wanted = {"spec": {"suspend": True}, "metadata": {"annotations": {SUSPENDED: CANCELLED}}}

    def one(name: str) -> None:
        with suppress(NotThereError):
            client.patch("jobs", name, wanted)

    for again in (False, True):  # a Job that is suspended gives its pods all the time that they have
        for some in keys if pods else ():
            remove_pods(client, some, grace)
        if not again:
            in_threads(one, list(names.values()), REQUESTS, "wfl-kubernetes-cancel")


def remove_pods(client: Client, keys: Sequence[str], grace: int) -> None:
    """End the pods of these Jobs, in one request."""
    client.delete_all("pods", f"{KEY} in ({','.join(keys)})", grace=grace)


def remove_jobs(client: Client, keys: Sequence[str]) -> None:
    """Remove these Jobs with all that belongs to them, in one request."""
    client.delete_all("jobs", f"{KEY} in ({','.join(keys)})")


def pieces(items: list[_T]) -> list[list[_T]]:
    """So many at once that a selector can name them in a URL."""
    return [items[start : start + PIECE] for start in range(0, len(items), PIECE)]
