"""The transports that admit, watch and settle what a client sends."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from llm_budget_mw._body import decoded
from llm_budget_mw.calls import SCOPE, AsyncCall, Scope, running_loop
from llm_budget_mw.clients.library import Library, joined
from llm_budget_mw.clients.pace import PaceExceeded
from llm_budget_mw.clients.refusal import refuse
from llm_budget_mw.clients.streams import AsyncGuardedStream, GuardedStream
from llm_budget_mw.clients.watched import Watched
from llm_budget_mw.clients.wrapping import AsyncWrapping, Wrapping
from llm_budget_mw.current import CURRENT
from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects.detection import costs_nothing, detect
from llm_budget_mw.dialects.protocol import Dialect, RequestHead
from llm_budget_mw.errors import BudgetError, ConfigurationError, RequestError

_MOST_BYTES = 256 * 1024 * 1024
"""Of a compressed body, unfolded."""
_REFUSED = (BudgetError, RuntimeError)
"""What is raised before a request is sent."""


class Rules(NamedTuple):
    """How one client is guarded."""

    library: Library
    outside: Scope | None
    """Who is charged for a call that nobody else is."""
    dialect: str | None
    """The dialect of every request that is not free; None: by its path."""
    unknown: Literal["refuse", "pass"]
    """What becomes of a request that no dialect knows, and that may cost something."""


class _Transport:
    """What the two do alike; nothing here waits."""

    _rules: Rules

    def _known(self, request: Any) -> tuple[RequestHead, Dialect] | None:
        """Return what a call of a model is written in; None if the request may pass unread."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        url = request.url
        head = RequestHead(request.method, url.path, url.query.decode("ascii"), headers)
        name = self._dialect(head)
        return None if name is None else (head, dialect_for(name))

    def _open(self, request: Any, head: RequestHead, dialect: Dialect) -> Watched:
        """Return the call that a request is, not admitted yet."""
        if head.headers.get("authorization", "").startswith("AWS4-"):
            raise RequestError(
                "A signed request cannot be guarded: the signature is of the body as it was "
                "before the grant. Authenticate with a bearer token (an API key of Bedrock)."
            )
        coding = head.headers.get("content-encoding", "")
        asked = dialect.read_request(head, decoded(request.content, coding, _MOST_BYTES))
        call = self._scope(head).make(asked, dialect.name).without_scope()
        return Watched(self._rules.library, head, dialect, asked, call)

    def _dialect(self, head: RequestHead) -> str | None:
        if costs_nothing(head.method, head.path):
            return None
        name = self._rules.dialect or (detect(head.path) if head.method == "POST" else None)
        if name is None and self._rules.unknown == "refuse":
            raise RequestError(
                f"{head.method} {head.path} is no call of a model that can be guarded. "
                'Send it with another client, or let it pass with guarded(..., unknown="pass").',
                status=404,
                code="unknown_route",
            )
        return name

    def _scope(self, head: RequestHead) -> Scope:
        scope = SCOPE.get() or CURRENT.get() or self._rules.outside
        if scope is None:
            raise ConfigurationError(
                f"outside: nobody is charged for {head.method} {head.path}, which was sent outside "
                "a guarded request. Send it inside `with charge(guard, principal)`, or name who "
                "pays with guarded(..., outside=(guard, principal))."
            )
        return scope


class GuardedTransport(_Transport, Wrapping):
    """A transport of a synchronous client."""

    def __init__(self, inner: Any, rules: Rules) -> None:
        super().__init__(inner)
        self._rules = rules

    def handle_request(self, request: Any) -> Any:
        """Send a request once it is admitted.

        Raises `BudgetExceeded`, `RequestError` and `ConfigurationError`; what sending raises.
        """
        try:
            watched = self._admit(request)
        except _REFUSED as error:
            return refuse(self._rules.library, request, error)
        if watched is None:
            return self._inner.handle_request(request)
        try:
            response = self._inner.handle_request(watched.written(request))
            stream = joined(GuardedStream, self._rules.library.stream)(response.stream, watched)
            return watched.start(response, stream)
        except PaceExceeded as error:
            watched.settle(error)
            return refuse(self._rules.library, request, error)
        except BaseException as error:
            watched.settle(error)
            raise

    def _admit(self, request: Any) -> Watched | None:
        known = self._known(request)
        if known is None:
            return None
        request.read()
        watched = self._open(request, *known)
        _check_thread(watched)
        watched.call.__enter__()
        return watched


class AsyncGuardedTransport(_Transport, AsyncWrapping):
    """A transport of an asynchronous client."""

    def __init__(self, inner: Any, rules: Rules) -> None:
        super().__init__(inner)
        self._rules = rules

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request once it is admitted; raises like `GuardedTransport.handle_request`."""
        try:
            watched = await self._admit(request)
        except _REFUSED as error:
            return refuse(self._rules.library, request, error)
        if watched is None:
            return await self._inner.handle_async_request(request)
        try:
            response = await self._inner.handle_async_request(watched.written(request))
            kind = joined(AsyncGuardedStream, self._rules.library.async_stream)
            return watched.start(response, kind(response.stream, watched))
        except PaceExceeded as error:
            await watched.settle_async(error)
            return refuse(self._rules.library, request, error)
        except BaseException as error:
            await watched.settle_async(error)
            raise

    async def _admit(self, request: Any) -> Watched | None:
        known = self._known(request)
        if known is None:
            return None
        await request.aread()
        watched = self._open(request, *known)
        await watched.call.__aenter__()
        return watched


def _check_thread(watched: Watched) -> None:
    if isinstance(watched.call, AsyncCall) and running_loop() is not None:
        raise RuntimeError(
            "this synchronous client would hold up the event loop its guard needs: use the "
            "asynchronous one, such as `AsyncOpenAI`, or call it in a thread (`asyncio.to_thread`)"
        )
