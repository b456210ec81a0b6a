"""Revoke: a lease, or all under a prefix, ended by request."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from broker.audit.entry import NOBODY, Asked, AuditResponse
from broker.clock import stopwatch_s
from broker.errors import BrokerError, DatabaseUnavailable, EngineError, InvalidRequest
from broker.leases import lifecycle, records
from broker.leases.expire import Expirer, Outcomes
from broker.leases.lifecycle import Event
from broker.leases.parts import Parts
from broker.model import ConnectionNumber, Lease, LeaseNumber, LeaseState, Stage
from broker.store.words import Move

_PAGE = 1_000
_HELD = (LeaseState.PREPARED, LeaseState.ACTIVE, LeaseState.GRACE, LeaseState.STUCK, LeaseState.REVOKING)
_WAIT_S = 60
_FORGET_WITHIN_S = 20
"""Less than the half minute after which clients hang up."""
_LOOK_AGAIN_S = 0.1


class Revoker:
    """Ends leases when asked to. Asking for a lease that is not there succeeds, as in Vault."""

    def __init__(self, parts: Parts, expirer: Expirer) -> None:
        self._parts = parts
        self._expirer = expirer

    async def revoke(self, lease_id: str) -> None:
        """Ends the lease and returns when its user is proved gone.

        Raises `EngineError` with the reason when the first attempt fails; the lease is contained as far as that went, and is
        tried again in the background for ever.
        """
        number = self._parts.ids.lease_number(lease_id)
        with self._expirer.listen() as heard:
            if number is not None and await self._end(number):
                await self._wait(heard, [number])

    async def start(self, lease_id: str) -> None:
        """Ends the lease durably and returns; the rest happens in the background."""
        number = self._parts.ids.lease_number(lease_id)
        if number is not None:
            await self._end(number)

    async def revoke_prefix(self, prefix: str) -> None:
        """Ends every lease under a path (or the one lease, for a lease id) and returns when all their users are gone.

        Raises `InvalidRequest` in Vault's words for the first that failed; all are tried.
        """
        with self._expirer.listen() as heard:
            numbers = {*await self._unfinished(prefix), *await self._end_prefix(prefix)}
            await self._wait(heard, sorted(numbers))

    async def start_prefix(self, prefix: str) -> None:
        """As `revoke_prefix`, but returns when it is durable."""
        await self._end_prefix(prefix)

    async def forget_prefix(self, prefix: str) -> int:
        """Ends every lease under a path; those that can't be removed now are taken off the books, whatever the database says.

        Their users stay behind, contained as far as it went: this is the way out when a database will never come back. Answers how many
        do; the audit log names each one first. One failure of a database that is away stands for all of its leases. Raises
        `DatabaseUnavailable` where some are still being removed after `_FORGET_WITHIN_S`: those stay on the books.
        """
        with self._expirer.listen() as heard:
            numbers = sorted({*await self._unfinished(prefix), *await self._end_prefix(prefix)})
            failures = await self._failures(heard, numbers)
            forgotten = await self._forget(failures)
            if left := [number for number in heard.unheard(numbers) if number not in failures]:
                raise DatabaseUnavailable(
                    f"{forgotten} leases were taken off the books, their users could not be removed; {len(left)} more are still being "
                    "removed: ask again for what is left of them",
                    retry_after_s=_FORGET_WITHIN_S,
                )
        return forgotten

    async def forget_connections(self, numbers: Sequence[ConnectionNumber]) -> int:
        """Takes all leases and prepared users of these connections off the books at once; no database is asked.

        Answers how many users stay behind; the audit log names each one first. Intents under way are left to their issue, and to be
        asked for again. Raises `Unavailable` where they can't be written; some are off the books then.
        """
        count, why = 0, DatabaseUnavailable("its connection was deleted by force")
        for number, state in itertools.product(numbers, _HELD):
            while page := await self._parts.store.leases_at(number, state, beyond=None, limit=_PAGE):
                if state is LeaseState.PREPARED:
                    await self._parts.store.move([_unwanted(lease) for lease in page])
                forgotten = await self._forget({lease.number: why for lease in page})
                count += forgotten
                if not forgotten:
                    break
        return count

    async def _failures(self, heard: Outcomes, numbers: Sequence[LeaseNumber]) -> dict[LeaseNumber, BrokerError]:
        """Of which of these is known that they can't be removed, once that is known of all, or the time is up."""
        ends_s = stopwatch_s() + _FORGET_WITHIN_S
        while True:
            unheard = heard.unheard(numbers)
            away = await self._away(unheard)
            if len(away) == len(unheard) or stopwatch_s() >= ends_s:
                return {**heard.failures(numbers), **away}
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _away(self, numbers: Sequence[LeaseNumber]) -> dict[LeaseNumber, BrokerError]:
        """Those of these whose whole connection is held up, with the reason."""
        held_up = self._parts.held_up
        if not held_up:
            return {}
        return {
            lease.number: DatabaseUnavailable(held_up[lease.connection])
            for start in range(0, len(numbers), _PAGE)
            for lease in await self._parts.store.leases(numbers[start : start + _PAGE])
            if lease.connection in held_up
        }

    async def _end(self, number: LeaseNumber) -> bool:
        """Whether there is anything to wait for."""
        lease = await self._parts.store.lease(number)
        # One that is still being issued has no id that anybody knows.
        if lease is None or not lifecycle.live(lease.state) or lease.state is LeaseState.RESERVED:
            return False
        if lease.state in (LeaseState.ACTIVE, LeaseState.GRACE):
            await self._parts.store.move([self._ending(lease)])
        elif lease.state in lifecycle.expected(Event.DELAYED):
            # Asked again: what waits for its next attempt is tried at once.
            await self._parts.store.move([_hastened(lease)])
        self._parts.wake_expiry()
        return True

    async def _end_prefix(self, prefix: str) -> Sequence[LeaseNumber]:
        path = prefix.rstrip("/")
        number = self._parts.ids.lease_number(path)
        if number is not None:
            return [number] if await self._end(number) else []
        numbers = await self._parts.store.end_under(path)
        self._parts.wake_expiry()
        return numbers

    async def _unfinished(self, prefix: str) -> list[LeaseNumber]:
        path, after = prefix.rstrip("/"), LeaseNumber(0)
        found: list[LeaseNumber] = []
        while page := await self._parts.store.leases_in((LeaseState.REVOKING, LeaseState.STUCK), after=after, limit=_PAGE):
            after = page[-1].number
            mine = [lease for lease in page if not path or f"{lease.facts.path}/".startswith(f"{path}/")]
            await self._parts.store.move([_hastened(lease) for lease in mine])
            found.extend(lease.number for lease in mine)
        self._parts.wake_expiry()
        return found

    async def _forget(self, failures: Mapping[LeaseNumber, BrokerError]) -> int:
        numbers, count = sorted(failures), 0
        for start in range(0, len(numbers), _PAGE):
            leases = await self._parts.store.leases(numbers[start : start + _PAGE])
            request = records.new_request("revoke-force", f"{records.MOUNT.point}leases", {"leases": len(leases)})
            now, asked = self._parts.store.now_ms(), self._parts.scribe.asked(NOBODY, request)
            entries = [self._forgotten(now, asked, lease, failures[lease.number]) for lease in leases]
            await self._parts.trail.record([self._parts.scribe.request(now, asked), *entries])
            count += len(await self._parts.store.move([self._forgetting(lease) for lease in leases]))
        return count

    def _forgotten(self, now_ms: int, asked: Asked, lease: Lease, error: BrokerError) -> bytes:
        facts = lease.facts
        data = {
            "username": facts.username,
            "connection": facts.connection_name,
            "reason": "forced",
            "stage": int(lease.stage),
            "login_off": lease.stage >= Stage.LOGIN_OFF,
        }
        response = AuditResponse(mount=records.MOUNT, lease_id=self._parts.ids.lease_id(facts.path, lease.number), data=data)
        return self._parts.scribe.response(now_ms, asked, response, error=str(error))

    def _forgetting(self, lease: Lease) -> Move:
        return Move(
            number=lease.number,
            expect=lifecycle.expected(Event.FORGOTTEN),
            to=lifecycle.target(Event.FORGOTTEN),
            due_in_ms=self._parts.settings.tombstones * 1_000,
            stage=lease.stage,
            facts=replace(lease.facts, password=None, reason="forced"),
        )

    async def _wait(self, heard: Outcomes, numbers: Sequence[LeaseNumber]) -> None:
        try:
            async with asyncio.timeout(_WAIT_S):
                failures = await heard.of(numbers)
        except TimeoutError:
            raise DatabaseUnavailable("the revocation goes on in the background", retry_after_s=5) from None
        for position, number in enumerate(numbers, start=1):
            error = failures.get(number)
            if isinstance(error, EngineError):
                raise await self._failed(number, position, len(numbers), error)
            if error is not None:
                raise error

    async def _failed(self, number: LeaseNumber, position: int, count: int, error: EngineError) -> BrokerError:
        if isinstance(error, DatabaseUnavailable):
            leases = "the lease has ended, and its user is" if count == 1 else "the leases have ended, and their users are"
            return DatabaseUnavailable(
                f"{error}; {leases} removed as soon as the database is back, without being asked again",
                retry_after_s=error.retry_after_s,
            )
        if count == 1:
            return InvalidRequest(f"failed to revoke entry: resp: (*logical.Response)(nil) err: {error}")
        lease = await self._parts.store.lease(number)
        name = self._parts.ids.lease_id(lease.facts.path, number) if lease else str(number)
        return InvalidRequest(f'failed to revoke "{name}" ({position} / {count}): {error}')

    def _ending(self, lease: Lease) -> Move:
        now = self._parts.store.now_ms()
        return Move(
            number=lease.number,
            expect=lifecycle.expected(Event.ENDED),
            to=lifecycle.target(Event.ENDED),
            due_in_ms=0,
            facts=replace(lease.facts, password=None, reason="revoked", revoke_started_ms=now),
        )


def _unwanted(lease: Lease) -> Move:
    event = Event.UNWANTED
    return Move(number=lease.number, expect=lifecycle.expected(event), to=lifecycle.target(event), due_in_ms=0)


def _hastened(lease: Lease) -> Move:
    return Move(
        number=lease.number,
        expect=(lease.state,),
        to=lease.state,
        due_in_ms=0,
        stage=lease.stage if lease.state is LeaseState.REVOKING else Stage.NONE,
        attempts=lease.attempts,
        epoch=lease.epoch,
    )
