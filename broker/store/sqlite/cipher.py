"""Rows as they lie in the file, and as the rooms above know them: sealing on the way in, opening on the way out."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import orjson
import structlog

from broker.errors import SealBroken
from broker.model import (
    ConnectionNumber,
    Document,
    Lease,
    LeaseFacts,
    LeaseNumber,
    LeaseState,
    Stage,
    Token,
    TokenFacts,
    TokenNumber,
)
from broker.seal.context import context
from broker.seal.keyring import Keyring, Purpose
from broker.store.sqlite.codec import pack_lease, pack_token, unpack_lease, unpack_token

_FAMILIES_REMEMBERED = 4096
_STATES = {int(state): state for state in LeaseState}
_STAGES = {int(stage): stage for stage in Stage}
_log = structlog.get_logger(__name__)


class Place(NamedTuple):
    """What the sealed values of a lease are bound to; the columns of the query `places`."""

    number: int
    connection: int
    token: int
    family: int


class LeaseRow(NamedTuple):
    """The columns of every query that reads leases."""

    number: int
    state: int
    stage: int
    due: int
    epoch: int
    attempts: int
    connection: int
    token: int
    family: int
    facts: bytes
    password: bytes | None


class TokenRow(NamedTuple):
    """The columns of every query that reads tokens."""

    number: int
    parent: int
    expires: int | None
    uses: int | None
    facts: bytes


class DocumentRow(NamedTuple):
    """The columns of every query that reads documents."""

    number: int
    revision: int
    deleted: int
    label: bytes
    body: bytes


class Cipher:
    """Seals what goes into rows and opens what comes out; raises SealBroken, which names the row, where one does not open."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._lookup_key = keyring.subkey(Purpose.LOOKUP)
        self.family = lru_cache(_FAMILIES_REMEMBERED)(self._family)
        """The keyed hash that stands for a path in indexes."""

    def handle(self, kind: str, name: str) -> int:
        """The keyed hash by which a document is found."""
        return self._hash(context("document", kind, "handle", name))

    def seal_lease(self, place: Place, facts: LeaseFacts) -> tuple[bytes, bytes | None]:
        """The columns `facts` and `password`."""
        seal, password = self._keyring.seal, facts.password
        return (
            seal(pack_lease(facts), _of_lease(place, "facts")),
            None if password is None else seal(password.reveal().encode(), _of_lease(place, "password")),
        )

    def open_lease(self, row: LeaseRow) -> Lease:
        """A lease with its facts."""
        place = Place(row.number, row.connection, row.token, row.family)
        facts = self._open(row.facts, _of_lease(place, "facts"), "lease", row.number)
        password = row.password
        if password is not None:
            password = self._open(password, _of_lease(place, "password"), "lease", row.number)
        if row.state not in _STATES or row.stage not in _STAGES:
            raise _broken("lease", row.number)
        return Lease(
            number=LeaseNumber(row.number),
            state=_STATES[row.state],
            stage=_STAGES[row.stage],
            due_ms=row.due,
            epoch=row.epoch,
            attempts=row.attempts,
            connection=ConnectionNumber(row.connection),
            token=TokenNumber(row.token),
            facts=unpack_lease(facts, password),
        )

    def open_sound_leases(self, rows: Iterable[LeaseRow]) -> Sequence[Lease]:
        """All that open. One that does not is left out and logged by number: it must not hold up the others for ever."""
        leases = []
        for row in rows:
            try:
                leases.append(self.open_lease(row))
            except SealBroken as broken:
                _log.error("a lease does not open and was passed over: restore the store", lease=row.number, reason=str(broken))
        return leases

    def seal_token(self, number: int, expires: int | None, facts: TokenFacts, digest: bytes) -> bytes:
        """The column `facts` of a token."""
        return self._keyring.seal(pack_token(facts, digest), _of_token(number, expires))

    def open_token(self, row: TokenRow) -> Token:
        """A token with its facts."""
        facts, digest = unpack_token(self._open(row.facts, _of_token(row.number, row.expires), "token", row.number))
        return Token(
            number=TokenNumber(row.number),
            parent=TokenNumber(row.parent),
            expires_ms=row.expires,
            uses_left=row.uses,
            digest=digest,
            facts=facts,
        )

    def seal_label(self, number: int, kind: str, name: str) -> bytes:
        """The column `label` of a document."""
        return self._keyring.seal(orjson.dumps([kind, name]), context("document", number, "label"))

    def seal_body(self, number: int, body: bytes) -> bytes:
        """The column `body` of a document."""
        return self._keyring.seal(body, context("document", number, "body"))

    def open_document(self, row: DocumentRow) -> Document:
        """A document with its name and body."""
        kind, name = orjson.loads(self._open(row.label, context("document", row.number, "label"), "document", row.number))
        return Document(
            kind=kind,
            name=name,
            number=row.number,
            revision=row.revision,
            deleted=bool(row.deleted),
            body=self._open(row.body, context("document", row.number, "body"), "document", row.number),
        )

    def seal_path(self, path: str) -> bytes:
        """The column `path` of a path."""
        return self._keyring.seal(path.encode(), context("path", self.family(path), "path"))

    def open_path(self, family: int, sealed: bytes) -> str:
        """A path in clear."""
        return self._open(sealed, context("path", family, "path"), "path", family).decode()

    def seal_vital(self, name: str, value: bytes) -> bytes:
        """The column `sealed` of a vital."""
        return self._keyring.seal(value, context("vital", name, "sealed"))

    def open_vital(self, name: str, sealed: bytes) -> bytes:
        """A vital in clear."""
        return self._open(sealed, context("vital", name, "sealed"), "vital", name)

    def _open(self, sealed: bytes, place: bytes, table: str, row: int | str) -> bytes:
        try:
            return self._keyring.open(sealed, place)
        except (SealBroken, TypeError):  # A damaged row may hold a value of another type.
            raise _broken(table, row) from None

    def _family(self, path: str) -> int:
        return self._hash(context("path", path, "family"))

    def _hash(self, place: bytes) -> int:
        return int.from_bytes(hmac.digest(self._lookup_key, place, hashlib.sha256)[:8], "big", signed=True)


def _broken(table: str, row: int | str) -> SealBroken:
    return SealBroken(f"{table} {row} does not open: it was damaged, or moved from another place or store; restore the store")


def _of_lease(place: Place, column: str) -> bytes:
    return context("lease", place.number, column, place.connection, place.token, place.family)


def _of_token(number: int, expires: int | None) -> bytes:
    return context("token", number, "facts", -1 if expires is None else expires)
