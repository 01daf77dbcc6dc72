"""The guard of an endpoint: a dependency that has the request admitted where it stands."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import cast

from fastapi import Depends, HTTPException
from starlette.requests import HTTPConnection, Request

from llm_budget_mw.current import CURRENT, Budget
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.passage import SCOPE_KEY, STATE_KEY, Passage
from llm_budget_mw.routes import Route, route_of
from llm_budget_mw.types import Principal
from llm_budget_mw_fastapi.body import put_back, read_body
from llm_budget_mw_fastapi.dependency import noting

_MODEL_IN_PATH = ("bedrock", "bedrock_invoke", "gemini")
_ANYWHERE = "/*"


def guard(
    *,
    dialect: str = "custom",
    feature: str | None = None,
    model: str | None = None,
    input_tokens: int = 0,
    max_tokens: int | None = None,
    principal: Callable[..., object] | None = None,
) -> Callable[..., AsyncIterator[Budget | None]]:
    """Return a dependency that admits a request and gives its `Budget`.

        @app.post("/search", dependencies=[Depends(guard(feature="search", model="gpt-4o"))])

    The options are those of a route in the configuration. `principal` is a dependency that
    returns the `Principal` to charge; without it the middleware's authenticator says who that
    is. Of several guards on the way to an endpoint (application, router, endpoint) the first
    admits, and the others must ask for the same. A path among `routes` in the configuration is
    admitted as that says. OPTIONS is not admitted and has no budget: None.

    Raises `ConfigurationError` naming every wrong option. In a request it raises why that is
    refused (`AuthenticationError`, `RequestError`, `BudgetExceeded`): the middleware answers
    it in the format of the dialect, unless the application has a handler for it.
    """
    if dialect in _MODEL_IN_PATH:
        raise ConfigurationError(
            f"guard(dialect={dialect!r}) comes too late: the model stands in the path, which has "
            "been read by then; add the path to `routes` in the configuration instead"
        )
    route = route_of(
        _ANYWHERE,
        dialect=dialect,
        feature=feature,
        model=model,
        input_tokens=input_tokens,
        max_tokens=max_tokens,
    )

    @functools.cache  # endpoints are few
    def placed(path: str) -> Route:
        return route._replace(config=route.config.model_copy(update={"path": path}))

    # Comes before `principal`, so that what that raises is answered in this route's format.
    async def expect(connection: HTTPConnection) -> None:
        endpoint = connection.scope.get("route")
        _expect(placed(getattr(endpoint, "path", None) or _ANYWHERE), connection)

    async def admit(
        connection: HTTPConnection,
        expected: None = Depends(expect),
        who: object = Depends(principal or _unknown),
    ) -> AsyncIterator[Budget | None]:
        request = cast("Request", connection)
        if request.method == "OPTIONS":
            yield None
            return
        if principal is not None and not isinstance(who, Principal):
            raise TypeError(
                f"guard(principal=...) got {type(who).__name__} from {principal!r}: "
                "let it return an llm_budget_mw.Principal, or raise"
            )
        budget = _budget(request) or await _admitted(request, cast("Principal | None", who))
        CURRENT.set(budget)
        with noting(budget):
            yield budget

    return admit


async def _unknown() -> None:
    """Leave it to the middleware to say who asks."""


def _budget(connection: HTTPConnection) -> Budget | None:
    """Return the budget of a request that is admitted already."""
    budget: Budget | None = connection.scope.get("state", {}).get(STATE_KEY)
    return budget


def _expect(route: Route, connection: HTTPConnection) -> None:
    """Prepare the admission of a request; raises `RuntimeError` where there can be none."""
    scope = connection.scope
    if scope["type"] != "http":
        raise RuntimeError(
            f"{scope['path']}: guard() cannot guard a WebSocket; make each call with "
            "`AsyncGuard.call` instead"
        )
    passage: Passage | None = scope.get(SCOPE_KEY)
    if _budget(connection) is None:
        if passage is None:
            raise RuntimeError(
                f"{scope['method']} {scope['path']} cannot be guarded: add BudgetMiddleware of "
                "llm_budget_mw_fastapi to the application (that of llm_budget_mw guards the "
                "configured routes only)"
            )
        passage.route = route
    elif passage is not None and passage.exchange is not None and passage.route != route:
        raise RuntimeError(
            f"{scope['method']} {scope['path']} has two guards that ask for different things, "
            f"{passage.route and passage.route.config!r} and {route.config!r}: leave one"
        )


async def _admitted(request: Request, who: Principal | None) -> Budget:
    """Have a request admitted; raises what the gate refuses it with."""
    passage: Passage = request.scope[SCOPE_KEY]
    route = cast("Route", passage.route)

    async def known() -> Principal:
        return cast("Principal", who)

    async def read(limit: int) -> bytes | None:
        # Nothing in a body of the application's own is ours to read.
        return b"" if route.is_custom else await read_body(request, limit)

    written = await passage.admit(route, known if who is not None else None, read)
    if written is None or passage.exchange is None:
        # FastAPI's own words where the client leaves while it reads a parameter.
        raise HTTPException(400, "There was an error parsing the body")
    if not route.is_custom:
        await put_back(request, written.body)
    return passage.exchange.budget
