"""A grant that cannot be written into its request."""

from __future__ import annotations

import json

import pytest

from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.errors import RequestError
from tests.edge.driver import Bench
from tests.wsgi.driver import Bench as WSGIBench


def refuse(*_: object) -> None:
    raise RequestError("No request says that.")


async def never(*_: object) -> None:
    raise AssertionError("the application was asked")


async def test_an_unwritable_grant_is_a_400_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application is not asked, and the client is told why."""
    monkeypatch.setattr(OpenAIChat, "write_grant", refuse)
    bench = Bench(never)

    exchange = await bench.post()

    assert exchange.status == 400
    assert json.loads(exchange.body)["error"]["message"] == "No request says that."
    assert bench.settled["grade"] == "released"


def test_an_unwritable_grant_is_released_under_wsgi(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rule."""
    monkeypatch.setattr(OpenAIChat, "write_grant", refuse)

    def application(*_: object) -> list[bytes]:
        raise AssertionError("the application was asked")

    bench = WSGIBench(application)
    exchange = bench.post()

    assert exchange.status == 400
    assert bench.settled["grade"] == "released"
