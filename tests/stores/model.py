"""What a store should do, kept as a list of who used what in which window.

It knows no sums: every total is added up from the calls themselves, so that arithmetic which
moves amounts between sums (as the stores do) is checked against something it could not copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction

from llm_budget_mw.types import Admission, Charges, Counter, Grant, Limit, Offer, Plan, Subject

KEEP_MS = 86_400_000


@dataclass
class Share:
    """What one call has of one window."""

    held: int = 0
    committed: int = 0


@dataclass
class Bucket:
    """One window of one limit: the calls that count in it."""

    start: int = 0
    calls: list[Share] = field(default_factory=list[Share])

    def held(self) -> int:
        return sum(share.held for share in self.calls)

    def committed(self) -> int:
        return sum(share.committed for share in self.calls)


@dataclass
class Line:
    """A limit's present window and the one used before it; older ones count nowhere."""

    current: Bucket = field(default_factory=Bucket)
    previous: Bucket = field(default_factory=Bucket)

    def turn(self, start: int) -> None:
        if self.current.start < start:
            self.previous, self.current = self.current, Bucket(start)

    def as_of(self, start: int) -> Counter:
        now, before = self.current, self.previous
        if now.start < start:
            now, before = Bucket(start), now
        return Counter(
            now.start, now.committed(), now.held(), before.start, before.committed() + before.held()
        )


@dataclass
class Hold:
    """A reservation, or what reminds of it."""

    state: str
    expires: int
    grant: tuple[int, int] = (0, 0)
    charged_on_expiry: bool = False
    shares: list[tuple[Limit, Share]] = field(default_factory=list[tuple[Limit, Share]])
    """Those of windows nobody looks at any more are still here, and count nowhere."""


@dataclass
class Book:
    """One subject."""

    born: int
    seen: int = 0
    lines: dict[str, Line] = field(default_factory=dict[str, Line])
    holds: dict[str, Hold] = field(default_factory=dict[str, Hold])

    def line(self, limit: Limit) -> Line:
        return self.lines.setdefault(limit.name, Line())

    def expire(self, now: int) -> None:
        for call, hold in list(self.holds.items()):
            if hold.expires > now:
                continue
            if hold.state != "held":
                del self.holds[call]
                continue
            for limit, share in hold.shares:
                keeps = hold.charged_on_expiry and limit.resource != "concurrency"
                share.held, share.committed = 0, share.held if keeps else 0
            hold.state, hold.expires = "expired", now + KEEP_MS


class Model:
    """A store that is too simple to be wrong."""

    def __init__(self) -> None:
        self._books: dict[Subject, Book] = {}

    def admit(self, plan: Plan, now: int) -> Admission:
        known: Hold | None = None
        for subject, *_ in plan.subjects:
            if book := self._books.get(subject):
                book.expire(now)
                now = max(now, book.seen)
                known = known or book.holds.get(plan.id)
        if known:
            offer, output = known.grant if known.state == "held" else (0, 0)
        else:
            offer, output = self._choose(plan, now)
            if offer:
                self._hold(plan, now, offer, output)
        flat = itertools.chain.from_iterable(self.counters(plan, now))
        return Admission(now, offer, output, tuple(map(float, flat)))

    def settle(self, grant: Grant, charges: Charges, now: int) -> str:
        return "".join(
            self._settle(grant, charges, now, subject, each.limits, starts)
            for (subject, each, *_), starts in zip(grant.plan.subjects, _starts(grant), strict=True)
        )

    def renew(self, grant: Grant, now: int) -> bool:
        holds = [
            self._books[subject].holds.get(grant.plan.id) if subject in self._books else None
            for subject, *_ in grant.plan.subjects
        ]
        held = [hold for hold in holds if hold and hold.state == "held"]
        for hold in held:
            hold.expires = max(hold.expires, now + grant.plan.lease_ms)
        return len(held) == len(holds)

    def counters(self, plan: Plan, now: int) -> Iterator[Counter]:
        for subject, each, *_ in plan.subjects:
            book = self._books.get(subject)
            for limit in each.limits:
                line = book.lines.get(limit.name, Line()) if book else Line()
                yield line.as_of(window_start(limit, now))

    def _choose(self, plan: Plan, now: int) -> tuple[int, int]:
        limits = [limit for _, each, *_ in plan.subjects for limit in each.limits]
        counters = list(self.counters(plan, now))
        for number, offer in enumerate(plan.offers, 1):
            for output in range(offer.max_output, offer.min_output - 1, -1):
                if all(
                    _fits(limit, counter, offer, output, now)
                    for limit, counter in zip(limits, counters, strict=True)
                ):
                    return number, output
        return 0, 0

    def _hold(self, plan: Plan, now: int, number: int, output: int) -> None:
        for subject, each, *_ in plan.subjects:
            book = self._books.setdefault(subject, Book(now))
            book.seen = now
            hold = Hold("held", now + plan.lease_ms, (number, output), plan.charge_on_expiry)
            book.holds[plan.id] = hold
            for limit in each.limits:
                line = book.line(limit)
                line.turn(window_start(limit, now))
                share = Share(held=_charge(limit, plan.offers[number - 1], output))
                line.current.calls.append(share)
                hold.shares.append((limit, share))

    def _settle(
        self,
        grant: Grant,
        charges: Charges,
        now: int,
        subject: Subject,
        limits: tuple[Limit, ...],
        starts: list[int],
    ) -> str:
        call, admitted = grant.plan.id, grant.admission.now_ms if grant.admission else 0
        book = self._books.get(subject)
        hold = book.holds.get(call) if book else None
        if book and hold and hold.state == "settled":
            return "2"
        if book and hold:
            for limit, share in hold.shares:
                share.held, share.committed = 0, _posted(limit, charges)
            digit = "1" if hold.state == "held" else "3"
            del book.holds[call]
        elif book and book.born <= admitted:
            return "2"
        else:
            book = self._books.setdefault(subject, Book(now))
            book.seen = max(book.seen, now)
            for limit, start in zip(
                limits, starts or [window_start(x, now) for x in limits], strict=True
            ):
                line = book.line(limit)
                line.turn(start)
                for bucket in (line.current, line.previous):
                    if bucket.start == start:
                        bucket.calls.append(Share(committed=_posted(limit, charges)))
                        break
            digit = "4"
        if digit == "4" or not admitted:
            book.holds[call] = Hold("settled", now + KEEP_MS)
        return digit


def window_start(limit: Limit, now: int) -> int:
    """Return where the window around `now` begins, for the windows the machine uses."""
    if limit.window.length_ms:
        return now // limit.window.length_ms * limit.window.length_ms
    if limit.window.unit is None:
        return 0
    moment = datetime.fromtimestamp(now / 1000, UTC)
    assert limit.window.unit == "month"
    first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int(first.timestamp()) * 1000


def _starts(grant: Grant) -> list[list[int]]:
    if grant.admission is None:
        return [[] for _ in grant.plan.subjects]
    starts = iter(map(int, grant.admission.counters[::5]))
    return [list(itertools.islice(starts, len(each.limits))) for _, each, *_ in grant.plan.subjects]


def _fits(limit: Limit, counter: Counter, offer: Offer, output: int, now: int) -> bool:
    charge = _charge(limit, offer, output)
    if not _charge(limit, offer, 0) and not _charge(limit, offer, 1):
        return True
    part = Fraction(offer.ceiling) if limit.resource in ("tokens", "cost") else Fraction(1)
    return _used(limit, counter, now) + charge <= limit.amount * part // 1


def _used(limit: Limit, counter: Counter, now: int) -> int:
    used, length = counter.committed + counter.held, limit.window.length_ms
    if limit.window.kind == "sliding" and counter.previous_start_ms == counter.start_ms - length:
        left = length - (now - counter.start_ms)
        used += -(-counter.previous * left // length)
    return used


def _charge(limit: Limit, offer: Offer, output: int) -> int:
    return {
        "requests": 1,
        "concurrency": 1,
        "tokens": offer.fixed_tokens + offer.per_output_tokens * output,
        "cost": offer.fixed_nano + offer.per_output_nano * output,
    }[limit.resource]


def _posted(limit: Limit, charges: Charges) -> int:
    return {
        "requests": charges.requests,
        "concurrency": 0,
        "tokens": charges.tokens,
        "cost": charges.cost_nano,
    }[limit.resource]
