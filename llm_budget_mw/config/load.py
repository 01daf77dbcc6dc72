"""Reading the configuration, and saying everything that is wrong with it at once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llm_budget_mw.config.model import Config, RouteConfig
from llm_budget_mw.errors import ConfigurationError

ENVIRONMENT = {
    "LLM_BUDGET_JWT_KEY": ("jwt", "key"),
    "LLM_BUDGET_STORE_URL": ("store", "url"),
    "LLM_BUDGET_ID_SECRET": ("events", "id_secret"),
    "LLM_BUDGET_WEBHOOK_SECRET": ("alerts", "webhook_secret"),
}
"""Variables of the environment, and the options they set."""

_SECRET = frozenset({"key", "id_secret", "url", "webhook", "webhook_secret"})
_WITH_TABLE = ("jwt", "alerts")
"""Sections that cannot start from a variable alone: an issuer is more than its key, and a table
`alerts` turns alerts on."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_EXPECTED = {
    "missing": "is required",
    "tuple_type": "should be a list",
    "dict_type": "should be a table",
    "model_type": "should be a table",
    "decimal_type": "should be a number",
    "decimal_parsing": "should be a number",
    "invalid_key": "should be a string",
    "string_too_short": "should not be empty",
}


def load(source: Path | str | Mapping[str, Any] | None = None, **overrides: Any) -> Config:
    """Return the configuration from a TOML file or a mapping, or from `overrides` alone.

    The variables in `ENVIRONMENT` are stronger than `source`, the keyword arguments are
    stronger than both; tables are merged, also into a list of one table, other values
    replaced. Raises `ConfigurationError` with one line for each problem.
    """
    origin = "the configuration" if source is None or isinstance(source, Mapping) else str(source)
    data = _merged(_read(source), overrides)
    for variable in ENVIRONMENT:
        if value := os.environ.get(variable):
            _set_from(variable, value, data, overrides)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        problems = _problems(error, data)
    raise ConfigurationError("\n".join([f"{origin} is not valid:", *problems]))


def load_route(path: str, options: Mapping[str, Any]) -> RouteConfig:
    """Return a route whose options stand in code; raises `ConfigurationError` like `load`."""
    data: dict[str, Any] = {"routes": [{"path": path, **options}], "tiers": {"default": {}}}
    try:
        return Config.model_validate(data).routes[0]
    except ValidationError as error:
        problems = _problems(error, data)
    raise ConfigurationError("\n".join([f"the guard of {path} is not valid:", *problems]))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of what `load` reads, for editors."""
    return Config.model_json_schema(mode="validation")


def _read(source: Path | str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return source
    try:
        return tomllib.loads(Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be read: {error.strerror}") from error
    # A path may hold a null byte, a file other bytes than text; both are a `ValueError`.
    except ValueError as error:
        raise ConfigurationError(f"{source} is not a TOML file: {error}") from error


def _merged(base: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in stronger.items():
        below = _only(merged.get(name))
        if _is_table(below) and _is_table(value):
            merged[name] = _merged(below, value)
        else:
            merged[name] = value
    return merged


def _is_table(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _set_from(
    variable: str, value: str, data: dict[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Set an option in `data` from the environment, unless a keyword argument has set it."""
    section, option = ENVIRONMENT[variable]
    argument = _only(overrides.get(section))
    if isinstance(argument, BaseModel) or (_is_table(argument) and option in argument):
        return
    table = _only(data.get(section, [] if section in _WITH_TABLE else {}))
    if isinstance(table, BaseModel):
        table = dict(table)
    if not _is_table(table):
        raise ConfigurationError(
            f"the variable {variable} is set, which needs exactly one table `{section}`: "
            f"add it, or unset the variable and set `{option}` in each"
        )
    data[section] = {**table, option: value}


def _only(value: Any) -> Any:
    """Return the element of a list of one, and anything else as it is."""
    if isinstance(value, list | tuple):
        values = cast("Sequence[Any]", value)
        return values[0] if len(values) == 1 else values
    return value


def _problems(error: ValidationError, data: Any) -> list[str]:
    """Return a line for each option that is wrong."""
    return [
        f"  {_path(detail, data)}: {_found(detail)}{_expected(detail)}"
        for detail in error.errors(include_url=False)
    ]


def _path(detail: ErrorDetails, data: Any) -> str:
    """Return where the option is in the file, in TOML's notation.

    The location of an error also has steps that nobody wrote: into the table a string was
    made to, or into one reading of an option that has several. They are left out.
    """
    path = ""
    here: Any = data
    last = len(detail["loc"]) - 1
    for depth, step in enumerate(detail["loc"]):
        missing = depth == last and detail["type"] == "missing"
        if _holds(here, step):
            here = here[step]
        elif not missing:
            continue
        path += _step(step)
    return path.removeprefix(".") or "(top level)"


def _holds(here: Any, step: int | str) -> bool:
    try:
        here[step]
    except (LookupError, TypeError):
        return False
    return not isinstance(here, str)


def _step(step: int | str) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _BARE.fullmatch(step) else f'."{step}"'


def _found(detail: ErrorDetails) -> str:
    value = detail["input"]
    if detail["type"] in ("missing", "extra_forbidden"):
        return ""
    if _SECRET.intersection(detail["loc"][-2:]):
        return "the value (not shown) is wrong; "
    if isinstance(value, Mapping | list | tuple | BaseModel):
        return ""
    return f"found {repr(value)[:80]}; "


def _expected(detail: ErrorDetails) -> str:
    kind, message = detail["type"], detail["msg"]
    if kind == "extra_forbidden":
        return _unknown(detail["loc"])
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    # pydantic's own texts begin with the Python type: "Input should be", "String should match".
    return message[max(message.find("should "), 0) :]


def _unknown(location: Sequence[int | str]) -> str:
    known = list(_section_at(location).model_fields)
    close = get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"unknown option; did you mean `{close[0]}`?"
    return f"unknown option; known are {', '.join(known)}"


def _section_at(location: Sequence[int | str]) -> type[BaseModel]:
    """Return the section in which the option at this location stands."""
    section: type[BaseModel] = Config
    steps = iter(location[:-1])
    for step in steps:
        field = section.model_fields.get(str(step))
        if field is None:
            continue  # an index, or the name of a reading
        section = next(_sections_in(field.annotation), section)
        if get_origin(field.annotation) is dict:
            next(steps, None)  # a key somebody chose, which may equal the name of an option
    return section


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
