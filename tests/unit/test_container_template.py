"""What a daemon is told to create: golden bodies, every extension, and a refusal for each kind of wrong value."""

from __future__ import annotations

import json
import os
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfl.contexts.containers import template
from wfl.drmaa2 import JobTemplate
from wfl.errors import DeniedByDrmsError, InvalidArgumentError, UnsupportedAttributeError

if TYPE_CHECKING:
    from pathlib import Path

LOG = {"Type": "local", "Config": {"max-size": "1t", "max-file": "1", "compress": "false"}}
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that the program is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def whole(*, index: int | None = None, detach: bool = False, image: str | None = "busybox", **fields: Any) -> Any:
    """The body that is made of a template."""
    return template.body(
        JobTemplate(**fields),
        image=image,
        key="k.1",
        session="s",
        program="p",
        job_id="k",
        index=index,
        detach=detach,
    )


def body(**fields: Any) -> Any:
    """The body without the template in its label, which test_labels_* look at."""
    found = whole(**fields)
    del found["Labels"]["wfl.template"]
    return found


def golden(*, env: tuple[str, ...] = (), labels: dict[str, str] | None = None, **members: Any) -> dict[str, Any]:
    """The body of a template that says nothing, with these members changed; HostConfig's are joined."""
    host = {"LogConfig": LOG, "Init": True, **members.pop("HostConfig", {})}
    ours = {"wfl.session": "s", "wfl.key": "k.1", "wfl.program": "p", "wfl.job": "k", "wfl.detach": "false"}
    return {
        "Image": "busybox",
        "Env": [*env, "JOB_ID=k"],
        "Labels": {**ours, **(labels or {})},
        "HostConfig": host,
        **members,
    }


def refused(words: str, error: type[Exception] = InvalidArgumentError, /, **fields: Any) -> None:
    """The template is refused in these words (a regular expression)."""
    with pytest.raises(error, match=words):
        template.check(JobTemplate(**fields), "busybox")


# --- golden bodies ----------------------------------------------------------------------------------------


def test_a_template_that_says_nothing_adds_nothing() -> None:
    """The image's own command runs, with wfl's labels and log, an init process, and nothing else."""
    assert body() == {
        "Image": "busybox",
        "Env": ["JOB_ID=k"],
        "Labels": {
            "wfl.session": "s",
            "wfl.key": "k.1",
            "wfl.program": "p",
            "wfl.job": "k",
            "wfl.detach": "false",
        },
        "HostConfig": {
            "LogConfig": {"Type": "local", "Config": {"max-size": "1t", "max-file": "1", "compress": "false"}},
            "Init": True,
        },
    }


FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"remote_command": "sh", "args": ("-c", "echo $A | sort", "")},
        {"Entrypoint": ["sh"], "Cmd": ["-c", "echo $A | sort", ""]},
    ),
    ({"remote_command": "date"}, {"Entrypoint": ["date"], "Cmd": []}),
    ({"remote_command": "", "args": ("--help",)}, {"Cmd": ["--help"]}),
    ({"job_category": "ghcr.io/a/b:1"}, {"Image": "ghcr.io/a/b:1"}),
    ({"job_category": ""}, {"Image": "busybox"}),
    ({"working_directory": "/job/a b"}, {"WorkingDir": "/job/a b"}),
    ({"job_environment": {"A": "1=2\n3", "JOB_ID": "x"}}, {"Env": ["A=1=2\n3", "JOB_ID=k"]}),
    ({"input_path": "/dev/null"}, {"AttachStdin": True, "OpenStdin": True, "StdinOnce": True}),
    ({"output_path": "out", "error_path": "err"}, {}),
    ({"join_files": True}, {}),
    ({"candidate_machines": ("node_1.example",)}, {"Hostname": "node_1.example"}),
    ({"min_phys_memory": 65536}, {"HostConfig": {"Memory": 67108864}}),
    ({"min_phys_memory": 0}, {}),
    ({"min_slots": 2}, {"HostConfig": {"NanoCpus": 2_000_000_000}}),
    ({"min_slots": 2, "max_slots": 3}, {"HostConfig": {"NanoCpus": 3_000_000_000}}),
    ({"priority": 0}, {"HostConfig": {"CpuShares": 1024}}),
    ({"priority": 1}, {"HostConfig": {"CpuShares": 1280}}),
    ({"priority": -28}, {"HostConfig": {"CpuShares": 2}}),
    ({"priority": 24}, {"HostConfig": {"CpuShares": 216840}}),
    ({"job_name": "a job ü", "accounting_id": "x"}, {"labels": {"wfl.name": "a job ü", "wfl.account": "x"}}),
    ({"machine_os": "LINUX", "machine_arch": "X64"}, {}),
    (
        {
            "stage_in_files": {
                "/data": "bind:/srv/a:b:ro",
                "/w/": "bind:/tmp",
                "/v": "volume:my.vol",
                "/r": "volume:a:ro",
            }
        },
        {
            "HostConfig": {
                "Mounts": [
                    {"Type": "bind", "Source": "/srv/a:b", "Target": "/data", "ReadOnly": True},
                    {"Type": "bind", "Source": "/tmp", "Target": "/w", "ReadOnly": False},
                    {"Type": "volume", "Source": "my.vol", "Target": "/v", "ReadOnly": False},
                    {"Type": "volume", "Source": "a", "Target": "/r", "ReadOnly": True},
                ]
            }
        },
    ),
    ({"stage_in_files": {"/data": "/etc/passwd"}, "stage_out_files": {"out": "/tmp/out"}}, {}),
    (
        {
            "submit_as_hold": True,
            "start_time": datetime(2030, 1, 1, tzinfo=UTC),
            "deadline_time": datetime(2031, 1, 1, tzinfo=UTC),
            "resource_limits": {"WALLCLOCK_TIME": 5},
        },
        {},
    ),
]


@pytest.mark.parametrize(("fields", "members"), FIELDS)
def test_each_field_has_its_place(here: Path, fields: dict[str, Any], members: dict[str, Any]) -> None:
    """And changes nothing else; what the session or a copy does leaves no trace in the body."""
    assert here.is_dir()
    template.check(JobTemplate(**fields), "busybox")
    assert body(**fields) == golden(**members)


def test_every_field_is_tried_above() -> None:
    """A field that is added to FIELDS has a golden body, and the fields are DRMAA2's."""
    tried = {name for fields, _ in FIELDS for name in fields}
    assert tried | {"extensions"} == template.FIELDS
    assert set(JobTemplate.__struct_fields__) >= template.FIELDS
    assert "queue_name" not in template.FIELDS


def test_fields_stand_together(here: Path) -> None:
    """A template that uses much of what there is."""
    (here / "words").touch()
    fields: dict[str, Any] = {
        "job_category": "registry.example:5000/team/tool:2.1@sha256:" + "0" * 64,
        "remote_command": "tool",
        "args": ("--all",),
        "working_directory": "/job",
        "job_environment": {"SECRET": "hush"},
        "input_path": "words",
        "min_phys_memory": 6144,
        "max_slots": 1,
        "resource_limits": {"CPU_TIME": 1.6, "OPEN_FILES": 64},
        "stage_in_files": {"/job/words": "words", "/cache": "volume:cache"},
        "extensions": {"user": "1000:1000", "network": "team", "ports": "8080:80", "labels": "a=b", "init": "false"},
    }
    template.check(JobTemplate(**fields), None)
    assert body(image=None, index=7, detach=True, **fields) == {
        "Image": "registry.example:5000/team/tool:2.1@sha256:" + "0" * 64,
        "Entrypoint": ["tool"],
        "Cmd": ["--all"],
        "WorkingDir": "/job",
        "Env": ["SECRET=hush", "JOB_ID=k", "TASK_ID=7"],
        "User": "1000:1000",
        "AttachStdin": True,
        "OpenStdin": True,
        "StdinOnce": True,
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {
            "wfl.session": "s",
            "wfl.key": "k.1",
            "wfl.program": "p",
            "wfl.job": "k",
            "wfl.index": "7",
            "wfl.detach": "true",
            "a": "b",
        },
        "HostConfig": {
            "LogConfig": LOG,
            "Init": False,
            "Memory": 6291456,
            "NanoCpus": 1_000_000_000,
            "Ulimits": [{"Name": "cpu", "Soft": 2, "Hard": 4}, {"Name": "nofile", "Soft": 64, "Hard": 64}],
            "Mounts": [{"Type": "volume", "Source": "cache", "Target": "/cache", "ReadOnly": False}],
            "NetworkMode": "team",
            "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
        },
        "NetworkingConfig": {"EndpointsConfig": {"team": {}}},
    }


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("CORE_FILE_SIZE", 0, ("core", 0, 0)),
        ("DATA_SEGMENT_SIZE", 1 << 20, ("data", 1 << 30, 1 << 30)),
        ("FILE_SIZE", 1, ("fsize", 1024, 1024)),
        ("OPEN_FILES", 64, ("nofile", 64, 64)),
        ("STACK_SIZE", 1024, ("stack", 1 << 20, 1 << 20)),
        ("OPEN_FILES", (1 << 63) - 1, ("nofile", (1 << 63) - 1, (1 << 63) - 1)),
        ("CPU_TIME", 60, ("cpu", 60, 62)),
        ("CPU_TIME", 0.1, ("cpu", 1, 3)),
    ],
)
def test_a_limit_in_the_units_of_the_system(name: str, value: float, limit: tuple[str, int, int]) -> None:
    """KiB become bytes; CPU time is whole seconds, at least one, with two more until the kill."""
    wanted = dict(zip(("Name", "Soft", "Hard"), limit, strict=True))
    assert body(resource_limits={name: value, "WALLCLOCK_TIME": 9}) == golden(HostConfig={"Ulimits": [wanted]})


def test_priorities_cover_what_linux_takes() -> None:
    """Every step is more than the one before; a step beyond either end would be outside of 2 to 262144 shares."""
    steps = range(template.LOWEST, template.HIGHEST + 1)
    shares = [body(priority=priority)["HostConfig"]["CpuShares"] for priority in steps]
    assert shares == sorted(shares)
    assert shares[0] >= 2
    assert shares[-1] <= 262144 < shares[-1] * 1.25
    assert shares[0] / 1.25 < 2
    refused("priority is 25; containers have -28 to 24", priority=25)
    refused("priority is -29", priority=-29)


# --- labels, name and platform ----------------------------------------------------------------------------


def test_labels_bring_the_template_back_without_its_environment() -> None:
    """A later program reads the template from its label; what is in job_environment may be secret."""
    fields: dict[str, Any] = {"remote_command": "a", "stage_in_files": {"/a": "b"}, "extensions": {"user": "x"}}
    labels = whole(job_environment={"TOKEN": "hush"}, **fields)["Labels"]
    assert JobTemplate.from_json(labels["wfl.template"]) == JobTemplate(**fields)
    assert "hush" not in json.dumps(labels)


@given(args=st.lists(WORDS), name=WORDS, environment=st.dictionaries(st.from_regex(r"[A-Z_]+", fullmatch=True), WORDS))
def test_text_arrives_as_it_is(args: list[str], name: str, environment: dict[str, str]) -> None:
    """Whatever the words: they survive JSON, and no daemon's or shell's meaning is given to them."""
    found = whole(remote_command="x", args=args, job_name=name, job_environment=environment)
    read = json.loads(json.dumps(found))
    assert read == found
    assert (read["Entrypoint"], read["Cmd"]) == (["x"], args)
    assert read["Labels"].get("wfl.name", "") == name
    ours = {"JOB_ID": "k"}
    assert dict(item.split("=", 1) for item in read["Env"]) == {**environment, **ours}


def test_text_that_is_not_utf_8_is_refused() -> None:
    """A daemon would replace it without a word; paths on this side never leave it, and may be anything."""
    refused("is not UTF-8", remote_command="a", args=("b\udc80",))
    refused("is not UTF-8", job_environment={"A\udc80": "b"})
    assert whole(output_path="a\udc80")["Labels"]["wfl.template"].isascii()


@pytest.mark.parametrize(
    ("fields", "platform"),
    [
        ({}, None),
        ({"machine_os": "", "machine_arch": ""}, None),
        ({"machine_os": "LINUX"}, "linux"),
        ({"machine_os": "linux", "machine_arch": "X64"}, "linux/amd64"),
        ({"machine_arch": "aarch64"}, "linux/arm64"),
        ({"machine_arch": "X86"}, "linux/386"),
        ({"extensions": {"platform": "linux/arm/v7"}}, "linux/arm/v7"),
    ],
)
def test_name_and_platform_go_beside_the_body(fields: dict[str, Any], platform: str | None) -> None:
    """The name is made of the key, so that it is unique; the platform is only said where the template says it."""
    expected = {"name": "wfl-k.1"} if platform is None else {"name": "wfl-k.1", "platform": platform}
    assert template.query(JobTemplate(**fields), "k.1") == expected
    assert not {"Platform", "platform", "Name", "name"} & set(whole(**fields))


def test_a_machine_that_no_container_runs_on_is_refused() -> None:
    """Another system, an architecture without images, or two answers to one question."""
    refused("machine_os is MACOS; containers run LINUX", DeniedByDrmsError, machine_os="MACOS")
    refused("machine_arch is ARM65.* did you mean 'ARM64'", UnsupportedAttributeError, machine_arch="ARM65")
    refused("say it once", machine_arch="X64", extensions={"platform": "linux"})


# --- extensions -------------------------------------------------------------------------------------------

GPU = {"Driver": "", "Capabilities": [["gpu"]]}
EXTENSIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("user", "nobody", {"User": "nobody"}),
    ("entrypoint", "sh -c 'a  b'", {"Entrypoint": ["sh", "-c", "a  b"], "Cmd": []}),
    ("network", "host", {"HostConfig": {"NetworkMode": "host"}}),
    ("network", "container:other", {"HostConfig": {"NetworkMode": "container:other"}}),
    (
        "network",
        "my-net",
        {"HostConfig": {"NetworkMode": "my-net"}, "NetworkingConfig": {"EndpointsConfig": {"my-net": {}}}},
    ),
    (
        "ports",
        "8080:80, 127.0.0.1:53:53/udp,[::1]:81:80,127.0.0.1::90,91",
        {
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "90/tcp": {}, "91/tcp": {}},
            "HostConfig": {
                "PortBindings": {
                    "80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "::1", "HostPort": "81"}],
                    "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}],
                    "90/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}],
                    "91/tcp": [{"HostIp": "", "HostPort": ""}],
                }
            },
        },
    ),
    ("privileged", "true", {"HostConfig": {"Privileged": True}}),
    ("cap_add", "NET_ADMIN,cap_sys_time", {"HostConfig": {"CapAdd": ["NET_ADMIN", "cap_sys_time"]}}),
    ("cap_drop", "ALL", {"HostConfig": {"CapDrop": ["ALL"]}}),
    (
        "devices",
        "/dev/a:/dev/b:rw,/dev/c,/dev/d:r",
        {
            "HostConfig": {
                "Devices": [
                    {"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "rw"},
                    {"PathOnHost": "/dev/c", "PathInContainer": "/dev/c", "CgroupPermissions": "rwm"},
                    {"PathOnHost": "/dev/d", "PathInContainer": "/dev/d", "CgroupPermissions": "r"},
                ]
            }
        },
    ),
    ("gpus", "all", {"HostConfig": {"DeviceRequests": [{**GPU, "Count": -1}]}}),
    ("gpus", "2", {"HostConfig": {"DeviceRequests": [{**GPU, "Count": 2}]}}),
    ("gpus", "device=0,GPU-1", {"HostConfig": {"DeviceRequests": [{**GPU, "DeviceIDs": ["0", "GPU-1"]}]}}),
    ("shm_size", "64m", {"HostConfig": {"ShmSize": 64 << 20}}),
    ("shm_size", "1.5 GiB", {"HostConfig": {"ShmSize": 3 << 29}}),
    ("shm_size", "512b", {"HostConfig": {"ShmSize": 512}}),
    ("shm_size", "4096", {"HostConfig": {"ShmSize": 4096}}),
    ("ipc", "shareable", {"HostConfig": {"IpcMode": "shareable"}}),
    ("pid", "container:a", {"HostConfig": {"PidMode": "container:a"}}),
    ("uts", "host", {"HostConfig": {"UTSMode": "host"}}),
    ("tmpfs", "/run:size=64m,mode=700;/tmp", {"HostConfig": {"Tmpfs": {"/run": "size=64m,mode=700", "/tmp": ""}}}),
    ("read_only", "true", {"HostConfig": {"ReadonlyRootfs": True}}),
    (
        "security_opt",
        "no-new-privileges,apparmor=unconfined,seccomp=unconfined,label=type:a",
        {
            "HostConfig": {
                "SecurityOpt": ["no-new-privileges", "apparmor=unconfined", "seccomp=unconfined", "label=type:a"]
            }
        },
    ),
    ("security_opt", "no-new-privileges=false", {"HostConfig": {"SecurityOpt": ["no-new-privileges=false"]}}),
    (
        "extra_hosts",
        "db:10.0.0.1,six:::1,gw:host-gateway",
        {"HostConfig": {"ExtraHosts": ["db:10.0.0.1", "six:::1", "gw:host-gateway"]}},
    ),
    ("dns", "1.1.1.1, 2606:4700::1111", {"HostConfig": {"Dns": ["1.1.1.1", "2606:4700::1111"]}}),
    ("labels", "a=b,org.c=d=e,f=", {"labels": {"a": "b", "org.c": "d=e", "f": ""}}),
    ("platform", "linux/amd64", {}),
    ("pull", "never", {}),
    ("init", "false", {"HostConfig": {"Init": False}}),
]


@pytest.mark.parametrize(("name", "text", "members"), EXTENSIONS)
def test_each_extension_has_its_place(name: str, text: str, members: dict[str, Any]) -> None:
    """And changes nothing else."""
    template.check(JobTemplate(extensions={name: text}), "busybox")
    assert body(extensions={name: text}) == golden(**members)


def test_every_extension_is_tried_above_and_below() -> None:
    """A key that is added has a golden body and a refusal; an empty value asks for nothing that could be meant."""
    assert {name for name, _, _ in EXTENSIONS} == template.EXTENSIONS
    assert {name for name, _, _ in WRONG} == template.EXTENSIONS
    for name in template.EXTENSIONS:
        refused(rf"extensions\['{name}'\] is empty: leave it out", extensions={name: " "})


WRONG: list[tuple[str, str, str]] = [
    ("user", "a b", "expected 'user' or 'user:group'"),
    ("user", "a:b:c", "expected 'user' or 'user:group'"),
    ("entrypoint", "sh 'a", "no shell words: No closing quotation"),
    ("network", "a b", "expected a network's name"),
    ("network", "-x", "expected a network's name"),
    ("ports", "80:", "expected '.*host port"),
    ("ports", "0:80", "expected '.*host port"),
    ("ports", "80:65536", "expected '.*host port"),
    ("ports", "80/icmp", "expected '.*host port"),
    ("ports", "nowhere:80:80", "expected '.*host port"),
    ("ports", "1.2.3:80:80", "expected '.*host port"),
    ("ports", "8000-8010:80", "expected '.*host port"),
    ("ports", "80,,81", "none of them empty"),
    ("privileged", "yes", "expected 'true' or 'false'"),
    ("cap_add", "NET ADMIN", "expected names such as 'NET_ADMIN"),
    ("cap_drop", "NET-ADMIN", "expected names such as 'NET_ADMIN"),
    ("devices", "sda", "expected '/dev/host"),
    ("devices", "/dev/a:/dev/b:x", "expected '/dev/host"),
    ("gpus", "0", "expected 'all', a number"),
    ("gpus", "some", "expected 'all', a number"),
    ("gpus", "device=", "none of them empty"),
    ("shm_size", "0", "expected a size above 0"),
    ("shm_size", "64q", "expected a size above 0"),
    ("shm_size", "-1m", "expected a size above 0"),
    ("shm_size", "99999999t", "more than a daemon can be told"),
    ("ipc", "public", "expected none, private"),
    ("pid", "private", "expected 'host' or"),
    ("uts", "private", "expected 'host'"),
    ("tmpfs", "tmp", "expected '/path:options"),
    ("tmpfs", "/", "expected '/path:options"),
    ("tmpfs", "/tmp;/tmp:size=1m", "each path once"),
    ("tmpfs", "/tmp,/run", "expected '/path:options"),
    ("read_only", "True", "expected 'true' or 'false'"),
    ("security_opt", "no-new-privs", "expected 'no-new-privileges'"),
    ("security_opt", "no-new-privileges=maybe", "expected 'no-new-privileges'"),
    ("security_opt", "label", "expected 'no-new-privileges'"),
    ("security_opt", "apparmor=", "expected 'no-new-privileges'"),
    ("security_opt", "seccomp=/no/such", "/no/such is no seccomp profile"),
    ("extra_hosts", "db", "expected 'host:address"),
    ("extra_hosts", "db:nowhere", "expected 'host:address"),
    ("extra_hosts", ":1.1.1.1", "expected 'host:address"),
    ("dns", "1.1.1", "expected IP addresses"),
    ("labels", "a", "expected 'key=value"),
    ("labels", "=b", "expected 'key=value"),
    ("labels", "a=b,wfl.key=x", r"\['labels'\] is 'wfl.key', expected labels that do not begin with 'wfl.'"),
    ("platform", "Linux/amd64", "expected 'os/architecture'"),
    ("platform", "linux/", "expected 'os/architecture'"),
    ("pull", "sometimes", "expected 'always', 'missing' or 'never'"),
    ("init", "1", "expected 'true' or 'false'"),
]


@pytest.mark.parametrize(("name", "text", "words"), WRONG)
def test_a_wrong_value_is_refused_with_what_is_expected(name: str, text: str, words: str) -> None:
    """The extension is named, and an example of the right form is given."""
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        template.check(JobTemplate(extensions={name: text}), "busybox")
    assert str(caught.value).startswith(f"extensions['{name}']")


@given(st.sampled_from(sorted(template.EXTENSIONS)), st.text(st.characters(exclude_characters="\0"), max_size=20))
def test_any_text_is_taken_or_refused(name: str, text: str) -> None:
    """Nothing but a body that is JSON, or a refusal."""
    try:
        template.check(JobTemplate(extensions={name: text}), "busybox")
    except InvalidArgumentError:
        return
    assert json.loads(json.dumps(whole(extensions={name: text})))


@given(st.lists(WORDS, min_size=1))
def test_an_entrypoint_is_shell_words(words: list[str]) -> None:
    """Quoted as for a shell; the command and its arguments, or the arguments alone, follow it."""
    extensions = {"entrypoint": shlex.join(words)}
    found = whole(remote_command="a", args=("b",), extensions=extensions)
    assert (found["Entrypoint"], found["Cmd"]) == (words, ["a", "b"])
    assert whole(args=("b",), extensions=extensions)["Cmd"] == ["b"]


@given(st.integers(1, 65535), st.integers(1, 65535), st.sampled_from(["tcp", "udp", "sctp"]), st.ip_addresses())
def test_ports_of_every_kind(host: int, port: int, kind: str, address: Any) -> None:
    """Any number, protocol and address; one of version 6 stands in brackets."""
    text = f"[{address}]" if address.version == 6 else str(address)
    found = whole(extensions={"ports": f"{text}:{host}:{port}/{kind}"})
    bound = {f"{port}/{kind}": [{"HostIp": str(address), "HostPort": str(host)}]}
    assert found["HostConfig"]["PortBindings"] == bound


def test_a_seccomp_profile_is_sent_with_what_it_holds(here: Path) -> None:
    """The daemon does not see the file; what is no JSON is refused on this side."""
    (here / "profile.json").write_text('{\n "defaultAction": "SCMP_ACT_ALLOW" }')
    found = whole(extensions={"security_opt": "seccomp=profile.json"})
    assert found["HostConfig"]["SecurityOpt"] == ['seccomp={"defaultAction":"SCMP_ACT_ALLOW"}']
    (here / "profile.json").write_text("{")
    refused("profile.json is no seccomp profile", extensions={"security_opt": "seccomp=profile.json"})


@pytest.mark.parametrize(
    ("extensions", "words"),
    [
        ({"network": "host", "ports": "80:80"}, "nothing is published from network 'host'"),
        ({"network": "none", "ports": "80:80"}, "nothing is published from network 'none'"),
        ({"network": "container:a", "ports": "80:80"}, "nothing is published from network 'container:a'"),
        ({"ipc": "host", "shm_size": "1m"}, "no /dev/shm of its own"),
        ({"ipc": "none", "shm_size": "1m"}, "no /dev/shm of its own"),
        ({"privileged": "true", "cap_drop": "ALL"}, "keeps all capabilities"),
    ],
)
def test_what_a_daemon_would_pass_over_together_is_refused(extensions: dict[str, str], words: str) -> None:
    """Each of the two is fine alone."""
    refused(words, extensions=extensions)
    for name, text in extensions.items():
        template.check(JobTemplate(extensions={name: text}), "busybox")


def test_pull_policy_is_the_templates_or_the_default() -> None:
    """Checked in either case: a context's setting may be wrong too."""
    assert template.pull_policy(JobTemplate(), "missing") == "missing"
    assert template.pull_policy(JobTemplate(extensions={"pull": "always"}), "missing") == "always"
    with pytest.raises(InvalidArgumentError, match="'pull'"):
        template.pull_policy(JobTemplate(), "seldom")


# --- fields that are wrong --------------------------------------------------------------------------------


def test_no_image_is_refused() -> None:
    """With both places where one can be set."""
    for image in (None, ""):
        with pytest.raises(InvalidArgumentError, match="no image: set job_category in the template, or image in the"):
            template.check(JobTemplate(remote_command="a"), image)


@pytest.mark.parametrize("image", ["BusyBox", "a b", "-a", "a:b:c", "a/", "http://a/b", "a@sha256:12", "a\n", "ä"])
def test_a_text_that_names_no_image_is_refused(image: str) -> None:
    """By the field that it stands in."""
    refused("job_category is .* no name of an image", job_category=image)
    with pytest.raises(InvalidArgumentError, match="the context's image is"):
        template.check(JobTemplate(), image)


@pytest.mark.parametrize(
    "image",
    ["a", "a/b/c:1.0-x", "localhost/a", "localhost:5000/a_b", "Host.example:1/a", "[::1]:5000/a", "2f04f40dc3b2",
     "sha256:" + "0" * 64, "a:1@sha256:" + "f" * 64],
)  # fmt: skip
def test_names_of_images(image: str) -> None:
    """With and without registry, port, tag and digest; and ids."""
    template.check(JobTemplate(job_category=image), None)
    assert whole(job_category=image)["Image"] == image


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"working_directory": "work"}, "working_directory has 'work': inside of a container paths are absolute"),
    ({"candidate_machines": ("a_",)}, "candidate_machines is 'a_', no host name"),
    ({"candidate_machines": ("a" * 64,)}, "no host name of up to 63 characters"),
    ({"min_phys_memory": 1024}, "min_phys_memory is 1024 KiB; a container has 6144 or more"),
    ({"min_phys_memory": 1 << 53}, "min_phys_memory is more than a daemon can be told"),
    ({"min_slots": 1 << 40}, "max_slots or min_slots is more than a daemon can be told"),
    ({"resource_limits": {"OPEN_FILES": 1 << 63}}, r"resource_limits\['OPEN_FILES'\] is more than a daemon"),
    ({"resource_limits": {"FILE_SIZE": 1 << 53}}, r"resource_limits\['FILE_SIZE'\] is more than a daemon"),
    ({"stage_in_files": {"a": "bind:/etc"}}, "stage_in_files has 'a': inside of a container paths are absolute"),
    ({"stage_in_files": {"../a": "/etc/passwd"}}, "'../a', which leads out of the working directory"),
    ({"stage_in_files": {"/": "/etc/passwd"}}, "stage_in_files has the target '/'"),
    ({"stage_in_files": {"/a/../": "bind:/etc"}}, "stage_in_files has the target '/a/../'"),
    ({"stage_in_files": {"/a": "/etc/passwd", "/a/": "bind:/etc"}}, "has the target '/a' twice"),
    ({"stage_in_files": {"/a": "/no/such"}}, "stage_in_files: /no/such cannot be read"),
    ({"stage_in_files": {"/a": "bind:etc"}}, r"stage_in_files\['/a'\] is 'bind:etc', expected 'bind:/absolute"),
    ({"stage_in_files": {"/a": "volume:"}}, "expected 'volume:NAME"),
    ({"stage_in_files": {"/a": "volume:a/b"}}, "expected 'volume:NAME"),
    ({"stage_in_files": {"/proc/a": "/etc/passwd"}}, "what is mounted at /proc hides it"),
    ({"stage_in_files": {"/dev/shm/../shm/a": "/etc/passwd"}}, "what is mounted at /dev hides it"),
    (
        {"stage_in_files": {"/t/a": "/etc/passwd"}, "extensions": {"tmpfs": "/t"}},
        "'/t/a': what is mounted at /t hides it",
    ),
    ({"stage_in_files": {"/t": "bind:/etc"}, "extensions": {"tmpfs": "/t"}}, "both mount /t"),
    (
        {"stage_in_files": {"/t/a": "/etc/passwd"}, "extensions": {"read_only": "true"}},
        "cannot be copied to '/t/a' with read_only: use 'bind:",
    ),
    ({"stage_out_files": {"a": "/t/b"}, "extensions": {"tmpfs": "/t"}}, "/t is gone after the end"),
    ({"join_files": True, "error_path": "err"}, "join_files sends errors to the output"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSALS)
def test_a_field_that_no_container_can_have_is_refused(fields: dict[str, Any], words: str) -> None:
    """By its name, with what would be right."""
    refused(words, **fields)


def test_a_limit_that_containers_do_not_have_is_refused() -> None:
    """With what there is in its place."""
    words = "containers have no VIRTUAL_MEMORY; min_phys_memory limits memory"
    refused(words, UnsupportedAttributeError, resource_limits={"VIRTUAL_MEMORY": 1})


def test_more_than_one_machine_is_refused() -> None:
    """One name becomes the container's own; there is nothing to choose from."""
    words = "candidate_machines are a, b; for a container it is one"
    refused(words, UnsupportedAttributeError, candidate_machines=("a", "b"))


def test_places_beside_what_is_hidden_are_free(here: Path) -> None:
    """A name that only begins like a mount, and a copy into a mount of a read-only container."""
    (here / "a").touch()
    copies = {"/tmpx/a": "a", "/device": "a"}
    template.check(JobTemplate(stage_in_files=copies, extensions={"tmpfs": "/tmp"}), "busybox")
    inside = {"/v": "volume:v", "/v/a": "a"}
    template.check(JobTemplate(stage_in_files=inside, extensions={"read_only": "true"}), "busybox")


# --- files on this side -----------------------------------------------------------------------------------


def test_copies_are_what_is_not_mounted(here: Path) -> None:
    """With absolute targets and sources; a file of this side whose name begins with bind: is written ./bind:."""
    (here / "a").touch()
    (here / "bind:b").touch()
    files = {"/x/./a/": "a", "/y": "./bind:b", "/m": "bind:/etc", "/v": "volume:v"}
    assert template.copies_in(JobTemplate(stage_in_files=files), "/") == {"/x/a": f"{here}/a", "/y": f"{here}/bind:b"}
    assert template.copies_in(JobTemplate(), "/") == {}


def test_paths_of_this_side_are_looked_at_from_the_programs_directory(here: Path) -> None:
    """Not from working_directory, which is in the container: nothing is opened or made."""
    (here / "input").touch()
    template.check(JobTemplate(working_directory="/no/such", input_path="input", output_path="out"), "busybox")
    template.check(JobTemplate(input_path="/dev/stdin", error_path="/dev/null"), "busybox")
    refused(f"input_path {here}/none cannot be read", input_path="none")
    refused(f"output_path {here}/none/out: there is no directory {here}/none", output_path="none/out")
    refused(f"error_path {here} is a directory", error_path=str(here))
    refused(f"output_path and input_path are the same file, {here}/./input", input_path="input", output_path="./input")
    copied = {"/none/out": "input"}
    refused("there is no directory", output_path="none/out", stage_in_files=copied)
    assert [path.name for path in here.iterdir()] == ["input"]


def test_a_program_in_a_removed_directory_is_told_so(here: Path) -> None:
    """Only where the answer depends on it: absolute paths do not."""
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    words = "the directory that the program is in was removed"
    refused(f"output_path 'out': {words}", output_path="out")
    refused(f"stage_in_files 'a': {words}", stage_in_files={"/a": "a"})
    refused(f"stage_out_files 'a': {words}", stage_out_files={"a": "/a"})
    template.check(JobTemplate(output_path=f"{here}/out", stage_out_files={f"{here}/a": "/a"}), "busybox")


def test_strings_are_as_long_as_the_system_takes() -> None:
    """With an init process, a longer one would be an ordinary exit status 1 of the container."""
    refused("an argument has 131073 bytes", remote_command="a", args=("x" * 131072,))
    refused(r"job_environment\['A'\] has 131073 bytes", job_environment={"A": "x" * 131070})
    many = {f"A{number}": "x" * 100_000 for number in range(os.sysconf("SC_ARG_MAX") // 100_000 + 1)}
    refused("args and environment need", job_environment=many)
