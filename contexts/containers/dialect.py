"""Where daemons that speak Docker's API differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from wfl.errors import DeniedByDrmsError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wfl.drmaa2 import JobTemplate


_CGROUPS = {
    "min_phys_memory": "MemoryLimit",
    "min_slots": "CpuCfsQuota",
    "max_slots": "CpuCfsQuota",
    "priority": "CPUShares",
}
"""Fields that are control groups' work, and what a daemon calls its ability."""


def _is_helpless(told: Mapping[str, Any]) -> bool:
    """Without root, control groups of the first version are not to be had."""
    rootless = told.get("Rootless") or "name=rootless" in (told.get("SecurityOptions") or ())
    return bool(rootless) and told.get("CgroupVersion") == "1"


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One daemon's ways.

    log: the LogConfig of containers, None for that of the template's mapping; refused: fields and extensions that it
    passes over in silence; ulimits: what goes with every other limit; guesses_memory: it does not say what was
    killed for want of memory; loses_breaks: its log may lack the breaks of long lines; loses_lines: a log that is
    followed may lack some; init_with_pid: an init goes with a foreign PID namespace; host_gateway: it knows that
    address in extra_hosts; not_run: exit codes of its init where there is no such command; cure: what to do when it
    cannot be reached.
    """

    log: Mapping[str, Any] | None = None
    refused: frozenset[str] = frozenset()
    ulimits: Mapping[str, int] = {}
    guesses_memory: bool = False
    loses_breaks: bool = True
    loses_lines: bool = False
    init_with_pid: bool = True
    host_gateway: bool = True
    not_run: tuple[int, ...] = (126, 127)
    cure: str = "Is the daemon running, and may this user talk to it? Set DOCKER_HOST or base_url to where it listens."

    def check(self, template: JobTemplate, backend: str, told: Callable[[], Mapping[str, Any]]) -> None:
        """Refuse what this daemon would pass over on its machine; `told` is what it says of itself."""
        extensions: Mapping[str, str] = template.extensions or {}
        if not self.host_gateway and "host-gateway" in extensions.get("extra_hosts", ""):
            raise UnsupportedAttributeError(f"{backend} has no host-gateway: give an address in extra_hosts")
        for kind, module in (("apparmor", "apparmor"), ("label", "selinux")):
            option = f"{kind}=" in extensions.get("security_opt", "")
            if option and not any(f"name={module}" in one for one in told().get("SecurityOptions") or ()):
                raise UnsupportedAttributeError(f"security_opt {kind}: the daemon's machine has no {module}; remove it")
        slots = template.max_slots or template.min_slots
        if slots and slots > (there := told().get("NCPU") or slots):
            raise DeniedByDrmsError(f"{backend}: {slots} slots are wanted, and the daemon's machine has {there}")
        for name, flag in _CGROUPS.items():
            if getattr(template, name) and (told().get(flag) is False or _is_helpless(told())):
                raise UnsupportedAttributeError(f"{backend} cannot honour {name} as this daemon runs; remove it")

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body of a container as this daemon takes it."""
        host = body["HostConfig"]
        if not self.init_with_pid and host.get("PidMode"):
            host["Init"] = False
        if self.log is not None:
            host["LogConfig"] = dict(self.log)
        if host.get("Ulimits") and self.ulimits:
            given = {limit["Name"] for limit in host["Ulimits"]}
            host["Ulimits"] += [
                {"Name": name, "Soft": number, "Hard": number}
                for name, number in self.ulimits.items()
                if name not in given
            ]
        return body
