"""Slurm's language where it needs no Slurm to be shown: options, and what its answers mean."""

from __future__ import annotations

import pytest

from wfl import InvalidArgumentError, JobTemplate, UnsupportedAttributeError
from wfl.contexts.batch.place import Entry, Wave
from wfl.contexts.batch.scheduler import Job
from wfl.contexts.batch.slurm import Slurm, SlurmContext
from wfl.contexts.ends import how_it_ended


def _command(after: str | None = None, log: str = "/shared/log", **extensions: str) -> list[str]:
    template = JobTemplate(remote_command="true", extensions=extensions)
    waves = [Wave(range(4), 1), Wave(range(4), 5)]
    entry = Entry("key-1", template, "key-1", indexes=range(1, 9), max_parallel=1, waves=waves)
    return list(Slurm().submit(Job(entry, "/shared/script", log, part=1 if after else 0, after=after)))


def test_part_of_array_waits_for_both() -> None:
    """A part of an array waits for the part before it and for what the template says: sbatch heeds one option only."""
    options = [option for option in _command("7", dependency="afterok:3") if option.startswith("--dependency")]
    assert options == ["--dependency=afterany:7,afterok:3"]
    assert "--kill-on-invalid-dep=yes" in _command(dependency="afterok:3")
    assert "--kill-on-invalid-dep=yes" not in _command("7")


def test_part_of_array_refuses_alternatives() -> None:
    """What Slurm cannot say, that a part waits for the part before it and for one of several others, is refused."""
    assert "--dependency=afterok:3?afterok:4" in _command(dependency="afterok:3?afterok:4")
    with pytest.raises(UnsupportedAttributeError, match="dependency"):
        _command("7", dependency="afterok:3?afterok:4")


@pytest.mark.parametrize("given", ["yes", "True", "1", ""])
def test_exclusive_is_checked(given: str) -> None:
    """What is neither true nor false is refused, not taken for false."""
    with pytest.raises(InvalidArgumentError, match="exclusive"):
        SlurmContext().preview(JobTemplate(remote_command="true", extensions={"exclusive": given}))


def test_log_is_taken_literally() -> None:
    """A % in the directory is a %, and no number of a job; a backslash, which sbatch does not keep, is refused."""
    assert "--output=/a %%j/log" in _command(log="/a %j/log")
    with pytest.raises(InvalidArgumentError, match="backslash"):
        _command(log="/a\\b/log")


@pytest.mark.parametrize("name", ["SQUEUE_LICENSES", "SQUEUE_STATES", "SCANCEL_STATE", "SCANCEL_NAME"])
def test_users_filters_are_off(name: str) -> None:
    """What a user has set to see, or to cancel, only some of the jobs hides none of ours."""
    assert Slurm.answers[name] == ""


def test_script_that_slurm_could_not_start_has_failed() -> None:
    """A log that cannot be opened: sacct's 0:53 is an error of Slurm's, neither an exit status 0 nor a signal."""
    record = "9|9|FAILED|0:53|1700000000|1700000000|1700000000|0|00:00:00||1|debug|n1|None\n"
    (account,) = Slurm().accounts(record, 0)
    assert (account.exit_status, account.signal, account.cause) == (None, None, "launch_failure")
    assert "0:53" in str(account.info.annotation)
    line = (
        "JobId=9 JobName=x JobState=FAILED Reason=JobLaunchFailure ExitCode=0:53 SubmitTime=1700000000 "
        "StartTime=1700000000 EndTime=1700000000 NumCPUs=1 Partition=debug NodeList=n1"
    )
    (account,) = Slurm().accounts(line, 1)
    assert (account.exit_status, account.signal, account.cause) == (None, None, "launch_failure")


@pytest.mark.parametrize("reason", ["None", "Dependency"])
def test_reason_of_the_list(reason: str) -> None:
    """Why a job was cancelled that never began: what squeue says at more length than sacct (Slurm 22.05)."""
    (seen,) = Slurm().seen("828|CANCELLED|1700000000|1700000000|1|debug||(null)|DependencyNeverSatisfied\n")
    line = f"828|828|CANCELLED|0:0|1700000000|1700000000|1700000000|0|00:00:00||1|debug|None assigned|{reason}\n"
    (account,) = Slurm().accounts(line, 0)
    info = how_it_ended("828", None, account, cause=None, began=False, words=lambda: "", listed=seen.info.annotation)
    assert (info.sub_state, info.annotation) == ("cancelled", "CANCELLED: DependencyNeverSatisfied")


def test_what_was_not_asked_for_is_not_read() -> None:
    """The controller's answer may be of everybody's jobs: those that were asked for are taken out."""
    line = "JobId={} ArrayJobId={} ArrayTaskId={} JobState=COMPLETED ExitCode=0:0 NodeList=n1 Reason=None\n"
    output = line.format(5, 3, 1) + line.format(3, 3, 2) + line.format(33, 33, 1)
    assert [(one.id, one.number) for one in Slurm().accounts(output, 1, {"3"})] == [("3", 1), ("3", 2)]
    assert [list(command) for command in Slurm().accounting(["3", "4"], "me", 1)] == [
        ["scontrol", "--local", "--oneliner", "show", "job", id] for id in ("3", "4")
    ]
    assert [list(command) for command in Slurm().accounting(list("34567"), "me", 1)] == [
        ["scontrol", "--local", "--oneliner", "show", "job"]
    ]
