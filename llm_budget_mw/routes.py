"""Which requests are guarded, and in which dialect they speak."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from llm_budget_mw.config import RouteConfig
from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects.protocol import Dialect, RequestHead
from llm_budget_mw.types import ModelCall, Prompt


class Route(NamedTuple):
    """One guarded route."""

    config: RouteConfig
    dialect: Dialect

    @property
    def is_custom(self) -> bool:
        """True if the body is the application's own, and its handler reports usage."""
        return self.config.dialect == "custom"

    def takes(self, method: str) -> bool:
        """Return whether requests with this method are guarded."""
        # Frameworks answer HEAD with the handler of GET, which makes the same call.
        methods = self.config.methods
        return method in methods or (method == "HEAD" and "GET" in methods)

    def read(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; where the body says nothing, the configuration does."""
        call = self.dialect.read_request(head, body)
        if not self.is_custom:
            return call
        config = self.config
        prompt = Prompt(overhead_tokens=config.input_tokens)
        return dataclasses.replace(
            call, model=config.model, prompt=prompt, max_output=config.max_tokens
        )


class Routes:
    """All guarded routes, found by path and method."""

    def __init__(self, configs: Sequence[RouteConfig]) -> None:
        self._exact: dict[str, Route] = {}
        prefixes: list[tuple[str, Route]] = []
        for config in configs:
            route = Route(config, dialect_for(config.dialect))
            if config.path.endswith("*"):
                prefixes.append((config.path[:-1], route))
            else:
                self._exact[config.path] = route
        # The longest prefix knows best.
        self._prefixes = sorted(prefixes, key=lambda item: -len(item[0]))

    def find(self, method: str, path: str) -> Route | None:
        """Return the route of a request; None if it is not guarded."""
        exact = self._exact.get(path)
        if exact and exact.takes(method):
            return exact
        for prefix, route in self._prefixes:
            if path.startswith(prefix) and route.takes(method):
                return route
        return None
