"""Clients of the relays: some listen to the end, some hang up, some to find nobody there."""

from __future__ import annotations

import asyncio
import contextlib
import random

import httpx

from tests.chaos.asking import TIMEOUT_S, Ask, ask, someone, words_in
from tests.chaos.provider import CALL_HEADER, SCRIPT_HEADER
from tests.chaos.settings import ROUTE
from tests.chaos.world import Process, World

CLIENTS = 10
_PAUSE_S = 0.05
_REFUSED = 400


class Load:
    """Calls the relays of a world until it is stopped."""

    def __init__(self, world: World) -> None:
        self.heard: dict[str, int] = {}
        """Tokens of output that came through, by call."""
        self._world = world
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        """Start all clients."""
        seed = self._world.settings.seed
        self._tasks = [
            asyncio.create_task(self._client(random.Random(f"{seed}-client-{number}")))
            for number in range(CLIENTS)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up, all of them."""
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _client(self, rng: random.Random) -> None:
        tokens = dict[tuple[str, str], str]()
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            while True:
                name, tier = someone(rng, self._world.began_at)
                if (name, tier) not in tokens:
                    tokens[name, tier] = self._world.issuer.token(name, tier=tier)
                asked = ask(rng)
                if not self._world.relays:
                    await asyncio.sleep(_PAUSE_S)
                    continue
                relay = rng.choice(self._world.relays)
                # A worker that dies takes its connections with it.
                with contextlib.suppress(httpx.HTTPError, TimeoutError):
                    async with asyncio.timeout(asked.patience_s):
                        if not await self._call(client, relay, asked, tokens[name, tier]):
                            await asyncio.sleep(_PAUSE_S)
                await asyncio.sleep(0)

    async def _call(
        self, client: httpx.AsyncClient, relay: Process, asked: Ask, token: str
    ) -> bool:
        """Make one call; False if it was refused."""
        headers = {"authorization": f"Bearer {token}", SCRIPT_HEADER: asked.script.written()}
        async with client.stream(
            "POST", relay.url + ROUTE, json=asked.request, headers=headers
        ) as answer:
            call = answer.headers.get(CALL_HEADER)
            if answer.status_code >= _REFUSED or call is None:
                return False
            mark = object()
            relay.listening.add(mark)
            try:
                await self._listen(answer, call, asked)
            finally:
                relay.listening.discard(mark)
            return True

    async def _listen(self, answer: httpx.Response, call: str, asked: Ask) -> None:
        self.heard[call] = 0
        if not asked.request["stream"]:
            await answer.aread()
            self.heard[call] = answer.json()["usage"]["completion_tokens"]
            return
        async for line in answer.aiter_lines():
            self.heard[call] += words_in(line)
            if asked.leaves_after is not None and self.heard[call] > asked.leaves_after:
                return
