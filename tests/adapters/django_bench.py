"""A guarded Django site of a test's own views, with all that can be looked at, in both worlds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import re_path

from llm_budget_mw.guard import AsyncGuard, Guard
from tests.adapters import django_site
from tests.deployment import Recorder, SwitchStore, async_store, configured, engine_of
from tests.edge.driver import CHAT, ISSUER, LIMITS, QUESTION, ROUTES

WORLDS = ("sync", "async")
MIXED = "mixed"
"""An asynchronous server over a synchronous chain: a thread for each request."""
SYNC_ONLY = f"{__name__}.sync_only"


class Answer(NamedTuple):
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error in its envelope."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


def sync_only(get_response: Any) -> Any:
    """Be a middleware of old."""
    return lambda request: get_response(request)


class Bench:
    """One view at every path, or patterns; entered, it is the site of this process."""

    def __init__(
        self,
        world: str,
        *views: Any,
        tier: Mapping[str, Any] | None = None,
        principal: Any = "jwt",
        above: Sequence[str] = (),
        below: Sequence[str] = (),
        **sections: Any,
    ) -> None:
        self.world = world
        self.store = SwitchStore()
        self.sink = Recorder()
        limits = {**LIMITS, **(tier or {})}
        self.config = configured(limits, **{"routes": ROUTES, "jwt": ISSUER.config(), **sections})
        engine, sinks = engine_of(self.config), [self.sink]
        self.guard: Guard | AsyncGuard
        if world != "async":
            self.guard = Guard(engine, self.config, self.store, sinks)
        else:
            self.guard = AsyncGuard(engine, self.config, async_store(self.store), sinks)
        patterns = [re_path("", each) if callable(each) else each for each in views]
        self._settings = override_settings(
            LLM_BUDGET={"GUARD": self.guard, "PRINCIPAL": principal},
            MIDDLEWARE=[
                *above,
                django_site.BUDGET,
                *below,
                *([SYNC_ONLY] if world == MIXED else []),
            ],
            ROOT_URLCONF=tuple(patterns),
        )
        self._sync, self._async = Client(), AsyncClient()

    async def __aenter__(self) -> Self:
        self._settings.enable()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.idle()
        finally:
            self._settings.disable()

    @property
    def settled(self) -> dict[str, Any]:
        """Return the one settlement there was."""
        (only,) = self.sink.named("budget.settled")
        return only

    async def post(
        self,
        body: Any = QUESTION,
        path: str = CHAT,
        *,
        token: str | None = "",
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
        cookies: Mapping[str, str] | None = None,
        **environ: Any,
    ) -> Answer:
        """Send one request to the end, and wait until all of it is over."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        credential = ISSUER.token("alice") if token == "" else token
        sent = {"Authorization": f"Bearer {credential}"} if credential else {}
        sent.update(headers or {})
        for client in (self._sync, self._async):
            client.cookies.clear()
            client.cookies.load(dict(cookies or {}))
        options = {"content_type": kind, "headers": sent, **environ}
        if self.world == "sync":
            answer = await asyncio.to_thread(self._post, method, path, raw, options)
        else:
            answer = await _read(await self._async.generic(method, path, raw, **options))
        await self.idle()
        return answer

    def raises(self, *, yes: bool) -> None:
        """Say whether the client is to raise what a view raises."""
        self._sync.raise_request_exception = self._async.raise_request_exception = yes

    def response(self, body: Any = QUESTION, path: str = CHAT) -> Any:
        """Send one request of the synchronous world; return its answer unread."""
        headers = {"Authorization": f"Bearer {ISSUER.token('alice')}"}
        return self._sync.post(path, body, content_type="application/json", headers=headers)

    async def idle(self) -> None:
        """Wait until nothing else runs on this loop."""
        await asyncio.sleep(0)  # what other threads have called comes first
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    def _post(self, method: str, path: str, raw: bytes, options: dict[str, Any]) -> Answer:
        response: Any = self._sync.generic(method, path, raw, **options)
        pieces = list(response) if response.streaming else [response.content]
        return _answer(response, pieces)


async def _read(response: Any) -> Answer:
    pieces = [piece async for piece in response] if response.streaming else [response.content]
    return _answer(response, pieces)


def _answer(response: HttpResponse | StreamingHttpResponse, pieces: list[bytes]) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, b"".join(pieces))
