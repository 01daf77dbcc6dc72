"""Compares what the provider billed, what workers said and what the store counted.

A pure function: ledgers in, faults out. The rules are those of the table in "One request" of
`docs/architecture.md`:

    exact        the charge is the bill
    counted      the input, and at least the output that was heard; at most what the bill says
    estimated    what was reserved, which is no less than the bill
    released     nothing, and nothing was billed
    expired      what was reserved, which is no less than the bill; only of a worker that was
                 killed, or had to end before the store took its settlements
    lost         nothing; only of such a worker, and where it admitted without the store

and then the counters: each is the sum of what became of its calls, nothing is held any more,
and no limit was overshot but by what the outage rule allows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from llm_budget_mw.types import Charges, Resource
from tests.chaos.ledgers import NO_BILL, Account, Bill, Call, Ledgers, Record, Standing, Worker

_TOLD = ("grade", "ending", "stream", "output_tokens", "held_tokens", "duration_ms")
"""Attributes of an event that say how a call went."""


class Fault(NamedTuple):
    """Something that does not agree."""

    rule: str
    what: str


class Fate(NamedTuple):
    """What became of one call in one account."""

    how: str
    """`settled`, `expired`, `lost`, `nothing` (not admitted, or given back), `held` or `doubled`."""
    amounts: Mapping[str, int]
    """What it adds to each limit, by name."""


@dataclass(frozen=True)
class Verdict:
    """What an audit found, and what it looked at."""

    faults: list[Fault]
    endings: Counter[str]
    """Calls by how they ended: the grade of a settlement, or another fate."""
    billed_nano: int
    charged_nano: int
    unheard_nano: int
    """Billed beyond the charge of calls that were cut: generated, and heard by nobody."""
    lost_nano: int
    """Billed to workers that ended while they spent without the store."""


class _Case(NamedTuple):
    """One call in one account, with all that is known about it."""

    name: str
    call: Call
    worker: Worker
    bill: Bill
    heard: int
    account: Account
    fate: Fate

    def amount(self, resource: Resource) -> int | None:
        """Return what it adds to the limits of a resource; None if there are none."""
        amounts = [
            self.fate.amounts.get(standing.name, 0)
            for standing in self.account.standings
            if standing.resource == resource
        ]
        return max(amounts, default=None)


def audit(ledgers: Ledgers) -> Verdict:
    """Compare everything."""
    cases = list(_cases(ledgers))
    faults = [*_unknown(ledgers), *_of_calls(cases), *_of_counters(cases, ledgers.accounts)]
    faults += [*_of_limits(ledgers), *_of_allowances(cases)]
    unheard = lost = 0
    for case in cases:
        missing = case.bill.cost_nano - (_charges(case.call).cost_nano if case.call.asked else 0)
        unheard += max(0, missing) if case.fate.how == "settled" else 0
        lost += case.bill.cost_nano if case.fate.how == "lost" else 0
    return Verdict(
        faults,
        Counter(_ending(case) for case in cases),
        sum(bill.cost_nano for bill in ledgers.bills.values()),
        sum(case.amount("cost") or 0 for case in cases),
        unheard,
        lost,
    )


def fate_of(call: Call, account: Account, record: Record | None) -> Fate:
    """Say what became of a call, from what its worker meant to do and what the store knows.

    A reservation that is gone has been settled: nothing else removes one. What the store never
    reserved leaves a mark when it is settled.
    """
    posted = _posted(account, _charges(call)) if call.asked else {}
    if record is not None and record.state == "held":
        return Fate("held", {})
    if record is not None and record.state == "expired":
        if call.answered:
            return Fate("doubled", Counter(posted) + Counter(record.amounts))
        return Fate("expired", record.amounts)
    delivered = call.answered or not call.unchecked or record is not None
    if call.unchecked and not (call.asked and delivered):
        return Fate("lost", {})
    return Fate("settled" if any(posted.values()) else "nothing", posted)


def _cases(ledgers: Ledgers) -> Iterator[_Case]:
    accounts = {account.subject: account for account in ledgers.accounts}
    for name, call in ledgers.calls.items():
        bill = ledgers.bills.get(name, NO_BILL)
        heard = min(ledgers.heard.get(name, 0), bill.output_tokens)
        for subject in call.subjects:
            account = accounts.get(subject) or Account(subject, (), {})
            fate = fate_of(call, account, account.records.get(name))
            worker = ledgers.workers[call.worker]
            yield _Case(name, call, worker, bill, heard, account, fate)


def _charges(call: Call) -> Charges:
    return call.asked[-1]


def _posted(account: Account, charges: Charges) -> dict[str, int]:
    by_resource = {
        "requests": charges.requests,
        "tokens": charges.tokens,
        "cost": charges.cost_nano,
    }
    return {each.name: by_resource.get(each.resource, 0) for each in account.standings}


def _ending(case: _Case) -> str:
    if case.fate.how in ("settled", "nothing") and case.call.event is not None:
        return str(case.call.event["grade"])
    return case.fate.how


def _told(case: _Case) -> str:
    """Return what helps to find out what happened."""
    call, event = case.call, case.call.event or {}
    said = {name: event.get(name) for name in _TOLD}
    return (
        f"of {call.worker} in {case.account.subject}: {case.fate}, {case.bill}, {case.heard} heard, "
        f"asked {call.asked}, answered {call.answered}, unchecked {call.unchecked}, {said}"
    )


# What each call came to


def _unknown(ledgers: Ledgers) -> Iterator[Fault]:
    for name in ledgers.bills.keys() - ledgers.calls.keys():
        yield Fault("unknown", f"call {name} was billed, and no worker asked the store for it")
    for account in ledgers.accounts:
        for name in account.records.keys() - ledgers.calls.keys():
            yield Fault("unknown", f"{account.subject} knows {name}, and no worker asked for it")


def _of_calls(cases: Iterable[_Case]) -> Iterator[Fault]:
    for case in cases:
        for rule, what in (*_of_fate(case), *_of_settlement(case), *_of_event(case)):
            yield Fault(rule, f"call {case.name}: {what}\n    {_told(case)}")


def _of_fate(case: _Case) -> Iterator[tuple[str, str]]:
    how, bill = case.fate.how, case.bill
    if how == "held":
        yield "left behind", "it is held although its lease is long over"
    if how == "doubled":
        yield "doubled", "it was settled, and charged by expiry as well"
    if how in ("expired", "lost") and case.worker.left_nothing:
        yield "left behind", f"it is {how}, and its worker ended in good order"
    if how == "expired":
        for resource, billed in (("tokens", bill.tokens), ("cost", bill.cost_nano)):
            amount = case.amount(resource)  # type: ignore[arg-type]  # of two of them
            if amount is not None and amount < billed:
                yield "too small", f"expiry charged {amount} {resource}, {billed} were billed"
    if how == "nothing" and bill.cost_nano:
        yield "missing", "it was billed, and not charged"


def _of_settlement(case: _Case) -> Iterator[tuple[str, str]]:
    """Hold what was posted against what is due at the least, however the call ended."""
    asked = case.call.asked
    if len(set(asked)) > 1:
        yield "doubled", "its settlements differ from each other"
    if case.fate.how == "settled":
        due = case.bill.input_tokens + case.heard
        if _charges(case.call).tokens < due:
            yield "too small", f"{due} tokens are known to be used"


def _of_event(case: _Case) -> Iterator[tuple[str, str]]:
    event, bill = case.call.event, case.bill
    if event is None:
        if bill.cost_nano and case.worker.left_nothing:
            yield "event", "it was billed, and no event tells of it"
        return
    said = (event["total_tokens"], event["cost_nano"])
    if case.call.asked and said != _charges(case.call)[1:]:
        yield "event", "the event says other numbers than were posted"
    billed, held = (bill.tokens, bill.cost_nano), (event["held_tokens"], event["held_cost_nano"])
    match event["grade"]:
        case "exact" if said != billed:
            yield "not exact", "usage was reported, and the charge is not the bill"
        case "counted":
            yield from _of_count(event, case)
        case "estimated" if said != held:
            yield "estimate", "the charge is not what was reserved"
        case "released" if any(said) or any(billed):
            yield "released", "it was released, and charged or billed all the same"
    if any(part < whole for part, whole in zip(held, billed, strict=True)):
        yield "too small", "the reservation is no bound on the bill"


def _of_count(event: Mapping[str, Any], case: _Case) -> Iterator[tuple[str, str]]:
    if event["input_tokens"] < case.bill.input_tokens:
        yield "input", "its input was billed with more"
    if event["output_tokens"] < case.heard:
        yield "heard", "more of its output was heard than counted"
    if event["output_tokens"] > case.bill.output_tokens:
        yield "too large", "more output was counted than generated"


# What the counters say


def _of_counters(cases: Iterable[_Case], accounts: Iterable[Account]) -> Iterator[Fault]:
    sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        sums[case.account.subject].update(case.fate.amounts)
    for account in accounts:
        for each in account.standings:
            due, where = sums[account.subject][each.name], f"{each.name} of {account.subject}"
            if each.used != due:
                yield Fault("sum", f"{where} counts {each.used}, its calls come to {due}")
            if each.held:
                yield Fault("left behind", f"{where} still holds {each.held}")


def _of_limits(ledgers: Ledgers) -> Iterator[Fault]:
    """Hold what is used against each limit, whenever it was looked at."""
    spenders: defaultdict[str, set[str]] = defaultdict(set)
    for call in ledgers.calls.values():
        for subject in call.subjects if call.unchecked else ():
            spenders[subject].add(call.worker)
    for account in (*ledgers.accounts, *ledgers.glimpses):
        for each in account.standings:
            most = each.amount + len(spenders[account.subject]) * _allowance(each)
            if each.on_outage != "open" and each.used + each.held > most:
                what = f"{each.name} of {account.subject} has {each.used} used and {each.held} held"
                yield Fault("overshoot", f"{what}, and {most} is the most")


def _of_allowances(cases: Iterable[_Case]) -> Iterator[Fault]:
    """Hold what each worker spent without the store against its share."""
    spent: defaultdict[tuple[str, str, Standing], int] = defaultdict(int)
    for case in cases:
        if case.call.unchecked:
            bill = Charges(1, case.bill.tokens, case.bill.cost_nano)
            amounts = _posted(case.account, _charges(case.call) if case.call.asked else bill)
            for each in case.account.standings:
                spent[case.call.worker, case.account.subject, each] += amounts[each.name]
    for (worker, subject, each), amount in spent.items():
        if each.on_outage == "closed":
            yield Fault("overshoot", f"{worker} admitted without {each.name} of {subject}")
        elif each.on_outage == "local" and amount > _allowance(each):
            what = f"{worker} spent {amount} of {each.name} of {subject} by itself"
            yield Fault("overshoot", f"{what}, and its share is {_allowance(each)}")


def _allowance(each: Standing) -> int:
    return int(each.amount * each.local_share) if each.on_outage == "local" else 0
