"""Results as a table, as JSON, and in the README between two markers.

`python -m benchmarks.report` writes the table of `results.json` into `README.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure import Result

_FOLDER = Path(__file__).parent
_RESULTS = _FOLDER / "results.json"
_README = _FOLDER / "README.md"
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"
_MET = {True: "yes", False: "**no**", None: ""}
_PRECISE_BELOW = 10

Row = dict[str, Any]
"""A line of `results.json`: name, value, unit, goal, met."""


def row(result: Result) -> Row:
    """Return a result as it stands in `results.json`."""
    return {
        "name": result.name,
        "value": result.value if isinstance(result.value, str) else round(result.value, 3),
        "unit": result.unit,
        "goal": None if result.goal is None else str(result.goal),
        "met": result.met,
    }


def write(rows: Iterable[Row]) -> None:
    """Write `results.json`, a result a line."""
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in rows)
    _RESULTS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def table(rows: Iterable[Row]) -> str:
    """Return results as a Markdown table."""
    lines = ["| what | value | goal | met |", "|---|---:|---|---|"]
    lines += [
        f"| {item['name']} | {_value(item)} | {item['goal'] or ''} | {_MET[item['met']]} |"
        for item in rows
    ]
    return "\n".join(lines)


def _value(item: Row) -> str:
    value = item["value"]
    if isinstance(value, str):
        return value
    number = f"{value:.2f}" if abs(value) < _PRECISE_BELOW else f"{value:,.0f}"
    return f"{number} {item['unit']}".rstrip()


def main() -> None:
    """Write the table into the README."""
    rows = json.loads(_RESULTS.read_text(encoding="utf-8"))
    readme = _README.read_text(encoding="utf-8")
    between = re.compile(f"(?<={_BEGIN}\n).*?(?={_END})", re.DOTALL)
    _README.write_text(between.sub(lambda _: f"\n{table(rows)}\n\n", readme), encoding="utf-8")


if __name__ == "__main__":
    main()
