"""Configuration documents. Each function is the work of one operation of the writer, or a scan."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from broker.model import Document
from broker.store.sqlite.cipher import Cipher, DocumentRow
from broker.store.sqlite.queries import SQL
from broker.store.words import DocumentChange


def put_document(db: sqlite3.Connection, _now_ms: int, cipher: Cipher, kind: str, name: str, body: bytes) -> Document:
    """See `Store.put_document`. A new document's number is its first revision."""
    handle, revision = cipher.handle(kind, name), _next_revision(db)
    number = _number(db, handle)
    if number is None:
        number = revision
        sealed = {"label": cipher.seal_label(number, kind, name), "body": cipher.seal_body(number, body)}
        db.execute(SQL["add_document"], {"number": number, "handle": handle, "revision": revision} | sealed)
    else:
        values = {"number": number, "revision": revision, "body": cipher.seal_body(number, body)}
        db.execute(SQL["change_document"], values)
    return Document(kind=kind, name=name, number=number, revision=revision, deleted=False, body=body)


def delete_document(db: sqlite3.Connection, _now_ms: int, cipher: Cipher, kind: str, name: str) -> Document | None:
    """See `Store.delete_document`."""
    number = _number(db, cipher.handle(kind, name))
    if number is None:
        return None
    db.execute(SQL["delete_document"], {"number": number, "revision": _next_revision(db)})
    return _document(db, cipher, number)


def change_documents(
    db: sqlite3.Connection, now_ms: int, cipher: Cipher, changes: Sequence[DocumentChange]
) -> Sequence[Document]:
    """See `Store.change_documents`."""
    changed: list[Document | None] = []
    for change in changes:
        if change.body is None:
            changed.append(delete_document(db, now_ms, cipher, change.kind, change.name))
        else:
            changed.append(put_document(db, now_ms, cipher, change.kind, change.name, change.body))
    return [document for document in changed if document is not None]


def purge_document(db: sqlite3.Connection, _now_ms: int, cipher: Cipher, kind: str, number: int) -> None:
    """See `Store.purge_document`."""
    document = _document(db, cipher, number)
    if document is not None and document.kind == kind:
        db.execute(SQL["purge_document"], {"number": number})


def changes_since(db: sqlite3.Connection, cipher: Cipher, revision: int) -> Sequence[Document]:
    """See `Store.changes_since`. Raises SealBroken when one does not open: a cache that lacks it would be wrong."""
    return [cipher.open_document(DocumentRow(*row)) for row in db.execute(SQL["changes"], {"revision": revision})]


def _document(db: sqlite3.Connection, cipher: Cipher, number: int) -> Document | None:
    row = db.execute(SQL["document"], {"number": number}).fetchone()
    return None if row is None else cipher.open_document(DocumentRow(*row))


def _number(db: sqlite3.Connection, handle: int) -> int | None:
    row = db.execute(SQL["document_number"], {"handle": handle}).fetchone()
    return None if row is None else int(row[0])


def _next_revision(db: sqlite3.Connection) -> int:
    # All rows of a RETURNING statement are fetched, or it would not be over.
    ((revision,),) = db.execute(SQL["next_revision"]).fetchall()
    return int(revision)
