"""A first chain: each step waits for the one before it, and may depend on how that ended."""

from wfl import Workflow

with Workflow() as flow:
    job = (
        flow.run("echo", "hello from the first step")
        .on_success_run("/bin/sh", "-c", "echo the second step has trouble; exit 3")
        .on_failure(lambda task: print("a step failed with exit status", task.info().exit_status))
        .then_run("echo", "the third step runs whatever happened")
    )
    for output in job.outputs().values():
        print(output)
    print("the last step is", job.state.value)
