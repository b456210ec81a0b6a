"""Leases on their way in: reserve, prepare, hand out. Each function is the work of one operation of the writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from broker.model import NO_TOKEN
from broker.store.sqlite.cipher import Cipher, Place
from broker.store.sqlite.queries import SQL
from broker.store.words import Handout, Refusal, Reservation


def reserve(
    db: sqlite3.Connection, now_ms: int, cipher: Cipher, reservations: Sequence[Reservation]
) -> Sequence[Refusal | None]:
    """See `Store.reserve`."""
    know_paths(db, cipher, (one.facts.path for one in reservations))
    return [_try(db, "reserve", _reservation(cipher, asked, now_ms)) for asked in reservations]


def prepare(db: sqlite3.Connection, now_ms: int, cipher: Cipher, reservations: Sequence[Reservation]) -> None:
    """See `Store.prepare`."""
    know_paths(db, cipher, (one.facts.path for one in reservations))
    for asked in reservations:
        place = Place(asked.number, asked.connection, NO_TOKEN, cipher.family(asked.facts.path))
        db.execute(SQL["prepare"], _sealed(cipher, place, asked) | {"due": now_ms + asked.due_in_ms})


def hand_out(db: sqlite3.Connection, now_ms: int, cipher: Cipher, handouts: Sequence[Handout]) -> Sequence[Refusal | None]:
    """See `Store.hand_out`."""
    know_paths(db, cipher, (one.facts.path for one in handouts))
    places = places_of(db, (asked.number for asked in handouts))
    return [_hand_out(db, now_ms, cipher, asked, places.get(asked.number)) for asked in handouts]


def places_of(db: sqlite3.Connection, numbers: Iterable[int]) -> Mapping[int, Place]:
    """What the sealed values of these leases are bound to."""
    return {row[0]: Place(*row) for row in db.execute(SQL["places"], {"numbers": as_json(numbers)})}


def as_json(numbers: Iterable[int]) -> str:
    """Numbers as the queries take them."""
    return orjson.dumps(list(numbers)).decode()


def _hand_out(db: sqlite3.Connection, now_ms: int, cipher: Cipher, asked: Handout, place: Place | None) -> Refusal | None:
    if place is None:
        return Refusal.NOT_PREPARED
    new_place = place._replace(token=asked.token, family=cipher.family(asked.facts.path))
    return _try(db, "hand_out", _sealed(cipher, new_place, asked) | _conditions(asked, now_ms))


def _reservation(cipher: Cipher, asked: Reservation, now_ms: int) -> dict[str, Any]:
    place = Place(asked.number, asked.connection, asked.token, cipher.family(asked.facts.path))
    return _sealed(cipher, place, asked) | _conditions(asked, now_ms)


def _sealed(cipher: Cipher, place: Place, asked: Reservation | Handout) -> dict[str, Any]:
    facts, password = cipher.seal_lease(place, asked.facts)
    return place._asdict() | {"facts": facts, "password": password}


def _conditions(asked: Reservation | Handout, now_ms: int) -> dict[str, Any]:
    return {
        "due": now_ms + asked.due_in_ms,
        "now": now_ms,
        "ask": asked.ask_key,
        "asker": asked.asker,
        "per_role": asked.limits.per_role,
        "per_token": asked.limits.per_token,
    }


def _try(db: sqlite3.Connection, statement: str, values: Mapping[str, Any]) -> Refusal | None:
    if db.execute(SQL[statement], values).rowcount == 1:
        return None
    token_ended, asked_before, role_limit, token_limit = db.execute(SQL["why_refused"], values).fetchone()
    if token_ended:
        return Refusal.TOKEN_ENDED
    if asked_before:
        return Refusal.ASKED_BEFORE
    if role_limit:
        return Refusal.ROLE_LIMIT
    return Refusal.TOKEN_LIMIT if token_limit else Refusal.NOT_PREPARED


def know_paths(db: sqlite3.Connection, cipher: Cipher, paths: Iterable[str]) -> None:
    """Writes down each path that is new, before a lease is counted on it."""
    for path in set(paths):
        family = cipher.family(path)
        if db.execute(SQL["path_known"], {"family": family}).fetchone() is None:
            db.execute(SQL["add_path"], {"family": family, "path": cipher.seal_path(path)})
