"""The settings of a Django site: what is read of them, what is checked, and the command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.asgi import get_asgi_application
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest
from django.test import Client, override_settings

from llm_budget_mw import ConfigurationError
from llm_budget_mw_django import SettingError, get_async_guard, get_guard
from llm_budget_mw_django.checks import check_middleware, check_setting
from tests.adapters import django_site
from tests.adapters.django_bench import WORLDS, Bench
from tests.deployment import PRICES
from tests.edge.driver import ISSUER

TABLES: dict[str, Any] = {
    "tiers": {"default": {"requests": "9/minute"}},
    "jwt": ISSUER.config(),
    "prices": PRICES,
    "tokens": {"exact": False},
    "events": {"log": False, "metrics": False},
}
SESSION = "django.contrib.sessions.middleware.SessionMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"


def budget(**options: Any) -> override_settings:
    """Return settings with this `LLM_BUDGET`."""
    return override_settings(LLM_BUDGET=options)


def ids(found: list[CheckMessage]) -> list[str | None]:
    """Return the identifiers of what a check has found; each has a hint."""
    assert all(message.hint for message in found)
    return [message.id for message in found]


def test_tables_may_stand_in_the_settings() -> None:
    """With both guards made of them, each once."""
    with budget(**TABLES):
        assert get_guard() is get_guard()
        assert get_guard().config.tiers["default"].requests
        assert get_async_guard() is get_async_guard()
        assert check_setting() == []


def test_a_path_is_relative_to_the_base_of_the_project(tmp_path: Path) -> None:
    """And tables beside it are stronger."""
    text = '[tiers.default]\nrequests = "9/minute"\n[events]\nlog = false\nmetrics = false\n'
    (tmp_path / "llm_budget.toml").write_text(text)
    store = {"prefix": "mine"}

    with (
        override_settings(BASE_DIR=tmp_path),
        budget(CONFIG="llm_budget.toml", PRINCIPAL=print, store=store, tokens={"exact": False}),
    ):
        config = get_guard().config

    assert config.store.prefix == "mine"
    assert config.events.log is False


def test_a_mapping_may_be_given_as_well() -> None:
    """As the core takes it."""
    with budget(CONFIG=TABLES):
        assert "default" in get_guard().config.tiers


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (None, "LLM_BUDGET: is not set"),
        ("llm_budget.toml", "found 'llm_budget.toml'; should be a dictionary"),
        (
            {**TABLES, "PRINICPAL": "user"},
            "LLM_BUDGET: \"PRINICPAL\": unknown option; did you mean 'PRINCIPAL'",
        ),
        ({**TABLES, "SECRET": "s3cret"}, "unknown option; known are CONFIG, PRINCIPAL, GUARD"),
        ({**TABLES, "tires": {}}, "tires: unknown option; did you mean `tiers`"),
        ({**TABLES, "CONFIG": 3}, "CONFIG: found 3; should be the path"),
        ({**TABLES, "CONFIG": ""}, "CONFIG: found ''; should be the path"),
        ({**TABLES, "CONFIG": "/nowhere.toml"}, "/nowhere.toml cannot be read"),
        ({"tiers": {"default": {}}, "events": {}}, "jwt: no issuer is configured"),
        ({**TABLES, "PRINCIPAL": "nowhere.who"}, "PRINCIPAL: found 'nowhere.who'; No module"),
        ({**TABLES, "PRINCIPAL": "users"}, "PRINCIPAL: found 'users'"),
        ({**TABLES, "PRINCIPAL": 3}, "should be 'jwt', 'user', or the path"),
        ({**TABLES, "GUARD": 3}, "GUARD: found 3; should be what `Guard.open` returns"),
        ({**TABLES, "tiers": {"default": {"budget": "9"}}}, "budget"),
        ({**TABLES, "store": {"url": "redis://[x"}}, "store.url"),
    ],
)
def test_a_wrong_setting_stops_the_start(setting: Any, message: str) -> None:
    """By a check with an identifier and a hint, and by an exception in both kinds of servers."""
    with override_settings(LLM_BUDGET=setting):
        (error,) = check_setting()
        for make in (get_wsgi, get_asgi):
            with pytest.raises(ImproperlyConfigured):
                make()
        with pytest.raises(SettingError, match=message) as caught:
            get_guard()

    assert ids([error]) == ["llm_budget.E001"]
    assert error.msg == str(caught.value)
    assert isinstance(caught.value, ConfigurationError)
    assert "s3cret" not in error.msg


def get_wsgi() -> Any:
    return get_wsgi_application()


def get_asgi() -> Any:
    return get_asgi_application()


@pytest.mark.parametrize(
    ("middleware", "options", "expected"),
    [
        ([django_site.BUDGET], {}, []),
        ([], {}, ["llm_budget.E002"]),
        ([django_site.BUDGET, SESSION, django_site.BUDGET], {}, ["llm_budget.E003"]),
        ([SESSION, AUTHENTICATION, django_site.BUDGET], {"PRINCIPAL": "user"}, []),
        ([SESSION, django_site.BUDGET], {"PRINCIPAL": "user"}, ["llm_budget.E004"]),
        (
            [SESSION, django_site.BUDGET, AUTHENTICATION],
            {"PRINCIPAL": "user"},
            ["llm_budget.E004"],
        ),
        ([GZIP, django_site.BUDGET], {}, []),
        ([django_site.BUDGET, GZIP], {}, ["llm_budget.W001"]),
        ([f"{__name__}.blocking", django_site.BUDGET], {}, []),
        (["no.such.Middleware", django_site.BUDGET], {"PRINICPAL": 1}, []),
    ],
)
def test_the_order_of_the_middleware_is_checked(
    middleware: list[str], options: dict[str, Any], expected: list[str]
) -> None:
    """Every finding says what to do."""
    with budget(**TABLES, **options), override_settings(MIDDLEWARE=middleware):
        assert ids(check_middleware()) == expected


def blocking(get_response: Any) -> Any:
    return get_response


def test_a_thread_in_an_asynchronous_chain_is_warned_of() -> None:
    """Where the settings say that the site is served so."""
    middleware = [f"{__name__}.blocking", django_site.BUDGET, SESSION]

    with budget(**TABLES), override_settings(ASGI_APPLICATION="x", MIDDLEWARE=middleware):
        (warning,) = check_middleware()

    assert ids([warning]) == ["llm_budget.W002"]
    assert f"{__name__}.blocking" in warning.msg


def test_the_checks_are_registered() -> None:
    """`manage.py check` runs them; the label of the application is its own."""
    with (
        override_settings(MIDDLEWARE=[], LLM_BUDGET={}),
        pytest.raises(CommandError, match=r"(?s)llm_budget\.E001.*llm_budget\.E002"),
    ):
        call_command("check")


async def test_a_loop_for_one_request_is_refused() -> None:
    """An asynchronous middleware on a WSGI server: its loop would end before the settlement."""
    bench = Bench("async", lambda request: None, below=[f"{__name__}.AsyncOnly"])

    async with bench:
        import asyncio

        with pytest.raises(SettingError, match="asynchronous only, on a WSGI server"):
            await asyncio.to_thread(bench.response)


class AsyncOnly:
    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Any) -> None:
        from asgiref.sync import markcoroutinefunction

        self._get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> Any:
        return await self._get_response(request)


@pytest.mark.parametrize("world", WORLDS)
def test_a_guard_of_the_wrong_kind_is_refused(world: str) -> None:
    """One that tests have opened has to fit the chain."""
    guard = Bench(world, lambda request: None).guard
    other = get_async_guard if world == "sync" else get_guard

    with budget(GUARD=guard), pytest.raises(SettingError, match="GUARD: found"):
        other()


def command(*arguments: str) -> tuple[str, str]:
    """Run the command; return what it says to the one and to the other."""
    out, err = io.StringIO(), io.StringIO()
    call_command("llm_budget_limits", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.fixture
def bench() -> Any:
    tiers = {
        "default": {"requests": "9/minute", "budget": "$2.50/month"},
        "pro": {"budget": "$7/month", "concurrency": 3},
    }
    return Bench("sync", lambda request: None, tiers=tiers)


async def test_the_command_prints_every_limit(bench: Bench) -> None:
    """One a line, money in dollars; nothing is reserved by asking."""
    async with bench:
        head, first, second = command("alice")[0].splitlines()
        again = command("alice")[0]

    assert head.split() == ["limit", "amount", "used", "remaining", "resets", "in", "over", "on"]
    assert first.split()[:4] == ["requests-per-minute", "9", "0", "9"]
    assert second.split()[:4] == ["budget-per-month", "$2.50", "$0.00", "$2.50"]
    assert again.splitlines()[1] == first


async def test_the_command_knows_tiers_and_json(bench: Bench) -> None:
    """Money is text, so that no digit is lost; an unknown tier is that of everybody."""
    async with bench:
        budget_of_pro, slots = json.loads(command("alice", "--tier", "pro", "--json")[0])
        table, warning = command("alice", "--tier", "platinum", "--tenant", "acme")

    assert (budget_of_pro["limit"], budget_of_pro["amount"]) == ("budget-per-month", "7.00")
    assert (slots["remaining"], slots["reset_ms"]) == (3, None)
    assert "requests-per-minute" in table
    assert "no tier 'platinum'" in warning


async def test_the_command_fails_without_a_store(bench: Bench) -> None:
    """With 2, which a script can tell from a wrong argument."""
    async with bench:
        bench.store.down = True
        with pytest.raises(CommandError, match="the store does not answer") as caught:
            command("alice")

    assert caught.value.returncode == 2


async def test_a_principal_without_limits_has_none() -> None:
    """It is said in words."""
    with budget(**{**TABLES, "tiers": {"default": {}}}):
        assert command("alice") == ("No limits.\n", "")
        assert command("alice", "--json") == ("[]\n", "")


def test_a_request_after_a_change_sees_the_change() -> None:
    """`override_settings` reaches a client that has been used."""
    client = Client()

    with override_settings(LLM_BUDGET=TABLES):
        assert client.get("/health").status_code == 200
    with override_settings(LLM_BUDGET=None), pytest.raises(SettingError):
        client.get("/health")
