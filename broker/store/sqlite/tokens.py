"""Tokens. One that has ended is a row that is gone. Each function is the work of one operation of the writer, or a scan."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import structlog
from msgspec.structs import replace

from broker.errors import SealBroken
from broker.model import NO_TOKEN, Token, TokenFacts, TokenNumber
from broker.store.sqlite.cipher import Cipher, TokenRow
from broker.store.sqlite.intents import as_json
from broker.store.sqlite.queries import SQL
from broker.store.words import TokenEnd, TokenRenewal

_log = structlog.get_logger(__name__)

_NO_END = (1 << 63) - 1


def add_token(db: sqlite3.Connection, now_ms: int, cipher: Cipher, token: Token, ttl_s: int | None) -> bool:
    """See `Store.add_token`."""
    end = min(_NO_END if ttl_s is None else now_ms + ttl_s * 1000, _end_of(db, now_ms, cipher, token.parent))
    expires = None if end == _NO_END else end
    values = {
        "number": token.number,
        "parent": token.parent,
        "expires": expires,
        "uses": token.uses_left,
        "facts": cipher.seal_token(token.number, expires, token.facts, token.digest),
        "now": now_ms,
    }
    return db.execute(SQL["add_token"], values).rowcount == 1


def renew_token(
    db: sqlite3.Connection, now_ms: int, cipher: Cipher, number: TokenNumber, *, ttl_s: int, facts: TokenFacts
) -> TokenRenewal | None:
    """See `Store.renew_token`."""
    row = db.execute(SQL["token"], {"number": number, "now": now_ms}).fetchone()
    if row is None:
        return None
    token = cipher.open_token(TokenRow(*row))
    until = min(now_ms + ttl_s * 1000, _end_of(db, now_ms, cipher, token.parent))
    late = list(_opened(cipher, db.execute(SQL["descendants_beyond"], {"number": number, "until": until}).fetchall()))
    for changed in (replace(token, facts=facts), *late):
        sealed = cipher.seal_token(changed.number, until, changed.facts, changed.digest)
        db.execute(SQL["renew_token"], {"number": changed.number, "expires": until, "facts": sealed})
    shortened = [descendant.number for descendant in late]
    db.execute(SQL["clamp_leases"], {"numbers": as_json([number, *shortened]), "until": until})
    return TokenRenewal(until, shortened)


def use_token(db: sqlite3.Connection, now_ms: int, number: TokenNumber) -> int | None:
    """See `Store.use_token`."""
    rows = db.execute(SQL["use_token"], {"number": number, "now": now_ms}).fetchall()
    return int(rows[0][0]) if rows else None


def end_tokens(
    db: sqlite3.Connection, now_ms: int, cipher: Cipher, numbers: Collection[TokenNumber], *, children: TokenEnd
) -> Sequence[TokenNumber]:
    """See `Store.end_tokens`."""
    if children is TokenEnd.ORPHAN_CHILDREN:
        _orphan_children(db, cipher, numbers)
    # What has no children left, ends alone.
    doomed = _with_children(db, numbers)
    if doomed:
        db.execute(SQL["end_leases_of_tokens"], {"numbers": as_json(doomed), "now": now_ms})
        _remove(db, doomed)
    return doomed


def end_expired_tokens(db: sqlite3.Connection, now_ms: int, limit: int) -> Sequence[TokenNumber]:
    """See `Store.end_expired_tokens`."""
    expired = [TokenNumber(row[0]) for row in db.execute(SQL["expired_tokens"], {"now": now_ms, "limit": limit})]
    doomed = _with_children(db, expired)
    if doomed:
        # Nobody ended the leases, their time is over: they fall due as if it were their own.
        db.execute(SQL["clamp_leases"], {"numbers": as_json(doomed), "until": now_ms})
        _remove(db, doomed)
    return doomed


def list_tokens(db: sqlite3.Connection, now_ms: int, cipher: Cipher, *, after: TokenNumber, limit: int) -> Sequence[Token]:
    """See `Store.tokens`."""
    return list(_opened(cipher, db.execute(SQL["tokens"], {"after": after, "limit": limit, "now": now_ms})))


def _with_children(db: sqlite3.Connection, numbers: Collection[TokenNumber]) -> list[TokenNumber]:
    return [TokenNumber(row[0]) for row in db.execute(SQL["with_children"], {"numbers": as_json(numbers)})]


def _remove(db: sqlite3.Connection, numbers: Collection[TokenNumber]) -> None:
    db.execute(SQL["keep_highest"])
    db.execute(SQL["remove_tokens"], {"numbers": as_json(numbers)})


def _end_of(db: sqlite3.Connection, now_ms: int, cipher: Cipher, number: TokenNumber) -> int:
    """When a token ends, which none of its children may outlive; `_NO_END` for one that never does or is not there."""
    if number == NO_TOKEN:
        return _NO_END
    row = db.execute(SQL["token"], {"number": number, "now": now_ms}).fetchone()
    end = None if row is None else cipher.open_token(TokenRow(*row)).expires_ms
    return _NO_END if end is None else end


def _opened(cipher: Cipher, rows: Iterable[Sequence[Any]]) -> Iterator[Token]:
    """One that does not open is left out and logged: it is refused wherever it is used."""
    for row in rows:
        try:
            yield cipher.open_token(TokenRow(*row))
        except SealBroken as broken:
            _log.error("a token does not open and was passed over: revoke it by number", token=row[0], reason=str(broken))


def _orphan_children(db: sqlite3.Connection, cipher: Cipher, numbers: Collection[TokenNumber]) -> None:
    for row in db.execute(SQL["children"], {"numbers": as_json(numbers)}).fetchall():
        child = cipher.open_token(TokenRow(*row))
        if child.number not in numbers:
            facts = cipher.seal_token(child.number, child.expires_ms, replace(child.facts, orphan=True), child.digest)
            db.execute(SQL["orphan"], {"number": child.number, "facts": facts})
