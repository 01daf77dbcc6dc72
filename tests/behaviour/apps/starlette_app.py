"""The application of `model.py` in Starlette."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from llm_budget_mw import BudgetMiddleware, current_budget
from tests.behaviour import model


async def chat(request: Request) -> Response:
    asked = await request.json()
    if asked.get("user") == "more":
        async with current_budget().call(**model.more(asked)):
            pass
    reply = model.reply(asked)
    if len(reply.pieces) == 1:
        return Response(reply.pieces[0], reply.status, media_type=reply.kind)
    return StreamingResponse(paced(reply), reply.status, media_type=reply.kind)


async def paced(reply: model.Reply) -> AsyncIterator[bytes]:
    for piece in reply.pieces:
        yield piece
        await asyncio.sleep(reply.pause_s)


async def ask(request: Request) -> Response:
    usage = model.report(await request.json())
    if usage is not None:
        request.state.llm_budget.record(usage)
    return PlainTextResponse("fine")


async def unguarded(request: Request) -> Response:
    return PlainTextResponse("open")


app = Starlette(
    routes=[
        Route(model.CHAT, chat, methods=["POST"]),
        Route(model.OWN, ask, methods=["POST"]),
        Route(model.OPEN, unguarded, methods=["POST"]),
    ],
    middleware=[Middleware(BudgetMiddleware, config=model.configuration())],
)
