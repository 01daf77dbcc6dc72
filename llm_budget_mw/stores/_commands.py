"""Plans and settlements as script calls, and their replies as values; no I/O.

The byte layouts are those in the headers of `lua/*.lua`: change both together. Numbers
travel as packed doubles, because building and reading text costs more than the decision.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from struct import Struct
from typing import Any, NamedTuple, cast

from llm_budget_mw import _limits, _windows, outputs
from llm_budget_mw.stores import _told
from llm_budget_mw.types import (
    NOTHING,
    Admission,
    Charges,
    Grant,
    LimitSet,
    Plan,
    Resource,
    Subject,
)

_SUBJECT = Struct("<dd")
_LIMIT = Struct("<6d")
_ADMIT = Struct("<4d")
_OFFER = Struct("<8d")
_ADMITTED = Struct("<5d")
_SETTLE = Struct("<dd")
_POSTING = Struct("<ddd")
_GROW = Struct("<6d")
_GIVEN = Struct("<d")
_RESOURCES: dict[Resource, int] = {"requests": 1, "concurrency": 2, "tokens": 3, "cost": 4}
_KINDS = {"none": 0, "fixed": 1, "sliding": 2, "calendar": 3}
_STALE = -1
_AGAIN = 2
"""Added to `charge_on_expiry` of an admission that is sent once more."""
_NEVER = 2**53


class Script(NamedTuple):
    """One operation as Lua text, and the name the server knows it by."""

    source: str
    sha: str


class Command(NamedTuple):
    """One script call."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[str | bytes, ...]

    @property
    def again(self) -> Command:
        """This call as it is sent once more, after its connection was lost.

        The first copy of an admission may arrive yet, when the second is long settled: that
        settlement has to leave a mark.
        """
        return self._replace(args=again(self.script.sha, 0, self.args))


class Amended(NamedTuple):
    """What operators added to an account, after a change."""

    changed: int
    """1 changed, 0 nothing to change, -1 there is no room for more."""
    lines: tuple[str, ...]
    """`kind limit amount until id`, each in force."""


class Switches(NamedTuple):
    """What is stopped, after a change."""

    changed: int
    """As in `Amended`."""
    stopped: dict[str, str]
    """Names to `until reason`."""


class _Packed(NamedTuple):
    """A limit set as the scripts read it, and the time for which that holds."""

    spec: bytes
    valid_from_ms: int
    valid_until_ms: int


def _script(name: str) -> Script:
    """Read the Lua text of one operation, with what all of them share in front."""
    folder = resources.files("llm_budget_mw.stores") / "lua"
    source = "".join((folder / f"{part}.lua").read_text("utf-8") for part in ("ledger", name))
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


_ADMISSION, _SETTLEMENT, _RENEWAL = map(_script, ("admit", "settle", "renew"))
_AMENDMENT, _SWITCH = map(_script, ("amend", "switch"))
_GROWTH, _LESSON = map(_script, ("grow", "learn"))
_CLAIM = _script("claim")


def admit(plan: Plan, prefix: str, now_ms: int, given_ms: int = 0) -> Command:
    """Build the admission of a plan at about `now_ms`, which only chooses calendar windows.

    `given_ms` replaces the server's clock under the prefix of the tests.
    """
    spec = b"".join([_spec(entry.limits, now_ms) for entry in plan.subjects])
    offers = b"".join([_OFFER.pack(*offer[1:8], offer.spares) for offer in plan.offers])
    head = _ADMIT.pack(given_ms, plan.lease_ms, plan.charge_on_expiry, len(plan.subjects))
    keys = _keys(plan, prefix)
    if plan.switches:
        keys = (*keys, switchboard(prefix))
    return Command(
        _ADMISSION, keys, (f"#{plan.id}", spec, head + offers, *_names(plan), *plan.switches)
    )


def read_admit(reply: bytes) -> Admission | int:
    """Read the reply to `admit`.

    An integer is the server's clock, which lay outside a calendar window of the command:
    build it again for that time.
    """
    now, offer, output, stopped, count = _ADMITTED.unpack_from(reply)
    if offer == _STALE:
        return int(now)
    numbers = _reply(len(reply) // 8 - 5).unpack_from(reply, _ADMITTED.size)
    split = 5 * int(count)
    return Admission(
        int(now), int(offer), int(output), numbers[:split], int(stopped), numbers[split:]
    )


def settle(grant: Grant, charges: Charges, prefix: str, now_ms: int, given_ms: int = 0) -> Command:
    """Build the settlement of a grant; `now_ms` stands in for an admission without a store."""
    plan = grant.plan
    admitted_at = grant.admission.now_ms if grant.admission else 0
    starts = iter(window_starts(grant, now_ms))
    parts = [_SETTLE.pack(admitted_at, given_ms)]
    for number, entry in enumerate(plan.subjects):
        parts.append(_SUBJECT.pack(len(entry.limits.limits), _limits.lifetime_ms(entry.limits)))
        due = NOTHING if _limits.spared(grant.offer, number) else charges
        parts += [
            _POSTING.pack(next(starts), _limits.posted(limit, due), amount)
            for limit, amount in _told.watched(grant, number)
        ]
    unusual, thresholds = map(_packed, (_told.unusual(plan), _told.thresholds(plan)))
    return Command(
        _SETTLEMENT,
        _keys(plan, prefix),
        (f"#{plan.id}", b"".join(parts), unusual, thresholds, *_names(plan)),
    )


def renew(grant: Grant, prefix: str, given_ms: int = 0) -> Command:
    """Build the renewal of a grant's lease."""
    plan = grant.plan
    return Command(
        _RENEWAL, _keys(plan, prefix), (f"#{plan.id}", _SETTLE.pack(given_ms, plan.lease_ms))
    )


def grow(grant: Grant, output: int, prefix: str, now_ms: int, given_ms: int = 0) -> Command:
    """Build the growth of what a grant holds; `now_ms` only chooses calendar windows."""
    plan, offer = grant.plan, grant.offer
    spec = b"".join([_spec(entry.limits, now_ms) for entry in plan.subjects])
    each = (offer.per_output_tokens, offer.per_output_nano)
    dynamic = _GROW.pack(given_ms, output, offer.ceiling, *each, offer.spares)
    return Command(_GROWTH, _keys(plan, prefix), (f"#{plan.id}", spec, dynamic, *_names(plan)))


def read_grow(reply: object, grant: Grant) -> int:
    """Read the reply to `grow`: the output held now, as before where it was refused."""
    return max(cast("int", reply), grant.output)


def learn(noted: Mapping[str, Mapping[int, int]], prefix: str) -> Command:
    """Build an addition to histograms, by their name."""
    keys = tuple([f"{prefix}:1:{{outputs}}:{name}" for name in noted])
    counts = [
        " ".join([f"{bucket} {count}" for bucket, count in each.items()]) for each in noted.values()
    ]
    return Command(_LESSON, keys, (str(outputs.MOST_ANSWERS), str(outputs.KEEP_MS), *counts))


def read_learn(reply: object, noted: Mapping[str, object]) -> dict[str, outputs.Counts]:
    """Read the reply to `learn`."""
    numbers = [list(map(int, each.split())) for each in cast("list[bytes]", reply)]
    counts = [dict(zip(each[::2], each[1::2], strict=True)) for each in numbers]
    return dict(zip(noted, counts, strict=True))


def window_starts(grant: Grant, now_ms: int) -> list[int]:
    """Return the start of each limit's window at the admission, or at `now_ms` without one."""
    if grant.admission:
        return [int(start) for start in grant.admission.counters[::5]]
    return [
        _limits.window_start(limit, now_ms)
        for entry in grant.plan.subjects
        for limit in entry.limits.limits
    ]


def amend(key: str, verb: str, what: str, given_ms: int = 0) -> Command:
    """Build a change of what operators added to an account; see `lua/amend.lua`."""
    return Command(_AMENDMENT, (key,), (_GIVEN.pack(given_ms), verb, what))


def read_amend(reply: object) -> Amended:
    """Read the reply to `amend`."""
    changed, lines = cast("tuple[int, bytes]", reply)
    return Amended(changed, tuple(lines.decode().splitlines()))


def switch(prefix: str, verb: str, name: str = "", value: str = "", given_ms: int = 0) -> Command:
    """Build a change of the switchboard; see `lua/switch.lua`."""
    args = (_GIVEN.pack(given_ms), verb, name, value)
    return Command(_SWITCH, (switchboard(prefix),), args)


def read_switch(reply: object) -> Switches:
    """Read the reply to `switch`."""
    changed, *texts = cast("list[Any]", reply)
    words = [text.decode() for text in texts]
    return Switches(changed, dict(zip(words[::2], words[1::2], strict=True)))


def claim(prefix: str, holder: str, slots: int, lease_ms: int) -> Command:
    """Build a claim to one of so many slots; see `Store.claim`."""
    keys = [f"{prefix}:1:{{outage}}:slot:{number}" for number in range(1, slots + 1)]
    return Command(_CLAIM, tuple(keys), (holder, str(lease_ms)))


def account_key(prefix: str, subject: Subject) -> str:
    """Return the key of a subject's account."""
    return f"{prefix}:1:{{{subject.partition}}}:{subject.name}"


def switchboard(prefix: str) -> str:
    """Return the key that says what operators have stopped."""
    return f"{prefix}:1:{{switches}}:switches"


def again(script: str, keys: int, words: tuple[str | bytes, ...]) -> tuple[str | bytes, ...]:
    """Return the keys and arguments of a script call as `Command.again` has them."""
    if script not in (_ADMISSION.sha, _ADMISSION.source):
        return words
    dynamic = cast("bytes", words[keys + 2])
    given, lease, on_expiry, subjects = _ADMIT.unpack_from(dynamic)
    head = _ADMIT.pack(given, lease, on_expiry + _AGAIN, subjects)
    return (*words[: keys + 2], head + dynamic[_ADMIT.size :], *words[keys + 3 :])


def wire(*parts: str | bytes) -> bytes:
    """Return a command as it goes over the wire: RESP, an array of bulk strings."""
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    bulk = [b"$%d\r\n%b\r\n" % (len(part), part) for part in raw]
    return b"*%d\r\n%b" % (len(raw), b"".join(bulk))


@functools.cache
def _reply(doubles: int) -> Struct:
    return Struct(f"<{doubles}d")


def _keys(plan: Plan, prefix: str) -> tuple[str, ...]:
    return tuple([account_key(prefix, subject) for subject, *_ in plan.subjects])


def _packed(numbers: Sequence[float]) -> bytes:
    return _reply(len(numbers)).pack(*numbers)


def _names(plan: Plan) -> tuple[str, ...]:
    return tuple([" ".join(entry.limits.names) for entry in plan.subjects])


def _spec(limits: LimitSet, now_ms: int) -> bytes:
    packed = cast("_Packed | None", limits.memo)
    if packed is None or not packed.valid_from_ms <= now_ms < packed.valid_until_ms:
        limits.memo = packed = _pack(limits, now_ms)
    return packed.spec


def _pack(limits: LimitSet, now_ms: int) -> _Packed:
    parts = [_SUBJECT.pack(len(limits.limits), _limits.lifetime_ms(limits))]
    begin, end = 0, _NEVER
    for limit in limits.limits:
        window = limit.window
        bounds = (window.length_ms, 0)
        if window.kind == "calendar":
            bounds = _windows.span(window, now_ms)
            begin, end = max(begin, bounds[0]), min(end, bounds[1])
        resource = -_RESOURCES[limit.resource] if limit.shadow else _RESOURCES[limit.resource]
        parts.append(_LIMIT.pack(resource, _KINDS[window.kind], limit.amount, *bounds, limit.carry))
    return _Packed(b"".join(parts), begin, end)
