"""Least rights on Kubernetes: what docs/kubernetes-role.yaml grants suffices, and each missing right is named."""

from __future__ import annotations

import json
import sys
import sysconfig
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import wfl
from tests.faults.kubernetes_own import ROLE, Namespace, namespace
from tests.faults.machine import PATIENCE, wait_until
from wfl import Context, JobState, TaskArray, Workflow, shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wfl import Job, Task

RULES: list[dict[str, Any]] = next(one for one in yaml.safe_load_all(ROLE.read_text()) if one["kind"] == "Role")[
    "rules"
]
RIGHTS = [(verb, resource) for rule in RULES for resource in rule["resources"] for verb in rule["verbs"]]
"""Verbs and resources that the Role in the documentation has."""


class Account:
    """The service account of the documentation in a namespace of its own, and what its Role is just now."""

    def __init__(self, there: Namespace, place: Path) -> None:
        self.there = there
        there.kubectl("apply", f"--filename={ROLE}")
        token = there.kubectl("create", "token", "wfl", "--duration=2h").strip()
        config = json.loads(there.kubectl("config", "view", "--raw", "--output=json"))
        for user in config["users"]:
            user["user"] = {"token": token}
        self.kubeconfig = place / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(config))
        self.has(RULES)

    def has(self, rules: Sequence[dict[str, Any]]) -> None:
        """Give its Role these rules, and wait until they hold."""
        self.there.client.patch("rbac.authorization.k8s.io/v1/roles", "wfl", {"rules": list(rules)})
        granted = {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
        for right in RIGHTS:
            expected = right in granted
            wait_until("its rights hold", lambda right=right, expected=expected: self._may(*right) is expected)  # type: ignore[misc]

    def lacks(self, *rights: tuple[str, str]) -> None:
        """Take these from it."""
        rules = [
            {
                **rule,
                "resources": [resource],
                "verbs": [verb for verb in rule["verbs"] if (verb, resource) not in rights],
            }
            for rule in RULES
            for resource in rule["resources"]
        ]
        self.has([rule for rule in rules if rule["verbs"]])

    def _may(self, verb: str, resource: str) -> bool:
        name, _, part = resource.partition("/")
        asked = {"namespace": self.there.namespace, "verb": verb, "resource": name, "subresource": part}
        asked["group"] = "batch" if resource == "jobs" else ""
        user = f"system:serviceaccount:{self.there.namespace}:wfl"
        body = {"metadata": {"namespace": self.there.namespace}, "spec": {"user": user, "resourceAttributes": asked}}
        body |= {"kind": "LocalSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1"}
        answer = self.there.client.create("authorization.k8s.io/v1/localsubjectaccessreviews", body)
        return bool(answer["status"]["allowed"])

    def context(self, **settings: Any) -> Context:
        """One that is this account."""
        return self.there.context(kubeconfig=str(self.kubeconfig), **settings)


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """It, in the cluster that `make services` starts."""
    with namespace() as there:
        yield Account(there, tmp_path_factory.mktemp("account"))


@pytest.fixture
def account(owner: Account) -> Iterator[Account]:
    """It, with a session of its own and all rights of the Role; afterwards the namespace is empty again."""
    owner.there.session = Context.unique_session_name()
    yield owner
    owner.has(RULES)
    owner.there.clear()


# --- all of them ------------------------------------------------------------------------------------------------


def test_the_role_suffices(account: Account, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a session does in a namespace needs no right that the Role has not."""
    account.there.kubectl("create", "configmap", "there", "--from-literal=key=of a map")
    account.there.kubectl("create", "secret", "generic", "there", "--from-literal=key=of a secret")
    with Workflow(account.context(), raise_errors=True) as flow:
        _submits(flow, tmp_path)
        _controls(flow)
        _stages(flow, tmp_path)
        endless = flow.run("sleep", "600")
        endless.tasks[0].wait_started(PATIENCE)
        flow.kill_all()
        assert endless.wait(PATIENCE).infos()[0].sub_state == "cancelled"
    account.there.kubectl("delete", "configmap/there", "secret/there")
    account.there.is_empty()
    with Workflow(account.context(detach=True), raise_errors=True) as flow:
        flow.run(shell("echo found; exit 3"))
        flow.run("sleep", "600").tasks[0].wait_started(PATIENCE)
    with Workflow(account.context(detach=True), raise_errors=True) as flow:
        ended, lives = flow.jobs()
        assert (ended.wait(PATIENCE).exit_status(), ended.output()) == (3, "found")
        assert lives.state is JobState.RUNNING
        assert ended.reap_all().errors == []
    from wfl.contexts.kubernetes import KubernetesContext, clean

    context = account.context()
    assert isinstance(context, KubernetesContext)
    assert clean(account.there.session, context) == 1
    account.there.is_empty()
    assert " right to " not in caplog.text


def _submits(flow: Workflow, place: Path) -> None:
    job = flow.run(shell("echo one; echo two; exit 3"))
    assert list(job.stream()) == ["one", "two"]
    assert job.wait(PATIENCE).exit_status() == 3
    job = flow.run(shell("echo out"), output_path=str(place / "out"))
    assert job.wait(PATIENCE).success()
    assert (place / "out").read_text() == "out\n"
    array = flow.run_array(range(2, 7, 2), shell("echo $TASK_ID"), max_parallel=2)
    assert list(array.synchronize(PATIENCE).outputs().values()) == ["2", "4", "6"]
    for one in (job, array):
        assert one.reap_all().errors == []


def _controls(flow: Workflow) -> None:
    held = flow.run("echo", "released", submit_as_hold=True)
    assert held.release().output() == "released"
    full = flow.run("true", min_phys_memory=1 << 40)
    wait_until("it waits for memory", lambda: "Insufficient" in (full.infos()[0].annotation or ""))
    full.hold()
    assert (full.errors, full.state) == ([], JobState.QUEUED_HELD)
    first, second = _sleeping_elements(flow)
    first.terminate()
    first.wait_terminated(PATIENCE)
    assert (first.state, second.state) == (JobState.FAILED, JobState.RUNNING)
    stubborn = flow.run(shell("trap '' TERM; echo set; while :; do sleep 0.1; done"))
    assert next(stubborn.stream()) == "set"
    stubborn.kill(grace=600)
    stubborn.kill()
    assert stubborn.wait(PATIENCE).infos()[0].sub_state == "cancelled"


def _sleeping_elements(flow: Workflow) -> list[Task]:
    (array,) = flow.run_array(2, "sleep", "600").tasks
    assert isinstance(array, TaskArray)
    for task in array.tasks:
        task.wait_started(PATIENCE)
    return list(array.tasks)


def _stages(flow: Workflow, place: Path) -> None:
    for name in ("in", "file"):
        (place / name).write_text(f"of {name}\n")
    job = flow.run(
        shell("cat; cat a b c d e/key f/key; echo x >g/x; cp /w/a /results/a; echo error >&2"),
        working_directory="/w",
        input_path=str(place / "in"),
        error_path=str(place / "errors"),
        stage_in_files={
            "a": str(place / "file"),
            "b": "inline:of inline\n",
            "c": "inline-secret:of inline-secret\n",
            "d": f"hostpath:{place}/file",
            "e": "configmap:there",
            "f": "secret:there",
            "g": f"hostpath:{place}",
        },
        stage_out_files={str(place / "out-a"): "/results/a"},
    )
    job.wait(PATIENCE)
    assert job.success(), job.infos()
    assert job.output() == "of in\nof file\nof inline\nof inline-secret\nof file\nof a mapof a secret"
    assert job.error_output() == "error"
    assert (place / "out-a").read_text() == "of file\n"
    assert (place / "x").read_text() == "x\n"
    claims = flow.run("true", stage_in_files={"/data": "new-claim:none:1Mi"})
    wait_until("it waits for its claim", lambda: claims.infos()[0].annotation)
    claims.kill()
    assert claims.wait(PATIENCE).errors == []


# --- each of them -----------------------------------------------------------------------------------------------


def _runs(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001 - as all of these
    return flow.run("true")


def _sleeps(flow: Workflow) -> Job:
    job = flow.run("sleep", "600")
    job.tasks[0].wait_started(PATIENCE)
    return job


def _pod_is_deleted(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001
    job = _sleeps(flow)
    account.there.client.delete_all("pods", "wfl/session", grace=1)
    return job.wait(PATIENCE)


def _released(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001
    return flow.run("true", submit_as_hold=True).release()


def _reaped(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001
    return flow.run("true").wait(PATIENCE).reap_all()


def _source_is_gone(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001
    (place / "file").touch()
    job = flow.run("true", stage_in_files={"/in/a": str(place / "file")}, submit_as_hold=True)
    (place / "file").unlink()
    job.release().wait(PATIENCE / 2)
    assert job.state is JobState.FAILED, "it waits for files that never come"
    return job


def _element_is_killed(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001
    first, _ = _sleeping_elements(flow)
    first.terminate()  # raises it
    return None


def _killed(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001
    return _sleeps(flow).kill()


def _read(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001
    job = flow.run("echo", "out").wait(PATIENCE)
    assert job.output() == ""
    return job


def _copied(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001
    (place / "file").touch()
    return flow.run("true", stage_in_files={"/in/a": str(place / "file")}).wait(PATIENCE)


def _staged(source: str) -> Callable[[Account, Workflow, Path], Job | None]:
    return lambda _account, flow, _place: flow.run("true", stage_in_files={"/in/a": source})


def _has_no_pod(account: Account, flow: Workflow, place: Path) -> Job | None:  # noqa: ARG001
    return flow.run("true", extensions={"service_account": "nobody"})


NEEDS: dict[tuple[str, str], Callable[[Account, Workflow, Path], Job | None]] = {
    ("create", "jobs"): _runs,
    ("get", "jobs"): _pod_is_deleted,
    ("list", "jobs"): _runs,
    ("watch", "jobs"): _runs,
    ("patch", "jobs"): _released,
    ("delete", "jobs"): _staged("inline:a"),
    ("deletecollection", "jobs"): _reaped,
    ("get", "pods"): _source_is_gone,
    ("list", "pods"): _runs,
    ("watch", "pods"): _runs,
    ("delete", "pods"): _element_is_killed,
    ("deletecollection", "pods"): _killed,
    ("get", "pods/log"): _read,
    ("get", "pods/exec"): _copied,
    ("create", "pods/exec"): _copied,
    ("create", "configmaps"): _staged("inline:a"),
    ("create", "secrets"): _staged("inline-secret:a"),
    ("create", "persistentvolumeclaims"): _staged("new-claim:none:1Mi"),
    ("list", "events"): _has_no_pod,
}
"""Something that cannot be done without it."""
ALSO = {("delete", "jobs"): ("create", "configmaps")}
"""What else must be missing: a Job is deleted by itself when what it needs cannot be made."""


@pytest.mark.parametrize("right", RIGHTS, ids=[f"{verb}-{resource}" for verb, resource in RIGHTS])
def test_each_missing_right_is_named(
    right: tuple[str, str], account: Account, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With verb, resource and namespace: by an error, by what is said of the job's end, or by a warning."""
    account.lacks(right, *([ALSO[right]] if right in ALSO else ()))
    verb, resource = right
    expected = f"the right to {verb} {resource} in namespace '{account.there.namespace}' is missing"
    job: Job | None = None
    raised: list[Exception] = []
    with Workflow(account.context(patience=1.0)) as flow:
        try:
            job = NEEDS[right](account, flow, tmp_path)
        except wfl.WflError as error:
            raised.append(error)

        def told() -> str:
            notes = [info.annotation or "" for info in job.infos()] if job else []
            return "\n".join([*map(str, [*raised, *(job.errors if job else ())]), *notes, caplog.text])

        if right == ("create", "pods/exec") and job and job.success():
            expected = ""  # servers before 1.35 ask for the other verb alone
        until = time.monotonic() + PATIENCE
        while expected not in told() and time.monotonic() < until:
            time.sleep(0.1)
        assert expected in told()
        account.has(RULES)


# --- inside of the cluster --------------------------------------------------------------------------------------

DRIVER = """
import sys
from wfl import Workflow, shell
from wfl.contexts.kubernetes import KubernetesContext
with Workflow(KubernetesContext(image="busybox:1", session_name=sys.argv[1]), raise_errors=True) as flow:
    jobs = [flow.run("echo", "single"), flow.run_array(2, shell("echo element $TASK_ID")), flow.run(shell("exit 3"))]
    for job in jobs:
        job.synchronize()
    print(jobs[0].output(), *jobs[1].outputs().values(), jobs[2].exit_status(), sep=", ", flush=True)
"""


def test_a_program_in_a_pod(account: Account) -> None:
    """With the service account of the documentation, and without a kubeconfig: it runs jobs and has their outputs."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the image has Python 3.11, for which the packages of this interpreter are not built")
    sources, packages = str(Path(wfl.__file__).parents[1]), sysconfig.get_path("purelib")
    name = f"driver-{uuid.uuid4().hex[:8]}"
    libraries = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}"  # the packages need more of these than Python does
    paths = [path for path in dict.fromkeys((sources, packages, libraries)) if Path(path).is_dir()]
    places = {f"place-{number}": path for number, path in enumerate(paths)}
    container = {
        "name": "driver",
        "image": "python:3.11",
        "command": ["python3", "-c", DRIVER, account.there.session],
        "env": [
            {"name": "PYTHONPATH", "value": f"{sources}:{packages}"},
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
        ],
        "volumeMounts": [{"name": name, "mountPath": path, "readOnly": True} for name, path in places.items()],
    }
    volumes = [{"name": name, "hostPath": {"path": path}} for name, path in places.items()]
    spec = {"serviceAccountName": "wfl", "restartPolicy": "Never", "containers": [container], "volumes": volumes}
    account.there.client.create("pods", {"metadata": {"name": name}, "spec": spec})
    try:
        pods = account.there.client
        wait_until("it is over", lambda: pods.get("pods", name)["status"].get("phase") in ("Succeeded", "Failed"))
        log = account.there.kubectl("logs", name)
        assert log.splitlines()[-1:] == ["single, element 1, element 2, 3"], log
        assert pods.get("pods", name)["status"]["phase"] == "Succeeded"
    finally:
        account.there.client.delete("pods", name, grace=1)
    wait_until("nothing of its jobs is left", lambda: not account.there.found("jobs"))
