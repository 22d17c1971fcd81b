"""JobTemplate.extensions of a Job: each value is text, checked, and put where Kubernetes has it. Pure.

What is a list or a mapping there is written as YAML (or JSON, which is YAML). Names and numbers are checked here, so
that the API server's own refusal, which names no extension, is seldom met.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from wfl.contexts import values
from wfl.contexts.kubernetes.facts import MAIN
from wfl.errors import InvalidArgumentError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Json = dict[str, Any]

OURS = "wfl/"
"""Labels and annotations that begin so are wfl's own."""
RESERVED = "wfl-"
"""So do the names of its containers and volumes."""
LEAST_TTL = 60
"""Seconds; the end and the output of a job are read from its pod, which goes with the Job."""
PULL = {"always": "Always", "missing": "IfNotPresent", "never": "Never"}
"""Kubernetes' words for when an image is pulled."""
LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
"""What most objects may be called (RFC 1123)."""
DOTTED = rf"{LABEL}(?:\.{LABEL})*"
NAME = rf"(?=.{{1,253}}\Z){DOTTED}"
"""What the others may be called."""
VALUE = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
"""Of a label."""
QUANTITY = r"(?=[\d.]*[1-9])\d{1,18}(?:\.\d{1,9})?(?:m|[kMGTPE]|[KMGTPE]i)?"
"""An amount above 0 of anything, such as 2, 500m or 1.5Gi."""
_KEY = rf"(?:{DOTTED}/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"
_HIGHEST = (1 << 31) - 1
_TOLERATION = {"key": str, "operator": str, "value": str, "effect": str, "tolerationSeconds": int}
_AFFINITY = ("nodeAffinity", "podAffinity", "podAntiAffinity")
_SET_ELSEWHERE = {
    "pod_patch": {
        "restartPolicy": "rerunnable",
        "containers": "container_patch or sidecars",
        "initContainers": "init_containers or sidecars",
        "ephemeralContainers": "sidecars",
        "metadata": "labels and annotations",
    },
    "container_patch": {
        "name": "job_name",
        "image": "job_category",
        "command": "remote_command",
        "args": "args",
        "workingDir": "working_directory",
        "terminationMessagePath": "output_path",
        "restartPolicy": "rerunnable",
    },
}
"""What wfl relies on, and by what else it may be changed."""


class Parts(NamedTuple):
    """What extensions change: a Job, the spec of its pods, and their main container."""

    job: Json
    pod: Json
    main: Json


def add(parts: Parts, extensions: Mapping[str, str]) -> None:
    """Put them where they belong, patches last.

    Raises InvalidArgumentError that names the extension and what is expected.
    """
    values.check_filled(extensions)
    for name, put in _EXTENSIONS.items():
        if name in extensions:
            put(parts, name, extensions[name])
    if "cap_drop" in extensions and extensions.get("privileged") == "true":
        raise InvalidArgumentError("extensions['cap_drop']: a privileged container keeps all capabilities")


# --- text that means something ----------------------------------------------------------------------------


def _number(name: str, text: str) -> int:
    right = re.fullmatch(r"\d{1,10}", text, re.ASCII) and int(text) <= _HIGHEST
    return int(text) if right else values.refuse(name, text, f"a number from 0 to {_HIGHEST}")


def _lifetime(name: str, text: str) -> int:
    number = _number(name, text)
    return number if number >= LEAST_TTL else values.refuse(name, text, f"seconds, {LEAST_TTL} or more")


def _name(name: str, text: str) -> str:
    return text if re.fullmatch(NAME, text) else values.refuse(name, text, "a name: lower case, digits, '-' and '.'")


def _value(name: str, text: str) -> str:
    return (
        text if re.fullmatch(VALUE, text) else values.refuse(name, text, "up to 63 letters, digits, '-', '_' and '.'")
    )


def _quantity(name: str, text: str) -> str:
    return (
        text
        if re.fullmatch(QUANTITY, text, re.ASCII)
        else values.refuse(name, text, "a size, such as '512Mi' or '2Gi'")
    )


def _capabilities(name: str, text: str) -> list[str]:
    found = values.items(name, text)
    right = all(re.fullmatch(r"(?!CAP_)[A-Z][A-Z_]*", item) for item in found)
    return found if right else values.refuse(name, text, "names such as 'NET_ADMIN,SYS_TIME', without 'CAP_'")


def _pairs(name: str, text: str) -> dict[str, str]:
    """Keys as labels and annotations have them; the values are the caller's to check."""
    pairs = [item.partition("=") for item in values.items(name, text)]
    for key, mark, _ in pairs:
        if not mark or not re.fullmatch(_KEY, key):
            values.refuse(name, text, "'key=value,key=value', keys such as 'team' or 'example.com/team'")
        if key.startswith(OURS):
            values.refuse(name, text, f"keys that do not begin with {OURS!r}, which are wfl's own")
    return {key: value for key, _, value in pairs}


def _labels(name: str, text: str) -> dict[str, str]:
    return {key: _value(name, value) for key, value in _pairs(name, text).items()}


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """What JSON has, from YAML: by far the dearest of a submission, hence kept. Not to be changed."""
    import yaml

    try:
        return json.loads(json.dumps(yaml.safe_load(text), allow_nan=False))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (TypeError, RecursionError) as error:  # a date, or a mapping that contains itself
        raise ValueError(str(error)) from None


def _yaml(name: str, text: str, kind: type, expected: str) -> Any:
    try:
        found = _parsed(text)
    except ValueError as error:
        raise InvalidArgumentError(f"extensions[{name!r}] is no YAML of {expected}: {error}") from None
    return found if isinstance(found, kind) and found else values.refuse(name, text, f"{expected}, as YAML")


def _items(name: str, text: str, expected: str) -> list[Json]:
    found: list[Any] = _yaml(name, text, list, expected)
    return (
        found
        if all(isinstance(item, dict) and item for item in found)
        else values.refuse(name, text, f"{expected}, as YAML")
    )


# --- where it belongs -------------------------------------------------------------------------------------


def _in_pod(member: str, check: Callable[[str, str], Any]) -> Callable[[Parts, str, str], None]:
    return lambda parts, name, text: parts.pod.update({member: check(name, text)})


def _as_user(member: str) -> Callable[[Parts, str, str], None]:
    """Of all containers."""
    return lambda parts, name, text: parts.pod.setdefault("securityContext", {}).update({member: _number(name, text)})


def _may(member: str, check: Callable[[str, str], Any]) -> Callable[[Parts, str, str], None]:
    """Of the main container."""
    return lambda parts, name, text: parts.main.setdefault("securityContext", {}).update({member: check(name, text)})


def _capable(member: str) -> Callable[[Parts, str, str], None]:
    def put(parts: Parts, name: str, text: str) -> None:
        context = parts.main.setdefault("securityContext", {})
        context.setdefault("capabilities", {})[member] = _capabilities(name, text)

    return put


def _add_labels(parts: Parts, name: str, text: str) -> None:
    for metadata in (parts.job["metadata"], parts.job["spec"]["template"]["metadata"]):
        metadata["labels"].update(_labels(name, text))


def _add_annotations(parts: Parts, name: str, text: str) -> None:
    for metadata in (parts.job["metadata"], parts.job["spec"]["template"]["metadata"]):
        metadata.setdefault("annotations", {}).update(_pairs(name, text))


def _add_service_account(parts: Parts, name: str, text: str) -> None:
    parts.pod["serviceAccountName"] = _name(name, text)
    del parts.pod["automountServiceAccountToken"]


def _add_node_selector(parts: Parts, name: str, text: str) -> None:
    selector, given = parts.pod.setdefault("nodeSelector", {}), _labels(name, text)
    if both := selector.keys() & given:
        raise InvalidArgumentError(f"extensions[{name!r}] has {both.pop()}, and so has machine_os or machine_arch")
    selector.update(given)


def _add_tolerations(parts: Parts, name: str, text: str) -> None:
    found = _items(name, text, "a list of tolerations")
    for item in found:
        for key, value in item.items():
            if key not in _TOLERATION:
                raise InvalidArgumentError(f"extensions[{name!r}] has {key!r}:{nearest(key, _TOLERATION)}")
            if type(value) is not _TOLERATION[key]:
                values.refuse(name, text, f"{key} to be {'text' if _TOLERATION[key] is str else 'a number'}: {value!r}")
    parts.pod["tolerations"] = found


def _add_affinity(parts: Parts, name: str, text: str) -> None:
    found = _yaml(name, text, dict, "a mapping")
    for key in found:
        if key not in _AFFINITY:
            raise InvalidArgumentError(f"extensions[{name!r}] has {key!r}:{nearest(key, _AFFINITY)}")
    if "affinity" in parts.pod:
        raise InvalidArgumentError(f"extensions[{name!r}] and candidate_machines: say where it may run once")
    parts.pod["affinity"] = found


def _add_pull(parts: Parts, name: str, text: str) -> None:
    parts.main["imagePullPolicy"] = PULL.get(text) or values.refuse(name, text, "'always', 'missing' or 'never'")


def _add_pull_secrets(parts: Parts, name: str, text: str) -> None:
    parts.pod["imagePullSecrets"] = [{"name": _name(name, item)} for item in values.items(name, text)]


def _add_env_from(parts: Parts, name: str, text: str) -> None:
    references = {"secret": "secretRef", "configmap": "configMapRef"}
    found = []
    for item in values.items(name, text):
        kind, _, source = item.partition(":")
        if kind not in references or not re.fullmatch(NAME, source):
            values.refuse(name, text, "'secret:NAME,configmap:NAME'")
        found.append({references[kind]: {"name": source}})
    parts.main["envFrom"] = found


def _add_ttl(parts: Parts, name: str, text: str) -> None:
    parts.job["spec"]["ttlSecondsAfterFinished"] = _lifetime(name, text)


def _add_containers(parts: Parts, name: str, text: str) -> None:
    """Beside the main one for as long as it runs, or one after the other before it; sidecars start last."""
    there = parts.pod.setdefault("initContainers", [])
    for item in _items(name, text, "a list of containers"):
        called = item.get("name")
        if not isinstance(called, str) or not re.fullmatch(LABEL, called) or not isinstance(item.get("image"), str):
            values.refuse(name, text, "containers that have a name (lower case) and an image")
        if called == MAIN or called.startswith(RESERVED) or called in [other["name"] for other in there]:
            values.refuse(name, text, f"names of containers that are not taken, unlike {called!r}")
        if name == "sidecars" and item.get("restartPolicy", "Always") != "Always":
            values.refuse(name, text, f"sidecars, which are restarted: {called!r} belongs into init_containers")
        there.append({**item, "restartPolicy": "Always"} if name == "sidecars" else item)


def _add_host_network(parts: Parts, name: str, text: str) -> None:
    if values.flag(name, text):
        parts.pod.update(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet")


def _add_shm_size(parts: Parts, name: str, text: str) -> None:
    volume = {"name": "wfl-shm", "emptyDir": {"medium": "Memory", "sizeLimit": _quantity(name, text)}}
    if any(mount["mountPath"] == "/dev/shm" for mount in parts.main["volumeMounts"]):  # noqa: S108 - the job's own
        raise InvalidArgumentError(f"stage_in_files and extensions[{name!r}] both mount /dev/shm")
    parts.pod["volumes"].append(volume)
    parts.main["volumeMounts"].append({"name": "wfl-shm", "mountPath": "/dev/shm"})  # noqa: S108


def _limit(parts: Parts, resource: str, amount: str, *kinds: str) -> None:
    for kind in kinds:
        parts.main.setdefault("resources", {}).setdefault(kind, {})[resource] = amount


def _add_ephemeral_storage(parts: Parts, name: str, text: str) -> None:
    _limit(parts, "ephemeral-storage", _quantity(name, text), "requests", "limits")


def _add_gpus(parts: Parts, name: str, text: str) -> None:
    resource, mark, number = text.rpartition("=")
    if not re.fullmatch(r"[1-9][0-9]{0,3}", number) or (
        mark and ("/" not in resource or not re.fullmatch(_KEY, resource))
    ):
        values.refuse(name, text, "a number, or 'amd.com/gpu=1' for others than nvidia.com/gpu")
    _limit(parts, resource or "nvidia.com/gpu", number, "limits")


def _add_kueue_queue(parts: Parts, name: str, text: str) -> None:
    parts.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = _value(name, _name(name, text))


def _patch(parts: Parts, name: str, text: str) -> None:
    changes = _yaml(name, text, dict, "a mapping")
    for key in changes:
        if key in _SET_ELSEWHERE[name]:
            raise InvalidArgumentError(
                f"extensions[{name!r}] has {key}, which wfl sets: use {_SET_ELSEWHERE[name][key]}"
            )
    if any(str(_named(volume)).startswith(RESERVED) for volume in changes.get("volumes") or ()):
        values.refuse(name, text, f"names of volumes that do not begin with {RESERVED!r}")
    whole = parts.pod if name == "pod_patch" else parts.main
    patched = _patched(name, whole, changes)
    whole.clear()
    whole.update(patched)


def _named(item: Any) -> Any:
    return item.get("name") if isinstance(item, dict) else None


def _patched(name: str, old: Json, changes: Json) -> Json:
    """RFC 7396 (null removes), but lists are joined: what is in them already is wfl's or named by an extension."""
    new = dict(old)
    for key, value in changes.items():
        there = old.get(key)
        if isinstance(there, list | dict) and value is not None and type(value) is not type(there):
            values.refuse(name, value, f"{key} to be a {'list' if isinstance(there, list) else 'mapping'}")
        if value is None and isinstance(there, list):
            values.refuse(name, value, f"nothing to be taken out of {key}: wfl needs it")
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict):
            new[key] = _patched(name, there or {}, value)
        else:
            new[key] = [*(there or ()), *value] if isinstance(value, list) else value
    return new


def _choose_output(_: Parts, name: str, text: str) -> None:
    if text not in ("log", "file"):
        values.refuse(name, text, "'log' or 'file'")


_EXTENSIONS: dict[str, Callable[[Parts, str, str], None]] = {
    "output": _choose_output,
    "labels": _add_labels,
    "annotations": _add_annotations,
    "kueue_queue": _add_kueue_queue,
    "ttl": _add_ttl,
    "service_account": _add_service_account,
    "node_selector": _add_node_selector,
    "tolerations": _add_tolerations,
    "affinity": _add_affinity,
    "scheduler": _in_pod("schedulerName", _name),
    "runtime_class": _in_pod("runtimeClassName", _name),
    "host_network": _add_host_network,
    "run_as_user": _as_user("runAsUser"),
    "run_as_group": _as_user("runAsGroup"),
    "fs_group": _as_user("fsGroup"),
    "privileged": _may("privileged", values.flag),
    "cap_add": _capable("add"),
    "cap_drop": _capable("drop"),
    "read_only": _may("readOnlyRootFilesystem", values.flag),
    "pull": _add_pull,
    "pull_secrets": _add_pull_secrets,
    "env_from": _add_env_from,
    "init_containers": _add_containers,
    "sidecars": _add_containers,
    "shm_size": _add_shm_size,
    "ephemeral_storage": _add_ephemeral_storage,
    "gpus": _add_gpus,
    "pod_patch": _patch,
    "container_patch": _patch,
}
"""In the order in which they are put, whatever the order in which they are given."""
EXTENSIONS = frozenset(_EXTENSIONS)
"""Keys of JobTemplate.extensions that are understood."""
