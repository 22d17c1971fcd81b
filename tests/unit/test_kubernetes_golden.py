"""What is created for a template, as files: tests/data/kubernetes. The API server takes each of them as it stands.

`python -m tests.unit.test_kubernetes_golden` writes them anew.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from wfl import JobTemplate
from wfl.contexts.kubernetes import template

FILES = Path(__file__).parent.parent / "data" / "kubernetes"
NOW = datetime(2027, 1, 31, 12, 0, tzinfo=UTC)
DEFAULTS = template.Defaults(image="busybox:1")
IDENTITY = template.Identity(key="ab12cd34ef-7", session="a session", program="prog-1", job_id="ab12cd34ef-7")
LINE = ("-c", 'echo "$HOME $(date) $$"')
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (
        {
            "remote_command": "sh",
            "args": LINE,
            "job_environment": {"PRICE": "5$", "NUMBER": "1e3", "LINES": "a\nb: 'c'\n"},
            "working_directory": "/work",
            "job_name": "Train it!",
            "accounting_id": "physics",
        },
        {},
    ),
    "array": ({"remote_command": "sh", "args": LINE}, {"indexes": range(3), "max_parallel": 2}),
    "array-words": (
        {
            "remote_command": "convert",
            "args": ("it's $DRMAA2_INDEX$.png", "$HOME", ""),
            "job_environment": {"PART": "$DRMAA2_INDEX$/9", "PLAIN": "x"},
            "working_directory": "/work/$DRMAA2_INDEX$",
            "output_path": "/home/me/$DRMAA2_INDEX$.out",
            "error_path": "/home/me/$DRMAA2_INDEX$.err",
        },
        {"indexes": range(10, 0, -3)},
    ),
    "resources": (
        {
            "remote_command": "train",
            "min_slots": 2,
            "max_slots": 4,
            "min_phys_memory": 1048576,
            "queue_name": "urgent",
            "candidate_machines": ("node-1", "node-2.example"),
            "machine_os": "LINUX",
            "machine_arch": "ARM64",
            "extensions": {"gpus": "2", "ephemeral_storage": "10Gi", "shm_size": "1Gi"},
        },
        {},
    ),
    "staged": (
        {
            "remote_command": "cat",
            "stage_in_files": {
                "/etc/tool/one.conf": "inline:a = 1\nb = 2\n",
                "/etc/tool/two.conf": "inline:c",
                "/etc/token": "inline-secret:hush",
                "/config": "configmap:settings",
                "/config.txt": "configmap:settings/main.txt",
                "/keys": "secret:keys",
                "/host": "hostpath:/srv/data:ro",
                "/claim": "claim:data",
                "/scratch": "new-claim:fast:10Gi",
                "/more": "new-claim:1Gi",
                "/nfs": "nfs:server.example:/export:ro",
            },
        },
        {},
    ),
    "copies": (
        {
            "remote_command": "tool",
            "working_directory": "/work",
            "stage_in_files": {"in.csv": "/home/me/in.csv", "/model": "/home/me/model"},
            "stage_out_files": {
                "/home/me/out.csv": "out.csv",
                "/home/me/best": "/model/best",
                "/home/me/logs": "/logs",
            },
            "min_slots": 1,
            "min_phys_memory": 65536,
        },
        {},
    ),
    "stdin": ({"remote_command": "sort", "args": ("-n",), "input_path": "/home/me/numbers"}, {}),
    "error-path": ({"remote_command": "tool", "error_path": "/home/me/err", "output_path": "/home/me/out"}, {}),
    "security": (
        {
            "remote_command": "tool",
            "stage_out_files": {"/home/me/out": "/work/out"},
            "extensions": {
                "run_as_user": "1000",
                "run_as_group": "1000",
                "fs_group": "2000",
                "cap_add": "NET_ADMIN",
                "cap_drop": "MKNOD,SETUID",
                "read_only": "true",
                "service_account": "trainer",
                "pull": "missing",
                "pull_secrets": "registry",
                "env_from": "secret:keys,configmap:settings",
            },
        },
        {},
    ),
    "scheduling": (
        {
            "remote_command": "tool",
            "submit_as_hold": True,
            "start_time": datetime(2027, 2, 1, tzinfo=UTC),
            "deadline_time": datetime(2027, 2, 1, 1, tzinfo=UTC),
            "extensions": {
                "labels": "team=a,example.com/of=b",
                "annotations": "note=a b",
                "node_selector": "disk=ssd",
                "tolerations": "[{key: gpu, operator: Exists, effect: NoSchedule}]",
                "affinity": "podAntiAffinity:\n  requiredDuringSchedulingIgnoredDuringExecution:\n"
                "  - topologyKey: kubernetes.io/hostname\n    labelSelector: {matchLabels: {app: tool}}",
                "scheduler": "default-scheduler",
                "runtime_class": "gvisor",
                "host_network": "true",
            },
        },
        {},
    ),
    "rerunnable": (
        {
            "remote_command": "tool",
            "rerunnable": True,
            "resource_limits": {"WALLCLOCK_TIME": 89.5},
            "deadline_time": datetime(2027, 1, 31, 13, 0, 0, 1, tzinfo=UTC),
            "extensions": {"ttl": "3600", "kueue_queue": "batch"},
        },
        {"indexes": range(2)},
    ),
    "patches": (
        {
            "remote_command": "tool",
            "extensions": {
                "init_containers": "[{name: prepare, image: 'busybox:1', command: [sh, -c, 'true']}]",
                "sidecars": "[{name: proxy, image: 'proxy:2', args: [--port, '80']}]",
                "pod_patch": "terminationGracePeriodSeconds: 5\nvolumes: [{name: cache, emptyDir: {}}]\n"
                "automountServiceAccountToken: null",
                "container_patch": "volumeMounts: [{name: cache, mountPath: /cache}]\nsecurityContext:\n"
                "  seccompProfile: {type: RuntimeDefault}",
            },
        },
        {},
    ),
}


def shown(name: str) -> str:
    """The documents of one case."""
    fields, more = CASES[name]
    return template.preview_documents(
        template.manifests(JobTemplate(**fields), IDENTITY, DEFAULTS, now=NOW, **more),
    )


@pytest.mark.parametrize("name", CASES)
def test_preview(name: str) -> None:
    """The exact documents, which `kubectl apply` takes."""
    assert shown(name) == (FILES / f"{name}.yaml").read_text(encoding="utf-8")


def test_no_file_is_left_over() -> None:
    """Each file is that of a case."""
    assert {path.stem for path in FILES.glob("*.yaml")} == set(CASES)


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    for name in CASES:
        (FILES / f"{name}.yaml").write_text(shown(name), encoding="utf-8")
