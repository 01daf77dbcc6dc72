"""The audit finds what it is there to find: every disagreement, made on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llm_budget_mw.types import Charges
from tests.chaos.audit import audit
from tests.chaos.ledgers import (
    Account,
    Bill,
    Call,
    Ledgers,
    Record,
    Standing,
    Worker,
    read_bills,
    read_worker,
)

ALICE = "user/alice"
BILL = Bill(10, 5, 100)
HELD = (30, 200)
"""Tokens and nano-dollars of every reservation here."""
AMOUNT = 1000


def event(grade: str, output: int = 5, charged: tuple[int, int] = (15, 100)) -> dict[str, Any]:
    tokens, cost = charged
    return {
        "grade": grade,
        "input_tokens": 10,
        "output_tokens": output,
        "total_tokens": tokens,
        "cost_nano": cost,
        "held_tokens": HELD[0],
        "held_cost_nano": HELD[1],
    }


def settled(grade: str, output: int = 5, charged: tuple[int, int] = (15, 100)) -> Call:
    asked = Charges(int(any(charged)), *charged)
    return Call("calm", (ALICE,), [asked], answered=True, event=event(grade, output, charged))


def account(tokens: int, cost: int, **records: Record) -> Account:
    standings = [
        Standing("tokens", "tokens", AMOUNT, "closed", 0.0, tokens, 0),
        Standing("cost", "cost", AMOUNT, "closed", 0.0, cost, 0),
        Standing("slots", "concurrency", 2, "closed", 0.0, 0, 0),
    ]
    return Account(ALICE, standings, records)


def expired(tokens: int = HELD[0], cost: int = HELD[1]) -> Record:
    return Record("expired", {"tokens": tokens, "cost": cost, "slots": 0})


def good() -> Ledgers:
    """Return ledgers with one call for every ending there is; all of them agree."""
    return Ledgers(
        bills=dict.fromkeys(("exact", "cut", "kept", "killed", "silent"), BILL),
        calls={
            "exact": settled("exact"),
            "cut": settled("counted", 3, (13, 80)),
            "kept": settled("estimated", 20, HELD),
            "back": settled("released", 0, (0, 0)),
            "refused": Call("calm", (ALICE,)),
            "killed": Call("dead", (ALICE,)),
            # Killed after the store had settled it, and before it could say so.
            "silent": Call("dead", (ALICE,), [Charges(1, 15, 100)]),
        },
        workers={"calm": Worker(undelivered=0), "dead": Worker()},
        accounts=[account(15 + 13 + 30 + 30 + 15, 100 + 80 + 200 + 200 + 100, killed=expired())],
        heard={"exact": 5, "cut": 3},
    )


def local(ledgers: Ledgers, share: float = 0.2) -> Ledgers:
    """Let every limit have a share for each process."""
    accounts = [
        each._replace(
            standings=[one._replace(on_outage="local", local_share=share) for one in each.standings]
        )
        for each in ledgers.accounts
    ]
    return replace(ledgers, accounts=accounts)


def rules(ledgers: Ledgers) -> set[str]:
    return {fault.rule for fault in audit(ledgers).faults}


def test_ledgers_that_agree_have_no_fault() -> None:
    """One call of every ending, each charged by its rule, adds up."""
    verdict = audit(good())

    assert verdict.faults == []
    assert verdict.endings == dict.fromkeys(
        ("exact", "counted", "estimated", "released", "nothing", "expired", "settled"), 1
    )
    assert (verdict.billed_nano, verdict.charged_nano) == (500, 680)
    assert (verdict.unheard_nano, verdict.lost_nano) == (20, 0)


def forget_charge(ledgers: Ledgers) -> None:
    ledgers.accounts = [account(103 - 15, 680 - 100, killed=expired())]


def charge_twice(ledgers: Ledgers) -> None:
    ledgers.accounts = [account(103 + 15, 680 + 100, killed=expired())]


def expire_after_settlement(ledgers: Ledgers) -> None:
    records = {"killed": expired(), "exact": expired()}
    ledgers.accounts = [account(103 + 30, 680 + 200, **records)]


def settle_differently(ledgers: Ledgers) -> None:
    ledgers.calls["exact"].asked.insert(0, Charges(1, 14, 90))


def charge_less_than_billed(ledgers: Ledgers) -> None:
    ledgers.calls["exact"] = settled("exact", 4, (14, 90))


def charge_more_than_billed(ledgers: Ledgers) -> None:
    ledgers.calls["exact"] = settled("exact", 6, (16, 110))


def count_less_than_was_heard(ledgers: Ledgers) -> None:
    ledgers.heard = {"cut": 4}


def count_more_than_was_made(ledgers: Ledgers) -> None:
    ledgers.calls["cut"] = settled("counted", 6, (16, 110))


def count_less_input_than_was_billed(ledgers: Ledgers) -> None:
    ledgers.bills = {**ledgers.bills, "cut": Bill(11, 5, 110)}


def keep_less_than_reserved(ledgers: Ledgers) -> None:
    ledgers.calls["kept"] = settled("estimated", 20, (29, 200))


def release_what_was_billed(ledgers: Ledgers) -> None:
    ledgers.bills = {**ledgers.bills, "back": BILL}


def forget_a_billed_call(ledgers: Ledgers) -> None:
    ledgers.bills = {**ledgers.bills, "refused": BILL}


def bill_a_call_nobody_made(ledgers: Ledgers) -> None:
    ledgers.bills = {**ledgers.bills, "ghost": BILL}


def expire_for_too_little(ledgers: Ledgers) -> None:
    ledgers.accounts = [account(103 - 16, 680 - 100, killed=expired(14, 100))]


def expire_for_too_little_money(ledgers: Ledgers) -> None:
    ledgers.accounts = [account(103, 680 - 101, killed=expired(30, 99))]


def reserve_too_little(ledgers: Ledgers) -> None:
    ledgers.bills = {**ledgers.bills, "kept": Bill(10, 21, 260)}


def leave_a_call_to_expiry(ledgers: Ledgers) -> None:
    ledgers.workers = {**ledgers.workers, "dead": Worker(undelivered=0)}


def still_hold_a_call(ledgers: Ledgers) -> None:
    ledgers.accounts = [account(73, 480, killed=expired()._replace(state="held"))]


def still_hold_something(ledgers: Ledgers) -> None:
    tokens, *others = ledgers.accounts[0].standings
    ledgers.accounts = [ledgers.accounts[0]._replace(standings=[tokens._replace(held=1), *others])]


def know_a_call_nobody_made(ledgers: Ledgers) -> None:
    ledgers.accounts = [account(133, 880, killed=expired(), ghost=expired())]


def say_something_else(ledgers: Ledgers) -> None:
    ledgers.calls["exact"].asked[0] = Charges(1, 15, 101)


def say_nothing(ledgers: Ledgers) -> None:
    ledgers.calls["exact"].event = None


def settle_without_the_input(ledgers: Ledgers) -> None:
    ledgers.calls["silent"].asked[0] = Charges(1, 9, 100)


def lose_the_account(ledgers: Ledgers) -> None:
    ledgers.accounts = []


def overshoot_at_the_end(ledgers: Ledgers) -> None:
    standings = [one._replace(amount=102) for one in ledgers.accounts[0].standings]
    ledgers.accounts = [ledgers.accounts[0]._replace(standings=standings)]


def overshoot_on_the_way(ledgers: Ledgers) -> None:
    tokens, cost, slots = ledgers.accounts[0].standings
    ledgers.glimpses = [Account(ALICE, [tokens, cost, slots._replace(held=3)], {})]


def admit_past_a_closed_limit(ledgers: Ledgers) -> None:
    ledgers.calls["exact"].unchecked = True


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (forget_charge, "sum"),
        (charge_twice, "sum"),
        (expire_after_settlement, "doubled"),
        (settle_differently, "doubled"),
        (charge_less_than_billed, "not exact"),
        (charge_more_than_billed, "not exact"),
        (count_less_than_was_heard, "heard"),
        (count_more_than_was_made, "too large"),
        (count_less_input_than_was_billed, "input"),
        (keep_less_than_reserved, "estimate"),
        (release_what_was_billed, "released"),
        (forget_a_billed_call, "missing"),
        (bill_a_call_nobody_made, "unknown"),
        (expire_for_too_little, "too small"),
        (expire_for_too_little_money, "too small"),
        (reserve_too_little, "too small"),
        (leave_a_call_to_expiry, "left behind"),
        (still_hold_a_call, "left behind"),
        (still_hold_something, "left behind"),
        (know_a_call_nobody_made, "unknown"),
        (say_something_else, "event"),
        (say_nothing, "event"),
        (settle_without_the_input, "too small"),
        (lose_the_account, "missing"),
        (overshoot_at_the_end, "overshoot"),
        (overshoot_on_the_way, "overshoot"),
        (admit_past_a_closed_limit, "overshoot"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value.replace(" ", "-"),
)
def test_a_disagreement_is_found(spoil: Callable[[Ledgers], None], rule: str) -> None:
    """One thing changed in ledgers that agree is a fault of its own kind."""
    ledgers = good()
    spoil(ledgers)

    assert rule in rules(ledgers)


def unchecked(worker: str, cost: int, *, told: bool = True) -> Call:
    asked = [Charges(1, cost, cost)] if told else []
    return Call(worker, (ALICE,), asked, answered=told, unchecked=True)


def test_a_share_is_the_most_a_worker_spends_without_the_store() -> None:
    """Each of two workers may admit its share by itself; the counters may end above the limit."""
    mark = Record("settled", {})
    calls = {"one": unchecked("calm", 200), "two": unchecked("other", 200)}
    workers = {"calm": Worker(0), "other": Worker(0)}
    ledgers = local(Ledgers({}, calls, workers, [account(400, 400, one=mark, two=mark)]))

    assert rules(ledgers) == set()
    calls["two"].asked[0] = Charges(1, 201, 201)
    ledgers.accounts = local(
        replace(ledgers, accounts=[account(401, 401, one=mark, two=mark)])
    ).accounts
    assert rules(ledgers) == {"overshoot"}


def test_the_counters_may_exceed_a_limit_by_the_shares_that_were_used() -> None:
    """A share counts for a worker that admitted something by itself, and for no other."""
    mark = Record("settled", {})
    calls = {"one": unchecked("calm", 150), "most": settled("exact", charged=(1000, 1000))}
    bills = {"most": Bill(10, 990, 1000)}
    calls["most"].event = {**event("exact", 990, (1000, 1000)), "held_tokens": 1000}
    calls["most"].event["held_cost_nano"] = 1000
    ledgers = local(Ledgers(bills, calls, {"calm": Worker(0)}, [account(1150, 1150, one=mark)]))

    assert rules(ledgers) == set()
    calls["one"].unchecked = False
    assert rules(ledgers) == {"overshoot"}


def test_what_a_killed_worker_spent_without_the_store_is_lost() -> None:
    """Nobody knows of it but its event; a worker that ended in good order loses nothing."""
    calls = {"gone": unchecked("dead", 0, told=False)}
    ledgers = local(Ledgers({"gone": BILL}, calls, {"dead": Worker()}, [account(0, 0)]))

    assert audit(ledgers).lost_nano == BILL.cost_nano
    assert rules(ledgers) == set()
    ledgers.workers = {"dead": Worker(undelivered=1)}
    assert rules(ledgers) == set()
    ledgers.workers = {"dead": Worker(undelivered=0)}
    assert "left behind" in rules(ledgers)


def test_what_a_killed_worker_had_not_delivered_is_lost() -> None:
    """A settlement that was about to be sent counts if the store has its mark, and only then."""
    calls = {"gone": replace(unchecked("dead", 100), answered=False)}
    ledgers = local(Ledgers({"gone": BILL}, calls, {"dead": Worker()}, [account(0, 0)]))

    assert rules(ledgers) == set()
    ledgers.accounts = local(
        replace(ledgers, accounts=[account(100, 100, gone=Record("settled", {}))])
    ).accounts
    assert rules(ledgers) == set()
    assert audit(ledgers).lost_nano == 0


def test_a_share_holds_for_what_is_lost_too() -> None:
    """A killed worker cannot have spent more by itself than one that lived."""
    calls = {"gone": unchecked("dead", 0, told=False)}
    ledgers = local(
        Ledgers({"gone": Bill(100, 101, 300)}, calls, {"dead": Worker()}, [account(0, 0)])
    )

    assert rules(ledgers) == {"overshoot"}


def test_journals_are_read_as_they_were_written() -> None:
    """A journal becomes a worker and its calls, in whatever order its lines came."""
    charges = [1, 15, 100]
    told = {"reservation": "a", "principal": "alice", "tenant": None}
    worker, calls = read_worker(
        "calm",
        [
            {"what": "admit", "call": "a", "subjects": [ALICE]},
            {"what": "settle", "call": "a", "charges": charges},
            {"what": "event", "name": "budget.settled", **told, "grade": "exact"},
            {"what": "settled", "call": "a", "outcome": "1"},
            {"what": "event", "name": "budget.refused", "principal": "alice"},
            # The store was not asked.
            {"what": "event", "name": "budget.unchecked", **told, "reservation": "b"},
            {"what": "closed", "undelivered": 2},
        ],
    )

    assert worker == Worker(undelivered=2)
    assert calls["a"].answered
    assert calls["a"].asked == [Charges(1, 15, 100)]
    assert calls["a"].event is not None
    assert calls["b"] == Call("calm", (ALICE,), unchecked=True)


def test_a_call_that_is_billed_twice_is_no_ledger() -> None:
    """A provider that was asked twice for one reservation bills twice: no sum may hide that."""
    line = {"call": "a", "input": 1, "output": 1, "cost": 1}

    with pytest.raises(ValueError, match="twice"):
        read_bills([line, line])
