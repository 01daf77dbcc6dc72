"""Counters in Redis or Valkey, through redis-py; sync and async differ where bytes move.

Every script may be repeated under its id, so a lost reply is charged once. How clients are
set up for that is in `connect.py`; a client from elsewhere must not decode responses and
should not retry for longer than a caller can wait.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import redis.asyncio
from redis import exceptions

from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores import _commands
from llm_budget_mw.stores._link import FAILURES, Link, link_to, store_error
from llm_budget_mw.types import Admission, Charges, Grant, Plan


class Scripts(Protocol):
    """What a synchronous store needs of a redis-py client, cluster or not."""

    def evalsha(self, sha: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        """Run a script the server knows."""
        ...

    def eval(self, script: str, numkeys: int, /, *keys_and_args: str | bytes) -> object:
        """Run a script."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class _Shared:
    """Keys, clock and the reading of replies: all that both stores do alike."""

    def __init__(self, prefix: str, test_clock: Callable[[], int] | None) -> None:
        if test_clock and not prefix.startswith("llmb-test:"):
            raise ValueError(
                f"a test clock needs a prefix that starts with llmb-test:, not {prefix}"
            )
        self._prefix = prefix
        self._test_clock = test_clock
        self._offset_ms = 0.0

    def now_ms(self) -> int:
        """Return the server's clock as last heard: ours, corrected by the last reply."""
        if self._test_clock:
            return self._test_clock()
        return int(time.time() * 1000 + self._offset_ms)

    def _given_ms(self) -> int:
        return self._test_clock() if self._test_clock else 0

    def _admit(self, plan: Plan, now_ms: int) -> _commands.Command:
        return _commands.admit(plan, self._prefix, now_ms, self._given_ms())

    def _read_admit(self, reply: object) -> Admission | int:
        answer = _commands.read_admit(cast("bytes", reply))
        now = answer if isinstance(answer, int) else answer.now_ms
        self._offset_ms = now - time.time() * 1000
        return answer

    def _settle(self, grant: Grant, charges: Charges) -> _commands.Command:
        return _commands.settle(grant, charges, self._prefix, self.now_ms(), self._given_ms())

    def _renew(self, grant: Grant) -> _commands.Command:
        return _commands.renew(grant, self._prefix, self._given_ms())


class RedisStore(_Shared):
    """A store on a synchronous redis-py client; safe for threads."""

    def __init__(
        self,
        client: Scripts,
        *,
        prefix: str = "llmb",
        test_clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(prefix, test_clock)
        self._client = client

    def admit(self, plan: Plan) -> Admission:
        """See `Store.admit`."""
        answer = self._read_admit(self._run(self._admit(plan, self.now_ms())))
        if isinstance(answer, int):
            answer = self._read_admit(self._run(self._admit(plan, answer)))
        return _certain(answer)

    def settle(self, grant: Grant, charges: Charges) -> str:
        """See `Store.settle`."""
        return cast("bytes", self._run(self._settle(grant, charges))).decode()

    def renew(self, grant: Grant) -> bool:
        """See `Store.renew`."""
        return self._run(self._renew(grant)) == 1

    def close(self) -> None:
        """See `Store.close`."""
        self._client.close()

    def _run(self, command: _commands.Command) -> object:
        script, keys, args = command
        try:
            try:
                return self._client.evalsha(script.sha, len(keys), *keys, *args)
            except exceptions.NoScriptError:
                return self._client.eval(script.source, len(keys), *keys, *args)
        except FAILURES as error:
            raise store_error(error) from error


class _Loop(NamedTuple):
    running: asyncio.AbstractEventLoop
    link: Link


class AsyncRedisStore(_Shared):
    """A store on asyncio clients, one for each event loop that uses it."""

    def __init__(
        self,
        connect: Callable[[], redis.asyncio.Redis | redis.asyncio.RedisCluster],
        *,
        prefix: str = "llmb",
        deadline_s: float = 0.1,
        test_clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(prefix, test_clock)
        self._connect = connect
        self._deadline_s = deadline_s
        self._local = threading.local()

    async def admit(self, plan: Plan) -> Admission:
        """See `Store.admit`."""
        link = self._link()
        answer = self._read_admit(await link.run(self._admit(plan, self.now_ms())))
        if isinstance(answer, int):
            answer = self._read_admit(await link.run(self._admit(plan, answer)))
        return _certain(answer)

    async def settle(self, grant: Grant, charges: Charges) -> str:
        """See `Store.settle`."""
        return cast("bytes", await self._link().run(self._settle(grant, charges))).decode()

    async def renew(self, grant: Grant) -> bool:
        """See `Store.renew`."""
        return await self._link().run(self._renew(grant)) == 1

    async def close(self) -> None:
        """Close the running loop's client."""
        link = self._link()
        del self._local.loop
        await link.close()

    def _link(self) -> Link:
        # Connections belong to the loop that opened them; a thread may see several loops in
        # its life (tests, async views under a synchronous server), one after the other.
        running = asyncio.get_running_loop()
        loop: _Loop | None = getattr(self._local, "loop", None)
        if loop is None or loop.running is not running:
            loop = self._local.loop = _Loop(running, link_to(self._connect(), self._deadline_s))
        return loop.link


def _certain(answer: Admission | int) -> Admission:
    if isinstance(answer, int):
        raise StoreError("the server's clock lies outside the window it asked for, twice")
    return answer
