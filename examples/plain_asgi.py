"""A proxy to a provider with budgets in front of it: plain ASGI, no framework.

export LLM_BUDGET_JWT_KEY=... OPENAI_API_KEY=...
uvicorn --app-dir examples plain_asgi:app
"""

from __future__ import annotations

import os
from pathlib import Path

import httpx2
from starlette.types import Message, Receive, Scope, Send

from llm_budget_mw import BudgetMiddleware

provider = httpx2.AsyncClient(
    base_url=os.environ.get("PROVIDER_URL", "https://api.openai.com"),
    headers={"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
    timeout=600,
)


async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
    elif "llm_budget" in scope.get("state", {}):
        await forward(scope, receive, send)
    else:  # what is not guarded must not reach the provider with our key
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"Not found"})


async def forward(scope: Scope, receive: Receive, send: Send) -> None:
    # The body is in one piece, and already says which model and how much output is granted.
    body = (await receive())["body"]
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    async with provider.stream("POST", scope["path"], content=body, headers=headers) as answer:
        kind = answer.headers.get("content-type", "application/json").encode()
        start: Message = {"type": "http.response.start", "status": answer.status_code}
        await send({**start, "headers": [(b"content-type", kind)]})
        async for chunk in answer.aiter_raw():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def live(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await provider.aclose()
    await send({"type": "lifespan.shutdown.complete"})  # on which the middleware closes its store


app = BudgetMiddleware(proxy, config=Path(__file__).with_name("llm_budget.toml"))
