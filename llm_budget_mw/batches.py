"""A provider's batch jobs: reserved when they are made, settled when their results are read.

    batch = reserve_batch(guard, principal, lines)
    file = client.files.create(file=("batch.jsonl", batch.content), purpose="batch")
    made = client.batches.create(input_file_id=file.id, ...)
    keep(made.id, batch.ticket)
    ...                                     # hours later, in any process
    made = client.batches.retrieve(made.id)
    settle_batch(guard, batch.ticket, made, client.files.content(made.output_file_id).content)

Lines are those of OpenAI's batch files (`url` and `body`) or of Anthropic's (`params`). The whole
batch is one reservation, at the standard price, since a discount is the provider's to give; it
is charged by expiry when its lease ends and corrected by its settlement for a day after.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects.protocol import Dialect, RequestHead
from llm_budget_mw.engine import Ending, Engine, Outcome
from llm_budget_mw.errors import BudgetExceeded, RequestError
from llm_budget_mw.events import Origin
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.shell import Held
from llm_budget_mw.types import (
    MAX_AMOUNT,
    Admission,
    Decision,
    Grant,
    Limit,
    LimitSet,
    ModelCall,
    Offer,
    Plan,
    Principal,
    Prompt,
    Refusal,
    Resource,
    Settlement,
    Subject,
    SubjectLimits,
    Usage,
    Window,
)

ROUTE = "batch"
"""How events name the route of a batch."""
_TIER = "batch"
_DIALECTS = {
    "/v1/chat/completions": "openai_chat",
    "/v1/responses": "openai_responses",
    "/v1/completions": "openai_completions",
    "/v1/embeddings": "openai_embeddings",
}
_ANTHROPIC = "anthropic_messages"
_MOST_LINES = 100_000
"""Of Anthropic's batches; OpenAI takes half as many."""
_ENDED = frozenset({"completed", "failed", "expired", "cancelled", "canceled", "ended"})


class Batch(NamedTuple):
    """An admitted batch."""

    content: bytes
    """The lines to upload, each with a bound on its output."""
    ticket: str
    """What `settle_batch` needs; keep it with the id of the job. Not a secret, but to be trusted."""


class _Account(BaseModel):
    """A subject a batch counts for."""

    partition: str
    name: str
    limits: list[tuple[str, Resource, int]]
    """Name and resource of each limit, and the start of its window at the admission."""

    def entry(self, known: Mapping[tuple[Subject, str], Limit]) -> SubjectLimits:
        """Return the subject with the limits it had, as far as they are still configured."""
        subject = Subject(self.partition, self.name)
        limits = [
            known.get((subject, name)) or _gone(name, resource) for name, resource, _ in self.limits
        ]
        return SubjectLimits(subject, LimitSet(tuple(limits)))


class _Ticket(BaseModel):
    """An admission that outlives its process."""

    id: str
    principal: str
    tenant: str | None
    tier: str | None
    feature: str | None
    dialect: str
    model: str
    input_tokens: int
    output_tokens: int
    fixed_nano: int
    per_output_nano: int
    admitted_ms: int
    spares: int
    accounts: list[_Account]


class _Prepared(NamedTuple):
    content: bytes
    plan: Plan
    origin: Origin
    dialect: str


def reserve_batch(
    guard: Guard, principal: Principal, lines: Iterable[Any], *, feature: str | None = None
) -> Batch:
    """Reserve what a batch can cost at most; `lines` are mappings, or lines of JSON.

    Raises `RequestError` for a line that cannot be read or bounded, naming it, and
    `BudgetExceeded` if the batch does not fit.
    """
    ready = _prepare(guard.engine, principal, lines, feature)
    decided = guard.admit(ready.plan, ready.origin)
    return _reserved(ready, guard.hold(decided, ready.origin), decided)


async def reserve_batch_async(
    guard: AsyncGuard, principal: Principal, lines: Iterable[Any], *, feature: str | None = None
) -> Batch:
    """Like `reserve_batch`, on an event loop."""
    ready = _prepare(guard.engine, principal, lines, feature)
    decided = await guard.admit(ready.plan, ready.origin)
    return _reserved(ready, guard.hold(decided, ready.origin), decided)


def settle_batch(guard: Guard, ticket: str, batch: object, results: object = b"") -> Settlement:
    """Charge what a batch has used, once, however often this is called.

    `batch` is the provider's object, which must have ended; `results` the content of its
    output file or an iterable of its results. Lines that failed cost nothing. Raises
    `ValueError` for a batch that is still running, or a ticket that is none.
    """
    held, outcome = _ended(guard.engine, ticket, batch, results)
    return guard.settle(held, outcome)


async def settle_batch_async(
    guard: AsyncGuard, ticket: str, batch: object, results: object = b""
) -> Settlement:
    """Like `settle_batch`, on an event loop."""
    held, outcome = _ended(guard.engine, ticket, batch, results)
    return await guard.settle(held, outcome)


def _prepare(
    engine: Engine, principal: Principal, lines: Iterable[Any], feature: str | None
) -> _Prepared:
    written: list[bytes] = []
    offers: list[Offer] = []
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        if number > _MOST_LINES:
            raise RequestError(f"A batch has at most {_MOST_LINES} lines.")
        try:
            entry = _mapping(line)
            dialect, key = _format_of(entry)
            granted, offer = _granted(engine, principal, dialect, entry[key])
        except RequestError as error:
            raise RequestError(f"Line {number}: {error.message}", code=error.code) from error
        written.append(to_json({**entry, key: granted}))
        names.add(dialect.name)
        offers.append(offer)
    if len(names) != 1:
        raise RequestError("A batch is one line or more, all to one endpoint.")
    total = _total(offers)
    call = ModelCall(total.model, Prompt(), None, service_tier=_TIER)
    plan = engine.plan_for(principal, call, feature, (total,))._replace(charge_on_expiry=True)
    origin = Origin(principal, call, ROUTE, feature)
    return _Prepared(b"\n".join(written) + b"\n", plan, origin, names.pop())


def _total(offers: list[Offer]) -> Offer:
    """Return one offer that holds at least what all of these do; it is of the dearest's model."""
    output = sum(offer.per_output_tokens * offer.max_output for offer in offers)
    output_nano = sum(offer.per_output_nano * offer.max_output for offer in offers)
    return Offer(
        max(offers, key=lambda offer: offer.per_output_nano).model,
        output,
        output,
        1.0,
        min(sum(offer.fixed_tokens for offer in offers), MAX_AMOUNT),
        1,
        min(sum(offer.fixed_nano for offer in offers), MAX_AMOUNT),
        -(-output_nano // max(output, 1)),
    )


def _format_of(entry: Mapping[str, Any]) -> tuple[Dialect, str]:
    """Return the dialect of a line, and where its request stands."""
    if "params" in entry:
        return dialect_for(_ANTHROPIC), "params"
    name = _DIALECTS.get(str(entry.get("url")))
    if name is None or "body" not in entry:
        known = ", ".join(_DIALECTS)
        raise RequestError(f"It needs `params`, or a `body` and a `url` that is one of {known}.")
    return dialect_for(name), "body"


def _granted(
    engine: Engine, principal: Principal, dialect: Dialect, request: object
) -> tuple[dict[str, Any], Offer]:
    head = RequestHead("POST", "")
    call = dialect.read_request(head, to_json(request))
    if call.stream:
        raise RequestError("A batch cannot stream.")
    offer = engine.plan(principal, call).offers[0]
    written = dialect.write_grant(head, call, offer.model, offer.max_output)
    return cast("dict[str, Any]", from_json(written.body)), offer


def _reserved(ready: _Prepared, held: Held | None, decided: Decision) -> Batch:
    if held is None:
        raise BudgetExceeded(cast("Refusal", decided))
    grant, principal = held.grant, held.origin.principal
    admission = grant.admission
    starts = map(int, admission.counters[::5]) if admission else iter(())
    accounts = [
        _Account(
            partition=entry.subject.partition,
            name=entry.subject.name,
            limits=[(limit.name, limit.resource, next(starts, 0)) for limit in entry.limits.limits],
        )
        for entry in grant.plan.subjects
    ]
    ticket = _Ticket(
        id=grant.plan.id,
        principal=principal.id,
        tenant=principal.tenant,
        tier=principal.tier,
        feature=held.origin.feature,
        dialect=ready.dialect,
        model=grant.offer.model,
        input_tokens=grant.offer.fixed_tokens,
        output_tokens=grant.output,
        fixed_nano=grant.offer.fixed_nano,
        per_output_nano=grant.offer.per_output_nano,
        admitted_ms=admission.now_ms if admission else 0,
        spares=grant.offer.spares,
        accounts=accounts,
    )
    return Batch(ready.content, ticket.model_dump_json())


def _ended(engine: Engine, ticket: str, batch: object, results: object) -> tuple[Held, Outcome]:
    status = _field(batch, "status") or _field(batch, "processing_status")
    if status not in _ENDED:
        raise ValueError(f"the batch is {status!r}: settle it when it has ended")
    try:
        found = _Ticket.model_validate_json(ticket)
    except ValidationError as error:
        raise ValueError(f"this is no ticket of a batch: {ticket[:80]!r}") from error
    return _restored(engine, found), _outcome(dialect_for(found.dialect), found, results)


def _restored(engine: Engine, ticket: _Ticket) -> Held:
    """Return the admission a ticket stands for, with the limits it was admitted under."""
    principal = Principal(ticket.principal, ticket.tenant, ticket.tier)
    output = ticket.output_tokens
    offer = Offer(
        ticket.model,
        output,
        output,
        1.0,
        ticket.input_tokens,
        1,
        ticket.fixed_nano,
        ticket.per_output_nano,
        ticket.spares,
    )
    call = ModelCall(ticket.model, Prompt(), None, service_tier=_TIER)
    plan = engine.plan_for(principal, call, ticket.feature, (offer,))
    known = {
        (entry.subject, limit.name): limit
        for entry in plan.subjects
        for limit in entry.limits.limits
    }
    subjects = tuple(account.entry(known) for account in ticket.accounts)
    plan = plan._replace(id=ticket.id, subjects=subjects, offers=(offer,), switches=())
    starts = [start for account in ticket.accounts for *_, start in account.limits]
    counters = tuple(float(n) for start in starts for n in (start, 0, 0, 0, 0))
    admission = Admission(ticket.admitted_ms, 1, output, counters) if ticket.admitted_ms else None
    origin = Origin(principal, call, ROUTE, ticket.feature)
    return Held(Grant(plan, offer, output, admission), origin, time.monotonic())


def _gone(name: str, resource: Resource) -> Limit:
    """Stand in for a limit that is not configured any more; its counter is kept for a while."""
    return Limit(name, resource, MAX_AMOUNT, Window("none"))


def _outcome(dialect: Dialect, ticket: _Ticket, results: object) -> Outcome:
    used: list[Usage] = []
    for line in _lines(results):
        answer = _answer_in(line)
        if answer is None:
            continue  # it failed, was cancelled or has expired: nobody bills it
        usage = dialect.read_usage(to_json(answer), {})
        if usage is None or usage.input_tokens is None or usage.output_tokens is None:
            return Outcome(Ending.UNREPORTED)
        used.append(replace(usage, service_tier=_TIER))
    whole = Usage(0, 0, model=ticket.model, service_tier=_TIER, extra=tuple(used))
    return Outcome(Ending.COMPLETE, whole)


def _answer_in(line: Mapping[str, Any]) -> object | None:
    """Return the answer in a result; None if it has none that is billed."""
    if "result" in line:
        result = _nested(line, "result")
        return _nested(result, "message") if result.get("type") == "succeeded" else None
    response = _nested(line, "response")
    return response.get("body") if response.get("status_code") == 200 else None  # noqa: PLR2004


def _nested(line: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = line.get(name)
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _lines(results: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(results, str):
        results = results.encode()
    if isinstance(results, bytes):
        results = results.splitlines()
    for line in cast("Iterable[object]", results):
        if line not in (b"", ""):
            yield _mapping(line)


def _mapping(line: object) -> dict[str, Any]:
    """Read a line: JSON as bytes or text, a mapping, or an SDK's object."""
    try:
        value = from_json(line if isinstance(line, bytes | str) else to_json(line))
    except ValueError as error:
        raise RequestError(f"It is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise RequestError("It is no JSON object.")
    return cast("dict[str, Any]", value)


def _field(batch: object, name: str) -> object:
    if isinstance(batch, Mapping):
        return cast("Mapping[str, object]", batch).get(name)
    return getattr(batch, name, None)
