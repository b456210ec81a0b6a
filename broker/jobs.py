"""What recurs. The only module that knows APScheduler.

APScheduler 3 follows the wall clock: it drops jobs that are late, lists every run that it missed, and sleeps through an hour when the
clock is set back. So nothing is ever dropped (`misfire_grace_time=None`, `coalesce`), no run is missed by a clock set forward, no job
sleeps longer than a second, and a watch on the event loop's own clock pulls back a job that a changed clock has moved away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from broker.clock import Clock
from broker.errors import BrokerError

LONGEST_SLEEP_MS = 1_000
_WAKES_MOST = 1_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Something that recurs: `run` answers in how many milliseconds it wants to run again (a second at the latest)."""

    name: str
    run: Callable[[], Awaitable[int]]


class _EverySecond(BaseTrigger):  # type: ignore[misc]  # the library has no types
    """Runs a second after the last run was to be, or from now if that is over.

    An `IntervalTrigger` gives every second since then, and the scheduler lists them all before it runs one: gigabytes, for a clock set
    forward by years.
    """

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """See `BaseTrigger.get_next_fire_time`."""
        soon = (previous_fire_time or now) + timedelta(milliseconds=LONGEST_SLEEP_MS)
        return soon if soon > now else now + timedelta(milliseconds=LONGEST_SLEEP_MS)


class Jobs:
    """The daemon's recurring work. A job never overlaps itself; a failing one is logged and comes again."""

    def __init__(self, clock: Clock, jobs: Sequence[Job]) -> None:
        self._clock = clock
        self._jobs = {job.name: job for job in jobs}
        self._again: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._watch: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Runs every job now, and from then on as each wants."""
        for name in self._jobs:
            self._scheduler.add_job(
                self._fire,
                _EverySecond(),
                args=[name],
                id=name,
                next_run_time=self._now(),
                coalesce=True,
                misfire_grace_time=None,
                # `_fire` sees to it that nothing overlaps; the scheduler would only log that it left a wake out.
                max_instances=_WAKES_MOST,
            )
        self._scheduler.start()
        self._look_after_clock()

    def wake(self, name: str) -> None:
        """Runs a job at once, or once more when it is running; safe before `start` and after `stop`."""
        if name in self._running:
            self._again.add(name)
        elif self._watch is not None:
            self._scheduler.modify_job(name, next_run_time=self._now())

    async def stop(self) -> None:
        """Starts nothing more and ends what runs; every job is written to be ended anywhere."""
        if self._watch is None:
            return
        self._watch.cancel()
        self._watch = None
        self._scheduler.pause()
        # Wakes that were begun end here and start nothing: cut off, the scheduler would log each as a broken job.
        await asyncio.sleep(0)
        self._scheduler.shutdown(wait=False)
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _fire(self, name: str) -> None:
        if name in self._running or self._watch is None:
            return
        # In a context of its own: else what it logs would bear the id of the request that happened to wake it.
        task = asyncio.get_running_loop().create_task(self._run(self._jobs[name]), name=f"job {name}", context=Context())
        self._running[name] = task

    async def _run(self, job: Job) -> None:
        self._again.discard(job.name)
        delay_ms = LONGEST_SLEEP_MS
        try:
            delay_ms = await job.run()
        except BrokerError as error:
            log.warning("job failed", job=job.name, error=str(error))
        except Exception:
            log.exception("job broke", job=job.name)
        finally:
            # Before the wakes are looked at, so that one that comes from here on starts the job anew.
            del self._running[job.name]
        if self._watch is None:
            return
        delay_ms = 0 if job.name in self._again else min(delay_ms, LONGEST_SLEEP_MS)
        if delay_ms < LONGEST_SLEEP_MS:
            self._scheduler.modify_job(job.name, next_run_time=self._now() + timedelta(milliseconds=delay_ms))

    def _look_after_clock(self) -> None:
        latest = self._now() + timedelta(milliseconds=2 * LONGEST_SLEEP_MS)
        for job in self._scheduler.get_jobs():
            if job.next_run_time > latest:
                job.modify(next_run_time=self._now())
        self._watch = asyncio.get_running_loop().call_later(LONGEST_SLEEP_MS / 1_000, self._look_after_clock)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_ms() / 1_000, UTC)
