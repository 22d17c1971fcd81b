"""run_every: a job at fixed times, without drift, until a time or for a duration; here a look at the clock."""

from itertools import pairwise

from wfl import Workflow

with Workflow() as flow:
    job = flow.new_job().run_every(0.4, "date", "-u", until=1.5)
    outputs = list(job.outputs().values())
    print(f"{len(outputs)} looks at the clock in 1.5 seconds")
    times = [info.submission_time for info in job.infos() if info.submission_time]
    for earlier, later in pairwise(times):
        print(f"{(later - earlier).total_seconds():.1f} s after the one before")
