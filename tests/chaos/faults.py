"""What goes wrong, one thing after the other, while calls go on and streams are open."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from tests.chaos.proxy import FAIR, Weather
from tests.chaos.settings import LEASE_S
from tests.chaos.world import Process, World

Fault = Callable[[World], Awaitable[None]]
_BLINK_S = 0.6
"""Long enough for commands to pass their deadline."""
_OUTAGE_S = 0.7
"""Long enough for breakers to open and for settlements to queue."""
_STREAM_S = 2.0


async def kill_in_stream(world: World) -> None:
    """SIGKILL a worker that is streaming."""
    worker = await _streaming(world)
    worker.popen.kill()
    world.replace(worker)


async def kill_anyone(world: World) -> None:
    """SIGKILL a worker, whatever it does."""
    worker = world.rng.choice(world.workers)
    worker.popen.kill()
    world.replace(worker)


async def terminate(world: World) -> None:
    """SIGTERM a worker, as a deployment does."""
    worker = world.rng.choice(world.workers)
    worker.popen.terminate()
    world.replace(worker)


async def freeze_store(world: World) -> None:
    """SIGSTOP the store for a moment."""
    await _frozen(world, _BLINK_S)


async def freeze_store_for_long(world: World) -> None:
    """SIGSTOP the store until every lease is over, with calls still running."""
    await _frozen(world, LEASE_S + 1)


async def crash_store(world: World) -> None:
    """SIGKILL the store, and start it on what is on its disk."""
    await asyncio.to_thread(world.server.restart)


async def forget_scripts(world: World) -> None:
    """SCRIPT FLUSH."""
    await asyncio.to_thread(world.server.forget_scripts)


def weather(kind: Weather, duration_s: float = _OUTAGE_S) -> Fault:
    """Return the fault of a bad way to the store."""

    async def bad_weather(world: World) -> None:
        world.proxy.weather = kind
        try:
            await asyncio.sleep(duration_s)
        finally:
            world.proxy.weather = FAIR

    return bad_weather


FAULTS: dict[str, Fault] = {
    "kill in stream": kill_in_stream,
    "kill anyone": kill_anyone,
    "terminate": terminate,
    "freeze store": freeze_store,
    "freeze store for long": freeze_store_for_long,
    "crash store": crash_store,
    "forget scripts": forget_scripts,
    "delay": weather(Weather(delay_s=0.4)),
    "closed": weather(Weather(closed=True)),
    "deaf": weather(Weather(deaf=True)),
    "mute": weather(Weather(mute=True)),
    "lose": weather(Weather(lose=0.3)),
    "cut": weather(Weather(cut=0.3)),
    "late": weather(Weather(late=0.2, late_s=1.0)),
}


async def while_cut_off(world: World, fault: Fault) -> None:
    """Let something happen while nobody reaches the store and settlements are queued."""
    world.proxy.weather = Weather(closed=True)
    try:
        await asyncio.sleep(_OUTAGE_S)
        await fault(world)
    finally:
        world.proxy.weather = FAIR


async def _frozen(world: World, duration_s: float) -> None:
    world.server.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(duration_s)
    finally:
        world.server.send(signal.SIGCONT)


async def _streaming(world: World) -> Process:
    """Return a worker that has streams open; any, if none has for a while."""
    deadline = asyncio.get_running_loop().time() + _STREAM_S
    while asyncio.get_running_loop().time() < deadline:
        found = [worker for worker in world.workers if worker.listening]
        if found:
            return world.rng.choice(found)
        await asyncio.sleep(0.005)  # streams come and go in other processes
    return world.rng.choice(world.workers)
