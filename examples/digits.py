"""Which model reads handwritten digits best? A search over many small trainings, each of them a process.

It splits scikit-learn's digits, trains 36 models in parallel, lives with two kinds of trouble, takes the best, tries it
on digits that no training has seen, and writes a report with a picture. What the processes do is in digits_tasks.py
and digits_report.py; here is the order in which they are run.

    python digits.py [SETTING ...]           the settings to try with every model; without any 1 3 9 27
    WFL_CONTEXT=process?max_parallel=8 ...   where the trainings run, and how many of them at once
"""

import json
import os
import sys
from pathlib import Path

from wfl import JobTemplate, Replacement, Task, Workflow

REPORT = Path("digits-report").absolute()
HERE = Path(__file__).parent.absolute()
SETTINGS = sys.argv[1:] or ["1", "3", "9", "27"]

# What the machine did to a job is worth another try; what a job did to itself would only happen again.
MACHINE_TROUBLE = {"signaled", "out_of_memory", "node_failure", "preempted", "evicted"}


def step(script: str, *words: str) -> JobTemplate:
    """One step of the work: a script with its arguments, run in the report's directory."""
    return JobTemplate(
        remote_command=sys.executable,
        args=[str(HERE / script), *words],
        working_directory=str(REPORT),
        job_name="-".join(words),
        job_environment={"OMP_NUM_THREADS": "1"},  # many trainings at once are parallel enough
    )


def result_of(task: Task) -> dict[str, object]:
    """What a training told: its accuracy, or, if it failed, the last line of its error output."""
    if task.success:
        return {"attempts": len(task.attempts), "accuracy": float(task.output())}
    words = task.error_output() or str(task.info().annotation)
    return {"attempts": len(task.attempts), "error": words.splitlines()[-1]}


def main() -> None:
    """Split, search, choose, test, report."""
    # Unless somebody chose another system: processes of this machine, one for each processor.
    os.environ.setdefault("WFL_CONTEXT", f"process?max_parallel={os.cpu_count()}")
    REPORT.mkdir(exist_ok=True)

    with Workflow(progress=True) as flow:
        print(flow.run(step("digits_tasks.py", "split")).raise_for_status().output())

        # Every model with every scaling of the pixels and every setting.
        search = flow.run_matrix(
            step("digits_tasks.py", "train", "{model}", "{scaling}", "{setting}"),
            Replacement("{model}", ["svm", "neighbours", "bayes"]),
            Replacement("{scaling}", ["none", "minmax", "standard"]),
            Replacement("{setting}", SETTINGS),
        )
        print(f"{len(search.tasks)} trainings are on their way")
        search.synchronize()

        # One training was killed (the step "train" sees to that) and gets a second chance. Naive Bayes cannot take
        # the negative numbers of standard scaling: that stays a failure, and goes into the report.
        search.retry_any_failed(2, backoff=0.5, when=MACHINE_TROUBLE)
        results: dict[str, dict[str, object]] = {}
        search.for_each(lambda task: results.update({str(task.template.job_name): result_of(task)}))
        for name, result in results.items():
            if result["attempts"] != 1:
                print(f"{name} took {result['attempts']} attempts")
            if "error" in result:
                print(f"{name} failed: {result['error']}")

        # The best in cross-validation is trained on all training data, and meets the test data once.
        accuracies = {name: result["accuracy"] for name, result in results.items() if "accuracy" in result}
        best = max(accuracies, key=lambda name: float(str(accuracies[name])))
        (REPORT / "search.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
        _, model, scaling, setting = best.split("-")
        final = flow.run(step("digits_tasks.py", "test", model, scaling, setting))
        final.on_success_run(step("digits_report.py")).raise_for_status()
        print(final.output())


if __name__ == "__main__":
    main()
