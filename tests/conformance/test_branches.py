"""Branches, notifiers, observers: things that go on side by side."""

from __future__ import annotations

import logging
import threading

import pytest

from wfl import InvalidStateError, Job, Notifier, Observer, TimeoutError, Workflow
from wfl.testing.conformance.site import Site


def test_branches(site: Site, flow: Workflow) -> None:
    """Each function gets a fresh Job in a thread of its own; `join` gives the Jobs in order of the functions."""
    barrier = threading.Barrier(3)

    def branch(job: Job) -> None:
        assert job.tasks == []
        barrier.wait(site.seconds(30))
        job.run(site.succeed()).then_run(site.succeed())

    jobs = flow.branch(branch, branch, branch).join(site.seconds(60))
    assert [len(job.tasks) for job in jobs] == [2, 2, 2]
    assert all(job.success() for job in jobs)


def test_branch_returns_job(site: Site, flow: Workflow) -> None:
    """A function that returns a Job has that joined instead of the one it was given."""
    own = flow.run(site.succeed())
    assert flow.branch(lambda _: own).join() == [own]


def test_branch_exceptions(site: Site, flow: Workflow) -> None:
    """Exceptions of branches come back together from `join`, and disturb no other branch."""
    done = threading.Event()

    def good(job: Job) -> None:
        job.run(site.succeed()).wait()
        done.set()

    branches = flow.branch(lambda _: 1 / 0, good, lambda job: job.run(unknown="x"))  # type: ignore[call-arg]
    with pytest.raises(ExceptionGroup) as caught:
        branches.join(site.seconds(60))
    assert {type(error) for error in caught.value.exceptions} == {ZeroDivisionError, TypeError}
    assert done.is_set()


def test_join_timeout(site: Site, flow: Workflow) -> None:
    """`join` times out while branches run, and can be called again."""
    go_on = threading.Event()
    branches = flow.branch(lambda _: go_on.wait(site.seconds(60)))
    with pytest.raises(TimeoutError):
        branches.join(0.05)
    go_on.set()
    assert len(branches.join(site.seconds(60))) == 1


def test_hundreds_of_branches(site: Site, flow: Workflow) -> None:
    """Hundreds of branches run and join."""
    count = site.many(300, 50)
    jobs = flow.branch(*[lambda job: job.run(site.succeed()).wait()] * count).join(site.seconds(120))
    assert len(jobs) == count
    assert all(job.success() for job in jobs)


def test_nested_branches(site: Site, flow: Workflow) -> None:
    """A branch may branch again."""
    inner: list[Job] = []
    flow.branch(lambda job: inner.extend(job.branch(*[lambda one: one.run(site.succeed())] * 2).join())).join()
    assert [job.success() for job in inner] == [True, True]


def test_no_function(flow: Workflow) -> None:
    """Something that cannot be called is refused at once; no branch at all joins at once."""
    with pytest.raises(TypeError):
        flow.branch("f")  # type: ignore[arg-type]
    assert flow.branch().join(0) == []


def test_notifier_between_branches(site: Site, flow: Workflow) -> None:
    """A notifier hands Jobs from one branch to another, in order."""
    notifier = Notifier()

    def produce(job: Job) -> None:
        for number in range(5):
            flow.run(site.succeed()).tag_with(str(number)).notify(notifier)
        job.run(site.succeed())
        notifier.close()

    tags: list[str] = []

    def consume(job: Job) -> None:
        for received in notifier:
            tags.append(received.wait().tag)
            job.run(site.succeed())

    jobs = flow.branch(produce, consume).join(site.seconds(120))
    assert tags == ["0", "1", "2", "3", "4"]
    assert [len(job.tasks) for job in jobs] == [1, 5]


def test_notifier_once(site: Site, flow: Workflow) -> None:
    """Of several receivers each Job reaches exactly one."""
    notifier = Notifier()
    seen: list[Job] = []
    threads = [threading.Thread(target=lambda: seen.extend(notifier), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    jobs = [flow.new_job().notify(notifier) for _ in range(100)]
    notifier.close()
    for thread in threads:
        thread.join(site.seconds(30))
    assert sorted(map(id, seen)) == sorted(map(id, jobs))


def test_notifier_timeout(site: Site, flow: Workflow) -> None:
    """`receive` times out when no Job comes; 0 looks once."""
    notifier = Notifier()
    with pytest.raises(TimeoutError):
        notifier.receive(0)
    with pytest.raises(TimeoutError):
        notifier.receive(0.05)
    job = flow.run(site.succeed()).notify(notifier)
    assert notifier.receive(0) is job


def test_closed_notifier(flow: Workflow) -> None:
    """After `close` what was sent can still be received; then receiving, and sending, is an InvalidStateError."""
    notifier = Notifier()
    job = flow.new_job().notify(notifier)
    notifier.close()
    assert notifier.receive() is job
    with pytest.raises(InvalidStateError):
        notifier.receive()
    with pytest.raises(InvalidStateError):
        flow.new_job().notify(notifier)


def test_default_observer(site: Site, flow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    """The default observer logs errors, failures and successes with the job's id."""
    with caplog.at_level(logging.INFO, "wfl"):
        good = flow.run(site.succeed()).observe(Observer.default())
        bad = flow.run(site.fail(1)).observe(Observer.default())
        flow.run(site.refuse()).observe(Observer.default())
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert any(good.job_id in words and level == "INFO" for words, level in levels.items())
    assert any(bad.job_id in words and level == "ERROR" for words, level in levels.items())
    assert any(site.reason in words for words in levels)


def test_observer_of_array(site: Site, flow: Workflow) -> None:
    """An observer is called once for an array, with the array."""
    seen: list[object] = []
    job = flow.run_array(3, site.fail(1)).observe(Observer(on_failed=seen.append))
    assert seen == job.tasks
