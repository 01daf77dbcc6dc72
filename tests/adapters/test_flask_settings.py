"""The settings of a Flask application: where they come from, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from llm_budget_mw.config import Config
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.testing import Issuer
from llm_budget_mw_flask import LLMBudget

ISSUER = Issuer()
KEYLESS = {name: value for name, value in ISSUER.config().items() if name != "key"}
QUIET = {"tokens": {"exact": False}, "prices": {"catalogue": False}}
CONFIG: dict[str, Any] = {"tiers": {"default": {"requests": "9/day"}}, "jwt": KEYLESS, **QUIET}
KEY = {"LLM_BUDGET_JWT_KEY": ISSUER.key}
TOML = """
tokens.exact = false
prices.catalogue = false
[tiers.default]
requests = "9/day"
[[jwt]]
algorithms = ["HS256"]
issuer = "https://login.example"
audience = "api"
"""


def started(**settings: Any) -> Config:
    """Start an application with these settings and return its configuration."""
    app = Flask("settings")
    app.config.update(settings)
    LLMBudget().init_app(app)
    guard: Guard = app.extensions["llm_budget"].guard
    return guard.config


def test_a_mapping_is_the_configuration() -> None:
    """And the settings beside it are put into it, one list of one issuer included."""
    config = started(LLM_BUDGET_CONFIG={**CONFIG, "jwt": [KEYLESS]}, **KEY)

    assert config.jwt[0].key is not None
    assert config.jwt[0].key.get_secret_value() == ISSUER.key
    assert config.store.url == "memory://"


def test_a_relative_path_begins_at_the_application(tmp_path: Path) -> None:
    """As it does for `app.config.from_file`, wherever the server was started."""
    (tmp_path / "budget.toml").write_text(TOML)
    app = Flask("settings", root_path=str(tmp_path))
    app.config.update(LLM_BUDGET_CONFIG="budget.toml", **KEY)
    LLMBudget(app)

    assert app.extensions["llm_budget"].guard.config.jwt[0].issuer == "https://login.example"
    assert started(LLM_BUDGET_CONFIG=tmp_path / "budget.toml", **KEY).tiers["default"].requests


def test_settings_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flask's `from_prefixed_env` reads them all, the configuration as JSON."""
    monkeypatch.setenv("FLASK_LLM_BUDGET_CONFIG", json.dumps(CONFIG))
    app = Flask("settings")
    monkeypatch.setenv("FLASK_LLM_BUDGET_STORE_URL", "redis://localhost:1/0")
    monkeypatch.setenv("LLM_BUDGET_STORE_URL", "redis://elsewhere:1/0")
    monkeypatch.setenv("LLM_BUDGET_JWT_KEY", ISSUER.key)
    app.config.from_prefixed_env()
    LLMBudget(app)

    config = app.extensions["llm_budget"].guard.config
    assert config.store.url == "redis://localhost:1/0"
    assert config.jwt[0].key is not None


def test_a_guard_replaces_all_other_settings() -> None:
    """Tests of an application give it one of their own, with a store they can look into."""
    guard = Guard.open({**CONFIG, "jwt": ISSUER.config()})
    app = Flask("settings")
    app.config.update(LLM_BUDGET_GUARD=guard, LLM_BUDGET_CONFIG="not-there.toml")
    LLMBudget(app)

    assert app.extensions["llm_budget"].guard is guard


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "LLM_BUDGET_CONFIG: is not set; should be the path of a TOML file, or a mapping"),
        ({"CONFIG": None}, "LLM_BUDGET_CONFIG: is not set"),
        ({"CONFIG": ""}, "LLM_BUDGET_CONFIG: found ''; should be the path"),
        ({"CONFIG": 7}, "LLM_BUDGET_CONFIG: found 7; should be the path"),
        ({"CONFIG": "missing.toml"}, "missing.toml cannot be read: No such file"),
        ({"CONFIG": {}}, "tiers: is required"),
        ({"CONFIG": {**CONFIG, "stores": {}}}, "stores: unknown option; did you mean `store`"),
        ({"CONFIG": CONFIG, "STORE_URL": "ftp://x"}, "store.url: the value"),
        ({"CONFIG": CONFIG, "STORE_URL": 7}, "store.url: the value"),
        ({"CONFIG": {**CONFIG, "jwt": []}, "JWT_KEY": None}, "jwt: no issuer is configured"),
        ({"CONFIG": CONFIG, "STORE": "x"}, "LLM_BUDGET_STORE: unknown setting; did you mean LLM_"),
        ({"CONFIG": CONFIG, "Q" * 30: "x"}, "known are LLM_BUDGET_CONFIG, LLM_BUDGET_GUARD"),
        ({"GUARD": "guard"}, "LLM_BUDGET_GUARD: found 'guard'; should be a `Guard`"),
        ({"GUARD": AsyncGuard}, "should be a `Guard`, as `Guard.open` returns it"),
    ],
)
def test_a_wrong_setting_stops_the_start(settings: dict[str, Any], said: str) -> None:
    """It names the setting or option, what was found and what to do; secrets are not shown."""
    given = {f"LLM_BUDGET_{name}": value for name, value in settings.items()}
    if "GUARD" not in settings:
        given = {**KEY, **given}

    with pytest.raises(ConfigurationError) as caught:
        started(**given)

    assert said in str(caught.value)
    assert ISSUER.key not in str(caught.value)


def test_a_misspelt_secret_is_not_shown() -> None:
    """Neither its value nor that of any other."""
    with pytest.raises(ConfigurationError, match="did you mean LLM_BUDGET_JWT_KEY") as caught:
        started(LLM_BUDGET_CONFIG=CONFIG, LLM_BUDGET_JWT_KEYS="do not tell")

    assert "do not tell" not in str(caught.value)


@pytest.mark.parametrize(
    ("most", "expected"), [(None, 10 * 2**20), (500, 500), (2**40, 10 * 2**20)]
)
def test_the_smaller_bound_on_bodies_holds(most: int | None, expected: int) -> None:
    """Ours or `MAX_CONTENT_LENGTH`, without which Flask has none."""
    config = started(LLM_BUDGET_CONFIG=CONFIG, MAX_CONTENT_LENGTH=most, **KEY)

    assert config.max_body_bytes == expected
