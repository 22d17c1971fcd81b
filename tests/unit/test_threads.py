"""Clock and Pool: order and time of calls, survival, growth only for blocked threads, an end without remains."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

import pytest

from wfl import threads
from wfl.threads import Clock, Pool

PATIENCE = 30  # seconds that a thread may take on a busy machine


@pytest.fixture
def clock() -> Iterator[Clock]:
    """A clock that is stopped afterwards."""
    made = Clock("test-clock")
    yield made
    made.stop()


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool for up to eight threads."""
    made = Pool("test-pool", 8)
    yield made
    made.stop()


def named(name: str) -> list[threading.Thread]:
    """The threads of this name that are alive."""
    return [thread for thread in threading.enumerate() if thread.name == name]


def gone(name: str) -> bool:
    """Whether within PATIENCE all threads of this name have ended."""
    for thread in named(name):
        thread.join(PATIENCE)
    return not named(name)


class Blocker:
    """Work that blocks until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self) -> None:
        """Block."""
        self.begun.release()
        self.go.wait(PATIENCE)


def caller(queue: SimpleQueue[int], number: int) -> Callable[[], None]:
    """Something to call that leaves a mark."""
    return lambda: queue.put(number)


def fail() -> None:
    """Raise."""
    raise ValueError("on purpose")


# --- Clock ------------------------------------------------------------------------------------------------


def test_calls_come_in_order_of_their_time(clock: Clock) -> None:
    """Whatever the order of asking, what is due earlier is called earlier."""
    called: SimpleQueue[int] = SimpleQueue()
    for number in (3, 1, 2):
        clock.after(number * 0.03, caller(called, number))
    assert [called.get(timeout=PATIENCE) for _ in range(3)] == [1, 2, 3]


def test_calls_of_one_time_come_in_order_of_asking(clock: Clock) -> None:
    """First asked, first called."""
    called: SimpleQueue[int] = SimpleQueue()
    for number in range(100):
        clock.after(0, caller(called, number))
    assert [called.get(timeout=PATIENCE) for _ in range(100)] == list(range(100))


def test_calls_never_come_early(clock: Clock) -> None:
    """Whoever waits half a tenth of a second gets no less."""
    called: SimpleQueue[float] = SimpleQueue()
    begin = time.monotonic()
    clock.after(0.05, lambda: called.put(time.monotonic()))
    assert called.get(timeout=PATIENCE) - begin >= 0.05


def test_an_earlier_call_overtakes(clock: Clock) -> None:
    """The clock sleeps towards the next call; one that is due before wakes it."""
    called: SimpleQueue[int] = SimpleQueue()
    clock.after(1e6, caller(called, 1))
    time.sleep(0.05)  # by now it sleeps; if it does not, the case is only easier
    clock.after(0, caller(called, 2))
    assert called.get(timeout=PATIENCE) == 2


def test_centuries_are_no_matter(clock: Clock) -> None:
    """A time beyond what a thread can wait for does not end the clock."""
    called: SimpleQueue[int] = SimpleQueue()
    clock.after(1e15, caller(called, 1))
    clock.after(0.01, caller(called, 2))
    assert called.get(timeout=PATIENCE) == 2


def test_clock_survives_what_it_calls(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """An exception is logged, and the next call comes all the same."""
    called: SimpleQueue[int] = SimpleQueue()
    clock.after(0, fail)
    clock.after(0, caller(called, 1))
    assert called.get(timeout=PATIENCE) == 1
    assert "ValueError" in caplog.text


def test_clock_may_ask_itself(clock: Clock) -> None:
    """What is called may ask for further calls."""
    called: SimpleQueue[int] = SimpleQueue()
    clock.after(0, lambda: clock.after(0, caller(called, 1)))
    assert called.get(timeout=PATIENCE) == 1


def test_clock_needs_no_thread_without_calls(clock: Clock) -> None:
    """The thread starts with the first call that is asked for."""
    assert not named("test-clock")
    clock.after(1e6, lambda: None)
    assert len(named("test-clock")) == 1


def test_stopped_clock_calls_nothing(clock: Clock) -> None:
    """What was due later is not called, nor what is asked for afterwards, and the thread is gone."""
    called: SimpleQueue[int] = SimpleQueue()
    clock.after(0.05, caller(called, 1))
    clock.stop()
    clock.after(0, caller(called, 2))
    assert not named("test-clock")
    with pytest.raises(Empty):
        called.get(timeout=0.1)


def test_clock_can_be_stopped_by_what_it_calls(clock: Clock) -> None:
    """Stopping from within does not wait for itself."""
    clock.after(0, clock.stop)
    assert gone("test-clock")


def test_sleep_in_a_queue(clock: Clock) -> None:
    """`get` takes what is there, and is late after its time and not before."""
    queue: SimpleQueue[int] = SimpleQueue()
    queue.put(1)
    assert clock.get(queue, 0) == 1
    begin = clock.now()
    with pytest.raises(Empty):
        clock.get(queue, 0.05)
    assert clock.now() - begin >= 0.05


def test_sleep_takes_its_time(clock: Clock) -> None:
    """`sleep` lasts as long as it says."""
    begin = clock.now()
    clock.sleep(0.05)
    assert clock.now() - begin >= 0.05


# --- Pool -------------------------------------------------------------------------------------------------


def test_all_work_is_done_once(pool: Pool) -> None:
    """Thousands of calls from several threads are each made once."""
    done: SimpleQueue[int] = SimpleQueue()

    def submit(begin: int) -> None:
        for number in range(begin, begin + 500):
            pool.submit(caller(done, number))

    submitters = [threading.Thread(target=submit, args=(begin,)) for begin in range(0, 2000, 500)]
    for thread in submitters:
        thread.start()
    assert sorted(done.get(timeout=PATIENCE) for _ in range(2000)) == list(range(2000))
    assert done.empty()


def test_pool_survives_what_it_calls(caplog: pytest.LogCaptureFixture) -> None:
    """An exception is logged; the thread goes on with the next call."""
    pool = Pool("test-pool", 1)
    done: SimpleQueue[int] = SimpleQueue()
    pool.submit(fail)
    pool.submit(caller(done, 1))
    assert done.get(timeout=PATIENCE) == 1
    assert "ValueError" in caplog.text
    pool.stop()


def test_quick_work_needs_two_threads_at_most(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool does not grow while nobody is blocked, however much there is to do and however long it waits."""
    monkeypatch.setattr(threads, "BLOCKED", 0.2)
    done: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        time.sleep(0.002)
        done.put(None)

    for _ in range(600):
        pool.submit(work)
    for _ in range(600):
        done.get(timeout=PATIENCE)
    assert len(named("test-pool")) <= 2


def test_blocked_threads_do_not_hold_up_others(pool: Pool) -> None:
    """Work behind blocked work is done by further threads."""
    block, done = Blocker(), SimpleQueue[int]()
    for _ in range(5):
        pool.submit(block)
    pool.submit(caller(done, 1))
    assert done.get(timeout=PATIENCE) == 1
    block.go.set()


def test_work_behind_idle_threads_that_block(pool: Pool) -> None:
    """Three calls at once for two idle threads, two of which block: the third is made all the same."""
    block, done = Blocker(), SimpleQueue[int]()
    warm = Blocker()
    for _ in range(2):
        pool.submit(warm)
    for _ in range(2):
        assert warm.begun.acquire(timeout=PATIENCE)
    warm.go.set()
    while pool._idle < 2:  # noqa: SLF001 - seen nowhere else
        time.sleep(0.001)
    with pool._changed:  # noqa: SLF001 - so that all three are there before a thread wakes up
        for work in (block, block, caller(done, 1)):
            pool.submit(work)
    assert done.get(timeout=PATIENCE) == 1
    block.go.set()


def test_pool_grows_up_to_its_limit() -> None:
    """No more threads than allowed, and the rest of the work when one of them is free again."""
    pool = Pool("test-pool", 3)
    block, done = Blocker(), SimpleQueue[int]()
    for _ in range(3):
        pool.submit(block)
    for _ in range(3):
        assert block.begun.acquire(timeout=PATIENCE)
    pool.submit(caller(done, 1))
    with pytest.raises(Empty):
        done.get(timeout=3 * threads.BLOCKED)
    assert len(named("test-pool")) == 3
    block.go.set()
    assert done.get(timeout=PATIENCE) == 1
    pool.stop()


def test_idle_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without work threads go away by themselves, and come back for new work."""
    monkeypatch.setattr(threads, "IDLE", 0.01)
    pool = Pool("test-pool", 2)
    done: SimpleQueue[int] = SimpleQueue()
    for number in range(2):
        pool.submit(caller(done, number))
        assert done.get(timeout=PATIENCE) == number
        assert gone("test-pool")
    pool.stop()


def test_drained_pool_has_done_everything() -> None:
    """`drain` returns when all work is done, and leaves no thread."""
    pool, done = Pool("test-pool", 2), SimpleQueue[int]()
    for number in range(500):
        pool.submit(caller(done, number))
    pool.drain(PATIENCE)
    assert done.qsize() == 500
    assert gone("test-pool")


def test_drain_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """A call that does not return is left behind, with a warning that counts it."""
    pool, block = Pool("test-pool", 2), Blocker()
    pool.submit(block)
    assert block.begun.acquire(timeout=PATIENCE)
    pool.drain(0.01)
    assert "1 calls have not returned" in caplog.text
    block.go.set()


def test_draining_from_within() -> None:
    """Work may drain its own pool: it does not wait for itself."""
    pool, done = Pool("test-pool", 2), SimpleQueue[bool]()

    def drain() -> None:
        begin = time.monotonic()
        pool.drain(PATIENCE)
        done.put(time.monotonic() - begin < PATIENCE)

    pool.submit(drain)
    assert done.get(timeout=2 * PATIENCE)


def test_stopped_pool_does_nothing_more() -> None:
    """What waits is dropped, what comes is refused, and the threads end, also those that made it grow."""
    pool, block, done = Pool("test-pool", 2), Blocker(), SimpleQueue[int]()
    for _ in range(2):
        pool.submit(block)
    for _ in range(2):
        assert block.begun.acquire(timeout=PATIENCE)
    pool.submit(caller(done, 1))
    pool.stop()
    pool.submit(caller(done, 2))
    block.go.set()
    assert gone("test-pool")
    assert gone("test-pool-clock")
    assert done.empty()
