"""The sites that wfl's own repository runs the suite at."""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib
import itertools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from wfl import Capability, Context, JobTemplate
from wfl.contexts import kubernetes
from wfl.contexts.batch import ClusterContext, clean
from wfl.contexts.kubernetes import KubernetesContext
from wfl.contexts.kubernetes.settings import Place
from wfl.contexts.process import ProcessContext
from wfl.errors import DeniedByDrmsError, InvalidStateError, SessionManagementError
from wfl.testing import FakeContext, FakeSystem
from wfl.testing.conformance.servers import Server, jobs, server
from wfl.testing.conformance.site import POSIX, Site

if TYPE_CHECKING:
    from wfl.contexts.kubernetes.client import Client

_numbers = itertools.count(1)
_stores: list[tempfile.TemporaryDirectory[str]] = []


def _store() -> str:
    """A path for a new store, in a directory that goes with the program."""
    if not _stores:
        _stores.append(tempfile.TemporaryDirectory(prefix="wfl-stores-"))
    return f"{_stores[0].name}/{next(_numbers)}"


_SYSTEMS = frozenset(
    {
        "test_control", "test_death", "test_ends", "test_environment", "test_info", "test_limits", "test_monitoring",
        "test_output", "test_persistence", "test_stream", "test_submit", "test_template_fields",
    }
)  # fmt: skip
"""The files in which a system shows: what the others are about wfl itself does, above all systems alike.

Every system has one site at which all files are run. One that reaches it in another way has those in which that shows.
"""

PROCESS = Site(
    name="process",
    context=ProcessContext,
    program="wfl.contexts.process:ProcessContext",
    shared=Path(tempfile.gettempdir()),
    commands=POSIX | {"setsid"},
    local=True,
    inapplicable={"test_jobs_of_session": "processes do not bear the name of their session"},
)
PROCESS_STORE = Site(
    name="process-store",
    context=ProcessContext,
    program="wfl.contexts.process:ProcessContext",
    shared=Path(tempfile.gettempdir()),
    commands=PROCESS.commands,
    local=True,
    settings={"store": _store},
    files=frozenset(
        {"test_arrays", "test_chain", "test_control", "test_ends", "test_info", "test_output", "test_retry"}
    ),
    why="what is written into a store: the jobs are those of `process`",
)

SERVICES = Path(__file__).resolve().parents[1] / "services"
"""Where the repository has the scripts that start real systems; an installed wfl has none."""
MOUNTED = Path(tempfile.gettempdir())
"""What jobs in containers see of this machine, under the same path."""


@functools.cache
def _address(name: str) -> str:
    """Where a system that `make services` starts is reached, whether it is there or not."""
    script = SERVICES / "address.sh"
    return subprocess.run([script, name], capture_output=True, text=True, check=True).stdout.strip()


_DEFAULT = JobTemplate(stage_in_files={str(MOUNTED): f"bind:{MOUNTED}"}, extensions={"network": "host"})
"""What lets jobs in containers see the shared directory; and the network with which they start fastest."""


def _in_containers(name: str, *, default_template: JobTemplate | None = None, **given: Any) -> Context:
    default = _DEFAULT if default_template is None else default_template.merged_with(_DEFAULT)
    return Context.named(name, image="busybox", base_url=_address(name), default_template=default, **given)


def _containers(name: str, **settings: Any) -> Site:
    """A site at a daemon of containers."""
    return Site(
        name=name,
        context=functools.partial(_in_containers, name),
        program=f"wfl.testing.conformance.ours:{name.upper()}",
        shared=MOUNTED,
        remembers=True,
        refuse=lambda: JobTemplate(remote_command="", job_category="No Image"),
        reason="job_category",
        default=_DEFAULT,
        count=functools.partial(_count, name),
        clean=functools.partial(_clean, name),
        inapplicable=_DIFFERENT,
        **settings,
    )


def _count(name: str) -> dict[str, int]:
    """What the daemon holds, without containers of job servers, which may run beside this suite."""
    import docker

    with contextlib.closing(docker.APIClient(base_url=_address(name), version="1.41")) as client:
        labels = [container["Labels"] or {} for container in client.containers(all=True)]
        return {
            "containers": sum(not own.get("wfl.session", "").startswith("server-") for own in labels),
            "images": len(client.images()),
            "networks": len(client.networks()),
            "volumes": len(client.volumes()["Volumes"] or ()),
        }


def _clean(name: str, session: str) -> int:
    from wfl.contexts.docker import DockerContext, clean

    context = Context.named(name, base_url=_address(name))
    assert isinstance(context, DockerContext)
    return clean(session, context)


_DIFFERENT = {
    "test_candidate_machines": "a container's host has the name that is given",
    "test_empty_command": "without a command the image's own is run",
    "test_join_files": "daemons of containers read the two streams apart, so their order is not known",
    "test_missing_working_directory": "daemons of containers make the working directory",
    "test_not_a_program": "the container's init gives what is no program to its shell",
    "test_status_above_128": "daemons of containers tell an exit with 128+N and an end by signal N alike",
}

DOCKER = _containers("docker", latency=5.0)
PODMAN = _containers(
    "podman",
    latency=10.0,
    files=_SYSTEMS,
    why="where the daemon shows: `docker` has the whole suite, by the same interface",
)


CLUSTERS = MOUNTED / f"wfl-conformance-{os.getuid()}"
"""Below it the contexts of clusters have their directories, each site one."""


@functools.cache
def variables(name: str) -> dict[str, str]:
    """What the clients of a scheduler that `make services` starts need, whether it is there or not."""
    script = SERVICES / "environment.sh"
    told = subprocess.run([script, name], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in told.splitlines())


def _on_cluster(site: str, name: str, made_by: str, **given: Any) -> Context:
    """A context at that scheduler, which is asked whether it is there: opening a session asks nothing."""
    _run(name, *(["qstat"] if name == "sge" else ["sinfo", "--noheader"]))
    module, _, attribute = made_by.partition(":")
    if "drmaa" in module:  # its library reads this process's own
        os.environ.update(variables(name))
    else:
        given = {"environment": variables(name), **given}
    if site.startswith("ssh-"):
        given["via"] = _over_ssh("wfl-root")
    make = getattr(importlib.import_module(module), attribute)
    made: Context = make(**{"directory": CLUSTERS / site, "detach": False, **given})
    return made


def _run(name: str, *command: str) -> str:
    """What a command of the scheduler tells."""
    there = Path(variables(name).get("SLURM_CONF") or variables(name)["SGE_ROOT"])
    if not there.exists():  # Slurm's commands would look for it for a minute
        raise SessionManagementError(f"there is no {there}: {SERVICES / f'start-{name}.sh'} makes it")
    try:
        done = subprocess.run(
            command, env={**os.environ, **variables(name)}, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        words = str(getattr(error, "stderr", "") or error).strip()
        raise SessionManagementError(f"{command[0]} tells nothing: {words}") from error
    return done.stdout


def _count_jobs(site: str, name: str) -> dict[str, int]:
    """This user's jobs in the scheduler's list, without those that others than the suite have submitted."""
    if name == "sge":
        told = _run(name, "qstat", "-u", getpass.getuser())
        told = told and "\n".join(  # the list is of tasks, and tells nothing that could only be the suite's
            line for line in _described().splitlines() if line.startswith("stdout_path_list:")
        )
    else:
        told = _run(name, "squeue", "--noheader", "--array", "--me", "--format=%o")
    return {"jobs": sum(f"{CLUSTERS / site}/" in line for line in told.splitlines())}


def _described() -> str:
    """All jobs of Grid Engine at length; nothing if the last has just ended."""
    try:
        return _run("sge", "qstat", "-j", "*")
    except SessionManagementError as error:
        if "do not exist" in str(error):
            return ""
        raise


def _forget(site: str, name: str, made_by: str, session: str) -> None:
    """End what programs have left in a session."""
    context = _on_cluster(site, name, made_by)
    assert isinstance(context, ClusterContext)
    clean(session, context)


def _cluster(site: str, name: str, made_by: str, given: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> Site:
    """A site at a scheduler whose only machine is this one."""
    settings = {"inapplicable": _BY_SCRIPT, **more}
    return Site(
        name=site,
        context=functools.partial(_on_cluster, site, name, made_by, **given),
        program=f"wfl.testing.conformance.ours:{site.upper().replace('-', '_')}",
        shared=MOUNTED,
        commands=POSIX | {"setsid"},
        latency=6.0,
        remembers=True,
        count=functools.partial(_count_jobs, site, name),
        clean=functools.partial(_forget, site, name, made_by),
        **settings,
    )


_BY_SCRIPT = {"test_not_a_program": "a file that is no program is given to a shell, which reads it as a script"}
_SPARED = (
    dict.fromkeys(
        ("test_daemon_grandchild", "test_kill_other_session"),
        "Grid Engine's kill spares those of root's processes that have left the job's process group",
    )
    if os.getuid() == 0
    else {}
)
_GRID_ENGINE: dict[str, Any] = {
    "given": {"parallel_environment": "smp"},
    "inapplicable": {
        **_BY_SCRIPT,
        **_SPARED,
        "test_grace": "Grid Engine ends jobs in one way, which kills them",
        "test_grace_is_over": "Grid Engine ends jobs in one way, which kills them",
        "test_wallclock_asks_first": "Grid Engine ends jobs in one way, which kills them",
    },
}

SLURM = _cluster("slurm", "slurm", "wfl.contexts.batch.slurm:SlurmContext", killed="SIGTERM")
SLURM_PLAIN = _cluster(
    "slurm-plain",
    "slurm-plain",
    "wfl.contexts.batch.slurm:SlurmContext",
    killed="SIGTERM",
    files=_SYSTEMS,
    why="where accounting and cgroups matter, which it lacks: `slurm` has the whole suite",
    inapplicable={
        **_BY_SCRIPT,
        "test_daemon_grandchild": "without cgroups Slurm's kill reaches the job's process tree",
        "test_kill_other_session": "without cgroups Slurm's kill reaches the job's process tree",
        "test_peak_memory": "without slurmdbd Slurm keeps no peak of memory",
    },
)
GRID_ENGINE = _cluster("grid-engine", "sge", "wfl.contexts.batch.gridengine:GridEngineContext", **_GRID_ENGINE)
DRMAA = _cluster(
    "drmaa",
    "sge",
    "wfl.contexts.drmaa:DrmaaContext",
    files=_SYSTEMS | {"test_arrays", "test_concurrency"},
    why="where the library shows, which is called in place of commands: `grid-engine` has the whole suite",
    **_GRID_ENGINE,
)


NAMESPACE = os.environ.get("WFL_NAMESPACE")
"""The suite's own in the user's cluster, that of KUBECONFIG; None: the cluster that `make services` starts is meant."""
_PODS = JobTemplate() if NAMESPACE else JobTemplate(stage_in_files={str(MOUNTED): f"hostpath:{MOUNTED}"})
"""What lets pods see the shared directory, where their node is this machine."""
_RIGHTS = "WFL_CONFORMANCE_RIGHTS"
_KINDS = ("configmaps", "jobs", "persistentvolumeclaims", "pods", "secrets")


@contextlib.contextmanager
def _client(**place: Any) -> Iterator[Client]:
    """The cluster's API, without a context; what is no error of a case is one of the site's."""
    try:
        from wfl.contexts.kubernetes.client import Client
    except ImportError as error:
        raise SessionManagementError(f"there is no client of Kubernetes here: {error}") from error
    with contextlib.closing(Client(Place(**place))) as client:
        yield client


@functools.cache
def _own_place() -> Mapping[str, str]:
    """The settings that lead to the suite's namespace, which is made unless it is there, with all rights there are."""
    if NAMESPACE:
        place = {"namespace": NAMESPACE}
    else:
        place = {"namespace": "wfl-conformance", "kubeconfig": variables("kubernetes")["KUBECONFIG"]}
        if not Path(place["kubeconfig"]).exists():
            ways = f"{SERVICES / 'start-kubernetes.sh'} makes it; KUBECONFIG and WFL_NAMESPACE lead to another cluster"
            raise SessionManagementError(f"there is no {place['kubeconfig']}: {ways}")
    with _client(**place) as client, contextlib.suppress(InvalidStateError, DeniedByDrmsError):
        client.create("namespaces", {"metadata": {"name": place["namespace"]}})
    return place


@functools.cache
def _place() -> Mapping[str, str]:
    """The same with the rights that the documentation asks for, and no others; those of the user in his own cluster."""
    place = _own_place()
    if NAMESPACE:
        return place
    account = f"{place['namespace']}:wfl"
    if os.environ.get(_RIGHTS) != account:  # else a program that was started by the suite
        _give_rights(account, "kubectl", "--kubeconfig", place["kubeconfig"], "--namespace", place["namespace"])
        os.environ[_RIGHTS] = account
    return {**place, "impersonate": f"system:serviceaccount:{account}"}


def _give_rights(account: str, *kubectl: str) -> None:
    """Bind a service account to the roles in the documentation."""
    roles = [f"{SERVICES.parents[1]}/docs/kubernetes-{name}.yaml" for name in ("role", "cluster-role")]
    given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60}
    subprocess.run([*kubectl, "apply", *(f"--filename={role}" for role in roles)], check=True, **given)
    binding = ("clusterrolebinding", "wfl-conformance", "--clusterrole=wfl-monitoring", f"--serviceaccount={account}")
    done = subprocess.run([*kubectl, "create", *binding], check=False, **given)
    assert not done.returncode or "already exists" in done.stderr, done.stderr


def _in_pods(default: JobTemplate, *, default_template: JobTemplate | None = None, **given: Any) -> KubernetesContext:
    default = default if default_template is None else default_template.merged_with(default)
    return KubernetesContext(image="busybox:1", default_template=default, **{**_place(), **given})


def _count_objects() -> dict[str, int]:
    """What the namespace holds, but for what the cluster puts into each."""
    with _client(**_own_place()) as client:
        names = {kind: [each["metadata"]["name"] for each in client.list(kind)[0]] for kind in _KINDS}
    return {kind: len({*names[kind]} - {"kube-root-ca.crt"}) for kind in _KINDS}


_JOINED = {
    **dict.fromkeys(
        ("test_apart", "test_both_streams_full", "test_ended_output", "test_error_stream", "test_output_of_failure"),
        "a pod's log has both streams as one: see kubernetes-files",
    ),
    **dict.fromkeys(
        ("test_many_lines", "test_million_lines"),
        "nodes lose parts of a log above 10 MiB, and the end of one that is written fast: see kubernetes-files",
    ),
}

_AS_PODS = {
    "test_candidate_machines": "a pod waits until there is a machine of this name",
    "test_empty_command": "without a command the image's own is run",
    "test_missing_working_directory": "the node makes the working directory",
    "test_not_a_program": "the node tells of what cannot be run as of an exit with 1",
    "test_output_reaped_elsewhere": "output that was followed by this program stays with it",
    "test_release_some": "an array is held and released as a whole",
    "test_status_above_128": "the node tells an exit with 128+N and an end by signal N alike",
}


def _pods(name: str, default: JobTemplate, inapplicable: Mapping[str, str], **more: Any) -> Site:
    """A site on Kubernetes, whose jobs have this default template."""
    return Site(
        name=name,
        context=functools.partial(_in_pods, default),
        program=f"wfl.testing.conformance.ours:{name.upper().replace('-', '_')}",
        shared=None if NAMESPACE else MOUNTED,
        latency=8.0,
        remembers=True,
        killed="SIGTERM",
        refuse=lambda: JobTemplate(remote_command="", job_category="No Image"),
        reason="job_category",
        default=default,
        count=_count_objects,
        clean=lambda session: kubernetes.clean(session, _in_pods(default)),
        inapplicable={**_AS_PODS, **inapplicable},
        **more,
    )


KUBERNETES = _pods("kubernetes", _PODS, _JOINED)
KUBERNETES_FILES = _pods(
    "kubernetes-files",
    _PODS.replace(extensions={"output": "file"}),
    {},
    files=frozenset({"test_output", "test_stream"}),
    why="output, which is written into files in place of the log: all else is that of `kubernetes`",
)


def _over_ssh(host: str, **given: Any) -> Context:
    """A context at one of the hosts that `make services` starts, which is asked whether it is there."""
    from wfl.contexts.ssh import SshContext

    place = variables("sshd")["WFL_SSHD"]
    if not Path(place, "config").exists():
        raise SessionManagementError(f"there is no {place}/config: {SERVICES / 'start-sshd.sh'} makes it")
    return SshContext(host, **{"config": f"{place}/config", "directory": ".wfl/conformance", **given})


def _count_directories(home: str) -> dict[str, int]:
    place = Path(home, ".wfl/conformance")
    return {"jobs": len([*place.glob("*/*/*/script")]), "programs": len([*place.glob("*/*/")])}


def _clean_hosts(host: str, session: str) -> int:
    from wfl.contexts.ssh import SshContext, clean

    context = _over_ssh(host)
    assert isinstance(context, SshContext)
    return clean(session, context)


_FAR = frozenset(f"test_{name}" for name in (
    "arrays", "control", "death", "ends", "output", "persistence", "stream", "template_fields",
))  # fmt: skip
"""Files of cases in which it matters who one is on a host, and what is done there."""


def _hosts(name: str, host: str, home: Callable[[], str], **more: Any) -> Site:
    """A site over SSH, at this machine; `home` is that of the user there."""
    return Site(
        name=name,
        context=functools.partial(_over_ssh, host),
        program=f"wfl.testing.conformance.ours:{name.upper().replace('-', '_')}",
        shared=MOUNTED,
        commands=POSIX | {"setsid"},
        latency=2.0,
        local=True,
        remembers=True,
        count=lambda: _count_directories(home()),
        clean=functools.partial(_clean_hosts, host),
        inapplicable={
            **_BY_SCRIPT,
            "test_candidate_machines": "a host has the name that is given",
            "test_full_disk": "output is kept on the host, and copied to its path here",
        },
        **more,
    )


SSH = _hosts("ssh", "wfl-root", lambda: os.path.expanduser("~"))
SSH_USER = _hosts(
    "ssh-user",
    "wfl-user",
    lambda: f"{variables('sshd')['WFL_SSHD']}/home",
    files=_FAR,
    why="where rights matter: `ssh` has the whole suite, as root",
)


_LOGIN: dict[str, Any] = {"files": _FAR, "why": "where a login node comes between: the scheduler has the whole suite"}
SSH_SLURM = _cluster("ssh-slurm", "slurm", "wfl.contexts.batch.slurm:SlurmContext", killed="SIGTERM", **_LOGIN)
SSH_GRID_ENGINE = _cluster(
    "ssh-grid-engine", "sge", "wfl.contexts.batch.gridengine:GridEngineContext", **_GRID_ENGINE, **_LOGIN
)


def _server(name: str) -> Server:
    """The job server in front of a system, which is started unless it is there."""
    if name == "docker":
        context = f"docker?image=busybox&base_url={quote(_address(name), safe='')}"
        return server(name, "--context", context, "--server-paths", "--allow-extension", "network")
    return server(name, "--context", name, "--server-paths", "--allow-field", "priority", "--legacy-get")


def _by_server(
    name: str, default: JobTemplate, *, default_template: JobTemplate | None = None, **given: Any
) -> Context:
    """A context that reaches this system by way of a job server."""
    try:
        from wfl.contexts.remote import RemoteContext

        url, token = _server(name)
    except ImportError as error:
        raise SessionManagementError(f"there is no job server here: {error}") from error
    default = default if default_template is None else default_template.merged_with(default)
    return RemoteContext(url, token=token, default_template=default, **given)


def _clean_server(name: str, session: str) -> int:
    from wfl.contexts.remote import RemoteContext, clean

    url, token = _server(name)
    return clean(session, RemoteContext(url, token=token))


def _remote(name: str, behind: str, default: JobTemplate | None = None, **settings: Any) -> Site:
    """A site at a job server of this machine, which runs its jobs on another system."""
    default, protocol = default or JobTemplate(), settings.pop("given", {})
    return Site(
        name=name,
        context=functools.partial(_by_server, behind, default, **protocol),
        program=f"wfl.testing.conformance.ours:{name.upper().replace('-', '_')}",
        default=default,
        count=lambda: jobs(_server(behind)),
        **settings,
    )


_KEPT = {
    "test_full_disk": "output is kept on the server, and copied to its path here",
    "test_output_reaped_elsewhere": "an id that the server has not said yet is none",
}
_WIRED = frozenset(f"test_{name}" for name in (
    "arrays", "control", "death", "ends", "errors", "info", "limits", "output", "persistence", "stream", "submit",
    "template_fields", "wait",
))  # fmt: skip
"""Files of cases in which it matters how a job server is spoken to, and what is behind it; the rest is the session's,
which is the same at the site `remote`.
"""
REMOTE = _remote(
    "remote",
    "process",
    shared=Path(tempfile.gettempdir()),
    commands=PROCESS.commands,
    local=True,
    latency=1.5,
    remembers=True,
    clean=functools.partial(_clean_server, "process"),
    inapplicable=_KEPT,
)
REMOTE_DOCKER = _remote(
    "remote-docker",
    "docker",
    _DEFAULT,
    shared=MOUNTED,
    latency=6.0,
    remembers=True,
    files=_WIRED,
    why="where it matters how a job server is spoken to, and what is behind it: `remote` has the whole suite",
    refuse=DOCKER.refuse,
    reason=DOCKER.reason,
    clean=functools.partial(_clean_server, "docker"),
    inapplicable={**_DIFFERENT, **_KEPT},
)
REMOTE_COMPATIBLE = _remote(
    "remote-compatible",
    "process",
    given={"protocol": "compatible"},
    shared=Path(tempfile.gettempdir()),
    commands=PROCESS.commands,
    local=True,
    latency=3.0,
    killed="SIGTERM",
    clean=lambda _: _clean_server("process", "legacy"),
    files=_WIRED,
    why="where it matters how a job server is spoken to, and what is behind it: `remote` has the whole suite",
    inapplicable={
        **dict.fromkeys(("test_grace_is_over", "test_stubborn_job"), "the protocol's only way to end a job is to ask"),
        **dict.fromkeys(
            ("test_in_a_burst", "test_killed_in_a_burst"),
            "whether a submission came whose answer nobody heard, the protocol cannot tell",
        ),
        "test_stage_out_of_nothing": "the protocol has one word for exit status 0 and for none",
        "test_unknown_extension": "the protocol does not tell what the server honours; its policy has the last word",
        "test_monitoring": "the protocol shows nothing of the system",
    },
)


_FAKED = {*JobTemplate.__struct_fields__} - {"candidate_machines", "machine_os", "machine_arch"}


def _fake(name: str, **settings: Any) -> Site:
    """A site where nothing is run; each session has a system of its own."""
    return Site(
        name=name,
        context=lambda **given: FakeContext(FakeSystem(fields=_FAKED, **settings), **given),
        executes=False,
        stay=lambda: JobTemplate(remote_command="sleep", args=("inf",)),
        inapplicable={"test_persistence": "what it runs lives in one program"},
    )


FAKE = _fake("fake")
FAKE_ASKED = _fake("fake-asked", tells=False, two_steps=True, without=[Capability.NATIVE_ARRAYS])


def sites(names: str | None = None) -> list[Site]:
    """All of them, or those that are named, with commas between.

    Whether a system is there shows when it is opened; one that is not is skipped with the reason.
    """
    services = [DOCKER, PODMAN, SLURM, SLURM_PLAIN, GRID_ENGINE, DRMAA] if SERVICES.is_dir() else []
    services += [SSH, SSH_USER, SSH_SLURM, SSH_GRID_ENGINE] if services else []
    services += [REMOTE_DOCKER] if services else []
    services += [KUBERNETES, KUBERNETES_FILES] if services or NAMESPACE else []
    all_of_them = {
        site.name: site for site in (PROCESS, PROCESS_STORE, FAKE, FAKE_ASKED, REMOTE, REMOTE_COMPATIBLE, *services)
    }
    chosen = list(all_of_them) if names is None else names.split(",")
    if unknown := [name for name in chosen if name not in all_of_them]:
        raise pytest.UsageError(f"--wfl-sites: there is no {', '.join(unknown)}, only {', '.join(all_of_them)}")
    return [all_of_them[name] for name in chosen]
