"""Which functions does a Python package call most? Each step runs in a container of its own, from the image it needs.

A step with Python parses the package. One package was written for Python 2, and the parser refuses it: there, a step
with grep takes what looks like a call. A last step counts. The containers share no file system: what a step needs is
copied into its container, and what it has made is copied back.

    python containers.py [PACKAGE ...]        names of importable packages; without any, json and wsgiref
    WFL_CONTEXT=podman python containers.py   with Podman; without it, or with docker, with Docker
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from wfl import Job, JobTemplate, Task, Workflow, shell

PACKAGES = sys.argv[1:] or ["json", "wsgiref"]
OLD = 'import sys\nprint "hello", sys.argv[1].upper()\nprint max(len(word) for word in sys.argv)\n'

PYTHON, SMALL = "python:3.11", "busybox"
ALONE = {"network": "none"}  # no step needs a network, and without one a container starts sooner


def parse(package: Path, calls: Path) -> JobTemplate:
    """A container with Python: the step's program and the package are copied in, the names come out."""
    program = Path(__file__).with_name("containers_calls.py")
    return shell("python3 /step.py /package > /calls.txt").replace(
        job_category=PYTHON,
        stage_in_files={"/step.py": str(program), "/package": str(package)},
        stage_out_files={str(calls): "/calls.txt"},
        min_phys_memory=256 * 1024,  # KiB; more, and it is ended as out_of_memory
        extensions=ALONE,
    )


def search(package: Path, calls: Path) -> JobTemplate:
    """What takes the parser's place where that fails: a word before a bracket is taken for a call."""
    return shell(r"grep -rhoE '\w+\(' /package | tr -d '(' > /calls.txt").replace(
        job_category=SMALL,
        stage_in_files={"/package": str(package)},
        stage_out_files={str(calls): "/calls.txt"},
        extensions=ALONE,
    )


def count(calls: Path) -> JobTemplate:
    """The three most frequent names, from the file that the step before has left."""
    return shell("sort /calls.txt | uniq -c | sort -k 1,1nr -k 2 | head -n 3 | awk '{ print $2, $1 }'").replace(
        job_category=SMALL, stage_in_files={"/calls.txt": str(calls)}, extensions=ALONE
    )


def not_parsed(task: Task) -> None:
    """Say why the parser's step failed: with the last line of its error output, or what became of its container."""
    words = task.error_output() or str(task.info().annotation)
    print(f"{task.template.job_name}: {words.splitlines()[-1]}")


def main() -> None:
    """Start the parser on all packages, and follow each to its count."""
    os.environ.setdefault("WFL_CONTEXT", "docker")
    with tempfile.TemporaryDirectory() as directory, Workflow() as flow:
        if flow.error:
            sys.exit(f"no containers here: {flow.error}")
        place = Path(directory)
        (place / "old").mkdir()
        (place / "old" / "hello.py").write_text(OLD, encoding="utf-8")
        packages = {"old": place / "old"}
        for name in PACKAGES:
            found = importlib.util.find_spec(name)
            packages[name] = Path(str(found and found.origin)).parent

        started: dict[str, Job] = {}
        for name, package in packages.items():
            started[name] = flow.run(parse(package, place / f"{name}.txt"), job_name=name)
        for name, job in started.items():
            calls = place / f"{name}.txt"
            job.on_failure(not_parsed).on_failure_run(search(packages[name], calls))
            if not job.then_run(count(calls)).success():
                sys.exit(f"{name}: nothing was counted: {job.last_error or job.error_output()}")
            print(f"{name}: {', '.join(job.output().splitlines())}")


if __name__ == "__main__":
    main()
