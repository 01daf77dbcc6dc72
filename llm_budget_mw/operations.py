"""What operators change while calls run; it holds in every process from the next call on.

    apply(guard, Change("credit", of_principal("alice"), "budget-per-month", "$20", id="order-17"))
    apply(guard, Change("stop", of_shared("model/gpt-4o"), reason="prices went up"))

`credit` adds to a limit once, and windows that end use it up; `raise` adds to it in every window
until its end; `set` replaces its amount; `take_back` ends one of these by its id; `reset`
forgets what was used; `stop` refuses every call of a subject until `resume`. Each change is told
to the guard's sinks. `apply` raises `ValueError` for what is not understood, and `StoreError`
while the store does not answer: then the change may or may not have been made, and may be
repeated under its id.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import Literal, NamedTuple, cast

from llm_budget_mw import events
from llm_budget_mw._money import parse_usd
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.policy import Policy
from llm_budget_mw.stores._additions import MOST, Addition, AdditionKind, read_addition
from llm_budget_mw.stores._commands import Amended, Switches
from llm_budget_mw.subjects import EVERYTHING, subject_named, switch_of
from llm_budget_mw.types import MAX_AMOUNT, Limit, Principal, Subject

_LONGEST_TEXT = 500
_LONGEST_ID = 100
_NUMBER = re.compile("[0-9]{1,16}")

Operation = Literal["credit", "raise", "set", "take_back", "reset", "stop", "resume"]
_ADDITIONS = ("credit", "raise", "set")


class Target(NamedTuple):
    """Whom a change is about: a principal, or something principals share."""

    principal: Principal
    """With its tenant; of something shared only the tenant counts."""
    kind: str
    name: str

    @property
    def subject(self) -> Subject:
        """The subject in the store."""
        return subject_named(self.kind, self.name, self.principal)

    @property
    def switch(self) -> str:
        """The name under which its calls are stopped."""
        return EVERYTHING if self.kind == "deployment" else switch_of(self.subject)


class Change(NamedTuple):
    """One change; what it needs depends on the operation, and is checked when it is applied."""

    operation: Operation
    target: Target
    limit: str | None = None
    """Name of a limit; of `reset` None means all."""
    amount: str | int | None = None
    """`$20` for a limit in money, a number for others."""
    until: datetime | None = None
    """When it ends, with a time zone; None: never."""
    id: str | None = None
    """A change that is repeated under its id is made once; None: a random one."""
    actor: str | None = None
    """Who made it, for the event."""
    reason: str = ""
    """Why, for the event; of a stop it is also kept in the store."""


class Applied(NamedTuple):
    """What became of a change."""

    changed: bool
    """False if it had been made before."""
    id: str | None = None
    """Of an addition: what it is taken back by."""


class Stopped(NamedTuple):
    """Something that is stopped."""

    switch: str
    """`*`, or partition and name of a subject."""
    until: datetime | None
    reason: str


def of_principal(name: str, tenant: str | None = None) -> Target:
    """Return a principal as a target."""
    return Target(Principal(name, tenant), "user", name)


def of_shared(written: str, tenant: str | None = None) -> Target:
    """Return what is written like `tenant/acme`, `feature/chat` or `deployment` as a target.

    `tenant` is that of a subject inside one, such as a team. Raises `ValueError`.
    """
    kind, _, name = written.partition("/")
    if kind == "deployment" and not name:
        return Target(Principal("-"), kind, kind)
    if not kind or not name or kind in ("user", "deployment"):
        raise ValueError(
            f"{written!r} is not understood: write deployment, or a kind and a name such as "
            "tenant/acme, feature/chat or model/gpt-4o"
        )
    return Target(Principal("-", name if kind == "tenant" else tenant), kind, name)


def apply(guard: Guard, change: Change) -> Applied:
    """Make a change."""
    change = _checked(guard.engine.policy, change)
    if change.operation in ("stop", "resume"):
        return _applied(guard, change, guard.store.switch(*_switch(change)).changed)
    return _applied(guard, change, guard.store.amend(*_amendment(guard, change)).changed)


async def apply_async(guard: AsyncGuard, change: Change) -> Applied:
    """Like `apply`, on an event loop."""
    change = _checked(guard.engine.policy, change)
    if change.operation in ("stop", "resume"):
        return _applied(guard, change, (await guard.store.switch(*_switch(change))).changed)
    amended = await guard.store.amend(*_amendment(guard, change))
    return _applied(guard, change, amended.changed)


def in_force(guard: Guard, target: Target) -> tuple[Addition, ...]:
    """Return what operators added to the limits of a target."""
    return _additions(guard.store.amend(target.subject, "show"))


async def in_force_async(guard: AsyncGuard, target: Target) -> tuple[Addition, ...]:
    """Like `in_force`, on an event loop."""
    return _additions(await guard.store.amend(target.subject, "show"))


def stopped(guard: Guard) -> tuple[Stopped, ...]:
    """Return everything that is stopped."""
    return _stopped(guard.store.switch("show"))


async def stopped_async(guard: AsyncGuard) -> tuple[Stopped, ...]:
    """Like `stopped`, on an event loop."""
    return _stopped(await guard.store.switch("show"))


def _checked(policy: Policy, change: Change) -> Change:
    """Return the change with its id; raise `ValueError` for what is wrong with it."""
    target = change.target
    if target.kind not in policy.kinds:
        known = ", ".join(sorted(policy.kinds))
        raise ValueError(f"{target.kind!r} is not a kind of subject here: known are {known}")
    if target.kind in policy.headers:
        raise ValueError(
            f"a {target.kind} counts for each principal apart: change the principal's limits"
        )
    if change.until is not None and change.until.tzinfo is None:
        raise ValueError(f"until {change.until.isoformat()} needs a time zone")
    if change.until is not None and change.until <= datetime.now(UTC):
        raise ValueError(f"until {change.until.isoformat()} is over already")
    for field, value in (("reason", change.reason), ("actor", change.actor or "")):
        if len(value) > _LONGEST_TEXT:
            raise ValueError(f"{field} has {len(value)} characters: at most {_LONGEST_TEXT}")
    if change.operation == "take_back" and change.id is None:
        raise ValueError("take_back needs the id of what is to be taken back")
    if change.operation in _ADDITIONS or change.limit is not None:
        _limit(policy, change)
    return change._replace(id=_id(change.id))


def _id(written: str | None) -> str:
    if written is None:
        return secrets.token_hex(8)
    if not written.isascii() or not written.isprintable() or " " in written or not written:
        raise ValueError(f"id {written!r} may have printable ASCII without blanks only")
    if len(written) > _LONGEST_ID:
        raise ValueError(f"id {written[:20]!r}... is longer than {_LONGEST_ID} characters")
    return written


def _limit(policy: Policy, change: Change) -> Limit:
    known = policy.limits_of(change.target.kind, change.target.name)
    limit = known.get(change.limit or "")
    if limit is None:
        names = ", ".join(known) or "none"
        raise ValueError(
            f"{change.target.kind} {change.target.name!r} has no limit {change.limit!r}: "
            f"its limits are {names}"
        )
    return limit


def _amount(limit: Limit, written: str | int | None) -> int:
    if limit.resource == "cost":
        return parse_usd(str(written))
    text = str(written)
    if not _NUMBER.fullmatch(text) or int(text) > MAX_AMOUNT:
        raise ValueError(
            f"{text[:40]!r} is not an amount of {limit.resource}: write a number of at most 2**53"
        )
    return int(text)


def _amendment(
    guard: Guard | AsyncGuard, change: Change
) -> tuple[Subject, Literal["add", "drop", "reset"], str]:
    subject, policy = change.target.subject, guard.engine.policy
    if change.operation == "take_back":
        return subject, "drop", cast("str", change.id)
    if change.operation == "reset":
        known = policy.limits_of(change.target.kind, change.target.name)
        return subject, "reset", change.limit or " ".join(known)
    limit = _limit(policy, change)
    addition = Addition(
        cast("AdditionKind", change.operation),
        limit.name,
        _amount(limit, change.amount),
        _milliseconds(change.until),
        cast("str", change.id),
    )
    return subject, "add", addition.line


def _switch(change: Change) -> tuple[Literal["stop", "resume"], str, str]:
    verb: Literal["stop", "resume"] = "stop" if change.operation == "stop" else "resume"
    value = f"{_milliseconds(change.until)} {change.reason}" if verb == "stop" else ""
    return verb, change.target.switch, value


def _applied(guard: Guard | AsyncGuard, change: Change, changed: int) -> Applied:
    if changed < 0:
        raise ValueError(
            f"there is no room: at most {MOST} additions for a subject, 1000 stops for a deployment"
        )
    if changed:
        who = guard.called(change.target.subject)
        guard.emit(
            events.changed(
                change.operation,
                who,
                {
                    "limit": change.limit,
                    "amount": None if change.amount is None else str(change.amount),
                    "until": None if change.until is None else change.until.isoformat(),
                    "id": change.id,
                    "actor": change.actor,
                    "reason": change.reason,
                },
            )
        )
    return Applied(bool(changed), change.id if change.operation in _ADDITIONS else None)


def _milliseconds(until: datetime | None) -> int:
    return 0 if until is None else int(until.timestamp() * 1000)


def _moment(until_ms: int) -> datetime | None:
    return datetime.fromtimestamp(until_ms / 1000, UTC) if until_ms else None


def _additions(amended: Amended) -> tuple[Addition, ...]:
    return tuple(map(read_addition, amended.lines))


def _stopped(switches: Switches) -> tuple[Stopped, ...]:
    return tuple(_stop(*each) for each in sorted(switches.stopped.items()))


def _stop(name: str, value: str) -> Stopped:
    until, _, reason = value.partition(" ")
    return Stopped(name, _moment(int(until)), reason)
