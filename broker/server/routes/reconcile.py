"""Operations at `sys/reconcile`: databases and store compared, and put right on request."""

from __future__ import annotations

from broker.api.reconcile import ConnectionReconciled, Difference, Reconciled, ReconcileOrder
from broker.audit.entry import rfc3339
from broker.leases.amend import Scope
from broker.leases.report import Report, Run, unswept
from broker.server.router import Call, Reply, Table

TABLE = Table()
_IDLE = Reconciled(
    state="idle", dry_run=True, drop_unknown=False, started=None, ended=None, expected=0, compared=0, connections=[]
)


@TABLE.add("update", "sys/reconcile", takes=ReconcileOrder, gives=Reconciled, statuses=(202,))
async def start(call: Call) -> Reply:
    """Starts to compare what databases and store have of each other's users."""
    order = call.decode(ReconcileOrder).checked()
    safe = Scope.ALL if order.drop_unknown else Scope.SAFE
    run = call.services.reconciler.start(order.connection, Scope.NOTHING if order.dry_run else safe)
    return Reply(status=202, data=_shown(run))


@TABLE.add("read", "sys/reconcile", gives=Reconciled)
async def read(call: Call) -> Reply:
    """How the last comparison that was asked for goes, or what came of it."""
    run = call.services.reconciler.latest
    return Reply(data=_IDLE.model_dump() if run is None else _shown(run))


def _shown(run: Run) -> dict[str, object]:
    return Reconciled(
        state="running" if run.ended_ms is None else "done",
        dry_run=run.scope is Scope.NOTHING,
        drop_unknown=run.scope is Scope.ALL,
        started=rfc3339(run.started_ms),
        ended=None if run.ended_ms is None else rfc3339(run.ended_ms),
        expected=max(2 * run.expected, run.compared),
        compared=run.compared,
        connections=[_connection(report) for report in run.reports],
    ).model_dump()


def _connection(report: Report) -> ConnectionReconciled:
    return ConnectionReconciled(
        connection=report.connection,
        users=report.compared.users,
        leases=report.compared.leases,
        found={str(kind): count for kind, count in sorted(report.found.items())},
        amended={str(kind): count for kind, count in sorted(report.amended.items())},
        differences=[Difference(kind=named.kind, username=named.username, lease_id=named.lease_id) for named in report.named],
        left_out=report.left_out,
        sessions_ended=report.sessions_ended,
        sessions_left=report.sessions_left,
        concerns=[*report.concerns, *unswept(report)],
        error=report.error,
    )
