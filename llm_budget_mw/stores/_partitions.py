"""One admission over several partitions of a cluster: group after group, all or nothing.

A script can only reach the keys of one partition. The groups are asked in a fixed order; each
is offered what the one before granted, or less, so that what the earlier ones hold suffices.
A refusal releases what was held. Generators, so that threads and event loops share them: they
yield a plan to admit or a grant to release, and are sent the answer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from llm_budget_mw.types import STOPPED, Admission, Grant, Offer, Plan

Step = Plan | Grant
Steps = Generator[Step, Admission | None, Admission]


class Group(NamedTuple):
    """The part of a plan that concerns one partition."""

    plan: Plan
    places: tuple[int, ...]
    """Numbers of its subjects in the whole plan."""


def groups(plan: Plan) -> list[Group]:
    """Return the parts of a plan in the order they are asked; that of the switches is first."""
    by_partition: dict[str, list[int]] = {}
    for place, entry in enumerate(plan.subjects):
        by_partition.setdefault(entry.subject.partition, []).append(place)
    found = [_part(plan, tuple(places)) for _, places in sorted(by_partition.items())]
    if plan.switches:
        found.insert(0, Group(plan._replace(subjects=()), ()))
    return found


def admission(plan: Plan) -> Steps:
    """Admit a plan; returns the admission over all of its groups."""
    parts, first = groups(plan), 0
    while True:
        answers, following = yield from _round(parts, plan.offers, first)
        if following is None:
            break
        first = following
    if answers[-1].offer > 0:
        return _merged(plan, parts, answers)
    if answers[-1].offer == STOPPED:
        return answers[-1]
    unfit = tuple(_unfit(offer) for offer in plan.offers)
    standing: list[Admission] = []
    for part in parts:
        answer = yield part.plan._replace(offers=unfit)
        standing.append(answer or _nothing())
    return _merged(plan, parts, standing)


def split(grant: Grant) -> list[tuple[Group, Grant]]:
    """Return the parts of a grant, one for each partition that holds some of it."""
    parts = [part for part in groups(grant.plan) if part.places]
    if len(parts) == 1:
        return [(parts[0], grant)]
    return [(part, _share(grant, part)) for part in parts]


def in_order(plan: Plan, digits: Sequence[tuple[Group, str]]) -> str:
    """Put the answers of the groups to a settlement into the order of the plan's subjects."""
    found = [""] * len(plan.subjects)
    told = ""
    for part, answer in digits:
        outcome, *rest = answer.split(" ")
        for place, digit in zip(part.places, outcome, strict=True):
            found[place] = digit
        for text in rest:
            number, _, what = text.partition(".")
            told += f" {part.places[int(number) - 1] + 1}.{what}"
    return "".join(found) + told


def _part(plan: Plan, places: tuple[int, ...]) -> Group:
    if len(places) == len(plan.subjects):
        return Group(plan._replace(switches=()), places)
    subjects = tuple(plan.subjects[place] for place in places)
    offers = tuple(_spares(offer, places) for offer in plan.offers)
    return Group(plan._replace(subjects=subjects, offers=offers, switches=()), places)


def _spares(offer: Offer, places: tuple[int, ...]) -> Offer:
    bits = sum((offer.spares >> place & 1) << n for n, place in enumerate(places))
    return offer._replace(spares=bits)


def _round(
    parts: list[Group], offers: Sequence[Offer], first: int
) -> Generator[Step, Admission | None, tuple[list[Admission], int | None]]:
    """Ask every group once, for the offers from number `first` (from 0) on.

    Returns the answers, and where to begin again if a group wants a later offer than those
    before it hold.
    """
    answers: list[Admission] = []
    for part in parts:
        asked = part.plan._replace(offers=tuple(_limited(part.plan.offers, first, answers)))
        answer = (yield asked) or _nothing()
        later = bool(answers) and answer.offer > answers[-1].offer
        if answer.offer > 0 and not later:
            answers.append(answer)
            continue
        held = [*zip(parts, answers, strict=False)] + ([(part, answer)] if later else [])
        for group, hold in held:
            if group.places:
                yield Grant(group.plan, group.plan.offers[hold.offer - 1], hold.output, hold)
        return [*answers, answer], answer.offer - 1 if later else None
    return answers, None


def _limited(offers: Sequence[Offer], first: int, answers: list[Admission]) -> Iterator[Offer]:
    granted = answers[-1] if answers else None
    for number, offer in enumerate(offers):
        if number < (granted.offer - 1 if granted else first):
            yield _unfit(offer)
        elif granted and number == granted.offer - 1:
            yield offer._replace(max_output=granted.output)
        else:
            yield offer


def _unfit(offer: Offer) -> Offer:
    return offer._replace(max_output=-1)


def _merged(plan: Plan, parts: list[Group], answers: list[Admission]) -> Admission:
    counters: list[tuple[float, ...]] = [()] * len(plan.subjects)
    extra: list[tuple[float, ...]] = [()] * len(plan.subjects)
    for part, answer in zip(parts, answers, strict=True):
        at = 0
        for place in part.places:
            count = len(plan.subjects[place].limits.limits)
            counters[place] = answer.counters[5 * at : 5 * (at + count)]
            extra[place] = answer.extra[at : at + count] or (0.0,) * count
            at += count
    last = answers[-1]
    more = sum(extra, ())
    return Admission(
        max(answer.now_ms for answer in answers),
        max(last.offer, 0),
        last.output,
        sum(counters, ()),
        max(answer.stopped for answer in answers),
        more if any(more) else (),
    )


def _share(grant: Grant, part: Group) -> Grant:
    admission = grant.admission
    if admission is None:
        return grant._replace(plan=part.plan, offer=_spares(grant.offer, part.places))
    starts: list[int] = []
    at = 0
    for entry in grant.plan.subjects:
        starts.append(at)
        at += 5 * len(entry.limits.limits)
    counters = tuple(
        number
        for place in part.places
        for number in admission.counters[
            starts[place] : starts[place] + 5 * len(grant.plan.subjects[place].limits.limits)
        ]
    )
    return grant._replace(
        plan=part.plan,
        offer=_spares(grant.offer, part.places),
        admission=admission._replace(counters=counters, extra=()),
    )


def _nothing() -> Admission:
    return Admission(0, 0, 0, ())
