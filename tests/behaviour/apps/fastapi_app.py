"""The application of `model.py` in FastAPI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from llm_budget_mw import BudgetMiddleware
from llm_budget_mw_fastapi import CurrentBudget
from tests.behaviour import model

app = FastAPI()
app.add_middleware(BudgetMiddleware, config=model.configuration())


@app.post(model.CHAT)
async def chat(request: Request, budget: CurrentBudget) -> Response:
    asked = await request.json()
    if asked.get("user") == "more":
        await asyncio.to_thread(call_more, budget, asked)
    reply = model.reply(asked)
    if len(reply.pieces) == 1:
        return Response(reply.pieces[0], reply.status, media_type=reply.kind)
    return StreamingResponse(paced(reply), reply.status, media_type=reply.kind)


def call_more(budget: CurrentBudget, asked: dict[str, Any]) -> None:
    with budget.call(**model.more(asked)):
        pass


def paced(reply: model.Reply) -> Iterator[bytes]:
    for piece in reply.pieces:
        yield piece
        time.sleep(reply.pause_s)


@app.post(model.OWN)
def ask(asked: dict[str, Any], budget: CurrentBudget) -> Response:
    usage = model.report(asked)
    if usage is not None:
        budget.record(usage)
    return PlainTextResponse("fine")


@app.post(model.OPEN)
def unguarded() -> Response:
    return PlainTextResponse("open")
