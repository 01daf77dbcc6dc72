"""A world for guarded clients: both guards on one store, and providers on a real socket."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.types import Receive, Scope, Send

from tests.clients.provider import Stage
from tests.clients.world import World, world_of
from tests.serving import serving


class _Theatre:
    """Plays whatever stage the test at hand has set."""

    def __init__(self) -> None:
        self.stage = Stage()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with contextlib.suppress(ConnectionAbortedError):
                await self.stage(scope, receive, send)


@pytest.fixture(scope="session")
def theatre() -> Iterator[tuple[_Theatre, str]]:
    theatre = _Theatre()
    with serving(theatre) as url:
        yield theatre, url


@pytest.fixture
async def world(theatre: tuple[_Theatre, str]) -> AsyncIterator[World]:
    stage = theatre[0].stage = Stage()
    world = world_of(theatre[1], stage)
    yield world
    await world.close()
