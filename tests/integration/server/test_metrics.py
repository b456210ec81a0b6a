"""Metrics over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

SCRAPE = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"}


@pytest.mark.parametrize(("query", "headers"), [("?format=prometheus", {}), ("", SCRAPE)])
async def test_prometheus_reads_every_metric(broker: Any, query: str, headers: dict[str, str]) -> None:
    """Its text format, where the query or the scraper's header asks for it; what was counted is there."""
    await broker("GET", "database/creds/app")
    answer = await broker("GET", f"sys/metrics{query}", headers=headers)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.raw.decode())}
    [issued] = [s for s in families["broker_leases_issued"].samples if s.name.endswith("_total")]
    assert (issued.value, issued.labels) == (1, {"role": "app"})
    assert families["broker_engine_call_seconds"].type == "histogram"


async def test_agents_read_json(broker: Any) -> None:
    """Bare JSON in the spelling that Vault's agents know."""
    await broker("GET", "database/creds/app")
    body = (await broker("GET", "sys/metrics")).body
    assert set(body) == {"Timestamp", "Gauges", "Points", "Counters", "Samples"}
    assert {"Name": "broker_leases_issued", "Count": 1, "Sum": 1.0, "Labels": {"role": "app"}} in body["Counters"]
    assert {"Name": "broker_leases_stuck", "Value": 0.0, "Labels": {}} in body["Gauges"]
    [timed] = [s for s in body["Samples"] if s["Name"] == "broker_engine_call_seconds" and s["Labels"]["verb"] == "create"]
    assert timed["Count"] >= 1
    assert 0 < timed["Sum"] < 60


async def test_another_format_is_refused(broker: Any) -> None:
    """With the field and what is allowed."""
    answer = await broker("GET", "sys/metrics?format=xml")
    assert answer.status == 400
    assert "format" in answer.body["errors"][0]
    assert "prometheus" in answer.body["errors"][0]


async def test_metrics_need_a_token_with_the_right(broker: Any) -> None:
    """Nobody reads the names of roles and connections without one."""
    weak = await broker.new_token(policies=["default"])
    for token in ("", weak):
        assert (await broker("GET", "sys/metrics?format=prometheus", token=token)).status == 403


@pytest.fixture
def unguarded(settings: dict[str, Any]) -> None:
    """Metrics for anybody; to be asked for before `broker`."""
    settings["server"]["unauthenticated_metrics_access"] = True


@pytest.mark.usefixtures("unguarded", "broker")
async def test_metrics_without_a_token_where_that_is_set(broker: Any) -> None:
    """A scraper needs none then, and leaves no record."""
    before = len(broker.audit())
    assert (await broker("GET", "sys/metrics?format=prometheus", token="")).status == 200
    assert len(broker.audit()) == before
