"""First of many (a discriminator): several ways to the same result are tried at once; the first result wins."""

from wfl import Workflow, as_completed, shell

with Workflow() as flow:
    race = (
        flow.run(shell("sleep 60; echo the slow way"))
        .run(shell("echo this way leads nowhere >&2; exit 1"))
        .run(shell("sleep 0.2; echo the quick way"))
    )
    winner = next(task for task in as_completed([race]) if task.success)
    race.kill_all()
    print("the result came from", winner.output())
    for info in race.synchronize().infos():
        print(f"{info.state.value}: {info.sub_state}")
