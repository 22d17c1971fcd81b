"""Synchronization: several jobs run at once, and the next step begins when the last of them has ended."""

import tempfile

from wfl import Workflow, shell

with tempfile.TemporaryDirectory() as directory, Workflow() as flow:
    parts = flow.new_job()
    for number in (3, 1, 2):
        parts.run(shell(f"sleep 0.{number}; echo part {number} > part-{number}", working_directory=directory))
    print(f"{len(parts.tasks)} parts are being made")

    parts.synchronize().raise_for_status()
    whole = flow.run(shell("cat part-*", working_directory=directory))
    print(whole.output())
