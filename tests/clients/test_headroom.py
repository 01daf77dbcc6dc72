"""What a provider says of its limits: kept for each key and model, and never believed too far."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.clients.headroom import LONGEST_S, Headroom, Room, key_of

KEY = key_of("api", {"authorization": "Bearer sk-1"}, "m")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def said(limit: object, remaining: object, reset: object, what: str = "tokens") -> dict[str, str]:
    """Return headers in OpenAI's form."""
    values = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{name}-{what}": str(value) for name, value in values.items()}


def test_what_is_left_of_openais_limits_is_known() -> None:
    """Requests and tokens, with the time at which they are whole again."""
    headroom = Headroom(Clock())
    headroom.note(KEY, 200, {**said(100, 40, "6s"), **said(10, 9, "6ms", "requests")})
    assert headroom.room(KEY, "tokens") == Room(100, 40, 1006.0)
    assert headroom.room(KEY, "requests") == Room(10, 9, 1000.006)


def test_what_is_left_of_anthropics_limits_is_known() -> None:
    """Their names are the other way round, and their resets are dates."""
    reset = (datetime.now(UTC) + timedelta(seconds=20)).isoformat()
    headroom = Headroom(Clock())
    headroom.note(
        KEY,
        200,
        {
            "anthropic-ratelimit-tokens-limit": "1000",
            "anthropic-ratelimit-tokens-remaining": "0",
            "anthropic-ratelimit-tokens-reset": reset.replace("+00:00", "Z"),
            "retry-after": "12",
        },
    )
    # A `retry-after` on a success is no reason to wait for all the twelve seconds.
    assert headroom.wait_s(KEY, 100) == pytest.approx(2, abs=0.3)


def test_a_call_waits_until_as_much_as_it_needs_is_there() -> None:
    """Not for the whole limit: that fills up evenly."""
    clock = Clock()
    headroom = Headroom(clock)
    headroom.note(KEY, 200, said(100, 20, "40s"))
    assert headroom.wait_s(KEY, 20) == 0
    assert headroom.wait_s(KEY, 60) == pytest.approx(20)
    assert headroom.wait_s(KEY, 10**9) == pytest.approx(40)
    clock.now += 20
    assert headroom.wait_s(KEY, 60) == 0


def test_keys_and_models_are_apart() -> None:
    """One that is used up says nothing of another."""
    headroom = Headroom(Clock())
    headroom.note(KEY, 200, said(100, 0, "40s"))
    assert headroom.wait_s(key_of("api", {"authorization": "Bearer sk-2"}, "m"), 1) == 0
    assert headroom.wait_s(key_of("api", {"x-api-key": "Bearer sk-1"}, "m"), 1) == 0
    assert headroom.wait_s(key_of("other", {"authorization": "Bearer sk-1"}, "m"), 1) == 0
    assert headroom.wait_s(key_of("api", {"authorization": "Bearer sk-1"}, "n"), 1) == 0
    assert headroom.wait_s(key_of("api", {"authorization": "Bearer sk-1"}, "m"), 1) > 0


def test_no_credential_is_kept() -> None:
    """A key is a digest."""
    assert "sk-1" not in repr(KEY)


def test_a_refused_call_holds_back_the_others_of_its_key() -> None:
    """For as long as its provider asks, and no longer than a minute."""
    clock = Clock()
    headroom = Headroom(clock)
    headroom.note(KEY, 429, {"retry-after": "5"})
    assert headroom.wait_s(KEY, 0) == pytest.approx(5)
    headroom.note(KEY, 429, {"retry-after": "80000"})
    assert headroom.wait_s(KEY, 0) == pytest.approx(LONGEST_S)
    clock.now += LONGEST_S
    assert headroom.wait_s(KEY, 0) == 0


@pytest.mark.parametrize(
    "headers",
    [
        said(0, 0, "40s"),
        said(-1, -1, "40s"),
        said(100, -1, "40s"),
        said(100, 200, "40s"),
        said("1e9", 0, "40s"),
        said("\u0663", "\u0660", "40s"),
        said("9" * 400, 0, "40s"),
        said(100, 0, ""),
        said(100, 0, "-40s"),
        said(100, 0, "for ever"),
        said(100, 0, "9999999h"),
        said("", "", ""),
        {"x-ratelimit-remaining-tokens": "0"},
    ],
    ids=itertools.count(),
)
def test_nonsense_is_as_good_as_silence(headers: dict[str, str]) -> None:
    """What was known before stays."""
    headroom = Headroom(Clock())
    headroom.note(KEY, 200, headers)
    assert headroom.room(KEY, "tokens") is None
    headroom.note(KEY, 200, said(100, 50, "10s"))
    headroom.note(KEY, 200, headers)
    assert headroom.wait_s(KEY, 100) == pytest.approx(10)


@given(st.lists(st.text(max_size=30), min_size=3, max_size=3), st.integers(100, 599))
def test_whatever_is_said_nobody_waits_for_more_than_a_minute(
    values: list[str], status: int
) -> None:
    """Nor for less than nothing."""
    headroom = Headroom(Clock())
    headers = {**said(*values), "retry-after": values[2]}
    headroom.note(KEY, status, headers)
    assert 0 <= headroom.wait_s(KEY, 10) <= LONGEST_S


def test_only_so_many_keys_are_known() -> None:
    """The one heard of least recently is forgotten: model names come from outside."""
    headroom = Headroom(Clock())
    for number in range(1000):
        headroom.note((KEY[0], f"m{number}"), 200, said(100, 0, "40s"))
    assert len(headroom._heard) == 256
    assert headroom.wait_s((KEY[0], "m999"), 1) > 0
    assert headroom.wait_s((KEY[0], "m0"), 1) == 0
