"""Cancel the rest: as soon as one element of an array fails, the others are not worth their time and are ended."""

from wfl import Workflow, as_completed

WORK = "if [ $TASK_ID = 3 ]; then echo no input >&2; exit 2; fi; sleep 60"

with Workflow() as flow:
    job = flow.run_array(6, "/bin/sh", "-c", WORK)
    for task in as_completed([job]):
        if not task.success:
            print(f"element {task.index} failed ({task.error_output()}): the rest is cancelled")
            job.kill_all()
            break
    for number, info in enumerate(job.synchronize().infos(), start=1):
        print(f"element {number}: {info.state.value}, {info.sub_state}")
