"""Hostile input for every dialect: `python -m tests.fuzz [--inputs N] [--dialect NAME] [--seed N]`.

Realistic requests, answers and streams (`seeds`) are broken in every field (`sweep`) and at
random (`mutate`), made up from nothing (`generated`), made large (`bulk`), or steered by
coverage (`guided`). What must hold all the same is in `checks`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.fuzz.bulk import MEBIBYTE
from tests.fuzz.campaign import Campaign, Report
from tests.fuzz.guided import check_guided, is_available
from tests.fuzz.seeds import SEEDS

_GUIDED = 20
"""One input steered by coverage for so many mutations: it is slower."""


def fuzz(dialect: str, inputs: int, number: int) -> Report:
    """Run one dialect under everything there is."""
    campaign = Campaign(dialect, number)
    report = campaign.run(inputs, MEBIBYTE)
    if is_available():
        runs = inputs // _GUIDED
        found = check_guided(dialect, runs, number)
        report.inputs += runs
        report.failures += [found] if found else []
    return report


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--inputs", type=int, default=100_000, help="mutations for each dialect")
    parser.add_argument("--dialect", choices=SEEDS, help="only this one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at", type=int, help="only this mutation, to repeat it")
    options = parser.parse_args(arguments)
    dialects = [options.dialect] if options.dialect else list(SEEDS)
    if options.at is not None:
        return _repeat(dialects, options.seed, options.at)
    if not is_available():
        print("atheris is not installed: nothing is steered by coverage")
    failed = False
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        tasks = [pool.submit(fuzz, name, options.inputs, options.seed) for name in dialects]
        for task in tasks:
            report = task.result()
            failed = failed or bool(report.failures)
            _show(report)
    return int(failed)


def _repeat(dialects: Sequence[str], number: int, position: int) -> int:
    failed = False
    for name in dialects:
        campaign = Campaign(name, number)
        campaign.mutation(position)
        failed = failed or bool(campaign.report.failures)
        _show(campaign.report)
    return int(failed)


def _show(report: Report) -> None:
    print(
        f"{report.dialect:20} {report.inputs:9,} inputs {report.seconds:7.1f} s"
        f"   slowest {report.slowest_ms:5.0f} ms   {len(report.failures)} failures",
        flush=True,
    )
    for failure in report.failures:
        print(failure, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
