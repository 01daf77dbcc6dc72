"""A Django site for tests: its settings are made once for a process, its views by each test.

It is a whole application, too, which servers are given: `tests.adapters.django_site:wsgi`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.urls import path

from tests.edge.driver import ANSWER, CHAT, DONE, USAGE_EVENT, delta

BUDGET = "llm_budget_mw_django.BudgetMiddleware"
VARIABLE = "DJANGO_SITE_BUDGET"
"""Of a server's environment: the setting `LLM_BUDGET` as JSON."""
_PAUSE_S = 0.01
_LONG = 1000
"""Pieces of a stream that goes on until the client has enough."""

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "llm_budget_mw_django",
    ],
    LLM_BUDGET=json.loads(os.environ.get(VARIABLE, "{}")),
    LOGGING_CONFIG=None,
    MIDDLEWARE=[BUDGET],
    ROOT_URLCONF=__name__,
    SECRET_KEY="k" * 50,
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)
django.setup()


async def chat(request: HttpRequest) -> HttpResponseBase:
    """Answer as a provider would; as an endless stream if the user is called so."""
    asked: dict[str, Any] = json.loads(request.body)
    if not asked.get("stream"):
        return JsonResponse({**ANSWER, "granted": asked["max_tokens"], "length": len(request.body)})
    pieces = [delta("abcd")] * _LONG if asked.get("user") == "endless" else [delta("abcd")]
    pieces += [USAGE_EVENT, DONE]
    wsgi = "wsgi.file_wrapper" in request.META
    content: Any = _paced(pieces) if wsgi else _paced_on_a_loop(pieces)
    return StreamingHttpResponse(content, content_type="text/event-stream")


def health(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


def _paced(pieces: list[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        time.sleep(_PAUSE_S)


async def _paced_on_a_loop(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(_PAUSE_S)


urlpatterns = [path(CHAT[1:], chat), path("health", health)]


def __getattr__(name: str) -> Any:
    """Make the application a server asks for."""
    if name == "wsgi":
        return get_wsgi_application()
    if name == "asgi":
        return get_asgi_application()
    raise AttributeError(name)
