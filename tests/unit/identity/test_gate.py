"""The one step that every operation passes: who, may they, on record."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from broker.audit.entry import AuditResponse, Hasher, Scribe
from broker.errors import AuditUnavailable, InvalidRequest, PermissionDenied
from broker.identity.cache import TokenCache
from broker.identity.callers import Callers
from broker.identity.gate import Gate, Incoming
from broker.ids import new_token
from broker.model import Token, TokenNumber
from broker.secret import Secret


@dataclass
class FakeStore:
    """Tokens in a mapping, and how often it was asked."""

    rows: dict[TokenNumber, Token] = field(default_factory=dict)
    asked: int = 0
    now: int = 1_000
    on_read: Callable[[], None] = lambda: None

    def now_ms(self) -> int:
        return self.now

    async def token(self, number: TokenNumber) -> Token | None:
        self.asked += 1
        row = self.rows.get(number)
        self.on_read()
        return row

    async def use_token(self, number: TokenNumber) -> int | None:
        row = self.rows[number]
        if not row.uses_left:
            return None
        self.rows[number] = replace(row, uses_left=row.uses_left - 1)
        return row.uses_left - 1


@dataclass
class FakeTrail:
    """Keeps what was recorded, a list for each call."""

    batches: list[list[dict[str, Any]]] = field(default_factory=list)
    broken: bool = False

    async def record(self, entries: Sequence[bytes]) -> None:
        if self.broken:
            raise AuditUnavailable
        self.batches.append([json.loads(entry) for entry in entries])


@dataclass
class FakeTokens:
    """Remembers which tokens were ended."""

    ended: list[TokenNumber] = field(default_factory=list)

    async def revoke(self, token: Token) -> None:
        self.ended.append(token.number)


@dataclass
class World:
    """The gate and what stands around it."""

    store: FakeStore
    trail: FakeTrail
    tokens: FakeTokens
    callers: Callers
    gate: Gate
    make_token: Callable[..., Token]

    def add(self, **fields: Any) -> Secret:
        """A token in the store; answers its text."""
        number = TokenNumber(len(self.store.rows) + 1)
        text = new_token(number)
        self.store.rows[number] = self.make_token(number=number, digest=self.callers.digest(text), **fields)
        return text


@pytest.fixture
def world(make_token: Callable[..., Token]) -> World:
    store, trail, tokens = FakeStore(), FakeTrail(), FakeTokens()
    scribe = Scribe(Hasher(b"h" * 32))
    callers = Callers(store, scribe, b"k" * 32, TokenCache(size=10, hold_ms=500))  # type: ignore[arg-type]
    gate = Gate(callers, tokens, trail, scribe, store)  # type: ignore[arg-type]
    return World(store, trail, tokens, callers, gate, make_token)


def incoming(token: Secret | None, operation: str = "read", path: str = "auth/token/lookup-self") -> Incoming:
    """An operation with a secret in its data."""
    return Incoming(
        id="1",
        operation=operation,
        path=path,
        mount=None,
        data={"password": "hunter22"},
        token=token,
        remote_address="192.0.2.1",
    )


async def test_a_passage_is_on_record_before_it_is_given(world: World) -> None:
    """The request entry has who and what, and no secret."""
    text = world.add(policies=("root",))
    passage = await world.gate.admit(incoming(text))
    ((entry,),) = world.trail.batches
    assert entry["type"] == "request"
    assert entry["auth"]["policies"] == ["root"]
    assert entry["auth"]["policy_results"]["allowed"] is True
    assert entry["request"]["remote_address"] == "192.0.2.1"
    assert passage.token.number == TokenNumber(1)
    written = json.dumps(world.trail.batches)
    assert "hunter22" not in written
    assert text.reveal() not in written


async def test_the_answer_repeats_its_request(world: World) -> None:
    """The response entry carries the same id and caller."""
    passage = await world.gate.admit(incoming(world.add()))
    await world.gate.answer(passage, AuditResponse(lease_id="a/b"), "")
    request, response = world.trail.batches[0][0], world.trail.batches[1][0]
    assert response["type"] == "response"
    assert response["request"] == request["request"]
    assert response["response"]["secret"] == {"lease_id": "a/b"}


@pytest.mark.parametrize(
    "text", ["", "s.", "nonsense", "hvs.CAESI", "s." + "z" * 33, "s." + "0" * 33, "é" * 20, "a" * 10_000, "\udc80"]
)
async def test_what_is_no_token_is_denied_and_recorded(world: World, text: str) -> None:
    """In Vault's words, with both entries in one flush."""
    with pytest.raises(PermissionDenied, match="2 errors occurred:\n\t\\* permission denied\n\t\\* invalid token\n\n"):
        await world.gate.admit(incoming(Secret(text)))
    ((request, response),) = world.trail.batches
    assert (request["error"], response["error"]) == ("permission denied", "permission denied")
    assert "auth" not in request


@pytest.mark.parametrize("text", [None, "s.none", "spent"])
async def test_nothing_that_strangers_send_is_recorded(world: World, text: str | None) -> None:
    """Whoever has no valid token leaves a path and an address: the log does not grow by what their requests hold."""
    spent = world.add(uses_left=0, num_uses=1)
    shown = spent if text == "spent" else text and Secret(text)
    with pytest.raises(PermissionDenied):
        await world.gate.admit(incoming(shown or None))
    ((request, response),) = world.trail.batches
    assert request["request"] == response["request"]
    assert request["request"]["remote_address"] == "192.0.2.1"
    assert "data" not in request["request"]


async def test_no_token_is_denied_and_recorded(world: World) -> None:
    """A request without a token is named as such by its text."""
    with pytest.raises(PermissionDenied, match=r"^permission denied$"):
        await world.gate.admit(incoming(None))
    assert len(world.trail.batches) == 1


async def test_anothers_number_opens_nothing(world: World) -> None:
    """A text with the number of a real token and other random characters is no token."""
    text = world.add().reveal()
    forged = Secret(text[:-1] + ("A" if text[-1] != "A" else "B"))
    with pytest.raises(PermissionDenied):
        await world.gate.admit(incoming(forged))


async def test_what_policies_deny_is_recorded_with_its_caller(world: World) -> None:
    """The audit log says who tried, and that it was not allowed."""
    text = world.add(policies=("default",))
    with pytest.raises(PermissionDenied, match="1 error occurred:\n\t\\* permission denied\n\n"):
        await world.gate.admit(incoming(text, path="database/creds/app"))
    ((request, _),) = world.trail.batches
    assert request["auth"]["policy_results"]["allowed"] is False
    assert request["auth"]["accessor"].startswith("hmac-sha256:")


async def test_nothing_passes_without_a_record(world: World) -> None:
    """When the audit log can't be written, neither passage nor denial is given."""
    text = world.add()
    world.trail.broken = True
    with pytest.raises(AuditUnavailable):
        await world.gate.admit(incoming(text))
    with pytest.raises(AuditUnavailable):
        await world.gate.admit(incoming(None))


async def test_a_known_token_costs_no_question(world: World) -> None:
    """Until it was held long enough."""
    text = world.add()
    for _ in range(3):
        await world.gate.admit(incoming(text))
    assert world.store.asked == 1
    world.store.now += 500
    await world.gate.admit(incoming(text))
    assert world.store.asked == 2


async def test_a_token_that_ends_while_it_is_read_is_not_remembered(world: World) -> None:
    """The store answered, then the token was forgotten, then the answer arrived."""
    text = world.add()
    world.store.on_read = lambda: world.callers.forget([TokenNumber(1)])
    await world.callers.find(text)
    del world.store.rows[TokenNumber(1)]
    assert await world.callers.find(text) is None


async def test_each_use_is_taken_before_anything_else(world: World) -> None:
    """A denied request costs a use too, and the last one ends the token."""
    text = world.add(policies=("default",), uses_left=3, num_uses=3)
    await world.gate.admit(incoming(text))
    with pytest.raises(PermissionDenied):
        await world.gate.admit(incoming(text, path="database/creds/app"))
    assert world.tokens.ended == []
    passage = await world.gate.admit(incoming(text))
    assert passage.last_use
    await world.gate.answer(passage, None)
    assert world.tokens.ended == [TokenNumber(1)]
    with pytest.raises(PermissionDenied):
        await world.gate.admit(incoming(text))


async def test_a_denied_last_use_ends_the_token(world: World) -> None:
    """The token is of no use any longer."""
    text = world.add(policies=("default",), uses_left=1, num_uses=1)
    with pytest.raises(PermissionDenied):
        await world.gate.admit(incoming(text, path="database/creds/app"))
    assert world.tokens.ended == [TokenNumber(1)]


async def test_the_last_use_ends_the_token_even_when_the_record_fails(world: World) -> None:
    """Taking access away does not wait for the audit log."""
    passage = await world.gate.admit(incoming(world.add(uses_left=1, num_uses=1)))
    world.trail.broken = True
    with pytest.raises(AuditUnavailable):
        await world.gate.answer(passage, None)
    assert world.tokens.ended == [TokenNumber(1)]


async def test_an_issue_is_left_to_be_recorded(world: World) -> None:
    """The issuer shares one flush among many, so the gate writes nothing."""
    passage = await world.gate.admit_issue(incoming(world.add()))
    assert world.trail.batches == []
    assert json.loads(passage.hand_over())["type"] == "request"
    await world.gate.answer(passage, None, "failed")
    assert [[entry["type"] for entry in batch] for batch in world.trail.batches] == [["response"]]


async def test_an_answer_never_stands_without_its_request(world: World) -> None:
    """What fails before anybody took the request entry over is recorded with it, in one flush."""
    passage = await world.gate.admit_issue(incoming(world.add()))
    await world.gate.answer(passage, None, "not a name")
    ((request, response),) = world.trail.batches
    assert (request["type"], response["type"], response["error"]) == ("request", "response", "not a name")
    assert request["request"] == response["request"]


async def test_the_last_use_of_a_token_issues_nothing(world: World) -> None:
    """Its lease would end with it at once, so none is made; Vault's words, on record."""
    text = world.add(uses_left=1, num_uses=1)
    with pytest.raises(InvalidRequest, match=r"^Secret cannot be returned; token had one use left"):
        await world.gate.admit_issue(incoming(text))
    assert [[entry["type"] for entry in batch] for batch in world.trail.batches] == [["request", "response"]]
    assert world.tokens.ended == [TokenNumber(1)]
