"""The setting `LLM_BUDGET` as the core's configuration, and the parts built from it, once."""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Generator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver

from llm_budget_mw.config import Config, load
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.gate import AsyncGate, Gate
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.routes import Routes
from llm_budget_mw.self_service import AsyncDesk, Desk
from llm_budget_mw_django.login import JWT, AsyncLogin, Login, login_of, login_on_a_loop

NAME = "LLM_BUDGET"
CONFIG, PRINCIPAL, GUARD = "CONFIG", "PRINCIPAL", "GUARD"
_KNOWN = (CONFIG, PRINCIPAL, GUARD)


class SettingError(ConfigurationError, ImproperlyConfigured):
    """The setting `LLM_BUDGET` is wrong; the message names every wrong option."""


class Edge(NamedTuple):
    """What a synchronous chain of middleware works with."""

    guard: Guard
    gate: Gate
    routes: Routes
    login: Login
    desk: Desk


class AsyncEdge(NamedTuple):
    """What an asynchronous chain of middleware works with."""

    guard: AsyncGuard
    gate: AsyncGate
    routes: Routes
    login: AsyncLogin
    desk: AsyncDesk


def get_guard() -> Guard:
    """Return the guard of this process for threads: for tasks, commands and synchronous views.

    Raises `SettingError` if the settings are wrong.
    """
    return edge().guard


def get_async_guard() -> AsyncGuard:
    """Return the guard of this process for event loops; see `get_guard`."""
    return async_edge().guard


def principal_setting() -> object:
    """Return who is charged, as the settings say it; raises `ConfigurationError`."""
    return _options().get(PRINCIPAL, JWT)


def check() -> None:
    """Build everything; raises `SettingError` if the settings are wrong."""
    with _named():
        asynchronous = isinstance(_options().get(GUARD), AsyncGuard)
    if asynchronous:
        async_edge()
    else:
        edge()


@functools.cache
def edge() -> Edge:
    """Return the parts of a synchronous chain; raises `SettingError`."""
    with _named():
        guard = _given(Guard) or _closed_at_exit(Guard.open(_config()))
        login = login_of(principal_setting(), guard.config)
    return Edge(guard, Gate(guard), Routes(guard.config.routes), login, Desk(guard))


@functools.cache
def async_edge() -> AsyncEdge:
    """Return the parts of an asynchronous chain; raises `SettingError`."""
    with _named():
        guard = _given(AsyncGuard) or AsyncGuard.open(_config())
        login = login_on_a_loop(principal_setting(), guard.config)
    return AsyncEdge(guard, AsyncGate(guard), Routes(guard.config.routes), login, AsyncDesk(guard))


@receiver(setting_changed)
def _forget(*, setting: str, **_: object) -> None:
    """Build all parts anew where a test changes the settings."""
    if setting in (NAME, "BASE_DIR"):
        edge.cache_clear()
        async_edge.cache_clear()


@contextlib.contextmanager
def _named() -> Generator[None]:
    """Say of what is wrong that it stands in the settings."""
    try:
        yield
    except ConfigurationError as error:
        raise SettingError(f"{NAME}: {error}") from error


def _options() -> dict[str, Any]:
    options: object = getattr(settings, NAME, None)
    if not isinstance(options, Mapping):
        found = "is not set" if options is None else f"found {repr(options)[:80]}"
        raise ConfigurationError(
            f'{found}; should be a dictionary, such as {{"{CONFIG}": "llm_budget.toml"}}'
        )
    named = {str(name): value for name, value in cast("Mapping[object, Any]", options).items()}
    unknown = [_unknown(name) for name in named if name.isupper() and name not in _KNOWN]
    if unknown:
        raise ConfigurationError("\n".join(unknown))
    return named


def _unknown(name: str) -> str:
    # Its value is not shown: it may be a secret.
    close = get_close_matches(name, _KNOWN, n=1)
    if close:
        return f'"{name}": unknown option; did you mean {close[0]!r}?'
    return f'"{name}": unknown option; known are {", ".join(_KNOWN)}'


def _config() -> Config:
    options = _options()
    tables = {name: value for name, value in options.items() if name not in _KNOWN}
    return load(_source(options.get(CONFIG)), **tables)


def _source(source: object) -> Path | Mapping[str, Any] | None:
    if isinstance(source, str | Path) and str(source):
        return Path(getattr(settings, "BASE_DIR", "")) / source
    if source is None or isinstance(source, Mapping):
        return cast("Mapping[str, Any] | None", source)
    raise ConfigurationError(
        f"{CONFIG}: found {repr(source)[:80]}; should be the path of a TOML file, or a mapping"
    )


def _given(kind: type[Any]) -> Any:
    """Return the guard that stands in the settings, if it is of this kind."""
    guard: object = _options().get(GUARD)
    if guard is not None and not isinstance(guard, kind):
        raise ConfigurationError(
            f"{GUARD}: found {repr(guard)[:80]}; should be what `{kind.__name__}.open` returns "
            "where this chain of middleware is used"
        )
    return guard


def _closed_at_exit(guard: Guard) -> Guard:
    atexit.register(guard.close)
    return guard
