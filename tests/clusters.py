"""Real schedulers for tests: the variables that lead to them, which of their jobs are somebody's, and their absence."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.containers import lacking
from wfl.contexts.batch.place import BY

SERVICES = Path(__file__).parent / "services"
QUESTIONS = {
    "slurm": ("sinfo", "--noheader"),
    "slurm-plain": ("sinfo", "--noheader"),
    "sge": ("qstat",),
    "kubernetes": ("kubectl", "get", "--raw", "/readyz"),
}
SCHEDULERS = frozenset(QUESTIONS)
ANSWER = 60.0
"""Seconds that a scheduler may take to answer."""


def left_in(directory: Path) -> list[Path]:
    """What jobs have left in the directory of a context."""
    return [Path(place, name) for place, _, names in os.walk(directory) for name in names if name != BY]


def variables(name: str) -> dict[str, str]:
    """What the clients need of the scheduler that `make services` starts, whether it is there or not."""
    script = SERVICES / "environment.sh"
    told = subprocess.run([script, name], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in told.splitlines())


def reached(name: str) -> dict[str, str]:
    """The same of one that answers. Skips, or fails, where there is none."""
    found = variables(name)
    there = Path(found.get("SLURM_CONF") or found.get("KUBECONFIG") or found["SGE_ROOT"])
    command = QUESTIONS[name]
    if shutil.which(command[0], path=found.get("PATH")) is None or not there.exists():
        lacking(f"no {name} is here: make services")
    try:
        subprocess.run(command, env={**os.environ, **found}, capture_output=True, check=True, timeout=ANSWER)
    except (OSError, subprocess.SubprocessError) as error:
        lacking(f"{name} does not answer: {error}")
    return found


def jobs_of(directory: Path, name: str) -> list[str]:
    """What a scheduler has of the jobs that have their files in a directory: elements of Slurm's arrays one by one.

    Kubernetes knows of no directory: all of wfl's in the default namespace.
    """
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T %o"]
    if name == "sge":
        command = ["qstat", "-j", "*"]
    if name == "kubernetes":
        command = ["kubectl", "get", "jobs", "--selector=wfl/session", "--output=name"]
    environment = {**os.environ, **variables(name)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=ANSWER)
    if done.returncode and "do not exist" not in done.stderr:  # Grid Engine has no job at all
        pytest.fail(f"{name} does not answer: {done.stderr}")
    if name == "kubernetes":
        return done.stdout.splitlines()
    wanted = "stdout_path_list:" if name == "sge" else ""
    return [line for line in done.stdout.splitlines() if line.startswith(wanted) and f"{directory}/" in line]
