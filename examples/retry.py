"""Retry with backoff: a job that fails twice is submitted again after growing pauses, until it succeeds."""

import tempfile

from wfl import Backoff, Task, Workflow

# Fails until its third run: each run leaves one more line in the file.
FLAKY = "echo run >> runs; test $(wc -l < runs) -ge 3"


def tell(task: Task) -> None:
    """The attempts of a task, oldest first."""
    for number, attempt in enumerate(task.attempts, start=1):
        print(f"attempt {number}: {attempt.state.value}, exit status {attempt.info().exit_status}")


with tempfile.TemporaryDirectory() as directory, Workflow() as flow:
    job = flow.run("/bin/sh", "-c", FLAKY, working_directory=directory)
    job.retry(5, backoff=Backoff(initial=0.1, factor=2)).do(tell)
    print("success" if job.success() else "given up")
