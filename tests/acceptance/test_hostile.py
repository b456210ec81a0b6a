"""Requests that nobody should send, thousands of them, at the running daemon and a real PostgreSQL.

`BROKER_HOSTILE_REQUESTS` asks for more than 10,000, `BROKER_HOSTILE_SEED` for others than the usual ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from broker.server.router import Route
from broker.server.routes import specs
from broker.testing.broker import CREATE_USER, BrokerProcess, connection_to, until
from broker.testing.database import Database

COUNT = int(os.environ.get("BROKER_HOSTILE_REQUESTS", "10000"))
SEED = int(os.environ.get("BROKER_HOSTILE_SEED", "7"))
WORKERS = 48
ANSWER_LIMIT_S = 120
ROUTES: Sequence[Route] = [route for table in specs.TABLES for route in table.routes]
VERBS = {"read": ["GET", "HEAD"], "list": ["LIST"], "update": ["POST", "PUT"], "delete": ["DELETE"]}
ISSUED = ["app", "pooled", "odd0", "odd1", "odd2"]
"""Roles that leases are asked of. Their revocation is left to the engine, so that nothing may be left behind in the end."""
NAMES = [
    *(
        "none",
        "a'b",
        'a"b',
        "a;b",
        "a\x00b",
        "a\nb",
        "ünïcödé",
        "\u202eltr",
        "😀",
        "a/b",
        "..",
        ".",
        "%",
        "%00",
        " ",
        "a b",
        "-",
    ),
    *("'; DROP TABLE pg_class; --", "{{name}}", "$(id)", "\\", "x" * 300, "x" * 5_000, "\ud800", "\x7f", "a.b", "a-b_c"),
]
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        5,
        2**31,
        2**63,
        2**64,
        10**30,
        1.5,
        -0.0,
        1e308,
        "",
        " ",
        "0",
        "5",
        "-5",
        "1h",
        "1y",
        "9" * 40,
    ),
    *(
        "'",
        '"',
        "\x00",
        "a\x00b",
        "\ud800",
        "\udfff\ud800",
        "😀",
        "\u202e",
        "x" * 300,
        "x" * 70_000,
        "null",
        "[]",
        "{{password}}",
    ),
    *([], {}, [[]], [None], ["a", 1, None], {"a": {"b": [1]}}, {"": ""}, {"\x00": "\x00"}, ["x"] * 2_000, {"a\ud800": 1}),
    *("'; DROP ROLE postgres; --", "*", ",,,", "=", "a=b", "../..", "irrevocable", "none"),
]
STATEMENTS: list[Any] = [
    *(CREATE_USER, [CREATE_USER], [CREATE_USER, ""], CREATE_USER + ";", CREATE_USER + "; SELECT 1; -- done"),
    *("{{name}}", "{{", "}}", "{{ name }}", "'{{name}}'", "$${{name}}$$", "$a$", "BEGIN", "COMMIT", "ROLLBACK; " + CREATE_USER),
    *(
        "/* " + CREATE_USER,
        CREATE_USER + "'",
        CREATE_USER + '"',
        CREATE_USER + "\x00",
        "SELECT '{{password}}'::int",
        "DO $$ BEGIN END $$",
    ),
    *("SET ROLE none", "RESET ALL", 'SET SESSION AUTHORIZATION "{{name}}"', "COPY pg_class TO STDOUT", "LISTEN x", ";", ";;;"),
    *(
        "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' CONNECTION LIMIT -7",
        "ÄÖ{{name}}😀",
    ),
    CREATE_USER + '; GRANT pg_read_all_data TO "{{name}}"; GRANT pg_read_all_data TO "{{name}}"',
]
TEMPLATES = [
    *(
        "{{",
        "{{.}}",
        "{{random}}",
        "{{random -1}}",
        "{{random 99999999}}",
        "{{.DisplayName | truncate 0}}",
        "{{unix_time | x}}",
    ),
    *(
        "plain",
        "{{random 20}}'\"",
        "{{.RoleName}}\x00{{random 20}}",
        "ü{{random 20}}",
        "{{random 20}}" * 50,
        "{{(((((random 20)))))}}",
    ),
]
FIELDS = (
    *("plugin_name", "plugin_version", "verify_connection", "allowed_roles", "connection_url", "username", "password"),
    *("username_template", "max_open_connections", "max_connection_lifetime", "password_authentication", "scram_iterations"),
    *("tls_ca", "tls_certificate", "private_key", "disable_escaping", "db_name", "creation_statements", "renew_statements"),
    *("rollback_statements", "default_ttl", "max_ttl", "credential_type", "credential_config", "prepared_users", "reissue"),
    *(
        "max_leases",
        "ttl_jitter",
        "session_grace",
        "lease_owner",
        "grant_roles",
        "owned_objects",
        "reassign_to",
        "connection_limit",
        "settings",
        "lease_id",
        "increment",
        "sync",
    ),
    *(
        "type",
        "limit",
        "token",
        "accessor",
        "policies",
        "meta",
        "ttl",
        "explicit_max_ttl",
        "period",
        "display_name",
        "num_uses",
    ),
    *(
        "no_parent",
        "no_default_policy",
        "renewable",
        "id",
        "entity_alias",
        "standbyok",
        "activecode",
        "list",
        "help",
        "x\x00",
        "'",
    ),
)
BUGS = ("Traceback", "nobody foresaw", "broke its promise", "job broke", "a connection failed", "expiry failed")


@dataclass
class Hostile:
    """Makes requests from a seed; knows of leases and tokens that may be used up."""

    dice: random.Random
    token: str
    good_connection: Mapping[str, Any]
    leases: list[str] = field(default_factory=list)
    spare: list[dict[str, str]] = field(default_factory=list)

    def request(self) -> bytes:
        """One request; a quarter of them have some of their bytes changed."""
        changed = self.dice.random() < 1 / 4
        content = self._whole(self.dice.choice(ROUTES), ["mutated"] if changed else ISSUED)
        return self._changed(content) if changed else content

    def _whole(self, route: Route, roles: Sequence[str]) -> bytes:
        dice = self.dice
        method = dice.choice(
            VERBS[route.operation] if dice.random() < 0.93 else ["PATCH", "FOO", "GET", "DELETE", "LIST", "PUT"]
        )
        path = re.sub(r"\{(\w+)\*?\}", lambda _: self._name(route.pattern, roles), route.pattern)
        token = self.token
        if "self" in path and route.operation == "update":
            token = self.spare.pop()["client_token"] if self.spare else "hvs.nobody"
        elif dice.random() < 0.03:
            token = dice.choice(["", "x", "hvs.", "é", "a" * 9_000, "hvs.a\tb"])
        query = f"?{quote(dice.choice(FIELDS))}={quote(self._text(dice.choice(ODD)), safe='')}" if dice.random() < 0.1 else ""
        body = self._body(path, roles) if route.operation == "update" or dice.random() < 0.1 else b""
        headers = [f"Host: broker\r\nConnection: close\r\nX-Vault-Token: {token}\r\n"]
        if dice.random() < 0.05:
            name = dice.choice(["Idempotency-Key", "X-Vault-Wrap-TTL", "X-Vault-Namespace", "Content-Type", "Content-Encoding"])
            headers.append(
                f"{name}: {dice.choice(['', '-1', '5m', 'root', 'x' * 400, 'a=b', 'gzip', 'application/json; charset=x'])}\r\n"
            )
        head = f"{method} /v1/{path}{query} HTTP/1.1\r\n{''.join(headers)}Content-Length: {len(body)}\r\n\r\n"
        return head.encode("utf-8", "surrogatepass") + body

    def _name(self, pattern: str, roles: Sequence[str]) -> str:
        """What stands for the end of a path; names of the connection `keep` are not among it."""
        dice = self.dice
        if "revoke-force" in pattern:
            return dice.choice(["none", "database/creds/none", "%27", "x" * 300])
        usual = {"database/creds": roles, "database/roles": [*roles, "unused"], "sys/leases": self._lease_paths()}
        for start, names in usual.items():
            if pattern.startswith(start) and dice.random() < 0.8:
                return dice.choice(names)
        if "config" in pattern or "reset" in pattern:
            return dice.choice(["c0", "c1", "c2", quote(self._text(dice.choice(NAMES)), safe="")])
        return quote(self._text(dice.choice(NAMES)), safe="/" if dice.random() < 0.3 else "")

    def _lease_paths(self) -> list[str]:
        return ["database/creds", "database/creds/app", "database", *self.leases[-3:]]

    def _body(self, path: str, roles: Sequence[str]) -> bytes:
        dice = self.dice
        if dice.random() < 0.05:
            return dice.choice(
                [b"", b"null", b"[]", b"{", b'"x"', b"\xff\xfe", b"a=b&c=%zz", b'{"a":1}{"a":2}', b"[" * 9_000, b"1e999"]
            )
        fields: dict[str, Any] = {}
        if "/config/" in path:
            fields |= self.good_connection if dice.random() < 0.5 else {}
        elif "/roles/" in path:
            fields |= {"db_name": "keep", "creation_statements": dice.choice(STATEMENTS), "default_ttl": "1m"}
            if path.endswith("/unused"):
                fields["revocation_statements"] = dice.choice(STATEMENTS)
        elif "lease" in path or path.startswith(("sys/renew", "sys/revoke")):
            fields["lease_id"] = dice.choice([*self.leases[-5:], "database/creds/app/" + "x" * 24])
        elif "token" in path and self.spare and dice.random() < 0.5:
            fields |= {"token": self.spare[-1]["client_token"], "accessor": self.spare[-1]["accessor"]}
        for _ in range(dice.randrange(4)):
            fields[dice.choice(FIELDS)] = self._value(path)
        if "prefix" in path or "/config/" in path:
            # Neither a revocation that the end would have to wait for, nor a connection that was never tried.
            fields = {name: value for name, value in fields.items() if name not in ("sync", "verify_connection")}
        return json.dumps(fields, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")

    def _value(self, path: str) -> Any:
        dice = self.dice
        if "/roles/" in path and dice.random() < 0.3:
            return dice.choice(STATEMENTS)
        if "/config/" in path and dice.random() < 0.3:
            return dice.choice(TEMPLATES)
        return dice.choice(ODD)

    def _text(self, value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return text.encode("utf-8", "replace").decode()

    def _changed(self, content: bytes) -> bytes:
        dice = self.dice
        for _ in range(dice.randint(1, 3)):
            start = dice.randrange(min(len(content), 400) + 1)
            new = dice.choice(
                [b"", b"\x00", b"\r\n", b"\xff", b"'", b"%", b"/", b"{", b"0", dice.randbytes(3), content[start : start + 9]]
            )
            content = content[:start] + new + content[start + dice.randrange(9) :]
        return content


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker that gives up slow clients soon."""
    directory = tmp_path_factory.mktemp("hostile")
    content = (
        f'[server]\naddress = "unix:{directory / "http.sock"}"\nbody_timeout_s = 0.1\nkeepalive_s = 0.2\n'
        "[engines]\nconnect_timeout_s = 8\n"
    )
    with BrokerProcess(directory, content) as started:
        yield started


@dataclass
class Findings:
    """What came back, and what must not have."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[tuple[bytes, bytes]] = field(default_factory=list)

    def look_at(self, sent: bytes, answer: bytes) -> None:
        """Judges one answer."""
        if not answer:
            self.statuses[0] += 1
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/\d\.\d (\d\d\d) ", head)
        status = int(found[1]) if found else 999
        self.statuses[status] += 1
        # A connection that was kept untried may lead to a database that does not answer; saying so is 503.
        allowed = status < 500 or (status == 503 and b"/database/reset/" in sent)
        if not allowed or b"Traceback" in body or not self._is_shaped(status, head, body):
            self.wrong.append((sent[:2_000], answer[:1_000]))

    def _is_shaped(self, status: int, head: bytes, body: bytes) -> bool:
        if b"application/json" not in head:
            return False
        if not body:
            return True
        content = json.loads(body)
        return status < 400 or (
            isinstance(content["errors"], list) and all(isinstance(text, str) for text in content["errors"])
        )


async def exchange(socket_path: str, content: bytes) -> bytes:
    """Sends bytes on a connection of their own and reads until the broker closes it."""
    reader, writer = await asyncio.open_unix_connection(socket_path)
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            try:
                writer.write(content)
                await writer.drain()
                return await reader.read()
            except ConnectionError:
                return b""
    finally:
        writer.close()


async def attack(broker: BrokerProcess, hostile: Hostile, findings: Findings, count: Iterator[int]) -> None:
    """One of several clients, until `count` runs out."""
    socket_path = broker.address.removeprefix("unix:")
    for number in count:
        if number % 50 == 0:
            issued = await broker.request("GET", "database/creds/app", token=hostile.token)
            made = await broker.request("POST", "auth/token/create", {"ttl": "5m"}, token=hostile.token)
            if issued.status == 200 and made.status == 200:
                hostile.leases.append(issued.body["lease_id"])
                hostile.spare.append(made.body["auth"])
        sent = hostile.request()
        findings.look_at(sent, await exchange(socket_path, sent))


@pytest.mark.timeout(max(1_200, COUNT // 50))
async def test_hostile_requests_break_nothing(broker: BrokerProcess, database: Database, cli: Any) -> None:
    """Whatever is asked: no 5xx, no traceback, error bodies of the usual shape; and afterwards no role is left in the database."""
    before = {row[0] for row in await database.ask("SELECT rolname::text FROM pg_roles")}
    good = connection_to(database.server, scram_iterations=1)
    role = {"db_name": "keep", "creation_statements": CREATE_USER, "default_ttl": "1h"}
    for path, body in (("config/keep", good), ("roles/app", role), ("roles/pooled", {**role, "prepared_users": 3})):
        assert (await broker.request("PUT", f"database/{path}", body)).status == 204
    made = await broker.request("POST", "auth/token/create", {"policies": ["root"], "ttl": "2h", "no_parent": True})
    hostile = Hostile(random.Random(SEED), made.body["auth"]["client_token"], good)
    findings = Findings()
    count = iter(range(COUNT))
    await asyncio.gather(*(attack(broker, hostile, findings, count) for _ in range(WORKERS)))

    assert findings.wrong == [], findings.wrong[:3]
    assert findings.statuses.total() == COUNT
    # The requests reach every layer: some are understood, most are not.
    assert {200, 204, 400, 403, 404, 405} <= set(findings.statuses), findings.statuses
    broker_id = (await broker.request("GET", "sys/health")).body["cluster_id"]
    for name in (await broker.request("LIST", "database/roles")).data["keys"]:
        assert (await broker.request("DELETE", f"database/roles/{name}")).status == 204
    assert (await broker.request("PUT", "sys/leases/revoke-prefix/database/creds")).status == 204

    async def nothing_left() -> bool:
        return not await database.users(broker_id)

    await until(nothing_left, limit_s=60)
    after = {row[0] for row in await database.ask("SELECT rolname::text FROM pg_roles")}
    assert after - before == set()
    lines = broker.log().splitlines()
    assert [line for line in lines if any(bug in line for bug in BUGS)] == []
    verified = await asyncio.to_thread(cli, "audit", "verify", "--config", Path(broker.config))
    assert verified.returncode == 0, verified.stdout + verified.stderr
