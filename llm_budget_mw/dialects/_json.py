"""JSON from strangers: requests that must be understood, answers that may be garbage.

The parser stops at 200 levels, refuses NaN and lone surrogates, and takes the last of
repeated keys. That last rule is harmless because a request always goes on as `dump` of
what was parsed here: the provider cannot read another value than we did.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from pydantic_core import from_json, to_json

from llm_budget_mw.errors import RequestError

MAX_LABEL = 256
"""Longest model name or service tier."""

_MAX_COUNT = 2**31 - 1
"""More tokens than any call has: what claims to be more is no count, and sums stay exact."""


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a request body; raises `RequestError` if it is not a JSON object."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The request body is not JSON: {error}.") from None
    if not is_object(value):
        raise RequestError("The request body must be a JSON object.")
    return value


def look_at(data: bytes) -> dict[str, Any]:
    """Parse a piece of an answer; an empty object if it is not one."""
    try:
        return table(from_json(data)) if data else {}
    except ValueError:
        return {}


def dump(value: object) -> bytes:
    """Serialise what was parsed, compactly; a number too large for a float becomes null."""
    return to_json(value, inf_nan_mode="null")


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Return whether parsed JSON is an object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Return whether parsed JSON is an array."""
    return isinstance(value, list)


def table(value: object) -> dict[str, Any]:
    """Return the value if it is an object, else an empty one."""
    return value if is_object(value) else {}


def items(value: object) -> list[Any]:
    """Return the value if it is an array, else an empty one."""
    return value if is_array(value) else []


def count(value: object) -> int | None:
    """Return an answer's number of tokens, a fraction rounded up; None if it is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value <= _MAX_COUNT:
        return None
    return math.ceil(value)


def first_count(value: dict[str, Any], *keys: str) -> int | None:
    """Return the first of these counts that is one: providers differ in the name only."""
    for key in keys:
        found = count(value.get(key))
        if found is not None:
            return found
    return None


def label(value: object) -> str | None:
    """Return an answer's model or tier; None if it is no usable name."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_LABEL else None
