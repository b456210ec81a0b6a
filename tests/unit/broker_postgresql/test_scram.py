"""Verifiers and the pairs that are made ahead."""

from __future__ import annotations

import asyncio
import itertools
import re

import pytest

from broker.errors import EngineError
from broker.secret import Secret
from broker_postgresql import scram
from broker_postgresql.scram import Stock, check_form, verifier


def test_verifier_is_that_of_the_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of RFC 7677 section 3: password, salt and iterations yield its proofs' keys."""
    salt = b"\x5b\x6d\x99\x68\x9d\x12\x35\x8e\xec\xa0\x4b\x14\x12\x36\xfa\x81"
    monkeypatch.setattr(scram, "random_bytes", lambda _count: salt)
    made = verifier(Secret("pencil"), 4096).reveal()
    assert made == GOOD


def test_salts_differ() -> None:
    """One password has a new verifier each time."""
    assert verifier(Secret("pencil"), 1) != verifier(Secret("pencil"), 1)


GOOD = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
    ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "plain",
        GOOD + " ",
        " " + GOOD,
        GOOD + "\n",
        GOOD.lower(),
        GOOD[:-1],
        GOOD.replace("$4096", "$0"),
        GOOD.replace("$4096", "$-1"),
        GOOD.replace("$4096", "$4294967296"),
        GOOD.replace("==$", "$"),
        GOOD.replace("WG5d", "WG5*"),
        re.sub(r":w.*", ":", GOOD),
    ],
)
def test_malformed_verifiers_are_refused(bad: str) -> None:
    """Whatever the server would take for a plain password is refused, without being shown."""
    check_form(Secret(GOOD))
    with pytest.raises(EngineError) as caught:
        check_form(Secret(bad))
    assert not bad.strip() or bad not in str(caught.value)


async def test_stock_hands_each_pair_out_once() -> None:
    """Pairs are never shared, match their passwords, and are made ahead again after some were taken."""
    numbers = itertools.count()
    stock = Stock(lambda: Secret(f"password-{next(numbers)}"), 1)
    taken = [await stock.take() for _ in range(100)]
    assert len({pair.text.reveal() for pair in taken}) == 100
    for pair in taken:
        check_form(pair.verifier)
    async with asyncio.timeout(10):
        while len(stock._ready) < scram.STOCK:
            await asyncio.sleep(0.001)
    await stock.close()
    assert not stock._ready
    await stock.close()


@pytest.mark.parametrize(("passes_s", "paused"), [(0, True), (1, False)])
async def test_stock_is_filled_slowly_while_others_are_served(
    monkeypatch: pytest.MonkeyPatch, passes_s: int, *, paused: bool
) -> None:
    """Once there are some, a batch takes its time while anybody is served, by another connection too; otherwise none waits."""
    now_s, pauses = itertools.count(step=passes_s), list[float]()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(scram, "stopwatch_s", lambda: float(next(now_s)))
    monkeypatch.setattr(scram.asyncio, "sleep", pause)
    stock = Stock(lambda: Secret("password"), 1)
    Stock.put_off()
    await stock._fill()
    batches = -(-(scram.STOCK - scram._LOW) // scram._AT_ONCE)
    assert pauses == ([scram._QUIET_S] * batches if paused else [])
