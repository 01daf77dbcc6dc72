"""The body of a request that is already inside the framework: read once, then as granted."""

# Starlette keeps what it has read of a request in private attributes, and offers no other way
# to put something else there; tests hold the supported versions to it.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

_OF_THE_OLD_BODY = (b"content-length", b"content-encoding", b"transfer-encoding")


async def read_body(request: Request, limit: int) -> bytes | None:
    """Read a body, up to a little more than `limit` bytes; None if the client left."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                break
    except ClientDisconnect:
        return None
    return bytes(body)


async def put_back(request: Request, body: bytes) -> None:
    """Let `request.body()`, `json()` and `stream()` give this JSON object from now on."""
    if hasattr(request, "_json"):
        # FastAPI has parsed the old one, and makes the endpoint's parameters of that very
        # object as soon as the dependencies are done.
        parsed = await request.json()
        parsed.clear()
        parsed.update(json.loads(body))
    request._body = body
    headers = [item for item in request.scope["headers"] if item[0] not in _OF_THE_OLD_BODY]
    request.scope["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
    request._headers = Headers(scope=request.scope)
