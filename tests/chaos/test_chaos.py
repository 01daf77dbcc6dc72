"""Everything is broken for half a minute, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.scenario import run

_SEED = 20261121
_SECONDS = 16.0


async def test_every_call_is_charged_by_the_rule_of_its_ending(tmp_path: Path) -> None:
    """Workers, the store and the way to it fail in every way; the ledgers agree call by call.

    The seed decides what is done, not when each process does its part: another run of the same
    seed may find less. `make chaos` runs for longer.
    """
    report = await run(_SECONDS, _SEED, tmp_path, lambda _: None)

    said = "\n".join(f"{rule}: {what}" for rule, what in report.verdict.faults[:20])
    assert not report.verdict.faults, f"seed {report.seed}, {report.happened}:\n{said}"
    # And there was something to find.
    assert {"exact", "counted", "estimated", "released", "expired"} <= report.verdict.endings.keys()
    assert {"1", "4"} <= report.outcomes.keys()
    assert report.events["budget.unchecked"] > 0
    assert report.most_waiting > 0
