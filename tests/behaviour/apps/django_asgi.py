"""The application of `model.py` in Django, asynchronous."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path

from llm_budget_mw import current_budget
from tests.behaviour import model
from tests.behaviour.apps.django_site import configured, get_asgi_application


async def chat(request: HttpRequest) -> HttpResponseBase:
    asked = json.loads(request.body)
    if asked.get("user") == "more":
        async with current_budget().call(**model.more(asked)):
            pass
    reply = model.reply(asked)
    if len(reply.pieces) == 1:
        return HttpResponse(reply.pieces[0], status=reply.status, content_type=reply.kind)
    return StreamingHttpResponse(paced(reply), status=reply.status, content_type=reply.kind)


async def paced(reply: model.Reply) -> AsyncIterator[bytes]:
    for piece in reply.pieces:
        yield piece
        await asyncio.sleep(reply.pause_s)


async def ask(request: HttpRequest) -> HttpResponse:
    usage = model.report(json.loads(request.body))
    if usage is not None:
        current_budget().record(usage)
    return HttpResponse("fine", content_type="text/plain; charset=utf-8")


async def unguarded(request: HttpRequest) -> HttpResponse:
    return HttpResponse("open", content_type="text/plain; charset=utf-8")


urlpatterns = [
    path(model.CHAT[1:], chat),
    path(model.OWN[1:], ask),
    path(model.OPEN[1:], unguarded),
]
configured(__name__)
app = get_asgi_application()
