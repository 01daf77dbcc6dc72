"""Every exception this package raises.

    BudgetError
    ├── ConfigurationError          a setting is wrong: the program must not start
    │   └── MissingDependencyError  a feature needs a package that is not installed
    ├── AuthenticationError         the caller is not who a request needs (401, 400, 503)
    │   └── ScopeError              known, but not allowed to do this (403)
    ├── RequestError                the request cannot be understood or bounded (4xx)
    ├── BudgetExceeded              admission refused; carries the decision
    └── StoreError                  the store did not answer in time, or answered an error

A refused admission is a value inside the package (`types.Refusal`); it becomes
`BudgetExceeded` only where code outside asks for a call and cannot have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_budget_mw.types import Refusal


class BudgetError(Exception):
    """Base class of everything this package raises."""


class ConfigurationError(BudgetError):
    """A setting is wrong; the message names the option, the value and the remedy."""


class MissingDependencyError(ConfigurationError):
    """A feature was asked for whose package is not installed."""


class AuthenticationError(BudgetError):
    """The credential is missing, malformed or not valid.

    `status` is the HTTP status of RFC 6750 section 3.1 (401, or 400 for a malformed
    request; 503 while the keys to verify it cannot be had), `code` its `error` attribute, or None where no credential was sent.
    """

    status = 401

    def __init__(
        self, description: str, *, code: str | None = "invalid_token", status: int = 401
    ) -> None:
        super().__init__(description)
        self.description = description
        self.code = code
        self.status = status


class ScopeError(AuthenticationError):
    """The credential is valid but lacks a scope (RFC 6750: `insufficient_scope`)."""

    def __init__(self, description: str, *, scope: str) -> None:
        super().__init__(description, code="insufficient_scope", status=403)
        self.scope = scope


class RequestError(BudgetError):
    """The request body cannot be read, or cannot be bounded.

    `status` is the 4xx to answer with, `code` a stable machine-readable name.
    """

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


class BudgetExceeded(BudgetError):
    """A call was refused; `refusal` says by which limit and when it could fit."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)  # what is pickled, on the way out of another process
        self.refusal = refusal

    def __str__(self) -> str:
        return self.refusal.message


class StoreError(BudgetError):
    """The store did not answer within the deadline, or answered with an error."""
