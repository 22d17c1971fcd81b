"""Which generator of random numbers goes on longest before it repeats itself? A matrix of pods, one for each candidate.

Each pod gets the modulus and the first number as a staged file, counts the numbers by tenths of their range, and that
file is fetched. What it prints is how many numbers there were, and by that the best one is chosen. A long series takes
more memory than pods get at first: what ended for want of memory is submitted again with twice as much.

    python kubernetes_matrix.py [IMAGE]              any image with sh and awk; without it, busybox:1
    WFL_CONTEXT=docker python kubernetes_matrix.py   in containers of this machine
"""

import os
import sys
import tempfile
from pathlib import Path

from wfl import JobTemplate, Replacement, Task, Workflow

IMAGE = sys.argv[1] if len(sys.argv) > 1 else "busybox:1"
FIRST, MOST = 16, 256
"""MiB that pods get at first, and what none gets more of."""

SERIES = """{
    for (number = $2; !(number in seen); number = ({a} * number + {c}) % $1) {
        seen[number] = count++
        tenths[int(10 * number / $1)]++
    }
    for (tenth = 0; tenth < 10; tenth++)
        print tenths[tenth] + 0 > "/results/tenths"
    print count - seen[number]
}"""


def candidates(place: Path) -> JobTemplate:
    """One pod: a file goes in, a file comes out, and the answer is its output."""
    return JobTemplate(
        remote_command="awk",
        args=(SERIES, "/input/start"),
        job_name="a={a} c={c}",
        job_category=IMAGE,
        stage_in_files={"/input/start": str(place / "start")},
        stage_out_files={str(place / "a={a} c={c}"): "/results/tenths"},
    )


def with_memory(template: JobTemplate, size: int) -> JobTemplate:
    """The same with so many MiB."""
    return template.replace(min_phys_memory=size * 1024)


def name(task: Task) -> str:
    """Of the candidate."""
    return str(task.template.job_name)


def lacked_memory(task: Task) -> bool:
    """Whether that is why it has failed."""
    return task.info().sub_state == "out_of_memory"


def tell(task: Task) -> None:
    """What it has found, or why it has not."""
    if task.success:
        print(f"{name(task)}: {task.output()}")
    elif not lacked_memory(task):
        print(f"{name(task)}: {task.info().sub_state}, {task.info().annotation or task.output()}")


def main() -> None:
    """Start all candidates, give more memory to those that need it, and choose."""
    os.environ.setdefault("WFL_CONTEXT", "kubernetes")
    with tempfile.TemporaryDirectory() as directory, Workflow() as flow:
        if flow.error:
            sys.exit(f"no cluster here: {flow.error}")
        place = Path(directory)
        (place / "start").write_text("714025 1\n", encoding="utf-8")  # modulus, first number

        memory = FIRST
        matrix = Replacement("{a}", [1365, 1366, 1367]), Replacement("{c}", [0, 150889])
        jobs = [flow.run_matrix(with_memory(candidates(place), memory), *matrix).on_error_raise().for_each(tell)]
        while memory < MOST and (short := [task for task in jobs[-1].failed() if lacked_memory(task)]):
            print(f"{memory} MiB were not enough for {', '.join(map(name, short))}")
            memory *= 2
            again = flow.new_job()
            for task in short:
                again.run(with_memory(task.template, memory))
            jobs.append(again.on_error_raise().for_each(tell))

        lengths: dict[str, int] = {}
        for job in jobs:
            job.for_each(lambda task: lengths.update({name(task): int(task.output())} if task.success else {}))
        best = max(lengths, key=lambda candidate: lengths[candidate])
        tenths = [int(line) for line in (place / best).read_text(encoding="utf-8").split()]
        print(f"the best is {best}; each tenth of its range has {min(tenths)} to {max(tenths)} of the numbers")


if __name__ == "__main__":
    main()
