"""The whole middleware around an application that answers at once, without a network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import redis.asyncio
from starlette.types import ASGIApp

from benchmarks import _server, peers
from benchmarks._deployment import ask, configuration, log_to_nowhere, requests
from benchmarks.measure import (
    AT_ONCE,
    Goal,
    Result,
    Timings,
    Variant,
    all_at_once,
    alternate,
    at_least,
    at_most,
    one_by_one,
)
from llm_budget_mw.asgi import BudgetMiddleware

_ROUNDS = 30
_COUNT = 40
_EACH = 3
_BARE, _TWO, _OURS = "no middleware", "2 bare EVALSHA", "llm-budget-mw"
_SLOWAPI, _LIMITER = "slowapi", "fastapi-limiter"


def run() -> Iterable[Result]:
    """Measure one request at a time, and many at once."""
    log_to_nowhere()
    yield from asyncio.run(_measure("Starlette", peers.starlette_app()))
    yield from asyncio.run(_measure("FastAPI", peers.fastapi_app()))


async def _measure(framework: str, app: ASGIApp) -> list[Result]:
    client = _server.async_client()
    sha = str(await client.script_load("return 1"))
    ours = BudgetMiddleware(app, config=configuration())
    apps: dict[str, ASGIApp] = {
        _BARE: app,
        _TWO: peers.TwoCommands(app, client, sha),
        _OURS: ours,
    }
    missing: list[str] = []
    share: Goal | None = None
    if framework == "FastAPI":
        found, missing = await _others(client)
        apps |= found
        share = at_least(0.5)
    alone, together = await _time(apps)
    await ours.guard.close()
    await client.aclose()
    return [
        *_one_at_a_time(f"{framework}, one at a time", alone, apps),
        *_at_once(f"{framework}, {AT_ONCE} at once", together, apps, share),
        *(Result(f"{framework}: {name}", "not installed") for name in missing),
    ]


async def _others(client: redis.asyncio.Redis) -> tuple[dict[str, ASGIApp], list[str]]:
    """Return the packages that are installed, and the names of those that are not."""
    apps: dict[str, ASGIApp] = {}
    with contextlib.suppress(ImportError):
        apps[_SLOWAPI] = peers.slowapi_app()
    with contextlib.suppress(ImportError):
        apps[_LIMITER] = await peers.fastapi_limiter_app(client)
    return apps, [name for name in (_SLOWAPI, _LIMITER) if name not in apps]


async def _time(apps: Mapping[str, ASGIApp]) -> tuple[Timings, Timings]:
    source = requests()

    async def one(app: ASGIApp) -> None:
        await ask(app, next(source))

    alone: dict[str, Variant] = {}
    together: dict[str, Variant] = {}
    for name, app in apps.items():
        alone[name] = partial(one_by_one, partial(one, app), _COUNT)
        together[name] = partial(all_at_once, partial(one, app), _EACH)
    return await alternate(_ROUNDS, alone), await alternate(_ROUNDS, together)


def _one_at_a_time(title: str, timings: Timings, names: Iterable[str]) -> Iterator[Result]:
    for name in names:
        yield Result(f"{title}: {name}", timings.us(name), "us")
    yield Result(f"{title}: ours / {_TWO}", timings.ratio(_OURS, _TWO), "x", at_most(2.0))


def _at_once(
    title: str, timings: Timings, names: Iterable[str], goal: Goal | None
) -> Iterator[Result]:
    for name in names:
        yield Result(f"{title}: {name}", 1e6 / timings.us(name), "/s")
    # The share of the requests a second is the inverse of that of the time.
    share = timings.ratio(_BARE, _OURS)
    others = [timings.ratio(name, _OURS) for name in (_SLOWAPI, _LIMITER) if name in names]
    yield Result(f"{title}: ours / {_BARE}", share, "x", goal)
    if others:
        yield Result(f"{title}: ours / best other package", min(others), "x", at_least(1.5))
