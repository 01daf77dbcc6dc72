"""The JSON schema describes the files that `load` reads."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from llm_budget_mw.config import Config, json_schema

FULL = Path(__file__).with_name("full.toml")
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool,
    "integer": int, "number": (int, float), "null": type(None),
}  # fmt: skip


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Check a value as far as our schema says anything: types, names, choices, patterns."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return any(fits(value, option, root) for option in schema[choice])
    if not isinstance(value, TYPES[schema["type"]]) or value not in schema.get("enum", [value]):
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        return all(fits(item, schema["items"], root) for item in value)
    return not isinstance(value, dict) or table_fits(value, schema, root)


def table_fits(table: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]) -> bool:
    known, other = schema.get("properties", {}), schema["additionalProperties"]
    if not set(schema.get("required", [])) <= set(table) or (not other and set(table) - set(known)):
        return False
    return all(fits(value, known.get(name, other), root) for name, value in table.items())


def test_the_full_example_fits() -> None:
    """A file with every option, in every form, is valid by the schema."""
    schema = json_schema()

    assert fits(tomllib.loads(FULL.read_text()), schema, schema)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"tiers": {"default": {"requsts": "1/day"}}},
        {"tiers": {"default": {"requests": 5}}},
        {"tiers": {"default": {"on_outage": {"budget": "never"}}}},
        {"tiers": {}, "store": {"lease_s": "long"}},
        {"tiers": {}, "prices": {"unknown": "allow"}},
    ],
)
def test_what_is_wrong_does_not_fit(wrong: dict[str, Any]) -> None:
    """An editor can mark misspelt options and values of the wrong kind."""
    schema = json_schema()

    assert not fits(wrong, schema, schema)


def test_the_schema_is_json() -> None:
    """The schema can be written to a file, and names every section."""
    schema = json.loads(json.dumps(json_schema()))

    assert set(schema["properties"]) == set(Config.model_fields)
