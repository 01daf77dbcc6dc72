"""One HTTP request in ASGI's messages: the body read and replayed, the answer watched.

Whatever happens to an admitted request (the client leaves, the server cancels, the
application fails) `run` settles it once, in a task that nothing of the request can cancel.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import traceback
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_budget_mw import _http
from llm_budget_mw.current import CURRENT
from llm_budget_mw.dialects.protocol import RequestHead, Rewritten
from llm_budget_mw.elastic import Elastic, StoppedError
from llm_budget_mw.exchange import AsyncExchange
from llm_budget_mw.gate import REFUSED, AsyncGate, AsyncRead, Refused, answer_to
from llm_budget_mw.guard import AsyncGuard
from llm_budget_mw.identity import AsyncAuthenticator, Authenticator
from llm_budget_mw.routes import Route
from llm_budget_mw.self_service import AsyncDesk
from llm_budget_mw.types import Principal

STATE_KEY = "llm_budget"
"""Name of the request's `Budget` in `scope["state"]`, so `request.state.llm_budget`."""
SCOPE_KEY = "llm_budget_mw.passage"
"""Where an adapter finds the passage of a request, to have it admitted later than here."""
_OF_THE_OLD_BODY = (b"content-length", b"content-encoding", b"transfer-encoding")
_OF_A_STOP = (StoppedError, ClientDisconnect)
"""What an application raises whose stream was ended; the second is Starlette's word for it."""
_YOUNG = 1
"""Generations of objects that may hold an error that was just raised: all but the old one."""
_BUG = 500
_PATH_SAFE = "/:@!$&'()*+,;=~"
"""What a path may hold as it is (RFC 3986 section 3.3)."""


class Passage:
    """One request on its way through the middleware; guarded once it is admitted."""

    def __init__(
        self,
        guard: AsyncGuard,
        authenticator: Authenticator | AsyncAuthenticator,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self.exchange: AsyncExchange | None = None
        """None while the request is not admitted."""
        self.route: Route | None = None
        """In whose format a refusal is answered; an adapter may know it before it admits."""
        self._guard = guard
        self._authenticator = authenticator
        self._scope = scope
        self._receive = receive
        self._send = send
        self._error: BaseException | None = None
        self._started = False
        self._withheld: list[Message] = []

    async def admit(
        self,
        route: Route,
        authenticate: Callable[[], Awaitable[Principal]] | None = None,
        read: AsyncRead | None = None,
    ) -> Rewritten | None:
        """Have the request admitted; return it with the grant, or None if the client left.

        `authenticate` and `read` replace the verification of a credential and the reading
        of the body. Raises what `AsyncGate.admit` raises.
        """
        self.route = route
        scope = self._scope
        headers = _headers_of(scope)
        query = scope["query_string"].decode("latin-1")
        head = RequestHead(scope["method"], scope["path"], query, dict(headers))
        held = await AsyncGate(self._guard).admit(
            route, head, authenticate or (lambda: self._principal(headers)), read or self._read
        )
        if held is None:
            return None
        self.exchange = AsyncExchange(self._guard, route, held)
        # The state is shared on purpose: middlewares outside see what the handler left there.
        scope.setdefault("state", {})[STATE_KEY] = self.exchange.budget
        try:
            return self.exchange.written(head)
        except BaseException as error:
            await asyncio.shield(self.exchange.settle(error))
            raise

    async def run(self, app: ASGIApp, written: Rewritten | None = None) -> None:
        """Run the application, with a request the grant is written into, and settle.

        Raises what the application raises.
        """
        scope, receive = self._scope, self._receive
        if written is not None:
            scope, receive = _with(written, scope), _replay(written.body, receive)
        # Set in any case, so that what an adapter sets later ends with the request, too.
        token = CURRENT.set(CURRENT.get() if self.exchange is None else self.exchange.budget)
        try:
            await app(scope, receive, self._withholding_send)
            await self._release()
        except REFUSED as error:
            self._error = error
            raise
        except BaseException as error:
            if not self._stopped or not isinstance(error, _OF_A_STOP):
                self._error = error
                await self._release()
                raise
            _let_go(error)
        finally:
            CURRENT.reset(token)
            if self.exchange is not None:
                await asyncio.shield(self.exchange.settle(self._error))

    async def tell(self, desk: AsyncDesk) -> None:
        """Answer a caller who asks for its own limits."""
        self.route = desk.route
        try:
            answer = await desk.answer(
                self._scope["method"], lambda: self._principal(_headers_of(self._scope))
            )
        except REFUSED as error:
            await self.refuse(error)
        else:
            await _respond(self._send, answer)

    async def refuse(self, error: Refused) -> None:
        """Tell the client why it is refused; raise it again where nothing can be told any more."""
        if self.route is None or self._started:
            raise error
        await _respond(self._send, answer_to(error, self.route, self._guard.config))

    async def _principal(self, headers: list[_http.Header]) -> Principal:
        known = self._authenticator.authenticate(headers)
        return await known if inspect.isawaitable(known) else known

    async def _read(self, limit: int) -> bytes | None:
        body = bytearray()  # not a list of parts, which could be a million tiny ones
        while len(body) <= limit:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return bytes(body)

    async def _withholding_send(self, message: Message) -> None:
        """Hold back a whole answer of status 500 until the application has ended.

        A mounted application of Starlette sends one before it raises what it cannot handle,
        which may be a refusal.
        """
        starts = message["type"] == "http.response.start"
        if self._withheld or (starts and message["status"] == _BUG):
            self._withheld.append(message)
            if message.get("more_body", False):
                await self._release()
        else:
            await self._watched_send(message)

    async def _release(self) -> None:
        withheld, self._withheld = self._withheld, []
        for message in withheld:
            await self._watched_send(message)

    async def _watched_send(self, message: Message) -> None:
        exchange = self.exchange
        self._started = self._started or message["type"] == "http.response.start"
        if exchange is None:
            await self._send(message)
        elif message["type"] == "http.response.body":
            if exchange.elastic is None:
                await self._pass_on(message, exchange)
            else:
                exchange.elastic.raise_if_stopped()
                await self._pass_on_covered(message, exchange, exchange.elastic)
        elif message["type"] == "http.response.start":
            await self._send(_started(message, exchange))
        else:
            await self._send(message)

    async def _pass_on(self, message: Message, exchange: AsyncExchange) -> None:
        tap = exchange.tap
        body, more = message.get("body", b""), message.get("more_body", False)
        if tap.rewrites:
            passed = tap.feed(body) if more else tap.feed(body) + tap.end()
            if passed is not body:
                message = {**message, "body": passed}
            if passed or not more:
                await self._send(message)
        else:
            try:
                await self._send(message)
            finally:
                # Billed all the same where the client has gone, which may raise.
                tap.feed(body)
                if not more:
                    tap.end()
        if not more:
            exchange.settle(self._error)

    async def _pass_on_covered(
        self, message: Message, exchange: AsyncExchange, elastic: Elastic
    ) -> None:
        more = message.get("more_body", False)
        elastic.take(message.get("body", b""), more=more)
        waits = True
        while waits:
            if passed := await exchange.advance():
                await self._send({**message, "body": passed, "more_body": True})
            waits = elastic.waits and not elastic.stopped
        if elastic.stopped or not more:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            exchange.settle(self._error)
        elastic.raise_if_stopped()

    @property
    def _stopped(self) -> bool:
        return self.exchange is not None and self.exchange.stopped


def _let_go(error: BaseException | None) -> None:
    """Let the provider's stream close, which it does when nobody refers to it any more.

    Frameworks leave errors that refer to the stream and to themselves.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    # Those of tasks that were cancelled, of which nothing is seen here.
    asyncio.get_running_loop().call_soon(gc.collect, _YOUNG)


def _headers_of(scope: Scope) -> list[_http.Header]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]


def _started(message: Message, exchange: AsyncExchange) -> Message:
    raw = message.get("headers", ())
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
    kept = exchange.start(message["status"], headers)
    sent = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept]
    return {**message, "headers": sent}


def _with(written: Rewritten, scope: Scope) -> Scope:
    headers = [item for item in scope["headers"] if item[0] not in _OF_THE_OLD_BODY]
    headers.append((b"content-length", str(len(written.body)).encode()))
    inner = {**scope, "headers": headers}
    if written.path is not None:
        inner["path"] = written.path
        raw = written.raw_path or quote(written.path, safe=_PATH_SAFE)
        inner["raw_path"] = raw.encode()
    return inner


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body in one piece, then whatever the server has to say, such as a disconnect."""
    given = False

    async def replayed_receive() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed_receive


async def _respond(send: Send, answer: _http.Answer) -> None:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
