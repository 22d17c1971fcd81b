"""Ending all Jobs of a program: when its session is closed, and in its helper process when it has died."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from wfl.contexts.kubernetes import facts
from wfl.contexts.kubernetes.client import REQUESTS, Client, NotThereError
from wfl.contexts.kubernetes.jobs import CANCELLED, KEY, MAKING, SUSPENDED, suspension
from wfl.contexts.kubernetes.settings import Place
from wfl.contexts.kubernetes.template import OUT
from wfl.contexts.undertaker import Undertaker, until_none_is_left
from wfl.errors import DrmCommunicationError, InvalidStateError, UnsupportedOperationError, WflError
from wfl.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

log = logging.getLogger("wfl")

KILL = 1
"""Seconds of grace for what is killed: less takes a pod off the list while its processes go on."""
REQUEST = 20.0
"""Seconds that the helper waits for one answer."""
UNENDED = "status.phase!=Succeeded,status.phase!=Failed"
"""The pods that are not over; a node says so a second late."""
PIECE = 50
"""Keys that one selector names: it is part of a URL."""
_T = TypeVar("_T")
Object = Mapping[str, Any]


def watch(
    where: Place,
    program: str,
    *,
    keep: bool = False,
    shell: str | None = None,
    place: Path | None = None,
    lost: Callable[[], object] | None = None,
    log: str = os.devnull,
) -> Undertaker:
    """Start the helper for all Jobs of a program; see `Undertaker.start`.

    With `keep` Jobs stay behind, ended, for a program that comes back; the directory `place` never does. `shell` is the
    one in the jobs' images.
    """
    told = {"where": where.to_dict(), "program": program, "keep": keep, "shell": shell, "place": place}
    return Undertaker.start(f"{__name__}:{end_all.__name__}", told, lost=lost, log=log)


def end_all(
    where: Mapping[str, Any], program: str, *, keep: bool = False, shell: str | None = None, place: str | None = None
) -> None:
    """End all Jobs of a program that has died; see `watch`."""
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)

    def attempt() -> tuple[int, bool]:
        with closing(Client(Place.from_dict({**where, "timeout": REQUEST}))) as client:
            return end_program(client, program, keep=keep, end=True, shell=shell), True

    until_none_is_left(attempt, f"Jobs with the label wfl/program={program}")


def end_program(client: Client, program: str, *, keep: bool, end: bool, shell: str | None) -> int:
    """End a program's Jobs; how many there were. Without `end`: only those that were never completed.

    Without `keep` they are removed, also those that have ended. With it, a Job whose pods are all over is let alone,
    though the controller has not said so yet.
    """
    selector = f"wfl/program={program}"
    found, _ = client.list("jobs", selector)
    if not end:
        unmade = [job["metadata"]["labels"][KEY] for job in found if suspension(job) == MAKING]
        for some in pieces(unmade):
            remove_jobs(client, some)
        return 0
    if not found:
        return 0
    pods, _ = client.list("pods", selector, fields="" if keep else "status.phase=Running")
    count = len(found)
    if keep:
        doomed = _unended(found, pods)
        count = len(doomed)
        _end_some(client, doomed, [pod for pod in pods if pod["metadata"]["labels"].get(KEY) in doomed])
    else:
        remove_all(client, selector)
    _kill(client, [pod for pod in pods if not facts.over(pod)], shell)
    return count


def _unended(jobs: Sequence[Object], pods: Sequence[Object]) -> dict[str, str]:
    """The names, by key, of those that are to be ended: all but those of which every element has a pod that is over.

    A pod that the cluster has ended does not count where another will follow it.
    """
    over: dict[str, set[str]] = {}
    alive: set[str] = set()
    again = {job["metadata"]["labels"][KEY] for job in jobs if "podFailurePolicy" in job["spec"]}
    for pod in pods:
        labels = pod["metadata"]["labels"]
        key = labels.get(KEY, "")
        if not facts.over(pod):
            alive.add(key)
        elif key not in again or facts.disruption(pod) is None:
            over.setdefault(key, set()).add(labels.get(facts.INDEX, ""))
    found: dict[str, str] = {}
    for job in jobs:
        key = job["metadata"]["labels"][KEY]
        whole = key not in alive and len(over.get(key, ())) >= job["spec"].get("completions", 1)
        if not (whole or facts.finished(job) or suspension(job) == CANCELLED):
            found[key] = job["metadata"]["name"]
    return found


def _end_some(client: Client, names: Mapping[str, str], pods: Sequence[Object]) -> None:
    """End Jobs, and of their pods only those that are not over: the others have output, and files to be fetched."""
    waiting = [pod for pod in pods if facts.over(pod) and facts.waits(pod, OUT)]
    mixed = {pod["metadata"]["labels"][KEY] for pod in waiting}
    over = [pod for pod in pods if facts.over(pod) and pod["metadata"]["labels"][KEY] not in mixed]
    if any(pod["status"].get("phase") not in ("Succeeded", "Failed") for pod in over):
        time.sleep(facts.LATE)  # it is by their phases that they are spared
    cancel(client, {key: name for key, name in names.items() if key not in mixed}, KILL)
    living = [pod["metadata"] for pod in pods if not facts.over(pod)]
    alone = [told["name"] for told in living if told["labels"][KEY] in mixed]
    in_threads(lambda name: client.delete("pods", name, grace=KILL), alone, REQUESTS, "wfl-kubernetes-cancel")
    cancel(client, {key: name for key, name in names.items() if key in mixed}, KILL, pods=False)


def _kill(client: Client, pods: Sequence[Object], shell: str | None) -> None:
    """Kill what was told to end with much time for that; in no more time than one question may take, or little more."""
    until, silent = time.monotonic() + REQUEST, set[str]()

    def kill(pod: Object) -> None:
        node = pod["spec"].get("nodeName", "")
        if time.monotonic() > until or node in silent:
            return
        try:
            _kill_one(client, pod["metadata"]["name"], shell)
        except DrmCommunicationError:
            silent.add(node)
        except WflError as error:
            log.debug("kubernetes: %s ends when its time is up: %s", pod["metadata"]["name"], error)

    patient = [pod for pod in pods if pod["metadata"].get("deletionGracePeriodSeconds", 0) > KILL]
    in_threads(kill, patient, REQUESTS, "wfl-kubernetes-kill")


def kill_inside(client: Client, pod: str, shell: str | None) -> str | None:
    """Kill what runs by a command: a node that waits for a pod's own end does not hear that it is to wait less.

    Why that was not possible; nothing where there is nothing to kill.
    """
    try:
        _kill_one(client, pod, shell)
    except WflError as error:
        return str(error)
    return None


def _kill_one(client: Client, pod: str, shell: str | None) -> None:
    command = [shell, "-c", "kill -9 -1"] if shell else ["kill", "-9", "-1"]
    with suppress(NotThereError, InvalidStateError):
        status, words = client.exec(pod, facts.MAIN, command, timeout=REQUEST)
        if status in (126, 127):
            raise UnsupportedOperationError(words)


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
    """End the pods of these Jobs, in one request. Those that have ended stay, with their output."""
    client.delete_all("pods", f"{KEY} in ({','.join(keys)})", grace=grace, fields=UNENDED)


def remove_jobs(client: Client, keys: Sequence[str]) -> None:
    """Remove these Jobs with all that belongs to them, in one request."""
    client.delete_all("jobs", f"{KEY} in ({','.join(keys)})")


def pieces(items: list[_T]) -> list[list[_T]]:
    """So many at once that a selector can name them in a URL."""
    return [items[start : start + PIECE] for start in range(0, len(items), PIECE)]
