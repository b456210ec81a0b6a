"""Reconcile: what the databases hold and what the store says are compared, by a job and when asked, and put right as far as told.

The job does what no doubt is possible about, and tells of the rest: in the log once per change, in a metric always, in the audit log
whatever was done. Runs go one after the other; in each some connections at once, so that one that hangs does not delay the others.
Memory is that of a page for each of them, however many users there are and however many differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context

import structlog

from broker.audit.entry import NOBODY, AuditResponse
from broker.catalog.connections import Connection
from broker.engines.guard import Guard
from broker.errors import AuditUnavailable, BrokerError, EngineError, InvalidRequest, LimitExceeded
from broker.leases import amend, records
from broker.leases.amend import Scope
from broker.leases.differences import Comparison, Finding, Kind
from broker.leases.parts import Parts
from broker.leases.report import SHOWN, Named, Report, Run
from broker.leases.sweep import Sweeper
from broker.leases.turns import Turns
from broker.model import ConnectionNumber, LeaseState
from broker.secret import random_below

_AT_ONCE = 4
"""Connections compared at the same time."""
_GIVE_WAY_S = 0.02
_FIRST_MS = 300_000
_LOOK_MS = 1_000

log = structlog.get_logger(__name__)


class Reconciler:
    """Compares and puts right."""

    def __init__(self, parts: Parts, sweeper: Sweeper) -> None:
        self._parts = parts
        self._sweeper = sweeper
        self._next_ms: int | None = None
        self._turn = asyncio.Lock()
        self._clusters = Turns()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._task: asyncio.Task[None] | None = None
        self._told: dict[ConnectionNumber, tuple[object, ...]] = {}
        self._concerns: dict[ConnectionNumber, Sequence[str]] = {}
        self.latest: Run | None = None
        """The last run that was asked for."""

    async def run(self) -> int:
        """The job: a run over all connections every `leases.reconcile`; answers in how many milliseconds to look again."""
        every_ms, now = self._parts.settings.reconcile * 1_000, self._parts.store.now_ms()
        if not every_ms:
            return _LOOK_MS
        if self._next_ms is None:
            self._next_ms = now + random_below(min(every_ms, _FIRST_MS))
        if now >= self._next_ms:
            self._next_ms = now + every_ms - every_ms // 10 + random_below(every_ms // 5 + 1)
            await self._carry_out(Run(Scope.SAFE, self._parts.catalog.connections(), started_ms=now))
        return _LOOK_MS

    def start(self, connection: str, scope: Scope) -> Run:
        """Begins a run over one connection, or over all where `connection` is empty; `latest` shows how it goes.

        Raises `InvalidRequest` for a connection that does not exist, `LimitExceeded` while another run that was asked for goes on.
        """
        if self._task is not None and not self._task.done():
            raise LimitExceeded("reconciling is under way already: wait for its end", limit="reconcile")
        every = self._parts.catalog.connections()
        meant = [each for each in every if each.name == connection] if connection else every
        if connection and not meant:
            raise InvalidRequest(f'failed to find entry for connection with name: "{connection}"')
        self.latest = run = Run(scope, meant, started_ms=self._parts.store.now_ms())
        # In a context of its own: else what it logs later would bear the id of the request that began it.
        self._task = asyncio.get_running_loop().create_task(self._carry_out(run), context=Context())
        return run

    async def stop(self) -> None:
        """Ends a run where it is; what it did is durable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _carry_out(self, run: Run) -> None:
        async with self._turn:
            try:
                for connection in run.connections:
                    tally = await self._parts.store.tally(connection.number)
                    run.expected += tally[LeaseState.ACTIVE] + tally[LeaseState.PREPARED]
                async with asyncio.TaskGroup() as group:
                    for connection in run.connections:
                        group.create_task(self._reconcile(run, connection))
            except BrokerError as error:
                run.reports.append(Report("", error=str(error)))
                log.warning("reconciling was cut short", error=str(error))
            finally:
                run.ended_ms = self._parts.store.now_ms()

    async def _reconcile(self, run: Run, connection: Connection) -> None:
        """Compares one connection; whatever goes wrong with it stands in its report, and stops no other."""
        report = Report(connection.name)
        run.reports.append(report)
        try:
            async with self._places:
                engine = await self._parts.catalog.engine_for(connection)
            connection = self._now(connection)
            # Of several connections to one cluster each lists the users of all: a user must not be adopted by two of them.
            async with self._clusters.take((connection.cluster or str(connection.number)).encode()), self._places:
                await self._compare(run, report, connection, engine)
        except BrokerError as error:
            report.error = str(error)
        except Exception:
            log.exception("reconciling broke", connection=connection.name)
            report.error = "an internal error: see the broker's log"
        self._tell(connection, report)

    def _now(self, connection: Connection) -> Connection:
        """As it is known by now: that it was opened may have told which cluster it leads to."""
        return next((each for each in self._parts.catalog.connections() if each.number == connection.number), connection)

    async def _compare(self, run: Run, report: Report, connection: Connection, engine: Guard) -> None:
        comparison = Comparison(self._parts, connection, engine, report.compared)
        for pages in (comparison.users(), comparison.leases()):
            async for findings in pages:
                if findings:
                    self._note(run, report, findings)
                    await self._put_right(run.scope, connection, engine, report, findings)
                await asyncio.sleep(_GIVE_WAY_S if self._parts.issuing else 0)
        if run.scope is Scope.NOTHING:
            report.abandoned = await engine.abandoned()
        else:
            report.swept = await self._sweeper.sweep(connection)
        if engine.traits.inspects:
            report.concerns = await _inspected(engine)

    def _note(self, run: Run, report: Report, findings: Sequence[Finding]) -> None:
        """Counts a page's findings, and names them while there is room."""
        report.found.update(finding.kind for finding in findings)
        room = max(0, min(SHOWN - len(report.named), run.room))
        report.named += [Named(finding.kind, finding.user.name, self._lease_id(finding)) for finding in findings[:room]]

    def _lease_id(self, finding: Finding) -> str:
        return "" if finding.lease is None else self._parts.ids.lease_id(finding.lease.facts.path, finding.lease.number)

    async def _put_right(
        self, scope: Scope, connection: Connection, engine: Guard, report: Report, findings: Sequence[Finding]
    ) -> None:
        """Does about a page's findings what may be done. Raises `AuditUnavailable`, `StoreUnavailable`, `DatabaseUnavailable`."""
        wanted = [finding for finding in findings if amend.amendable(finding, scope)]
        ending = [finding for finding in wanted if finding.kind not in amend.ACCESS]
        opening = [finding for finding in wanted if finding.kind in amend.ACCESS]
        if ending:
            # Taking access away does not wait for the audit log; each user's own entry stands before its lease is gone.
            done = await amend.end(self._parts, connection, ending)
            self._count(connection, report, [finding for finding in ending if finding.user.number in done])
            try:
                await self._record(connection, ending)
            except AuditUnavailable as error:
                log.warning("reconciling is not in the audit log", connection=connection.name, error=str(error))
        if opening:
            await self._record(connection, opening)
            done = await amend.turn_on(self._parts, engine, opening)
            self._count(connection, report, [finding for finding in opening if finding.user.number in done])

    def _count(self, connection: Connection, report: Report, done: Sequence[Finding]) -> None:
        for finding in done:
            report.amended[finding.kind] += 1
            self._parts.metrics.reconcile_amended.labels(connection.name, finding.kind).inc()

    async def _record(self, connection: Connection, findings: Sequence[Finding]) -> None:
        """Writes down what is done about each user. Raises `AuditUnavailable`."""
        parts, now = self._parts, self._parts.store.now_ms()
        request = records.new_request("reconcile", f"{records.MOUNT.point}users", {"connection": connection.name})
        asked = parts.scribe.asked(NOBODY, request)
        answers = [
            AuditResponse(
                mount=records.MOUNT,
                lease_id=self._lease_id(finding),
                data={"username": finding.user.name, "identity": finding.user.identity, "reason": str(finding.kind)},
            )
            for finding in findings
        ]
        await parts.trail.record(
            [parts.scribe.request(now, asked), *(parts.scribe.response(now, asked, answer) for answer in answers)]
        )

    def _tell(self, connection: Connection, report: Report) -> None:
        """Shows what was found in the metric, and logs it where it is not what was found the last time."""
        if not report.error:
            for kind in Kind:
                self._parts.metrics.reconcile_found.labels(connection.name, kind).set(report.found[kind])
            self._tell_concerns(connection, report.concerns)
        said = (*sorted(report.found.items()), bool(report.error))
        if self._told.get(connection.number, (False,)) == said:
            return
        self._told[connection.number] = said
        if report.error:
            log.warning("connection was not reconciled", connection=connection.name, error=report.error)
        elif report.found:
            first = report.named[0].username if report.named else ""
            counts = {str(kind): count for kind, count in report.found.items()}
            log.warning("database and store differ", connection=connection.name, first=first, **counts)
        else:
            log.info("database and store agree", connection=connection.name)

    def _tell_concerns(self, connection: Connection, concerns: Sequence[str]) -> None:
        self._parts.metrics.reconcile_concerns.labels(connection.name).set(len(concerns))
        for concern in concerns:
            if concern not in self._concerns.get(connection.number, ()):
                log.warning("database needs care", connection=connection.name, concern=concern)
        self._concerns[connection.number] = concerns


async def _inspected(engine: Guard) -> Sequence[str]:
    """What the engine says; that it can say nothing is a sentence, too, since users and leases were compared all the same."""
    try:
        return await engine.inspect()
    except EngineError as error:
        return (f"the database could not be looked into: {error}",)
