"""What recurs: wakes, failures, and a wall clock that is set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from broker.clock import SystemClock
from broker.errors import Unavailable
from broker.jobs import LONGEST_SLEEP_MS, Job, Jobs


class Work:
    """A job that waits in each run until the test lets it go on."""

    def __init__(self) -> None:
        self.runs = 0
        self.began = asyncio.Semaphore(0)
        self.go_on = asyncio.Semaphore(0)
        self.error: Exception | None = None
        self.answer_ms = 10**9
        self.inside = 0

    async def run(self) -> int:
        self.runs += 1
        self.inside += 1
        assert self.inside == 1, "a job never overlaps itself"
        self.began.release()
        try:
            await self.go_on.acquire()
        finally:
            self.inside -= 1
        if self.error is not None:
            raise self.error
        return self.answer_ms

    async def once(self) -> None:
        """Lets one run through, from its beginning to its end."""
        await self.began.acquire()
        self.go_on.release()


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def jobs(work: Work) -> AsyncIterator[Jobs]:
    made = Jobs(SystemClock(), [Job("work", work.run)])
    made.start()
    yield made
    await made.stop()


async def test_a_job_runs_at_once_and_comes_again(jobs: Jobs, work: Work) -> None:
    """It runs when jobs start and again after a second at the latest, however long it wanted to sleep."""
    for _ in range(2):
        await asyncio.wait_for(work.once(), 10)
    assert work.runs == 2


async def test_a_job_that_wants_to_go_on_does(jobs: Jobs, work: Work) -> None:
    """A run that answers 0 is due again at once, one that wants to sleep long a second later."""
    for answer_ms, within_ms in ((0, 0), (10**9, LONGEST_SLEEP_MS)):
        work.answer_ms = answer_ms
        await work.began.acquire()
        work.go_on.release()
        while jobs._running:
            await asyncio.sleep(0)
        assert jobs._scheduler.get_job("work").next_run_time <= jobs._now() + timedelta(milliseconds=within_ms)


async def test_a_wake_while_running_runs_it_again(jobs: Jobs, work: Work) -> None:
    """What is woken in the middle of a run runs once more right after it, since that run may have looked already."""
    await work.began.acquire()
    jobs.wake("work")
    jobs.wake("work")
    assert jobs._again == {"work"}
    before = jobs._scheduler.get_job("work").next_run_time
    work.go_on.release()
    while jobs._running:
        await asyncio.sleep(0)
    assert jobs._scheduler.get_job("work").next_run_time < before
    await asyncio.wait_for(work.once(), 10)


@pytest.mark.parametrize("error", [Unavailable("away"), ZeroDivisionError("broken")])
async def test_a_job_that_fails_comes_again(jobs: Jobs, work: Work, error: Exception) -> None:
    """A failure, foreseen or not, ends neither the job nor the others."""
    work.error = error
    for _ in range(2):
        await asyncio.wait_for(work.once(), 10)


@pytest.mark.parametrize("move", [timedelta(hours=1), timedelta(days=400)])
async def test_a_clock_set_back_stops_no_job(jobs: Jobs, work: Work, move: timedelta) -> None:
    """A job that a clock set back has moved far ahead is pulled back by the watch on the loop's own clock."""
    await work.once()
    while jobs._running:
        await asyncio.sleep(0)
    scheduled = jobs._scheduler.get_job("work")
    scheduled.modify(next_run_time=scheduled.next_run_time + move)
    assert jobs._watch is not None
    jobs._watch.cancel()
    jobs._look_after_clock()
    await asyncio.wait_for(work.once(), 10)
    assert work.runs == 2


async def test_a_clock_set_forward_by_years_is_one_run(jobs: Jobs, work: Work) -> None:
    """What it would have run meanwhile is neither run nor listed: every second of thirty years takes all memory there is."""
    await work.once()
    while jobs._running:
        await asyncio.sleep(0)
    scheduled = jobs._scheduler.get_job("work")
    now = jobs._now()
    scheduled.modify(next_run_time=now - timedelta(hours=1))
    assert len(jobs._scheduler.get_job("work")._get_run_times(now)) == 1
    scheduled.modify(next_run_time=now - timedelta(days=30 * 365))
    await asyncio.wait_for(work.once(), 10)
    assert work.runs == 2


async def test_stopping_ends_what_runs(jobs: Jobs, work: Work) -> None:
    """A running job is cancelled, later wakes do nothing, and a second stop does nothing either."""
    await work.began.acquire()
    await jobs.stop()
    assert work.inside == 0
    jobs.wake("work")
    await jobs.stop()
    assert work.runs == 1


async def test_a_wake_before_the_start_does_nothing(work: Work) -> None:
    """Verbs may wake a job while the daemon is still being put together."""
    made = Jobs(SystemClock(), [Job("work", work.run)])
    made.wake("work")
    await made.stop()
    assert work.runs == 0


async def test_an_end_in_the_middle_of_a_wake_is_no_failure(jobs: Jobs, work: Work, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is logged of a job that had just been woken when all were stopped."""
    await work.once()
    while work.inside:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    jobs.wake("work")
    await jobs.stop()
    for _ in range(6):
        await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
