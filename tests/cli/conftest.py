"""The command as a fixture, by itself and with a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.cli.program import TIERS, Program
from tests.servers import ValkeyServer, fresh_prefix


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo that a command logs to standard error."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="package")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    program = Program(tmp_path, capsys)
    program.configure(TIERS)
    return program


@pytest.fixture
def stored(command: Program, valkey: ValkeyServer) -> Program:
    """Give the command a real store, with keys nobody else uses."""
    prefix = fresh_prefix().partition(":")[2]
    store = f'[store]\nurl = "{valkey.url}"\nprefix = "{prefix}"\ndeadline_ms = 5000'
    command.configure(store, TIERS)
    return command
