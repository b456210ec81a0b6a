"""Leases that are there already, moved from state to state. Each function is the work of one operation of the writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence

from broker.model import LeaseNumber, LeaseState
from broker.store.sqlite.cipher import Cipher, Place
from broker.store.sqlite.intents import as_json, know_paths, places_of
from broker.store.sqlite.queries import SQL
from broker.store.words import Move, Step

_STATEMENTS = {
    LeaseState.RESERVED: "move_on",
    LeaseState.PREPARING: "move_on",
    LeaseState.PREPARED: "move_on",
    LeaseState.ACTIVE: "move_on",
    LeaseState.REVOKING: "move_to_revoking",
    LeaseState.STUCK: "move_to_revoking",
    LeaseState.GONE: "move_to_gone",
    LeaseState.GRACE: "move_to_revoking",
}

_STEPS = {LeaseState.GONE: "step_to_gone"}


def move(db: sqlite3.Connection, now_ms: int, cipher: Cipher, moves: Sequence[Move]) -> frozenset[LeaseNumber]:
    """See `Store.move`."""
    places = places_of(db, (one.number for one in moves if one.facts is not None))
    return frozenset(one.number for one in moves if _moved(db, now_ms, cipher, one, places.get(one.number)))


def step(db: sqlite3.Connection, now_ms: int, one: Step) -> frozenset[LeaseNumber]:
    """See `Store.step`."""
    values = {
        "numbers": as_json(one.numbers),
        "epoch": one.epoch,
        "expect": states_as_bits(one.expect),
        "to": int(one.to),
        "stage": int(one.stage),
        "due": now_ms + (one.due_in_ms or 0),
    }
    statement = "step_on" if one.due_in_ms is None else _STEPS.get(one.to, "step_to_revoking")
    return frozenset(LeaseNumber(number) for (number,) in db.execute(SQL[statement], values).fetchall())


def settle(db: sqlite3.Connection, _now_ms: int, numbers: Collection[LeaseNumber]) -> None:
    """See `Store.settle`."""
    db.execute(SQL["settle"], {"numbers": as_json(numbers)})


def free_ask(db: sqlite3.Connection, _now_ms: int, ask_key: bytes) -> None:
    """See `Store.free_ask`."""
    db.execute(SQL["free_ask"], {"ask": ask_key})


def end_family(db: sqlite3.Connection, now_ms: int, family: int, *, after: LeaseNumber, limit: int) -> Sequence[LeaseNumber]:
    """Moves leases of one path beyond `after` that are active or in their grace to revoking; answers which, in order."""
    rows = db.execute(SQL["end_family"], {"now": now_ms, "family": family, "after": after, "limit": limit})
    return sorted(LeaseNumber(number) for (number,) in rows)


def states_as_bits(states: Collection[LeaseState]) -> int:
    """A set of states as the queries take it."""
    bits = 0
    for state in states:
        bits |= 1 << state
    return bits


def _moved(db: sqlite3.Connection, now_ms: int, cipher: Cipher, one: Move, place: Place | None) -> bool:
    values: dict[str, object] = {
        "number": one.number,
        "expect": states_as_bits(one.expect),
        "to": int(one.to),
        "stage": int(one.stage),
        "attempts": one.attempts,
        "due": now_ms + one.due_in_ms,
        "epoch": one.epoch,
        "token": one.token,
        "now": now_ms,
        "facts": None,
        "password": None,
    }
    if one.facts is not None:
        if place is None:
            return False
        values["facts"], values["password"] = cipher.seal_lease(place, one.facts)
    if one.facts is not None and LeaseState.GONE in one.expect:
        # It counts again from now on; what counted it may have been tidied away.
        know_paths(db, cipher, [one.facts.path])
        return db.execute(SQL["move_from_gone"], values).rowcount == 1
    return db.execute(SQL[_STATEMENTS[one.to]], values).rowcount == 1
