"""The rules of the Lua scripts in Python: one subject's counters and reservations.

Every function mirrors one of `lua/*.lua`, in the same order and the same arithmetic (IEEE
doubles where Lua has them), so that both stores give the same answer to the last unit. The
only difference is that a collection here looks at all reservations, not at a page of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_budget_mw import _limits, _windows
from llm_budget_mw.stores._additions import MOST, Addition, add_up, in_force
from llm_budget_mw.stores._baseline import Baseline
from llm_budget_mw.types import Charges, Counter, Grant, Limit, Plan, SubjectLimits

_YEAR_MS = 366 * 86_400_000

KEEP_MS = 86_400_000
"""How long a late settlement still finds what expiry charged."""


@dataclass(slots=True)
class Hold:
    """A reservation of one subject, or the mark it leaves behind."""

    state: str
    """`held`; `expired`, the amounts are what was charged; `settled` without a reservation."""
    expires_ms: float
    admitted_ms: int = 0
    offer: int = 0
    output: int = 0
    charge_on_expiry: bool = True
    amounts: dict[str, int] = field(default_factory=dict[str, int])
    """By limit: what is held, or what expiry charged."""


@dataclass(slots=True)
class Account:
    """Everything the store knows about one subject."""

    born_ms: int
    seen_ms: int = 0
    """Time of the latest admission: a subject's time never runs backwards."""
    lives_until_ms: float = 0.0
    due_ms: float = math.inf
    """No reservation expires before; too early a value costs a look, nothing else."""
    counters: dict[str, Counter] = field(default_factory=dict[str, Counter])
    holds: dict[str, Hold] = field(default_factory=dict[str, Hold])
    additions: list[Addition] = field(default_factory=list[Addition])
    """What operators added to its limits."""
    told: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """By limit: its window, and how many thresholds were told in it."""
    baseline: Baseline | None = None


def roll(counter: Counter | None, start_ms: int) -> Counter:
    """Return the counter as of the window that starts at `start_ms`, never an earlier one."""
    if counter is None:
        return Counter(start_ms, 0, 0, 0, 0)
    if counter.start_ms >= start_ms:
        return counter
    return Counter(start_ms, 0, 0, counter.start_ms, counter.committed + counter.held)


class Row(NamedTuple):
    """The limits of one subject as an admission finds them."""

    counters: list[Counter]
    """Rolled to the present windows."""
    extra: list[int]
    """What each limit has beside its amount."""
    additions: list[Addition]
    """What remains of the subject's additions."""


def row(account: Account | None, entry: SubjectLimits, now_ms: int) -> Row:
    """Return the state of one subject at an admission."""
    limits = entry.limits.limits
    if account is None:
        counters = [roll(None, _limits.window_start(limit, now_ms)) for limit in limits]
        return Row(counters, [0] * len(limits), [])
    before = [account.counters.get(limit.name) for limit in limits]
    counters = [
        roll(counter, _limits.window_start(limit, now_ms))
        for counter, limit in zip(before, limits, strict=True)
    ]
    ended = [
        now.previous if then and then.start_ms < now.start_ms else 0
        for then, now in zip(before, counters, strict=True)
    ]
    added, additions = add_up(account.additions, limits, ended, now_ms)
    carried = [
        _limits.carried_over(limit, counter, now_ms)
        for limit, counter in zip(limits, counters, strict=True)
    ]
    return Row(counters, [a + b for a, b in zip(added, carried, strict=True)], additions)


def choose(plan: Plan, rows: list[Row], now_ms: int, stopped: int) -> tuple[int, int]:
    """Return number and output of the first offer that fits every limit, or (0, 0).

    `rows` are those of each subject of the plan; `stopped` has a bit for each offer.
    """
    limits = [
        (place, _limits.raised(limit, more), _windows.used(counter, limit.window, now_ms))
        for place, (entry, row) in enumerate(zip(plan.subjects, rows, strict=True))
        for limit, counter, more in zip(entry.limits.limits, row.counters, row.extra, strict=True)
    ]
    for number, offer in enumerate(plan.offers, 1):
        output = -1 if stopped >> (number - 1) & 1 else offer.max_output
        for place, limit, used in limits:
            fixed, each = _limits.charge(limit, offer)
            # What costs nothing passes, also when all is used up.
            if (not fixed and not each) or _limits.spared(offer, place):
                continue
            room = _limits.usable(limit, offer) - used - fixed
            if room < 0:
                break
            if each > 0:
                output = min(output, room // each)
        else:
            if output >= offer.min_output:
                return number, output
    return 0, 0


def hold(
    account: Account,
    plan: Plan,
    place: int,
    row: Row,
    choice: tuple[int, int],
    now_ms: int,
) -> Row:
    """Write an admission into the account of the subject at `place`; return how it stands."""
    entry, (number, output) = plan.subjects[place], choice
    reservation = Hold(
        "held", now_ms + plan.lease_ms, now_ms, number, output, plan.charge_on_expiry
    )
    offer = plan.offers[number - 1]
    for limit, counter in zip(entry.limits.limits, row.counters, strict=True):
        fixed, each = _limits.charge(limit, offer)
        amount = 0 if _limits.spared(offer, place) else fixed + each * output
        account.counters[limit.name] = counter._replace(held=counter.held + amount)
        reservation.amounts[limit.name] = amount
    account.holds[plan.id] = reservation
    account.additions = row.additions
    account.seen_ms = now_ms
    account.due_ms = min(account.due_ms, reservation.expires_ms)
    lifetime = max(plan.lease_ms, _limits.lifetime_ms(entry.limits))
    if account.lives_until_ms < now_ms + lifetime:
        account.lives_until_ms = now_ms + 1.25 * lifetime
    return row._replace(counters=[account.counters[name] for name in entry.limits.names])


def renew(account: Account, plan: Plan, now_ms: int) -> bool:
    """Prolong the lease of a reservation, never shorten it; False if it is not held."""
    reservation = account.holds.get(plan.id)
    if reservation is None or reservation.state != "held":
        return False
    expires = now_ms + plan.lease_ms
    reservation.expires_ms = max(reservation.expires_ms, expires)
    account.lives_until_ms = max(account.lives_until_ms, expires)
    return True


def collect(account: Account, now_ms: int) -> None:
    """End the reservations past their lease, if any can be."""
    if now_ms < account.due_ms:
        return
    for key, reservation in list(account.holds.items()):
        if reservation.expires_ms <= now_ms:
            _expire(account, key, reservation, now_ms)
    account.due_ms = min((kept.expires_ms for kept in account.holds.values()), default=math.inf)


def settle(
    account: Account,
    entry: SubjectLimits,
    key: str,
    charges: Charges,
    starts: list[int],
    admitted_at_ms: int,
    now_ms: int,
) -> str:
    """Replace a reservation by `charges`; see `Store.settle` for the digit it returns."""
    reservation = account.holds.get(key)
    if reservation is None:
        if account.counters and account.born_ms <= admitted_at_ms:
            return "2"
        _charge(account, entry, charges, starts, now_ms)
        account.due_ms = min(account.due_ms, now_ms + KEEP_MS)
        _remember(account, entry, key, now_ms)
        return "4"
    if reservation.state == "settled":
        return "2"
    held = reservation.state == "held"
    for limit in entry.limits.limits:
        amount = reservation.amounts[limit.name]
        actual = _limits.posted(limit, charges)
        change = (amount, 0, actual) if held else (0, amount, actual)
        _adjust(account, limit.name, reservation.admitted_ms, *change)
    if admitted_at_ms:
        del account.holds[key]
    else:
        # Nothing tells when it was held: next time its absence would look like a loss.
        _remember(account, entry, key, now_ms)
    return "1" if held else "3"


def add(account: Account, addition: Addition, now_ms: int) -> int:
    """Add to a limit; 1 done, 0 the id is known, -1 there are too many."""
    if any(known.id == addition.id for known in account.additions):
        return 0
    if len(account.additions) >= MOST:
        return -1
    if addition.kind == "set":
        others = [a for a in account.additions if (a.kind, a.limit) != ("set", addition.limit)]
        account.additions = [addition, *others]
    else:
        account.additions = [*account.additions, addition]
    ends = max(addition.until_ms, now_ms) if addition.until_ms else now_ms + _YEAR_MS
    account.lives_until_ms = max(account.lives_until_ms, ends + KEEP_MS)
    return 1


def drop(account: Account, name: str) -> int:
    """Take back the addition of this id; 0 if there is none."""
    kept = [each for each in account.additions if each.id != name]
    changed, account.additions = int(len(kept) < len(account.additions)), kept
    return changed


def reset(account: Account, names: list[str]) -> int:
    """Forget what was used of these limits, not what is held; 0 without any use."""
    for name in names:
        counter = account.counters.get(name)
        if counter:
            account.counters[name] = counter._replace(committed=0, previous=0)
    return int(bool(account.counters))


def forget_ended(account: Account, now_ms: int) -> None:
    """Forget additions that ended a day ago: until then a repeated id is known."""
    kept = [each for each in account.additions if in_force(each.until_ms, now_ms - KEEP_MS)]
    account.additions = kept


def _adjust(
    account: Account, name: str, admitted_ms: int, held: int, charged: int, actual: int
) -> None:
    """Let go of `held` in the window of the admission; turn `charged` there into `actual`."""
    counter = account.counters[name]
    if counter.start_ms <= admitted_ms:
        counter = counter._replace(
            committed=counter.committed + actual - charged, held=counter.held - held
        )
    elif counter.previous_start_ms <= admitted_ms:
        counter = counter._replace(previous=counter.previous + actual - charged - held)
    account.counters[name] = counter


def _expire(account: Account, key: str, reservation: Hold, now_ms: int) -> None:
    if reservation.state != "held":
        del account.holds[key]
        return
    for name, amount in reservation.amounts.items():
        charged = reservation.charge_on_expiry and account.counters[name].start_ms > 0
        actual = amount if charged else 0
        _adjust(account, name, reservation.admitted_ms, amount, 0, actual)
        reservation.amounts[name] = actual
    reservation.state = "expired"
    reservation.expires_ms = now_ms + KEEP_MS


def _charge(
    account: Account, entry: SubjectLimits, charges: Charges, starts: list[int], now_ms: int
) -> None:
    """Charge a call of which the account knows nothing."""
    for limit, start in zip(entry.limits.limits, starts, strict=True):
        actual = _limits.posted(limit, charges)
        counter = account.counters.get(limit.name)
        if start > now_ms:  # a client's clock may not turn a window over
            start = counter.start_ms if counter and counter.start_ms else now_ms
        counter = roll(counter, start)
        if counter.start_ms == start:
            counter = counter._replace(committed=counter.committed + actual)
        elif counter.previous_start_ms == start:
            counter = counter._replace(previous=counter.previous + actual)
        account.counters[limit.name] = counter
    account.seen_ms = max(account.seen_ms, now_ms)


def _remember(account: Account, entry: SubjectLimits, key: str, now_ms: int) -> None:
    """Keep an id against a repetition, and against an admission that arrives after this."""
    account.holds[key] = Hold("settled", now_ms + KEEP_MS)
    lifetime = max(KEEP_MS, _limits.lifetime_ms(entry.limits))
    account.lives_until_ms = max(account.lives_until_ms, now_ms + lifetime)


# What a running call holds, while it holds it.


def holds(account: Account, key: str) -> bool:
    """Return whether a reservation is held."""
    reservation = account.holds.get(key)
    return reservation is not None and reservation.state == "held"


def steps(
    account: Account, grant: Grant, place: int, output: int, now_ms: int
) -> dict[str, int] | None:
    """Return by how much each limit of the subject at `place` grows; None if one has no room."""
    entry, offer, reservation = (
        grant.plan.subjects[place],
        grant.offer,
        account.holds[grant.plan.id],
    )
    limits = entry.limits.limits
    added, _ = add_up(account.additions, limits, [0] * len(limits), now_ms)
    found: dict[str, int] = {}
    for limit, more in zip(limits, added, strict=True):
        _, each = _limits.charge(limit, offer)
        each = 0 if _limits.spared(offer, place) else each
        step = max(0, each * (output - reservation.output))
        counter = account.counters[limit.name]
        taken = _used_then(counter, limit, reservation.admitted_ms, now_ms)
        more += _limits.carried_over(limit, counter, counter.start_ms)
        usable = _limits.usable(_limits.raised(limit, more), offer)
        if step and taken is not None and taken + step > usable:
            return None
        found[limit.name] = step
    return found


def grow(account: Account, key: str, output: int, found: dict[str, int]) -> None:
    """Hold so much more output, in the windows of the admission."""
    reservation = account.holds[key]
    for name, step in found.items():
        _adjust(account, name, reservation.admitted_ms, -step, 0, 0)
        reservation.amounts[name] += step
    reservation.output = max(reservation.output, output)


def _used_then(counter: Counter, limit: Limit, admitted_ms: int, now_ms: int) -> int | None:
    """Return what counts in the window of an admission; None if that is long over."""
    if counter.start_ms > admitted_ms:
        return counter.previous if counter.previous_start_ms <= admitted_ms else None
    end = counter.start_ms + limit.window.length_ms
    return _windows.used(counter, limit.window, max(counter.start_ms, min(now_ms, end)))
