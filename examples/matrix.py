"""A matrix of three dimensions: one template, every combination of three lists of values, the best of the results."""

from wfl import Replacement, Workflow, shell

with Workflow() as flow:
    cost = shell("echo $(( ({x} - 2) * ({x} - 2) + ({y} + 1) * ({y} + 1) + {z} ))", job_name="x={x} y={y} z={z}")
    search = flow.run_matrix(
        cost,
        Replacement("{x}", range(4)),
        Replacement("{y}", [-1, 0, 1]),
        Replacement("{z}", [5, 7]),
    )
    costs: dict[str | None, int] = {}
    search.for_each(lambda task: costs.update({task.template.job_name: int(task.output())}))
    best = min(costs, key=lambda name: costs[name])
    print(f"{len(costs)} combinations; the cheapest is {best} with {costs[best]}")
