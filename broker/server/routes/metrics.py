"""Operation at `sys/metrics`: what the broker counts, for Prometheus and, as JSON, for agents that know Vault."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric

from broker.api.fields import decode
from broker.api.system import Gauge, Metrics, MetricsQuery, Totals
from broker.errors import PermissionDenied
from broker.server.router import Access, Call, Reply, Table

TABLE = Table()
_PROMETHEUS = ("application/openmetrics-text", "prometheus/telemetry")
"""Whoever accepts one of these is given what Prometheus reads (Vault's rule)."""
_PARTS = frozenset({"", "_total", "_count", "_sum"})


@TABLE.add("read", "sys/metrics", access=Access.OPTIONAL, takes=MetricsQuery, gives=Metrics, also="text/plain")
async def metrics(call: Call) -> Reply:
    """Gives every metric: in Prometheus' text format where that is asked for, else as JSON."""
    services = call.services
    if call.passage is None and not services.settings.unauthenticated_metrics_access:
        raise PermissionDenied
    registry = services.metrics.registry
    wanted = decode(MetricsQuery, call.data).format
    if wanted == "prometheus" or any(kind in call.accept for kind in _PROMETHEUS):
        return Reply(document=generate_latest(registry), media=CONTENT_TYPE_PLAIN_0_0_4)
    now = datetime.fromtimestamp(services.clock.now_ms() // 1_000, UTC)
    found = Metrics(Timestamp=now.strftime("%Y-%m-%d %H:%M:%S +0000 UTC"))
    for family in registry.collect():
        _sort_in(found, family)
    return Reply(document=found.model_dump_json().encode())


def _sort_in(found: Metrics, family: Metric) -> None:
    """Adds a family: gauges with their values, counters with their sums, histograms with counts and sums."""
    by_labels: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for sample in family.samples:
        part = sample.name.removeprefix(family.name)
        if part in _PARTS:
            by_labels.setdefault(tuple(sample.labels.items()), {})[part] = sample.value
    for labels, values in by_labels.items():
        if family.type == "gauge":
            found.Gauges.append(Gauge(Name=family.name, Value=values[""], Labels=dict(labels)))
        elif family.type == "counter":
            total = values["_total"]
            found.Counters.append(Totals(Name=family.name, Count=int(total), Sum=total, Labels=dict(labels)))
        else:
            found.Samples.append(Totals(Name=family.name, Count=int(values["_count"]), Sum=values["_sum"], Labels=dict(labels)))
