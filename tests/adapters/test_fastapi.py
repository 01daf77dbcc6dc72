"""The FastAPI adapter: the dependency, and the answers it documents."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from llm_budget_mw import BudgetMiddleware
from llm_budget_mw.errors import MissingDependencyError
from llm_budget_mw.testing import Issuer
from llm_budget_mw_fastapi import (
    BudgetErrorAnswer,
    BudgetProblem,
    CurrentBudget,
    budget_responses,
    get_budget,
)
from tests.serving import serving

ISSUER = Issuer()
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}


def application(**tier: Any) -> FastAPI:
    """Return an application with a guarded route in each of two formats, and one without."""
    app = FastAPI()
    config = {
        "jwt": ISSUER.config(),
        "tiers": {"default": {"max_tokens": 50, **tier}},
        "tokens": {"exact": False},
        "events": {"log": False, "metrics": False, "span": False},
        "routes": [
            {"path": "/own", "dialect": "custom", "model": "gpt-4o"},
            {"path": "/chat", "dialect": "openai_chat"},
        ],
    }
    app.add_middleware(BudgetMiddleware, config=config)

    @app.post("/own", responses=budget_responses())
    async def own(budget: CurrentBudget) -> dict[str, Any]:
        budget.record({"prompt_tokens": 10, "completion_tokens": 5})
        return {"model": budget.model, "max_tokens": budget.max_tokens}

    @app.post("/chat", responses=budget_responses())
    def chat(budget: CurrentBudget) -> dict[str, int]:
        return budget.remaining

    @app.post("/free")
    async def free(budget: CurrentBudget) -> None: ...

    return app


def headers(**claims: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {ISSUER.token('alice', **claims)}"}


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with serving(application(requests="2/day")) as url, httpx2.Client(base_url=url) as client:
        yield client


def test_a_handler_gets_its_budget(client: httpx2.Client) -> None:
    """A parameter annotated with `CurrentBudget` is the budget of the request."""
    answer = client.post("/own", headers=headers())

    assert answer.json() == {"model": "gpt-4o", "max_tokens": 50}


def test_a_handler_in_a_thread_gets_its_budget(client: httpx2.Client) -> None:
    """A handler that is a plain function gets the same."""
    answer = client.post("/chat", json=CHAT, headers=headers())

    assert answer.json() == {"requests-per-day": 1}


def test_a_refusal_is_what_is_documented(client: httpx2.Client) -> None:
    """Refusals have the documented shape in both formats, and the documented headers."""
    for _ in range(2):
        client.post("/own", headers=headers())

    own = client.post("/own", headers=headers())
    chat = client.post("/chat", json=CHAT, headers=headers())

    problem = BudgetProblem.model_validate(own.json(), extra="forbid")
    error = BudgetErrorAnswer.model_validate(chat.json(), extra="forbid")
    assert (own.status_code, chat.status_code) == (429, 429)
    assert problem.violated_policies == error.error.details.violated_policies
    assert problem.violated_policies == ["requests-per-day"]
    for name in budget_responses()[429]["headers"]:
        assert name.lower() in own.headers


def test_a_caller_without_a_credential_is_told_so_as_documented(client: httpx2.Client) -> None:
    """A 401 has the documented shape and header."""
    answer = client.post("/own")

    BudgetProblem.model_validate(answer.json(), extra="forbid")
    assert answer.status_code == 401
    assert set(budget_responses()[401]["headers"]) == {"WWW-Authenticate"}
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_route_that_is_not_guarded_says_what_to_do() -> None:
    """Asking for a budget where none is raises an error that names the request and the remedy."""
    with pytest.raises(LookupError, match=r"POST /free has no budget: add its path to `routes`"):
        TestClient(application()).post("/free")


def test_a_test_may_replace_the_budget() -> None:
    """`get_budget` can be overridden like any dependency."""
    app = application()

    class Fixed:
        pass

    app.dependency_overrides[get_budget] = Fixed

    assert TestClient(app).post("/free").status_code == 200


@pytest.mark.parametrize("status", ["400", "401", "402", "403", "413", "429", "503"])
def test_the_openapi_document_has_every_answer(status: str) -> None:
    """Each status is documented with a description and both shapes of its body."""
    document = application().openapi()

    answer = document["paths"]["/own"]["post"]["responses"][status]

    content = answer["content"]
    assert answer["description"]
    assert content["application/json"]["schema"]["$ref"].endswith("/BudgetErrorAnswer")
    assert "violated-policies" in content["application/problem+json"]["schema"]["properties"]


def test_the_openapi_document_has_the_headers() -> None:
    """Headers are documented where they are sent, the wait as a number."""
    answers = application().openapi()["paths"]["/chat"]["post"]["responses"]

    assert answers["429"]["headers"]["Retry-After"]["schema"] == {"type": "integer"}
    assert "RateLimit" in answers["429"]["headers"]
    assert "headers" not in answers["400"]


@pytest.mark.parametrize(
    ("missing", "error"),
    [("fastapi", MissingDependencyError), ("starlette.requests", ModuleNotFoundError)],
)
def test_a_missing_package_is_named(
    missing: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without FastAPI the import says which extra to install; another failure stays its own."""
    for name in [name for name in sys.modules if name.startswith("llm_budget_mw_fastapi")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(error, match=r"llm-budget-mw\[fastapi\]|starlette"):
        importlib.import_module("llm_budget_mw_fastapi")
