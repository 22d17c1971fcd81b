"""What of a job's files is in volumes: what stage_in_files mounts or has copied, and what is fetched at the end. Pure.

One empty volume, FILES, takes what is moved: `wfl-in` and `wfl-out` see it whole, the main container sees its parts.
"""

from __future__ import annotations

import base64
import posixpath
import re
from typing import TYPE_CHECKING, Any, NoReturn

from wfl.contexts import checks
from wfl.contexts.containers.template import above
from wfl.contexts.kubernetes.extensions import DOTTED, QUANTITY
from wfl.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wfl.drmaa2 import JobTemplate

Json = dict[str, Any]

FILES = "wfl-files"
"""The volume for what is moved, which the helpers see whole at PLACE."""
PLACE, STDIN, STREAMS = "/wfl", "/wfl-stdin", "/wfl-streams"
INPUT = "in/stdin"
"""Where standard input's file is in it."""
NULL = "/dev/null"
MOST_INLINE = 1 << 20
"""Bytes in one ConfigMap or Secret."""

_SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr")
"""Directories of an image that no empty volume may hide."""
_KEY = r"(?:/(?P<key>[-._a-zA-Z0-9]{1,253}))?"
_READ_ONLY = r"(?P<path>/(?!(?:.*/)?\.\.(?:/|:ro\Z|\Z)).*?)(?P<ro>:ro)?"
_FORMS = {
    "inline": ("inline:TEXT", r"(?P<text>.*)"),
    "inline-secret": ("inline-secret:TEXT", r"(?P<text>.*)"),
    "configmap": ("configmap:NAME[/KEY]", rf"(?P<name>{DOTTED}){_KEY}"),
    "secret": ("secret:NAME[/KEY]", rf"(?P<name>{DOTTED}){_KEY}"),
    "hostpath": ("hostpath:/path[:ro]", _READ_ONLY),
    "claim": ("claim:NAME[:ro]", rf"(?P<name>{DOTTED})(?P<ro>:ro)?"),
    "new-claim": ("new-claim:[CLASS:]SIZE", rf"(?:(?P<name>{DOTTED}):)?(?P<size>{QUANTITY})"),
    "nfs": ("nfs:SERVER:/path[:ro]", rf"(?P<server>[^:/\s\[\]]+|\[[0-9a-fA-F:]+\]):{_READ_ONLY}"),
}
"""Sources of stage_in_files that are no files of this side, as they are written, and what stands behind the colon."""


def to_files(template: JobTemplate) -> list[str]:
    """The streams that the command writes to files in its pod, "stdout" and "stderr"; the others are in the log.

    Of the two it is the log that cannot tell streams apart, and that nodes keep 10 MiB of.
    """
    out, err = template.output_path or "", template.error_path or ""
    extensions: Mapping[str, str] = template.extensions or {}
    all_of_it = extensions.get("output") == "file"
    apart = not is_joined(template) and err != NULL
    return [
        *(["stdout"] if all_of_it and out != NULL else ()),
        *(["stderr"] if apart and (all_of_it or err) else ()),
    ]


def is_joined(template: JobTemplate) -> bool:
    """Whether both streams are to be one, in the order of writing."""
    out, err = template.output_path, template.error_path
    return bool(template.join_files or (out and err and err != NULL and posixpath.relpath(out, err) == "."))


def is_file(path: str | None) -> bool:
    """Whether a stream has a file of its own."""
    return bool(path) and path != NULL


def is_local(source: str) -> bool:
    """Whether a source of stage_in_files is a file of this side."""
    kind, colon, _ = source.partition(":")
    return not colon or kind not in _FORMS


class Files:
    """What is mounted in the main container, and moved: stage_in_files at once, the others by `take_out`."""

    def __init__(self, template: JobTemplate, name: str, labels: dict[str, str]) -> None:
        self.template = template
        self.metadata = {"name": name, "labels": labels}
        self.volumes: list[Json] = []
        self.mounts: list[Json] = []
        self.extra: list[Json] = []
        self.copies: dict[str, str] = {}
        self.fetched: dict[str, str] = {}
        self.streams: dict[str, str] = {}
        self.seen: list[Json] = []  # by OUT, besides PLACE
        self._closed: list[str] = []
        for target, source in (template.stage_in_files or {}).items():
            self._take_in(target, source)
        for mount in self.mounts:
            if place := above(posixpath.dirname(mount["mountPath"]), self._closed):
                _refuse("stage_in_files", f"the target {mount['mountPath']!r}: nothing can be put below {place}")

    def _take_in(self, given: str, source: str) -> None:
        target = self._place("the target", given, "stage_in_files")
        if target in ("/", "//") or ":" in target:
            _refuse("stage_in_files", f"the target {given!r}: name a place below it, without ':'")
        if above(target, (PLACE, STDIN, STREAMS)):
            _refuse("stage_in_files", f"the target {given!r}, which is wfl's own")
        if any(mount["mountPath"] == target for mount in self.mounts):
            _refuse("stage_in_files", f"the target {target!r} twice")
        kind, _, text = source.partition(":")
        if is_local(source):
            self._copy(f"in/{len(self.copies)}", target, checks.absolute("stage_in_files", source))
            return
        expected, pattern = _FORMS[kind]
        form = re.fullmatch(pattern, text, re.DOTALL)
        if form is None:
            raise InvalidArgumentError(f"stage_in_files[{given!r}] is {source!r}, expected {expected!r}")
        self.mounts.append({"mountPath": target, **self._mounted(kind, form.groupdict())})
        if kind in ("inline", "inline-secret", "configmap", "secret"):
            self._closed.append(target)

    def _place(self, what: str, path: str, where: str) -> str:
        place = posixpath.normpath(posixpath.join(self.template.working_directory or "", path))
        if not place.startswith("/"):
            _refuse(where, f"{what} {path!r}: it is relative to working_directory, which is not set")
        return "/" + place.lstrip("/")

    def _mounted(self, kind: str, given: dict[str, str | None]) -> Json:
        """What is said of a mount besides where it is."""
        read_only = {"readOnly": True}
        if kind.startswith("inline"):
            key = self._keep(kind, given["text"] or "")
            name = self._volume(_named(kind.removeprefix("inline-"), str(self.metadata["name"])), f"wfl-{kind}")
            return {"name": name, "subPath": key, **read_only}
        if kind in ("configmap", "secret"):
            path = {"subPath": given["key"]} if given["key"] else {}
            return {"name": self._volume(_named(kind, given["name"])), **path, **read_only}
        if kind == "hostpath":
            volume: Json = {"hostPath": {"path": given["path"]}}
        elif kind == "nfs":
            volume = {"nfs": {"server": given["server"], "path": given["path"]}}
        else:
            claim = given["name"] if kind == "claim" else self._claim(given["name"], given["size"])
            volume = {"persistentVolumeClaim": {"claimName": claim}}
        return {"name": self._volume(volume), **(read_only if given.get("ro") else {})}

    def _volume(self, volume: Json, name: str | None = None) -> str:
        """The name of a volume, which is one for all that is mounted of it; a patch's that is alike is not ours."""
        for other in self.volumes:
            if other["name"] == name if name else volume.items() <= other.items():
                return str(other["name"])
        self.volumes.append({"name": name or f"wfl-in-{len(self.volumes)}", **volume})
        return str(self.volumes[-1]["name"])

    def _keep(self, kind: str, text: str) -> str:
        """The key under which a text is kept in the ConfigMap or Secret that is made for the job."""
        secret = kind == "inline-secret"
        made = next((one for one in self.extra if one["kind"] == ("Secret" if secret else "ConfigMap")), None)
        if made is None:
            made = {"apiVersion": "v1", "kind": "Secret" if secret else "ConfigMap", "metadata": dict(self.metadata)}
            self.extra.append({**made, **({"type": "Opaque"} if secret else {}), "data": {}})
            made = self.extra[-1]
        key = f"f{len(made['data'])}"
        try:
            content = text.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(f"stage_in_files: what is given {kind} is not UTF-8: use a file") from None
        made["data"][key] = base64.b64encode(content).decode() if secret else text
        held = sum(len(base64.b64decode(one) if secret else one.encode()) for one in made["data"].values())
        if held > MOST_INLINE:
            raise InvalidArgumentError(
                f"stage_in_files: {held} bytes are given {kind}, {MOST_INLINE} can be: use a file"
            )
        return key

    def _claim(self, storage_class: str | None, size: str | None) -> str:
        """The name of a claim that is made for the job."""
        number = sum(one["kind"] == "PersistentVolumeClaim" for one in self.extra)
        name = f"{self.metadata['name']}-{number}"
        spec: Json = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
        if storage_class:
            spec["storageClassName"] = storage_class
        metadata = {**self.metadata, "name": name}
        self.extra.append({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
        return name

    def _copy(self, place: str, target: str, source: str) -> None:
        self._share(target, place)
        self.copies[place] = posixpath.normpath(source)

    def _share(self, target: str, place: str) -> None:
        """A place in the volume that IN and OUT see whole."""
        self.mounts.append({"mountPath": target, "name": self._moving(), "subPath": place})

    def _moving(self) -> str:
        return self._volume({"emptyDir": {}}, FILES)

    def take_out(self) -> None:
        """Standard input's file, and what is fetched: whatever holds that is a volume, as containers end before it."""
        template = self.template
        sources: dict[str, str] = {}
        for target, source in checks.targets(template.stage_out_files or {}).items():
            sources[target] = self.fetched[target] = self._place("the source", source, "stage_out_files")
        if sources:
            self._moving()  # OUT waits there, also where all sources are in other volumes
        for number, place in enumerate(self._parents(sources.values())):
            self._share(place, f"out/{number}")
        self.seen = [mount for mount in self.mounts if _meets(mount["mountPath"], sources.values())]
        if is_file(template.input_path):
            self._copy(INPUT, STDIN, _no_descriptor("input_path", template.input_path or ""))
            self.mounts[-1]["readOnly"] = True
        self.streams = {stream: f"{PLACE}/streams/{stream}" for stream in to_files(template)}
        if self.streams:
            self._share(STREAMS, "streams")

    def _parents(self, sources: Iterable[str]) -> list[str]:
        """Directories, none in another, that become empty volumes, as the sources in them are in no volume yet."""
        places = [mount["mountPath"] for mount in self.mounts]
        found: list[str] = []
        loose = [source for source in sources if not above(source, places)]
        for place in sorted({_directory(source) for source in loose}, key=lambda place: (len(place), place)):
            if place == "/" or above(place, (*_SYSTEM, PLACE, STDIN, STREAMS)):
                _refuse("stage_out_files", f"a source in {place}, which belongs to the image: write it elsewhere")
            if not above(place, found):
                found.append(place)
        return sorted(found)


def _named(kind: str, name: str | None) -> Json:
    """A volume that is a ConfigMap or a Secret."""
    return {"secret": {"secretName": name}} if kind == "secret" else {"configMap": {"name": name}}


def _directory(source: str) -> str:
    """What has to be a volume; of something directly below the root that is itself."""
    parent = posixpath.dirname(source)
    return source if parent == "/" else parent


def _meets(place: str, sources: Iterable[str]) -> bool:
    """Whether any of the sources is in a place, or the place is in it."""
    return any(above(source, [place]) or above(place, [source]) for source in sources)


def _no_descriptor(name: str, path: str) -> str:
    if path in checks.PASSED:
        _refuse(name, f"{path}, which is here and not in a pod: name a file")
    return checks.absolute(name, path)


def _refuse(where: str, words: str) -> NoReturn:
    raise InvalidArgumentError(f"{where} has {words}")
