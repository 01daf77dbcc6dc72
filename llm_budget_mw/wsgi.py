"""The WSGI middleware: the straight line of `asgi.py` in a world that calls and returns.

Nothing here knows of asyncio: it runs under threads, processes and greenlets alike.
"""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from llm_budget_mw import _http, assembly
from llm_budget_mw.current import apart, handling
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.elastic import Elastic, StoppedError
from llm_budget_mw.errors import RequestError
from llm_budget_mw.events import Sink
from llm_budget_mw.exchange import Exchange
from llm_budget_mw.gate import REFUSED, Gate, Refused, answer_to
from llm_budget_mw.guard import Guard
from llm_budget_mw.identity import Authenticator
from llm_budget_mw.routes import Route, Routes
from llm_budget_mw.self_service import Desk
from llm_budget_mw.stores.base import Store
from llm_budget_mw.types import Principal

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ENVIRON_KEY = "llm_budget_mw.budget"
"""Name of the request's `Budget` in its environ."""
_PIECE = 64 * 1024
"""Bytes of a body read at once."""
_UNPREFIXED = {"CONTENT_TYPE": "content-type", "CONTENT_LENGTH": "content-length"}
_OF_THE_OLD_BODY = ("HTTP_CONTENT_ENCODING", "HTTP_TRANSFER_ENCODING")
_REASONS = {status.value: status.phrase for status in HTTPStatus}
Write = Callable[[bytes], object]


class WSGIBudgetMiddleware:
    """Admits the guarded requests of an application, and settles them.

        application = WSGIBudgetMiddleware(application, config="llm_budget.toml")

    The arguments are those of `BudgetMiddleware`, of the synchronous kind. What an outage has
    left to settle is delivered by `close`, which the end of the process calls by itself unless
    the middleware was given a guard.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        config: assembly.Source = None,
        authenticator: Authenticator | None = None,
        store: Store | None = None,
        sinks: Sequence[Sink] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.app = app
        self.guard = guard or Guard.open(config, store=store, sinks=sinks)
        if guard is None:
            weakref.finalize(self, self.guard.close)
        self._authenticator = authenticator or assembly.build_authenticator(self.guard.config)
        self._routes = Routes(self.guard.config.routes)
        self._gate = Gate(self.guard)
        self._desk = Desk(self.guard)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass everything through that is no guarded request."""
        if self._desk.path is not None and path_of(environ) == self._desk.path:
            return self._tell(environ, start_response)
        route = self.find_route(environ)
        if route is None:
            with apart():
                return self.app(environ, start_response)
        headers = headers_of(environ)
        head = RequestHead(
            environ["REQUEST_METHOD"],
            path_of(environ),
            environ.get("QUERY_STRING", ""),
            dict(headers),
        )
        try:
            held = self._gate.admit(
                route,
                head,
                lambda: self.authenticate(environ, headers),
                lambda limit: read_body(environ, limit),
            )
        except REFUSED as error:
            return self.refused(error, route, environ, start_response)
        answer = _Answer(Exchange(self.guard, route, held), self, route, environ, start_response)
        return answer.begin(head)

    def _tell(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a caller who asks for its own limits."""
        headers, method = headers_of(environ), environ["REQUEST_METHOD"]
        try:
            answer = self._desk.answer(method, lambda: self.authenticate(environ, headers))
        except REFUSED as error:
            return self.refused(error, self._desk.route, environ, start_response)
        start_response(_status_line(answer.status), list(answer.headers))
        return [answer.body]

    def find_route(self, environ: WSGIEnvironment) -> Route | None:
        """Return the route that guards a request; an adapter may know more of them."""
        # Servers pass a method on as it was written, frameworks read it in upper case.
        return self._routes.find(environ["REQUEST_METHOD"].upper(), path_of(environ))

    def authenticate(self, environ: WSGIEnvironment, headers: Sequence[_http.Header]) -> Principal:
        """Return who sent a request; an adapter may ask its framework."""
        return self._authenticator.authenticate(headers)

    def refused(
        self, error: Refused, route: Route, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer a request that is not admitted; an adapter may let its framework do it."""
        answer = answer_to(error, route, self.guard.config)
        start_response(_status_line(answer.status), list(answer.headers))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def close(self) -> None:
        """Deliver what an outage has left, and let go of the store."""
        self.guard.close()


class _Answer:
    """The answer of one admitted request: an iterable that watches what passes, and settles.

    A piece is looked at when the next one is asked for, so that it has left by then. The
    server's `close` ends it, whether all was sent or the client has gone (PEP 3333).
    """

    def __init__(
        self,
        exchange: Exchange,
        middleware: WSGIBudgetMiddleware,
        route: Route,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> None:
        self._exchange = exchange
        self._middleware = middleware
        self._route = route
        self._environ = environ
        self._start_response = start_response
        self._inner: Iterable[bytes] = ()
        self._pieces: Iterator[bytes] = iter(())
        self._passed = b""

    def begin(self, head: RequestHead) -> Iterable[bytes]:
        """Run the application with the grant in its request."""
        self._environ[ENVIRON_KEY] = self._exchange.budget
        try:
            written = self._exchange.written(head)
            _replace_body(self._environ, written.body)
            if written.path is not None:
                _replace_path(self._environ, written.path)
            with handling(self._exchange.budget):
                self._inner = self._middleware.app(self._environ, self._start)
                self._pieces = iter(self._inner)
        except REFUSED as error:
            return self._refused(error)
        except StoppedError:
            pass  # it was writing a stream that has ended
        except BaseException as error:
            self._exchange.settle(error)
            raise
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._look()
        exchange = self._exchange
        if exchange.elastic is not None and (passed := exchange.advance()):
            return passed
        if exchange.stopped:
            return self._rest()
        try:
            with handling(exchange.budget):
                piece = next(self._pieces)
        except StopIteration:
            return self._rest()
        except REFUSED as error:
            self._pieces = iter(self._refused(error))
            return next(self._pieces, b"")
        except BaseException as error:
            # At once: a server need not close what failed.
            exchange.settle(error)
            raise
        if exchange.elastic is not None:
            exchange.elastic.take(piece, more=True)
            return exchange.advance()
        if exchange.tap.rewrites:
            return exchange.tap.feed(piece)
        self._passed = piece
        return piece

    def close(self) -> None:
        """Settle, and close what the application gave."""
        self._look()
        try:
            with handling(self._exchange.budget):
                close = getattr(self._inner, "close", None)
                if close is not None:
                    close()
        finally:
            self._exchange.settle()

    def _look(self) -> None:
        """Look at the piece that has left."""
        piece, self._passed = self._passed, b""
        if piece:
            self._exchange.tap.feed(piece)

    def _rest(self) -> bytes:
        """Return what was held back at the end of the body; settle once that has left."""
        tap, elastic = self._exchange.tap, self._exchange.elastic
        if elastic is None:
            rest = b"" if tap.ended else tap.end()
        else:
            if not tap.ended:
                elastic.take(b"", more=False)
            rest = self._exchange.advance()
        if rest:
            return rest
        self._exchange.settle()
        raise StopIteration

    def _refused(self, error: Refused) -> Iterable[bytes]:
        """Answer what the handler was refused, if it has not begun to answer itself."""
        self._exchange.settle(error)
        if self._exchange.started:
            raise error
        return self._middleware.refused(error, self._route, self._environ, self._start_response)

    def _start(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: OptExcInfo | None = None,
        /,
    ) -> Write:
        """Stand in for the server's `start_response`."""
        kept = self._exchange.start(int(status[:3]), headers)
        if exc_info is None:
            write = self._start_response(status, kept)
        else:
            write = self._start_response(status, kept, exc_info)

        def watched_write(data: bytes, /) -> object:
            tap, elastic = self._exchange.tap, self._exchange.elastic
            if elastic is not None:
                self._write_covered(write, elastic, data)
                return None
            if tap.rewrites:
                return write(tap.feed(data))
            try:
                return write(data)
            finally:
                tap.feed(data)

        return watched_write

    def _write_covered(self, write: Write, elastic: Elastic, data: bytes) -> None:
        elastic.take(data, more=True)
        while passed := self._exchange.advance():
            write(passed)
        elastic.raise_if_stopped()


def headers_of(environ: WSGIEnvironment) -> list[_http.Header]:
    """Return the headers of a request, names in lower case; WSGI has joined repeated ones."""
    headers = [
        (name[5:].replace("_", "-").lower(), value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    headers += [(name, environ[key]) for key, name in _UNPREFIXED.items() if environ.get(key)]
    return headers


def path_of(environ: WSGIEnvironment) -> str:
    """Return the whole path of a request, decoded."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path.encode("latin-1").decode("utf-8", "replace")


def read_body(environ: WSGIEnvironment, limit: int) -> bytes:
    """Read the body of a request up to just above the limit.

    Raises `RequestError` if its length is no number, or the body ends before it.
    """
    length = environ.get("CONTENT_LENGTH", "")
    if not length and not environ.get("wsgi.input_terminated"):
        return b""  # nothing says where it ends
    if length and not length.isdecimal():
        raise RequestError(f"The content length {length[:40]!r} is not a number.")
    missing = int(length) if length else limit + 1
    body = bytearray()
    while missing > 0:
        piece = environ["wsgi.input"].read(min(missing, _PIECE))
        if not piece:
            break
        body += piece
        missing -= len(piece)
    if length and missing:
        raise RequestError("The request body ended before its announced length.")
    return bytes(body)


def _replace_body(environ: WSGIEnvironment, body: bytes) -> None:
    for name in _OF_THE_OLD_BODY:
        environ.pop(name, None)
    environ["wsgi.input"] = io.BytesIO(body)
    environ["wsgi.input_terminated"] = True
    environ["CONTENT_LENGTH"] = str(len(body))


def _replace_path(environ: WSGIEnvironment, path: str) -> None:
    raw = path.encode().decode("latin-1")
    environ["PATH_INFO"] = raw.removeprefix(environ.get("SCRIPT_NAME", ""))


def _status_line(status: int) -> str:
    return f"{status} {_REASONS.get(status, 'Refused')}"
