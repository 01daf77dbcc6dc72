"""The page on clients does what it says: all of its code runs, in the order of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from llm_budget_mw import Guard, Principal
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.testing import FakeProvider
from llm_budget_mw.types import Grade
from tests.serving import serving

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
JOB = {
    "id": "b",
    "object": "batch",
    "status": "completed",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "f",
    "output_file_id": "o",
    "completion_window": "24h",
    "created_at": 1,
}
USED = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


async def _file(request: Request) -> Response:
    return JSONResponse({"id": "f", "object": "file", "purpose": "batch"})


async def _batch(request: Request) -> Response:
    return JSONResponse(JOB)


async def _results(request: Request) -> Response:
    answer = {
        "status_code": 200,
        "request_id": "r",
        "body": {"model": "gpt-4o-mini", "usage": USED},
    }
    results = [{"custom_id": str(number), "response": answer} for number in range(10)]
    return Response("\n".join(map(json.dumps, results)))


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProvider]:
    """Lay out what the page tells its reader to have; answers are cut short at 500 tokens."""
    provider = FakeProvider(output_tokens=600)
    routes = [
        Route("/v1/files", _file, methods=["POST"]),
        Route("/v1/files/o/content", _results),
        Route("/v1/batches", _batch, methods=["POST"]),
        Route("/v1/batches/b", _batch),
        Mount("/", provider),
    ]
    (tmp_path / "llm_budget.toml").write_text(blocks("toml")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-example")
    with serving(Starlette(routes=routes)) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        yield provider


def test_the_page_runs_from_its_beginning_to_its_end(provider: FakeProvider) -> None:
    """And what it says of each piece is so."""
    names: dict[str, Any] = {"__name__": "page"}
    for code in blocks("python"):
        exec(compile(code, "clients.md", "exec"), names)  # noqa: S102 (the page is ours)

    clients = [names[name] for name in ("client", "patient", "paced", "plain")]
    try:
        assert names["answer"].usage.completion_tokens == 500
        assert {call.max_tokens for call in provider.calls} == {500}
        assert [tried.outcome for tried in names["chosen"].tried] == ["rejected", "rejected"]
        assert names["summary"].model == "gpt-4o-mini"
        assert len(names["shorter"]) < len(names["history"])
        assert names["shorter"][0]["role"] == "system"
        assert (names["settled"].grade, names["settled"].charges.tokens) == (Grade.EXACT, 300)
        assert names["job"](names["who"], "hi").choices
        with pytest.raises(names["BudgetExceeded"]):
            _few(names)
    finally:
        for client in clients:
            client.close()
        names["guard"].close()


def _few(names: dict[str, Any]) -> None:
    """Run the loop of the page under a limit of seven; then ask once more."""
    config = {"tiers": {"default": {"requests": "7/day", "max_tokens": 5}}}
    guard = names["guard"]
    names["guard"] = few = Guard.open(config, store=MemoryStore(), sinks=[])
    try:
        assert names["rounds"](Principal("agent"), 30) == 7
        names["job"](names["hand_over"](Principal("agent"), names["SECRET"]), "hi")
    finally:
        few.close()
        names["guard"] = guard
