"""A daemon of containers as it is looked at: itself as a machine, its containers as jobs, its images as categories."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wfl.backend import Monitor
from wfl.contexts import host
from wfl.contexts.containers import facts
from wfl.contexts.containers.client import Client
from wfl.drmaa2 import FrozenDict, JobInfo, MachineInfo, fact

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_NO_NAME = "<none>"


class ContainerMonitor(Monitor):
    """Each call is one or two requests, however many containers there are.

    Jobs are the containers that run, are paused or being restarted, whoever made them. Their list does not tell when
    they were started, nor whose they are: dispatch_time and job_owner are None, submission_time is when they were
    made. extensions: container_id, image, and session where wfl made them.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._client = Client(settings)
        self._name = machine(self._client.info(), self._client.url).name

    def jobs(self, session_name: str | None) -> Sequence[JobInfo]:
        """By one list; a session's by their labels."""
        listed = self._client.list({} if session_name is None else {"wfl.session": session_name})
        return [job(one, self._name) for one in listed if one["State"].lower() in facts.RUNNING]

    def machines(self) -> Sequence[MachineInfo]:
        """The one that the daemon is on."""
        return [machine(self._client.info(), self._client.url)]

    def categories(self) -> Sequence[str]:
        """The names of its images."""
        return images(self._client.images())

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def job(listed: Mapping[str, Any], machine: str) -> JobInfo:
    """A container in the daemon's list; the id of one that is not wfl's is its name."""
    labels = listed.get("Labels") or {}
    name = next((name.removeprefix("/") for name in listed.get("Names") or ()), listed["Id"])
    session = {"session": labels["wfl.session"]} if "wfl.session" in labels else {}
    return fact(
        id=labels.get("wfl.key", name),
        state=facts.RUNNING[listed["State"].lower()],
        allocated_machines=(machine,),
        slots=1,
        submission_time=datetime.fromtimestamp(listed["Created"], UTC),
        extensions=FrozenDict(container_id=listed["Id"], image=listed["Image"], **session),
    )


def machine(told: Mapping[str, Any], url: str) -> MachineInfo:
    """The machine of a daemon, as that tells of it.

    Not told are sockets and threads, by Docker the swap, and the load; that is known where the daemon is on this
    machine: behind a socket of the file system, and of the same host name.
    """
    name, memory, swap = told.get("Name") or socket.gethostname(), told.get("MemTotal"), told.get("SwapTotal")
    here = url.startswith(("unix:", "http+unix:")) and told.get("Name") == socket.gethostname()
    return MachineInfo(
        name=name,
        available=True,
        cores=told.get("NCPU") or None,
        load=host.load() if here else None,
        phys_memory=memory // 1024 if memory else None,
        virt_memory=(memory + swap) // 1024 if memory and swap is not None else None,
        machine_os=host.os_name(told["OSType"]) if told.get("OSType") else None,
        machine_os_version=told.get("KernelVersion") or None,
        machine_arch=host.architecture(told["Architecture"]) if told.get("Architecture") else None,
    )


def images(listed: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names by which images can be asked for: their tags, or where they have none their digests."""
    found: set[str] = set()
    for image in listed:
        tags = [tag for tag in image.get("RepoTags") or () if _NO_NAME not in tag]
        found.update(tags or [digest for digest in image.get("RepoDigests") or () if _NO_NAME not in digest])
    return sorted(found)
