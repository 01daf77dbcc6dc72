"""A clock and a real key server for the tests of identity."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.identity.issuer import KeyServer, ManualClock, serve


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    keys = KeyServer()
    keys.gate.set()
    server = serve(keys)
    yield keys
    keys.drips = ""
    keys.gate.set()
    server.shutdown()
    server.server_close()
