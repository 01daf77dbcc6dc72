"""What callers are told of their own limits, at every edge."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx
import pytest

from llm_budget_mw import BudgetMiddleware, Guard
from llm_budget_mw.config import load
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.types import Principal
from tests.adapters import django_bench
from tests.adapters.flask_bench import FlaskBench
from tests.deployment import Recorder, SwitchStore, configured
from tests.edge import driver as asgi
from tests.edge.driver import ISSUER
from tests.serving import serving
from tests.wsgi import driver as wsgi

PATH = "/budget"
TIERS = {
    "default": {"requests": "4/day", "concurrency": 2},
    "pro": {"budget": "$20/day", "tokens": "1000/minute", "max_tokens": 40},
}
SECTIONS: dict[str, Any] = {
    "limits_path": PATH,
    "tiers": TIERS,
    "limits": [{"of": "tenant", "budget": "$1/month"}, {"of": "deployment", "requests": "9/day"}],
    "refusals": {"upgrade_hint": "See /plans."},
}
CHAT_MESSAGES = [{"role": "user", "content": "how are you?"}]


class Told(NamedTuple):
    """An answer, and what there is to see of the deployment behind it."""

    status: int
    headers: dict[str, str]
    body: bytes
    sink: Recorder

    @property
    def content(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


async def ask_asgi(before: Before, method: str, token: str | None, sections: Any) -> Told:
    bench = asgi.Bench(asgi.failing(AssertionError("not for the application")), **sections)
    before(bench.store)
    found = await bench.post(b"", PATH, method=method, token=token)
    return Told(found.status, found.headers, found.body, bench.sink)


async def ask_wsgi(before: Before, method: str, token: str | None, sections: Any) -> Told:
    bench = wsgi.Bench(wsgi.answering(b"not for the application"), **sections)
    before(bench.store)
    found = bench.post(b"", PATH, method=method, token=token)
    return Told(found.status, found.headers, found.body, bench.sink)


async def ask_flask(before: Before, method: str, token: str | None, sections: Any) -> Told:
    bench = FlaskBench(**sections)
    before(bench.store)
    found = bench.post(b"", PATH, method=method, token=token)
    headers = {name.lower(): value for name, value in found.headers.items()}
    return Told(found.status_code, headers, found.data, bench.sink)


def ask_django(world: str) -> Ask:
    async def ask(before: Before, method: str, token: str | None, sections: Any) -> Told:
        async with django_bench.Bench(world, lambda request: 1 / 0, **sections) as bench:
            before(bench.store)
            found = await bench.post(b"", PATH, method=method, token=token)
        headers = {name.lower(): value for name, value in found.headers.items()}
        return Told(found.status, headers, found.body, bench.sink)

    return ask


Before = Callable[[SwitchStore], object]
Ask = Callable[[Before, str, str | None, Any], Awaitable[Told]]
EDGES = {
    "asgi": ask_asgi,
    "wsgi": ask_wsgi,
    "flask": ask_flask,
    **{
        f"django {world}": ask_django(world) for world in (*django_bench.WORLDS, django_bench.MIXED)
    },
}


def nothing(store: SwitchStore) -> None:
    """Leave the deployment as it is."""


def spend(store: SwitchStore) -> None:
    """Let alice and her colleague use something."""
    guard = Guard.open(configured(**SECTIONS), store=store, sinks=[])
    for name, tier in (("alice", "pro"), ("carol", "pro")):
        who = Principal(name, tenant="acme", tier=tier)
        with guard.call(who, model="big", messages=CHAT_MESSAGES) as call:
            call.record({"prompt_tokens": 100_000, "completion_tokens": 2000})


def switch_off(store: SwitchStore) -> None:
    """Let the store be away."""
    store.down = True


@pytest.fixture(params=EDGES)
def edge(request: pytest.FixtureRequest) -> Ask:
    return EDGES[request.param]


async def ask(
    edge: Ask,
    *,
    before: Before = nothing,
    method: str = "GET",
    token: str | None = "",
    **sections: Any,
) -> Told:
    """Ask at an edge, as alice of acme on the plan pro, unless it is said otherwise."""
    if token == "":
        token = ISSUER.token("alice", tenant="acme", tier="pro")
    return await edge(before, method, token, SECTIONS | sections)


async def test_callers_read_their_limits(edge: Ask) -> None:
    """Their own in full, shared ones in percent; nothing of it may be kept by a cache."""
    told = await ask(edge, before=spend)

    assert told.status == 200
    assert told.headers["content-type"] == "application/json"
    assert told.headers["cache-control"] == "no-store"
    assert told.content == {
        "tier": "pro",
        "limits": [
            {
                "limit": "tokens-per-minute",
                "resource": "tokens",
                "shared_by": None,
                "used_percent": 100,
                "resets_in_s": 60,
                "resets_at": "2027-01-15T12:01:00Z",
                "amount": 1000,
                "used": 102_000,
                "remaining": 0,
                "exhausted_at": None,
            },
            {
                "limit": "budget-per-day",
                "resource": "cost",
                "shared_by": None,
                "used_percent": 1,
                "resets_in_s": 43_200,
                "resets_at": "2027-01-16T00:00:00Z",
                "amount": "20.00",
                "used": "0.27",
                "remaining": "19.73",
                "exhausted_at": None,
            },
            {
                "limit": "tenant-budget-per-month",
                "resource": "cost",
                "shared_by": "tenant",
                "used_percent": 54,
                "resets_in_s": 1_425_600,
                "resets_at": "2027-02-01T00:00:00Z",
            },
            {
                "limit": "deployment-requests-per-day",
                "resource": "requests",
                "shared_by": "deployment",
                "used_percent": 22,
                "resets_in_s": 43_200,
                "resets_at": "2027-01-16T00:00:00Z",
            },
        ],
        "upgrade_hint": "See /plans.",
    }
    assert told.sink.events == []


async def test_who_pays_for_calls_at_this_pace_is_told_when_it_is_over(edge: Ask) -> None:
    """With the moment at which the own limit will be used up."""
    tiers = {"default": {}, "pro": {"budget": "$0.40/day"}}
    told = await ask(edge, before=spend, tiers=tiers, limits=[], refusals={})

    (budget,) = told.content["limits"]
    assert budget["exhausted_at"] == "2027-01-15T17:46:40Z"
    assert "upgrade_hint" not in told.content


async def test_asking_holds_nothing_and_takes_nothing(edge: Ask) -> None:
    """However often: the slots and requests of a limit are those of calls."""
    token = ISSUER.token("bob")
    told = await ask(edge, token=token, tiers={"default": {"requests": "4/day", "concurrency": 2}})

    assert told.content["tier"] == "default"
    requests, slots, _ = told.content["limits"]
    assert (requests["remaining"], slots["remaining"]) == (4, 2)
    assert (slots["resets_in_s"], slots["resets_at"]) == (None, None)


@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), ("e30.e30.e30", 401), (ISSUER.token("x", scope="a"), 403)]
)
async def test_who_may_not_call_may_not_ask(edge: Ask, token: str | None, status: int) -> None:
    """The answer is that of a guarded route, and so is the event."""
    told = await ask(edge, token=token, jwt=ISSUER.config(scope="llm"))

    assert told.status == status
    assert told.headers["www-authenticate"].startswith("Bearer")
    assert told.headers["content-type"] == "application/problem+json"
    (denied,) = told.sink.named("budget.denied")
    assert (denied["status"], denied["route"]) == (status, PATH)


async def test_without_the_store_nobody_knows(edge: Ask) -> None:
    """A 503 in the usual form, and no event for each who asks."""
    told = await ask(edge, before=switch_off)

    assert told.status == 503
    assert told.headers["retry-after"] == "1"
    assert told.content["code"] == "budget_unavailable"
    assert told.sink.events == []


async def test_head_is_get_without_a_body(edge: Ask) -> None:
    """With the length the body would have."""
    head, get = await ask(edge, method="HEAD"), await ask(edge)

    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_there_is_nothing_to_write(edge: Ask, method: str) -> None:
    """Other methods are refused with those that are not, and ask nobody who it is."""
    told = await ask(edge, method=method, token=None)

    assert told.status == 405
    assert told.headers["allow"] == "GET, HEAD"
    assert told.content["code"] == "method_not_allowed"
    assert told.sink.events == []


async def test_there_is_nothing_unless_it_is_configured() -> None:
    """The path belongs to the application."""
    found = wsgi.Bench(wsgi.answering(b"mine")).post(b"", PATH, method="GET", token=None)

    assert found.body == b"mine"


async def test_a_limit_that_only_counts_is_not_told() -> None:
    """It stands in nobody's way."""
    tiers = {"default": {"requests": [{"limit": "4/day", "shadow": True}]}}
    told = await ask(ask_wsgi, tiers=tiers, limits=[])

    assert told.content["limits"] == []


async def test_a_path_of_a_route_cannot_be_this_one_too() -> None:
    """Found out at the start."""
    route = {"path": PATH, "dialect": "custom"}
    with pytest.raises(ConfigurationError, match="limits_path '/budget' is the path of a route"):
        load({"tiers": {"default": {}}, "limits_path": PATH, "routes": [route]})


def test_a_browser_on_a_real_server_is_told() -> None:
    """Over a socket, GET and HEAD."""
    config = configured(**SECTIONS, jwt=ISSUER.config())
    headers = {"authorization": f"Bearer {ISSUER.token('alice')}"}
    with serving(BudgetMiddleware(asgi.failing(AssertionError()), config=config)) as url:
        get = httpx.get(url + PATH, headers=headers)
        head = httpx.head(url + PATH, headers=headers)
        wrong = httpx.post(url + PATH, headers=headers)

    assert (get.status_code, head.status_code, wrong.status_code) == (200, 200, 405)
    assert get.json()["tier"] == "default"
    assert (head.content, head.headers["content-length"]) == (b"", get.headers["content-length"])
