"""The settings of a Flask application as the core's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from flask import Flask

from llm_budget_mw.config import ENVIRONMENT, Config, load
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.guard import Guard

CONFIG = "LLM_BUDGET_CONFIG"
"""A TOML file, relative to the application's folder, or a mapping."""
GUARD = "LLM_BUDGET_GUARD"
"""A `Guard` to use as it is; the other settings are not read then."""
_PREFIX = "LLM_BUDGET_"
_KNOWN = (CONFIG, GUARD, *ENVIRONMENT)


def guard_in(app: Flask) -> Guard | None:
    """Return the guard that stands in the settings; raises `ConfigurationError` if it is none."""
    guard = _all(app).get(GUARD)
    if guard is not None and not isinstance(guard, Guard):
        raise ConfigurationError(
            f"{GUARD}: found {repr(guard)[:80]}; should be a `Guard`, as `Guard.open` returns it"
        )
    return guard


def config_in(app: Flask) -> Config:
    """Return the configuration of an application; its settings are stronger than the environment.

    Raises `ConfigurationError` naming every wrong setting or option.
    """
    settings = _settings_of(app)
    source = _source(settings.pop(CONFIG, None), app)
    overrides: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, option = ENVIRONMENT[name]
        overrides.setdefault(section, {})[option] = value
    try:
        config = load(source, **overrides)
    except ConfigurationError as error:
        names = ", ".join([CONFIG, *settings])
        raise ConfigurationError(f"{names}: {error}") from error
    return _bounded(config, app)


def _all(app: Flask) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", app.config)


def _settings_of(app: Flask) -> dict[str, Any]:
    settings = {
        name: value
        for name, value in _all(app).items()
        if name.startswith(_PREFIX) and value is not None
    }
    unknown = [f"{name}: {_remedy(name)}" for name in settings if name not in _KNOWN]
    if unknown:
        raise ConfigurationError("\n".join(unknown))
    return settings


def _remedy(name: str) -> str:
    # Its value is not shown: it may be the secret of a name that was misspelt.
    close = get_close_matches(name, _KNOWN, n=1)
    if close:
        return f"unknown setting; did you mean {close[0]}?"
    return f"unknown setting; known are {', '.join(_KNOWN)}; options go into {CONFIG}"


def _source(source: Any, app: Flask) -> Path | Mapping[str, Any]:
    if isinstance(source, str | Path) and str(source):
        return Path(app.config.root_path) / source
    if isinstance(source, Mapping):
        return cast("Mapping[str, Any]", source)
    found = "is not set" if source is None else f"found {repr(source)[:80]}"
    raise ConfigurationError(f"{CONFIG}: {found}; should be the path of a TOML file, or a mapping")


def _bounded(config: Config, app: Flask) -> Config:
    """Refuse unread what Flask would refuse to read later."""
    most = _all(app).get("MAX_CONTENT_LENGTH")
    if not isinstance(most, int) or most >= config.max_body_bytes:
        return config
    return config.model_copy(update={"max_body_bytes": most})
