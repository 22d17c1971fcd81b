"""What is made of a template: the place of each field and extension, and a refusal for each kind of wrong value."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wfl.backend import INDEX
from wfl.contexts.kubernetes import KubernetesContext, extensions, template, volumes
from wfl.drmaa2 import JobTemplate
from wfl.errors import DeniedByDrmsError, InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2027, 1, 1, tzinfo=UTC)
DEFAULTS = template.Defaults(image="busybox")
IDENTITY = template.Identity(key="k1-1.3", session="s", program="p", job_id="k1-1")
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
NUMBERED = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that the program is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(
    *, defaults: template.Defaults = DEFAULTS, identity: template.Identity = IDENTITY, more: Any = None, **fields: Any
) -> template.Made:
    """What is made of these fields; `more` goes to manifests. Whatever is mounted is a volume."""
    found = template.manifests(JobTemplate(**fields), identity, defaults, **{"now": NOW, **(more or {})})
    spec = found.job["spec"]["template"]["spec"]
    mounted = {
        mount["name"]
        for container in (*spec.get("initContainers", ()), *spec["containers"])
        for mount in container.get("volumeMounts", ())
    }
    assert mounted <= {volume["name"] for volume in spec.get("volumes", ())} | {"theirs"}
    return found


def pod(**fields: Any) -> Any:
    """The pod's spec."""
    return made(**fields).job["spec"]["template"]["spec"]


def main(**fields: Any) -> Any:
    """The container that runs the command."""
    containers = pod(**fields)["containers"]
    assert [one["name"] for one in containers] == ["main"]
    return containers[0]


def extended(name: str, text: str) -> template.Made:
    """What is made of a template with one extension."""
    return made(remote_command="x", extensions={name: text})


def refused(
    words: str,
    error: type[Exception] = InvalidArgumentError,
    /,
    defaults: template.Defaults = DEFAULTS,
    **fields: Any,
) -> None:
    """The template is refused in these words (a regular expression)."""
    with pytest.raises(error, match=words):
        template.check(JobTemplate(**fields), defaults)


# --- the whole --------------------------------------------------------------------------------------------


def test_a_template_that_says_nothing_adds_nothing() -> None:
    """The image's own command runs once, in a pod that is never made again and has no rights in the cluster."""
    ours = {"wfl/session": "s", "wfl/key": "k1-1.3", "wfl/program": "p", "wfl/detach": "false"}
    assert made() == template.Made(
        job={
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": "wfl-k1-1-3",
                "labels": ours,
                "annotations": {
                    "wfl/job": "k1-1",
                    "wfl/session": "s",
                    "wfl/patience": "300",
                    "wfl/template": "{}",
                },
            },
            "spec": {
                "completions": 1,
                "parallelism": 1,
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": ours},
                    "spec": {
                        "restartPolicy": "Never",
                        "shareProcessNamespace": True,
                        "automountServiceAccountToken": False,
                        "containers": [
                            {"name": "main", "image": "busybox", "env": [{"name": "JOB_ID", "value": "k1-1"}]}
                        ],
                    },
                },
            },
        }
    )
    template.check(JobTemplate(), DEFAULTS)


MAIN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"remote_command": "sh", "args": ("-c", "a", "")}, {"command": ["sh"], "args": ["-c", "a", ""]}),
    ({"remote_command": "date"}, {"command": ["date"]}),
    ({"args": ("--help",)}, {"args": ["--help"]}),
    ({"remote_command": "", "args": ("--help",)}, {"args": ["--help"]}),
    ({"remote_command": "$x", "args": ("$(A)", "$$")}, {"command": ["$$x"], "args": ["$$(A)", "$$$$"]}),
    ({"job_category": "ghcr.io/a/b:1"}, {"image": "ghcr.io/a/b:1"}),
    ({"working_directory": "/job/a b"}, {"workingDir": "/job/a b"}),
    (
        {"job_environment": {"A": "1=2\n3", "JOB_ID": "x", "B": "$(A)$"}},
        {
            "env": [
                {"name": "A", "value": "1=2\n3"},
                {"name": "JOB_ID", "value": "k1-1"},
                {"name": "B", "value": "$$(A)$$"},
            ]
        },
    ),
    ({"min_slots": 2}, {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}}),
    ({"max_slots": 2}, {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}}),
    ({"min_slots": 2, "max_slots": 3}, {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "3"}}}),
    ({"min_phys_memory": 65536}, {"resources": {"requests": {"memory": "65536Ki"}, "limits": {"memory": "65536Ki"}}}),
    ({"min_phys_memory": 0}, {}),
    ({"input_path": "/dev/null", "output_path": "out", "job_name": "x"}, {}),
]
POD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"queue_name": "urgent"}, {"priorityClassName": "urgent"}),
    ({"queue_name": ""}, {}),
    ({"resource_limits": {"WALLCLOCK_TIME": 1.2}}, {"activeDeadlineSeconds": 302}),
    ({"resource_limits": {"WALLCLOCK_TIME": 1e12}}, {"activeDeadlineSeconds": 2147483647}),
    ({"machine_os": "linux"}, {"nodeSelector": {"kubernetes.io/os": "linux"}}),
    ({"machine_arch": "X64"}, {"nodeSelector": {"kubernetes.io/arch": "amd64"}}),
    (
        {"candidate_machines": ("a", "b.c")},
        {
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]},
                            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b.c"]}]},
                        ]
                    }
                }
            }
        },
    ),
]
JOB: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"submit_as_hold": True}, {"suspend": True}),
    ({"submit_as_hold": False, "rerunnable": False}, {}),
    ({"start_time": NOW + timedelta(seconds=1)}, {"suspend": True}),
    ({"start_time": NOW}, {}),
    ({"deadline_time": NOW + timedelta(seconds=1.1)}, {"activeDeadlineSeconds": 2}),
    ({"deadline_time": NOW - timedelta(seconds=9)}, {"activeDeadlineSeconds": 1}),
    (
        {"start_time": NOW + timedelta(seconds=60), "deadline_time": NOW + timedelta(seconds=90)},
        {"suspend": True, "activeDeadlineSeconds": 30},
    ),
    (
        {"rerunnable": True},
        {
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
        },
    ),
]


@pytest.mark.parametrize(("fields", "members"), MAIN)
def test_main_container(here: Path, fields: dict[str, Any], members: dict[str, Any]) -> None:
    """Each field has its place in the main container, and changes nothing else."""
    assert here.is_dir()
    template.check(JobTemplate(**fields), DEFAULTS)
    assert main(**fields) == {**main(), **members}
    assert {**pod(**fields), "containers": []} == {**pod(), "containers": []}


@pytest.mark.parametrize(("fields", "members"), POD)
def test_pod(fields: dict[str, Any], members: dict[str, Any]) -> None:
    """Each field has its place in the pod's spec, and changes nothing else."""
    template.check(JobTemplate(**fields), DEFAULTS)
    assert pod(**fields) == {**pod(), **members}


@pytest.mark.parametrize(("fields", "members"), JOB)
def test_job(fields: dict[str, Any], members: dict[str, Any]) -> None:
    """Each field has its place in the Job's spec, and changes nothing else."""
    template.check(JobTemplate(**fields), DEFAULTS)
    assert made(**fields).job["spec"] == {**made().job["spec"], **members}


def test_every_field_is_tried() -> None:
    """A field that is added to FIELDS is tried here."""
    tried = {name for table in (MAIN, POD, JOB) for fields, _ in table for name in fields}
    below = {"priority", "error_path", "join_files", "stage_in_files", "stage_out_files", "accounting_id", "extensions"}
    assert tried | below == template.FIELDS
    assert template.INDEX_FIELDS <= template.FIELDS


def test_priority_is_a_class_of_the_cluster() -> None:
    """The name is found by the backend; without one, as in a preview, nothing is said."""
    assert "priorityClassName" not in pod(priority=5)
    assert pod(priority=5, more={"priority_class": "high"})["priorityClassName"] == "high"


@pytest.mark.parametrize("files", [{"stage_in_files": {"/b": "/tmp"}}, {"input_path": "/etc/passwd"}])
def test_a_pod_may_wait_for_its_files(files: dict[str, Any]) -> None:
    """Its own limit leaves an hour more for them; none for what the node itself mounts. A patch has the last word."""
    limited: dict[str, Any] = {"remote_command": "x", "resource_limits": {"WALLCLOCK_TIME": 60}}
    assert pod(**limited, **files)["activeDeadlineSeconds"] == 60 + 300 + 3600
    assert pod(**limited, stage_in_files={"/a": "inline:x"})["activeDeadlineSeconds"] == 60 + 300
    patched = pod(**limited, **files, extensions={"pod_patch": "{activeDeadlineSeconds: 5}"})
    assert patched["activeDeadlineSeconds"] == 5


def test_accounting_id_is_a_label() -> None:
    """Of the Job and of its pods, by which usage is summed up."""
    job = made(accounting_id="physics").job
    assert job["metadata"]["labels"]["wfl/account"] == "physics"
    assert job["spec"]["template"]["metadata"]["labels"] == job["metadata"]["labels"]


def test_a_plain_job_costs_little() -> None:
    """One submission is made in well under a millisecond."""
    plain = JobTemplate(remote_command="true", extensions={"tolerations": "[{operator: Exists}]"})
    template.manifests(plain, IDENTITY, DEFAULTS)  # imports and parses
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        template.manifests(plain, IDENTITY, DEFAULTS)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.0005


# --- names, labels, annotations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "wfl-k1-1-3"),
        ("Größe & Co.", "gr-e-co-k1-1-3"),
        ("--", "wfl-k1-1-3"),
        ("a" * 27 + "-b", "a" * 27 + "-k1-1-3"),
        ("7", "7-k1-1-3"),
    ],
)
def test_job_object_name(name: str | None, expected: str) -> None:
    """The job's name as far as Kubernetes has such letters, and the key, which is unique."""
    assert template.job_object_name(JobTemplate(job_name=name), "k1-1.3") == expected


@settings(deadline=None)
@given(WORDS)
def test_names_and_label_values_are_valid(text: str) -> None:
    """Whatever a job or session is called; different sessions have different labels."""
    name = template.job_object_name(JobTemplate(job_name=text), "ab12cd34ef-1234567.99999")
    assert len(name) + len("-99999") <= 63
    assert re.fullmatch(extensions.LABEL, name)
    value = template.label_value(text)
    assert re.fullmatch(extensions.VALUE, value)
    assert value == text or value.startswith("sha1-")


def test_identity() -> None:
    """Labels find it, annotations tell the rest; the element's index is also its TASK_ID."""
    whose = template.Identity(key="k-1.3", session="my session", program="p", job_id="k-1", index=3, detach=True)
    job = made(identity=whose, job_environment={"TASK_ID": "9"}).job
    assert job["metadata"]["labels"] == {
        "wfl/session": template.label_value("my session"),
        "wfl/key": "k-1.3",
        "wfl/program": "p",
        "wfl/detach": "true",
    }
    assert job["metadata"]["annotations"] == {
        "wfl/job": "k-1",
        "wfl/session": "my session",
        "wfl/patience": "300",
        "wfl/index": "3",
        "wfl/template": "{}",
    }
    env = job["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {one["name"]: one["value"] for one in env} == {"TASK_ID": "3", "JOB_ID": "k-1"}


def test_the_record_has_no_secrets() -> None:
    """Neither environment nor what is given inline is in labels or annotations, and a secret in no ConfigMap."""
    result = made(
        job_environment={"PASSWORD": "hush-1"},
        stage_in_files={"/a": "inline-secret:hush-2", "/b": "inline:hush-3", "/c": "inline-secret:hush-4"},
        extensions={
            "container_patch": "env: [{name: A, value: hush-5}]",
            "sidecars": "[{name: s, image: i, env: [{name: A, value: hush-6}]}]",
        },
    )
    metadata = json.dumps([result.job["metadata"], result.job["spec"]["template"]["metadata"]])
    assert "hush" not in metadata
    record = JobTemplate.from_json(result.job["metadata"]["annotations"]["wfl/template"])
    assert record == JobTemplate(stage_in_files={"/a": "inline-secret:", "/b": "inline:", "/c": "inline-secret:"})
    secret, public = result.extra
    assert [base64.b64decode(text) for text in secret["data"].values()] == [b"hush-2", b"hush-4"]
    assert public["data"] == {"f0": "hush-3"}
    assert "hush-2" not in json.dumps([public, result.job])


def test_a_long_record_leaves_out_args() -> None:
    """Annotations have 256 KiB together."""
    annotations = made(remote_command="x", args=("y" * 300_000,)).job["metadata"]["annotations"]
    assert annotations["wfl/template"] == '{"remoteCommand":"x"}'


def test_why_it_is_suspended() -> None:
    """A hold, else a start that is to come; first of all objects that are to be made."""
    later = NOW + timedelta(hours=1)
    making = {"stage_in_files": {"/a": "inline:x"}}

    def why(**fields: Any) -> Any:
        """As the Job says, and as it will when all is made."""
        result = made(**fields)
        said = result.job["metadata"]["annotations"].get("wfl/suspended")
        assert result.job["spec"].get("suspend", False) is (said is not None)
        return said, result.suspended

    assert why() == (None, None)
    assert why(**making) == ("making", None)
    assert why(start_time=later, **making) == ("making", "waiting")
    assert why(submit_as_hold=True, stage_in_files={"/a": "new-claim:1Gi"}) == ("making", "held")
    assert why(start_time=later, submit_as_hold=True) == ("held", "held")


# --- arrays and the shell that starts a command -----------------------------------------------------------


def array(indexes: range, max_parallel: int | None = None, **fields: Any) -> Any:
    """The Job of an array."""
    more = {"indexes": indexes, "max_parallel": max_parallel}
    return made(more=more, **{"remote_command": "x", **fields}).job


def test_an_array_is_one_indexed_job() -> None:
    """Elements fail alone, and those from 0 on find their TASK_ID without a shell."""
    job = array(range(5), 2, job_environment={"TASK_ID": "7"})
    assert {key: value for key, value in job["spec"].items() if key != "template"} == {
        "completionMode": "Indexed",
        "completions": 5,
        "parallelism": 2,
        "backoffLimitPerIndex": 0,
    }
    assert job["metadata"]["annotations"]["wfl/indexes"] == "0:5:1"
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["x"]
    assert container["env"] == [
        {"name": "JOB_ID", "value": "k1-1"},
        {"name": "TASK_ID", "valueFrom": {"fieldRef": {"fieldPath": NUMBERED}}},
    ]


@pytest.mark.parametrize(
    ("count", "max_parallel", "parallelism", "most"),
    [(100_000, None, 100_000, None), (100_001, None, 10_000, 10_000), (100_001, 7, 7, 10_000), (3, 9, 3, None)],
)
def test_long_arrays(count: int, max_parallel: int | None, parallelism: int, most: int | None) -> None:
    """Beyond 100,000 elements Kubernetes wants limits."""
    spec = array(range(count), max_parallel)["spec"]
    assert (spec["parallelism"], spec.get("maxFailedIndexes")) == (parallelism, most)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"remote_command": None}, False),
        ({"args": (INDEX,), "remote_command": None}, False),
        ({"job_environment": {"A": INDEX}}, True),
        ({"job_environment": {"a-b": INDEX}}, False),
        ({"job_environment": {f"A{INDEX}": "1"}}, False),
        ({"working_directory": f"/w/{INDEX}"}, True),
        ({"working_directory": f"/w/{INDEX}", "stage_in_files": {"a": "inline:"}}, False),
        ({"working_directory": f"/w/{INDEX}", "stage_out_files": {"a": "b"}}, False),
    ],
)
def test_native(fields: dict[str, Any], expected: bool) -> None:  # noqa: FBT001 - a table's column
    """Whether the elements can be told apart inside of one Job, by a shell with a command."""
    given = JobTemplate(**{"remote_command": "x", **fields})
    assert template.native(given, range(1, 5), DEFAULTS) is expected
    assert not template.native(given, range(1, 5), template.Defaults(image="x", shell=None))


def test_native_without_a_shell() -> None:
    """Kubernetes itself counts from 0 by 1."""
    bare = template.Defaults(image="x", shell=None)
    assert template.native(JobTemplate(), range(4), bare)
    assert not template.native(JobTemplate(remote_command="x"), range(0, 4, 2), bare)
    assert not template.native(JobTemplate(remote_command="x", args=(INDEX,)), range(4), bare)


def run(container: Any, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """What the kubelet would run, here: `$$` undone, with the container's variables."""
    words = [word.replace("$$", "$") for word in (*container["command"], *container.get("args", ()))]
    env = {one["name"]: one["value"].replace("$$", "$") for one in container["env"]}
    given = {os.fsencode(k): os.fsencode(v) for k, v in {"PATH": os.environ["PATH"], **variables, **env}.items()}
    return subprocess.run(words, env=given, capture_output=True, check=False)


SHOW = ("-c", 'printf "%s\\0" "$TASK_ID" "$A" "$B" "$@"; pwd', "sh")


@settings(deadline=None, max_examples=40)
@given(WORDS, WORDS, WORDS.filter(lambda text: "$DRMAA2" not in text))
def test_words_arrive(before: str, after: str, plain: str) -> None:
    """Any text in args and environment arrives as it is, with the index where its placeholder was."""
    word = f"{before}{INDEX}{after}"
    fields: dict[str, Any] = {"remote_command": "sh", "args": (*SHOW, word, plain)}
    job = array(range(4, -9, -3), **fields, job_environment={"A": word, "B": plain})
    ended = run(job["spec"]["template"]["spec"]["containers"][0], JOB_COMPLETION_INDEX="2")
    filled = word.replace(INDEX, "-2")
    assert ended.stderr == b""
    assert ended.stdout.split(b"\0")[:-1] == [text.encode() for text in ("-2", filled, plain, filled, plain)]


@settings(deadline=None, max_examples=40)
@given(WORDS, WORDS)
def test_words_arrive_past_a_shell(one: str, other: str) -> None:
    """The same where a shell does nothing but to direct standard error."""
    container = main(remote_command="sh", args=(*SHOW, one), job_environment={"A": other}, error_path="/dev/null")
    assert container["command"][:2] == ["/bin/sh", "-c"]
    ended = run(container)
    assert ended.stdout.split(b"\0")[:-1] == [b"", other.encode(), b"", one.encode()]


def test_directories_of_elements(here: Path) -> None:
    """They are made where they are not there, as a plain job's is by Kubernetes."""
    place = here / "it's $x"
    job = array(range(1, 3), remote_command="pwd", working_directory=f"{place}/{INDEX}")
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert "workingDir" not in container
    assert run(container, JOB_COMPLETION_INDEX="1").stdout.decode() == f"{place}/2\n"


def test_a_command_that_is_missing(here: Path) -> None:
    """It is told in words where Kubernetes looks for them, with the status of shells."""
    container = main(remote_command="no such", error_path="/dev/null")
    container["command"][2] = container["command"][2].replace("/dev/termination-log", f"{here}/log")
    assert run(container).returncode == 127
    assert (here / "log").read_text() == "wfl: no such: not found\n"


def test_streams() -> None:
    """Standard input is a file that is put there; what is to be apart from the log is a file that is fetched."""
    result = made(remote_command="x", input_path="in", error_path="/e", output_path="/o")
    assert result.copies == {"in/stdin": f"{os.getcwd()}/in"}
    assert result.streams == {"stderr": "/wfl/streams/stderr"}
    spec = result.job["spec"]["template"]["spec"]
    assert spec["containers"][0]["command"][2].endswith('exec "$$@" </wfl-stdin 2>/wfl-streams/stderr')
    assert [one["name"] for one in spec["initContainers"]] == ["wfl-in", "wfl-out"]
    assert spec["volumes"] == [{"name": "wfl-files", "emptyDir": {}}]


OUT, ERR = "/wfl/streams/stdout", "/wfl/streams/stderr"
FILES: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({}, {"stdout": OUT, "stderr": ERR}, " >/wfl-streams/stdout 2>/wfl-streams/stderr"),
    ({"join_files": True}, {"stdout": OUT}, " >/wfl-streams/stdout 2>&1"),
    ({"output_path": "/o", "error_path": "/o"}, {"stdout": OUT}, " >/wfl-streams/stdout 2>&1"),
    ({"output_path": "/dev/null"}, {"stderr": ERR}, " 2>/wfl-streams/stderr"),
    ({"error_path": "/dev/null"}, {"stdout": OUT}, " >/wfl-streams/stdout 2>/dev/null"),
]


@pytest.mark.parametrize(("fields", "streams", "words"), FILES)
def test_output_in_files(fields: dict[str, Any], streams: dict[str, str], words: str) -> None:
    """On wish both streams are files in the pod, whole and apart, whatever the node keeps of a log."""
    result = made(remote_command="x", extensions={"output": "file"}, **fields)
    assert result.streams == streams
    assert result.job["spec"]["template"]["spec"]["containers"][0]["command"][2].endswith(f'exec "$$@"{words}')


def test_joined() -> None:
    """Both streams in the order of writing: the command writes them to one; without a shell the log has both anyway."""
    assert main(remote_command="x", join_files=True)["command"][2].endswith('exec "$$@" 2>&1')
    assert main(remote_command="x", output_path="/o", error_path="/o")["command"][2].endswith('exec "$$@" 2>&1')
    assert "command" not in main(args=("x",), join_files=True)
    given = JobTemplate(remote_command="x", join_files=True)
    one = template.manifests(given, IDENTITY, template.Defaults(image="busybox", shell=None)).job
    assert one["spec"]["template"]["spec"]["containers"][0]["command"] == ["x"]


def test_streams_that_need_nothing() -> None:
    """There is nothing to be read in a pod anyway."""
    result = made(remote_command="x", input_path="/dev/null")
    assert (result.copies, result.streams) == ({}, {})
    assert main(remote_command="x", input_path="/dev/null")["command"] == ["x"]


# --- files ------------------------------------------------------------------------------------------------

STAGED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("inline:a:b", {"configMap": {"name": "wfl-k1-1-3"}}, {"subPath": "f0", "readOnly": True}),
    ("inline-secret:a", {"secret": {"secretName": "wfl-k1-1-3"}}, {"subPath": "f0", "readOnly": True}),
    ("configmap:a.b", {"configMap": {"name": "a.b"}}, {"readOnly": True}),
    ("configmap:a/K.y", {"configMap": {"name": "a"}}, {"subPath": "K.y", "readOnly": True}),
    ("secret:a", {"secret": {"secretName": "a"}}, {"readOnly": True}),
    ("secret:a/k", {"secret": {"secretName": "a"}}, {"subPath": "k", "readOnly": True}),
    ("hostpath:/a:b", {"hostPath": {"path": "/a:b"}}, {}),
    ("hostpath:/:ro", {"hostPath": {"path": "/"}}, {"readOnly": True}),
    ("claim:c", {"persistentVolumeClaim": {"claimName": "c"}}, {}),
    ("claim:c:ro", {"persistentVolumeClaim": {"claimName": "c"}}, {"readOnly": True}),
    ("new-claim:1.5Gi", {"persistentVolumeClaim": {"claimName": "wfl-k1-1-3-0"}}, {}),
    ("new-claim:fast:1G", {"persistentVolumeClaim": {"claimName": "wfl-k1-1-3-0"}}, {}),
    ("nfs:a.b:/e:ro", {"nfs": {"server": "a.b", "path": "/e"}}, {"readOnly": True}),
    ("nfs:[::1]:/e", {"nfs": {"server": "[::1]", "path": "/e"}}, {}),
    ("/etc", {"emptyDir": {}}, {"subPath": "in/0"}),
    ("./configmap:a", {"emptyDir": {}}, {"subPath": "in/0"}),
    ("C:x", {"emptyDir": {}}, {"subPath": "in/0"}),
]


@pytest.mark.parametrize(("source", "volume", "mount"), STAGED)
def test_stage_in_files(here: Path, source: str, volume: dict[str, Any], mount: dict[str, Any]) -> None:
    """Each form of a source has its kind of volume; anything else is a file of this side."""
    result = made(stage_in_files={"/t": source})
    spec = result.job["spec"]["template"]["spec"]
    name = spec["volumes"][0]["name"]
    assert spec["volumes"] == [{"name": name, **volume}]
    assert spec["containers"][0]["volumeMounts"] == [{"mountPath": "/t", "name": name, **mount}]
    copied = {"in/0": os.path.normpath(here / source)} if "emptyDir" in volume else {}
    assert result.copies == copied
    assert bool(copied) == ("initContainers" in spec)


def test_a_volume_is_one_for_all() -> None:
    """What is mounted twice of one object is one volume."""
    found = pod(stage_in_files={"/a": "configmap:c/x", "/b": "configmap:c/y", "/c": "secret:c", "/d": "inline:"})
    assert [next(iter(set(volume) - {"name"})) for volume in found["volumes"]] == ["configMap", "secret", "configMap"]


def test_claims_are_made() -> None:
    """Of the class and size that are named, each with a name of its own."""
    result = made(stage_in_files={"/a": "new-claim:fast:1Gi", "/b": "new-claim:2Gi"})
    assert [one["metadata"]["name"] for one in result.extra] == ["wfl-k1-1-3-0", "wfl-k1-1-3-1"]
    resources = {"requests": {"storage": "1Gi"}}
    assert result.extra[0]["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": resources,
        "storageClassName": "fast",
    }
    assert "storageClassName" not in result.extra[1]["spec"]


def outs(sources: list[str], **fields: Any) -> tuple[dict[str, str], list[str]]:
    """Where the shared volume is mounted for these sources, and what the helper sees."""
    result = made(remote_command="x", stage_out_files={f"/t{n}": source for n, source in enumerate(sources)}, **fields)
    spec = result.job["spec"]["template"]["spec"]
    mounts = spec["containers"][0]["volumeMounts"]
    helper = spec["initContainers"][-1]
    assert (helper["name"], helper["restartPolicy"]) == ("wfl-out", "Always")
    shared = {one["mountPath"]: one["subPath"] for one in mounts if one.get("subPath", "").startswith("out/")}
    return shared, [one["mountPath"] for one in helper["volumeMounts"]]


def test_what_is_fetched_is_in_a_volume() -> None:
    """The outermost directories that hold a source, if no other mount does; a helper sees them as the command does."""
    shared, seen = outs(["/w/a", "/w/b/c", "/x/y/z", "/top"])
    assert shared == {"/top": "out/0", "/w": "out/1", "/x/y": "out/2"}
    assert seen == ["/wfl", "/top", "/w", "/x/y"]
    shared, seen = outs(["a/b", "./c"], working_directory="/work")
    assert shared == {"/work": "out/0"}


def test_what_is_fetched_from_other_mounts() -> None:
    """Those are mounted in the helper, too, also below a directory that is fetched; others are not."""
    staged = {"/claim": "claim:c", "/w/in": "/tmp", "/other": "claim:d", "/w/s": "configmap:c"}
    shared, seen = outs(["/claim/x", "/w"], stage_in_files=staged)
    assert shared == {"/w": "out/0"}
    assert seen == ["/wfl", "/claim", "/w/in", "/w/s", "/w"]
    assert outs(["/claim/x"], stage_in_files={"/claim": "claim:c"}) == ({}, ["/wfl", "/claim"])
    mounts = main(remote_command="x", stage_out_files={"/t": "/w/o"}, stage_in_files=staged)["volumeMounts"]
    assert [one["mountPath"] for one in mounts] == ["/claim", "/other", "/w", "/w/in", "/w/s"]


def test_what_is_fetched_from_a_volume_of_a_patch() -> None:
    """A volume that is patched in holds sources as well."""
    patches = {
        "pod_patch": "volumes: [{name: mine, emptyDir: {}}]",
        "container_patch": "volumeMounts: [{name: mine, mountPath: /etc/mine}]",
    }
    assert outs(["/etc/mine/x"], extensions=patches) == ({}, ["/wfl", "/etc/mine"])


def test_helpers_are_like_the_main_container() -> None:
    """In rights and in that they have limits, which a policy or quota of the namespace may want of all."""
    found = pod(
        remote_command="x",
        stage_in_files={"/a": "/tmp"},
        stage_out_files={"/o": "/b/o"},
        min_slots=1,
        extensions={"cap_drop": "ALL", "pull": "never", "sidecars": "[{name: s, image: i}]"},
    )
    assert [one["name"] for one in found["initContainers"]] == ["wfl-in", "s", "wfl-out"]
    for helper in (found["initContainers"][0], found["initContainers"][2]):
        assert helper["securityContext"] == {"capabilities": {"drop": ["ALL"]}}
        assert helper["resources"] == {"requests": {"cpu": "0"}, "limits": {"cpu": "1"}}
        assert (helper["image"], helper["imagePullPolicy"]) == ("busybox", "Never")


def test_helper_image() -> None:
    """With one, the job's image needs no shell and no tar."""
    bare = template.Defaults(image="scratch", shell=None, helper_image="busybox:1")
    helper = pod(defaults=bare, stage_in_files={"/a": "/tmp"})["initContainers"][0]
    assert (helper["image"], helper["command"][0]) == ("busybox:1", "/bin/sh")


def test_files_once_more() -> None:
    """What was to be moved is known again of a job that is found, without the context's settings."""
    given = JobTemplate(remote_command="x", stage_in_files={"/a": "/tmp"}, stage_out_files={"/o": "/b/o"})
    moved = template.moved(given)
    assert (moved.copies, moved.fetched) == ({"in/0": "/tmp"}, {"/o": "/b/o"})


# --- extensions -------------------------------------------------------------------------------------------


def changed(name: str, text: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What an extension adds to the Job's spec, to the pod's and to the main container."""
    one, other = extended(name, text).job["spec"], made(remote_command="x").job["spec"]
    parts = []
    for key in ("template", "containers", ""):
        parts.append({k: v for k, v in one.items() if k != key and other.get(k) != v})
        if key:
            one, other = (s["template"]["spec"] if key == "template" else s["containers"][0] for s in (one, other))
    return parts[0], parts[1], parts[2]


ADDED: list[tuple[str, str, int, dict[str, Any]]] = [
    ("ttl", "60", 0, {"ttlSecondsAfterFinished": 60}),
    ("node_selector", "a=b,c.d/e=", 1, {"nodeSelector": {"a": "b", "c.d/e": ""}}),
    ("tolerations", '[{"operator": "Exists"}]', 1, {"tolerations": [{"operator": "Exists"}]}),
    ("affinity", "podAffinity: {a: [1]}", 1, {"affinity": {"podAffinity": {"a": [1]}}}),
    ("scheduler", "mine", 1, {"schedulerName": "mine"}),
    ("runtime_class", "kata.fast", 1, {"runtimeClassName": "kata.fast"}),
    ("host_network", "true", 1, {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}),
    ("host_network", "false", 1, {}),
    ("run_as_user", "0", 1, {"securityContext": {"runAsUser": 0}}),
    ("run_as_group", "5", 1, {"securityContext": {"runAsGroup": 5}}),
    ("fs_group", "5", 1, {"securityContext": {"fsGroup": 5}}),
    ("pull_secrets", "a, b", 1, {"imagePullSecrets": [{"name": "a"}, {"name": "b"}]}),
    ("init_containers", "[{name: a, image: i}]", 1, {"initContainers": [{"name": "a", "image": "i"}]}),
    (
        "sidecars",
        "[{name: a, image: i}]",
        1,
        {"initContainers": [{"name": "a", "image": "i", "restartPolicy": "Always"}]},
    ),
    ("privileged", "true", 2, {"securityContext": {"privileged": True}}),
    ("cap_add", "NET_ADMIN,SYS_TIME", 2, {"securityContext": {"capabilities": {"add": ["NET_ADMIN", "SYS_TIME"]}}}),
    ("cap_drop", "ALL", 2, {"securityContext": {"capabilities": {"drop": ["ALL"]}}}),
    ("read_only", "false", 2, {"securityContext": {"readOnlyRootFilesystem": False}}),
    ("pull", "always", 2, {"imagePullPolicy": "Always"}),
    (
        "env_from",
        "secret:a,configmap:b",
        2,
        {"envFrom": [{"secretRef": {"name": "a"}}, {"configMapRef": {"name": "b"}}]},
    ),
    (
        "ephemeral_storage",
        "1Gi",
        2,
        {"resources": {"requests": {"ephemeral-storage": "1Gi"}, "limits": {"ephemeral-storage": "1Gi"}}},
    ),
    ("gpus", "2", 2, {"resources": {"limits": {"nvidia.com/gpu": "2"}}}),
    ("gpus", "amd.com/gpu=1", 2, {"resources": {"limits": {"amd.com/gpu": "1"}}}),
    ("pod_patch", "{hostname: a, dnsConfig: {options: []}}", 1, {"hostname": "a", "dnsConfig": {"options": []}}),
    ("container_patch", "env: [{name: A, value: b}]", 2, {"env": [*main()["env"], {"name": "A", "value": "b"}]}),
]


@pytest.mark.parametrize(("name", "text", "where", "members"), ADDED)
def test_extensions(name: str, text: str, where: int, members: dict[str, Any]) -> None:
    """Each has its place, and changes nothing else."""
    template.check(JobTemplate(remote_command="x", extensions={name: text}), DEFAULTS)
    expected: list[dict[str, Any]] = [{}, {}, {}]
    expected[where] = members
    assert list(changed(name, text)) == expected


def test_every_extension_is_tried() -> None:
    """An extension that is added is tried here."""
    below = {"labels", "annotations", "kueue_queue", "output", "service_account", "shm_size"}
    assert {name for name, *_ in ADDED} | below == template.EXTENSIONS


def test_labels_and_annotations() -> None:
    """Those of the caller are on the Job and on its pods; the queue is the Job's alone."""
    result = extended("labels", "team=a").job
    assert result["metadata"]["labels"]["team"] == result["spec"]["template"]["metadata"]["labels"]["team"] == "a"
    result = extended("annotations", "example.com/note=a=b c").job
    assert result["metadata"]["annotations"]["example.com/note"] == "a=b c"
    assert result["spec"]["template"]["metadata"]["annotations"] == {"example.com/note": "a=b c"}
    result = extended("kueue_queue", "batch").job
    assert result["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "batch"
    assert set(result["spec"]["template"]["metadata"]["labels"]) == set(made().job["metadata"]["labels"])


def test_service_account() -> None:
    """With one its token is there; else no job has a token."""
    found = pod(extensions={"service_account": "a"})
    assert found["serviceAccountName"] == "a"
    assert "automountServiceAccountToken" not in found


def test_shm_size() -> None:
    """Memory that is a file system, of this size."""
    found = pod(extensions={"shm_size": "64Mi"})
    volume = {"name": "wfl-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}
    assert found["volumes"] == [volume]
    assert found["containers"][0]["volumeMounts"] == [{"name": "wfl-shm", "mountPath": "/dev/shm"}]


def test_extensions_stand_together() -> None:
    """In whatever order they are given; patches come last, join lists and take away by null."""
    found = pod(
        stage_in_files={"/a": "claim:c"},
        min_slots=1,
        extensions={
            "container_patch": "{resources: {limits: {x/y: '1', cpu: null}}, imagePullPolicy: Never}",
            "pod_patch": "{volumes: [{name: v, emptyDir: {}}], securityContext: {runAsUser: null}, schedulerName: b}",
            "gpus": "1",
            "fs_group": "7",
            "run_as_user": "7",
            "scheduler": "a",
            "pull": "always",
        },
    )
    assert found["containers"][0]["resources"] == {
        "requests": {"cpu": "1"},
        "limits": {"nvidia.com/gpu": "1", "x/y": "1"},
    }
    assert found["containers"][0]["imagePullPolicy"] == "Never"
    assert [volume["name"] for volume in found["volumes"]] == ["wfl-in-0", "v"]
    assert found["securityContext"] == {"fsGroup": 7}
    assert found["schedulerName"] == "b"


def test_parsed_extensions_are_not_changed() -> None:
    """What is parsed once for many jobs is the same for each."""
    fields: dict[str, Any] = {
        "remote_command": "x",
        "extensions": {"tolerations": "[{key: a}]", "pod_patch": "tolerations: [{key: b}]"},
    }
    assert made(**fields) == made(**fields)
    assert [one["key"] for one in pod(**fields)["tolerations"]] == ["a", "b"]


WRONG_EXTENSIONS: list[tuple[str, str, str]] = [
    ("labels", " ", "is empty"),
    ("labels", "a", "expected 'key=value"),
    ("labels", "a=b,", "none of them empty"),
    ("labels", "a b=c", "expected 'key=value"),
    ("labels", "a=b c", "63 letters"),
    ("labels", "wfl/key=x", "wfl's own"),
    ("annotations", "wfl/template=x", "wfl's own"),
    ("service_account", "Big", "expected a name"),
    ("node_selector", "disk", "expected 'key=value"),
    ("tolerations", "{key: a}", "expected a list of tolerations"),
    ("tolerations", "[a]", "expected a list of tolerations"),
    ("tolerations", "[{kye: a}]", "did you mean 'key'"),
    ("tolerations", "[{value: true}]", "value to be text: True"),
    ("tolerations", "[{tolerationSeconds: '3'}]", "to be a number: '3'"),
    ("tolerations", "[", "is no YAML of a list of tolerations"),
    ("affinity", "nodeAfinity: {}", "did you mean 'nodeAffinity'"),
    ("affinity", "a", "expected a mapping"),
    ("scheduler", "a_b", "expected a name"),
    ("runtime_class", "-", "expected a name"),
    ("run_as_user", "root", "expected a number"),
    ("run_as_group", "-1", "expected a number"),
    ("fs_group", "2147483648", "expected a number"),
    ("privileged", "yes", "'true' or 'false'"),
    ("cap_add", "CAP_SYS_TIME", "without 'CAP_'"),
    ("cap_drop", "all", "names such as"),
    ("read_only", "1", "'true' or 'false'"),
    ("pull", "IfNotPresent", "'always', 'missing' or 'never'"),
    ("pull_secrets", "a,,b", "none of them empty"),
    ("env_from", "a", "'secret:NAME,configmap:NAME'"),
    ("env_from", "secret:A", "'secret:NAME,configmap:NAME'"),
    ("ttl", "0", "60 or more"),
    ("ttl", "1h", "expected a number"),
    ("sidecars", "{}", "a list of containers"),
    ("sidecars", "[{name: a}]", "have a name .* and an image"),
    ("sidecars", "[{image: a}]", "have a name .* and an image"),
    ("sidecars", "[{name: main, image: a}]", "unlike 'main'"),
    ("sidecars", "[{name: wfl-in, image: a}]", "unlike 'wfl-in'"),
    ("sidecars", "[{name: a, image: a}, {name: a, image: b}]", "unlike 'a'"),
    ("sidecars", "[{name: a, image: a, restartPolicy: Never}]", "belongs into init_containers"),
    ("init_containers", "[{name: A, image: a}]", "have a name"),
    ("host_network", "on", "'true' or 'false'"),
    ("shm_size", "big", "expected a size"),
    ("shm_size", "0Gi", "expected a size"),
    ("ephemeral_storage", "1 Gi", "expected a size"),
    ("gpus", "all", "a number, or"),
    ("gpus", "gpu=1", "a number, or"),
    ("kueue_queue", "A", "expected a name"),
    ("pod_patch", "[]", "expected a mapping"),
    ("pod_patch", "{a: 2020-01-01}", "is no YAML of a mapping"),
    ("pod_patch", "{a: .nan}", "is no YAML of a mapping"),
    ("pod_patch", "restartPolicy: Always", "which wfl sets: use rerunnable"),
    ("pod_patch", "containers: []", "use container_patch or sidecars"),
    ("pod_patch", "metadata: {labels: {wfl/key: x}}", "use labels and annotations"),
    ("pod_patch", "volumes: [{name: wfl-files}]", "do not begin with 'wfl-'"),
    ("pod_patch", "volumes: null", "wfl needs it"),
    ("pod_patch", "volumes: {name: a}", "volumes to be a list"),
    ("container_patch", "name: a", "use job_name"),
    ("container_patch", "image: a", "use job_category"),
    ("container_patch", "command: [a]", "use remote_command"),
    ("container_patch", "env: a", "env to be a list"),
]


@pytest.mark.parametrize(("name", "text", "words"), WRONG_EXTENSIONS)
def test_wrong_extensions(name: str, text: str, words: str) -> None:
    """They are refused by name, with what is expected."""
    refused(rf"(?s)extensions\['{name}'\].*{words}", remote_command="x", extensions={name: text})


@pytest.mark.parametrize("key", sorted(template.EXTENSIONS))
def test_extensions_are_never_empty(key: str) -> None:
    """An empty one is a mistake whatever it is for."""
    refused("is empty: leave it out", extensions={key: ""})


# --- refusals ---------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str, type[Exception]]] = [
    ({"job_category": "Big Image"}, "job_category is 'Big Image', no name of an image", InvalidArgumentError),
    ({"working_directory": "a"}, "working_directory has 'a'", InvalidArgumentError),
    ({"job_environment": {"ä": ""}}, "job_environment has the key 'ä'", InvalidArgumentError),
    ({"accounting_id": "a b"}, "accounting_id is 'a b'", InvalidArgumentError),
    ({"queue_name": "A"}, "queue_name is 'A'", InvalidArgumentError),
    ({"queue_name": "a", "priority": 1}, "queue_name is a priority class", InvalidArgumentError),
    ({"candidate_machines": ("a b",)}, "candidate_machines has 'a b'", InvalidArgumentError),
    ({"candidate_machines": ("a", "Node")}, "candidate_machines has 'Node'", InvalidArgumentError),
    ({"candidate_machines": ("",)}, "candidate_machines has ''", InvalidArgumentError),
    ({"machine_os": "WINNT"}, "machine_os is WINNT", DeniedByDrmsError),
    ({"machine_arch": "X65"}, "machine_arch is X65.*did you mean", UnsupportedAttributeError),
    ({"resource_limits": {"CPU_TIME": 1}}, "resource_limits: a pod has no CPU_TIME", UnsupportedAttributeError),
    (
        {"input_path": "/etc/passwd"},
        "input_path, error_path or output in a file needs remote_command",
        InvalidArgumentError,
    ),
    ({"remote_command": "x", "input_path": "no"}, "input_path .*no cannot be read", InvalidArgumentError),
    ({"remote_command": "x", "input_path": "/dev/stdin"}, "input_path has /dev/stdin", InvalidArgumentError),
    ({"output_path": "/no/such"}, "output_path /no/such: there is no directory", InvalidArgumentError),
    ({"remote_command": "x", "error_path": "e", "join_files": True}, "join_files", InvalidArgumentError),
    ({"submit_as_hold": True, "extensions": {"kueue_queue": "q"}}, "Kueue's to say", InvalidArgumentError),
    ({"args": ("\udcff",)}, "is not UTF-8", InvalidArgumentError),
    ({"args": ("x" * 100_000,) * 16}, "the Job would have 1600", InvalidArgumentError),
    ({"extensions": {"annotations": f"a={'x' * 300_000}"}}, "annotations would have", InvalidArgumentError),
    (
        {"candidate_machines": ("a",), "extensions": {"affinity": "podAffinity: {}"}},
        "candidate_machines: say where it may run once",
        InvalidArgumentError,
    ),
    (
        {"machine_arch": "X64", "extensions": {"node_selector": "kubernetes.io/arch=arm"}},
        "has kubernetes.io/arch, and so has machine_os or machine_arch",
        InvalidArgumentError,
    ),
    (
        {"extensions": {"privileged": "true", "cap_drop": "ALL"}},
        "a privileged container keeps all capabilities",
        InvalidArgumentError,
    ),
    (
        {"stage_in_files": {"/dev/shm": "claim:a"}, "extensions": {"shm_size": "1Gi"}},
        "both mount /dev/shm",
        InvalidArgumentError,
    ),
]
WRONG_STAGING: list[tuple[dict[str, str], str]] = [
    ({"a": "inline:x"}, "the target 'a': it is relative to working_directory"),
    ({"/": "inline:x"}, "the target '/'"),
    ({"/a:b": "inline:x"}, "the target '/a:b'"),
    ({"/wfl/x": "inline:x"}, "which is wfl's own"),
    ({"/wfl-streams": "inline:x"}, "which is wfl's own"),
    ({"/a": "inline:x", "/a/": "inline:y"}, "the target '/a' twice"),
    ({"/a": "/tmp", "/b/../a": "/tmp"}, "the target '/a' twice"),
    ({"/a": "inline:x", "/a/b": "/tmp"}, "nothing can be put below /a"),
    ({"/a": "/no/such"}, "/no/such cannot be read"),
    ({"/a": "configmap:A"}, "expected 'configmap:NAME"),
    ({"/a": "configmap:a/b/c"}, "expected 'configmap:NAME"),
    ({"/a": "secret:"}, "expected 'secret:NAME"),
    ({"/a": "hostpath:a"}, "expected 'hostpath:/path"),
    ({"/a": "hostpath:/a/.."}, "expected 'hostpath:/path"),
    ({"/a": "hostpath:/../a:ro"}, "expected 'hostpath:/path"),
    ({"/a": "claim:a:rw"}, "expected 'claim:NAME"),
    ({"/a": "new-claim:0"}, "expected 'new-claim:"),
    ({"/a": "new-claim:a:b"}, "expected 'new-claim:"),
    ({"/a": "nfs:host:path"}, "expected 'nfs:SERVER:/path"),
    ({"/a": f"inline:{'x' * (volumes.MOST_INLINE + 1)}"}, "1048577 bytes are given inline"),
    ({"/a": "inline:\udcff"}, "is given inline is not UTF-8"),
]
WRONG_OUT: list[tuple[dict[str, str], str]] = [
    ({"/t": "a"}, "the source 'a': it is relative to working_directory"),
    ({"/t": "/etc/hosts"}, "a source in /etc, which belongs to the image"),
    ({"/t": "/usr/share/x/y"}, "a source in /usr/share/x, which belongs"),
    ({"/t": "/bin"}, "a source in /bin, which belongs"),
    ({"/t": "/"}, "a source in /, which belongs"),
    ({"/t": "/wfl/x"}, "a source in /wfl, which belongs"),
    ({"/t": "/a/b", "/t/": "/a/c"}, "where something else is copied to"),
]


@pytest.mark.parametrize(("fields", "words", "error"), WRONG)
def test_wrong_fields(here: Path, fields: dict[str, Any], words: str, error: type[Exception]) -> None:
    """They are refused by field, before anything is sent."""
    assert here.is_dir()
    refused(words, error, **fields)


@pytest.mark.parametrize(("files", "words"), WRONG_STAGING)
def test_wrong_stage_in_files(files: dict[str, str], words: str) -> None:
    """What cannot be mounted or read is refused by target or source."""
    refused(f"(?s)stage_in_files.*{words}", stage_in_files=files)


@pytest.mark.parametrize(("files", "words"), WRONG_OUT)
def test_wrong_stage_out_files(files: dict[str, str], words: str) -> None:
    """What would hide a part of the image, or meet in one place here, is refused."""
    refused(f"stage_out_files has .*{words}", stage_out_files=files)


def test_no_image() -> None:
    """Neither in the template nor in the context."""
    refused("no image: set job_category", defaults=template.Defaults())
    refused("the context's image is 'A'", defaults=template.Defaults(image="A"))


@pytest.mark.parametrize(
    "fields",
    [{"stage_in_files": {"/a": "/tmp"}}, {"error_path": "/tmp/err", "remote_command": "x"}],
)
def test_no_shell(fields: dict[str, Any]) -> None:
    """What needs one is refused where images have none."""
    refused("images have none", defaults=template.Defaults(image="x", shell=None), **fields)


def test_an_array_that_cannot_be() -> None:
    """Its shell needs a command, takes no script of any length, and the number that Kubernetes gives."""
    with pytest.raises(InvalidArgumentError, match="index needs remote_command"):
        array(range(1, 3), remote_command=None)
    with pytest.raises(InvalidArgumentError, match="above 131071 bytes"):
        array(range(3), args=(INDEX, "x" * 131_072))
    with pytest.raises(InvalidArgumentError, match="it is Kubernetes' own"):
        array(range(3), job_environment={"JOB_COMPLETION_INDEX": "1"})
    words = array(range(1, 3), args=("x" * 131_000, "y" * 131_000))["spec"]["template"]["spec"]["containers"][0]
    assert len(words["args"]) == 3


def test_elements_that_write_into_directories(here: Path) -> None:
    """Where the index is in a path of this side, it is the first element's that has to be usable."""
    (here / "results" / "4").mkdir(parents=True)
    given = JobTemplate(
        remote_command="x", output_path=f"results/{INDEX}/out", error_path=f"{here}/results/{INDEX}/err"
    )
    template.check(given, DEFAULTS, range(4, 6))
    with pytest.raises(InvalidArgumentError, match=r"output_path .*: there is no directory .*results/5"):
        template.check(given, DEFAULTS, range(5, 3, -1))
    with pytest.raises(InvalidArgumentError, match=r"output_path .*results/4 is a directory"):
        template.check(given.replace(output_path=f"results/{INDEX}"), DEFAULTS, range(4, 6))


def test_preview_of_elements_with_directories(here: Path) -> None:
    """It is refused for no directory that is there."""
    (here / "1").mkdir()
    given = JobTemplate(remote_command="x", output_path=f"{here}/{INDEX}/out")
    assert len(KubernetesContext(image="busybox").preview(given, 3)) == 1


# --- previews ---------------------------------------------------------------------------------------------


def test_preview_documents() -> None:
    """What is made comes before the Job that needs it, which waits for nothing; files are notes."""
    result = made(stage_in_files={"/a": "inline:x", "/b": "/tmp"}, stage_out_files={"/t\n": "/c/d"})
    text = template.preview_documents(result)
    *extra, job = yaml.safe_load_all(text)
    assert extra == list(result.extra)
    assert "suspend" not in job["spec"]
    assert "wfl/suspended" not in job["metadata"]["annotations"]
    assert text.startswith('# "/tmp" is copied to in/0 by the session\n# /c/d is fetched to "/t\\n" by the session\n')
    assert result.job["spec"]["suspend"] is True, "the preview changes nothing"


def test_preview_of_what_is_held() -> None:
    """That stays suspended, also where something is made for it."""
    held = {"submit_as_hold": True}
    for fields in (held, {**held, "stage_in_files": {"/a": "inline:x"}}):
        *_, job = yaml.safe_load_all(template.preview_documents(made(**fields)))
        assert job["spec"]["suspend"] is True
        assert job["metadata"]["annotations"]["wfl/suspended"] == "held"


@settings(deadline=None)
@given(WORDS, st.sampled_from(["y", "N", "1e3", "0x1", "on", "~", "null", "1_0", ".5", "a: b", "# a", "2020-01-01"]))
def test_previews_are_what_is_made(text: str, trap: str) -> None:
    """Any text is text again, also for the YAML of kubectl, which takes more for numbers than Python's does."""
    result = made(remote_command="x", args=(text, trap, f"{text} " * 40), job_environment={"A": text, "B": trap})
    shown = template.preview_documents(result)
    assert yaml.safe_load(shown) == result.job
    assert f"- {trap}\n" not in shown
