"""Measure, print a table, and write `results.json` if everything was measured.

python -m benchmarks                     all groups
python -m benchmarks admission edge      some of them
python -m benchmarks scale               minutes, so only when named
"""

from __future__ import annotations

import importlib
import sys
from time import perf_counter

from benchmarks import report

GROUPS = (
    "environment",
    "admission",
    "shapes",
    "edge",
    "frameworks",
    "stream",
    "elastic",
    "usage",
    "prompt",
    "clients",
    "queue",
    "outage",
    "memory",
)
"""Modules with a `run() -> Iterable[Result]`, in the order of the report."""
WHEN_NAMED = ("scale",)
"""More of them."""


def main(names: list[str]) -> None:
    """Run the groups with these names; all of them if there are none."""
    groups = (*GROUPS, *WHEN_NAMED)
    unknown = set(names) - set(groups)
    if unknown:
        sys.exit(f"no group {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    rows: list[report.Row] = []
    for name in names or GROUPS:
        begin = perf_counter()
        rows += map(report.row, importlib.import_module(f"benchmarks.{name}").run())
        print(f"{name}: {perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    print(report.table(rows))
    if not names:
        report.write(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
