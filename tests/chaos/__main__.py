"""Break everything for a while and count: `python -m tests.chaos [--minutes N] [--seed N]`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.scenario import Report, run

_SHOWN = 6
"""Disagreements of one kind that are printed."""


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; return 1 if the ledgers do not agree."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", type=Path, help="where to leave all journals")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        place = options.folder or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(run(options.minutes * 60, options.seed, place, say))
    show(report)
    return int(bool(report.verdict.faults))


def show(report: Report) -> None:
    """Print what a run was, and every fault there is room for."""
    verdict = report.verdict
    killed = sum(worker.undelivered is None for worker in report.ledgers.workers.values())
    print(f"faults made      {dict(report.happened)}")
    print(f"workers          {len(report.ledgers.workers)}, {killed} of them killed")
    print(f"calls            {len(report.ledgers.calls)}, billed {len(report.ledgers.bills)}")
    print(f"endings          {dict(verdict.endings)}")
    print(f"settlements met  {dict(report.outcomes)}")
    print(f"events           {dict(report.events)}")
    print(f"queued           {report.most_waiting} settlements at once, at most")
    print(f"billed           {verdict.billed_nano:,} nano-dollars")
    print(f"charged          {verdict.charged_nano:,}")
    print(f"  unheard        {verdict.unheard_nano:,} billed beyond the charge of calls cut off")
    print(f"  lost           {verdict.lost_nano:,} spent without the store by workers then killed")
    print(f"disagreements    {dict(Counter(fault.rule for fault in verdict.faults))}")
    shown = Counter[str]()
    for rule, what in verdict.faults:
        shown[rule] += 1
        if shown[rule] <= _SHOWN:
            print(f"{rule}: {what}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
