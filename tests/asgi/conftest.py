"""A Valkey that the tests of the edge share; each has keys of its own in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import ValkeyServer


@pytest.fixture(scope="package")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server
