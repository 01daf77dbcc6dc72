"""What a settlement has to tell beside its outcome: thresholds crossed, unusual spending.

The script answers with a text, ` subject.limit.t.threshold.used` or
` subject.limit.a.spent.usual` for each, all by number from 1; see `lua/settle.lua`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llm_budget_mw.alerts import Anomaly, Crossing
from llm_budget_mw.stores._baseline import DAY_MS, MINUTES_MS, Baseline, compare
from llm_budget_mw.stores._ledger import Account
from llm_budget_mw.types import Charges, Grant, Limit, LimitSet, Plan

_MINUTE_MS = 60_000


class Told(NamedTuple):
    """What a settlement has to tell."""

    crossings: tuple[Crossing, ...]
    anomalies: tuple[Anomaly, ...]


def watched(grant: Grant, place: int) -> list[tuple[Limit, int]]:
    """Return the limits of a subject with the amounts thresholds are parts of; 0 for none."""
    limits = grant.plan.subjects[place].limits
    if not limits.watch.thresholds:
        return [(limit, 0) for limit in limits.limits]
    extra = grant.admission.extra if grant.admission else ()
    first = _first(grant.plan, place)
    return [
        (limit, limit.amount + int(extra[first + number] if extra else 0))
        if limit.resource != "concurrency"
        else (limit, 0)
        for number, limit in enumerate(limits.limits)
    ]


def thresholds(plan: Plan) -> Sequence[float]:
    """Return the thresholds of a plan; they are the same for all subjects that have any."""
    for entry in plan.subjects:
        if entry.limits.watch.thresholds:
            return entry.limits.watch.thresholds
    return ()


def unusual(plan: Plan) -> Sequence[float]:
    """Return what is unusual: factor, least, and for each subject the number of its limit."""
    for entry in plan.subjects:
        if entry.limits.teller is not None:
            watch, tellers = entry.limits.watch, [each.limits.teller for each in plan.subjects]
            numbers = [0 if teller is None else teller + 1 for teller in tellers]
            return (watch.factor, watch.least_nano, *numbers)
    return ()


def read(reply: str, grant: Grant) -> Told:
    """Read what a settlement has to tell out of its reply."""
    crossings: list[Crossing] = []
    anomalies: list[Anomaly] = []
    for text in reply.split(" ")[1:]:
        subject, number, kind, one, other = text.split(".")
        place = int(subject) - 1
        limit, amount = watched(grant, place)[int(number) - 1]
        entry = grant.plan.subjects[place]
        if kind == "a":
            minutes = MINUTES_MS // _MINUTE_MS
            anomalies.append(Anomaly(entry.subject, limit, int(one), minutes, int(other)))
            continue
        share = entry.limits.watch.thresholds[int(one) - 1]
        start = _start(grant, _first(grant.plan, place) + int(number) - 1)
        crossings.append(Crossing(entry.subject, limit, share, int(other), amount, start))
    return Told(tuple(crossings), tuple(anomalies))


def tell(account: Account, grant: Grant, place: int, charges: Charges, now_ms: int) -> str:
    """Return what the settlement of the subject at `place` tells, for the store in memory."""
    limits, found = grant.plan.subjects[place].limits, ""
    for number, (limit, amount) in enumerate(watched(grant, place), 1):
        if not amount:
            continue
        counter = account.counters[limit.name]
        level = sum(counter.committed >= part * amount for part in limits.watch.thresholds)
        window, known = account.told.get(limit.name, (0, 0))
        known = known if window == counter.start_ms else 0
        for each in range(known + 1, level + 1):
            found += f" {place + 1}.{number}.t.{each}.{counter.committed}"
        if level > known:
            account.told[limit.name] = (counter.start_ms, level)
    return found + _compared(account, place, limits, charges, now_ms)


def _compared(account: Account, place: int, limits: LimitSet, charges: Charges, now_ms: int) -> str:
    if limits.teller is None:
        return ""
    if account.baseline is None:
        account.baseline = Baseline(now_ms // DAY_MS, now_ms // MINUTES_MS)
    known, watch = account.baseline, limits.watch
    usual = compare(known, charges.cost_nano, now_ms, watch.factor, watch.least_nano)
    return "" if usual is None else f" {place + 1}.{limits.teller + 1}.a.{known.recent}.{usual}"


def _first(plan: Plan, place: int) -> int:
    """Return how many limits the subjects before this one have."""
    return sum(len(entry.limits.limits) for entry in plan.subjects[:place])


def _start(grant: Grant, number: int) -> int:
    return int(grant.admission.counters[5 * number]) if grant.admission else 0
