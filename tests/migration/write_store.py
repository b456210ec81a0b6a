"""Writes `store_v<N>.sql`: the dump of a small store in the newest schema, for the migration test of all later versions.

Run once when a migration is added, and never again for that version: python tests/migration/write_store.py
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from msgspec.structs import replace

from broker.model import (
    NO_TOKEN,
    Accessor,
    ConnectionNumber,
    LeaseFacts,
    LeaseNumber,
    LeaseState,
    Terms,
    Token,
    TokenFacts,
    TokenNumber,
    UserName,
)
from broker.secret import Secret
from broker.store.sqlite.schema import migrations
from broker.store.sqlite.store import SqliteStore
from broker.store.words import AuditHead, Handout, Move, Reservation

MASTER_KEY = bytes(range(32))
NOW_MS = 1_800_000_000_000
FACTS = LeaseFacts(
    path="database/creds/app",
    role="app",
    role_revision=2,
    connection_name="pg",
    username=UserName("v-app-1"),
    identity="16391",
    display_name="token",
    accessor=Accessor("acc"),
    terms=Terms(creation=("CREATE",), options={"owned_objects": "contain"}),
    issued_ms=NOW_MS,
    expires_ms=NOW_MS + 3_600_000,
)


class StoppedClock:
    """One moment, so that two runs differ in their random parts alone."""

    def now_ms(self) -> int:
        return NOW_MS

    def wall_ms(self) -> int:
        return NOW_MS

    def raise_to(self, floor_ms: int) -> None:
        pass


async def write(directory: Path) -> None:
    """A row of each kind."""
    store = await SqliteStore.open(directory, MASTER_KEY, StoppedClock())
    connection = await store.put_document("connection", "pg", b'{"url":"x"}')
    await store.put_document("role", "app", b"{}")
    await store.put_document("role", "old", b"{}")
    await store.delete_document("role", "old")
    facts = TokenFacts(accessor=Accessor("acc"), policies=("root",), display_name="root", path="auth/token/root")
    root = Token(number=TokenNumber(100), parent=NO_TOKEN, expires_ms=None, uses_left=None, digest=b"\x01" * 32, facts=facts)
    await store.add_token(root, ttl_s=None)
    await store.add_token(replace(root, number=TokenNumber(101), parent=TokenNumber(100), uses_left=3), ttl_s=600)
    one = Reservation(
        number=LeaseNumber(201),
        connection=ConnectionNumber(connection.number),
        token=root.number,
        facts=FACTS,
        due_in_ms=60_000,
    )
    await store.reserve([one, replace(one, number=LeaseNumber(202), ask_key=b"k" * 16), replace(one, number=LeaseNumber(203))])
    secret = replace(FACTS, password=Secret("password"))
    await store.prepare([replace(one, number=LeaseNumber(number), token=NO_TOKEN, facts=secret) for number in (204, 205, 206)])
    await store.move(
        [
            _move(202, LeaseState.RESERVED, LeaseState.ACTIVE, facts=secret),
            _move(203, LeaseState.RESERVED, LeaseState.STUCK, facts=replace(FACTS, failure="no", remedy=("DROP",)), attempts=9),
            *(_move(number, LeaseState.PREPARING, LeaseState.PREPARED) for number in (205, 206)),
        ]
    )
    await store.hand_out([Handout(number=LeaseNumber(206), token=TokenNumber(101), facts=FACTS, due_in_ms=3_600_000)])
    store.confirm_audit(AuditHead(12, b"\x02" * 32))
    await store.close()


def _move(number: int, expect: LeaseState, to: LeaseState, *, facts: LeaseFacts | None = None, attempts: int = 0) -> Move:
    return Move(number=LeaseNumber(number), expect=(expect,), to=to, due_in_ms=3_600_000, facts=facts, attempts=attempts)


def main() -> None:
    """Writes the dump beside this file, unless it is there."""
    target = Path(__file__).with_name(f"store_v{max(migrations())}.sql")
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "store"
        asyncio.run(write(store))
        with closing(sqlite3.connect(store / "store.db")) as db, target.open("x") as file:
            (application,) = db.execute("PRAGMA application_id").fetchone()
            file.write(f"PRAGMA application_id = {application};\n")
            file.writelines(f"{line}\n" for line in db.iterdump())


if __name__ == "__main__":
    main()
