"""An array: one command many times, each time with another TASK_ID, and no more than two at once."""

from wfl import Workflow

with Workflow() as flow:
    squares = flow.run_array(8, "/bin/sh", "-c", "echo $((TASK_ID * TASK_ID))", max_parallel=2)
    numbers = [int(output) for output in squares.outputs().values()]
    print("squares:", numbers)
    print("their sum:", sum(numbers))
