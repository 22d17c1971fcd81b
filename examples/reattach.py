"""Reattaching after a crash: a program is killed, and another one finds the jobs that it had started."""

import signal
import subprocess
import sys
import tempfile

from wfl import Workflow
from wfl.contexts.process import ProcessContext


def start(store: str) -> None:
    """The program that will be killed: detached jobs live on, and the store remembers them."""
    with Workflow(ProcessContext(store=store, detach=True)) as flow:
        flow.run("echo", "I had ended before", job_name="short").wait()
        flow.run("/bin/sh", "-c", "sleep 1; echo I went on alone; exit 5", job_name="long")
        print("two jobs are started", flush=True)
        signal.pause()


def find(store: str) -> None:
    """The program that comes after it: a workflow with the same store knows the jobs."""
    with Workflow(ProcessContext(store=store, detach=True)) as flow:
        for job in flow.jobs():
            name = job.template.job_name if job.template else None
            print(f"{name}: {job.output()!r}, {job.state.value} with exit status {job.exit_status()}")


def main() -> None:
    """Run the first program, kill it, and be the second."""
    with tempfile.TemporaryDirectory() as directory:
        store = f"{directory}/jobs.db"
        with subprocess.Popen([sys.executable, __file__, store], stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout
            print("first program:", program.stdout.readline().strip())
            program.kill()
        print("first program: killed by", signal.Signals(-program.returncode).name)
        find(store)


if __name__ == "__main__":
    start(sys.argv[1]) if len(sys.argv) > 1 else main()
