"""Making guarded clients."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from llm_budget_mw.calls import Scope, running_loop
from llm_budget_mw.clients.library import Library, joined, library_of
from llm_budget_mw.clients.transports import AsyncGuardedTransport, GuardedTransport, Rules
from llm_budget_mw.current import Charged
from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.types import Principal

Client = TypeVar("Client")


def guarded(
    client_class: type[Client],
    *,
    outside: tuple[Guard | AsyncGuard, Principal] | None = None,
    dialect: str | None = None,
    unknown: Literal["refuse", "pass"] = "refuse",
    **options: Any,
) -> Client:
    """Return a client of this class, of httpx or httpx2, whose calls of models are guarded.

    `options` are the class's own. `outside` is charged for a call outside any request,
    `guard.call` and `charge`, which is refused without it. `dialect` is that of every request
    but GET, which else its path tells: `openai_compatible` for servers that obey `max_tokens`
    only. A request of another method than GET that calls no model is refused; with
    `unknown="pass"` it is sent, and never charged.

    Raises `ConfigurationError` for an option or a class that cannot be guarded.
    """
    library = library_of(client_class)
    if library is None:
        raise ConfigurationError(
            f"client_class: {client_class!r} cannot be guarded; use a client of httpx or httpx2, "
            "such as openai.DefaultHttpxClient or httpx.AsyncClient."
        )
    is_async = issubclass(client_class, library.async_client)
    rules = Rules(
        library,
        _outside(outside, in_threads=not is_async),
        _known(dialect),
        _one_of(unknown),
    )
    client = client_class(**options)
    _wrap(client, rules, is_async=is_async)
    return client


def _wrap(client: Any, rules: Rules, *, is_async: bool) -> None:
    """Put our transport around all of a client's: an SDK's defaults, and those of proxies."""
    library = rules.library
    inner: Any = getattr(client, "_transport", None)
    mounts: dict[Any, Any] | None = getattr(client, "_mounts", None)
    if inner is None or mounts is None:
        raise ConfigurationError(
            f"client_class: {type(client)!r} keeps its transports where this version of {library.name} "
            "did not; use another version of it."
        )
    kind = _transport_class(library, is_async=is_async)
    client._transport = kind(inner, rules)
    for pattern, mounted in mounts.items():
        if mounted is not None:
            mounts[pattern] = kind(mounted, rules)


def _transport_class(library: Library, *, is_async: bool) -> type[Any]:
    if is_async:
        return joined(AsyncGuardedTransport, library.async_transport)
    return joined(GuardedTransport, library.transport)


def _outside(outside: object, *, in_threads: bool) -> Scope | None:
    match outside:
        case None:
            return None
        case (Guard() | AsyncGuard() as guard, Principal() as principal):
            # A coroutine brings its own event loop.
            loop = running_loop() if in_threads else None
            if in_threads and loop is None and isinstance(guard, AsyncGuard):
                raise ConfigurationError(
                    "outside: a synchronous client needs a Guard, or to be made on the event loop "
                    f"of its AsyncGuard; found {guard!r} and no event loop."
                )
            return Charged(guard, principal, None, loop)
        case _:
            raise ConfigurationError(
                f"outside: should be a guard and a principal, not {outside!r}; "
                'write outside=(guard, Principal("jobs")).'
            )


def _known(dialect: str | None) -> str | None:
    if dialect == "custom":
        raise ConfigurationError(
            "dialect: 'custom' is no provider's format; leave it out to go by the path."
        )
    return None if dialect is None else dialect_for(dialect).name


def _one_of(unknown: Any) -> Literal["refuse", "pass"]:
    if unknown not in ("refuse", "pass"):
        raise ConfigurationError(f'unknown: should be "refuse" or "pass", not {unknown!r}.')
    return "pass" if unknown == "pass" else "refuse"
