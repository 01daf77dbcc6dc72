"""The values that travel through one request; nothing here decides or does I/O.

Units are in the names: `_nano` is integer nano-dollars, `_ms` milliseconds, `_tokens` and
`output` are language-model tokens. Every amount is at most 2**53, because the store
computes with doubles.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

MAX_AMOUNT = 2**53
"""The largest amount of any limit: 9.0 million dollars in nano-dollars."""

Resource = Literal["requests", "tokens", "cost", "concurrency"]
WindowKind = Literal["fixed", "sliding", "calendar", "none"]
CalendarUnit = Literal["hour", "day", "week", "month", "year"]
OnOutage = Literal["closed", "open", "local"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is charged: the result of authentication, never of anything else a client sends."""

    id: str
    """Unique over all issuers; it names the keys in the store after escaping."""
    tenant: str | None = None
    tier: str | None = None
    """Name of the plan; None or an unknown name means `default`."""
    urgent: bool = False
    """True if the verified claims allow the tier's `urgent` multiplier."""
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open interval of time in which a limit counts.

    `fixed` and `sliding` have a length and are aligned to the epoch; `calendar` has a
    unit in a time zone, shifted by an anchor; `none` (concurrency) never ends.
    """

    kind: WindowKind
    length_ms: int = 0
    """Length of a fixed or sliding window; 0 for the other kinds."""
    unit: CalendarUnit | None = None
    zone: str = "UTC"
    anchor_day: int = 1
    """First day of a calendar month (1-31, clamped to the month's last day)."""
    anchor_hour: int = 0
    """Hour of the day at which a calendar day, week, month or year begins."""


@dataclass(frozen=True, slots=True)
class Limit:
    """An amount of one resource in one window."""

    name: str
    """Unique among the limits of one subject, such as `tokens-per-minute`."""
    resource: Resource
    amount: int
    """Requests, tokens, concurrent calls, or nano-dollars; at most `MAX_AMOUNT`."""
    window: Window
    on_outage: OnOutage = "open"
    local_share: float = 0.0
    """With `on_outage="local"`: the part of `amount` one process may admit by itself."""
    carry: int = 0
    """Most of what the window before left unused that is added to this one."""
    shadow: bool = False
    """Whether it only counts, and tells what it would have refused."""


class Subject(NamedTuple):
    """What limits count for, and the partition its counters live in."""

    partition: str
    name: str


class Offer(NamedTuple):
    """A model the caller would accept, and what a call to it may consume.

    The charge against a limit is `fixed + per_output * output` of the limit's resource;
    requests and concurrency always cost 1.
    """

    model: str
    max_output: int
    """Most output tokens to grant, over one sampling."""
    min_output: int
    """Fewer output tokens than this are no use to the caller."""
    ceiling: float
    """Part of each token and cost limit this offer may use, 0 < ceiling <= 1."""
    fixed_tokens: int
    """Estimated input tokens, an upper bound."""
    per_output_tokens: int
    """Samplings (`n`, prompts): tokens charged for each granted output token."""
    fixed_nano: int
    per_output_nano: int
    spares: int = 0
    """Subjects of the plan it is not charged to, a bit each: those of other models."""
    bound: int = 0
    """Output bound of a call that may hold more later, where that is above `max_output`."""


class Watch(NamedTuple):
    """What is told of limits, beside what is decided by them."""

    thresholds: tuple[float, ...] = ()
    """Parts of an amount, rising; each is told once in a window."""
    factor: float = 0.0
    """How many times what is usual in a day is unusual within minutes; 0: nothing is."""
    least_nano: int = 0
    """Less is never unusual."""


class LimitSet:
    """The limits that apply together to one subject, in a fixed order.

    Built once for each tier, compared by identity. `memo` belongs to the store, which keeps
    there what it would otherwise derive from the limits on every request.
    """

    __slots__ = ("limits", "memo", "names", "shadowed", "teller", "watch")

    def __init__(self, limits: tuple[Limit, ...], watch: Watch = Watch()) -> None:  # noqa: B008
        self.limits = limits
        self.watch = watch
        in_money = [place for place, limit in enumerate(limits) if limit.resource == "cost"]
        self.teller = in_money[0] if in_money and watch.factor else None
        """Number of the limit whose spending may be unusual."""
        self.names = tuple(limit.name for limit in limits)
        self.shadowed = any(limit.shadow for limit in limits)
        self.memo: object = None
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"two limits with one name: {', '.join(self.names)}")


class SubjectLimits(NamedTuple):
    """The limits of one subject."""

    subject: Subject
    limits: LimitSet
    model: str | None = None
    """The one model whose calls count for it; None: all of them."""


class Plan(NamedTuple):
    """Everything the store needs to decide one admission."""

    id: str
    """Reservation id: 24 hexadecimal digits, unique for ever."""
    subjects: tuple[SubjectLimits, ...]
    offers: tuple[Offer, ...]
    """In order of preference; at least one."""
    lease_ms: int
    """How long the reservation lives if nobody settles or renews it."""
    charge_on_expiry: bool = True
    """Whether an expired reservation is charged (True) or given back."""
    switches: tuple[str, ...] = ()
    """Names that may be stopped: that of each offer's model, then those of the whole call."""


class Counter(NamedTuple):
    """The state of one limit in the store, after rolling to the current window."""

    start_ms: int
    """Start of the window the two numbers belong to; 0 for concurrency."""
    committed: int
    """Settled."""
    held: int
    """Reserved and not settled."""
    previous_start_ms: int
    previous: int
    """Committed and held of the window before, for sliding windows and late settlement."""


STOPPED = -2
"""In place of an offer: an operator has stopped such calls."""


class Admission(NamedTuple):
    """What the store answers to a plan: the bare decision and the state behind it."""

    now_ms: int
    """The store's clock."""
    offer: int
    """Number of the granted offer, from 1; 0 if none fits, `STOPPED` if it may not be made."""
    output: int
    """Output granted; of a stopped call the number, from 1, of the switch that stops it."""
    counters: tuple[float, ...]
    """The five numbers of `Counter` for each limit of each subject, after the decision."""
    stopped: int = 0
    """Offers whose model is stopped, a bit each."""
    extra: tuple[float, ...] = ()
    """What each limit has now beside its amount; empty if nothing anywhere."""


class Charges(NamedTuple):
    """What a settlement writes in place of a reservation; all 0 releases it."""

    requests: int
    tokens: int
    cost_nano: int


NOTHING = Charges(0, 0, 0)


class LimitStatus(NamedTuple):
    """One limit as a client may see it."""

    subject: Subject
    limit: Limit
    remaining: int
    """Never below 0: a debt stays inside."""
    used: int
    """Committed, held and, in a sliding window, what still weighs from the window before."""
    reset_ms: int | None
    """Milliseconds until the window ends; None for concurrency."""


class Grant(NamedTuple):
    """An admission."""

    plan: Plan
    offer: Offer
    output: int
    """Output tokens granted, for one sampling."""
    admission: Admission | None
    """None if the store could not be asked and the outage rule admitted."""

    @property
    def admitted(self) -> Literal[True]:
        """Distinguishes a grant from a `Refusal`."""
        return True

    @property
    def max_tokens(self) -> int:
        """Output bound to write into the request."""
        # A hold that is short from the beginning is all there is: nothing may go beyond it.
        short = self.output < self.offer.max_output
        return self.output if short else max(self.offer.bound, self.output)

    @property
    def charges(self) -> Charges:
        """What the grant holds."""
        offer, output = self.offer, self.output
        return Charges(
            requests=1,
            tokens=offer.fixed_tokens + offer.per_output_tokens * output,
            cost_nano=offer.fixed_nano + offer.per_output_nano * output,
        )


class RefusalReason(enum.StrEnum):
    """Why a call was refused: four different answers to a client."""

    BUSY = "busy"
    """What is held by calls in flight would have to be given back first."""
    EXHAUSTED = "exhausted"
    """Used up until the window changes."""
    NEVER = "never"
    """Larger than the whole limit: waiting cannot help."""
    STOPPED = "stopped"
    """An operator has stopped such calls."""
    STORE_DOWN = "store_down"
    """The store did not answer, and the limit is `closed`."""


class Refusal(NamedTuple):
    """An admission that was refused; nothing was written."""

    plan: Plan
    reason: RefusalReason
    binding: LimitStatus | None
    """The limit that refused for longest; None with `STORE_DOWN` and `STOPPED`."""
    refusing: tuple[LimitStatus, ...]
    """All limits that would have refused the cheapest offer."""
    retry_after_ms: int | None
    """Milliseconds until the cheapest offer could fit; None if never."""
    admission: Admission | None
    """None with `STORE_DOWN`."""
    message: str

    @property
    def admitted(self) -> Literal[False]:
        """Distinguishes a refusal from a `Grant`."""
        return False


Decision = Grant | Refusal


@dataclass(frozen=True, slots=True)
class Media:
    """A part of a prompt that is not text."""

    kind: Literal["image", "audio", "file"]
    head: bytes = b""
    """The first decoded bytes (some 4 KB at most), enough to read an image's size; empty if remote."""
    size: int = 0
    """Decoded size in bytes; 0 if remote."""
    detail: str = ""
    """OpenAI's `detail`, empty if not given."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What goes into a model, as far as it costs tokens."""

    texts: Sequence[str] = ()
    """Every piece of text the model reads: content, names, tool definitions as JSON."""
    overhead_tokens: int = 0
    """Fixed tokens of the format: for each message, each tool, the priming of the answer."""
    media: Sequence[Media] = ()


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A request to a model, as its dialect read it."""

    model: str | None
    """None where the body names none and the tier decides."""
    prompt: Prompt
    max_output: int | None
    """Bound on output tokens of one sampling the caller set; the largest of all aliases."""
    samplings: int = 1
    """How often the output bound applies: `n`, `best_of`, a list of prompts."""
    stream: bool = False
    surcharges: frozenset[str] = frozenset()
    """Features whose hidden input must be reserved apart, such as `web_search`."""
    service_tier: str | None = None
    task: str | None = None
    """What the call is for; only where its tier has offers for that."""
    shortened: bool = False
    """True if messages were left out so that it fits."""
    min_output: int = 1
    """The least bound its provider accepts."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the request itself says of subjects it counts for, such as a session."""
    body: dict[str, Any] = field(default_factory=dict[str, Any], compare=False, repr=False)
    """The parsed body; the dialect writes the grant into a copy of it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call consumed, as the provider reported it; None is unknown, never zero."""

    input_tokens: int | None = None
    """Every input token charged in any way, cached ones included."""
    output_tokens: int | None = None
    """Every output token, reasoning included."""
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    """All cache writes, those of the next field included."""
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    web_searches: int = 0
    model: str | None = None
    """The model that answered, where the provider says so."""
    service_tier: str | None = None
    extra: tuple[Usage, ...] = ()
    """Usage billed beside this one at another model's price (an advisor, a compaction)."""


class Grade(enum.StrEnum):
    """How well the settled usage is known."""

    EXACT = "exact"
    """The provider's own numbers."""
    COUNTED = "counted"
    """Counted from what was streamed."""
    ESTIMATED = "estimated"
    """The reservation was kept."""
    RELEASED = "released"
    """The call did not happen: nothing was used."""


class Settlement(NamedTuple):
    """What replaces a reservation."""

    grant: Grant
    usage: Usage
    grade: Grade
    ending: str
    """How the call ended: one of the words of `engine.Ending`."""
    charges: Charges
    overrun: bool
    """True if more was used than the reservation held."""
    cache_saved_nano: int = 0
    """What caching took off the cost; below 0 where writing cost more than it saved."""
    would_refuse: tuple[str, ...] = ()
    """Limits that only count, and would have refused the call."""
    grown: int = 0
    """How often the reservation grew while the answer was streamed."""
