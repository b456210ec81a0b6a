"""Conformance: documents, their revisions, and the audit head. Only the protocol is used."""

from __future__ import annotations

from typing import Any

import pytest

from broker.store.words import AuditHead, DocumentChange


async def test_document_keeps_its_number_through_updates(book: Any) -> None:
    """Each write raises the revision; the number is made once."""
    first = await book.store.put_document("role", "app", b"one")
    second = await book.store.put_document("role", "app", b"two")
    assert second.number == first.number
    assert second.revision > first.revision
    assert (second.kind, second.name, second.body, second.deleted) == ("role", "app", b"two", False)


async def test_kinds_have_names_of_their_own(book: Any) -> None:
    """The same name under two kinds is two documents, and no join of kind and name is mistaken for another."""
    numbers = {
        (await book.store.put_document(kind, name, b"")).number
        for kind, name in (("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"))
    }
    assert len(numbers) == 4


async def test_deleted_and_made_again_is_another_document(book: Any) -> None:
    """A new life has a new number, so that what refers to the old one is not confused."""
    old = await book.store.put_document("connection", "pg", b"old")
    await book.store.delete_document("connection", "pg")
    new = await book.store.put_document("connection", "pg", b"new")
    assert new.number != old.number
    assert [document.body for document in await book.store.changes_since(0)] == [b"old", b"new"]


async def test_deleted_document_keeps_its_body_until_purged(book: Any) -> None:
    """Leases of a deleted connection still need it."""
    made = await book.store.put_document("connection", "pg", b"body")
    gone = await book.store.delete_document("connection", "pg")
    assert (gone.number, gone.deleted, gone.body) == (made.number, True, b"body")
    assert gone.revision > made.revision
    assert list(await book.store.changes_since(made.revision)) == [gone]
    await book.store.purge_document("role", made.number)
    assert list(await book.store.changes_since(0)) == [gone]
    await book.store.purge_document("connection", made.number)
    assert list(await book.store.changes_since(0)) == []


async def test_deleting_what_is_not_there_gives_nothing(book: Any) -> None:
    """A name that never was, or was deleted already."""
    assert await book.store.delete_document("role", "none") is None
    await book.store.put_document("role", "app", b"")
    await book.store.delete_document("role", "app")
    assert await book.store.delete_document("role", "app") is None


async def test_several_documents_change_together_in_order(book: Any) -> None:
    """A name may be changed, deleted and given to a new document in one go; what is not there is passed over."""
    old = await book.store.put_document("connection", "pg", b"old")
    changed = await book.store.change_documents(
        [
            DocumentChange("connection", "pg", b"former"),
            DocumentChange("connection", "pg"),
            DocumentChange("role", "none"),
            DocumentChange("connection", "pg", b""),
        ]
    )
    assert [(one.number == old.number, one.deleted, one.body) for one in changed] == [
        (True, False, b"former"),
        (True, True, b"former"),
        (False, False, b""),
    ]
    assert list(await book.store.changes_since(old.revision)) == list(changed[1:])
    assert list(await book.store.change_documents([])) == []


async def test_documents_change_all_or_none(book: Any) -> None:
    """A change that can't be carried out takes back those before it, and touches nothing of what was."""
    old = await book.store.put_document("role", "app", b"old")
    no_text = DocumentChange("role", "\ud800", b"x")
    with pytest.raises((TypeError, ValueError)):
        await book.store.change_documents([DocumentChange("role", "app", b"new"), DocumentChange("role", "app"), no_text])
    assert list(await book.store.changes_since(0)) == [old]


async def test_living_document_is_not_purged(book: Any) -> None:
    """Only what was deleted can be erased."""
    made = await book.store.put_document("role", "app", b"x")
    await book.store.purge_document("role", made.number)
    await book.store.purge_document("role", 4711)
    assert list(await book.store.changes_since(0)) == [made]


async def test_changes_come_in_order_and_only_once(book: Any) -> None:
    """A cache that asks from its last revision on sees each change, the oldest first."""
    a = await book.store.put_document("role", "a", b"1")
    b = await book.store.put_document("role", "b", b"1")
    again = await book.store.put_document("role", "a", b"2")
    assert list(await book.store.changes_since(0)) == [b, again]
    assert list(await book.store.changes_since(a.revision)) == [b, again]
    assert list(await book.store.changes_since(again.revision)) == []


async def test_document_numbers_raise_the_highest(book: Any) -> None:
    """Every number counts, so that none is given twice."""
    made = await book.store.put_document("role", "a", b"")
    assert await book.store.highest_number() >= made.number > 0


async def test_newest_audit_head_is_remembered(book: Any) -> None:
    """A head that arrives late does not take the place of a newer one."""
    assert await book.store.audit_head() is None
    book.store.confirm_audit(AuditHead(2, b"b" * 32))
    book.store.confirm_audit(AuditHead(1, b"a" * 32))
    await book.store.barrier()
    assert await book.store.audit_head() == AuditHead(2, b"b" * 32)
