"""From a JobTemplate to the body of ``POST /containers/create`` (Docker Engine API 1.41); no daemon is asked.

What a daemon would pass over in silence, or say only after a start, is refused here by field or extension.
"""

from __future__ import annotations

import ipaddress
import json
import posixpath
import re
import shlex
from typing import TYPE_CHECKING, Any

from wfl.contexts import checks, images, values
from wfl.contexts.containers.settings import PULL
from wfl.drmaa2 import CPU_TIME, OPEN_FILES, WALLCLOCK_TIME
from wfl.errors import DeniedByDrmsError, InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from wfl.drmaa2 import JobTemplate

FIELDS = frozenset({
    "remote_command", "args", "submit_as_hold", "job_environment", "working_directory", "job_category", "job_name",
    "input_path", "output_path", "error_path", "join_files", "min_slots", "max_slots", "priority", "candidate_machines",
    "min_phys_memory", "machine_os", "machine_arch", "start_time", "deadline_time", "stage_in_files", "stage_out_files",
    "resource_limits", "accounting_id", "extensions",
})  # fmt: skip
"""Template fields that mean something to a container; times and holding are the session's work."""

LOWEST, HIGHEST = -28, 24
"""Priorities: 0 is 1024 CPU shares, each step is a factor of 1.25, as it is for niceness; Linux takes 2 to 262144."""
LEAST_MEMORY = 6144
"""KiB; the daemon makes no container with less."""
OURS = "wfl."
"""Labels that begin so are wfl's own."""

_LOG = {"max-size": "1t", "max-file": "1", "compress": "false"}
"""Nothing is rotated away; the driver "local" is read back many times faster than "json-file"."""
_LIMITS = {
    "CORE_FILE_SIZE": "core",
    "CPU_TIME": "cpu",
    "DATA_SEGMENT_SIZE": "data",
    "FILE_SIZE": "fsize",
    "OPEN_FILES": "nofile",
    "STACK_SIZE": "stack",
}
_UNNAMED_NETWORKS = frozenset({"default", "bridge", "host", "none"})
_SHADOWED = ("/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
"""Mounted at the start over whatever was copied there."""
_HIGHEST_NUMBER = (1 << 63) - 1
_MOUNT = re.compile(r"(?P<kind>bind|volume):(?P<source>.*?)(?P<ro>:ro)?", re.DOTALL)
_NAME = re.compile(r"[a-zA-Z0-9][\w.-]*", re.ASCII)
_HOST = re.compile(r"(?=.{1,63}\Z)[a-zA-Z0-9](?:[\w.-]*[a-zA-Z0-9])?", re.ASCII)
_PORT = re.compile(
    r"(?:(?:(?P<ip>\[.+\]|[^:\[\]]+):)?(?P<host>\d*):)?(?P<port>\d+)(?:/(?P<kind>tcp|udp|sctp))?", re.ASCII
)
_SIZE = re.compile(r"(?P<number>\d{1,18}(?:\.\d+)?) *(?P<unit>[bkmgt]?)(?:(?<=[kmgt])i?b)?", re.ASCII | re.IGNORECASE)


# --- the whole --------------------------------------------------------------------------------------------


def check(template: JobTemplate, image: str | None) -> None:
    """Refuse what no container can be made of, and files on this side that cannot be used.

    Raises InvalidArgumentError, UnsupportedAttributeError or DeniedByDrmsError that names field and remedy.
    """
    body(template, image=image, key="", session="", program="", job_id="", index=None, detach=False)
    query(template, "")
    pull_policy(template, PULL[0])
    argv = [word for word in (template.remote_command, *(template.args or ())) if word is not None]
    checks.sizes(argv, template.job_environment or {}, template.job_environment)
    checks.streams_here(template)
    copies_in(template, "/")
    checks.targets(template.stage_out_files or {})


def body(
    template: JobTemplate,
    *,
    image: str | None,
    key: str,
    session: str,
    program: str,
    job_id: str,
    index: int | None,
    detach: bool,
) -> dict[str, Any]:
    """The JSON body that makes this template a container; `image` is the context's default."""
    extensions = _extensions(template)
    element = {} if index is None else {"TASK_ID": str(index)}
    environment = {**(template.job_environment or {}), "JOB_ID": job_id, **element}
    found: dict[str, Any] = {
        "Image": images.image(template, image),
        **_command(template, extensions.get("entrypoint")),
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": _labels(
            template, key=key, session=session, program=program, job_id=job_id, index=index, detach=detach
        ),
        "HostConfig": {"LogConfig": {"Type": "local", "Config": dict(_LOG)}, "Init": True, **_resources(template)},
    }
    if template.working_directory:
        found["WorkingDir"] = _inside("working_directory", template.working_directory)
    if template.candidate_machines:
        found["Hostname"] = _host_name(template.candidate_machines)
    if template.input_path:
        found.update(AttachStdin=True, OpenStdin=True, StdinOnce=True)
    values.check_filled(extensions)
    for name, text in extensions.items():
        if name in _EXTENSIONS:
            _EXTENSIONS[name](found, name, text)
    mounts, copies = _staged(template)
    if mounts:
        found["HostConfig"]["Mounts"] = mounts
    _check_together(extensions)
    _check_staging(template, {mount["Target"]: mount["ReadOnly"] for mount in mounts}, copies)
    _check_texts(found)
    return found


def query(template: JobTemplate, key: str) -> dict[str, str]:
    """What goes beside the body: the container's name and, where something is said of it, the platform."""
    found = {"name": container_name(key)}
    platform = _extensions(template).get("platform")
    if platform is not None:
        if not re.fullmatch(r"[a-z0-9]+(/[a-z0-9_]+(/[a-z0-9.]+)?)?", platform):
            values.refuse("platform", platform, "'os/architecture', such as 'linux/arm64'")
        if template.machine_os or template.machine_arch:
            raise InvalidArgumentError("extensions['platform'] and machine_os or machine_arch: say it once")
    elif template.machine_os or template.machine_arch:
        platform = _platform(template)
    return found if platform is None else {**found, "platform": platform}


def container_name(key: str) -> str:
    """What a container is called that bears this key."""
    return f"wfl-{key}"


def pull_policy(template: JobTemplate, default: str) -> str:
    """When the image is pulled: "always", "missing" or "never"."""
    policy = _extensions(template).get("pull", default)
    return policy if policy in PULL else values.refuse("pull", policy, "'always', 'missing' or 'never'")


def copies_in(template: JobTemplate, place: str) -> dict[str, str]:
    """What of stage_in_files is copied: absolute target in the container to absolute source on this side.

    Relative targets are below `place`, the directory that the command is started in.
    """
    found = checks.sources(_staged(template)[1])
    return {posixpath.normpath(posixpath.join(place, target)): source for target, source in found.items()}


def mounted(template: JobTemplate) -> list[str]:
    """Where stage_in_files mounts something."""
    return [mount["Target"] for mount in _staged(template)[0]]


def has_relative(template: JobTemplate) -> bool:
    """Whether `copies_in` makes use of `place`."""
    return any(not target.startswith("/") for target in _staged(template)[1])


# --- fields -----------------------------------------------------------------------------------------------


def _command(template: JobTemplate, entrypoint: str | None) -> dict[str, Any]:
    """Without a command, args go to the image's own entrypoint; with one, that entrypoint is set aside."""
    args = list(template.args or ())
    if entrypoint is not None:
        words = _shell_words("entrypoint", entrypoint)
        return {"Entrypoint": words, "Cmd": [template.remote_command, *args] if template.remote_command else args}
    if template.remote_command:
        return {"Entrypoint": [template.remote_command], "Cmd": args}
    return {"Cmd": args} if args else {}


def _labels(
    template: JobTemplate, *, key: str, session: str, program: str, job_id: str, index: int | None, detach: bool
) -> dict[str, str]:
    """What a later program finds the container by; the environment, where secrets are, stays out."""
    optional = {"name": template.job_name, "account": template.accounting_id, "index": index}
    return {
        "wfl.session": session,
        "wfl.key": key,
        "wfl.program": program,
        "wfl.job": job_id,
        "wfl.detach": "true" if detach else "false",
        "wfl.template": template.replace(job_environment=None).to_json(),
        **{f"wfl.{name}": str(value) for name, value in optional.items() if value not in (None, "")},
    }


def _resources(template: JobTemplate) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if memory := template.min_phys_memory:
        if memory < LEAST_MEMORY:
            raise InvalidArgumentError(f"min_phys_memory is {memory} KiB; a container has {LEAST_MEMORY} or more")
        found["Memory"] = _number("min_phys_memory", memory * 1024)
    if slots := template.max_slots or template.min_slots:
        found["NanoCpus"] = _number("max_slots or min_slots", slots * 10**9)
    if (priority := template.priority) is not None:
        if not LOWEST <= priority <= HIGHEST:
            raise InvalidArgumentError(f"priority is {priority}; containers have {LOWEST} to {HIGHEST}")
        found["CpuShares"] = round(1024 * 1.25**priority)
    if limits := [_limit(*item) for item in (template.resource_limits or {}).items() if item[0] != WALLCLOCK_TIME]:
        found["Ulimits"] = limits
    return found


def _limit(name: str, value: float) -> dict[str, Any]:
    """KiB become bytes; SIGXCPU comes first, SIGKILL two seconds later."""
    if name not in _LIMITS:
        raise UnsupportedAttributeError(f"resource_limits: containers have no {name}; min_phys_memory limits memory")
    seconds = name == CPU_TIME
    soft = max(1, round(value)) if seconds else int(value) * (1 if name == OPEN_FILES else 1024)
    hard = _number(f"resource_limits[{name!r}]", soft + 2 if seconds else soft)
    return {"Name": _LIMITS[name], "Soft": soft, "Hard": hard}


def _number(field: str, number: int) -> int:
    if number > _HIGHEST_NUMBER:
        raise InvalidArgumentError(f"{field} is more than a daemon can be told; for no limit leave it unset")
    return number


def _platform(template: JobTemplate) -> str:
    if template.machine_os and template.machine_os.upper() != "LINUX":
        raise DeniedByDrmsError(f"machine_os is {template.machine_os}; containers run LINUX")
    if not template.machine_arch:
        return "linux"
    return f"linux/{images.architecture(template.machine_arch)}"


def _host_name(machines: tuple[str, ...]) -> str:
    if len(machines) > 1:
        raise UnsupportedAttributeError(
            f"candidate_machines are {', '.join(machines)}; for a container it is one name, which it then has"
        )
    if not _HOST.fullmatch(machines[0]):
        raise InvalidArgumentError(f"candidate_machines is {machines[0]!r}, no host name of up to 63 characters")
    return machines[0]


def _inside(field: str, path: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgumentError(f"{field} has {path!r}: inside of a container paths are absolute, such as '/{path}'")
    return path


def _target(path: str) -> str:
    target = posixpath.normpath(path).replace("//", "/")
    if target in ("/", "."):
        raise InvalidArgumentError(f"stage_in_files has the target {path!r}: name a place below it")
    if target.startswith("../"):
        raise InvalidArgumentError(f"stage_in_files has the target {path!r}, which leads out of the working directory")
    return target


def _absolute(template: JobTemplate, path: str) -> str:
    """A place in the container as far as it is known without its image."""
    return posixpath.normpath(posixpath.join(template.working_directory or "", path))


def _staged(template: JobTemplate) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Mounts, and what is to be copied.

    Sources "bind:/host/path[:ro]" and "volume:NAME[:ro]" are mounts; the host is the daemon's, so not looked at.
    """
    mounts: dict[str, dict[str, Any]] = {}
    copies: dict[str, str] = {}
    for given, source in (template.stage_in_files or {}).items():
        target = _absolute(template, _target(given))
        if target in mounts or target in copies:
            raise InvalidArgumentError(f"stage_in_files has the target {target!r} twice")
        form = _MOUNT.fullmatch(source)
        if form is None:  # is_local
            copies[target] = source
            continue
        kind, place = form["kind"], form["source"]
        if not (place.startswith("/") if kind == "bind" else _NAME.fullmatch(place)):
            expected = "'bind:/absolute/path[:ro]'" if kind == "bind" else "'volume:NAME[:ro]'"
            raise InvalidArgumentError(f"stage_in_files[{given!r}] is {source!r}, expected {expected}")
        _inside("stage_in_files", target)
        mounts[target] = {"Type": kind, "Source": place, "Target": target, "ReadOnly": bool(form["ro"])}
    return list(mounts.values()), copies


def is_local(source: str) -> bool:
    """Whether a source of stage_in_files is a file of this side."""
    return _MOUNT.fullmatch(source) is None


def _check_staging(template: JobTemplate, mounted: Mapping[str, bool], copied: Iterable[str]) -> None:
    """Files are copied before the start and after the end, when only the container's own file system is there.

    `mounted`: where, and whether it is read-only.
    """
    extensions = _extensions(template)
    tmpfs = _tmpfs("tmpfs", extensions["tmpfs"]) if "tmpfs" in extensions else {}
    if both := {posixpath.normpath(place) for place in tmpfs} & set(mounted):
        raise InvalidArgumentError(f"stage_in_files and extensions['tmpfs'] both mount {both.pop()}")
    hidden = (*_SHADOWED, *tmpfs)
    for target in copied:
        if place := above(target, hidden):
            raise InvalidArgumentError(f"stage_in_files has the target {target!r}: what is mounted at {place} hides it")
        if mounted.get(above(target, sorted(mounted, key=len, reverse=True)) or ""):
            raise InvalidArgumentError(f"stage_in_files has the target {target!r}, in what is mounted read-only")
        if extensions.get("read_only") == "true" and not above(target, mounted):
            raise InvalidArgumentError(f"stage_in_files cannot be copied to {target!r} with read_only: use 'bind:…'")
    for source in (template.stage_out_files or {}).values():
        if place := above(_absolute(template, source), hidden):
            raise InvalidArgumentError(f"stage_out_files has the source {source!r}: {place} is gone after the end")


def _check_together(extensions: Mapping[str, str]) -> None:
    """What is right alone, but would be passed over by the daemon together."""
    network, ipc = extensions.get("network", ""), extensions.get("ipc", "")
    if "ports" in extensions and (network in ("host", "none") or network.startswith("container:")):
        raise InvalidArgumentError(f"extensions['ports']: nothing is published from network {network!r}")
    if "shm_size" in extensions and ipc not in ("", "private", "shareable"):
        raise InvalidArgumentError(f"extensions['shm_size']: with ipc {ipc!r} the container has no /dev/shm of its own")
    if "cap_drop" in extensions and extensions.get("privileged") == "true":
        raise InvalidArgumentError("extensions['cap_drop']: a privileged container keeps all capabilities")


def above(path: str, places: Iterable[str]) -> str | None:
    """Which of these directories a path is, or is below."""
    path = posixpath.normpath(path)
    return next((place for place in places if f"{path}/".startswith(f"{place.rstrip('/')}/")), None)


def _check_texts(found: dict[str, Any]) -> None:
    """A daemon reads UTF-8, and would put replacement characters for anything else."""
    for text in _texts(found):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(f"{text!r} is not UTF-8, and a daemon takes nothing else: rename it") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value:
            yield from _texts(item)
        if isinstance(value, dict):
            yield from _texts(list(value.values()))


# --- extensions: each value is text, parsed into a part of the body ---------------------------------------


def _extensions(template: JobTemplate) -> Mapping[str, str]:
    return template.extensions if template.extensions is not None else {}


def _matching(pattern: str, expected: str) -> Callable[[str, str], str]:
    return lambda name, text: text if re.fullmatch(pattern, text) else values.refuse(name, text, expected)


def _pairs(name: str, text: str, separator: str, expected: str) -> list[tuple[str, str]]:
    pairs = [item.partition(separator) for item in values.items(name, text)]
    if not all(key and mark for key, mark, _ in pairs):
        values.refuse(name, text, expected)
    return [(key, value) for key, _, value in pairs]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _shell_words(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidArgumentError(f"extensions[{name!r}] is {text!r}, no shell words: {error}") from None


def _capabilities(name: str, text: str) -> list[str]:
    found = values.items(name, text)
    return (
        found if all(map(str.isidentifier, found)) else values.refuse(name, text, "names such as 'NET_ADMIN,SYS_TIME'")
    )


def _devices(name: str, text: str) -> list[dict[str, str]]:
    """On the host, in the container (the same if left out), and what may be done there (rwm if left out)."""
    found = []
    for item in values.items(name, text):
        form = re.fullmatch(r"(/[^:]+)(?::(/[^:]+))?(?::([rwm]{1,3}))?", item)
        if form is None:
            values.refuse(name, text, "'/dev/host:/dev/inside:rwm', the last two optional")
        found.append(
            {"PathOnHost": form[1], "PathInContainer": form[2] or form[1], "CgroupPermissions": form[3] or "rwm"}
        )
    return found


def _gpus(name: str, text: str) -> list[dict[str, Any]]:
    request: dict[str, Any] = {"Driver": "", "Capabilities": [["gpu"]]}
    if text.startswith("device="):
        return [{**request, "DeviceIDs": values.items(name, text.removeprefix("device="))}]
    if text != "all" and not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        values.refuse(name, text, "'all', a number, or 'device=0,1'")
    return [{**request, "Count": -1 if text == "all" else int(text)}]


def _size(name: str, text: str) -> int:
    form = _SIZE.fullmatch(text)
    size = round(float(form["number"]) * 1024 ** " kmgt".index(form["unit"].lower().strip("b") or " ")) if form else 0
    return _number(f"extensions[{name!r}]", size or values.refuse(name, text, "a size above 0, such as '64m' or '1g'"))


def _tmpfs(name: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in values.items(name, text, ";"):
        path, _, options = item.partition(":")
        if not re.fullmatch(r"/[^,]+", path) or path in found:
            values.refuse(name, text, "'/path:options;/path', each path once")
        found[path] = options
    return found


def _security(name: str, text: str) -> list[str]:
    """A seccomp profile is sent as what the file holds, as the docker command does."""
    return [_security_option(name, item) for item in values.items(name, text)]


def _security_option(name: str, text: str) -> str:
    key, mark, value = text.partition("=")
    if text == "no-new-privileges" or (key == "no-new-privileges" and value in ("true", "false")):
        return text
    if key not in ("apparmor", "label", "seccomp") or not value:
        known = "'no-new-privileges', 'apparmor=PROFILE', 'label=…', 'seccomp=unconfined', 'seccomp=FILE'"
        values.refuse(name, text, known)
    if key != "seccomp" or value == "unconfined":
        return text
    try:
        with open(value, encoding="utf-8") as file:
            return f"{key}{mark}{json.dumps(json.load(file), separators=(',', ':'))}"
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"extensions[{name!r}]: {value} is no seccomp profile: {error}") from None


def _extra_hosts(name: str, text: str) -> list[str]:
    expected = "'host:address,host:address'"
    pairs = _pairs(name, text, ":", expected)
    right = all(_HOST.fullmatch(host) and (ip == "host-gateway" or _is_address(ip)) for host, ip in pairs)
    return [f"{host}:{ip}" for host, ip in pairs] if right else values.refuse(name, text, expected)


def _dns(name: str, text: str) -> list[str]:
    found = values.items(name, text)
    return (
        found if all(map(_is_address, found)) else values.refuse(name, text, "IP addresses, such as '1.1.1.1,9.9.9.9'")
    )


def _top(member: str, parse: Callable[[str, str], Any]) -> Callable[[dict[str, Any], str, str], None]:
    return lambda found, name, text: found.update({member: parse(name, text)})


def _host(member: str, parse: Callable[[str, str], Any]) -> Callable[[dict[str, Any], str, str], None]:
    return lambda found, name, text: found["HostConfig"].update({member: parse(name, text)})


def _add_network(found: dict[str, Any], name: str, text: str) -> None:
    if not re.fullmatch(r"container:[^\s:]+|[a-zA-Z0-9][\w.-]*", text, re.ASCII):
        values.refuse(name, text, "a network's name, 'bridge', 'host', 'none' or 'container:NAME'")
    found["HostConfig"]["NetworkMode"] = text
    if text not in _UNNAMED_NETWORKS and ":" not in text:
        found["NetworkingConfig"] = {"EndpointsConfig": {text: {}}}


def _add_ports(found: dict[str, Any], name: str, text: str) -> None:
    """Published as by ``docker run -p``: [[address:]port of the host:]port of the container[/protocol]."""
    bindings: dict[str, list[dict[str, str]]] = {}
    for item in values.items(name, text):
        form = _PORT.fullmatch(item)
        ip = (form["ip"] or "").strip("[]") if form else ""
        numbers = [int(number) for number in (form["port"], form["host"]) if number] if form else [0]
        if form is None or not all(0 < number < 1 << 16 for number in numbers) or (ip and not _is_address(ip)):
            values.refuse(
                name, text, "'[[address:]host port:]container port[/udp]', such as '8080:80,127.0.0.1:53:53/udp'"
            )
        bound = {"HostIp": ip, "HostPort": str(int(form["host"])) if form["host"] else ""}
        bindings.setdefault(f"{int(form['port'])}/{form['kind'] or 'tcp'}", []).append(bound)
    found["ExposedPorts"] = {port: {} for port in bindings}
    found["HostConfig"]["PortBindings"] = bindings


def _add_labels(found: dict[str, Any], name: str, text: str) -> None:
    for key, value in _pairs(name, text, "=", "'key=value,key=value'"):
        if key.startswith(OURS):
            values.refuse(name, key, f"labels that do not begin with {OURS!r}, which are wfl's own")
        found["Labels"][key] = value


def _elsewhere(found: dict[str, Any], name: str, text: str) -> None:
    """Read where it is used."""


_EXTENSIONS: dict[str, Callable[[dict[str, Any], str, str], None]] = {
    "user": _top("User", _matching(r"[^\s:]+(:[^\s:]+)?", "'user' or 'user:group', names or numbers")),
    "entrypoint": _elsewhere,
    "network": _add_network,
    "ports": _add_ports,
    "privileged": _host("Privileged", values.flag),
    "cap_add": _host("CapAdd", _capabilities),
    "cap_drop": _host("CapDrop", _capabilities),
    "devices": _host("Devices", _devices),
    "gpus": _host("DeviceRequests", _gpus),
    "shm_size": _host("ShmSize", _size),
    "ipc": _host(
        "IpcMode",
        _matching(r"none|private|shareable|host|container:\S+", "none, private, shareable, host or container:NAME"),
    ),
    "pid": _host("PidMode", _matching(r"host|container:\S+", "'host' or 'container:NAME'")),
    "uts": _host("UTSMode", _matching("host", "'host'")),
    "tmpfs": _host("Tmpfs", _tmpfs),
    "read_only": _host("ReadonlyRootfs", values.flag),
    "security_opt": _host("SecurityOpt", _security),
    "extra_hosts": _host("ExtraHosts", _extra_hosts),
    "dns": _host("Dns", _dns),
    "labels": _add_labels,
    "platform": _elsewhere,
    "pull": _elsewhere,
    "init": _host("Init", values.flag),
}
EXTENSIONS = frozenset(_EXTENSIONS)
"""Keys of JobTemplate.extensions that are understood."""
