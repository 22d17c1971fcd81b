"""Multi-choice: of several paths each is taken whose condition holds: none, one, or many at once."""

from wfl import Workflow

CONDITIONS = {"fizz": 3, "buzz": 5, "whizz": 7}

with Workflow() as flow:
    for number in (11, 9, 105):
        checks = {word: flow.run("test", str(number % divisor), "=", "0") for word, divisor in CONDITIONS.items()}
        paths = [flow.run("echo", word) for word, check in checks.items() if check.success()]
        print(f"{number}: {len(paths)} of {len(checks)} paths:", *(path.output() for path in paths))
