"""The Flask application that tests start on gunicorn; its configuration comes as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request, stream_with_context

from llm_budget_mw_flask import LLMBudget, current_budget
from tests.edge.driver import ANSWER, CHAT, DONE, USAGE_EVENT, delta

budget = LLMBudget()
REPORT = {"prompt_tokens": 12, "completion_tokens": 30}


def create_app() -> Flask:
    """Make an application, as a factory does."""
    app = Flask("live")
    app.config.from_prefixed_env()
    budget.init_app(app)
    app.add_url_rule(CHAT, "chat", chat, methods=["POST"])
    app.add_url_rule("/own", "own", own, methods=["POST"])
    return app


def chat() -> Any:
    """Answer as a provider would; a stream without an end if the model is asked for none."""
    asked = request.get_json()
    if not asked.get("stream"):
        return ANSWER
    endless = asked["messages"][0]["content"] == "for ever"

    def events() -> Iterator[bytes]:
        yield delta("hel")
        while endless:
            yield delta("x" * 100)
        yield delta("lo")
        yield USAGE_EVENT
        yield DONE

    return Response(stream_with_context(events()), mimetype="text/event-stream")


@budget.guard(model="big", input_tokens=100, max_tokens=50)
async def own() -> Any:
    """Report what a call has used, in a coroutine."""
    current_budget.record(REPORT)
    return {"body": request.get_data(as_text=True), "model": current_budget.model}


def environment(config: dict[str, Any]) -> dict[str, str]:
    """Return the variables that configure the application."""
    return {"FLASK_LLM_BUDGET_CONFIG": json.dumps(config)}
