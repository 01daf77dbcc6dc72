"""What all sections of the configuration share: frozen, and strict about what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from decimal import Decimal
from ipaddress import ip_address
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, StringConstraints

from llm_budget_mw._windows import time_zone

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)


def _check_zone(name: str) -> str:
    time_zone(name)
    return name


def _check_pattern(pattern: str) -> str:
    if "*" in pattern[:-1]:
        raise ValueError("should have `*` at its end only")
    return pattern


def _check_address(value: str) -> str:
    url = urlsplit(value)
    local = url.scheme == "http" and _is_loopback(url.hostname or "")
    if not url.hostname or not (local or url.scheme == "https"):
        raise ValueError("should be an https:// address (http:// on this machine only)")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_filled(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("should not be empty")
    return values


# A TOML `true` is not 1 and "no" is not False: pydantic's lax rules would take both.
Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Real = Annotated[float, Strict()]

Count = Annotated[Whole, Field(ge=1)]
Size = Annotated[Whole, Field(ge=0)]
Share = Annotated[Real, Field(gt=0, le=1)]
Seconds = Annotated[Real, Field(gt=0)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Pattern = Annotated[Name, AfterValidator(_check_pattern)]
"""A name, or the beginning of names followed by `*`."""
Filled = Annotated[tuple[T, ...], AfterValidator(_check_filled)]
"""A list of one or more."""
Zone = Annotated[str, AfterValidator(_check_zone)]
Address = Annotated[str, AfterValidator(_check_address)]
"""Of another server: `https://`, or `http://` on this machine."""
Usd = Annotated[Decimal, Field(ge=0, le=1_000_000)]
"""A price; the bound, a dollar for each token, catches prices in another unit."""


class Section(BaseModel):
    """A table of the configuration: it never changes, and it knows all of its options."""

    # Building a validator takes longer than importing its module: only if it is used.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def repeated(names: Iterable[H]) -> list[H]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
