"""Tests of the table `alerts`, and of the path of self-service."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.config import AlertsConfig, Config, load
from llm_budget_mw.config.notation import parse_share, parse_threshold
from llm_budget_mw.errors import ConfigurationError

SECRET = "s" * 16
HOOK = {"webhook": "https://alerts.example/T0/B0/token", "webhook_secret": SECRET}


def loaded(alerts: Any = None, **options: Any) -> Config:
    table = {} if alerts is None else {"alerts": alerts}
    return load({"tiers": {"default": {}}, **table}, **options)


def alerts_of(**options: Any) -> AlertsConfig:
    found = loaded(options).alerts
    assert found is not None
    return found


def problem(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        loaded(options)
    return str(caught.value)


def test_without_the_table_nobody_is_told() -> None:
    """An empty one is enough to be."""
    assert loaded().alerts is None
    assert alerts_of().thresholds == (0.5, 0.8, 1.0, 1.2)


def test_thresholds_are_parts_or_percentages_in_any_order() -> None:
    """In the end they are numbers, the least first."""
    assert alerts_of(thresholds=["120%", 0.25, 1, "0.5 %"]).thresholds == (0.005, 0.25, 1.0, 1.2)
    assert alerts_of(thresholds=[]).thresholds == ()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"thresholds": [0]}, "alerts.thresholds[0]: found 0; write"),
    ({"thresholds": [0.5, 10.01]}, "alerts.thresholds[1]: found 10.01; write"),
    ({"thresholds": ["1001%"]}, "it must be above 0 and at most 10"),
    ({"thresholds": [True]}, "alerts.thresholds[0]: found True; write"),
    ({"thresholds": ["most"]}, "alerts.thresholds[0]: found 'most'; write"),
    ({"thresholds": [0.8, "80%"]}, "alerts.thresholds: should differ: 0.8 is there twice"),
    ({"thresholds": [n / 10 for n in range(1, 10)]}, "at most 8 thresholds, not 9"),
    ({"thresholds": "80%"}, "alerts.thresholds: found '80%'; should be a list"),
    ({"treshold": [1]}, "alerts.treshold: unknown option; did you mean `thresholds`?"),
    ({"webhook": HOOK["webhook"]}, "set the variable LLM_BUDGET_WEBHOOK_SECRET"),
    ({**HOOK, "webhook_secret": "s" * 15}, "`webhook_secret` should have at least 16 characters"),
    ({**HOOK, "webhook": "http://alerts.example/"}, "should be an https:// address"),
    ({**HOOK, "webhook": "http://10.0.0.1/"}, "should be an https:// address"),
    ({**HOOK, "webhook": "file:///etc/passwd"}, "should be an https:// address"),
    ({**HOOK, "webhook": "https:///x"}, "should be an https:// address"),
    ({**HOOK, "webhook": "https://a:b@c/"}, "no user, password or fragment"),
    ({**HOOK, "webhook": "https://c/#d"}, "no user, password or fragment"),
    ({**HOOK, "webhook": "https://c/\r\nx: y"}, "in ASCII, without blanks"),
    ({**HOOK, "webhook": "https://\u0441/"}, "in ASCII, without blanks"),
    ({**HOOK, "webhook": "https://c:0/"}, "a port above 0"),
    ({**HOOK, "webhook": "https://c:65536/"}, "Port out of range"),
    ({"anomaly": "yes"}, "alerts.anomaly: found 'yes'; should be a valid boolean"),
    ({"anomaly_factor": 0}, "alerts.anomaly_factor: found 0; should be greater than 0"),
    ({"anomaly_min_usd": -1}, "alerts.anomaly_min_usd: found -1; should be greater"),
]


@pytest.mark.parametrize(("options", "told"), WRONG)
def test_what_is_wrong_is_told_with_its_remedy(options: dict[str, Any], told: str) -> None:
    """And never with an address or a secret."""
    found = problem(**options)

    assert told in found
    assert not any(text in found for text in ("token", "ssss", "a:b@", "passwd"))


@pytest.mark.parametrize(
    "address",
    ["https://a.example", "http://127.0.0.1:9/x", "http://[::1]:9/", "http://localhost/?a=b"],
)
def test_an_address_is_a_secret_of_its_own(address: str) -> None:
    """What shows the configuration does not show it."""
    found = alerts_of(webhook=address, webhook_secret=SECRET)

    assert found.webhook == address
    assert address not in repr(found)
    assert SECRET not in repr(found)


def test_the_secret_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stronger than the file, and no table by itself: alerts are not turned on by a secret."""
    monkeypatch.setenv("LLM_BUDGET_WEBHOOK_SECRET", "from the environment")

    found = alerts_of(**HOOK)

    assert found.webhook_secret is not None
    assert found.webhook_secret.get_secret_value() == "from the environment"
    with pytest.raises(ConfigurationError, match="needs exactly one table `alerts`"):
        loaded()


@given(st.one_of(st.text(max_size=12), st.floats(), st.integers(), st.booleans(), st.none()))
def test_any_threshold_is_a_number_in_bounds_or_wrong(value: Any) -> None:
    """Whatever is a share is also a threshold, and the same one."""
    try:
        found = parse_threshold(value)
    except ValueError:
        with pytest.raises(ValueError, match="at most 1"):
            parse_share(value)
        return
    assert 0 < found <= 10
    if found <= 1:
        assert parse_share(value) == found


@pytest.mark.parametrize("path", ["budget", "", "/a*", "/a?b", "/a#b", "/" + "x" * 200])
def test_the_path_of_limits_is_a_plain_one(path: str) -> None:
    """It is compared as it is."""
    with pytest.raises(ConfigurationError, match="limits_path: found"):
        loaded(limits_path=path)
