"""Running a role's own statements so that nothing leaks and nothing escapes.

The statements travel as values of settings (parameters of a prepared query), and a routine whose text is always the same runs them:
so neither `pg_stat_activity`, nor `pg_stat_statements`, nor the server's log shows a password or verifier. A log that holds parameters
too shows a placeholder in their place (see `veil`). Inside the routine COMMIT, ROLLBACK and SAVEPOINT are refused by the server, a changed
role is seen, and in the end what the statements SET is reset. Each order is a subtransaction of its own: one that fails leaves nothing
and hurts no other.

The routine is a function that each connection keeps for itself, called with what hands the values over: compiled and planned anew each
time it would take twice as long. The first time, and where our login may make no temporary objects, it is a DO block; so what is done once,
as for a check, leaves no function behind while the connection lasts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import asyncpg

from broker.errors import EngineError
from broker_postgresql import schemas
from broker_postgresql.quoting import identifier
from broker_postgresql.schemas import ALWAYS, CLOSED, OPEN, UNCHANGED
from broker_postgresql.session import NOTHING_GRANTED, NOTHING_REVOKED, Notice, Session
from broker_postgresql.veil import NEW_KEY, SETTING

Kinds: TypeAlias = tuple[tuple[bool, bool], ...]
"""Of each order whether it makes a user, and whether a role's own statements stand in it."""
TAKEN = "BR001"
ESCAPED = "BR002"
NOT_MADE = "BR003"
SUPERUSER = "BR004"
MISSING = "BR005"
_FINE = "00000"
_ANSWER = re.compile(r"broker (\d+) ([0-9A-Z]{5}) (.*)", re.DOTALL)
# $1 values, whose keys are written in, $2 what stands for a secret in them: the one of the same order. $3 is the list of secrets under its
# veil, whose first pad is number $4. Its last entry is $2 again: otherwise the server has lost the veil's key, or has another, and 0 is
# answered. Aggregates would double its time.
_SEND = f"""SELECT count(set_config('broker.' || k, replace(v, $2::text, coalesce(secrets[place], '')), false))
FROM (
  SELECT string_to_array(convert_from(substr(varbit_send($3::varbit OPERATOR(pg_catalog.#)
    ('x' || left(encode({{pads}}, 'hex'), length($3::varbit) / 4))::varbit), 5), 'UTF8'), chr(10)) AS secrets
  FROM (SELECT decode(nullif(current_setting('{SETTING}', true), ''), 'hex') AS key OFFSET 0) AS kept
  OFFSET 0
) AS unveiled, unnest('{{{{{{keys}}}}}}'::text[], $1::text[], '{{{{{{places}}}}}}'::int[]) AS s (k, v, place)
WHERE secrets[cardinality(secrets)] OPERATOR(pg_catalog.=) $2::text"""  # noqa: S608 - of our own constant
_KEYS = "nvasop"
"""Name, what is run first, what is run after it, its secret, its OID, in which version of its rights `public` is searched."""

_HAND_OVER_AND = "SELECT handed.sent, CASE WHEN handed.sent > 0 THEN {call} END FROM ({send}) AS handed (sent)"
_FUNCTION = "CREATE FUNCTION {call} RETURNS void LANGUAGE plpgsql AS $broker${body}$broker$"
_BLOCK = "DO $broker${body}$broker$"
_KEPT_MOST = 4
"""Orders in a function that is kept; more come rarely together."""

# In a DO block every expression that runs is parsed and planned anew, 15 microseconds and more each: hence so few, and no loop or
# record. # is the order's number. Role look-ups go through to_regrole, since the view pg_roles alone takes 100 microseconds to plan.
_BODY = """
DECLARE
  key text := pg_catalog.current_setting('broker.key', true);
  login name := session_user;
  acting name := current_user;
  made oid;
  scans text := pg_catalog.current_setting('enable_seqscan');
  done text;
BEGIN
  {sections}
  RESET ALL;
  PERFORM pg_catalog.set_config('broker.key', key, false);
END """
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
# the role that the cluster was made with; whoever is a member of a superuser could become it. Looked up by index, upwards from the user,
# also where the plan was made while there were few roles: the roles of a busy cluster are read in half a millisecond for 20,000.
_HARMLESS = f"""IF pg_catalog.pg_has_role(made, 10::pg_catalog.oid, 'MEMBER') THEN
      RAISE EXCEPTION USING ERRCODE = '{SUPERUSER}', MESSAGE = '{_NO_SUPERUSER}';
    END IF;
    done := pg_catalog.set_config('enable_seqscan', 'off', true);
    IF EXISTS (
      WITH RECURSIVE above (oid) AS (
        SELECT m.roleid FROM pg_catalog.pg_auth_members m WHERE m.member OPERATOR(pg_catalog.=) made
        UNION SELECT further.roleid FROM above, LATERAL (
          SELECT m.roleid FROM pg_catalog.pg_auth_members m WHERE m.member OPERATOR(pg_catalog.=) above.oid OFFSET 0
        ) AS further
      ) SELECT FROM above, LATERAL (
        SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) above.oid AND r.rolsuper OFFSET 0
      ) AS chief
    ) THEN
      RAISE EXCEPTION USING ERRCODE = '{SUPERUSER}', MESSAGE = '{_NO_SUPERUSER}';
    END IF;
    done := pg_catalog.set_config('enable_seqscan', scans, true);"""  # noqa: S608 - of our own constants
# For the role's statements alone: theirs are written for an ordinary session, everything else names its schema.
_SCHEMAS = f"""PERFORM pg_catalog.set_config('search_path',
      CASE WHEN pg_catalog.current_setting('broker.p#') OPERATOR(pg_catalog.=) '{ALWAYS}' THEN '{OPEN}'
        WHEN pg_catalog.current_setting('broker.p#') OPERATOR(pg_catalog.=) {UNCHANGED} THEN '{OPEN}' ELSE '{CLOSED}' END, true);"""
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
    kinds = tuple((order.oid is None, bool(order.statements)) for order in orders)
    public = [await _public(session, order) for order in orders]
    call = await _kept(session, kinds)
    try:
        await _send(session, orders, call, public)
    except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError):
        # What the role's statements raise stays in the routine, so it is the call that failed: of what was dropped, or is not allowed.
        if not call:
            raise
        session.routines = None
        return await run_orders(session, orders)
    if not call:
        await session.run(_BLOCK.format(body=_body(kinds)))
    done = _answers(session.notices, len(orders))
    lost = [place for place, one in enumerate(done) if schemas.not_found(one.sqlstate) and public[place] not in ("", ALWAYS)]
    if lost and await schemas.changed(session):
        for place, one in zip(lost, await run_orders(session, [orders[place] for place in lost]), strict=True):
            done[place] = one
        return done
    return [replace(one, message=one.message + schemas.hint(session, one.sqlstate)) if one.sqlstate else one for one in done]


async def _public(session: Session, order: Order) -> str:
    """In which version of its rights the order's statements find `public`."""
    if not order.statements:
        return ""
    return ALWAYS if schemas.calls_nothing(order.statements) else await schemas.version(session)


async def _kept(session: Session, kinds: Kinds) -> str:
    """The call of this connection's function for such orders, made when they come for the second time; empty where there is none."""
    if session.routines is None or len(kinds) > _KEPT_MOST:
        return ""
    if kinds not in session.seen:
        session.seen.add(kinds)
        return ""
    name = "_".join(
        ("broker", *(f"{'makes' if makes else 'finds'}{'_foreign' if foreign else ''}" for makes, foreign in kinds))
    )
    call = f"pg_temp.{name}()"
    if call not in session.routines:
        # A function of a creator would keep that role from being dropped.
        acting = session.acting
        await session.act_as("")
        try:
            await session.run(_FUNCTION.format(call=call, body=_body(kinds)))
        except asyncpg.InsufficientPrivilegeError:
            session.routines = None
            call = ""
        else:
            session.routines.add(call)
        await session.act_as(acting)
    return call


async def _send(session: Session, orders: Sequence[Order], call: str, public: Sequence[str]) -> None:
    """Hands the orders' values over, and makes the call if there is one.

    The server may have lost the key of the veil, and is then given a new one.
    """
    for _ in range(2):
        if not session.veil.key:
            [[key]] = await session.rows(NEW_KEY)
            session.veil.take(key)
        mark = session.veil.mark()
        values = [value for order, found in zip(orders, public, strict=True) for value in _values(order, mark, found)]
        veiled = session.veil.cover([*(order.secret for order in orders), mark])
        [row] = await session.rows(_sending(veiled.pads, len(orders), call), values, mark, veiled.bits, veiled.first)
        if row["sent"]:
            return
        session.veil.key = b""
    raise EngineError("the server did not keep the session's settings")


def _values(order: Order, mark: str, public: str) -> tuple[str, ...]:
    """What the statements of one order look for, in the order of `_KEYS`; `mark` stands where its secret belongs."""
    first, then = (order.statements, order.ours) if order.statements else (order.ours, "")
    if order.secret:
        first, then = first.replace(order.secret, mark), then.replace(order.secret, mark)
    return identifier(order.name), first, then, mark if order.secret else "", str(order.oid or 0), public


@lru_cache(maxsize=64)
def _sending(pads: int, orders: int, call: str) -> str:
    """The query that hands the values of so many orders over, and then makes the call; for one order always the same."""
    send = _SEND.format(
        pads=" || ".join(f"sha256(key || int8send($4::bigint + {number}))" for number in range(pads)),
        keys=",".join(f"{key}{place}" for place in range(orders) for key in _KEYS),
        places=",".join(str(place + 1) for place in range(orders) for _ in _KEYS),
    )
    return _HAND_OVER_AND.format(call=call or "NULL", send=send)


@lru_cache(maxsize=256)
def _body(kinds: Kinds) -> str:
    """The routine for orders of these kinds."""
    sections = (_section(*kind).replace("#", str(place)) for place, kind in enumerate(kinds))
    return _BODY.format(sections="\n  ".join(sections))


def _section(makes: bool, foreign: bool) -> str:  # noqa: FBT001 - its kind, see `Kinds`
    before = [_FREE if makes else _THERE, *([_SCHEMAS] if foreign else [])]
    after = [_SAME_ROLE] if foreign else []
    after += [_MADE] if makes else []
    after += [_OURS] if foreign else []
    after += [_HARMLESS] if makes else []
    return _SECTION.format(
        before="\n    ".join(before), after="\n    ".join(after), failed=_FAILED_TO_MAKE if makes else _FAILED
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
