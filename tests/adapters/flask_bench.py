"""A Flask application whose guard has a store and a sink that can be looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from llm_budget_mw.guard import Guard
from llm_budget_mw_flask import LLMBudget
from tests.deployment import Recorder, SwitchStore, configured, engine_of
from tests.edge.driver import CHAT, ISSUER, LIMITS, QUESTION, ROUTES


class FlaskBench:
    """An application made by a factory, to which a test adds its views."""

    def __init__(
        self,
        tier: Mapping[str, Any] | None = None,
        *,
        authenticator: Any = None,
        before: Callable[[Flask], object] = lambda app: None,
        settings: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> None:
        self.store = SwitchStore()
        self.sink = Recorder()
        self.config = configured(
            {**LIMITS, **(tier or {})}, **{"routes": ROUTES, "jwt": ISSUER.config(), **sections}
        )
        self.guard = Guard(engine_of(self.config), self.config, self.store, [self.sink])
        self.app = Flask("bench")
        self.app.config.from_mapping(
            {"LLM_BUDGET_GUARD": self.guard, "SECRET_KEY": "a secret", **(settings or {})}
        )
        before(self.app)
        self.budget = LLMBudget(authenticator=authenticator)
        self.budget.init_app(self.app)

    @property
    def client(self) -> FlaskClient:
        """A client without cookies yet."""
        return self.app.test_client()

    @property
    def settled(self) -> dict[str, Any]:
        """Return the one settlement there was."""
        (only,) = self.sink.named("budget.settled")
        return only

    @property
    def grade(self) -> tuple[str, str]:
        """Return how the one settlement was graded, and how the call ended."""
        return self.settled["grade"], self.settled["ending"]

    def post(
        self,
        body: Any = QUESTION,
        path: str = CHAT,
        *,
        token: str | None = "",
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
        **options: Any,
    ) -> TestResponse:
        """Send one request to the end and return the answer."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        credential = ISSUER.token("alice") if token == "" else token
        sent = {"authorization": f"Bearer {credential}"} if credential else {}
        # Like a server, read the answer to its end and close it.
        options.setdefault("buffered", True)
        return self.client.open(
            path, method=method, data=raw, headers={**sent, **(headers or {})}, **options
        )


def content(answer: TestResponse) -> Any:
    """Return an answer's JSON."""
    return json.loads(answer.data)
