"""Windows and several limits, seen from the edge, with a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Receive, Scope

from llm_budget_mw.testing import AsyncMemoryStore, ManualClock, MemoryStore
from tests.asgi.driver import STREAMED, Site
from tests.edge.driver import ANSWER, DONE, USAGE_EVENT, Exchange, answering, delta, streaming

MINUTE = {"limit": "1000/minute", "window": "fixed"}


class Timed:
    """A guarded application whose store has a clock of its own."""

    def __init__(self, app: Any, tier: dict[str, Any]) -> None:
        self.clock = ManualClock()
        self.site = Site(app, tier, replaced=AsyncMemoryStore(MemoryStore(self.clock)))

    async def post(self, *body: Any) -> Exchange:
        """Send one request to the end."""
        exchange = Exchange(*body)
        await exchange.run(self.site.app)
        return exchange


async def test_a_stream_longer_than_its_window_is_charged_to_the_window_it_began_in() -> None:
    """The window in which it ends has all of its room."""
    begun, over = asyncio.Event(), asyncio.Event()

    async def wait(scope: Scope, receive: Receive) -> None:
        begun.set()
        await over.wait()

    app = streaming(delta("hello"), USAGE_EVENT, DONE, before=wait)
    timed = Timed(app, {"tokens": MINUTE})
    request = asyncio.create_task(timed.post(STREAMED))
    await begun.wait()
    timed.clock.advance(60_000)
    over.set()
    await request

    later = await timed.post(STREAMED)

    (first, second) = timed.site.settled(2)
    assert first["total_tokens"] == 42
    assert int(later.headers["x-ratelimit-remaining-tokens"]) == 1000 - second["held_tokens"]


async def test_a_stream_within_its_window_is_charged_to_it() -> None:
    """The same without the minute between: the next call finds 42 tokens less."""
    timed = Timed(streaming(delta("hello"), USAGE_EVENT, DONE), {"tokens": MINUTE})
    await timed.post(STREAMED)

    later = await timed.post(STREAMED)

    held = timed.site.settled(2)[1]["held_tokens"]
    assert int(later.headers["x-ratelimit-remaining-tokens"]) == 1000 - 42 - held


async def test_two_windows_of_one_resource_both_count() -> None:
    """The minute refuses first, then, with the next minutes, the day does."""
    app = answering(json.dumps(ANSWER).encode())
    requests = [{"limit": "2/minute", "window": "fixed"}, "3/day"]
    timed = Timed(app, {"requests": requests})

    in_a_row = [(await timed.post()).status for _ in range(3)]
    timed.clock.advance(60_000)
    next_minute = [await timed.post() for _ in range(2)]
    timed.clock.advance(86_400_000)
    next_day = await timed.post()

    assert in_a_row == [200, 200, 429]
    assert [answer.status for answer in next_minute] == [200, 429]
    assert "requests-per-day" in next_minute[1].error["details"]["violated_policies"]
    assert next_day.status == 200


@pytest.mark.parametrize("grants", [1, 3])
async def test_a_slot_is_free_again_after_its_call(grants: int) -> None:
    """As many at once as there are slots, and afterwards as many again."""
    go = asyncio.Event()
    app = answering(json.dumps(ANSWER).encode(), before=lambda *_: go.wait())
    timed = Timed(app, {"concurrency": grants})

    async def round_of_calls() -> list[int]:
        calls = [asyncio.create_task(timed.post()) for _ in range(grants + 2)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 2:
            done, _ = await asyncio.wait(calls, timeout=1, return_when=asyncio.FIRST_COMPLETED)
        go.set()
        return sorted([(await call).status for call in calls])

    first = await round_of_calls()
    go.clear()
    second = await round_of_calls()

    assert first == second == [200] * grants + [429] * 2
