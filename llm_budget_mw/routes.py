"""Which requests are guarded, and in which dialect they speak."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_budget_mw.config import RouteConfig, load_route
from llm_budget_mw.dialects import DIALECTS, dialect_for
from llm_budget_mw.dialects.detection import detect, is_odd, plain
from llm_budget_mw.dialects.protocol import Dialect, RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Prompt

_REFUSING = "openai_chat"
"""In whose words an unknown path is refused: the SDKs of OpenAI and Anthropic read them."""
_SHOWN = 200


class Route(NamedTuple):
    """One guarded route."""

    config: RouteConfig
    dialect: Dialect
    refuses: bool = False
    """True if nobody knows what is served at the path, and so nothing is let through."""

    @property
    def is_custom(self) -> bool:
        """True if the body is the application's own, and its handler reports usage."""
        return self.dialect.name == "custom"

    def takes(self, method: str) -> bool:
        """Return whether requests with this method are guarded."""
        # Frameworks answer HEAD with the handler of GET, which makes the same call.
        methods = self.config.methods
        return method in methods or (method == "HEAD" and "GET" in methods)

    def read(self, head: RequestHead, body: bytes) -> ModelCall:
        """Read a request; where the body says nothing, the configuration does.

        Raises `RequestError` for a body that cannot be read, and for a path nobody knows.
        """
        if self.refuses:
            raise _unknown(head)
        call = self.dialect.read_request(head, body)
        if not self.is_custom:
            return call
        config = self.config
        prompt = Prompt(overhead_tokens=config.input_tokens)
        return dataclasses.replace(
            call, model=config.model, prompt=prompt, max_output=config.max_tokens
        )


def route_of(path: str, **options: Any) -> Route:
    """Return a route whose options stand in code, as those of `routes` do in a configuration.

    Without a `dialect` the body is the application's own. Raises `ConfigurationError` naming
    every wrong option.
    """
    config = load_route(path, {"dialect": "custom", **options})
    return _route(config, config.dialect or "custom")


class Routes:
    """All guarded routes, found by path and method."""

    def __init__(self, configs: Sequence[RouteConfig]) -> None:
        self._exact: dict[str, Route] = {}
        prefixes: list[tuple[str, RouteConfig]] = []
        for config in configs:
            if config.path.endswith("*"):
                prefixes.append((config.path[:-1], config))
            else:
                self._exact[config.path] = _route(config, config.dialect or "custom")
        # The longest prefix knows best.
        prefixes.sort(key=lambda item: -len(item[0]))
        self._prefixes = [_Prefix(prefix, config) for prefix, config in prefixes]

    def find(self, method: str, path: str) -> Route | None:
        """Return the route of a request, its path decoded; None if it is not guarded."""
        method = method.upper()
        exact = self._exact.get(path)
        if exact and exact.takes(method):
            return exact
        if not self._prefixes:
            return None
        resolved = _resolved(path)
        for prefix in self._prefixes:
            if prefix.covers(path, resolved) and prefix.takes(method):
                return prefix.route(path)
        return None


class _Prefix:
    """The requests below one path: of one dialect, or each of the one its own path tells."""

    def __init__(self, prefix: str, config: RouteConfig) -> None:
        self._prefix = prefix
        self._plain = plain(prefix)
        self._config = config
        self._refusing = Route(config, dialect_for(_REFUSING), refuses=True)
        self._told = {name: _route(config, name) for name in DIALECTS}
        self.takes = self._refusing.takes

    def covers(self, path: str, resolved: str) -> bool:
        """Return whether a path is below this one, in whatever spelling."""
        return path.startswith(self._prefix) or resolved.startswith(self._plain)

    def route(self, path: str) -> Route | None:
        """Return the route of a path below; None if it is to pass unguarded."""
        if self._config.dialect:
            return self._told[self._config.dialect]
        if is_odd(path):
            # What is let through under one spelling may be served under another.
            return self._refusing
        name = detect(path)
        if name:
            return self._told[name]
        unknown = {"refuse": self._refusing, "custom": self._told["custom"], "pass": None}
        return unknown[self._config.unknown_route]


def _route(config: RouteConfig, dialect: str) -> Route:
    return Route(config, dialect_for(dialect, cache_prompt=config.cache_prompt))


def _resolved(path: str) -> str:
    """Return where a path leads to if whatever divides or encodes its segments is resolved."""
    # Two slashes at the beginning mean something to POSIX, but not to HTTP.
    return posixpath.normpath("/" + plain(path).replace("\\", "/").lstrip("/"))


def _unknown(head: RequestHead) -> RequestError:
    return RequestError(
        f"What is asked of a model at {head.path[:_SHOWN]!r} is not known here, so it cannot be "
        "given a budget. Configure a route for this path, or `unknown_route` for those around it.",
        status=404,
        code="unknown_route",
    )
