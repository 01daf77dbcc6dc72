"""Everything that can be written wrong is answered with its place and its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_budget_mw.config import load
from llm_budget_mw.errors import ConfigurationError

KEY = "k" * 64
PEM = "-----BEGIN PUBLIC KEY-----\n" + "A" * 64
JWT: dict[str, Any] = {"issuer": "https://a", "audience": "b", "key_file": "key.pem"}
ROUTE = {"path": "/a", "dialect": "custom"}
PRICE = {"input": 1, "output": 2}


def tier(**options: Any) -> dict[str, Any]:
    return {"tiers": {"default": options}}


def jwt(**options: Any) -> dict[str, Any]:
    issuer = {**JWT, **options}
    return {"jwt": {name: value for name, value in issuer.items() if value != "absent"}}


def shared(**options: Any) -> dict[str, Any]:
    return jwt(**{"algorithms": ["HS256"], "key_file": "absent", "key": KEY, **options})


WRONG: list[tuple[dict[str, Any], str, str]] = [
    # The top level
    ({"teirs": {}}, "teirs", "unknown option; did you mean `tiers`?"),
    ({"frobnicate": 1}, "frobnicate", "unknown option; known are tiers, store, jwt"),
    ({"tiers": {"free": {}}}, "tiers", "should have a tier named `default`"),
    ({"tiers": 5}, "tiers", "found 5; should be a table"),
    ({"tiers": {"": {}, "default": {}}}, 'tiers.""', "should not be empty"),
    ({"time_zone": "Mars/Base"}, "time_zone", "write one like Europe/Berlin"),
    ({"time_zone": "America"}, "time_zone", "write one like Europe/Berlin"),
    ({"max_body_bytes": 0}, "max_body_bytes", "found 0; should be greater than or equal to 1"),
    ({"max_body_bytes": "10 MiB"}, "max_body_bytes", "found '10 MiB'; should be a valid integer"),
    # Store
    ({"store": "redis://x"}, "store", "found 'redis://x'; should be a table"),
    ({"store": {"url": "mysql://pw@x"}}, "store.url", "should begin with `memory://`, `redis://`"),
    ({"store": {"uri": "redis://x"}}, "store.uri", "did you mean `url`?"),
    ({"store": {"prefix": "LLM"}}, "store.prefix", "found 'LLM'; should match"),
    ({"store": {"lease_s": 4}}, "store.lease_s", "found 4; should be greater than or equal to 5"),
    ({"store": {"lease_s": 4000}}, "store.lease_s", "should be less than or equal to 3600"),
    ({"store": {"lease_s": True}}, "store.lease_s", "found True; should be a valid integer"),
    ({"store": {"charge_on_expiry": "no"}}, "store.charge_on_expiry", "should be a valid boolean"),
    ({"store": {"deadline_ms": 0}}, "store.deadline_ms", "greater than or equal to 1"),
    ({"store": {"max_connections": 0}}, "store.max_connections", "greater than or equal to 1"),
    # Credentials
    (jwt(issuer="absent"), "jwt.issuer", "is required"),
    (jwt(audience="absent"), "jwt.audience", "is required"),
    (jwt(audience=5), "jwt.audience", "found 5; should be a valid string"),
    ({"jwt": [JWT, {**JWT, "audience": ["a", 5]}]}, "jwt[1].audience[1]", "found 5"),
    (jwt(algorithms=["none"]), "jwt.algorithms[0]", "found 'none'; should be 'HS256', 'HS384'"),
    (jwt(algorithms=[]), "jwt.algorithms", "should not be empty"),
    (jwt(algorithms="RS256"), "jwt.algorithms", "found 'RS256'; should be a list"),
    (jwt(key_file="absent"), "jwt", "exactly one of `key`, `key_file` and `jwks_url`"),
    (jwt(jwks_url="https://a/k"), "jwt", "found `key_file`, `jwks_url`"),
    (
        jwt(key_file="absent", jwks_url="http://a/k"),
        "jwt.jwks_url",
        "should be an https:// address",
    ),
    (jwt(key_file="absent", jwks_url="https://"), "jwt.jwks_url", "should be an https:// address"),
    (jwt(key_file="absent", jwks_url="https://[a"), "jwt.jwks_url", "Invalid IPv6 URL"),
    (jwt(leeway_s=61), "jwt.leeway_s", "should be less than or equal to 60"),
    (jwt(headers=["a b"]), "jwt.headers[0]", "should match pattern"),
    (jwt(tier_clam="plan"), "jwt.tier_clam", "did you mean `tier_claim`?"),
    (shared(algorithms=["HS256", "RS256"]), "jwt", "`HS256` cannot be mixed"),
    (shared(key="k" * 31), "jwt", "too short for `HS256`: 32 bytes or more"),
    (shared(algorithms=["HS256", "HS512"], key="k" * 63), "jwt", "64 bytes or more"),
    (shared(key=PEM), "jwt", "`key` is a public key or certificate"),
    (shared(key="absent", jwks_url="https://a/k"), "jwt", "HS256 needs a secret"),
    (shared(key=5), "jwt.key", "should be a valid string"),
    # Routes
    ({"routes": ROUTE}, "routes", "should be a list"),
    ({"routes": [{"path": "/a"}]}, "routes[0]", "`dialect` is required with the exact path '/a'"),
    (
        {"routes": [{**ROUTE, "unknown_route": "pass"}]},
        "routes[0]",
        "`unknown_route = 'pass'` can be set without `dialect` only",
    ),
    ({"routes": [{"path": "/*", "unknown_route": "no"}]}, "routes[0].unknown_route", "'refuse'"),
    (
        {"routes": [{"path": "/*", "model": "m"}]},
        "routes[0]",
        "`model` can be set with dialect 'custom' or `unknown_route = 'custom'` only",
    ),
    ({"routes": [{**ROUTE, "dialect": "openai"}]}, "routes[0].dialect", "should be `openai_chat`"),
    ({"routes": [{**ROUTE, "path": "a"}]}, "routes[0].path", "should begin with `/`"),
    ({"routes": [{**ROUTE, "path": "/*/a"}]}, "routes[0].path", "should have `*` at its end only"),
    ({"routes": [{**ROUTE, "methods": []}]}, "routes[0].methods", "should not be empty"),
    ({"routes": [{**ROUTE, "methods": ["P T"]}]}, "routes[0].methods[0]", "should match pattern"),
    ({"routes": [ROUTE, ROUTE]}, "routes", "two routes have the path '/a'"),
    (
        {"routes": [{"path": "/a", "dialect": "openai_chat", "input_tokens": 5}]},
        "routes[0]",
        "`input_tokens` can be set with dialect 'custom' only",
    ),
    # Tiers
    (tier(requsts="1/day"), "tiers.default.requsts", "did you mean `requests`?"),
    ({"tiers": {"default": {}, "tokens": {"limit": 1}}}, "tiers.tokens.limit", "unknown option"),
    (tier(requests="many"), "tiers.default.requests", "found 'many'; write \"20/minute\""),
    (tier(requests=["1/day", "1.5/day"]), "tiers.default.requests[1]", "found '1.5/day'; write"),
    (tier(requests="-1/day"), "tiers.default.requests", "found '-1/day'; write"),
    (tier(requests="1/0 days"), "tiers.default.requests", "found '1/0 days'; write"),
    (tier(requests="1/day;"), "tiers.default.requests", "found ''; write"),
    (tier(requests="1/1001 days"), "tiers.default.requests", "at most 1000 units"),
    (tier(requests=5), "tiers.default.requests", "found 5; should be a list"),
    (tier(requests=[5]), "tiers.default.requests[0]", "found 5; should be a table"),
    (tier(requests="1/day;2/day"), "tiers.default", "two limits are named 'requests-per-day'"),
    (tier(tokens=f"{2**53 + 1}/day"), "tiers.default.tokens", "at most 9007199254740992"),
    (tier(tokens={"limit": "1/day;2/day"}), "tiers.default.tokens.limit", 'write "20/minute"'),
    (tier(tokens={"window": "fixed"}), "tiers.default.tokens.limit", "is required"),
    (tier(tokens={"limit": "1/day", "name": "A b"}), "tiers.default.tokens.name", "match pattern"),
    (tier(tokens=[{"limit": "1/day", "zon": "UTC"}]), "tiers.default.tokens[0].zon", "`zone`?"),
    (
        tier(concurrency=1, tokens={"limit": "1/day", "name": "concurrency"}),
        "tiers.default",
        "two limits are named 'concurrency'",
    ),
    (tier(budget=["2/day"]), "tiers.default.budget[0]", "found '2/day'; write \"$20.50/month\""),
    (tier(budget=["$2/day", "$2"]), "tiers.default.budget[1]", "found '$2'; write"),
    (tier(budget="$2/fortnight"), "tiers.default.budget", "found '$2/fortnight'; write"),
    (tier(budget="$-2/day"), "tiers.default.budget", "is not an amount of money"),
    (tier(budget="$99999999/day"), "tiers.default.budget", "is not an amount of money"),
    (tier(budget=f"{2**53 + 1} base_tokens/day"), "tiers.default.budget", "at most 90071992547409"),
    (tier(budget="5 base_tokens/day"), "(top level)", "set `prices.reference_model`"),
    (
        tier(budget={"limit": "$2/2 days", "window": "calendar"}),
        "tiers.default.budget",
        "a calendar window is one hour",
    ),
    (
        tier(tokens={"limit": "1/minute", "window": "calendar"}),
        "tiers.default.tokens",
        "a calendar window is one hour",
    ),
    (
        tier(tokens={"limit": "1/minute", "zone": "UTC"}),
        "tiers.default.tokens",
        "`zone` needs a calendar window",
    ),
    (
        tier(tokens={"limit": "1/day", "zone": "Mars"}),
        "tiers.default.tokens.zone",
        "is not a time zone",
    ),
    (
        tier(tokens={"limit": "1/hour", "window": "calendar", "anchor_hour": 3}),
        "tiers.default.tokens",
        "`anchor_hour` needs",
    ),
    (
        tier(tokens={"limit": "1/week", "anchor_day": 3}),
        "tiers.default.tokens",
        "`anchor_day` needs a calendar month",
    ),
    (
        tier(tokens={"limit": "1/month", "anchor_day": 32}),
        "tiers.default.tokens.anchor_day",
        "should be less than or equal to 31",
    ),
    (tier(concurrency=0), "tiers.default.concurrency", "greater than or equal to 1"),
    (tier(max_tokens=5, min_tokens=6), "tiers.default", "min_tokens 6 is above max_tokens 5"),
    (
        tier(min_tokens=9, offers=[{"model": "a", "max_tokens": 8}]),
        "tiers.default",
        "offer 'a': min_tokens 9 is above max_tokens 8",
    ),
    (tier(models=["gpt-*-mini"]), "tiers.default.models[0]", "should have `*` at its end only"),
    (tier(offers=[{}]), "tiers.default.offers[0].model", "is required"),
    (
        tier(offers=[{"model": "a", "ceiling": "120%"}]),
        "tiers.default.offers[0].ceiling",
        "found '120%'; write \"80%\" or 0.8",
    ),
    (tier(urgent=0.5), "tiers.default.urgent", "greater than or equal to 1"),
    (tier(urgent=float("nan")), "tiers.default.urgent", "should be a finite number"),
    (tier(surcharges={"search": -1}), "tiers.default.surcharges.search", "found -1"),
    (tier(on_outage="open"), "tiers.default.on_outage", "found 'open'; should be a table"),
    (tier(on_outage={"cost": "open"}), "tiers.default.on_outage.cost", "unknown option; known are"),
    (
        tier(on_outage={"budget": "fail"}),
        "tiers.default.on_outage.budget",
        "found 'fail'; should be 'closed', 'open' or 'local'",
    ),
    (tier(local_share=0), "tiers.default.local_share", "should be greater than 0"),
    # Prices and tokens
    (
        {"prices": {"models": {"gpt-4.1": {"input": 1}}}},
        'prices.models."gpt-4.1".output',
        "is required",
    ),
    (
        {"prices": {"models": {"models": {**PRICE, "cached_read": 1}}}},
        "prices.models.models.cached_read",
        "did you mean `cache_read`?",
    ),
    ({"prices": {"models": {"a": {**PRICE, "input": -1}}}}, "prices.models.a.input", "found -1"),
    (
        {"prices": {"models": {"a": {**PRICE, "input": "free"}}}},
        "prices.models.a.input",
        "found 'free'; should be a number",
    ),
    ({"prices": {"unknown": "allow"}}, "prices.unknown", "should be 'refuse' or 'tokens-only'"),
    ({"prices": {"unknown": {"input": 1}}}, "prices.unknown.output", "is required"),
    (
        {"prices": {"unknown": {**PRICE, "inptu": 1}}},
        "prices.unknown.inptu",
        "did you mean `input`",
    ),
    (
        {"prices": {"models": {"a": {**PRICE, "long_context": PRICE}}}},
        "prices.models.a.long_context.above_tokens",
        "is required",
    ),
    ({"tokens": {"share": 1.5}}, "tokens.share", "should be less than or equal to 1"),
    ({"tokens": {"download_timeout_s": 0}}, "tokens.download_timeout_s", "greater than 0"),
    # What is told, and when the store is gone
    ({"refusals": {"budget_status": 418}}, "refusals.budget_status", "should be 402, 403, 422"),
    ({"events": {"principal": "hashed"}}, "events.principal", "should be 'pseudonym', 'plain'"),
    ({"events": {"id_secret": "short"}}, "events.id_secret", "should have at least 16 characters"),
    ({"outage": {"open_s": 60}}, "outage", "open_s 60.0 is above max_open_s 5.0"),
    ({"outage": {"open_s": float("inf")}}, "outage.open_s", "should be a finite number"),
    ({"outage": {"queue": 2.5}}, "outage.queue", "found 2.5; should be a valid integer"),
]


@pytest.mark.parametrize(
    ("wrong", "path", "remedy"),
    WRONG,
    ids=[f"{number}: {row[1]}" for number, row in enumerate(WRONG)],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], path: str, remedy: str) -> None:
    """One mistake makes one line that begins with the option and ends with what is allowed."""
    with pytest.raises(ConfigurationError) as caught:
        load(tier() | wrong)
    head, problem = str(caught.value).splitlines()

    assert head == "the configuration is not valid:"
    assert problem.startswith(f"  {path}: ")
    assert remedy in problem


def test_all_problems_are_named_at_once() -> None:
    """Three mistakes make three lines, in one error."""
    with pytest.raises(ConfigurationError) as caught:
        load(tier(requests="x", concurrency=0), store={"lease_s": 1})

    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"store": {"url": "redsi://:swordfish@host"}},
        {"jwt": {**JWT, "key": ["swordfish"]}},
        {"events": {"id_secret": "swordfish"}},
        {"jwt": {**JWT, "keyy": "swordfish"}},
        {"jwt": {**JWT, "key_file": None, "algorithms": ["HS256"], "key": "swordfish"}},
        {"store": {"ulr": "swordfish"}},
    ],
)
def test_a_wrong_secret_is_not_shown(wrong: dict[str, Any]) -> None:
    """Neither the message nor a chained error repeats a secret."""
    with pytest.raises(ConfigurationError) as caught:
        load(tier() | wrong)

    assert "swordfish" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_file_is_named(tmp_path: Path) -> None:
    """The first line says which file the problems are in."""
    path = tmp_path / "shop.toml"
    path.write_text("[tiers.free]")

    with pytest.raises(ConfigurationError, match=r"shop\.toml is not valid:\n  tiers: should have"):
        load(path)


def test_tiers_are_required() -> None:
    """A configuration without tiers would allow nothing, so there is none."""
    with pytest.raises(ConfigurationError, match="tiers: is required"):
        load()
