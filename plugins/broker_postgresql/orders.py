"""Running a role's own statements so that nothing leaks and nothing escapes.

The statements travel as values of settings (parameters of a prepared query), and a block whose text is always the same runs them:
so neither `pg_stat_activity`, nor `pg_stat_statements`, nor the server's log shows a password or verifier. A log that holds parameters
too shows a placeholder in their place (see `veil`). Inside the block COMMIT, ROLLBACK and SAVEPOINT are refused by the server, a changed
role is seen, and in the end what the statements SET is reset. Each order is a subtransaction of its own: one that fails leaves nothing
and hurts no other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from broker.errors import EngineError
from broker.secret import random_text
from broker_postgresql.quoting import identifier
from broker_postgresql.session import NOTHING_GRANTED, NOTHING_REVOKED, Notice, Session
from broker_postgresql.veil import NEW_KEY, SETTING

TAKEN = "BR001"
ESCAPED = "BR002"
NOT_MADE = "BR003"
SUPERUSER = "BR004"
MISSING = "BR005"
_FINE = "00000"
_ANSWER = re.compile(r"broker (\d+) ([0-9A-Z]{5}) (.*)", re.DOTALL)
# $1 keys, $2 values, $3 the place in the list of secrets of the one that belongs to each, $4 what stands for it, $5 that list under its
# veil, whose first pad is number $6. Its last entry is $4 again: otherwise the server has lost the veil's key, or has another, and 0 is
# answered. Aggregates would double its time.
_SEND = f"""SELECT count(set_config('broker.' || k, replace(v, $4::text, coalesce(secrets[place], '')), false))
FROM (
  SELECT string_to_array(convert_from(substr(varbit_send($5::varbit OPERATOR(pg_catalog.#)
    ('x' || left(encode({{pads}}, 'hex'), length($5::varbit) / 4))::varbit), 5), 'UTF8'), chr(10)) AS secrets
  FROM (SELECT decode(nullif(current_setting('{SETTING}', true), ''), 'hex') AS key OFFSET 0) AS kept
  OFFSET 0
) AS unveiled, unnest($1::text[], $2::text[], $3::int[]) AS s (k, v, place)
WHERE secrets[cardinality(secrets)] OPERATOR(pg_catalog.=) $4::text"""  # noqa: S608 - of our own constant
_MARKS = "abcdefghijklmnopqrstuvwxyz"
_SCHEMAS = "SET LOCAL search_path = public, pg_temp;\n"
"""For the role's statements alone: theirs are written for an ordinary session, everything else names its schema."""

# Every expression that runs is parsed and planned anew, 15 microseconds and more each: hence so few, and no loop or record. N is the
# order's number. Role look-ups go through to_regrole, since the view pg_roles alone takes 100 microseconds to plan.
_FRAME = """DO $broker$
DECLARE
  key text := pg_catalog.current_setting('broker.key', true);
  login name := session_user;
  acting name := current_user;
  made oid;
BEGIN
  {sections}
  RESET ALL;
  PERFORM pg_catalog.set_config('broker.key', key, false);
END $broker$"""
_NO_SUPERUSER = "the user would be, or could become, a superuser, which nothing could contain"
# OTHERS are all errors but this one, whose context would be logged with the statement in it.
_SECTION = """BEGIN
    {before}
    EXECUTE pg_catalog.current_setting('broker.v#');
    {after}
    RAISE INFO 'broker # 00000 %', made;
  EXCEPTION WHEN query_canceled OR OTHERS THEN
    {failed}
  END;"""
_FREE = f"""IF pg_catalog.to_regrole(pg_catalog.current_setting('broker.n#')) IS NOT NULL THEN
      RAISE EXCEPTION USING ERRCODE = '{TAKEN}', MESSAGE = 'a role of that name exists already';
    END IF;"""
_THERE = f"""IF pg_catalog.to_regrole(pg_catalog.current_setting('broker.n#'))::pg_catalog.oid
      IS DISTINCT FROM pg_catalog.current_setting('broker.o#')::pg_catalog.oid THEN
      RAISE EXCEPTION USING ERRCODE = '{MISSING}', MESSAGE = 'the user is not there';
    END IF;"""
# RESET ROLE leads back to our login, also where a creator role was set before.
_SAME_ROLE = f"""IF current_user OPERATOR(pg_catalog.=) login AND login OPERATOR(pg_catalog.<>) acting THEN
      PERFORM pg_catalog.set_config('role', acting, false);
    END IF;
    IF current_user OPERATOR(pg_catalog.<>) acting OR session_user OPERATOR(pg_catalog.<>) login THEN
      RAISE EXCEPTION USING ERRCODE = '{ESCAPED}', MESSAGE = 'the statements left another role set; end them with RESET ROLE';
    END IF;
    PERFORM pg_catalog.pg_advisory_unlock_all();"""
_MADE = f"""made := pg_catalog.to_regrole(pg_catalog.current_setting('broker.n#'));
    IF made IS NULL THEN
      RAISE EXCEPTION USING ERRCODE = '{NOT_MADE}', MESSAGE = 'the statements made no role of the name in {{{{name}}}}';
    END IF;"""
# Asked last, since both the role's statements and the groups that it names may make one. Every superuser counts as a member of 10,
# the role that the cluster was made with; whoever is a member of a superuser could become it, which is looked up only where needed.
_HARMLESS = f"""IF pg_catalog.pg_has_role(made, 10::pg_catalog.oid, 'MEMBER') THEN
      RAISE EXCEPTION USING ERRCODE = '{SUPERUSER}', MESSAGE = '{_NO_SUPERUSER}';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_auth_members m WHERE m.member OPERATOR(pg_catalog.=) made) THEN
      IF EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolsuper AND pg_catalog.pg_has_role(made, r.oid, 'MEMBER')) THEN
        RAISE EXCEPTION USING ERRCODE = '{SUPERUSER}', MESSAGE = '{_NO_SUPERUSER}';
      END IF;
    END IF;"""  # noqa: S608 - of our own constants
_OURS = "EXECUTE pg_catalog.current_setting('broker.a#');"
# What is the server's own failure is raised anew, since the error's context, which is logged, quotes the statement.
_FAILED = """IF SQLSTATE ~ '^(25|53|57|58)' AND SQLSTATE <> '25001' THEN
      RAISE EXCEPTION USING ERRCODE = SQLSTATE,
        MESSAGE = pg_catalog.replace(SQLERRM, pg_catalog.current_setting('broker.s#'), '[secret]');
    END IF;
    RAISE INFO 'broker # % %', SQLSTATE, pg_catalog.replace(SQLERRM, pg_catalog.current_setting('broker.s#'), '[secret]');"""
_FAILED_TO_MAKE = f"""IF SQLSTATE = '42710' AND pg_catalog.to_regrole(pg_catalog.current_setting('broker.n#')) IS NOT NULL THEN
      RAISE INFO 'broker # {TAKEN} a role of that name exists already';
    ELSE
      {_FAILED}
    END IF;"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Statements to run for one user, and what is done to it afterwards in the same subtransaction."""

    name: str
    statements: str = ""
    """The role's own, rendered."""
    ours: str = ""
    """Statements of this engine, run after them."""
    secret: str = ""
    """What must not stand in an error's text."""
    oid: int | None = None
    """The OID under which the user must be there before; None where the order makes it, and nobody may be there before."""


@dataclass(frozen=True, slots=True)
class Done:
    """How one order ended: with `oid` (of a user that was made), or with an error's code and text, and perhaps with warnings."""

    oid: int | None = None
    sqlstate: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()


async def run_orders(session: Session, orders: Sequence[Order]) -> list[Done]:
    """How each order ended, in their order; all run in one transaction, committed on return.

    Raises what the driver raises when the server itself fails, and has then done none of them.
    """
    await _send(session, orders)
    kinds = tuple((order.oid is None, bool(order.statements)) for order in orders)
    return _answers(await session.run(_block(kinds)), len(orders))


async def _send(session: Session, orders: Sequence[Order]) -> None:
    """Hands the orders' values over; the server may have lost the key of the veil, and is then given a new one."""
    mark = f"[{random_text(20, _MARKS)}]"
    keys, values, places = [], [], []
    for place, order in enumerate(orders):
        for key, value in _values(order, mark).items():
            keys.append(f"{key}{place}")
            values.append(value)
            places.append(place + 1)
    for _ in range(2):
        if not session.veil.key:
            [[key]] = await session.rows(NEW_KEY)
            session.veil.take(key)
        veiled = session.veil.cover([*(order.secret for order in orders), mark])
        [[sent]] = await session.rows(_sending(veiled.pads), keys, values, places, mark, veiled.bits, veiled.first)
        if sent:
            return
        session.veil.key = b""
    raise EngineError("the server did not keep the session's settings")


@lru_cache(maxsize=64)
def _sending(pads: int) -> str:
    """The query that hands values over, for so many pads: for one order always the same."""
    return _SEND.format(pads=" || ".join(f"sha256(key || int8send($6::bigint + {number}))" for number in range(pads)))


def _values(order: Order, mark: str) -> dict[str, str]:
    """What the statements of one order look for; `mark` stands where its secret belongs."""
    first, then = (_SCHEMAS + order.statements, order.ours) if order.statements else (order.ours, "")
    if order.secret:
        first, then = first.replace(order.secret, mark), then.replace(order.secret, mark)
    secret = mark if order.secret else ""
    return {"n": identifier(order.name), "v": first, "a": then, "s": secret, "o": str(order.oid or 0)}


@lru_cache(maxsize=256)
def _block(kinds: tuple[tuple[bool, bool], ...]) -> str:
    """The block for orders of these kinds: whether they make a user, whether a role's own statements stand in them."""
    sections = (_section(*kind).replace("#", str(place)) for place, kind in enumerate(kinds))
    return _FRAME.format(sections="\n  ".join(sections))


def _section(makes: bool, foreign: bool) -> str:  # noqa: FBT001 - its kind, see `_block`
    after = [_SAME_ROLE] if foreign else []
    after += [_MADE] if makes else []
    after += [_OURS] if foreign else []
    after += [_HARMLESS] if makes else []
    return _SECTION.format(
        before=_FREE if makes else _THERE, after="\n    ".join(after), failed=_FAILED_TO_MAKE if makes else _FAILED
    )


def _answers(notices: Sequence[Notice], count: int) -> list[Done]:
    done = [Done(sqlstate="XX000", message="the server did not answer for this order")] * count
    warnings: list[str] = []
    for notice in notices:
        answer = _ANSWER.fullmatch(notice.message) if notice.sqlstate == _FINE else None
        if answer is not None and int(answer[1]) < count:
            done[int(answer[1])] = _done(answer[2], answer[3], tuple(warnings))
            warnings.clear()
        elif notice.sqlstate in (NOTHING_GRANTED, NOTHING_REVOKED):
            warnings.append(notice.message)
    return done


def _done(sqlstate: str, text: str, warnings: tuple[str, ...]) -> Done:
    if sqlstate != _FINE:
        return Done(sqlstate=sqlstate, message=text, warnings=warnings)
    return Done(oid=int(text) if text.isdecimal() else None, warnings=warnings)
