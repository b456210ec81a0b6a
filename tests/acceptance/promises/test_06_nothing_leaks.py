"""No secret stands in an error, a log, a metric, a file or a process list."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import generate_latest

from broker.testing.broker import CREATE_USER, Broker, BrokerProcess
from broker.testing.database import Database
from broker.testing.leasing import issue, prepare, revoke


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


PLANTED = {
    "connection password": "planted-connection-password-1",
    "password in a URL": "planted-url-password-2",
    "private key": "planted-private-key-3",
    "body that is no JSON": "planted-body-4",
    "unknown token": "hvs.planted-token-5",
    "field of the wrong type": "planted-type-6",
    "idempotency key": "planted-idempotency-7",
}


async def provoke(broker: Broker | BrokerProcess, database: Database) -> list[bytes]:
    """Makes every kind of error around the planted secrets; answers the bodies."""
    url = database.server.url_template()
    connection = {"plugin_name": "postgresql-database-plugin", "connection_url": url, "username": "postgres"}
    role = {"db_name": "pg", "creation_statements": f"{CREATE_USER}; SELECT '{{{{password}}}}'::int"}
    secret = PLANTED
    answers = [
        await broker.request("PUT", "database/config/bad", {**connection, "password": secret["connection password"]}),
        await broker.request(
            "PUT",
            "database/config/bad",
            {**connection, "connection_url": f"postgresql://u:{secret['password in a URL']}@127.0.0.1:1/d"},
        ),
        await broker.request(
            "PUT", "database/config/bad", {**connection, "tls_certificate": "x", "private_key": secret["private key"]}
        ),
        await broker.request("PUT", "database/config/bad", f'{{"password": "{secret["body that is no JSON"]}'.encode()),
        await broker.request("PUT", "database/config/bad", {**connection, "password": [secret["field of the wrong type"]]}),
        await broker.request("PUT", "database/config/bad", {**connection, "port": 1, "password": {"a": secret["private key"]}}),
        await broker.request("GET", "auth/token/lookup-self", token=secret["unknown token"]),
        await broker.request("POST", "auth/token/lookup", {"token": secret["unknown token"]}),
        await broker.request("PUT", "database/roles/leaky", role),
        await broker.request("GET", "database/creds/leaky", headers={"Idempotency-Key": secret["idempotency key"]}),
        await broker.request(
            "PUT",
            "database/config/kept",
            {**connection, "password": secret["connection password"], "verify_connection": False, "allowed_roles": "*"},
        ),
        await broker.request("GET", "database/config/kept"),
        await broker.request("POST", "database/reset/kept"),
    ]
    assert max(answer.status for answer in answers) < 504
    assert 500 not in [answer.status for answer in answers], answers
    assert answers[9].status == 400, answers[9]
    return [answer.raw for answer in answers]


async def test_promise_6_nothing_leaks(tmp_path: Path, database: Database) -> None:
    """Planted secrets, the root token and passwords stand in no error body, log, audit line, file or process list."""
    with BrokerProcess(tmp_path, '[log]\nlevel = "debug"\n') as broker:
        await prepare(broker, database.server)
        bodies = await provoke(broker, database)
        lease = await issue(broker)
        command = Path(f"/proc/{broker.pid}/cmdline").read_bytes()
        root = broker.root_token.reveal()
        (broker.state / "root-token").unlink()
        secrets = [*PLANTED.values(), root, lease["data"]["password"], database.server.superuser_password.reveal()]
        places = {"bodies": b"\n".join(bodies), "process list": command, **files_of(tmp_path)}
        found = [(secret, place) for place, text in places.items() for secret in secrets if secret.encode() in text]
        assert found == []
        assert "Traceback" not in broker.log()


async def test_promise_6_nothing_leaks_into_metrics(tmp_path: Path, database: Database) -> None:
    """No metric shows a planted secret, a user name or a lease id, whatever paths were asked for."""
    async with Broker(tmp_path / "state") as broker:
        await prepare(broker, database.server)
        await provoke(broker, database)
        lease = await issue(broker)
        await broker.request("GET", f"sys/nowhere/{PLANTED['unknown token']}")
        await revoke(broker, lease["lease_id"])
        shown = generate_latest(broker.daemon.metrics.registry).decode()
        secrets = [*PLANTED.values(), lease["data"]["username"], lease["lease_id"], lease["data"]["password"]]
        assert [secret for secret in secrets if secret in shown] == []
        assert 'role="app"' in shown
