"""Parallel split: after a common beginning several chains go on side by side, each at its own pace."""

import tempfile

from wfl import Job, Workflow

with tempfile.TemporaryDirectory() as directory, Workflow() as flow:
    flow.run("/bin/sh", "-c", "printf '%s\\n' pear apple plum > fruit", working_directory=directory).raise_for_status()

    def count(job: Job) -> Job:
        """One chain: how many lines there are."""
        return job.run("/bin/sh", "-c", "wc -l < fruit", working_directory=directory)

    def order(job: Job) -> Job:
        """Another, of two steps: the lines in order."""
        sort = job.run("sort", "-o", "sorted", "fruit", working_directory=directory)
        return sort.on_success_run("paste", "-s", "-d", " ", "sorted", working_directory=directory)

    counted, ordered = flow.branch(count, order).join()
    print("how many:", counted.output().strip())
    print("in order:", ordered.output())
