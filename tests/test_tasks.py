"""Tests of `llm_budget_mw.tasks`: what a call is for chooses the model, and the event says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from llm_budget_mw.guard import Guard
from llm_budget_mw.types import ModelCall, Principal
from llm_budget_mw.wsgi import WSGIBudgetMiddleware
from tests.deployment import ALICE, Recorder, SwitchStore, configured, engine_of
from tests.edge.driver import ANSWER, CHAT, LIMITS, QUESTION
from tests.wsgi.driver import Exchange, answering

TASKS = {"summary": [{"model": "small"}], "hard": [{"model": "claude-x"}]}


class Known:
    """Takes everybody for one principal."""

    def __init__(self, **claims: Any) -> None:
        self._principal = Principal("alice", claims=claims)

    def authenticate(self, headers: object) -> Principal:
        return self._principal


def asked(
    headers: Mapping[str, str] | None = None,
    claims: Mapping[str, Any] | None = None,
    tasks: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[str, str | None]:
    """Send a question; return the model that was granted and the task in the event."""
    config = configured(
        {**LIMITS, "tasks": TASKS if tasks is None else tasks},
        routes=[{"path": CHAT, "dialect": "openai_chat"}],
        tasks={"claim": "task", "header": "X-Task"},
    )
    sink = Recorder()
    guard = Guard(engine_of(config), config, SwitchStore(), [sink], **options)
    app = answering(str(ANSWER).encode())
    middleware = WSGIBudgetMiddleware(app, guard=guard, authenticator=Known(**(claims or {})))
    Exchange(QUESTION, headers=headers).run(middleware)
    (event,) = sink.named("budget.settled")
    return event["model"], event["task"]


@pytest.mark.parametrize(
    ("headers", "claims", "expected"),
    [
        ({}, {}, ("big", None)),
        ({"X-Task": "summary"}, {}, ("small", "summary")),
        ({}, {"task": "hard"}, ("claude-x", "hard")),
        ({"X-Task": "summary"}, {"task": "hard"}, ("claude-x", "hard")),
        ({"X-Task": "summary"}, {"task": ["hard"]}, ("small", "summary")),
        ({"X-Task": "no such task"}, {}, ("big", None)),
    ],
    ids=["neither", "header", "claim", "both", "a claim that is no text", "unknown"],
)
def test_the_task_comes_from_the_claim_or_else_the_header(
    headers: dict[str, str], claims: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    """One nobody configured changes nothing."""
    assert asked(headers, claims) == expected


def test_the_application_may_say_what_a_call_is_for() -> None:
    """Its function sees principal, call and headers, and replaces claim and header."""
    seen: list[tuple[Principal, ModelCall, Mapping[str, str]]] = []

    def classify(principal: Principal, call: ModelCall, headers: Mapping[str, str]) -> str:
        seen.append((principal, call, headers))
        return "hard" if call.model == "big" else "summary"

    assert asked({"X-Task": "summary"}, classify=classify) == ("claude-x", "hard")
    ((principal, call, headers),) = seen
    assert (principal.id, call.model, headers["x-task"]) == ("alice", "big", "summary")


def test_a_tier_without_tasks_asks_nobody() -> None:
    """What chooses nothing costs nothing."""

    def classify(*_: object) -> str:
        raise AssertionError

    assert asked(tasks={}, classify=classify) == ("big", None)


@pytest.mark.parametrize(("task", "model"), [("summary", "small"), (None, "big"), ("?", "big")])
def test_a_call_in_code_names_its_task(task: str | None, model: str) -> None:
    """And gets the model of it in its request."""
    config = configured({"tasks": TASKS})
    guard = Guard(engine_of(config), config, SwitchStore())

    with guard.call(ALICE, task=task, **QUESTION) as call:
        call.cancel()

    assert call.request["model"] == call.model == model
