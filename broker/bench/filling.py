"""A broker's store filled with leases while the broker is stopped: far faster than asking for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from broker.bench.database import BenchDatabase
from broker.bench.plan import Plan
from broker.bench.service import QUICK, Service, configured
from broker.clock import SystemClock
from broker.ids import Numbers
from broker.leases.users import Markers
from broker.model import Accessor, ConnectionNumber, LeaseFacts, LeaseNumber, LeaseState, Terms, TokenNumber, UserName
from broker.seal.keyring import Purpose
from broker.store.protocol import Store
from broker.store.sqlite.store import SqliteStore
from broker.store.words import Move, Reservation

MakeUsers = Callable[[Mapping[UserName, str]], Awaitable[Mapping[UserName, str]]]
"""Makes users of these names with these markers, and answers their identities by name."""
_HOUR_MS = 3_600_000
_BATCH = 2_000
_LEASES_PER_TOKEN = 100_000
"""Below the usual limit, so that the limits stay on."""
_NOBODY = "16384"


async def fill(made: Service, database: BenchDatabase, plan: Plan, count: int, make_users: MakeUsers | None = None) -> None:
    """Writes `count` active leases into the broker's store, and leaves it stopped; without `make_users` their users do not exist."""
    async with configured(made, database.dsn, plan) as open_calls:
        for _ in range(0, count, _LEASES_PER_TOKEN):
            await open_calls.write("auth/token/create", {"ttl": "24h"})
    await made.stop()
    clock = SystemClock()
    store = await SqliteStore.open(made.state, made.master_key(), clock)
    try:
        markers = Markers(store.broker_id, store.keyring.subkey(Purpose.MARKER))
        numbers = Numbers(clock, above=await store.highest_number())
        connection = await _connection_number(store)
        # The first is the root token, which is to measure with.
        tokens = [token.number for token in await store.tokens(after=TokenNumber(0), limit=1_000)][1:]
        for start, size in _batches(count):
            named = {number: _name(number) for number in (LeaseNumber(numbers.next()) for _ in range(size))}
            marked = {name: markers.marker(number, name) for number, name in named.items()}
            identities = await make_users(marked) if make_users else {}
            token = tokens[start // _LEASES_PER_TOKEN]
            await _write(
                store,
                [_reservation(n, name, identities.get(name, _NOBODY), connection, token) for n, name in named.items()],
            )
    finally:
        await store.close()


async def _write(store: Store, reservations: Sequence[Reservation]) -> None:
    await store.reserve(reservations)
    await store.move(
        [
            Move(number=lease.number, expect=(LeaseState.RESERVED,), to=LeaseState.ACTIVE, due_in_ms=lease.due_in_ms)
            for lease in reservations
        ]
    )


async def _connection_number(store: Store) -> ConnectionNumber:
    documents = await store.changes_since(0)
    return next(ConnectionNumber(document.number) for document in documents if document.name == QUICK)


def _name(number: LeaseNumber) -> UserName:
    return UserName(f"v-root-crowd-{number}")


def _reservation(
    number: LeaseNumber, name: UserName, identity: str, connection: ConnectionNumber, token: TokenNumber
) -> Reservation:
    facts = LeaseFacts(
        path="database/creds/crowd",
        role="crowd",
        role_revision=1,
        connection_name=QUICK,
        username=name,
        identity=identity,
        display_name="root",
        accessor=Accessor("0" * 24),
        terms=Terms(),
        expires_ms=(number >> 20) + 12 * _HOUR_MS,
        max_expires_ms=(number >> 20) + 24 * _HOUR_MS,
    )
    return Reservation(number=number, connection=connection, token=token, facts=facts, due_in_ms=12 * _HOUR_MS)


def _batches(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, _BATCH):
        yield start, min(_BATCH, count - start)
