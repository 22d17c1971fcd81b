"""asyncio: waiting without blocking the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from wfl import InvalidStateError, Job, JobState, Task, TimeoutError, Workflow, as_completed
from wfl.testing.conformance.site import Site


def test_await_job(site: Site, flow: Workflow) -> None:
    """`await job` waits for all tasks and gives the Job."""

    async def main() -> Job:
        return await flow.run(site.succeed()).run_array(2, site.succeed())

    job = asyncio.run(main())
    assert [info.state for info in job.infos()] == [JobState.DONE] * 3


def test_loop_goes_on(site: Site, flow: Workflow) -> None:
    """While a Job is awaited the event loop does other things."""

    async def main() -> JobState:
        job = flow.run(site.stay())
        asyncio.get_running_loop().call_later(0.1, job.kill)
        return (await job).state

    assert asyncio.run(main()) is JobState.FAILED


def test_await_failures(site: Site, flow: Workflow) -> None:
    """Awaiting a Job that failed, or could not be submitted, raises nothing by itself."""

    async def main() -> list[Job]:
        return [await flow.run(site.fail(2)), await flow.run(site.refuse())]

    failed, refused = asyncio.run(main())
    assert failed.exit_status() == 2
    assert refused.last_error is not None


def test_gather(site: Site, flow: Workflow) -> None:
    """Many Jobs can be awaited together."""

    async def wait(job: Job) -> bool:
        return (await job).success()

    async def main() -> list[bool]:
        return await asyncio.gather(*(wait(flow.run(site.succeed())) for _ in range(50)))

    assert asyncio.run(main()) == [True] * 50


def test_await_task(site: Site, flow: Workflow) -> None:
    """A task and an array can be awaited, too."""

    async def main() -> tuple[Task, int]:
        (task,) = flow.run(site.succeed()).tasks
        (array,) = flow.run_array(3, site.succeed()).tasks
        assert isinstance(task, Task)
        await array
        return await task, len(array.tasks)  # type: ignore[union-attr] # an array

    task, count = asyncio.run(main())
    assert (task.state, count) == (JobState.DONE, 3)


def test_cancelled_await(site: Site, flow: Workflow) -> None:
    """Cancelling who awaits, or a time-out around it, cancels nothing of the Job."""

    async def main() -> Job:
        job = flow.run(site.stay())
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.1):
                await job
        return job

    job = asyncio.run(main())
    assert not job.state.ended
    assert job.kill().wait(site.within(30)).state is JobState.FAILED


def test_async_as_completed(site: Site, flow: Workflow) -> None:
    """`async for task in as_completed(...)` yields tasks as they end."""

    async def main() -> list[Task]:
        slow, quick = flow.run(site.stay()), flow.run_array(2, site.succeed())
        seen = []
        async for task in as_completed([slow, quick], timeout=site.within(60)):
            seen.append(task)
            if len(seen) == 2:
                slow.kill()
        return seen

    assert [task.state for task in asyncio.run(main())] == [JobState.DONE] * 2 + [JobState.FAILED]


def test_async_as_completed_timeout(site: Site, flow: Workflow) -> None:
    """`async for` over `as_completed` raises TimeoutError when some have not ended in time."""

    async def main() -> None:
        async for _ in as_completed([flow.run(site.stay())], timeout=0.1):
            pytest.fail("it has not ended")

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_await_empty(flow: Workflow) -> None:
    """Awaiting an empty Job does not hang, and is the same InvalidStateError as `synchronize`."""

    async def main() -> Job:
        return await flow.new_job()

    assert [type(error) for error in asyncio.run(main()).errors] == [InvalidStateError]


def test_await_while_closed(site: Site, make_flow: Callable[..., Workflow]) -> None:
    """Who awaits when the workflow is closed wakes."""
    flow = make_flow()

    async def main() -> Job:
        job = flow.run(site.stay())
        asyncio.get_running_loop().run_in_executor(None, flow.close)
        return await asyncio.wait_for(_awaited(job), site.seconds(60))

    assert asyncio.run(main()).tasks


async def _awaited(job: Job) -> Job:
    return await job


def test_two_loops(site: Site, flow: Workflow) -> None:
    """One Job can be awaited in two event loops in two threads at once."""
    job = flow.run(site.stay())
    states: list[JobState] = []
    threads = [threading.Thread(target=lambda: states.append(asyncio.run(_awaited(job)).state)) for _ in range(2)]
    for thread in threads:
        thread.start()
    job.kill()
    for thread in threads:
        thread.join(site.seconds(60))
    assert states == [JobState.FAILED] * 2
