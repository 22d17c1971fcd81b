"""From a JobTemplate to a batch/v1 Job and what is made beside it, as JSON; no cluster is asked.

What a cluster would refuse, or what would wait there for ever, is refused here by field or extension as far as it can
be known. The same functions make what `preview` shows.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wfl.backend import INDEX
from wfl.contexts import checks, images
from wfl.contexts.kubernetes import extensions
from wfl.contexts.kubernetes.extensions import NAME, VALUE, Json, Parts
from wfl.contexts.kubernetes.facts import INDEX as NUMBER
from wfl.contexts.kubernetes.facts import MAIN, NOT_FOUND
from wfl.contexts.kubernetes.jobs import HELD, KEY, MAKING, PATIENCE, SUSPENDED, WAITING
from wfl.contexts.kubernetes.volumes import (
    FILES,
    NULL,
    PLACE,
    STDIN,
    STREAMS,
    Files,
    is_file,
    is_joined,
    is_local,
    to_files,
)
from wfl.drmaa2 import WALLCLOCK_TIME
from wfl.errors import DeniedByDrmsError, InvalidArgumentError, UnsupportedAttributeError
from wfl.placeholders import PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wfl.drmaa2 import JobTemplate

FIELDS = frozenset({
    "remote_command", "args", "submit_as_hold", "rerunnable", "job_environment", "working_directory", "job_category",
    "job_name", "input_path", "output_path", "error_path", "join_files", "queue_name", "min_slots", "max_slots",
    "priority", "candidate_machines", "min_phys_memory", "machine_os", "machine_arch", "start_time", "deadline_time",
    "stage_in_files", "stage_out_files", "resource_limits", "accounting_id", "extensions",
})  # fmt: skip
"""Template fields that mean something to a Job."""
EXTENSIONS = extensions.EXTENSIONS
INDEX_FIELDS = frozenset({
    "remote_command", "args", "job_environment", "working_directory", "output_path", "error_path",
})  # fmt: skip
"""Those in which an array's elements may differ: a shell in each pod fills in the index, the session the two paths."""

IN, OUT = "wfl-in", "wfl-out"
"""The containers through which files come and go, by FILES."""

FETCHING = 3600
"""Seconds that a pod with files to fetch keeps them for whoever comes: less would lose large ones."""
STARTING = 300
"""Seconds that a pod may take until its command begins, as for its image: the node counts its time from before that."""
_MANY, _MOST_AT_ONCE = 100_000, 10_000
"""Elements above which Kubernetes wants limits, and the highest that these may be then."""
_MOST_ARGS = 200_000
"""Characters of a template beyond which its record leaves the args out: annotations have 256 KiB together."""
_WITH_ENVIRONMENT = ("container_patch", "init_containers", "sidecars")
"""Extensions in which variables of containers may stand."""
_MOST = 1_500_000
"""Bytes of a Job; what keeps them for the API server takes no more than 1.5 MiB."""
_MOST_NOTED = 1 << 18
"""Bytes of all annotations together."""
_MOST_SECONDS = (1 << 31) - 1
_MOST_SCRIPT = 131_071
"""Bytes of one argument (execve(2))."""
_NUMBER = "JOB_COMPLETION_INDEX"
"""The variable that tells an array's element its number, from 0."""
_HELPING = {
    "requests": {"cpu": "0", "memory": "0"},
    "limits": {"cpu": "1", "memory": "64Mi"},
}
"""What a helper has where the main container has some: a quota wants it said, and a job may be as large as a node."""
_VALUE = re.compile(VALUE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the context says for every job; `shell` is where images have one, None if they have none."""

    image: str | None = None
    pull: str | None = None
    shell: str | None = "/bin/sh"
    helper_image: str | None = None

    @property
    def helper_shell(self) -> str | None:
        """The shell that sees to files."""
        return "/bin/sh" if self.helper_image else self.shell


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose job it is. `index`: it is one element of an array, submitted by itself; `patience`: in seconds."""

    key: str
    session: str
    program: str
    job_id: str
    index: int | None = None
    detach: bool = False
    patience: float = 300.0


_ANYBODY = Identity(key="key", session="session", program="program", job_id="id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A Job, the objects that are to be made beside it, and the files that are to be moved.

    `copies`: absolute path here by place in the volume, such as "in/0"; `fetched`: path that OUT sees, by absolute path
    here, in which an array has `$DRMAA2_INDEX$`; `streams`: path that OUT sees, by "stdout" and "stderr", of what is
    written to files and not to the log; `suspended`: why the Job stays suspended when all of this is there.
    """

    job: Json
    extra: tuple[Json, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    fetched: Mapping[str, str] = field(default_factory=dict)
    streams: Mapping[str, str] = field(default_factory=dict)
    suspended: str | None = None


# --- the whole --------------------------------------------------------------------------------------------


def check(template: JobTemplate, defaults: Defaults, indexes: range | None = None) -> None:
    """Refuse what no Job can be made of, and files on this side that cannot be used: of an array, its first element's.

    Raises InvalidArgumentError, UnsupportedAttributeError or DeniedByDrmsError that names field and remedy.
    """
    staged: Mapping[str, str] = template.stage_in_files or {}
    checks.sources({target: source for target, source in staged.items() if is_local(source)})
    made = manifests(template, _ANYBODY, defaults)
    argv = [word for word in (template.remote_command, *(template.args or ())) if word is not None]
    checks.sizes(argv, template.job_environment or {}, template.job_environment)
    number = str(indexes[0]) if indexes else INDEX
    first: Any = {name: path.replace(INDEX, number) for name in PATHS if (path := getattr(template, name))}
    checks.streams_here(template.replace(**first))
    _check_size(made)


def manifests(
    template: JobTemplate,
    identity: Identity,
    defaults: Defaults,
    *,
    indexes: range | None = None,
    max_parallel: int | None = None,
    priority_class: str | None = None,
    now: datetime | None = None,
) -> Made:
    """What is to be created for a template, or for an array of it, which `native` must allow.

    `priority_class` is the name of the class whose value the template's priority is. While there are objects to be
    made, the Job is suspended for that; `Made.suspended` says why it stays so.
    """
    now = now or datetime.now(UTC)
    name = job_object_name(template, identity.key)
    labels = _labels(template, identity)
    job: Json = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": _annotations(template, identity, indexes),
        },
        "spec": {
            **_counts(template, indexes, max_parallel),
            **_deadline(template, now),
            "template": {"metadata": {"labels": dict(labels)}},
        },
    }
    files = Files(template, name, labels)
    main = {**_main(template, identity, defaults, indexes), "volumeMounts": files.mounts}
    copied = bool(files.copies) or is_file(template.input_path)
    pod = {**_pod(template, priority_class, copied=copied), "volumes": files.volumes}
    if template.extensions:
        extensions.add(Parts(job, pod, main), template.extensions)
        files.mounts, files.volumes = main["volumeMounts"], pod["volumes"]
    files.take_out()
    job["spec"]["template"]["spec"] = _whole_pod(pod, main, files, defaults)
    why = _why_suspended(template, now)
    if first := MAKING if files.extra else why:
        job["spec"] = {"suspend": True, **job["spec"]}
        job["metadata"]["annotations"][SUSPENDED] = first
    return Made(
        job=job,
        extra=tuple(files.extra),
        copies=files.copies,
        fetched=files.fetched,
        streams=files.streams,
        suspended=why,
    )


def _check_size(made: Made) -> None:
    """Kubernetes keeps no more of an object, and takes UTF-8; anything else it would replace without a word."""
    try:
        size = len(json.dumps(made.job, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 40) : error.end + 40]
        raise InvalidArgumentError(f"{around!r} is not UTF-8, and Kubernetes takes nothing else: rename it") from None
    if size > _MOST:
        raise InvalidArgumentError(f"the Job would have {size} bytes, Kubernetes takes {_MOST}: put args into a file")
    noted = sum(len(key) + len(value.encode()) for key, value in made.job["metadata"]["annotations"].items())
    if noted > _MOST_NOTED:
        raise InvalidArgumentError(f"annotations would have {noted} bytes, Kubernetes takes {_MOST_NOTED} in all")


def moved(template: JobTemplate) -> Files:
    """`copies`, `fetched` and `streams` once more, for a job that is there."""
    files = Files(template, "", {})
    files.take_out()
    return files


def native(template: JobTemplate, indexes: range, defaults: Defaults) -> bool:
    """Whether an array of this template can be one Indexed Job, as far as its elements differ in INDEX_FIELDS alone.

    Kubernetes counts from 0 and fills in nothing: the rest is done by a shell that starts the command.
    """
    environment: Mapping[str, str] = template.job_environment or {}
    if any(INDEX in name or (INDEX in value and not _VARIABLE.fullmatch(name)) for name, value in environment.items()):
        return False
    staged = (*(template.stage_in_files or ()), *(template.stage_out_files or {}).values())
    if INDEX in (template.working_directory or "") and any(not place.startswith("/") for place in staged):
        return False
    return not _is_numbered(template, indexes) or bool(defaults.shell and template.remote_command)


def preview_documents(made: Made) -> str:
    """The same as YAML for `kubectl apply`, which makes all of it at once, so that nothing waits for that."""
    import yaml

    job = json.loads(json.dumps(made.job))
    if made.suspended:
        job["metadata"]["annotations"][SUSPENDED] = made.suspended
    elif made.extra:
        del job["spec"]["suspend"], job["metadata"]["annotations"][SUSPENDED]
    notes = [f"# {json.dumps(source)} is copied to {place} by the session\n" for place, source in made.copies.items()]
    notes += [f"# {path} is fetched to {json.dumps(target)} by the session\n" for target, path in made.fetched.items()]
    notes += [f"# {path} is fetched by the session, as {stream}\n" for stream, path in made.streams.items()]

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return data is not None

    Dumper.add_representer(str, _shown)
    given: Any = {"Dumper": Dumper, "sort_keys": False, "width": 110, "allow_unicode": True}
    return "".join(notes) + "---\n".join(yaml.dump(document, **given) for document in (*made.extra, job))


def _shown(dumper: Any, text: str) -> Any:
    """Lines as lines; and quoted whatever kubectl's YAML may take for a number or a flag, as "1e3" or "y"."""
    plain = re.fullmatch(r"(?![ynYN]\Z)[A-Za-z/][^\n]*", text)
    style = "|" if "\n" in text else None if plain else "'"
    if not text.replace("\n", "").isprintable():  # some ends of lines would become others
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


# --- names ------------------------------------------------------------------------------------------------


def job_object_name(template: JobTemplate, key: str) -> str:
    """What the Job is called: as its template is as far as Kubernetes has such letters, and by its key."""
    words = re.sub(r"[^a-z0-9]+", "-", (template.job_name or "").lower())[:28].strip("-")
    return f"{words or 'wfl'}-{key.replace('.', '-')}"


def label_value(text: str) -> str:
    """The text itself where it can be a label's value, else a digest of it."""
    return text if _VALUE.fullmatch(text) else f"sha1-{hashlib.sha1(text.encode(errors='replace')).hexdigest()}"  # noqa: S324


def _labels(template: JobTemplate, identity: Identity) -> dict[str, str]:
    """What Job and pods are found by."""
    found = {
        "wfl/session": label_value(identity.session),
        KEY: identity.key,
        "wfl/program": label_value(identity.program),
        "wfl/detach": "true" if identity.detach else "false",
    }
    if account := template.accounting_id:
        if not _VALUE.fullmatch(account):
            raise InvalidArgumentError(f"accounting_id is {account!r}, expected up to 63 letters, digits, '-_.'")
        found["wfl/account"] = account
    return found


def _annotations(template: JobTemplate, identity: Identity, indexes: range | None) -> dict[str, str]:
    """What a later program learns of the job."""
    found = {"wfl/job": identity.job_id, "wfl/session": identity.session, PATIENCE: f"{identity.patience:g}"}
    if identity.index is not None:
        found["wfl/index"] = str(identity.index)
    if indexes is not None:
        found["wfl/indexes"] = f"{indexes.start}:{indexes.stop}:{indexes.step}"
    found["wfl/template"] = _record(template)
    return found


def _record(template: JobTemplate) -> str:
    """The template without what may be secret: environments, and what is given inline."""
    template = template.replace(job_environment=None)
    if given := template.extensions:
        template = template.replace(
            extensions={key: given[key] for key in given if key not in _WITH_ENVIRONMENT} or None
        )
    staged = template.stage_in_files
    if staged and any(source.startswith("inline") for source in staged.values()):
        kept = {target: re.sub(r"(?s)^(inline(-secret)?:).*", r"\1", source) for target, source in staged.items()}
        template = template.replace(stage_in_files=kept)
    text = template.to_json()
    return text if len(text) <= _MOST_ARGS else template.replace(args=None).to_json()


def _why_suspended(template: JobTemplate, now: datetime) -> str | None:
    if (template.submit_as_hold or template.start_time) and "kueue_queue" in (template.extensions or {}):
        raise InvalidArgumentError("submit_as_hold or start_time with kueue_queue: when it may start is Kueue's to say")
    if template.submit_as_hold:
        return HELD
    return WAITING if template.start_time and template.start_time > now else None


# --- how often and how long -------------------------------------------------------------------------------


def _counts(template: JobTemplate, indexes: range | None, max_parallel: int | None) -> Json:
    """No pod is made a second time, unless the template says so; and one element's end leaves the others alone."""
    found: Json = {"completions": 1, "parallelism": 1, "backoffLimit": 0}
    if indexes is not None:
        count = len(indexes)
        most = _MOST_AT_ONCE if count > _MANY else _MANY
        found = {
            "completionMode": "Indexed",
            "completions": count,
            "parallelism": min(max_parallel or count, count, most),
            "backoffLimitPerIndex": 0,
        }
        if count > _MANY:
            found["maxFailedIndexes"] = _MOST_AT_ONCE
    if template.rerunnable:
        lost = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        found.update(podReplacementPolicy="Failed", podFailurePolicy={"rules": [lost]})
    return found


def _deadline(template: JobTemplate, now: datetime) -> dict[str, int]:
    """In seconds from when the Job is not suspended; the session ends it to the point, this is for when it is gone."""
    if template.deadline_time is None:
        return {}
    begin = max(now, template.start_time or now)
    return {"activeDeadlineSeconds": _whole_seconds((template.deadline_time - begin).total_seconds())}


def _whole_seconds(seconds: float) -> int:
    return min(max(1, math.ceil(min(seconds, _MOST_SECONDS))), _MOST_SECONDS)


# --- the pod ----------------------------------------------------------------------------------------------


def _pod(template: JobTemplate, priority_class: str | None, *, copied: bool) -> Json:
    """Everything but containers and volumes. Processes share their names, so that no command is PID 1, which the
    kernel shields from signals.

    The session limits time from when the command begins; the pod's own limit is for when the session is gone, and is
    longer, as the node counts from before the image is there and, if any are `copied`, the files.
    """
    pod: Json = {
        "restartPolicy": "Never",
        "shareProcessNamespace": True,
        "automountServiceAccountToken": False,
    }
    if limits := template.resource_limits:
        for name in limits:
            if name != WALLCLOCK_TIME:
                raise UnsupportedAttributeError(
                    f"resource_limits: a pod has no {name}; min_phys_memory limits memory, and a shell has ulimit"
                )
        before = STARTING + (FETCHING if copied or "init_containers" in (template.extensions or {}) else 0)
        pod["activeDeadlineSeconds"] = _whole_seconds(limits[WALLCLOCK_TIME] + before)
    if template.queue_name and template.priority is not None:
        raise InvalidArgumentError("queue_name is a priority class, and priority the number of one: say it once")
    if template.queue_name and not re.fullmatch(NAME, template.queue_name):
        raise InvalidArgumentError(f"queue_name is {template.queue_name!r}, no name of a priority class")
    if called := template.queue_name or priority_class:
        pod["priorityClassName"] = called
    if selector := _node_selector(template):
        pod["nodeSelector"] = selector
    if machines := template.candidate_machines:
        pod["affinity"] = _affinity(machines)
    return pod


def _node_selector(template: JobTemplate) -> dict[str, str]:
    found = {}
    if system := template.machine_os:
        if system.upper() != "LINUX":
            raise DeniedByDrmsError(f"machine_os is {system}; pods are made for LINUX")
        found["kubernetes.io/os"] = "linux"
    if given := template.machine_arch:
        found["kubernetes.io/arch"] = images.architecture(given)
    return found


def _affinity(machines: tuple[str, ...]) -> Json:
    """One of these nodes, by its own name, which the label kubernetes.io/hostname need not be; a term takes one."""
    for machine in machines:
        if not re.fullmatch(NAME, machine):
            raise InvalidArgumentError(f"candidate_machines has {machine!r}, no name of a node")
    named = [[{"key": "metadata.name", "operator": "In", "values": [machine]}] for machine in machines]
    terms = {"nodeSelectorTerms": [{"matchFields": fields} for fields in named]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def _whole_pod(pod: Json, main: Json, files: Files, defaults: Defaults) -> Json:
    """With the containers that move files, and in the order in which people look for things."""
    before = pod.pop("initContainers", [])
    volumes = pod.pop("volumes")
    whole = {"mountPath": PLACE, "name": FILES}
    if files.copies:
        wait = f"until [ -e {PLACE}/.go ]; do sleep 0.05 || sleep 1; done"
        before = [_helper(IN, wait, main, defaults, [whole]), *before]
    if files.fetched or files.streams:
        pod.setdefault("terminationGracePeriodSeconds", FETCHING)
        wait = f"trap : TERM; until [ -e {PLACE}/.done ]; do sleep 0.1 || sleep 1; done"
        before = [*before, {**_helper(OUT, wait, main, defaults, [whole, *files.seen]), "restartPolicy": "Always"}]
    main["volumeMounts"] = sorted(files.mounts, key=lambda mount: str(mount.get("mountPath")))  # none hides another
    if not main["volumeMounts"]:
        del main["volumeMounts"]
    return {
        **pod,
        **({"initContainers": before} if before else {}),
        "containers": [main],
        **({"volumes": volumes} if volumes else {}),
    }


def _helper(name: str, script: str, main: Json, defaults: Defaults, mounts: list[Json]) -> Json:
    """A shell that waits while files are moved by others. Whatever is asked of the main container is asked of it, too:
    its rights, and limits where a quota may want them of all containers.
    """
    shell = defaults.helper_shell
    if shell is None:
        words = "files are copied by a shell and tar in the pod, and images have none (shell is None)"
        raise InvalidArgumentError(f"{words}: set helper_image in the context, such as 'busybox:1'")
    like: Json = {key: main[key] for key in ("imagePullPolicy", "securityContext") if key in main}
    limits = {kind: main["resources"][kind].keys() & _HELPING[kind] for kind in main.get("resources", ())}
    resources = {kind: {key: _HELPING[kind][key] for key in sorted(keys)} for kind, keys in limits.items() if keys}
    return {
        "name": name,
        "image": defaults.helper_image or main["image"],
        **like,
        "command": [shell, "-c", script],
        **({"resources": resources} if resources else {}),
        "volumeMounts": mounts,
    }


# --- the main container -----------------------------------------------------------------------------------


def _main(template: JobTemplate, identity: Identity, defaults: Defaults, indexes: range | None) -> Json:
    """All but what is mounted. `$` is doubled wherever Kubernetes would take `$(NAME)` for a variable."""
    numbered = indexes is not None and _is_numbered(template, indexes)
    main: Json = {"name": MAIN, "image": images.image(template, defaults.image)}
    if defaults.pull:
        main["imagePullPolicy"] = extensions.PULL[defaults.pull]
    main.update(_command(template, defaults.shell, indexes if numbered else None))
    if place := template.working_directory:
        if not place.startswith("/"):
            raise InvalidArgumentError(
                f"working_directory has {place!r}: in a pod paths are absolute, such as '/{place}'"
            )
        if not (numbered and INDEX in place):
            main["workingDir"] = place
    main["env"] = _environment(template, identity, indexes, numbered=numbered)
    if resources := _resources(template):
        main["resources"] = resources
    return main


def _environment(
    template: JobTemplate, identity: Identity, indexes: range | None, *, numbered: bool
) -> list[dict[str, Any]]:
    environment = {**(template.job_environment or {}), "JOB_ID": identity.job_id}
    if identity.index is not None:
        environment["TASK_ID"] = str(identity.index)
    if indexes is not None:
        environment.pop("TASK_ID", None)
    for name in environment:
        if not (name.isascii() and name.isprintable()):
            raise InvalidArgumentError(f"job_environment has the key {name!r}, which is not in printable ASCII")
        if indexes is not None and name == _NUMBER:
            raise InvalidArgumentError(f"job_environment has the key {name}: in an array it is Kubernetes' own")
    found: list[dict[str, Any]] = [
        {"name": name, "value": value.replace("$", "$$")}
        for name, value in environment.items()
        if not (numbered and INDEX in value)
    ]
    if indexes is not None and not numbered:
        source = {"fieldRef": {"fieldPath": f"metadata.annotations['{NUMBER}']"}}
        found.append({"name": "TASK_ID", "valueFrom": source})
    return found


def _resources(template: JobTemplate) -> Json:
    found: dict[str, dict[str, str]] = {}
    low, high = template.min_slots or template.max_slots, template.max_slots or template.min_slots
    if low and high:
        found = {"requests": {"cpu": str(low)}, "limits": {"cpu": str(high)}}
    if template.min_phys_memory:
        for kind in ("requests", "limits"):
            found.setdefault(kind, {})["memory"] = f"{template.min_phys_memory}Ki"
    return found


def _is_numbered(template: JobTemplate, indexes: range) -> bool:
    """Whether a shell has to tell elements of an array apart: Kubernetes tells them 0, 1, 2 and no more."""
    texts = (template.remote_command, template.working_directory, *(template.args or ()))
    inside = any(INDEX in text for text in (*texts, *(template.job_environment or {}).values()) if text)
    return inside or (indexes.start, indexes.step) != (0, 1)


def _command(template: JobTemplate, shell: str | None, indexes: range | None) -> Json:
    """Without a command, args go to the image's own; `indexes` are those that a shell has to count."""
    words = [template.remote_command or "", *(template.args or ())]
    script, inside = _script(template, words, indexes, joined=bool(is_joined(template) and shell and words[0]))
    if not script:
        literal = [word.replace("$", "$$") for word in words]
        found = {"command": literal[:1] if words[0] else None, "args": literal[1:]}
        return {key: value for key, value in found.items() if value}
    for_what = "an array's index" if indexes is not None else "input_path, error_path or output in a file"
    if shell is None:
        raise InvalidArgumentError(f"{for_what} is seen to by a shell, and images have none (shell is None)")
    if not words[0]:
        raise InvalidArgumentError(
            f"{for_what} needs remote_command: the image's own command is not known to its shell"
        )
    if len(script.encode(errors="replace")) > _MOST_SCRIPT:
        raise InvalidArgumentError(f"a shell script with {INDEX} in it would be above {_MOST_SCRIPT} bytes: use a file")
    command = [shell, "-c", script, "wfl"]
    return {
        "command": [word.replace("$", "$$") for word in command],
        **({} if inside else {"args": [word.replace("$", "$$") for word in words]}),
    }


def _script(template: JobTemplate, words: list[str], indexes: range | None, *, joined: bool) -> tuple[str, bool]:
    """What starts the command where Kubernetes alone cannot, and whether the words are in it, as they have the index;
    else they are the script's arguments, which may be longer. Nothing if it is not needed.
    """
    lines = [] if indexes is None else _number(template, indexes)
    streams = _redirections(template, joined=joined)
    if not lines and not streams:
        return "", False
    inside = indexes is not None and any(INDEX in word for word in words)
    first, whole = (_quoted(words[0]), " ".join(map(_quoted, words))) if inside else ('"$1"', '"$@"')
    lines += [f"command -v {first} >/dev/null 2>&1 || {_gives_up(first, 'not found')}", f"exec {whole}{streams}"]
    return "\n".join(lines), inside


def _number(template: JobTemplate, indexes: range) -> list[str]:
    lines = [f"export TASK_ID=$(({indexes.start}+{_NUMBER}*{indexes.step}))"]
    for name, value in (template.job_environment or {}).items():
        if INDEX in value and name not in ("JOB_ID", "TASK_ID"):
            lines.append(f"export {name}={_quoted(value)}")
    if INDEX in (template.working_directory or ""):
        place = _quoted(template.working_directory or "")
        lines.append(
            f"{{ [ -d {place} ] || mkdir -p {place}; }} && cd {place} || {_gives_up(place, 'cannot be entered')}"
        )
    return lines


def _gives_up(what: str, why: str) -> str:
    """The end of a command that never ran; Kubernetes shows what is written there."""
    return f"{{ printf '{NOT_FOUND}%s: {why}\\n' {what} >/dev/termination-log; exit 127; }}"


def _quoted(text: str) -> str:
    """As one word of a shell, with the index in it."""
    return '"$TASK_ID"'.join(shlex.quote(part) if part else "" for part in text.split(INDEX)) or "''"


def _redirections(template: JobTemplate, *, joined: bool) -> str:
    """`joined`: in the order of writing, which the node does not keep as it reads both streams."""
    streams = to_files(template)
    words = [f"<{STDIN}"] if is_file(template.input_path) else []
    words += [f">{STREAMS}/stdout"] if "stdout" in streams else []
    if template.error_path == NULL:
        words.append(f"2>{NULL}")
    elif "stderr" in streams:
        words.append(f"2>{STREAMS}/stderr")
    elif joined or "stdout" in streams:
        words.append("2>&1")
    return "".join(f" {word}" for word in words)
