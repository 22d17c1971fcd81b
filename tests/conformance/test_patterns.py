"""Workflow patterns, each as a script would write it."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

from wfl import (
    Backoff,
    Capability,
    Job,
    JobState,
    JobTemplate,
    Notifier,
    Replacement,
    Task,
    Template,
    Workflow,
    as_completed,
    env_sequence,
    shell,
)
from wfl.testing.conformance.site import Field, Site, Trait, needs, quoted


def test_sequence(site: Site, flow: Workflow) -> None:
    """Sequence: each step starts after the end of the one before."""
    job = flow.run(site.succeed()).then_run(site.succeed()).then_run(site.succeed()).wait()
    infos = job.infos()
    assert [info.state for info in infos] == [JobState.DONE] * 3
    for one, two in itertools.pairwise(infos):
        assert one.finish_time is not None
        assert two.dispatch_time is not None
        assert one.finish_time <= two.dispatch_time


def _take(taken: list[str], name: str, _: object) -> None:
    """One way is taken."""
    taken.append(name)


def test_exclusive_choice(site: Site, flow: Workflow) -> None:
    """Exclusive choice: of two ways one is taken, by how the step before ended."""
    for first, expected in ((site.succeed(), "yes"), (site.fail(1), "no")):
        step = flow.run(first)
        taken: list[str] = []
        yes, no = partial(_take, taken, "yes"), partial(_take, taken, "no")
        step.on_success(yes).on_failure(no)
        assert taken == [expected]


def test_choice_by_status(site: Site, flow: Workflow) -> None:
    """Choice by exit status: the script reads the status and goes on with plain Python."""
    ways = {3: "three", 4: "four"}
    job = flow.run(site.fail(4))
    way = ways[job.exit_status() or 0]
    assert flow.run(site.succeed(), job_name=way).success()
    assert way == "four"


def test_parallel_split(site: Site, flow: Workflow) -> None:
    """Parallel split and synchronization: several steps side by side, then one after all."""
    job = flow.run(site.succeed()).wait()
    job.run(site.succeed()).run(site.fail(1)).run_array(2, site.succeed()).synchronize()
    ends = [info.finish_time for info in job.infos()]
    last = job.run(site.succeed()).wait().infos()[-1]
    assert last.dispatch_time is not None
    assert len(ends) == 5
    assert max(end for end in ends if end is not None) <= last.dispatch_time


def test_multi_choice(site: Site, flow: Workflow) -> None:
    """Multi-choice: any number of branches that conditions choose, then synchronization."""

    def branch(name: str) -> None:
        jobs[name] = flow.run(site.succeed(), job_name=name)

    jobs: dict[str, Job] = {}
    wanted = {"a": True, "b": False, "c": True}
    flow.branch(*[lambda _, name=name: branch(name) for name, chosen in wanted.items() if chosen]).join()
    assert sorted(jobs) == ["a", "c"]
    assert all(job.success() for job in jobs.values())


@needs(Trait.EXECUTION, Capability.OUTPUT)
def test_loop_until_result(flow: Workflow) -> None:
    """Loop until a result: the output of each round is the input of the next."""
    value, rounds = 1, 0
    while value < 100:
        value = int(flow.run(shell(f"echo $(({value} * 3))")).output())
        rounds += 1
    assert (value, rounds) == (243, 5)


def test_first_of_many(site: Site, flow: Workflow) -> None:
    """Discriminator: the first of many that ends decides, the rest is cancelled."""
    slow = flow.run_array(4, site.stay())
    quick = flow.run(site.succeed())
    first = next(iter(as_completed([slow, quick], timeout=site.within(60))))
    slow.kill()
    assert first is quick.tasks[0]
    assert slow.synchronize(site.within(60)).state is JobState.FAILED


def test_first_success_of_many(site: Site, flow: Workflow) -> None:
    """First good one of many: failures on the way are passed over."""
    tasks = [flow.run(site.fail(1)), flow.run(site.fail(2)), flow.run(site.stay()), flow.run(site.succeed())]
    winner = next(task for task in as_completed(tasks, timeout=site.within(60)) if task.success)
    assert winner is tasks[3].tasks[0]


def test_cancel_the_rest(site: Site, flow: Workflow) -> None:
    """Cancel the rest: when one fails, what still runs is ended, and nothing else is started."""
    job = flow.run(site.stay()).resubmit(2).run(site.fail(1))
    job.on_failure(lambda _: job.kill_all()).synchronize(site.within(60))
    assert {info.state for info in job.infos()} == {JobState.FAILED}
    assert [info.sub_state for info in job.infos()].count("exited") == 1


def test_map_reduce(site: Site, flow: Workflow) -> None:
    """Map and reduce: a matrix of steps, whose results a last one is given."""
    parts = flow.run_matrix(site.succeed().replace(job_name="part-N"), Replacement("N", range(4)))
    names = sorted(str(task.template.job_name) for task in as_completed([parts]))
    assert names == [f"part-{number}" for number in range(4)]
    assert flow.run(site.succeed(), job_name="+".join(names)).success()


@needs(Trait.SHARED)
def test_pipeline(flow: Workflow, shared: Path) -> None:
    """Pipeline: branches hand Jobs over by a notifier while later ones are still made."""
    handed = Notifier()

    def make(_: Job) -> None:
        for number in range(3):
            flow.run(shell(f"echo {number} > {quoted(shared)}/{number}")).wait().tag_with(str(number)).notify(handed)
        handed.close()

    def use(job: Job) -> None:
        for made in handed:
            job.run(shell(f"cat {quoted(shared)}/{made.tag}"))

    flow.branch(make, use).join()[1].synchronize().raise_for_status()


def test_compensation(site: Site, flow: Workflow) -> None:
    """Compensation: after a failure steps are undone in reverse order."""
    undone: list[str] = []
    done: list[str] = []
    for name, template in (("a", site.succeed()), ("b", site.succeed()), ("c", site.fail(1))):
        job = flow.run(template).on_success(partial(_take, done, name))
        if not job.success():
            undone.extend(reversed(done))
            break
    assert undone == ["b", "a"]


def test_retry_then_give_up(site: Site, flow: Workflow) -> None:
    """Retry, then another way: the other way is taken only when all attempts have failed."""
    job = flow.run(site.fail(1)).retry(2, backoff=Backoff(0.01, jitter=0)).on_failure_run(site.succeed())
    assert job.success()
    first, second = job.tasks
    assert isinstance(first, Task)
    assert (len(first.attempts), second.state) == (3, JobState.DONE)


@needs(Trait.EXECUTION, Field("job_environment"), Capability.OUTPUT)
def test_iterated_template(flow: Workflow) -> None:
    """A template that changes from one submission to the next: counted by an iterator, shown differently by a map."""
    template = Template(shell("echo $N-$MODE", job_environment={"MODE": "run"}))
    template.add_iterator("count", env_sequence("N", 10, 5))
    template.add_map("dry", lambda one: one.replace(job_environment={**(one.job_environment or {}), "MODE": "dry"}))
    outputs = [flow.run(template.next()).output(), flow.run(template.map_to("dry")).output(),
               flow.run(template.next_map("dry")).output(), flow.run(template.next()).output()]  # fmt: skip
    first = outputs[0]
    assert first.endswith("-run")
    start = int(first.split("-")[0])
    assert outputs == [f"{start}-run", f"{start}-dry", f"{start + 5}-dry", f"{start + 10}-run"]


def test_same_script_elsewhere(site: Site) -> None:
    """A workflow is a function of a Workflow: the same function runs on any context."""

    def script(flow: Workflow, template: JobTemplate) -> bool:
        return flow.run(template).then_run(template).success()

    for _ in range(2):
        with Workflow(site.open()) as flow:
            assert script(flow, site.succeed())
