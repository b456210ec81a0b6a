"""From what a handler answers to the bytes on the wire, and to what the audit log says of it."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from aiohttp.web_response import Response

from broker.api import envelope
from broker.api.auth import Auth
from broker.audit.entry import AuditMount, AuditResponse
from broker.identity.callers import audit_auth
from broker.identity.tokens import Grant
from broker.model import NO_TOKEN
from broker.server.errors import Refusal
from broker.server.router import Reply

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store", "Server": "broker"}
_EMPTY = 204


def audited(reply: Reply, mount: AuditMount | None) -> AuditResponse:
    """What the audit log says of an answer."""
    grant = reply.grant
    return AuditResponse(
        mount=mount,
        lease_id=reply.lease_id,
        data=reply.data,
        auth=None if grant is None else audit_auth(grant.token, grant.text, ttl_s=grant.ttl_s),
        warnings=reply.warnings,
    )


def enveloped(reply: Reply, request_id: str, mount: AuditMount | None) -> Response:
    """The answer in Vault's envelope; a document as it is; without content an empty 204 (or the reply's own status)."""
    if reply.document:
        return Response(body=reply.document, status=reply.status or 200, headers=_HEADERS | {"Content-Type": reply.media})
    if not reply.has_content:
        return Response(status=reply.status or _EMPTY, headers=_HEADERS)
    fields = {
        "lease_id": reply.lease_id,
        "renewable": reply.renewable,
        "lease_duration": reply.lease_duration_s,
        "data": reply.data,
        "warnings": reply.warnings or None,
        "auth": None if reply.grant is None else _auth(reply.grant),
        "mount_type": "" if mount is None else mount.type,
    }
    body = envelope.success(request_id, {**reply.beside, **fields})
    return Response(body=body, status=reply.status or 200, headers=_HEADERS)


def bare(reply: Reply) -> Response:
    """The answer's data alone, as health and its kind are."""
    return Response(body=orjson.dumps(reply.data), status=reply.status or 200, headers=_HEADERS)


def refused(refusal: Refusal, data: Mapping[str, object] | None = None) -> Response:
    """The body of an error."""
    headers = dict(_HEADERS)
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    return Response(body=envelope.errors(refusal.texts, data), status=refusal.status, headers=headers)


def _auth(grant: Grant) -> Mapping[str, object]:
    token, facts = grant.token, grant.token.facts
    return Auth(
        client_token="" if grant.text is None else grant.text.reveal(),
        accessor=facts.accessor,
        policies=list(facts.policies),
        token_policies=list(facts.policies),
        metadata=None if facts.meta is None else dict(facts.meta),
        lease_duration=grant.ttl_s,
        renewable=facts.renewable,
        orphan=token.parent == NO_TOKEN,
        num_uses=facts.num_uses,
    ).model_dump()
