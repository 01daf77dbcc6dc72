"""The application of `model.py` in Flask."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Flask, Response, request, stream_with_context

from llm_budget_mw_flask import LLMBudget, current_budget
from tests.behaviour import model

app = Flask(__name__)
app.config["LLM_BUDGET_CONFIG"] = model.configuration()
LLMBudget(app)


@app.post(model.CHAT)
def chat() -> Response:
    asked = request.get_json()
    if asked.get("user") == "more":
        with current_budget.call(**model.more(asked)):
            pass
    reply = model.reply(asked)
    if len(reply.pieces) == 1:
        return Response(reply.pieces[0], reply.status, content_type=reply.kind)
    return Response(stream_with_context(paced(reply)), reply.status, content_type=reply.kind)


def paced(reply: model.Reply) -> Iterator[bytes]:
    for piece in reply.pieces:
        yield piece
        time.sleep(reply.pause_s)


@app.post(model.OWN)
def ask() -> Response:
    usage = model.report(request.get_json())
    if usage is not None:
        current_budget.record(usage)
    return Response("fine", content_type="text/plain; charset=utf-8")


@app.post(model.OPEN)
def unguarded() -> Response:
    return Response("open", content_type="text/plain; charset=utf-8")
