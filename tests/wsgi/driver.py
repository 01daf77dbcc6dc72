"""Drives a WSGI application by hand: what a server does, and a client that leaves on cue."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

from llm_budget_mw.guard import Guard
from llm_budget_mw.wsgi import WSGIBudgetMiddleware
from tests.deployment import Recorder, SwitchStore, configured, engine_of
from tests.edge.driver import CHAT, ISSUER, LIMITS, QUESTION, ROUTES

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Bench:
    """A guarded application with all that can be looked at."""

    def __init__(
        self,
        app: WSGIApplication,
        tier: Mapping[str, Any] | None = None,
        *,
        authenticator: Any = None,
        **sections: Any,
    ) -> None:
        self.app = app
        self.store = SwitchStore()
        self.sink = Recorder()
        self.config = configured(
            {**LIMITS, **(tier or {})}, **{"routes": ROUTES, "jwt": ISSUER.config(), **sections}
        )
        self.guard = Guard(engine_of(self.config), self.config, self.store, [self.sink])
        self.middleware = WSGIBudgetMiddleware(app, guard=self.guard, authenticator=authenticator)

    @property
    def settled(self) -> dict[str, Any]:
        """Return the one settlement there was."""
        (only,) = self.sink.named("budget.settled")
        return only

    def post(self, body: Any = QUESTION, path: str = CHAT, **options: Any) -> Exchange:
        """Send one request to the end and return what was said."""
        exchange = Exchange(body, path, **options)
        exchange.run(self.middleware)
        return exchange


class Exchange:
    """One request: what the client sends, what the server gives it, and when the client leaves."""

    def __init__(
        self,
        body: Any = QUESTION,
        path: str = CHAT,
        *,
        token: str | None = "",
        headers: Mapping[str, str] | None = None,
        leave_after: int | None = None,
        method: str = "POST",
        length: str | None = "",
        **environ: Any,
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.events: list[str] = []
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._leave_after = leave_after
        credential = ISSUER.token("alice") if token == "" else token
        self.environ: WSGIEnvironment = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path.encode().decode("latin-1"),
            "SCRIPT_NAME": "",
            "QUERY_STRING": "",
            "wsgi.input": io.BytesIO(raw),
            "wsgi.file_wrapper": FileWrapper,
            **{f"HTTP_{k.upper().replace('-', '_')}": v for k, v in (headers or {}).items()},
            **environ,
        }
        if length == "":
            length = str(len(raw))
        if length is not None:
            self.environ["CONTENT_LENGTH"] = length
        if credential:
            self.environ.setdefault("HTTP_AUTHORIZATION", f"Bearer {credential}")

    def run(self, app: WSGIApplication) -> None:
        """Serve the request as PEP 3333 wants it."""
        answer = app(self.environ, self._start_response)
        try:
            for piece in answer:
                assert self.status, "a body before its head"
                if piece:
                    self._send(piece)
                if len(self.pieces) == self._leave_after:
                    break
            else:
                self.events.append("end")
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()

    @property
    def body(self) -> bytes:
        """All of the body of the answer."""
        return b"".join(self.pieces)

    @property
    def error(self) -> dict[str, Any]:
        """The error in its envelope."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        assert exc_info is not None or not self.status, "started twice"
        if exc_info is not None and self.pieces:
            raise exc_info[1]
        self.status = int(status.split()[0])
        self.headers = {name.lower(): value for name, value in headers}
        assert len(self.headers) == len(headers)
        return self._send

    def _send(self, piece: bytes) -> None:
        self.events.append(f"sent {len(self.pieces)}")
        self.pieces.append(piece)


class Body:
    """A body that notes when it is asked for a piece and when it is closed."""

    def __init__(
        self,
        *pieces: bytes,
        fails: BaseException | None = None,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.closed = 0
        self._pieces = iter(pieces)
        self._fails = fails
        self._before = before

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._before()
        for piece in self._pieces:
            return piece
        if self._fails is not None:
            raise self._fails
        raise StopIteration

    def close(self) -> None:
        self.closed += 1


def answering(
    *pieces: bytes,
    status: str = "200 OK",
    kind: str = "application/json",
    before: Callable[[WSGIEnvironment], object] = lambda environ: None,
    fails: BaseException | None = None,
) -> WSGIApplication:
    """Return an application that answers with these pieces of a body."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        before(environ)
        start_response(status, [("Content-Type", kind)])
        return Body(*pieces, fails=fails)

    return app


def streaming(*pieces: bytes, **options: Any) -> WSGIApplication:
    """Return an application that answers with a stream of events."""
    return answering(*pieces, kind="text/event-stream; charset=utf-8", **options)
