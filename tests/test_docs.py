"""The documents agree with the code: options, dialects, events, metrics, keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from llm_budget_mw import Guard, Principal, Usage, events, json_schema
from llm_budget_mw.alerts import Anomaly, Crossing
from llm_budget_mw.config import DIALECTS, ENVIRONMENT
from llm_budget_mw.dialects import _surcharges
from llm_budget_mw.events import Event, Origin
from llm_budget_mw.sinks import names
from llm_budget_mw.testing import RecordingSink
from llm_budget_mw.types import (
    Limit,
    ModelCall,
    Plan,
    Prompt,
    Refusal,
    RefusalReason,
    Subject,
    Window,
)
from tests.servers import ValkeyServer

DOCS = Path(__file__).parents[1] / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text()
OPERATIONS = (DOCS / "operations.md").read_text()
SCHEMA = json_schema()
MESSAGES = [{"role": "user", "content": "Hi"}]


def sections(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each heading with the rows of all tables below it."""
    for section in re.split(r"(?m)^#{2,3} ", text)[1:]:
        heading, _, rest = section.partition("\n")
        rows = re.findall(r"(?m)^\| (.*) \|$", rest)
        yield heading, [row.split(" | ") for row in rows]


def quoted(text: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


PAGES = list(sections(OPERATIONS))


def documented_options() -> dict[str, str]:
    """Return the documented options, by their path, with what stands in the default column."""
    found: dict[str, str] = {}
    for heading, rows in sections(CONFIGURATION):
        paths = quoted(heading)
        found |= dict.fromkeys(paths, "")
        for path in [path for path in paths if f"{path}.*" not in paths] or [""]:
            for option, _, default, *_ in [row for row in rows if len(row) == 4]:
                for name in quoted(option):
                    found[f"{path}.{name}".removeprefix(".")] = default
    return found


def options(node: dict[str, Any], path: str) -> Iterator[tuple[str, str | list[Any]]]:
    """Yield the options of a JSON schema, by their path, with how their default is documented."""
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[1]]
    for part in [*node.get("anyOf", ()), *node.get("oneOf", ())]:
        yield from options(part, path)
    if "items" in node:
        yield from options(node["items"], path)
    for name, part in node.get("properties", {}).items():
        below = f"{path}.{name}".removeprefix(".")
        default = part.get("default", "required" if name in node.get("required", ()) else "")
        yield below, "none" if default is None else default
        yield from options(part, below)
    values = node.get("additionalProperties")
    if isinstance(values, dict) and "$ref" in values:
        yield f"{path}.*", ""
        yield from options(values, f"{path}.*")


def test_every_option_is_documented_and_no_other() -> None:
    """The documented paths are those of the JSON schema."""
    known = {path for path, _ in options(SCHEMA, "")}

    assert set(documented_options()) == known


def test_documented_defaults_are_the_real_ones() -> None:
    """What stands in the default column is the default, in TOML's notation."""
    real = dict(options(SCHEMA, ""))

    for path, documented in documented_options().items():
        assert documented in ("", notation(real[path])), path


def notation(default: str | list[Any]) -> str:
    """Return how a default is documented."""
    if default in ("required", "none"):
        return str(default)
    # The schema has decimal numbers as text, and tables that are made on demand not at all.
    number = isinstance(default, str) and default.isdecimal()
    return f"`{default}`" if number else f"`{json.dumps({} if default == '' else default)}`"


def test_every_dialect_and_variable_is_documented() -> None:
    """Tables of dialects and of variables are complete."""
    rows = {row[0] for _, rows in sections(CONFIGURATION) for row in rows}

    assert {f"`{name}`" for name in DIALECTS} <= rows
    for variable, path in ENVIRONMENT.items():
        assert f"| `{variable}` | `{'.'.join(path)}` |" in CONFIGURATION


def test_every_surcharge_is_documented() -> None:
    """The features a tier may have a surcharge for are listed."""
    features = {
        value for name, value in vars(_surcharges).items() if re.fullmatch("[A-Z][A-Z0-9_]+", name)
    }
    features -= {_surcharges.CACHE_WRITE, _surcharges.CACHE_WRITE_1H}

    for feature in features:
        assert f"`{feature}`" in CONFIGURATION


def happened() -> Iterator[Event]:
    """Yield one event of each name."""
    sink = RecordingSink()
    config = {"tiers": {"default": {"requests": "1/day"}}, "tokens": {"exact": False}}
    guard = Guard.open(config, sinks=[sink])
    with guard.call(Principal("alice"), model="gpt-4o", messages=MESSAGES) as call:
        call.record(Usage(10, 5))
    yield sink.events[0]
    origin = Origin(Principal("alice"), ModelCall("gpt-4o", Prompt(), None))
    plan = Plan("0" * 24, (), call.grant.plan.offers, 1000)
    refusal = Refusal(plan, RefusalReason.STORE_DOWN, None, (), 1000, None, "")
    yield events.refused(refusal, origin, None)
    yield events.denied(401, None, "/")
    yield events.unchecked(call.grant, origin, None, "")
    yield events.store_down("")
    yield events.store_up(0, 0)
    subject, limit = Subject("user/a", "user/a"), Limit("a", "cost", 9, Window("none"))
    yield events.threshold_crossed(Crossing(subject, limit, 0.8, 8, 9, 0), "user/a")
    yield events.anomaly_found(Anomaly(subject, limit, 9, 5, 1), "user/a")


def test_every_event_is_documented() -> None:
    """Each event has a section with exactly its attributes, or with those it adds to a call's."""
    tables = {heading: {row[0].strip("`") for row in rows[1:]} for heading, rows in PAGES}

    for event in happened():
        about_call = f"`{event.name}` (call)" in tables
        shared = tables["Events"] if about_call else set()
        own = tables[f"`{event.name}`" + about_call * " (call)"]

        assert own | shared == set(event.attributes), event.name


def test_every_metric_is_documented() -> None:
    """The table of metrics has each of them."""
    [rows] = [rows for heading, rows in PAGES if heading == "Metrics"]
    metrics = {
        names.CALLS,
        names.REFUSALS,
        names.UNCHECKED,
        names.TOKENS,
        names.COST_USD,
        names.OVERRUNS,
        names.DURATION,
    }

    assert {row[0].strip("`") for row in rows[1:]} == metrics


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def test_the_recipe_reads_an_account(valkey: ValkeyServer) -> None:
    """The script of the operations page prints what is committed and held of every limit."""
    tier = {"requests": "20/day", "budget": "$1/month", "concurrency": 4, "max_tokens": 50}
    store = {"url": valkey.url, "deadline_ms": 5000}
    guard = Guard.open({"tiers": {"default": tier}, "store": store}, sinks=[])
    with guard.call(Principal("alice"), model="gpt-4o-mini", messages=MESSAGES) as call:
        call.record(Usage(1000, 100))
    [script] = re.findall(r"```lua\n(.*?)```", OPERATIONS, re.DOTALL)
    [key] = re.findall(r"--eval account.lua '(.*)'", OPERATIONS)

    with redis.Redis.from_url(valkey.url) as client:
        with guard.call(Principal("alice"), model="gpt-4o-mini", messages=MESSAGES) as call:
            lines = str(client.eval(script, 1, key), "utf-8").splitlines()
            held = call.grant.charges.cost_nano
        unknown = client.eval(script, 1, "llmb:1:{user/bob}:user/bob")
        fields = {field[:1] for field in client.hkeys(key)}
    guard.close()

    assert lines[0].startswith("requests-per-day: 1 committed, 1 held, since 1")
    assert lines[1].startswith(f"budget-per-month: 210000 committed, {held} held, since 1")
    assert lines[2].startswith("concurrency: 0 committed, 1 held")
    assert unknown == b"no such principal"
    assert fields == {b"@"}
