"""Decisions without I/O: a request becomes a plan, a reply a decision, an ending a settlement.

Everything here takes values and returns values; the edges and the guard move the bytes.
"""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Sequence
from typing import NamedTuple

from llm_budget_mw import decision
from llm_budget_mw.dialects import _surcharges
from llm_budget_mw.dialects.protocol import Dialect
from llm_budget_mw.errors import RequestError
from llm_budget_mw.fitting import fit_call
from llm_budget_mw.policy import Policy, Rung, Tier
from llm_budget_mw.pricing import Prices
from llm_budget_mw.subjects import switches_of
from llm_budget_mw.tokens.bound import fixed_tokens
from llm_budget_mw.tokens.estimate import Estimator, InputEstimate
from llm_budget_mw.types import (
    MAX_AMOUNT,
    NOTHING,
    Charges,
    Decision,
    Grade,
    Grant,
    ModelCall,
    Offer,
    Plan,
    Principal,
    Prompt,
    Settlement,
    SubjectLimits,
    Usage,
)

_PRICED = frozenset({_surcharges.CACHE_WRITE, _surcharges.CACHE_WRITE_1H})

_NEVER = Offer("", 0, 1, 1.0, 0, 1, 0, 0)
"""Gives no output and wants some."""


def _spares(model: str, subjects: Sequence[SubjectLimits]) -> int:
    """Return the subjects an offer of this model is not charged to, a bit each."""
    return sum(1 << place for place, each in enumerate(subjects) if each.model not in (None, model))


class Ending(enum.StrEnum):
    """How a call ended."""

    COMPLETE = "complete"
    CUT = "cut"
    """The client left, the server stopped it, or upstream broke after it had begun."""
    REFUSED_UPSTREAM = "refused_upstream"
    """The provider answered an error and reports no usage."""
    NOT_CALLED = "not_called"
    """Nothing was asked of a provider: the handler failed before."""
    STOPPED = "stopped"
    """No more could be held for a stream: it was ended as if by its output bound."""
    UNREPORTED = "unreported"
    """The handler finished without reporting usage on a route that should."""


class Outcome(NamedTuple):
    """What the edge saw of a call."""

    ending: Ending
    usage: Usage | None = None
    counted_output: int | None = None
    """Output tokens counted from what was streamed; None if they could not be counted."""
    grown: int = 0
    """How often the reservation grew meanwhile."""


class Engine:
    """The rules of one configuration; shared by all requests and threads."""

    def __init__(
        self,
        policy: Policy,
        prices: Prices,
        estimator: Estimator,
        lease_ms: int,
        *,
        charge_on_expiry: bool = True,
    ) -> None:
        self.policy = policy
        self.prices = prices
        self.estimator = estimator
        self._lease_ms = lease_ms
        self._charge_on_expiry = charge_on_expiry

    def plan(
        self,
        principal: Principal,
        call: ModelCall,
        feature: str | None = None,
        *,
        exact: bool = False,
    ) -> Plan:
        """Turn a call into a plan; `exact` counts the input, which may take milliseconds.

        Raises `RequestError` where the tier does not allow the model, or nobody knows its
        price and a limit is in money.
        """
        tier = self.policy.tier(principal)
        rungs = self.policy.rungs(tier, call)
        estimate = self.estimator.count if exact else self.estimator.bound
        hidden = sum([tier.surcharge(feature) for feature in call.surcharges - _PRICED])
        offers = tuple(
            [
                self._offer(
                    tier, rung, call, principal, estimate(call.prompt, rung.counted_as), hidden
                )
                for rung in rungs
            ]
        )
        return self.plan_for(principal, call, feature, offers)

    def plan_for(
        self, principal: Principal, call: ModelCall, feature: str | None, offers: tuple[Offer, ...]
    ) -> Plan:
        """Return the plan of a call that has these offers."""
        models = tuple([offer.model for offer in offers])
        tier = self.policy.tier(principal)
        subjects = self.policy.subjects(principal, tier, call, feature, models)
        if any(each.model for each in subjects):
            offers = tuple(
                offer._replace(spares=_spares(offer.model, subjects)) for offer in offers
            )
        shared = tuple([entry.subject for entry in subjects]) if len(subjects) > 1 else ()
        switches = switches_of(principal.tenant, principal.id, feature, models, shared)
        return Plan(
            os.urandom(12).hex(),
            subjects,
            offers,
            self._lease_ms,
            self._charge_on_expiry,
            switches,
        )

    def glance(self, principal: Principal) -> Plan:
        """Return a plan that no store can admit: its answer shows the counters, and holds nothing."""
        subjects = self.policy.subjects(principal, self.policy.tier(principal))
        return Plan(os.urandom(12).hex(), subjects, (_NEVER,), self._lease_ms)

    def worth_counting(self, plan: Plan, call: ModelCall) -> bool:
        """Return whether exact input tokens could lower what this plan holds by much."""
        offer = plan.offers[0]
        part, each = offer.fixed_tokens, offer.per_output_tokens
        if offer.fixed_nano:
            part, each = offer.fixed_nano, offer.per_output_nano
        whole = part + each * offer.max_output
        bound = InputEstimate(offer.fixed_tokens, exact=False)
        return self.estimator.worth_counting(call.prompt, bound, part / max(whole, 1))

    def might_fit(self, decided: Decision, call: ModelCall) -> bool:
        """Return whether a refused call could be admitted with its input counted exactly."""
        if isinstance(decided, Grant) or decided.binding is None:
            return False
        if decided.binding.limit.resource not in ("tokens", "cost"):
            return False
        bound = InputEstimate(decided.plan.offers[-1].fixed_tokens, exact=False)
        return self.estimator.worth_counting(call.prompt, bound, 1.0)

    def shorten(
        self,
        principal: Principal,
        call: ModelCall,
        feature: str | None,
        decided: Decision,
        dialect: Dialect,
    ) -> tuple[ModelCall, Plan] | None:
        """Return a refused call with fewer messages and its plan; None if that cannot help.

        It counts the whole input, see `Estimator.offload`.
        """
        room = decision.input_room(decided)
        if room is None:
            return None
        tier = self.policy.tier(principal)
        hidden = sum([tier.surcharge(feature) for feature in call.surcharges - _PRICED])
        model = self.policy.rungs(tier, call)[-1].counted_as
        try:
            shorter = fit_call(call, room - hidden, dialect, self.estimator, model)
        except RequestError:
            return None  # the refusal says more: by which limit, and until when
        return shorter, self.plan(principal, shorter, feature, exact=True)

    def count(self, text: str, grant: Grant) -> int:
        """Return the tokens of text that a granted call generated.

        Without the model's own tokenizer that is a bound, and so is what was granted.
        """
        model, offer = grant.offer.model, grant.offer
        estimate = self.estimator.count(Prompt((text,)), model)
        # An estimate also holds what a provider adds to the input of a request.
        tokens = estimate.tokens - fixed_tokens(Prompt(), model)
        return tokens if estimate.exact else min(tokens, grant.max_tokens * offer.per_output_tokens)

    def _offer(
        self,
        tier: Tier,
        rung: Rung,
        call: ModelCall,
        principal: Principal,
        estimate: InputEstimate,
        hidden: int,
    ) -> Offer:
        most = rung.max_tokens
        if principal.urgent:
            most = int(most * tier.urgent)
        if call.max_output is not None:
            most = min(most, call.max_output)
        tokens = estimate.tokens + hidden
        fixed_nano, per_output_nano = rung.price.bound(
            tokens,
            cache_writes=_surcharges.CACHE_WRITE in call.surcharges,
            cache_writes_1h=_surcharges.CACHE_WRITE_1H in call.surcharges,
            audio=any(media.kind == "audio" for media in call.prompt.media),
        )
        return Offer(
            rung.model,
            most,
            min(max(rung.min_tokens, call.min_output), most),
            rung.ceiling,
            tokens,
            call.samplings,
            fixed_nano,
            per_output_nano * call.samplings,
        )

    def settle(self, grant: Grant, outcome: Outcome, call: ModelCall) -> Settlement:
        """Say what replaces a reservation; unknown sides keep what the reservation held.

        Where only the input is unknown it is counted exactly, if that is possible; see
        `counts_long`.
        """
        usage, grade = _fill(grant, outcome)
        if grade is Grade.RELEASED:
            return Settlement(grant, usage, grade, outcome.ending, NOTHING, overrun=False)
        if grade is Grade.COUNTED and _input_unknown(outcome):
            usage = dataclasses.replace(usage, input_tokens=self._count_input(grant, call))
        held = grant.charges
        cost, saved = self._cost(usage, grant.offer.model, call.service_tier)
        tokens = min(MAX_AMOUNT, _total_tokens(usage))
        charges = Charges(1, tokens, held.cost_nano if cost is None else cost)
        overrun = tokens > held.tokens or charges.cost_nano > held.cost_nano
        would_refuse = decision.would_refuse(grant)
        return Settlement(
            grant, usage, grade, outcome.ending, charges, overrun, saved, would_refuse
        )

    def counts_long(self, outcome: Outcome, call: ModelCall) -> bool:
        """Return whether settling counts so much input that it belongs in a thread."""
        return _input_unknown(outcome) and self.estimator.offload(call.prompt)

    def _count_input(self, grant: Grant, call: ModelCall) -> int:
        held = grant.offer.fixed_tokens
        if call.surcharges - _PRICED:
            return held  # hidden input cannot be counted
        return min(held, self.estimator.count(call.prompt, grant.offer.model).tokens)

    def _cost(self, usage: Usage, model: str, service_tier: str | None) -> tuple[int | None, int]:
        """Return the cost, if it can be known, and what caching took off it."""
        cost = self.prices.cost(usage, model)
        if cost is not None and usage.service_tier is None and service_tier is not None:
            # A tier that was asked for may have been given where the answer names none.
            at_tier = dataclasses.replace(usage, service_tier=service_tier)
            asked = self.prices.cost(at_tier, model)
            if asked is not None and asked > cost:
                usage, cost = at_tier, asked
        return cost, self.prices.saved(usage, model)


def _fill(grant: Grant, outcome: Outcome) -> tuple[Usage, Grade]:
    """Return usage without gaps, and how well it is known."""
    usage = outcome.usage or Usage()
    if usage.input_tokens is not None and usage.output_tokens is not None:
        cut = outcome.ending in (Ending.CUT, Ending.STOPPED)
        return usage, Grade.COUNTED if cut else Grade.EXACT
    unknown = usage.input_tokens is None and usage.output_tokens is None
    if unknown and outcome.ending in (Ending.NOT_CALLED, Ending.REFUSED_UPSTREAM):
        return Usage(0, 0), Grade.RELEASED
    return _estimate(grant, outcome, usage)


def _estimate(grant: Grant, outcome: Outcome, usage: Usage) -> tuple[Usage, Grade]:
    """Fill what is unknown: with what was counted, else with what the reservation held."""
    offer = grant.offer
    grade = Grade.COUNTED
    tokens_in, tokens_out = usage.input_tokens, usage.output_tokens
    if tokens_in is None:
        tokens_in = offer.fixed_tokens
    if tokens_out is None:
        tokens_out = outcome.counted_output
    if tokens_out is None:
        tokens_out, grade = offer.per_output_tokens * grant.output, Grade.ESTIMATED
    return dataclasses.replace(usage, input_tokens=tokens_in, output_tokens=tokens_out), grade


def _input_unknown(outcome: Outcome) -> bool:
    return outcome.usage is None or outcome.usage.input_tokens is None


def _total_tokens(usage: Usage) -> int:
    own = (usage.input_tokens or 0) + (usage.output_tokens or 0)
    return own + sum(map(_total_tokens, usage.extra))
