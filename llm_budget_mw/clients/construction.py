"""Making guarded clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from llm_budget_mw.calls import Scope, running_loop
from llm_budget_mw.clients.library import joined, library_of
from llm_budget_mw.clients.pace import AsyncPace, Pace
from llm_budget_mw.clients.queued import AsyncQueued, Queued
from llm_budget_mw.clients.transports import AsyncGuardedTransport, GuardedTransport, Rules
from llm_budget_mw.current import Charged
from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.types import Principal

if TYPE_CHECKING:
    from llm_budget_mw.clients.retries import Retries

Client = TypeVar("Client")


def guarded(
    client_class: type[Client],
    *,
    outside: tuple[Guard | AsyncGuard, Principal] | None = None,
    dialect: str | None = None,
    unknown: Literal["refuse", "pass"] = "refuse",
    retries: Retries | None = None,
    pace: Pace | AsyncPace | None = None,
    **options: Any,
) -> Client:
    """Return a client of this class, of httpx or httpx2, whose calls of models are guarded.

    `options` are the class's own. `outside` is charged for a call outside any request,
    `guard.call` and `charge`, which is refused without it. What is known to cost nothing
    passes in any case: to read and to delete, to count tokens, to moderate, to upload a file, to
    cancel. `dialect` is that of every other request, which else its path tells:
    `openai_compatible` for servers that obey `max_tokens` only. One that calls no model is
    refused; with `unknown="pass"` it is sent, and never charged.

    `retries` sends a call again that failed for the moment, each attempt admitted at its own
    price; the SDK is then to have `max_retries=0`. A refusal is never retried. `pace`, an
    `AsyncPace` for an asynchronous client, lets each attempt wait for its turn under the
    provider's own limits; a call whose turn does not come raises `PaceExceeded` and costs
    nothing.

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
    layers = _Layers(rules, _retries(retries), _pace(pace, is_async=is_async))
    client = client_class(**options)
    _wrap(client, layers, is_async=is_async)
    return client


class _Layers(NamedTuple):
    """What is put around a transport."""

    rules: Rules
    retries: Retries | None
    pace: Any

    def around(self, inner: Any) -> Any:
        """Return the transport of a synchronous client."""
        library = self.rules.library
        base = library.transport
        if self.pace is not None:
            inner = joined(Queued, base)(inner, self.pace, library)
        inner = joined(GuardedTransport, base)(inner, self.rules)
        if self.retries is None:
            return inner
        from llm_budget_mw.clients.retries import Retrying

        return joined(Retrying, base)(inner, self.retries, library)

    def around_async(self, inner: Any) -> Any:
        """Return the transport of an asynchronous client."""
        library = self.rules.library
        base = library.async_transport
        if self.pace is not None:
            inner = joined(AsyncQueued, base)(inner, self.pace, library)
        inner = joined(AsyncGuardedTransport, base)(inner, self.rules)
        if self.retries is None:
            return inner
        from llm_budget_mw.clients.retries import AsyncRetrying

        return joined(AsyncRetrying, base)(inner, self.retries, library)


def _wrap(client: Any, layers: _Layers, *, is_async: bool) -> None:
    """Put our transports around all of a client's: an SDK's defaults, and those of proxies."""
    inner: Any = getattr(client, "_transport", None)
    mounts: dict[Any, Any] | None = getattr(client, "_mounts", None)
    if inner is None or mounts is None:
        library = layers.rules.library
        raise ConfigurationError(
            f"client_class: {type(client)!r} keeps its transports where this version of {library.name} "
            "did not; use another version of it."
        )
    around = layers.around_async if is_async else layers.around
    client._transport = around(inner)
    for pattern, mounted in mounts.items():
        if mounted is not None:
            mounts[pattern] = around(mounted)


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


def _retries(retries: Any) -> Retries | None:
    if retries is None:
        return None
    from llm_budget_mw.clients.retries import Retries

    if not isinstance(retries, Retries):
        raise ConfigurationError(
            f"retries: should be Retries, not {retries!r}; write retries=Retries(attempts=3)."
        )
    return retries


def _pace(pace: Any, *, is_async: bool) -> Pace | AsyncPace | None:
    if pace is None or isinstance(pace, AsyncPace if is_async else Pace):
        return pace
    kind, wanted = ("an asynchronous", AsyncPace) if is_async else ("a synchronous", Pace)
    raise ConfigurationError(
        f"pace: {kind} client waits with {wanted.__name__}, not with {pace!r}; write "
        f'pace={wanted.__name__}(UpstreamLimit("gpt-4o", requests=500)).'
    )


def _one_of(unknown: Any) -> Literal["refuse", "pass"]:
    if unknown not in ("refuse", "pass"):
        raise ConfigurationError(f'unknown: should be "refuse" or "pass", not {unknown!r}.')
    return "pass" if unknown == "pass" else "refuse"
