"""Fields of a request that decide what a call may cost: read strictly, or refused by name."""

from __future__ import annotations

import reprlib
from typing import Any

from llm_budget_mw.dialects._json import MAX_LABEL, is_array, is_object
from llm_budget_mw.errors import RequestError

MAX_OUTPUT = 2**31 - 1
"""Largest output bound accepted; some programs send it to mean "no bound"."""

MAX_SAMPLINGS = 128
"""Most answers to one request, as OpenAI allows for `n`."""


def wrong(field: str, needed: str, value: object) -> RequestError:
    """Return the error for a field whose value is not what is needed."""
    return RequestError(f"{field} must be {needed}, not {reprlib.repr(value)}.")


def read_whole(body: dict[str, Any], field: str, least: int, most: int) -> int | None:
    """Read an integer; None if absent or null. Floats and booleans are refused."""
    value = body.get(field)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise wrong(field, f"an integer from {least} to {most}", value)
    return value


def read_flag(body: dict[str, Any], field: str) -> bool:
    """Read a boolean; False if absent or null."""
    value = body.get(field)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong(field, "true or false", value)
    return value


def read_label(body: dict[str, Any], field: str) -> str | None:
    """Read a short name, such as the model; None if absent or null."""
    value = body.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_LABEL:
        raise wrong(field, f"a string of 1 to {MAX_LABEL} characters", value)
    return value


def read_table(body: dict[str, Any], field: str) -> dict[str, Any]:
    """Read an object; empty if absent or null."""
    value = body.get(field)
    if value is None:
        return {}
    if not is_object(value):
        raise wrong(field, "an object", value)
    return value


def read_objects(body: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """Read an array of objects; empty if absent or null."""
    value = body.get(field)
    if value is None:
        return []
    if not is_array(value):
        raise wrong(field, "an array", value)
    for position, item in enumerate(value):
        if not is_object(item):
            raise wrong(f"{field}[{position}]", "an object", item)
    return value


def read_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Read `messages`, of which there must be at least one."""
    messages = read_objects(body, "messages")
    if not messages:
        raise RequestError("messages must be an array with at least one message.")
    return messages


def refuse(body: dict[str, Any], field: str, why: str) -> None:
    """Raise `RequestError` if a field is set whose effect no reservation covers."""
    if body.get(field) is not None:
        raise RequestError(f"{field} is not allowed here: {why}.")


def refuse_capitals(body: dict[str, Any]) -> None:
    """Raise `RequestError` for a name not in lower case.

    To a server written in Go it is another spelling of the same field, and the last one
    counts (https://pkg.go.dev/encoding/json#Unmarshal).
    """
    for name in body:
        if name != name.casefold():
            raise RequestError(f"{reprlib.repr(name)} is no field: names are in lower case here.")
