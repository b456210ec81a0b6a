"""When a user counts as ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from broker.bench import ending
from broker.bench.database import embedded_pair
from broker.bench.figures import Figure
from broker.errors import InvalidRequest


class Session:
    """Tells of its end when it is told to."""

    def __init__(self) -> None:
        self.terminated = False
        self.end: Callable[[object], None] = lambda _: None

    def add_termination_listener(self, listener: Callable[[object], None]) -> None:
        self.end = listener

    def terminate(self) -> None:
        self.terminated = True


def user_with(*sessions: Session) -> ending._User:
    return ending._User("lease", cast("Any", sessions))


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the stopwatch shows, in turn."""
    shown: list[float] = []
    monkeypatch.setattr(ending, "stopwatch_s", lambda: shown.pop(0))
    return shown


async def test_the_last_session_counts(times: list[float]) -> None:
    """A user is timed to the end of the session that was open longest; until then it has not ended."""
    times += [1.002, 1.050]
    primary, standby = Session(), Session()
    user = user_with(primary, standby)
    primary.end(primary)
    assert user.last_end_s() is None
    standby.end(standby)
    await user.ended()
    figure = ending._timed([user], Figure(done=1, seconds=2.0), [1.0])
    assert (figure.errors, figure.done, [round(us, -3) for us in figure.latencies_us]) == (0, 1, [50_000])


def test_a_session_that_stays_open_is_an_error(times: list[float]) -> None:
    """Such a user is counted as failed and not as fast."""
    times += [1.002]
    ended, open_still = Session(), Session()
    users = [user_with(ended), user_with(open_still)]
    ended.end(ended)
    figure = ending._timed(users, Figure(done=2, seconds=2.0), [1.0, 1.0])
    assert (figure.errors, figure.done, len(figure.latencies_us)) == (1, 1, 1)
    assert "still open" in figure.first_error


def test_a_server_of_somebody_else_gets_no_standby() -> None:
    """With a given database, a standby is refused with what to do, and nothing is started."""
    with pytest.raises(InvalidRequest, match="leave --dsn out"), embedded_pair("postgresql://elsewhere/x"):
        raise AssertionError("it was started")
