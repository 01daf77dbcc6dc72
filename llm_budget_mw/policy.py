"""Which limits and offers a principal has; compiled from the configuration at start-up."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_budget_mw.config import Config, OfferConfig, TierConfig, limits_of
from llm_budget_mw.errors import ConfigurationError, RequestError
from llm_budget_mw.pricing import ModelPrice, PerClass, Prices
from llm_budget_mw.subjects import Subjects, subject_of, watch_of
from llm_budget_mw.types import Limit, LimitSet, ModelCall, Principal, SubjectLimits

_LADDERS_KEPT = 1024
"""Ladders kept per tier; model names come from outside, so their number is bounded."""

Asked = tuple[str | None, str | None, str | None]
"""Requested model, service tier, and task."""
_FREE = ModelPrice(PerClass(), source="unknown", known=False)


class Rung(NamedTuple):
    """One step of a tier's ladder: a model with its bounds and its price."""

    model: str
    ceiling: float
    max_tokens: int
    min_tokens: int
    price: ModelPrice
    counted_as: str
    """The model whose tokenizer counts: what an alias stands for."""


@dataclass(slots=True)
class Tier:
    """One tier of the configuration, compiled."""

    name: str
    config: TierConfig
    limits: LimitSet
    in_money: bool
    """True if a limit counts money: then a model without a price is refused."""
    urgent: float
    ladders: dict[Asked, tuple[Rung, ...]] = field(default_factory=dict[Asked, tuple[Rung, ...]])
    """Ladders by what was asked for, as far as they were."""

    def surcharge(self, feature: str) -> int:
        """Return the hidden input tokens to reserve for a feature.

        Raises `RequestError` if the feature has none configured: what it adds has no bound.
        """
        tokens = self.config.surcharges.get(feature)
        if tokens is None:
            raise RequestError(
                f"This application does not allow {feature}: its hidden input has no bound.",
                status=400,
                code="feature_not_allowed",
            )
        return tokens


class Policy:
    """The tiers of one configuration."""

    def __init__(self, config: Config, prices: Prices) -> None:
        self._prices = prices
        self._subjects = Subjects(config, prices.base_tokens_nano)
        self._tiers = {
            name: _compile(name, tier, config, prices, self._subjects)
            for name, tier in config.tiers.items()
        }

    def tier(self, principal: Principal) -> Tier:
        """Return the principal's tier; `default` for none or an unknown one."""
        return self._tiers.get(principal.tier or "default") or self._tiers["default"]

    @property
    def headers(self) -> Mapping[str, str]:
        """Kinds of subjects to the headers of a request that name them."""
        return self._subjects.headers

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of subjects whose calls can be stopped, and may have limits."""
        return frozenset({"user", "deployment", "tenant", "feature", "model"}).union(
            self._subjects.kinds
        )

    def limits_of(self, kind: str, name: str) -> dict[str, Limit]:
        """Return the limits of a subject by name; of a user those of every tier."""
        if kind != "user":
            return {limit.name: limit for limit in self._subjects.limits_of(kind, name)}
        tiers = self._tiers.values()
        return {limit.name: limit for tier in tiers for limit in tier.limits.limits}

    def subjects(
        self,
        principal: Principal,
        tier: Tier,
        call: ModelCall | None = None,
        feature: str | None = None,
        models: Sequence[str] = (),
    ) -> tuple[SubjectLimits, ...]:
        """Return who is charged, with the limits of each: the principal, then what it shares."""
        own = SubjectLimits(subject_of(principal.tenant, principal.id), tier.limits)
        alone = (own,) if tier.limits.limits else ()
        if not self._subjects.kinds:
            return alone
        return (*alone, *self._subjects.counted(principal, call, feature, models))

    def rungs(self, tier: Tier, call: ModelCall) -> tuple[Rung, ...]:
        """Return the offers for a requested model, best first; never empty.

        Raises `RequestError` if the tier does not allow the model, or nobody knows its price.
        """
        asked = (call.model, call.service_tier, call.task)
        ladder = tier.ladders.get(asked)
        if ladder is None:
            steps = _steps(tier.config, call)
            ladder = tuple(self._rung(tier, step, call.service_tier) for step in steps)
            if len(tier.ladders) < _LADDERS_KEPT:
                tier.ladders[asked] = ladder
        return ladder

    def _rung(self, tier: Tier, step: OfferConfig, service_tier: str | None) -> Rung:
        price = self._prices.of(step.model, service_tier)
        if price is None:
            if tier.in_money:
                at = f" in the service tier {service_tier!r}" if service_tier else ""
                raise RequestError(
                    f"The model {step.model!r} has no known price{at}, "
                    "and this budget is in money.",
                    status=400,
                    code="unknown_price",
                )
            price = _FREE
        most = min(step.max_tokens or tier.config.max_tokens, tier.config.max_tokens)
        least = step.min_tokens or tier.config.min_tokens
        counted_as = self._prices.canonical(step.model)
        return Rung(step.model, step.ceiling, most, least, price, counted_as)


def _steps(tier: TierConfig, call: ModelCall) -> Sequence[OfferConfig]:
    """Return the ladder of a call's task, or the part of the tier's that its caller may use."""
    if call.task is not None:
        return tier.tasks[call.task]
    model = call.model
    if model is None:
        if not tier.offers:
            raise RequestError("The request names no model.", status=400, code="model_missing")
        return tier.offers
    # Who names a model of the ladder starts there, and never gets one above it.
    for number, offer in enumerate(tier.offers):
        if offer.model == model:
            return tier.offers[number:]
    # A ladder is a list of what is allowed: a dearer model beside it has to be written out.
    restricted = tier.models or tier.offers
    if restricted and not any(map(functools.partial(_matches, model), tier.models)):
        raise RequestError(
            f"The model {model!r} is not allowed here.", status=403, code="model_not_allowed"
        )
    # Not validated: the name is a caller's, who must not be told of a wrong configuration.
    return (OfferConfig.model_construct(model=model),)


def _matches(model: str, pattern: str) -> bool:
    return model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern


def _compile(
    name: str, tier: TierConfig, config: Config, prices: Prices, subjects: Subjects
) -> Tier:
    limits = limits_of(tier, config, prices.base_tokens_nano)
    in_money = subjects.in_money or any(limit.resource == "cost" for limit in limits)
    for offer in tier.all_offers:
        if in_money and prices.of(offer.model) is None:
            raise ConfigurationError(
                f"tiers.{name}.offers: the model {offer.model!r} has no known price, and a budget "
                "of this tier is in money: add it to `prices.models` or to `prices.aliases`"
            )
    return Tier(name, tier, LimitSet(limits, watch_of(config)), in_money, float(tier.urgent))
