"""Streaming: the lines of a job's output, as they are written, while it still runs."""

import time

from wfl import Workflow

with Workflow() as flow:
    job = flow.run("/bin/sh", "-c", "for percent in 25 50 75 100; do sleep 0.2; echo $percent; done")
    begin = time.monotonic()
    for line in job.stream():
        print(f"after {time.monotonic() - begin:.1f} s: {line} % done", flush=True)
    print("exit status", job.exit_status())
