"""What all leases of one role have in common, made once for each revision of role and connection."""

from __future__ import annotations

from msgspec import Struct

from broker.catalog.connections import Connection
from broker.catalog.roles import Role
from broker.leases.recipe import recipe
from broker.model import LeaseFacts, Terms, UserName


class _Draft(Struct, frozen=True):
    role: Role
    connection: Connection
    facts: LeaseFacts


class Drafts:
    """The drafts of every role that was asked for; the catalog gives the same object until a role or connection changes."""

    def __init__(self) -> None:
        self._drafts: dict[str, _Draft] = {}

    def of(self, role: Role, connection: Connection) -> LeaseFacts:
        """The facts of a lease of `role` that don't depend on who asks and when; its user has no name yet.

        They keep what a revocation and a renewal need, and not how the user was made.
        """
        known = self._drafts.get(role.name)
        if known is not None and known.role is role and known.connection is connection:
            return known.facts
        terms = role.terms
        facts = LeaseFacts(
            path=role.path,
            role=role.name,
            role_revision=role.revision,
            connection_name=connection.name,
            username=UserName(""),
            terms=Terms(revocation=terms.revocation, renewal=terms.renewal, options=terms.options),
            recipe=recipe(role),
            default_ttl_s=role.default_ttl_s,
            session_grace_s=role.session_grace_s,
        )
        self._drafts[role.name] = _Draft(role, connection, facts)
        return facts
