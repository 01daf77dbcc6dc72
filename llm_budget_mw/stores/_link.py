"""Scripts over asyncio: the commands of one turn of the event loop leave together.

That is three times the operations a second of one write each, and nothing lost for a command
that is alone. Whoever waits may be cancelled at any time: the commands of a turn belong to a
task of their own, which reads every reply or gives the connection up.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NamedTuple, Protocol, cast

import redis.asyncio
from redis import exceptions

from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores._commands import Command, wire
from llm_budget_mw.stores._slots import FAILURES


class Link(Protocol):
    """One event loop's way to the server."""

    async def run(self, command: Command) -> object:
        """Return the reply to a script call; raise `StoreError` if none comes in time."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def store_error(error: Exception) -> StoreError:
    """Return the error of the client library as ours, with that as its cause."""
    ours = StoreError(f"{type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours


class _Connection(Protocol):
    """What is used of a redis-py connection."""

    async def send_packed_command(self, command: bytes) -> None: ...

    async def read_response(self) -> object: ...

    async def disconnect(self, nowait: bool = False) -> None: ...


class _Pool(Protocol):
    """What is used of a redis-py connection pool."""

    async def get_connection(self) -> _Connection: ...

    async def release(self, connection: _Connection) -> None: ...


_ASKING = wire("ASKING")
_MOST = 24
"""Commands in one write: the server works for one lot while the callers of another go on."""


class _Waiting(NamedTuple):
    command: Command
    reply: asyncio.Future[object]
    asking: bool


class Together:
    """All commands of one turn of the loop in one write, each reply handed out as it arrives.

    Not redis-py's pipeline, which gives back all replies at the end: this way the first
    callers go on while the server still works for the last.
    """

    def __init__(self, client: redis.asyncio.Redis, deadline_s: float) -> None:
        self._client = client
        self._pool = cast("_Pool", client.connection_pool)
        self._deadline_s = deadline_s
        self._turn: list[_Waiting] | None = None
        """Commands of the present turn that have not left; None if there are none."""
        self._kept: _Connection | None = None
        self._acquiring = 0
        self._batches: set[asyncio.Task[None]] = set()

    async def run(self, command: Command, *, asking: bool = False) -> object:
        """See `Link.run`; sent after `ASKING` if so told."""
        waiting = _Waiting(command, asyncio.get_running_loop().create_future(), asking)
        if self._turn is None or len(self._turn) == _MOST:
            self._turn = []
            batch = asyncio.create_task(self._send(self._turn))
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)
        self._turn.append(waiting)
        return await waiting.reply

    async def ask(self, *words: str) -> object:
        """Return the reply to another command, by itself; raises what redis-py raises."""
        return await cast("Any", self._client).execute_command(*words)

    async def close(self) -> None:
        """See `Link.close`."""
        await asyncio.gather(*self._batches)
        if self._kept is not None:
            await self._pool.release(self._kept)
        await self._client.aclose()

    async def _send(self, turn: list[_Waiting]) -> None:
        if self._turn is turn:
            self._turn = None
        failure = StoreError("the event loop was stopped")
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._persist(turn)
        except TimeoutError as error:
            failure = late(self._deadline_s)
            failure.__cause__ = error
        except FAILURES as error:
            failure = store_error(error)
        finally:
            _fail(turn, failure)

    async def _persist(self, turn: list[_Waiting]) -> None:
        try:
            await self._exchange(turn)
        except exceptions.ConnectionError:
            # Once more, as a client does: every script may be repeated.
            left = [waiting for waiting in turn if not waiting.reply.done()]
            await self._exchange([each._replace(command=each.command.again) for each in left])

    async def _exchange(self, turn: list[_Waiting], *, known: bool = True) -> None:
        connection = await self._take_connection()
        clean = False
        try:
            calls = [_wire(waiting, known=known) for waiting in turn]
            await connection.send_packed_command(b"".join(calls))
            unknown = [waiting for waiting in turn if not await _answered(connection, waiting)]
            clean = True
        finally:
            if not clean:  # what is still unread must never reach the next caller
                await connection.disconnect(nowait=True)
            if clean and self._kept is None and not self._acquiring:
                self._kept = connection
            else:
                await self._pool.release(connection)
        if unknown:
            await self._exchange(unknown, known=False)

    async def _take_connection(self) -> _Connection:
        # One connection is kept: a pool takes a third of the time of a whole command. If it
        # broke meanwhile, the second attempt gets one the pool has looked at.
        connection, self._kept = self._kept, None
        if connection is not None:
            return connection
        self._acquiring += 1
        try:
            return await self._pool.get_connection()
        finally:
            self._acquiring -= 1


async def _answered(connection: _Connection, waiting: _Waiting) -> bool:
    """Read one reply and hand it out; False if the server does not know the script."""
    try:
        if waiting.asking:
            with contextlib.suppress(exceptions.ResponseError):
                await connection.read_response()
        reply = await connection.read_response()
    except exceptions.NoScriptError:
        return False
    except exceptions.ResponseError as error:
        _fail([waiting], store_error(error))
    else:
        if not waiting.reply.done():
            waiting.reply.set_result(reply)
    return True


def _wire(waiting: _Waiting, *, known: bool) -> bytes:
    """Return a script call as it goes over the wire."""
    script, keys, args = waiting.command
    call = ("EVALSHA", script.sha) if known else ("EVAL", script.source)
    sent = wire(*call, str(len(keys)), *keys, *args)
    return _ASKING + sent if waiting.asking else sent


def _fail(turn: list[_Waiting], error: StoreError) -> None:
    for waiting in turn:
        if not waiting.reply.done():
            each = StoreError(*error.args)  # a traceback each
            each.__cause__ = error.__cause__
            waiting.reply.set_exception(each)


def late(deadline_s: float) -> StoreError:
    """Return the error of a deadline that passed."""
    return StoreError(f"no answer within {deadline_s * 1000:.0f} ms")
