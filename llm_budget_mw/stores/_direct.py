"""Scripts over redis-py's connections, past its pool and its command path.

Together those take longer than the decision itself. One connection at hand is kept out of
the pool, unless a thread is waiting for one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, cast

import redis
from redis import exceptions

from llm_budget_mw import forks
from llm_budget_mw.stores import _commands
from llm_budget_mw.stores._commands import wire

_ASKING = wire("ASKING")


class _Connection(Protocol):
    """What is used of a redis-py connection."""

    def send_packed_command(self, command: list[bytes]) -> None: ...

    def read_response(self) -> object: ...

    def disconnect(self) -> None: ...


class _Pool(Protocol):
    """What is used of a redis-py connection pool."""

    def get_connection(self) -> _Connection: ...

    def release(self, connection: _Connection) -> None: ...


class DirectScripts:
    """The scripts of one server, for threads; a `Scripts` like the client it stands on."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._pool = cast("_Pool", client.connection_pool)
        self.after_fork()
        forks.register(self)

    def after_fork(self) -> None:
        """Leave the connection at hand to the parent; the pool sees to the others."""
        self._lock = threading.Lock()
        self._kept: _Connection | None = None
        self._asking = 0

    def evalsha(self, sha: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        """Run a script the server knows."""
        return self._run("EVALSHA", sha, numkeys, keys_and_args)

    def eval(self, script: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        """Run a script."""
        return self._run("EVAL", script, numkeys, keys_and_args)

    def close(self) -> None:
        """Let go of connections."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            self._pool.release(kept)
        self._client.close()

    def call(
        self, command: bytes, *, asking: bool = False, again: Callable[[], bytes] | None = None
    ) -> object:
        """Return the reply to a command, sent after `ASKING` if so told.

        `again` makes what is sent in its place when the connection was lost.
        """
        try:
            return self._exchange(command, asking=asking)
        except exceptions.ConnectionError:
            # Once more, as a client does: every script may be repeated.
            return self._exchange(again() if again else command, asking=asking)

    def _run(self, verb: str, script: str, numkeys: int, words: tuple[str | bytes, ...]) -> object:
        head = (verb, script, str(numkeys))
        return self.call(
            wire(*head, *words),
            again=lambda: wire(*head, *_commands.again(script, numkeys, words)),
        )

    def _exchange(self, command: bytes, *, asking: bool) -> object:
        connection = self._take()
        clean = False
        try:
            connection.send_packed_command([_ASKING, command] if asking else [command])
            if asking:
                _reply(connection)
            reply = _reply(connection)
            clean = True
        finally:
            if not clean:  # what is still unread must never reach the next caller
                connection.disconnect()
            self._give_back(connection, keep=clean)
        if isinstance(reply, exceptions.ResponseError):
            raise reply
        return reply

    def _take(self) -> _Connection:
        with self._lock:
            connection, self._kept = self._kept, None
            self._asking += connection is None
        if connection is not None:
            return connection
        try:
            return self._pool.get_connection()
        finally:
            with self._lock:
                self._asking -= 1

    def _give_back(self, connection: _Connection, *, keep: bool) -> None:
        with self._lock:
            keep = keep and self._kept is None and not self._asking
            if keep:
                self._kept = connection
        if not keep:
            self._pool.release(connection)


def _reply(connection: _Connection) -> object:
    """Read one reply, which may be an error."""
    try:
        return connection.read_response()
    except exceptions.ResponseError as error:
        return error
