"""Branches run side by side; here one starts jobs and hands them, through a notifier, to one that waits for them."""

from wfl import Job, Notifier, Workflow

started = Notifier()


def start(_: Job) -> None:
    """Start three jobs; leaving the notifier closes it, which tells the other branch that no more will come."""
    with started:
        for number in (1, 2, 3):
            flow.run("echo", "result", str(number)).tag_with(f"job {number}").notify(started)


def collect(_: Job) -> None:
    """Wait for each job, in the order in which they were started."""
    for job in started:
        print(f"{job.tag}: {job.output()}")


with Workflow() as flow:
    flow.branch(start, collect).join()
print("both branches have ended")
