"""An application's own login: who is logged in is who pays."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from flask import Flask
from werkzeug.exceptions import HTTPException

from llm_budget_mw.errors import AuthenticationError
from llm_budget_mw.identity import Authenticator
from llm_budget_mw.types import Principal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Who = Callable[[], Principal | Awaitable[Principal | None] | None]
"""Returns who is logged in, or None; it runs in the context of a request."""
NO_BODY = {"CONTENT_LENGTH": "0", "wsgi.input_terminated": True}
"""What an environ says of a request whose body is not to be read (any more)."""
_FAILED = 500


class Login:
    """The answer of a function as that of an authenticator."""

    def __init__(self, app: Flask, who: Who) -> None:
        self._who: Callable[[], object] = app.ensure_sync(who)

    def authenticate(self, headers: Sequence[tuple[str, str]]) -> Principal:
        """Return who is logged in; raises `AuthenticationError` if nobody is."""
        principal = self._who()
        if principal is None:
            raise AuthenticationError("This request needs a login.", code=None)
        if not isinstance(principal, Principal):
            raise TypeError(
                f"the authenticator returned {type(principal)}, not a Principal or None"
            )
        return principal


class LoginFailedError(AuthenticationError):
    """An authenticator raised something of its own, which the application is to answer."""

    def __init__(self, error: Exception) -> None:
        answered = error.code if isinstance(error, HTTPException) else None
        super().__init__("The login failed.", code="login_failed", status=answered or _FAILED)
        self.error = error


def ask(
    app: Flask,
    authenticator: Authenticator,
    environ: WSGIEnvironment,
    headers: Sequence[tuple[str, str]],
) -> Principal:
    """Ask an authenticator in a context of its own, whose request has no body.

    What it changes in `session` is not kept.
    """
    with app.request_context({**environ, **NO_BODY, "wsgi.input": io.BytesIO()}):
        try:
            return authenticator.authenticate(headers)
        except AuthenticationError:
            raise
        except Exception as error:
            raise LoginFailedError(error) from error
