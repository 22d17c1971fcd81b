"""Notifier: jobs handed over between threads, once each and in order."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, cast

import pytest

from wfl import errors
from wfl.notifier import Notifier

PATIENCE = 10  # seconds that a thread may take on a busy machine


def job(name: object) -> Any:
    """Stand in for a Job: a Notifier never looks into it."""
    return cast("Any", name)


def given(received: object) -> object:
    """What stands in for Jobs, as what it is."""
    return received


def send_all(notifier: Notifier, names: Iterator[int] | range) -> None:
    """Send one job for each name."""
    for name in names:
        notifier.send(job(name))


def test_jobs_come_out_in_the_order_sent() -> None:
    """First in, first out."""
    notifier = Notifier()
    send_all(notifier, range(3))
    assert given([notifier.receive() for _ in range(3)]) == [0, 1, 2]


def test_sending_never_blocks() -> None:
    """There is no bound: many jobs are taken with nobody receiving."""
    notifier = Notifier()
    send_all(notifier, range(5000))
    notifier.close()
    assert len(list(notifier)) == 5000


def test_receive_waits_for_a_job_from_another_thread() -> None:
    """A receiver sleeps until somebody sends."""
    notifier = Notifier()
    with ThreadPoolExecutor() as pool:
        received = pool.submit(notifier.receive, PATIENCE)
        notifier.send(job("a"))
        assert given(received.result(PATIENCE)) == "a"


@pytest.mark.parametrize("timeout", [0, 0.01, timedelta(milliseconds=10)])
def test_receive_raises_when_no_job_comes_in_time(timeout: float | timedelta) -> None:
    """A time-out is an error that says how long was waited; 0 looks once."""
    with pytest.raises(errors.TimeoutError, match=r"within 0\.\d+ s"):
        Notifier().receive(timeout)


def test_receive_with_timeout_zero_takes_what_is_there() -> None:
    """Looking once finds a job that was sent."""
    notifier = Notifier()
    notifier.send(job("a"))
    assert given(notifier.receive(timeout=0)) == "a"


@pytest.mark.parametrize("timeout", [-1, "1", True])
def test_impossible_timeouts_are_refused(timeout: Any) -> None:
    """A wrong time-out is wrong use, told by name."""
    with pytest.raises((errors.InvalidArgumentError, TypeError), match="timeout is"):
        Notifier().receive(timeout)


def test_after_close_the_rest_is_received_then_the_end_is_told() -> None:
    """Closing loses nothing: what was sent comes out, then receivers learn that it is over."""
    notifier = Notifier()
    notifier.send(job("a"))
    notifier.close()
    assert given(notifier.receive()) == "a"
    with pytest.raises(errors.InvalidStateError, match="closed and every job was received"):
        notifier.receive()


def test_close_is_idempotent_and_ends_sending() -> None:
    """Closing twice is as good as once; sending afterwards is refused."""
    notifier = Notifier()
    notifier.close()
    notifier.close()
    with pytest.raises(errors.InvalidStateError, match="closed"):
        notifier.send(job("a"))


def test_close_wakes_every_receiver() -> None:
    """Nobody stays asleep on a notifier that will bring nothing more."""
    notifier = Notifier()
    waiting = threading.Barrier(4, timeout=PATIENCE)

    def receive() -> None:
        waiting.wait()
        notifier.receive(PATIENCE)

    with ThreadPoolExecutor() as pool:
        receivers = [pool.submit(receive) for _ in range(3)]
        waiting.wait()
        notifier.close()
        for receiver in receivers:
            assert isinstance(receiver.exception(PATIENCE), errors.InvalidStateError)


def test_context_manager_closes() -> None:
    """Leaving the with block ends the hand-over."""
    with Notifier() as notifier:
        notifier.send(job("a"))
    assert given(list(notifier)) == ["a"]


def test_every_job_is_received_exactly_once_by_many_threads() -> None:
    """Several senders and several iterating receivers lose nothing and double nothing."""
    notifier = Notifier()
    with ThreadPoolExecutor(max_workers=8) as pool:
        received = [pool.submit(list, notifier) for _ in range(4)]
        senders = [pool.submit(send_all, notifier, range(n, 2000, 4)) for n in range(4)]
        for sender in senders:
            sender.result(PATIENCE)
        notifier.close()
        jobs = [name for receiver in received for name in receiver.result(PATIENCE)]
    assert sorted(cast("list[int]", jobs)) == list(range(2000))
