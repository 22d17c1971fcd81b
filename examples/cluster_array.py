"""An array over input files: results are gathered, and what failed for want of memory is submitted again with more.

Each element reads one file. How an element has ended decides what comes next: out of memory, it gets twice as much; a
failure of another kind would only happen again, so it is told and left.

    python cluster_array.py                     as processes of this machine
    WFL_CONTEXT=slurm python cluster_array.py   on a cluster, from a directory that its machines share
"""

import tempfile
from pathlib import Path

from wfl import Context, JobTemplate, Task, Workflow

INPUTS = ["10", "20", "300", "40", "seven"]
"""What the files say: how many MiB their element has to hold. One is no number."""
FIRST, MOST = 100, 1600
"""MiB that elements get at first, and what none gets more of."""
NO_MEMORY = 12
"""The exit status by which the step says that it was given no more: where memory is a limit of what a process may map,
as for processes and on many a Grid Engine, nobody ends it."""
STEP = f"""
import sys
size = int(sys.stdin.read())
try:
    held = b"x" * (size << 20)
except MemoryError:
    sys.exit({NO_MEMORY})
print(len(held) >> 20)
"""

context = Context.from_environment()


def with_memory(template: JobTemplate, size: int) -> JobTemplate:
    """The same with so many MiB. Processes have a limit for that; elsewhere it is what a job asks its machine for."""
    if context.name == "process":
        return template.replace(resource_limits={"VIRTUAL_MEMORY": size * 1024})
    return template.replace(min_phys_memory=size * 1024)


def lacked_memory(task: Task) -> bool:
    """Whether that is why it has failed."""
    info = task.info()
    return info.sub_state == "out_of_memory" or info.exit_status == NO_MEMORY


def name(task: Task) -> str:
    """Of the file that it reads."""
    return Path(task.template.input_path or "").name


def tell(task: Task) -> None:
    """How it has ended."""
    if task.success:
        print(f"{name(task)}: {task.output()} MiB")
    elif not lacked_memory(task):
        print(f"{name(task)}: {task.error_output().splitlines()[-1]}")


with tempfile.TemporaryDirectory(dir=".", prefix="inputs-") as directory, Workflow(context) as flow:
    for number, text in enumerate(INPUTS, start=1):
        Path(directory, str(number)).write_text(text, encoding="utf-8")
    path = f"{Path(directory).absolute()}/$DRMAA2_INDEX$"
    template = JobTemplate(remote_command="python3", args=("-c", STEP), input_path=path)

    memory = FIRST
    jobs = [flow.run_array(len(INPUTS), with_memory(template, memory)).on_error_raise().for_each(tell)]
    while memory < MOST and (short := [task for task in jobs[-1].failed() if lacked_memory(task)]):
        print(f"{memory} MiB were not enough for {', '.join(map(name, short))}")
        memory *= 2
        again = flow.new_job()
        for task in short:
            again.run(with_memory(task.template, memory))
        jobs.append(again.on_error_raise().for_each(tell))

    print("together:", sum(int(text) for job in jobs for text in job.outputs().values() if text), "MiB")
    for job in jobs:
        job.reap_all()  # on a cluster, what jobs have left stays until somebody says so
