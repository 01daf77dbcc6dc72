"""What happened, as data; no prompt, no answer, no credential ever is in an event."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import unquote

from llm_budget_mw import _windows
from llm_budget_mw._money import format_usd
from llm_budget_mw.alerts import Anomaly, Crossing
from llm_budget_mw.types import Grant, Limit, ModelCall, Principal, Refusal, Settlement, Subject

_PSEUDONYMS_KEPT = 4096
_OF_A_USER = re.compile(
    "(?:(?P<shared>deployment|[^/]+/[^/]+)/by/(?:.+/)?)?"
    "user/(?P<id>[^/]+)(?P<part>/[^/]+/[^/]+)?(?:/by/.+)?"
)
"""Names of a principal, of a part of it (its session), and of its share of something else."""
Severity = Literal["info", "warning", "critical"]
SETTLED = "budget.settled"
REFUSED = "budget.refused"
DENIED = "budget.denied"
"""The caller was not authenticated, or asked for what cannot be bounded."""
UNCHECKED = "budget.unchecked"
"""Admitted without the store, by the outage rule."""
STORE_DOWN = "budget.store_down"
STORE_UP = "budget.store_up"
THRESHOLD = "budget.threshold"
"""A limit is used up to one of the configured parts."""
ANOMALY = "budget.anomaly"
CHANGED = "budget.changed"
"""An operator changed a limit, or stopped calls."""
ALERTS = frozenset({THRESHOLD, ANOMALY, STORE_DOWN, STORE_UP, CHANGED})
"""What a person wants to be told at once: webhooks and callables get these, and no other."""


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


OnAlert = Callable[[Event], object]
"""A function of the application that is given each alert."""


class Origin(NamedTuple):
    """Who and what a call was made for, as far as an event may say."""

    principal: Principal
    call: ModelCall
    route: str = ""
    feature: str | None = None
    request: str | None = None
    """Reservation of the request or call it was made in; None for one by itself."""
    attempt: str | None = None
    """Which attempt of a fallback it is, and what became of the one before: `2/rejected`."""
    elastic: bool = False
    """True if less than its bound may be held for it, and grow with its stream."""


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

    def subject(self, subject: Subject) -> str:
        """Return a subject's name for an event; only principals in it are any secret.

        An id that was too long for a key is known by its hash alone, and named after that.
        """
        found = _OF_A_USER.fullmatch(subject.name)
        if found is None:
            return subject.name
        who = self.name(Principal(unquote(found["id"], errors="surrogatepass")))
        user = "user" if who is None else f"user/{who}"
        return f"{found['shared']}/by/{user}" if found["shared"] else user + (found["part"] or "")

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
        "max_tokens": grant.max_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "total_tokens": charges.tokens,
        "held_tokens": held.tokens,
        "grown": settlement.grown,
        "cost_nano": charges.cost_nano,
        "cost_usd": format_usd(charges.cost_nano),
        "cache_saved_nano": settlement.cache_saved_nano,
        "held_cost_nano": held.cost_nano,
        "price_version": price_version,
        "grade": settlement.grade.value,
        "ending": settlement.ending,
        "overrun": settlement.overrun,
        "would_refuse": list(settlement.would_refuse),
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
        "subject": binding.subject.name.partition("/")[0] if binding else None,
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


def threshold_crossed(crossing: Crossing, who: str) -> Event:
    """Describe how far a limit is used; `who` is what the subject is called in events."""
    limit, share = crossing.limit, crossing.threshold
    start_ms = crossing.window_start_ms
    end_ms = _windows.span(limit.window, start_ms)[1]
    attributes = {
        **_limited(who, limit),
        "threshold_percent": _percent(share),
        "used": crossing.used,
        "amount": crossing.amount,
        "used_usd": _usd(limit, crossing.used),
        "amount_usd": _usd(limit, crossing.amount),
        "window_start": _windows.in_utc(start_ms) if end_ms else None,
        "resets_at": _windows.in_utc(end_ms) if end_ms else None,
    }
    severity: Severity = "info" if share < 1 else "warning" if share == 1 else "critical"
    return Event(THRESHOLD, severity, attributes)


def anomaly_found(anomaly: Anomaly, who: str) -> Event:
    """Describe a limit that is used unusually fast; `who` as in `threshold_crossed`."""
    limit = anomaly.limit
    attributes = {
        **_limited(who, limit),
        "minutes": anomaly.minutes,
        "spent": anomaly.spent,
        "usual_in_a_day": anomaly.usual,
        "spent_usd": _usd(limit, anomaly.spent),
        "usual_in_a_day_usd": _usd(limit, anomaly.usual),
    }
    return Event(ANOMALY, "warning", attributes)


def changed(operation: str, who: str, attributes: dict[str, Any]) -> Event:
    """Describe what an operator changed; `who` as in `threshold_crossed`."""
    return Event(CHANGED, "warning", {"operation": operation, "subject": who, **attributes})


def _limited(who: str, limit: Limit) -> dict[str, Any]:
    return {"subject": who, "limit": limit.name, "resource": limit.resource}


def _percent(share: float) -> int | float:
    percent = round(share * 100, 6)  # 0.07 * 100 is a little more than 7
    return int(percent) if percent == int(percent) else percent


def _usd(limit: Limit, amount: int) -> str | None:
    return format_usd(amount) if limit.resource == "cost" else None


def _common(origin: Origin, who: str | None) -> dict[str, Any]:
    return {
        "principal": who,
        "tenant": origin.principal.tenant,
        "tier": origin.principal.tier,
        "route": origin.route,
        "feature": origin.feature,
        "request": origin.request,
        "attempt": origin.attempt,
        "task": origin.call.task,
        "shortened": origin.call.shortened,
        "requested_model": origin.call.model,
        "stream": origin.call.stream,
    }
