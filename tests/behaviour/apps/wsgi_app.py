"""The application of `model.py` in nothing but WSGI."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from llm_budget_mw import WSGIBudgetMiddleware, current_budget
from tests.behaviour import model

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_REASONS = {200: "OK", 429: "Too Many Requests"}


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    if environ["PATH_INFO"] == model.OPEN:
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"open"]
    asked = json.loads(environ["wsgi.input"].read())
    if environ["PATH_INFO"] == model.OWN:
        usage = model.report(asked)
        if usage is not None:
            current_budget().record(usage)
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"fine"]
    if asked.get("user") == "more":
        with current_budget().call(**model.more(asked)):
            pass
    reply = model.reply(asked)
    start_response(f"{reply.status} {_REASONS[reply.status]}", [("Content-Type", reply.kind)])
    return paced(reply)


def paced(reply: model.Reply) -> Iterator[bytes]:
    for piece in reply.pieces:
        yield piece
        time.sleep(reply.pause_s)


app = WSGIBudgetMiddleware(application, config=model.configuration())
