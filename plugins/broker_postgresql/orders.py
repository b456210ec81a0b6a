"""Running a role's own statements so that nothing leaks and nothing escapes.

The statements travel as the value of a setting (a parameter of a prepared query), and a constant block runs them: so neither
`pg_stat_activity`, nor `pg_stat_statements`, nor the server's log shows a password or verifier. Inside the block COMMIT, ROLLBACK
and SAVEPOINT are refused by the server, a changed role is seen, and what the statements SET is reset. Each order is a
subtransaction of its own: one that fails leaves nothing and hurts no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from broker_postgresql.session import NOTHING_GRANTED, NOTHING_REVOKED, Notice, Session

TAKEN = "BR001"
ESCAPED = "BR002"
NOT_MADE = "BR003"
SUPERUSER = "BR004"
MISSING = "BR005"
ADVISORY_KEY = 0x62726F6B6572
"""`broker`: held while statements run that grant on objects, once such statements have collided."""
_SEND = "SELECT set_config('broker.orders', $1, false), set_config('broker.serial', $2, false)"
_INFO = "00000"

_RUN = f"""
DO $broker$
DECLARE
  o record;
  made oid;
  made_super boolean;
  login text := session_user;
BEGIN
  IF pg_catalog.current_setting('broker.serial') = 'on' THEN
    PERFORM pg_catalog.pg_advisory_xact_lock({ADVISORY_KEY});
  END IF;
  FOR o IN SELECT * FROM pg_catalog.json_to_recordset(pg_catalog.current_setting('broker.orders')::pg_catalog.json) AS
      x (place int, name text, oid oid, makes boolean, statements text, secret text, ours text, attributes text,
        lifetime_ms int8, marker text)
  LOOP
    made := NULL;
    BEGIN
      IF o.makes AND EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = o.name) THEN
        RAISE EXCEPTION USING ERRCODE = '{TAKEN}', MESSAGE = 'a role of that name exists already';
      END IF;
      IF pg_catalog.pg_get_userbyid(o.oid) <> o.name THEN
        RAISE EXCEPTION USING ERRCODE = '{MISSING}', MESSAGE = 'the user is not there';
      END IF;
      IF o.statements <> '' THEN
        PERFORM pg_catalog.set_config('search_path', 'public, pg_temp', true);
        EXECUTE o.statements;
        EXECUTE 'RESET ALL';
        PERFORM pg_catalog.pg_advisory_unlock_all();
        IF current_user <> login OR session_user <> login THEN
          RAISE EXCEPTION USING ERRCODE = '{ESCAPED}', MESSAGE = 'the statements left another role set; end them with RESET ROLE';
        END IF;
      END IF;
      IF o.ours <> '' THEN
        EXECUTE o.ours;
      END IF;
      IF o.makes THEN
        SELECT oid, rolsuper INTO made, made_super FROM pg_catalog.pg_roles WHERE rolname = o.name;
        IF made IS NULL THEN
          RAISE EXCEPTION USING ERRCODE = '{NOT_MADE}', MESSAGE = 'the statements made no role of the name in {{{{name}}}}';
        ELSIF made_super THEN
          RAISE EXCEPTION USING ERRCODE = '{SUPERUSER}', MESSAGE = 'the statements made a superuser, which nothing could contain';
        END IF;
        EXECUTE pg_catalog.format('COMMENT ON ROLE %I IS %L', o.name, o.marker);
      END IF;
      IF o.lifetime_ms IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER ROLE %I %s VALID UNTIL %L', o.name, o.attributes,
          pg_catalog.clock_timestamp() + o.lifetime_ms * interval '1 millisecond');
      END IF;
      RAISE INFO USING MESSAGE = pg_catalog.json_build_object('place', o.place, 'oid', made);
    EXCEPTION WHEN OTHERS THEN
      IF pg_catalog.left(SQLSTATE, 2) IN ('25', '53', '57', '58') AND SQLSTATE <> '25001' THEN
        -- Raised anew, since the error's own context, which is logged, quotes the statement.
        RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = pg_catalog.replace(SQLERRM, o.secret, '[secret]');
      END IF;
      RAISE INFO USING MESSAGE = pg_catalog.json_build_object('place', o.place, 'message',
        pg_catalog.replace(SQLERRM, o.secret, '[secret]'), 'sqlstate', CASE WHEN o.makes AND SQLSTATE = '42710'
        AND EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = o.name) THEN '{TAKEN}' ELSE SQLSTATE END);
    END;
  END LOOP;
  PERFORM pg_catalog.set_config('broker.orders', '', false);
END $broker$"""  # noqa: S608 - of our own constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Statements to run for one user, and what is done to it afterwards in the same subtransaction."""

    name: str
    statements: str = ""
    """The role's own, rendered."""
    oid: int | None = None
    """The OID under which the user must be there before; None asks for nothing."""
    secret: str = ""
    """What must not stand in an error's text."""
    makes: bool = False
    """Whether the user must not be there before and must be there afterwards, marked."""
    ours: str = ""
    """Statements of this engine."""
    attributes: str = ""
    """What is set together with the expiry, e.g. NOLOGIN."""
    lifetime_ms: int | None = None
    """From now on, by the server's clock; None leaves the expiry alone."""
    marker: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """How one order ended: with `oid` (of a user that was made), or with an error's code and text, and perhaps with warnings."""

    oid: int | None = None
    sqlstate: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()


async def run_orders(session: Session, orders: Sequence[Order], *, serial: bool) -> list[Done]:
    """How each order ended, in their order; all run in one transaction, committed on return.

    `serial` keeps all who ask for it from running at the same time. Raises what the driver raises when the server
    itself fails, and has then done none of them.
    """
    payload = orjson.dumps([{"place": place, **asdict(order)} for place, order in enumerate(orders)]).decode()
    await session.rows(_SEND, payload, "on" if serial else "off")
    return _answers(await session.run(_RUN), len(orders))


def _answers(notices: Sequence[Notice], count: int) -> list[Done]:
    done = [Done(sqlstate="XX000", message="the server did not answer for this order")] * count
    warnings: list[str] = []
    for notice in notices:
        # Whatever the statements themselves raise as INFO is no object with a place.
        answer = _ours(notice)
        if answer is not None:
            place = answer["place"]
            done[place] = Done(
                oid=answer.get("oid"),
                sqlstate=answer.get("sqlstate", ""),
                message=answer.get("message", ""),
                warnings=tuple(warnings),
            )
            warnings.clear()
        elif notice.sqlstate in (NOTHING_GRANTED, NOTHING_REVOKED):
            warnings.append(notice.message)
    return done


def _ours(notice: Notice) -> dict[str, Any] | None:
    if notice.sqlstate != _INFO or not notice.message.startswith('{"place" :'):
        return None
    answer = orjson.loads(notice.message)
    return answer if isinstance(answer, dict) else None
