"""A loop until a result is good enough: each job goes on from what the one before it printed (Newton's square root)."""

import sys

from wfl import Workflow

IMPROVE = "import sys; x = float(sys.argv[1]); print((x + 2 / x) / 2)"

with Workflow() as flow:
    job = flow.new_job()
    root, rounds = 1.0, 0
    while abs(root * root - 2) > 1e-12:
        root = float(job.run(sys.executable, "-c", IMPROVE, str(root)).output())
        rounds += 1
        print(f"round {rounds}: {root:.12f}")
    print(f"the square root of 2 after {rounds} rounds: {root:.10f}")
