"""The way to the store, which can be made bad: a TCP proxy in a thread of its own.

Bytes of one connection never change their order; that much TCP promises. Nothing is promised
between connections: what one was given may arrive after a newer one was opened and answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from dataclasses import dataclass

_PIECE = 65536


@dataclass(frozen=True)
class Weather:
    """How the proxy treats what passes. Probabilities are for each piece, from 0 to 1."""

    delay_s: float = 0.0
    """At most; drawn for each piece in either direction."""
    closed: bool = False
    """Hang up on who comes, and on who is there."""
    deaf: bool = False
    """Take requests and never pass them on: a black hole."""
    mute: bool = False
    """Pass requests on, and never a reply."""
    lose: float = 0.0
    """Hang up in place of a reply."""
    cut: float = 0.0
    """Hang up in the middle of a reply."""
    late: float = 0.0
    """Hang up on a request, and pass it on all the same, `late_s` later."""
    late_s: float = 0.0


FAIR = Weather()


class _HangUp(Exception):  # noqa: N818 (no error: the weather)
    """The weather wants this connection to end."""


class Proxy:
    """Stands before a server on this machine."""

    def __init__(self, target_port: int, seed: int) -> None:
        self._target_port = target_port
        self._rng = random.Random(seed)
        self._weather = FAIR
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self.port = asyncio.run_coroutine_threadsafe(self._open(), self._running_loop()).result()

    @property
    def weather(self) -> Weather:
        """How it treats what passes now; may be set at any time."""
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._weather = weather
        if weather.closed:
            self._loop.call_soon_threadsafe(self._hang_up)

    def close(self) -> None:
        """Stop."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self._loop

    async def _open(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        self._server.close()
        self._hang_up()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close one turn later

    def _hang_up(self) -> None:
        for client in self._clients:
            client.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._weather.closed:
            writer.transport.abort()
            return
        try:
            server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._clients.add(writer)
        for pump in (
            self._requests(reader, writer, server[1]),
            self._replies(server[0], writer),
        ):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _requests(
        self,
        client: asyncio.StreamReader,
        back: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
    ) -> None:
        deaf = False  # and deaf for good: no connection loses bytes in its middle
        with contextlib.suppress(OSError), contextlib.closing(server):
            while piece := await client.read(_PIECE):
                await self._pause()
                deaf = deaf or self._weather.deaf
                if self._happens(self._weather.late):
                    back.transport.abort()
                    await asyncio.sleep(self._weather.late_s)
                if not deaf:
                    server.write(piece)
                    await server.drain()

    async def _replies(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        mute = False
        with contextlib.suppress(OSError, _HangUp), contextlib.closing(client):
            while piece := await server.read(_PIECE):
                await self._pause()
                mute = mute or self._weather.mute
                if not mute:
                    await self._reply(piece, client)
        self._clients.discard(client)

    async def _reply(self, piece: bytes, client: asyncio.StreamWriter) -> None:
        weather = self._weather
        if self._happens(weather.lose):
            raise _HangUp
        cuts = self._happens(weather.cut)
        client.write(piece[: self._rng.randrange(len(piece))] if cuts else piece)
        await client.drain()
        if cuts:
            raise _HangUp

    async def _pause(self) -> None:
        if self._weather.delay_s:
            await asyncio.sleep(self._rng.uniform(0, self._weather.delay_s))

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability
