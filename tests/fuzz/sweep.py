"""Every field of a JSON value in turn: missing, null, of another type, huge, negative."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

_MISSING = object()
WRONG: tuple[Any, ...] = (
    _MISSING,
    None,
    True,
    "12",
    "",
    -1,
    -0.5,
    10**30,
    2**64,
    1e308,
    math.nan,
    math.inf,
    [],
    {},
    [None],
    {"": None},
)


def one_field_wrong(value: Any) -> Iterator[Any]:
    """Yield the value once for each field and each way in which that can be wrong."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        for wrong in WRONG:
            yield with_child(value, key, wrong)
        if isinstance(child, dict | list):
            for changed in one_field_wrong(child):
                yield with_child(value, key, changed)


def with_child(value: Any, key: Any, child: Any) -> Any:
    """Return a copy with another child at that key, or without it."""
    copy = value.copy()
    if child is _MISSING:
        del copy[key]
    else:
        copy[key] = child
    return copy
