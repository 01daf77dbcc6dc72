"""Counters in Redis or Valkey, through redis-py; sync and async differ where bytes move.

Every script may be repeated under its id, so a lost reply is charged once. How clients are
set up for that is in `connect.py`; a client from elsewhere must not decode responses and
should not retry for longer than a caller can wait.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, cast

import redis.asyncio
from redis import exceptions

from llm_budget_mw.errors import StoreError
from llm_budget_mw.outputs import Counts
from llm_budget_mw.stores import _commands, _partitions, _switches
from llm_budget_mw.stores._cluster import Cluster, link_to
from llm_budget_mw.stores._commands import Amended, Switches
from llm_budget_mw.stores._link import Link, store_error
from llm_budget_mw.stores._slots import FAILURES
from llm_budget_mw.stores._spent import Spent
from llm_budget_mw.stores._switches import Copy
from llm_budget_mw.stores.base import AmendVerb, SwitchVerb
from llm_budget_mw.types import NOTHING, Admission, Charges, Grant, Plan, Subject


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

    shared = True

    def __init__(
        self, prefix: str, test_clock: Callable[[], int] | None, *, partitioned: bool
    ) -> None:
        if test_clock and not prefix.startswith("llmb-test:"):
            raise ValueError(
                f"a test clock needs a prefix that starts with llmb-test:, not {prefix}"
            )
        self._prefix = prefix
        self._partitioned = partitioned
        self._test_clock = test_clock
        self._spent = None if test_clock else Spent()  # a clock set by hand shows the store itself
        self._copy = Copy() if partitioned and not test_clock else None
        self._offset_ms = 0.0

    def now_ms(self) -> int:
        """Return the server's clock as last heard: ours, corrected by the last reply."""
        if self._test_clock:
            return self._test_clock()
        return int(time.time() * 1000 + self._offset_ms)

    def _given_ms(self) -> int:
        return self._test_clock() if self._test_clock else 0

    def _known(self, plan: Plan) -> Admission | None:
        return self._spent.answer(plan, self.now_ms()) if self._spent else None

    def _noted(self, plan: Plan, answer: Admission) -> Admission:
        if self._spent:
            self._spent.note(plan, answer)
        return answer

    def _settling_s(self, verb: AmendVerb | SwitchVerb, memory: Spent | Copy | None) -> float:
        """Return how long a change may not have reached what processes remember."""
        return memory.kept_ms / 1000 if memory and verb != "show" else 0.0

    def _is_split(self, plan: Plan) -> bool:
        """Return whether a plan needs keys that one script of a cluster cannot reach."""
        if not self._partitioned:
            return False
        partitions = {entry.subject.partition for entry in plan.subjects}
        return len(partitions) > 1 or bool(plan.switches)

    def _account(self, subject: Subject) -> str:
        return _commands.account_key(self._prefix, subject)

    def _admission(self, plan: Plan, now_ms: int) -> _commands.Command:
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

    def _grow(self, grant: Grant, output: int) -> _commands.Command:
        return _commands.grow(grant, output, self._prefix, self.now_ms(), self._given_ms())


class RedisStore(_Shared):
    """A store on a synchronous redis-py client; safe for threads."""

    def __init__(
        self,
        client: Scripts,
        *,
        prefix: str = "llmb",
        partitioned: bool = False,
        test_clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(prefix, test_clock, partitioned=partitioned)
        self._client = client

    def admit(self, plan: Plan) -> Admission:
        """See `Store.admit`."""
        return self._known(plan) or self._noted(plan, self._admit(plan))

    def settle(self, grant: Grant, charges: Charges) -> str:
        """See `Store.settle`."""
        if not self._is_split(grant.plan):
            return self._settle_whole(grant, charges)
        parts = _partitions.split(grant)
        return _partitions.in_order(
            grant.plan, [(part, self._settle_whole(each, charges)) for part, each in parts]
        )

    def renew(self, grant: Grant) -> bool:
        """See `Store.renew`."""
        if not self._is_split(grant.plan):
            return self._run(self._renew(grant)) == 1
        # Each of them, also when one is gone.
        parts = [self._run(self._renew(each)) == 1 for _, each in _partitions.split(grant)]
        return all(parts)

    def grow(self, grant: Grant, output: int) -> int:
        """See `Store.grow`; on a cluster what one partition refuses, others may hold."""
        if not self._is_split(grant.plan):
            return _commands.read_grow(self._run(self._grow(grant, output)), grant)
        held = output
        for _, each in _partitions.split(grant):
            held = min(held, _commands.read_grow(self._run(self._grow(each, held)), grant))
        return held

    def learn(self, noted: Mapping[str, Counts]) -> dict[str, Counts]:
        """See `Store.learn`."""
        return _commands.read_learn(self._run(_commands.learn(noted, self._prefix)), noted)

    def amend(self, subject: Subject, verb: AmendVerb, what: str = "") -> Amended:
        """See `Store.amend`."""
        command = _commands.amend(self._account(subject), verb, what, self._given_ms())
        amended = _commands.read_amend(self._run(command))
        time.sleep(self._settling_s(verb, self._spent))
        return amended

    def switch(self, verb: SwitchVerb, name: str = "", value: str = "") -> Switches:
        """See `Store.switch`."""
        command = _commands.switch(self._prefix, verb, name, value, self._given_ms())
        switches = _commands.read_switch(self._run(command))
        time.sleep(self._settling_s(verb, self._copy))
        return switches

    def claim(self, holder: str, slots: int, lease_ms: int) -> int:
        """See `Store.claim`."""
        return cast("int", self._run(_commands.claim(self._prefix, holder, slots, lease_ms)))

    def close(self) -> None:
        """See `Store.close`."""
        self._client.close()

    def _admit(self, plan: Plan) -> Admission:
        if not self._is_split(plan):
            return self._admit_whole(plan)
        steps = _partitions.admission(plan)
        try:
            step = next(steps)
            while True:
                step = steps.send(self._take(step))
        except StopIteration as done:
            return cast("Admission", done.value)

    def _take(self, step: _partitions.Step) -> Admission | None:
        if isinstance(step, Plan):
            return self._admit_whole(step) if step.subjects else self._switched(step)
        self._settle_whole(step, NOTHING)
        return None

    def _switched(self, plan: Plan) -> Admission:
        if self._copy is None:
            return self._admit_whole(plan)
        now = self.now_ms()
        stopped = self._copy.fresh(now)
        if stopped is None:
            try:
                stopped = self._copy.note(self.switch("show").stopped, now)
            except StoreError:
                stopped = self._copy.last(now)
                if stopped is None:
                    raise
        return _switches.answer(plan, stopped, now)

    def _settle_whole(self, grant: Grant, charges: Charges) -> str:
        return cast("bytes", self._run(self._settle(grant, charges))).decode()

    def _admit_whole(self, plan: Plan) -> Admission:
        answer = self._read_admit(self._run(self._admission(plan, self.now_ms())))
        if isinstance(answer, int):
            answer = self._read_admit(self._run(self._admission(plan, answer)))
        return _certain(answer)

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
        connect: Callable[[], redis.asyncio.Redis | Cluster],
        *,
        prefix: str = "llmb",
        deadline_s: float = 0.1,
        partitioned: bool = False,
        test_clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(prefix, test_clock, partitioned=partitioned)
        self._connect = connect
        self._deadline_s = deadline_s
        self._local = threading.local()

    async def admit(self, plan: Plan) -> Admission:
        """See `Store.admit`."""
        return self._known(plan) or self._noted(plan, await self._admit(plan))

    async def settle(self, grant: Grant, charges: Charges) -> str:
        """See `Store.settle`."""
        if not self._is_split(grant.plan):
            return await self._settle_whole(grant, charges)
        parts = _partitions.split(grant)
        return _partitions.in_order(
            grant.plan, [(part, await self._settle_whole(each, charges)) for part, each in parts]
        )

    async def renew(self, grant: Grant) -> bool:
        """See `Store.renew`."""
        if not self._is_split(grant.plan):
            return await self._run(self._renew(grant)) == 1
        parts = [await self._run(self._renew(each)) == 1 for _, each in _partitions.split(grant)]
        return all(parts)

    async def grow(self, grant: Grant, output: int) -> int:
        """See `Store.grow`; on a cluster what one partition refuses, others may hold."""
        if not self._is_split(grant.plan):
            return _commands.read_grow(await self._run(self._grow(grant, output)), grant)
        held = output
        for _, each in _partitions.split(grant):
            answer = await self._run(self._grow(each, held))
            held = min(held, _commands.read_grow(answer, grant))
        return held

    async def learn(self, noted: Mapping[str, Counts]) -> dict[str, Counts]:
        """See `Store.learn`."""
        command = _commands.learn(noted, self._prefix)
        return _commands.read_learn(await self._run(command), noted)

    async def amend(self, subject: Subject, verb: AmendVerb, what: str = "") -> Amended:
        """See `Store.amend`."""
        command = _commands.amend(self._account(subject), verb, what, self._given_ms())
        amended = _commands.read_amend(await self._run(command))
        await asyncio.sleep(self._settling_s(verb, self._spent))
        return amended

    async def switch(self, verb: SwitchVerb, name: str = "", value: str = "") -> Switches:
        """See `Store.switch`."""
        command = _commands.switch(self._prefix, verb, name, value, self._given_ms())
        switches = _commands.read_switch(await self._run(command))
        await asyncio.sleep(self._settling_s(verb, self._copy))
        return switches

    async def claim(self, holder: str, slots: int, lease_ms: int) -> int:
        """See `Store.claim`."""
        return cast("int", await self._run(_commands.claim(self._prefix, holder, slots, lease_ms)))

    async def close(self) -> None:
        """Close the running loop's client."""
        link = self._link()
        del self._local.loop
        await link.close()

    async def _admit(self, plan: Plan) -> Admission:
        if not self._is_split(plan):
            return await self._admit_whole(plan)
        steps = _partitions.admission(plan)
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._take(step))
        except StopIteration as done:
            return cast("Admission", done.value)

    async def _take(self, step: _partitions.Step) -> Admission | None:
        if isinstance(step, Plan):
            return await (self._admit_whole(step) if step.subjects else self._switched(step))
        await self._settle_whole(step, NOTHING)
        return None

    async def _switched(self, plan: Plan) -> Admission:
        if self._copy is None:
            return await self._admit_whole(plan)
        now = self.now_ms()
        stopped = self._copy.fresh(now)
        if stopped is None:
            try:
                stopped = self._copy.note((await self.switch("show")).stopped, now)
            except StoreError:
                stopped = self._copy.last(now)
                if stopped is None:
                    raise
        return _switches.answer(plan, stopped, now)

    async def _settle_whole(self, grant: Grant, charges: Charges) -> str:
        return cast("bytes", await self._run(self._settle(grant, charges))).decode()

    async def _admit_whole(self, plan: Plan) -> Admission:
        link = self._link()
        answer = self._read_admit(await link.run(self._admission(plan, self.now_ms())))
        if isinstance(answer, int):
            answer = self._read_admit(await link.run(self._admission(plan, answer)))
        return _certain(answer)

    async def _run(self, command: _commands.Command) -> object:
        return await self._link().run(command)

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
