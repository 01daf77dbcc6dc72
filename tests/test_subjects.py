"""Which subjects a call counts for, seen from a guard on memory and on Valkey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_budget_mw.config import load
from llm_budget_mw.errors import ConfigurationError
from llm_budget_mw.events import Origin
from llm_budget_mw.guard import Guard
from llm_budget_mw.subjects import Subjects, model_switch, subject_named, switches_of
from llm_budget_mw.types import Grant, Principal, Subject
from tests.deployment import PRICES, Recorder, call_of
from tests.servers import ValkeyServer, fresh_prefix

Open = Callable[..., Guard]
ALICE = Principal("alice", "acme", claims={"team_id": "red"})
BOB = Principal("bob", "acme", claims={"team_id": "blue"})
CAROL = Principal("carol", "globex", urgent=True)


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(params=["memory", "valkey"])
def opened(request: pytest.FixtureRequest) -> Iterator[Open]:
    guards: list[Guard] = []
    url = "memory://"
    if request.param == "valkey":
        url = request.getfixturevalue("valkey").url

    def open_guard(*limits: dict[str, Any], **sections: Any) -> Guard:
        data: dict[str, Any] = {
            "tiers": {"default": {"max_tokens": 100}},
            "limits": limits,
            "prices": PRICES,
            "store": {"url": url, "prefix": fresh_prefix().replace(":", "-"), "deadline_ms": 5000},
            **sections,
        }
        guards.append(Guard.open(data, sinks=[Recorder()]))
        return guards[-1]

    yield open_guard
    for guard in guards:
        guard.close()


def took(
    guard: Guard, who: Principal = ALICE, feature: str | None = None, model: str = "small"
) -> str | None:
    """Make a call that never ends; return what refused it, None if nothing did."""
    decided = guard.decide(Origin(who, call_of(model=model, max_output=10), feature=feature))
    if isinstance(decided, Grant):
        return None
    assert decided.binding is not None
    return decided.binding.subject.name


Calls = list[tuple[Principal, dict[str, Any]]]


def each(of: str, **options: Any) -> dict[str, Any]:
    return {"of": of, "requests": "2/day", **options}


def test_a_deployment_is_shared_by_all(opened: Open) -> None:
    """Whoever asks, it counts; and nobody's own limit is touched by a refusal."""
    guard = opened(each("deployment"), tiers={"default": {"requests": "9/day"}})
    assert [took(guard, who) for who in (ALICE, BOB, CAROL)] == [None, None, "deployment"]

    [own, shared] = guard.limits(CAROL)
    assert (own.used, shared.used) == (0, 2)
    assert shared.limit.name == "deployment-requests-per-day"


TEAM: Calls = [(ALICE, {}), (ALICE, {}), (ALICE, {}), (BOB, {})]
TENANT: Calls = [(ALICE, {}), (BOB, {}), (BOB, {}), (CAROL, {})]
FEATURE: Calls = [
    (ALICE, {"feature": "a"}),
    (CAROL, {"feature": "a"}),
    (BOB, {"feature": "a"}),
    (BOB, {"feature": "b"}),
]


@pytest.mark.parametrize(
    ("table", "calls"),
    [(each("tenant"), TENANT), (each("feature"), FEATURE), (each("team", claim="team_id"), TEAM)],
)
def test_each_subject_counts_apart(opened: Open, table: dict[str, Any], calls: Calls) -> None:
    """Two calls of one subject pass and the third does not; another subject's does."""
    guard = opened(table)
    answers = [took(guard, who, **call) for who, call in calls]

    assert answers[:2] == [None, None]
    assert (answers[2] or "").startswith(f"{table['of']}/")
    assert answers[3] is None


def test_who_has_none_is_not_limited(opened: Open) -> None:
    """No tenant, no feature, no claim: those tables say nothing."""
    guard = opened(each("tenant"), each("feature"), each("team", claim="team_id"))
    assert [took(guard, Principal("solo")) for _ in range(4)] == [None] * 4


def test_teams_of_two_tenants_are_two(opened: Open) -> None:
    """A team's name counts inside its tenant."""
    guard = opened(each("team", claim="team_id"))
    others = Principal("dan", "globex", claims={"team_id": "red"})
    assert [took(guard) for _ in range(2)] == [None, None]
    assert took(guard, others) is None


def test_a_table_for_some_goes_before_the_one_for_each(opened: Open) -> None:
    """Named subjects have their own limits, the others those for each."""
    guard = opened(each("feature"), each("feature", only=["chat", "code"], requests="1/day"))
    assert [took(guard, feature="chat") for _ in range(2)] == [None, "feature/chat"]
    assert took(guard, feature="code") is None
    assert [took(guard, feature="x") for _ in range(3)] == [None, None, "feature/x"]

    guard = opened(each("feature", only=["chat"], requests="1/day"))
    assert [took(guard, feature="x") for _ in range(3)] == [None] * 3


def test_a_model_that_is_used_up_gives_way(opened: Open) -> None:
    """Only the granted model is charged, and the ladder goes on below a spent one."""
    offers = [{"model": "big"}, {"model": "small"}]
    guard = opened(
        each("model", only=["big"]), tiers={"default": {"max_tokens": 50, "offers": offers}}
    )
    models: list[str] = []
    for _ in range(4):
        with guard.call(ALICE, model="big", messages=[{"role": "user", "content": "hi"}]) as call:
            models.append(call.model)
    assert models == ["big", "big", "small", "small"]


def test_a_session_is_the_clients_own_word(opened: Open) -> None:
    """It counts for its principal alone: nobody can use up another's session."""
    guard = opened({"of": "session", "header": "X-Session", "requests": "1/day"})
    headers = {"x-session": "s/1"}

    def admitted(who: Principal, named: dict[str, str]) -> bool:
        call = guard.classified(who, call_of(model="small"), named)
        return isinstance(guard.decide(Origin(who, call)), Grant)

    assert admitted(ALICE, headers)
    assert not admitted(ALICE, headers)
    assert admitted(BOB, headers)
    assert admitted(ALICE, {"x-session": "s/2"})
    assert admitted(ALICE, {})


def test_a_part_is_kept_for_the_urgent(opened: Open) -> None:
    """Ordinary callers stop short of it; what counts is the same for both."""
    guard = opened(each("deployment", requests="10/day", reserve="20%"))
    assert [took(guard) for _ in range(9)] == [None] * 8 + ["deployment"]
    assert [took(guard, CAROL) for _ in range(3)] == [None, None, "deployment"]


def test_nobody_starves_the_others(opened: Open) -> None:
    """One principal gets its part of a shared limit, however much is left."""
    guard = opened(each("deployment", requests="10/day", per_principal="30%"))
    answers = [took(guard) for _ in range(4)]
    assert answers == [None, None, None, "deployment/by/acme/user/alice"]
    assert took(guard, BOB) is None


def test_a_part_of_an_amount(opened: Open) -> None:
    """Of $5,000, 40 % is an amount like any other."""
    guard = opened({"of": "deployment", "budget": "40% of $5000/month"})
    [status] = guard.limits(ALICE)
    assert status.limit.amount == 2_000 * 10**9


def test_money_of_a_shared_limit_needs_prices(opened: Open) -> None:
    """A model nobody knows the price of is refused, though only a shared limit is in money."""
    guard = opened({"of": "deployment", "budget": "$5/day"})
    with pytest.raises(Exception, match="no known price"):
        took(guard, model="mystery")


def test_shadow_of_everything(opened: Open) -> None:
    """Nothing is refused, everything counts, and the event says what would have been."""
    guard = opened(
        each("deployment", requests="1/day"),
        mode="shadow",
        tiers={"default": {"requests": "2/day", "concurrency": 1}},
    )
    for _ in range(3):
        held = guard.hold(
            guard.decide(Origin(ALICE, call_of(model="small"))), Origin(ALICE, call_of())
        )
        assert held is not None
    assert {status.limit.name: status.used for status in guard.limits(ALICE)} == {
        "requests-per-day": 3,
        "concurrency": 3,
        "deployment-requests-per-day": 3,
    }


def test_names_cannot_be_forged() -> None:
    """No id, tenant, feature or team can name another's account or switch."""
    hostile = ["a", "a/b", "a:b", "{a}", "user/a", "*", "a by", "=a", "ü", "\ud800", "x" * 500]
    seen: set[Subject] = set()
    for name in hostile:
        for principal in (Principal(name), Principal("a", name), Principal(name, "a")):
            for kind in ("tenant", "feature", "model", "team"):
                seen.add(subject_named(kind, name, principal))
    names = {subject for subject in seen if set("{}: ") & set(subject.partition + subject.name)}
    assert names == set()
    assert len(
        {switch for name in hostile for switch in switches_of(None, name, name, (name,), ())}
    ) == (1 + 3 * len(hostile))
    assert model_switch("a") == "model/a:model/a"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{"of": "team"}], "exactly one of `claim` and `header`"),
        ([{"of": "tenant", "claim": "org"}], "is not needed"),
        ([{"of": "deployment", "only": ["x"]}], "there is one deployment"),
        ([{"of": "user", "claim": "sub"}], "word of this package"),
        ([{"of": "Team!", "claim": "t"}], "limits"),
        ([{"of": "tenant"}, {"of": "tenant"}], "make them one"),
        ([{"of": "feature", "only": ["a"]}, {"of": "feature", "only": ["b", "a"]}], "named 'a'"),
        ([{"of": "team", "claim": "a"}, {"of": "team", "claim": "b", "only": ["x"]}], "differ"),
        ([{"of": "tenant", "reserve": 1.0}], "leaves nothing"),
        ([{"of": "tenant", "reserve": "150%"}], "80%"),
        ([{"of": "s", "header": "x-s", "per_principal": 0.5}], "counts for one anyway"),
        ([{"of": "tenant", "requests": "5/minute", "budget": "$-1/day"}], "budget"),
        ([{"of": "tenant", "requests": {"limit": "5/minute", "carry_over": 0.5}}], "sliding"),
        ([{"of": "tenant", "requests": "1.5/day"}], "write"),
        ([{"of": "tenant", "budget": "140% of $5/day"}], "80%"),
        ([{"of": "tenant", "budget": {"limit": "$5/month", "zone": "Mars/Olympus"}}], "time zone"),
        ([{"of": "tenant", "budget": {"limit": "$5/month", "anchor_day": 32}}], "31"),
        ([{"of": "tenant", "tokens": ["5/day", "9/day"]}], "two limits are named"),
    ],
)
def test_what_is_wrong_stops_the_start(tables: list[dict[str, Any]], message: str) -> None:
    """Each names the option, the value and the remedy."""
    with pytest.raises(ConfigurationError, match=message):
        load({"tiers": {"default": {}}, "limits": tables})


def test_limits_of_a_subject_are_known_by_name() -> None:
    """What operators may change: the limits with what is reserved, none of unknown subjects."""
    config = load({"tiers": {"default": {}}, "limits": [each("feature", only=["chat"])]})
    subjects = Subjects(config, lambda tokens: tokens)
    assert [limit.name for limit in subjects.limits_of("feature", "chat")] == [
        "feature-requests-per-day"
    ]
    assert subjects.limits_of("feature", "code") == ()
    assert subjects.limits_of("tenant", "acme") == ()
