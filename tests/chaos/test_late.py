"""An admission that was sent twice, because its connection was lost, counts once.

Which copy arrives first nobody knows: connections do not keep an order between them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from llm_budget_mw.stores import _commands
from llm_budget_mw.stores._commands import Command
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.types import Admission, Charges, Grant, Plan
from tests.servers import Proxy, ValkeyServer, fresh_prefix
from tests.stores.conftest import store_config
from tests.stores.kit import (
    DAY,
    NOTHING,
    START_MS,
    UNFIT,
    Driven,
    granted_by,
    limit,
    limits,
    plan,
    tokens,
)

THOUSAND = limits(limit(1000, window=DAY))
LEASE_MS = 5_000


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


class Wire:
    """Commands as they arrive, in whatever order a test wants."""

    def __init__(self, port: int) -> None:
        self._prefix = fresh_prefix()
        self._client = redis.Redis(port=port)

    def admit(self, asked: Plan, *, again: bool = False, at_ms: int = START_MS) -> Admission:
        command = _commands.admit(asked, self._prefix, at_ms, at_ms)
        reply = self._run(command.again if again else command)
        admission = _commands.read_admit(reply)
        assert isinstance(admission, Admission)
        return admission

    def settle(self, grant: Grant, charges: Charges) -> None:
        self._run(_commands.settle(grant, charges, self._prefix, START_MS, START_MS))

    def books(self, at_ms: int = START_MS) -> tuple[float, float]:
        """Return what is committed and held of the thousand."""
        counters = self.admit(plan(THOUSAND, offers=[UNFIT]), at_ms=at_ms).counters
        return counters[1], counters[2]

    def close(self) -> None:
        self._client.close()

    def _run(self, command: Command) -> bytes:
        script, keys, args = command
        reply: bytes = self._client.eval(script.source, len(keys), *keys, *args)
        return reply


@pytest.fixture
def wire(server: ValkeyServer) -> Iterator[Wire]:
    wire = Wire(server.port)
    yield wire
    wire.close()


def test_a_first_copy_that_arrives_after_the_settlement_is_not_held(wire: Wire) -> None:
    """The second copy was admitted, used and settled: nothing is left to admit."""
    asked = plan(THOUSAND, offers=[tokens(100)])
    wire.settle(granted_by(asked, wire.admit(asked, again=True)), Charges(1, 40, 40))

    late = wire.admit(asked)

    assert late.offer == 0
    assert wire.books() == (40, 0)


def test_a_first_copy_that_arrives_after_a_refusal_is_not_held(wire: Wire) -> None:
    """The second copy was refused, and its caller told so, although there is room by now."""
    other, asked = (plan(THOUSAND, offers=[tokens(fixed)]) for fixed in (950, 100))
    before = granted_by(other, wire.admit(other))
    assert wire.admit(asked, again=True).offer == 0
    wire.settle(before, NOTHING)

    late = wire.admit(asked)

    assert late.offer == 0
    assert wire.books() == (0, 0)


def test_the_second_copy_gets_the_answer_of_the_first(wire: Wire) -> None:
    """Whichever arrives first is admitted, and the other one is told the same."""
    asked = plan(THOUSAND, offers=[tokens(100)])
    wire.admit(asked)

    wire.settle(granted_by(asked, wire.admit(asked, again=True)), Charges(1, 40, 40))

    assert wire.books() == (40, 0)


def test_what_was_sent_twice_expires_like_anything_else(wire: Wire) -> None:
    """Its reservation is charged when nobody settles it, and corrected when somebody does."""
    asked = plan(THOUSAND, offers=[tokens(100)], lease_ms=LEASE_MS)
    grant = granted_by(asked, wire.admit(asked, again=True))
    assert wire.books(START_MS + LEASE_MS) == (100, 0)

    wire.settle(grant, Charges(1, 40, 40))
    wire.admit(asked, at_ms=START_MS + LEASE_MS)

    assert wire.books(START_MS + LEASE_MS) == (40, 0)


@pytest.mark.parametrize("kind", ["threads", "loop"])
@pytest.mark.parametrize("lost", [False, True])
def test_only_what_was_sent_twice_leaves_a_mark(
    server: ValkeyServer, kind: str, lost: bool
) -> None:
    """After a lost connection the store tells the server; a mark on every call would cost room."""
    proxy = Proxy(server.port)
    config = store_config(proxy.url)
    store = connect(config) if kind == "threads" else Driven(connect_async(config))
    first, asked = (plan(THOUSAND) for _ in range(2))
    store.settle(granted_by(first, store.admit(first)), NOTHING)
    if lost:
        proxy.hang_up()

    store.settle(granted_by(asked, store.admit(asked)), NOTHING)

    with redis.Redis(port=server.port) as client:
        (key,) = client.keys(f"{config.prefix}:*")
        assert client.hexists(key, f"#{asked.id}") is lost
    store.close()
    proxy.close()
