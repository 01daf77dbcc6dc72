"""What happened, as data; no prompt, no answer, no credential ever is in an event."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Literal, NamedTuple, Protocol

from llm_budget_mw._money import format_usd
from llm_budget_mw.types import Grant, ModelCall, Principal, Refusal, Settlement

_PSEUDONYMS_KEPT = 4096
Severity = Literal["info", "warning", "critical"]
SETTLED = "budget.settled"
REFUSED = "budget.refused"
DENIED = "budget.denied"
"""The caller was not authenticated, or asked for what cannot be bounded."""
UNCHECKED = "budget.unchecked"
"""Admitted without the store, by the outage rule."""
STORE_DOWN = "budget.store_down"
STORE_UP = "budget.store_up"


class Event(NamedTuple):
    """One event: a name in the past tense, its severity, and flat attributes."""

    name: str
    severity: Severity
    attributes: dict[str, Any]


class Sink(Protocol):
    """Where events go. Called on the request's thread or loop: it must be quick."""

    def emit(self, event: Event) -> None:
        """Take one event; what it raises is logged and goes no further."""
        ...


class Origin(NamedTuple):
    """Who and what a call was made for, as far as an event may say."""

    principal: Principal
    call: ModelCall
    route: str = ""
    feature: str | None = None
    request: str | None = None
    """Reservation of the request or call it was made in; None for one by itself."""


class Identifier:
    """Names principals in events: a keyed pseudonym, the plain id, or nothing."""

    def __init__(self, form: Literal["pseudonym", "plain", "none"], secret: bytes) -> None:
        self._form = form
        self._secret = secret
        self._known: dict[str, str] = {}

    def name(self, principal: Principal) -> str | None:
        """Return the principal's name for an event; None if events are to have none."""
        if self._form == "plain":
            return principal.id
        return self._pseudonym(principal.id) if self._form == "pseudonym" else None

    def _pseudonym(self, principal_id: str) -> str:
        known = self._known.get(principal_id)
        if known is None:
            if len(self._known) >= _PSEUDONYMS_KEPT:
                self._known.clear()
            # Keyed: whoever reads the log cannot try out ids against a bare hash.
            digest = hmac.digest(
                self._secret, principal_id.encode("utf-8", "surrogatepass"), hashlib.sha256
            )
            known = self._known[principal_id] = digest[:12].hex()
        return known


def settled(
    settlement: Settlement, origin: Origin, who: str | None, price_version: str, duration_ms: int
) -> Event:
    """Describe a settlement: what was asked, granted, used and charged."""
    grant, usage, charges = settlement.grant, settlement.usage, settlement.charges
    held = grant.charges
    attributes: dict[str, Any] = {
        **_common(origin, who),
        "reservation": grant.plan.id,
        "model": grant.offer.model,
        "response_model": usage.model,
        "service_tier": usage.service_tier,
        "max_tokens": grant.output,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "total_tokens": charges.tokens,
        "held_tokens": held.tokens,
        "cost_nano": charges.cost_nano,
        "cost_usd": format_usd(charges.cost_nano),
        "cache_saved_nano": settlement.cache_saved_nano,
        "held_cost_nano": held.cost_nano,
        "price_version": price_version,
        "grade": settlement.grade.value,
        "ending": settlement.ending,
        "overrun": settlement.overrun,
        "reserved": grant.admission is not None,
        "duration_ms": duration_ms,
    }
    return Event(SETTLED, "warning" if settlement.overrun else "info", attributes)


def refused(refusal: Refusal, origin: Origin, who: str | None) -> Event:
    """Describe a refusal, with the limit that binds."""
    binding = refusal.binding
    attributes = {
        **_common(origin, who),
        "reason": refusal.reason.value,
        "limit": binding.limit.name if binding else None,
        "limits": [status.limit.name for status in refusal.refusing],
        "retry_after_ms": refusal.retry_after_ms,
    }
    return Event(REFUSED, "info", attributes)


def denied(status: int, code: str | None, route: str) -> Event:
    """Describe a request that never came to an admission."""
    return Event(DENIED, "info", {"status": status, "code": code, "route": route})


def unchecked(grant: Grant, origin: Origin, who: str | None, error: str) -> Event:
    """Describe a call that was let through because the store did not answer."""
    attributes = {**_common(origin, who), "reservation": grant.plan.id, "error": error}
    return Event(UNCHECKED, "critical", attributes)


def store_down(error: str) -> Event:
    """Describe the moment the store stopped answering."""
    return Event(STORE_DOWN, "critical", {"error": error})


def store_up(waiting: int, lost: int) -> Event:
    """Describe its return, with the settlements that wait for it and those that are lost."""
    return Event(STORE_UP, "critical" if lost else "warning", {"waiting": waiting, "lost": lost})


def _common(origin: Origin, who: str | None) -> dict[str, Any]:
    return {
        "principal": who,
        "tenant": origin.principal.tenant,
        "tier": origin.principal.tier,
        "route": origin.route,
        "feature": origin.feature,
        "request": origin.request,
        "task": origin.call.task,
        "shortened": origin.call.shortened,
        "requested_model": origin.call.model,
        "stream": origin.call.stream,
    }
