"""Hosts over SSH as they are in the world: pools of them, keys, ways to them, and what a job gets and leaves there."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import ssh
from tests.faults import hosts
from tests.faults.hosts import ALIAS, BOTH, Host, Wire, alive
from tests.faults.machine import NOTE, PATIENCE, children_of, command_of, noted, stat_of, wait_until
from tests.faults.servers import free_port, needed
from wfl import JobState, Workflow, shell
from wfl.contexts.ssh import clean, doctor
from wfl.errors import DeniedByDrmsError, DrmCommunicationError, SessionManagementError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wfl import Job, Task
    from wfl.contexts.ssh import SshContext

LITTLE = timedelta(seconds=0.1)
SHELLS = ["dash", "bash", "busybox"]
ALL = os.fsdecode(bytes(range(1, 256)))
"""Every byte that a text for the system may have."""


host = hosts.host


@pytest.fixture
def flow(host: Host) -> Iterator[Workflow]:
    """A workflow on it; afterwards nothing is left there."""
    with Workflow(host.context(), raise_errors=True) as found:
        yield found
    host.is_empty()


@pytest.fixture
def homes(host: Host) -> Iterator[str]:
    """A directory below each user's home, in which nothing is left afterwards."""
    name = f".wfl/faults-{uuid.uuid4().hex[:8]}"
    yield name
    for home in (Path.home(), host.service.home):
        if (home / name).exists():
            wait_until("nothing is left there", lambda home=home: not [*(home / name).iterdir()])  # type: ignore[misc]
            (home / name).rmdir()


def tasks_of(job: Job) -> list[Task]:
    """An array's elements."""
    return list(job.tasks[0].tasks)  # type: ignore[union-attr]


def machines(job: Job) -> list[str]:
    """Where an array's elements ran."""
    return sorted(machine for task in tasks_of(job) for machine in task.info().allocated_machines)


def shell_of(host: Host, name: str) -> str:
    """What is given as `shell`: with busybox there are no other commands."""
    if name == "busybox":
        return f"/usr/bin/env PATH={host.service.busybox} {host.service.busybox}/sh"
    return needed(name, name)


# --- pools ------------------------------------------------------------------------------------------------


def test_two_users_are_two_hosts(host: Host, homes: str, tmp_path: Path) -> None:
    """Each has its own slots, which are never exceeded, and all are used."""
    config = tmp_path / "config"
    config.write_text(host.entry("root-there") + host.entry("user-there", user=host.service.user))
    slots = {"root-there": 2, "user-there": 1}
    context = host.context([*slots], config=str(config), slots=slots, directory=homes)
    line = "read a b </proc/uptime; sleep 0.3; read c d </proc/uptime; echo $(id -u) $a $c"
    with Workflow(context, raise_errors=True) as flow:
        job = flow.run_array(9, shell(line))
        job.synchronize(timeout=PATIENCE)
        assert {*machines(job)} == {*slots}
        times: dict[str, list[tuple[float, float]]] = {}
        for task in tasks_of(job):
            user, begin, end = task.output().split()
            times.setdefault(user, []).append((float(begin), float(end)))
            assert task.info().allocated_machines == ("root-there" if user == "0" else "user-there",)
        for user, all_of_them in times.items():
            together = max(sum(b <= begin < e for b, e in all_of_them) for begin, _ in all_of_them)
            assert together <= (2 if user == "0" else 1)
        wide = flow.run("true", min_slots=2).wait(PATIENCE)
        info = wide.info()
        assert info is not None
        assert info.allocated_machines == ("root-there",)


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_one_host_was_never_there(how: str, host: Host, tmp_path: Path) -> None:
    """The other does all of the work, and nobody waits for the one that cannot be reached more than once."""
    with Wire(host.port) as wire:
        wire.swallow(*BOTH)
        config = tmp_path / "config"
        config.write_text(host.entry() + host.entry("nowhere", port=wire.port if how == "silent" else free_port()))
        begin = time.monotonic()
        context = host.context(["nowhere", "there"], config=str(config), timeout=2.0)
        with Workflow(context, raise_errors=True) as flow:
            job = flow.run_array(30, shell("exit $((TASK_ID % 2))"))
            job.synchronize(timeout=PATIENCE)
            assert machines(job) == ["there"] * 30
            assert [task.info().exit_status for task in tasks_of(job)] == [n % 2 for n in range(1, 31)]
        assert time.monotonic() - begin < 12
        with Workflow(host.context("nowhere", config=str(config), timeout=2.0)) as flow:
            alone = flow.run("true").wait(PATIENCE)
            info = alone.info()
            assert info is not None
            assert (info.state, info.sub_state) == (JobState.FAILED, "launch_failure")
            assert isinstance(alone.last_error, DrmCommunicationError)
            assert "nowhere: " in str(alone.last_error)
    host.is_empty()


def test_many_hosts_say_nothing(host: Host, tmp_path: Path) -> None:
    """However many there are, and however long they may take, those that answer have the jobs at once."""
    names = [f"silent-{number}" for number in range(6)]
    config = tmp_path / "config"
    with Wire(host.port) as wire:
        wire.swallow(*BOTH)
        config.write_text(host.entry() + host.entry("silent-*", port=wire.port))
        begin = time.monotonic()
        context = host.context([*names, "there"], config=str(config), timeout=PATIENCE)
        with Workflow(context, raise_errors=True) as flow:
            flow.run("true").wait(PATIENCE)
            first = time.monotonic()
            job = flow.run_array(20, "true")
            job.synchronize(timeout=PATIENCE)
            assert machines(job) == ["there"] * 20
            assert time.monotonic() - first < 5
        assert time.monotonic() - begin < PATIENCE / 2, "nobody waits for each of them, or for as long as they may take"
        wire.mend()
    host.is_empty()


def test_one_host_goes_and_comes(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its jobs stay as they are and end truly; others go elsewhere meanwhile, and to it again afterwards."""
    gate = tmp_path / "gate"
    config = tmp_path / "config"
    with Wire(host.port) as wire:
        config.write_text(host.entry("one", port=wire.port) + host.entry("two"))
        with Workflow(host.context(["one", "two"], config=str(config), slots=8), raise_errors=True) as flow:
            job = flow.run_array(8, shell(f"until [ -e {gate} ]; do sleep 0.02; done; exit $TASK_ID"))
            for task in tasks_of(job):
                task.wait_started(PATIENCE)
            assert machines(job) == ["one"] * 4 + ["two"] * 4
            wire.refuse()
            wait_until("that is known", lambda: "one: the connection was lost" in caplog.text)
            elsewhere = flow.run_array(4, "true")
            elsewhere.synchronize(timeout=PATIENCE)
            assert machines(elsewhere) == ["two"] * 4
            assert elsewhere.success()
            gate.touch()
            of_two = [task for task in tasks_of(job) if task.info().allocated_machines == ("two",)]
            of_one = [task for task in tasks_of(job) if task not in of_two]
            for task in of_two:
                task.wait_terminated(PATIENCE)
            assert {task.state for task in of_one} == {JobState.RUNNING}
            wire.mend()
            job.synchronize(timeout=PATIENCE)
            assert [task.info().exit_status for task in tasks_of(job)] == list(range(1, 9))
            again = flow.run_array(8, "sleep", "0.5")
            again.synchronize(timeout=PATIENCE)
            assert machines(again) == ["one"] * 4 + ["two"] * 4
    host.is_empty()


def test_many_hosts_are_away(host: Host, tmp_path: Path) -> None:
    """However many are, the one that is there goes on with its work, files and all."""
    names = [f"away-{n}" for n in range(9)]
    gate, config = tmp_path / "gate", tmp_path / "config"
    with Wire(host.port) as wire:
        config.write_text(host.entry() + host.entry("away-*", port=wire.port))
        with Workflow(host.context([*names, "there"], config=str(config), slots=2), raise_errors=True) as flow:
            job = flow.run_array(10, shell(f"until [ -e {gate} ]; do sleep 0.1; done; exit $TASK_ID"))
            for task in tasks_of(job):
                task.wait_started(PATIENCE)
            assert machines(job) == [*names, "there"]
            wire.refuse()
            for number in range(5):
                begin = time.monotonic()
                out = tmp_path / f"out-{number}"
                here = flow.run("echo", "here", candidate_machines=["there"], output_path=str(out)).wait(PATIENCE)
                assert here.success()
                assert out.read_text() == "here\n"
                assert time.monotonic() - begin < 5
            gate.touch()
            wire.mend()
            job.synchronize(timeout=PATIENCE)
            assert [task.info().exit_status for task in tasks_of(job)] == list(range(1, 11))
    host.is_empty()


def test_who_waits_for_room_is_not_lost(host: Host, tmp_path: Path) -> None:
    """One job after the other on one host, whose connection is cut with each: all end, and each ran at most once."""
    ran, config = tmp_path / "ran", tmp_path / "config"
    with Wire(host.port) as wire:
        config.write_text(host.entry("one", port=wire.port) + host.entry("two"))
        context = host.context(["one", "two"], config=str(config), slots={"one": 1})
        with Workflow(context, raise_errors=False) as flow:
            line = f"echo $N >>{ran}; sleep 0.1"
            jobs = [flow.run(shell(line, job_environment={"N": str(n)}), candidate_machines=["one"]) for n in range(12)]
            for number in range(6):
                wait_until("one has ended", lambda n=number: sum(job.state.ended for job in jobs) > n)  # type: ignore[misc]
                wire.after("there", 100 * number, wire.cut)
            for job in jobs:
                job.wait(PATIENCE)
            lines = ran.read_text().split()
            for number, job in enumerate(jobs):
                info = job.info()
                assert info is not None
                assert lines.count(str(number)) == (info.state is JobState.DONE), info
                assert info.state is JobState.DONE or info.sub_state in ("launch_failure", "lost"), info
            assert len(lines) >= 6
    host.is_empty()


# --- hosts that are not what they were ----------------------------------------------------------------------


def test_a_kill_while_it_moves_up(host: Host, tmp_path: Path) -> None:
    """One that waited and is given room is ended while its files are copied: it never runs, and nothing of it stays."""
    (tmp_path / "in").write_bytes(os.urandom(6_000_000))
    mark, gate = tmp_path / "mark", tmp_path / "gate"
    with Wire(host.port) as wire:
        with Workflow(host.context(port=wire.port, slots=1, max_parallel=5), raise_errors=True) as flow:
            first = flow.run(shell(f"until [ -e {gate} ]; do sleep 0.02; done"))
            first.tasks[0].wait_started(PATIENCE)
            second = flow.run("touch", str(mark), input_path=str(tmp_path / "in"))
            third = flow.run("echo", "third")
            wait_until("they wait for room", lambda: second.state is third.state is JobState.QUEUED)

            def kill() -> None:
                second.kill()

            wire.after("there", 1_000_000, kill)
            gate.touch()
            assert wire.sprung.wait(PATIENCE)
            assert third.wait(PATIENCE).success()
            info = second.info()
            assert info is not None
            assert (info.state, info.sub_state) == (JobState.FAILED, "cancelled")
        assert not mark.exists()
        host.is_empty()


def test_a_host_is_started_anew(host: Host) -> None:
    """Its boot id is another one: what ran before has failed with its host, what had ended by then has its own end."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with Wire(host.port) as wire, Workflow(host.context(port=wire.port), raise_errors=False) as flow:
        job = flow.run_array(3, shell("[ $TASK_ID != 3 ] || exit 7; sleep 600"))
        for task in (tasks := tasks_of(job))[:2]:
            task.wait_started(PATIENCE)
        tasks[2].wait_terminated(PATIENCE)
        wire.refuse()
        pids = started_through(host)
        for pid in pids:  # as nothing lives through a start
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        wait_until("none is left", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        for path in host.jobs.glob("*/*/[0-9]*/*"):
            text = path.read_text()
            if f"|{boot}|" in text:
                path.write_text(text.replace(boot, "another-boot"))
        wire.mend()
        for task in tasks[:2]:
            task.wait_terminated(PATIENCE)
            info = task.info()
            assert (info.state, info.sub_state) == (JobState.FAILED, "node_failure"), info
            assert info.annotation == "there was started anew while it ran"
        assert tasks[2].info().exit_status == 7
        assert flow.run("true").wait(PATIENCE).success()
    host.is_empty()


def test_a_clock_that_goes_wrong(host: Host, tmp_path: Path) -> None:
    """An hour ahead: times are ours all the same, and the doctor says it."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "date").write_text(f"#!/bin/sh\necho $(($({needed('date', 'coreutils')} +%s) + 3600))\n")
    (commands / "date").chmod(0o755)
    context = host.context(shell=f"/usr/bin/env PATH={commands}:{os.environ['PATH']} /bin/sh")
    with Workflow(context, raise_errors=True) as flow:
        begin = datetime.now(UTC)
        info = flow.run("sleep", "1").wait(PATIENCE).info()
        end = datetime.now(UTC)
        assert info is not None
        assert info.dispatch_time is not None
        assert info.finish_time is not None
        assert begin - LITTLE <= info.dispatch_time < info.finish_time <= end + LITTLE
        assert info.wallclock_time is not None
        assert timedelta(seconds=1) <= info.wallclock_time <= end - begin
    assert [line for line in doctor("there", context) if "clock" in line] == [
        "its clock is 3600 s ahead; times are told by ours"
    ]
    host.is_empty()


# --- keys -------------------------------------------------------------------------------------------------


def fingerprint(path: Path) -> str:
    """Of a public key, as ssh-keygen tells it."""
    command = [needed("ssh-keygen", "openssh-client"), "-lf", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.split()[1]


def why(context: SshContext, kind: type[Exception]) -> str:
    """Why no job can be started, in one line."""
    with Workflow(context) as flow:
        job = flow.run("true").wait(PATIENCE)
        info = job.info()
        assert info is not None
        assert (info.state, info.sub_state) == (JobState.FAILED, "launch_failure")
        assert isinstance(job.last_error, kind), job.last_error
        text = str(job.last_error)
    assert "\n" not in text
    return text


def runs(context: SshContext) -> bool:
    """Whether a job can be started."""
    with Workflow(context, raise_errors=True) as flow:
        return flow.run("true").wait(PATIENCE).success()


def test_a_host_that_nobody_knows(host: Host, tmp_path: Path) -> None:
    """Its key is refused with its fingerprint, and nothing is written; what is said to do about it does it."""
    known = tmp_path / "known"
    config = tmp_path / "config"
    config.write_text(host.entry().replace(str(host.known), str(known)))
    before = host.counts()["login"]
    text = why(host.context(config=str(config)), SessionManagementError)
    assert fingerprint(host.service.directory / "host.pub") in text
    assert str(known) in text
    assert host.counts()["login"] == before
    assert not known.exists()
    words = text.split("`")[1].split()
    assert words[0] == "ssh"
    answer = ["-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"]
    subprocess.run([*words[:1], *answer, *words[1:], "true"], check=True, capture_output=True, timeout=PATIENCE)
    assert runs(host.context(config=str(config)))
    host.is_empty()


def test_a_host_that_has_changed(host: Host, tmp_path: Path) -> None:
    """Another key than is known is refused, with both fingerprints; the cure is to forget that one."""
    other = (host.service.directory / "ca.pub").read_text().split()
    known = tmp_path / "known"
    known.write_text(f"{ALIAS} {other[0]} {other[1]}\n")
    config = tmp_path / "config"
    config.write_text(host.entry().replace(str(host.known), str(known)))
    before = host.counts()["login"]
    text = why(host.context(config=str(config)), SessionManagementError)
    assert fingerprint(host.service.directory / "host.pub") in text
    assert fingerprint(host.service.directory / "ca.pub") in text
    assert host.counts()["login"] == before
    cure = text[text.index("ssh-keygen -R") :].split()
    subprocess.run(cure, check=True, capture_output=True, timeout=PATIENCE)
    assert ALIAS not in known.read_text(), "the cure is for the file that was read"
    assert "is not known" in why(host.context(config=str(config)), SessionManagementError)


def test_a_key_with_a_passphrase(host: Host, homes: str) -> None:
    """It is used with the passphrase; without, or with another, that is said. None is told it where others see."""
    config, secret = str(host.service.config), host.service.passphrase
    settings: dict[str, Any] = {"config": config, "directory": homes}
    with Workflow(host.context(ssh.SECRET, passphrase=secret, **settings), raise_errors=True) as flow:
        job = flow.run("sleep", "600")
        job.tasks[0].wait_started(PATIENCE)
        for name in filter(str.isdigit, os.listdir("/proc")):
            for kind in ("cmdline", "environ"):
                with suppress(OSError):
                    assert secret.encode() not in Path(f"/proc/{name}/{kind}").read_bytes()
        job.kill().wait(PATIENCE)
    assert "passphrase" in why(host.context(ssh.SECRET, **settings), DeniedByDrmsError)
    wrong = host.context(ssh.SECRET, passphrase="no such words", **settings)  # noqa: S106
    text = why(wrong, DeniedByDrmsError)
    assert ssh.SECRET in text
    assert "no such words" not in text


def test_an_agent_has_the_key(host: Host, homes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ssh-add has given to an agent is used, and nobody is asked."""
    askpass, socket = tmp_path / "askpass", str(tmp_path / "agent")
    askpass.write_text(f"#!/bin/sh\ncat {host.service.directory}/id_secret.passphrase\n")
    askpass.chmod(0o700)
    command = [needed("ssh-agent", "openssh-client"), "-D", "-a", socket]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as agent:
        try:
            wait_until("it listens", lambda: Path(socket).exists())
            monkeypatch.setenv("SSH_AUTH_SOCK", socket)
            subprocess.run(
                ["ssh-add", str(host.service.secret_key)],
                env={**os.environ, "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"},
                check=True, capture_output=True, timeout=PATIENCE,
            )  # fmt: skip
            assert runs(host.context(ssh.SECRET, config=str(host.service.config), directory=homes))
        finally:
            agent.terminate()


def test_a_certificate(host: Host, homes: str, tmp_path: Path) -> None:
    """The authority's word is enough; the key without it is none."""
    settings: dict[str, Any] = {"config": str(host.service.config), "directory": homes}
    assert runs(host.context(ssh.CERTIFICATE, **settings))
    bare = tmp_path / "key"
    shutil.copy(host.service.certified_key, bare)
    text = why(host.context(ssh.CERTIFICATE, identity_file=str(bare), **settings), DeniedByDrmsError)
    assert "accepts none of the keys" in text
    shutil.copy(host.service.certificate, tmp_path / "key-cert.pub")
    assert runs(host.context(ssh.CERTIFICATE, identity_file=str(bare), **settings))


# --- ways -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ssh.JUMP, ssh.PROXY])
def test_behind_another(name: str, host: Host, homes: str, tmp_path: Path) -> None:
    """By ProxyJump or ProxyCommand, files and all, and of what leads there nothing is left."""
    before = {*children_of(os.getpid())}
    (tmp_path / "in").write_bytes(b"x" * 1_000_000)
    with Workflow(host.context(name, config=str(host.service.config), directory=homes), raise_errors=True) as flow:
        assert flow.run("id", "-un").output() == host.service.user
        fields: dict[str, Any] = {"input_path": str(tmp_path / "in"), "output_path": str(tmp_path / "out")}
        assert flow.run("cat", **fields).wait(PATIENCE).success()
        assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    wait_until("no process is left", lambda: {*children_of(os.getpid())} <= before)


def test_what_leads_there_is_killed(host: Host, homes: str) -> None:
    """A ProxyCommand that dies is a connection that was lost: there is another, and the job ends truly."""
    context = host.context(ssh.PROXY, config=str(host.service.config), directory=homes)
    with Workflow(context, raise_errors=True) as flow:
        job = flow.run(shell("sleep 2; exit 7"))
        job.tasks[0].wait_started(PATIENCE)
        ways = [pid for pid in children_of(os.getpid()) if b"-W" in command_of(pid)]
        assert len(ways) == 1
        os.kill(ways[0], signal.SIGKILL)
        assert job.wait(PATIENCE).exit_status() == 7


def test_include_and_match(host: Host, tmp_path: Path) -> None:
    """What other files say, and what holds for this host and user only, is as the ssh command has it."""
    (tmp_path / "parts").mkdir()
    entry = host.entry("inner", user="nobody-at-all").replace("    User nobody-at-all\n", "")
    (tmp_path / "parts" / "a.conf").write_text(entry)
    (tmp_path / "parts" / "b.conf").write_text("Match user another\n    Port 1\n")
    config = tmp_path / "config"
    config.write_text(
        f"Include {tmp_path}/parts/*.conf\nMatch originalhost other\n    User another\n"
        "Match originalhost inner\n    User root\nHost *\n    User another\n    Port 1\n"
    )
    command = ["ssh", "-F", str(config), "-o", "BatchMode=yes", "inner", "id", "-un"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.strip()
    with Workflow(host.context("inner", config=str(config)), raise_errors=True) as flow:
        assert flow.run("id", "-un").output() == told == "root"
    host.is_empty()


# --- many jobs --------------------------------------------------------------------------------------------


def test_a_thousand_jobs(tmp_path: Path) -> None:
    """They need one connection, one channel to be told of, and four for files at most; sshd allows ten."""
    with Host(tmp_path) as own:
        with Workflow(own.context(), raise_errors=True) as flow:
            job = flow.run_array(1000, shell("echo $TASK_ID; exit $((TASK_ID % 7))"))
            job.synchronize(timeout=2 * PATIENCE)
            tasks = tasks_of(job)
            assert [task.info().exit_status for task in tasks] == [n % 7 for n in range(1, 1001)]
            found: dict[int, str] = {}

            def read(some: list[Task]) -> None:
                for task in some:
                    found[task.index or 0] = task.output()

            threads = [threading.Thread(target=read, args=(tasks[start::8],)) for start in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == {n: str(n) for n in range(1, 1001)}
            counts = own.counts()
            assert (counts["login"], counts["command"]) == (1, 1)
            assert 1 <= counts["subsystem"] <= 4
        own.is_empty()


def test_nothing_of_two_hundred_jobs_is_left(host: Host) -> None:
    """As many threads and descriptors as before are here, and there no process and no directory."""

    def threads() -> int:
        return len([thread for thread in threading.enumerate() if thread.name.startswith(("wfl", "Thread"))])

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    def load(flow: Workflow, count: int) -> None:
        job = flow.run_array(count, shell("echo $TASK_ID; exit $((TASK_ID % 2))"))
        assert len(job.outputs()) == count
        sleepers = flow.run_array(5, "sleep", "600")
        sleepers.kill_all().synchronize(timeout=PATIENCE)
        for one in flow.jobs():
            one.reap_all()

    before = threads(), descriptors()
    with Workflow(host.context()) as flow:
        load(flow, 40)
        used = threads(), descriptors()
        load(flow, 200)
        wait_until("there are no more threads than before", lambda: threads() <= used[0])
        wait_until("no more descriptors are open than before", lambda: descriptors() <= used[1])
        assert [path for path in host.kept() if path.count("/") > 1 and "/tell" not in path] == []
    wait_until("all threads have ended", lambda: threads() <= before[0])
    wait_until("all descriptors are closed", lambda: descriptors() <= before[1])
    host.is_empty()
    wait_until("no process is left there", lambda: not started_through(host), 20)


def started_through(host: Host) -> list[int]:
    """The processes that were started over a connection to it."""
    mark = f" 127.0.0.1 {host.port}\0".encode()
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            environment = Path(f"/proc/{name}/environ").read_bytes()
            if b"SSH_CONNECTION=127.0.0.1 " in environment and mark in environment:
                found.append(int(name))
    return found


# --- what a job gets --------------------------------------------------------------------------------------

TELL = """
import json, os, sys
names = json.loads(sys.argv[1])
told = {"arguments": [os.fsencode(word).hex() for word in sys.argv[2:]], "directory": os.getcwdb().hex(),
        "environment": {name: os.environb.get(name.encode(), b"-").hex() for name in names}}
print(json.dumps(told))
"""
HOSTILE = [
    "", " ", "-rf", "--", "-", "'", '"', "\\", "\n", "\r\n", "\t", "a\nb\n", "$HOME", "`id`", "$(id)", "*", "~", "#",
    "!!", "a'b\"c", "'; exit 9; '", "ünï☃🎉", "\u2028", "EOF", "%s%n", "\x7f\x1b[0m", ALL, "'" * 1000, "x" * 100_000,
    "é\n" * 30_000,
]  # fmt: skip


@pytest.mark.parametrize("name", SHELLS)
def test_any_text_arrives(name: str, host: Host, tmp_path: Path) -> None:
    """Arguments, variables and a working directory of any bytes are what the job sees, under each shell."""
    directory = os.path.join(os.fsencode(tmp_path), bytes(n for n in range(1, 256) if n != ord("/")))
    os.mkdir(directory)
    environment = {f"V{number}": text for number, text in enumerate(HOSTILE)}
    names = json.dumps([*environment])
    with Workflow(host.context(shell=shell_of(host, name)), raise_errors=True) as flow:
        job = flow.run(
            sys.executable, "-I", "-S", "-c", TELL, names, *HOSTILE,
            job_environment=environment, working_directory=os.fsdecode(directory),
        )  # fmt: skip
        assert job.wait(PATIENCE).success(), (job.infos(), job.error_output())
        told = json.loads(job.output())
        assert told["arguments"] == [os.fsencode(text).hex() for text in HOSTILE]
        assert told["environment"] == {one: os.fsencode(text).hex() for one, text in environment.items()}
        assert bytes.fromhex(told["directory"]) == directory
    host.is_empty()


def test_any_name_of_a_file_arrives(flow: Workflow, tmp_path: Path) -> None:
    """Files of hostile names are staged both ways."""
    names = ["".join(chr(n) for n in range(1, 128) if n != ord("/")), "ünï☃🎉", "-rf *", "a\nb", "'$(id)'"]
    here, there, back = tmp_path / "here", tmp_path / "there", tmp_path / "back"
    for path in (here, there, back):
        path.mkdir()
    for number, one in enumerate(names):
        (here / one).write_text(f"{number}")
    staged = {f"{there}/{one}": f"{here}/{one}" for one in names}
    fetched = {f"{back}/{one}": f"{there}/{one}" for one in names}
    job = flow.run("true", stage_in_files=staged, stage_out_files=fetched).wait(PATIENCE)
    assert job.success(), job.infos()
    assert [(back / one).read_text() for one in names] == [str(number) for number in range(len(names))]
    assert {*os.listdir(there)} == {*os.listdir(back)} == {*names}


def test_nothing_secret_is_shown(flow: Workflow, tmp_path: Path) -> None:
    """No process has a variable's value on its command line at any moment, here or there; the job has it."""
    secret = uuid.uuid4().hex
    seen: list[bytes] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for name in filter(str.isdigit, os.listdir("/proc")):
                words = command_of(int(name))
                if secret.encode() in words:
                    seen.append(words)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        check = tmp_path / "check"
        check.write_text(secret)
        line = f'read -r right <{check}; [ "$TOKEN" = "$right" ] && sleep 0.2'
        job = flow.run_array(60, shell(line, job_environment={"TOKEN": secret}))
        job.synchronize(timeout=PATIENCE)
        assert job.success()
    finally:
        over.set()
        looking.join()
    assert seen == []


LOOK = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "descriptors": sorted(os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                          if os.path.exists(f"/proc/self/fd/{name}")),
    "umask": int(status["Umask"], 8), "session": os.getsid(0) == os.getpid(), "group": os.getpgrp() == os.getpid(),
    # Python itself ignores SIGPIPE and SIGXFSZ; 32 and 33 are the C library's: what an ancestor ignored of them stays.
    "ignored": int(status["SigIgn"], 16) & ~0x181001000,
    "blocked": int(status["SigBlk"], 16), "home": os.getcwd(),
}))
"""


@pytest.mark.parametrize("name", SHELLS)
def test_what_surrounds_a_job(name: str, host: Host) -> None:
    """Its umask is the login's own, no signal is ignored or blocked, and nothing is open but its three streams."""
    command = ["ssh", "-F", str(host.config()), "-o", "BatchMode=yes", "there", "umask"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
    with Workflow(host.context(shell=shell_of(host, name)), raise_errors=True) as flow:
        seen = [json.loads(flow.run(sys.executable, "-I", "-S", "-c", LOOK).output())]
        job = flow.run_array(70, sys.executable, "-I", "-S", "-c", LOOK)
        seen += [json.loads(text) for text in job.outputs().values()]
        assert len(seen) == 71
        for one in seen:
            null, *streams = one["descriptors"]
            assert null == "/dev/null"
            assert [path.rpartition("/")[2] for path in streams] == ["err", "out"], streams
            assert (one["umask"], one["ignored"], one["blocked"]) == (int(told, 8), 0, 0)
            assert (one["session"], one["group"], one["home"]) == (True, True, str(Path.home()))
        assert int(flow.run("grep", "SigIgn", "/proc/self/status").output().split()[1], 16) & ~0x180000000 == 0
        interrupted = flow.run(shell("kill -INT $$; sleep 600")).wait(PATIENCE)
        info = interrupted.info()
        assert info is not None
        assert (info.terminating_signal, info.exit_status) == ("SIGINT", 130)
    host.is_empty()


# --- trees ------------------------------------------------------------------------------------------------


@contextmanager
def tree(flow: Workflow, log: Path, line: str) -> Iterator[Job]:
    """A job with children that have left its group, once all have noted themselves."""
    job = flow.run(shell(line, job_environment={"LOG": str(log)}))
    try:
        wait_until("all are there", lambda: len(noted(log)) == 4)
        yield job
    finally:
        for pid in alive(log):
            os.kill(pid, signal.SIGKILL)


GRANDCHILDREN = " ".join(
    f"{how} sh -c '{NOTE}exec sleep 600' x &" for how in ("", "setsid", "setsid setsid", "env setsid")
)
"""Four of them, of which three are in sessions of their own."""


@pytest.mark.parametrize("how", ["kill", "terminate", "close"])
@pytest.mark.parametrize("name", SHELLS)
def test_the_whole_tree_ends(name: str, how: str, host: Host, tmp_path: Path) -> None:
    """Also what has left the process group and session of the job, by a kill, by a SIGTERM, and when all is closed."""
    log = tmp_path / "log"
    line = f"{GRANDCHILDREN} wait; sleep 600"
    with (
        Workflow(host.context(shell=shell_of(host, name)), raise_errors=True) as flow,
        tree(flow, log, line) as job,
    ):
        if how == "kill":
            job.kill()
        elif how == "terminate":
            job.kill(grace=30)
        else:
            flow.close()
        wait_until("none is left", lambda: not alive(log), 10)
        if how != "close":
            job.wait(PATIENCE)
            assert job.state is JobState.FAILED
    host.is_empty()


def test_the_whole_tree_stops_and_goes_on(flow: Workflow, tmp_path: Path) -> None:
    """Suspended and resumed are all of it, several times."""
    log = tmp_path / "log"
    with tree(flow, log, f"{GRANDCHILDREN} wait; sleep 600") as job:
        pids = [pid for pid, _ in noted(log)]

        def states() -> set[str]:
            return {stat[0] for pid in pids if (stat := stat_of(pid)) is not None}

        def is_known(state: JobState) -> bool:
            return job.state is state

        for _ in range(3):
            job.suspend()
            assert is_known(JobState.SUSPENDED)
            wait_until("all have stopped", lambda: states() == {"T"}, 5)
            job.resume()
            assert is_known(JobState.RUNNING)
            wait_until("all go on", lambda: states() == {"S"}, 5)
        job.suspend().kill().wait(PATIENCE)
        wait_until("none is left", lambda: not alive(log), 10)


# --- cleaning ---------------------------------------------------------------------------------------------


def test_clean_leaves_nothing(host: Host, tmp_path: Path) -> None:
    """What detached programs left in a session ends and goes, running, stopped or ended; other sessions stay."""
    log = tmp_path / "log"
    context, other = host.context(detach=True), host.context()
    with Workflow(context, raise_errors=True) as flow:
        flow.run_array(3, "true").synchronize(timeout=PATIENCE)
        flow.run(shell(f"{GRANDCHILDREN} wait; sleep 600", job_environment={"LOG": str(log)}))
        stopped = flow.run("sleep", "600")
        stopped.tasks[0].wait_started(PATIENCE)
        stopped.suspend()
        wait_until("all are there", lambda: len(noted(log)) == 4)
    with Workflow(other, raise_errors=True) as flow:
        job = flow.run("sleep", "600")
        job.tasks[0].wait_started(PATIENCE)
        assert clean(context.session_name, context) == 2
        wait_until("none is left", lambda: not alive(log), 10)
        wait_until(
            "only the other is kept", lambda: {path.split("/")[0] for path in host.kept()} == {other.session_name}
        )
        assert clean(context.session_name, context) == 0
        assert job.state is JobState.RUNNING
        job.kill().wait(PATIENCE)
    host.is_empty()
