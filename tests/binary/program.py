"""The program that is built as one file.

program environment | contexts | sleep N | detach STORE | find STORE | contain named|imported | leave named|imported |
preview NAME
"""
# ruff: noqa: T201 - it is a program: it prints

import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from wfl import Context, Workflow, shell
from wfl.contexts.batch import BatchContext
from wfl.contexts.drmaa import DrmaaContext


def environment() -> None:
    """Print the environment of a task; the context is the one that WFL_CONTEXT names."""
    with Workflow(raise_errors=True) as flow:
        print(flow.run("env").output())


def contexts() -> None:
    """Print the names of the contexts that are announced by entry points."""
    print(*(point.name for point in entry_points(group="wfl.contexts")))


def sleep(number: str) -> None:
    """Start tasks that sleep, each with a child, print that they run, and wait for them."""
    with Workflow(Context.named("process"), raise_errors=True) as flow:
        job = flow.run_array(int(number), shell("sleep 600 & sleep 600"))
        job.do(lambda array: array.wait_started())
        print("started", flush=True)
        job.synchronize()


def detach(store: str) -> None:
    """Leave tasks behind: one that runs on until somebody makes the file `go`, and one that has ended."""
    with Workflow(Context.named("process", store=store, detach=True), raise_errors=True) as flow:
        flow.run("/bin/sh", "-c", "while [ ! -e go ]; do sleep 0.05; done; echo late; exit 7", job_name="long")
        flow.run("/bin/sh", "-c", "echo early; exit 3", job_name="short").wait()
        print("left", flush=True)


def find(store: str) -> None:
    """Print what an earlier program left: name, state before the wait, exit status, output."""
    with Workflow(Context.named("process", store=store, detach=True), raise_errors=True) as flow:
        for job in flow.jobs():
            state = job.state.value
            if state == "running":
                Path("go").touch()
            print(job.template and job.template.job_name, state, job.exit_status(), job.output())


def containers(how: str) -> Context:
    """A daemon's context: the one that WFL_CONTEXT names, or a class that is imported."""
    if how == "named":
        return Context.from_environment()
    from wfl.contexts.docker import DockerContext

    return DockerContext(image="busybox", session_name=os.environ["SESSION"])


def contain(how: str) -> None:
    """Run a job in a container, with a file copied in and one copied out, and print what came of it."""
    alone = {"network": "none"}
    with Workflow(containers(how), raise_errors=True) as flow:
        Path("words").write_text("pear\napple\n", encoding="utf-8")
        job = flow.run(
            shell("sort /words > /sorted; env"),
            stage_in_files={"/words": "words"},
            stage_out_files={"sorted": "/sorted"},
            extensions=alone,
        )
        print(Path("sorted").read_text(encoding="utf-8") if job.success() else job.info())
        print(job.output())
        print(flow.run(shell("exit 3"), extensions=alone).exit_status())


def leave(how: str) -> None:
    """Start a container that sleeps, say so, and wait for it."""
    with Workflow(containers(how), raise_errors=True) as flow:
        job = flow.run("sleep", "600", extensions={"network": "none"})
        job.tasks[-1].wait_started()
        print("started", flush=True)
        job.wait()


def preview(name: str) -> None:
    """Print the first words of what would be run for a job on a cluster, which is not contacted."""
    context = Context.named(f"{name}?directory=/jobs&timeout=30")
    assert isinstance(context, BatchContext | DrmaaContext)
    print(context.directory, *context.preview(shell("true"))[0].command[:2])


def main() -> None:
    """Run one command."""
    logging.basicConfig(level=logging.INFO)
    commands: dict[str, Callable[..., None]] = {
        "environment": environment,
        "contexts": contexts,
        "sleep": sleep,
        "detach": detach,
        "find": find,
        "contain": contain,
        "leave": leave,
        "preview": preview,
    }
    try:
        commands[sys.argv[1]](*sys.argv[2:])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
