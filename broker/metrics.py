"""Every metric: its name, unit and labels. Names follow Prometheus' rules (base units, `_total` for counters)."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REVOCATION_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 3600, 86400)


class Tally(Collector):
    """A counter for what happens with every request, on the event loop alone: one update of a dictionary, without a lock."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._counts: Counts[tuple[str, ...]] = Counts()
        registry.register(self)

    def count(self, *values: str) -> None:
        """One more with these values of the labels."""
        self._counts[values] += 1

    def describe(self) -> Iterator[CounterMetricFamily]:
        """What it is called, before there is anything to count."""
        yield CounterMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counts so far."""
        [family] = self.describe()
        for values, count in self._counts.items():
            family.add_metric(values, count)
        yield family


class Metrics:
    """The metrics of one broker, in a registry of its own, so that two brokers in one process don't share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Tally(
            "broker_http_requests", "Requests answered, by operation and status.", ["operation", "status"], self.registry
        )
        self.engine_calls = Histogram(
            "broker_engine_call_seconds",
            "Time of one engine verb, by connection, verb and outcome.",
            ["connection", "verb", "outcome"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.breaker_open = Gauge(
            "broker_engine_breaker_open", "1 while the breaker of a connection is open.", ["connection"], registry=self.registry
        )
        self.leases_issued = Tally("broker_leases_issued", "Leases issued, by role.", ["role"], self.registry)
        self.prepared_hits = Tally(
            "broker_prepared_hits", "Leases served from a role's prepared users.", ["role"], self.registry
        )
        self.prepared_misses = Counter(
            "broker_prepared_misses",
            "Leases of a role with prepared users that found none ready.",
            ["role"],
            registry=self.registry,
        )
        self.revocation_failures = Counter(
            "broker_revocation_failures",
            "Failed attempts at a stage of revocation.",
            ["connection", "stage"],
            registry=self.registry,
        )
        self.stuck_leases = Gauge("broker_leases_stuck", "Leases whose quick attempts are used up.", registry=self.registry)
        self.oldest_stuck = Gauge(
            "broker_leases_stuck_oldest_seconds",
            "Since when the revocation fails of the one among them that fails the longest; of the 1,000 that were issued first.",
            registry=self.registry,
        )
        self.swept_sessions = Counter(
            "broker_swept_sessions",
            "Sessions of users that no longer exist, ended by the sweep.",
            ["connection"],
            registry=self.registry,
        )
        self.reconcile_found = Gauge(
            "broker_reconcile_found",
            "Users about whom database and store differed when they were compared last, by connection and kind.",
            ["connection", "kind"],
            registry=self.registry,
        )
        self.reconcile_concerns = Gauge(
            "broker_reconcile_concerns",
            "What was wrong, or soon will be, in the database when it was looked into last.",
            ["connection"],
            registry=self.registry,
        )
        self.reconcile_amended = Counter(
            "broker_reconcile_amended", "Differences that were put right.", ["connection", "kind"], registry=self.registry
        )
        self.failovers = Counter(
            "broker_failovers", "Times that another database server took over.", ["connection"], registry=self.registry
        )
        self.failover_findings = Counter(
            "broker_failover_findings",
            "What failovers undid and was put right: users revived, leases lost, logins restored.",
            ["connection", "kind"],
            registry=self.registry,
        )
        self.revocations_overdue = Gauge(
            "broker_revocations_overdue",
            "Leases past their end whose users are not gone yet, stuck ones left out; counted up to 10,000.",
            registry=self.registry,
        )
        self.oldest_overdue = Gauge(
            "broker_revocations_oldest_overdue_seconds", "How long the oldest of them is past its end.", registry=self.registry
        )
        self.lease_bursts = Counter(
            "broker_lease_bursts",
            "Times that the live leases of one role or token grew by over leases.burst_alarm within an hour.",
            ["holder"],
            registry=self.registry,
        )
        self.time_to_disabled = Histogram(
            "broker_revocation_disabled_seconds",
            "From the start of a revocation to the login being off.",
            buckets=_REVOCATION_BUCKETS_S,
            registry=self.registry,
        )
        self.time_to_dropped = Histogram(
            "broker_revocation_dropped_seconds",
            "From the start of a revocation to the user being gone.",
            buckets=_REVOCATION_BUCKETS_S,
            registry=self.registry,
        )
        self.clock_gap = Gauge("broker_clock_gap_seconds", "Wall clock minus broker time.", registry=self.registry)
        self.clock_jumps = Counter(
            "broker_clock_jumps", "Times the gap of the clocks moved by over a minute.", registry=self.registry
        )
