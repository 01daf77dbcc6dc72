"""What a tier allows: limits, models, and how much output to grant."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llm_budget_mw.config.notation import (
    Rate,
    parse_budget,
    parse_rate,
    parse_share,
    split_budgets,
    split_rates,
)
from llm_budget_mw.config.section import (
    Count,
    Filled,
    Flag,
    Name,
    Pattern,
    Section,
    Share,
    Size,
    Whole,
    Zone,
    repeated,
)
from llm_budget_mw.types import OnOutage

RatedOption = Literal["requests", "tokens", "budget"]


Part = Annotated[float, BeforeValidator(parse_share, json_schema_input_type=float | str)]
"""A part of a whole: `0.8` or `80%`."""


class LimitConfig(Section):
    """One limit of requests or tokens: its notation alone, or a table that says more."""

    limit: str
    """Its notation, such as `20/minute`, or `$20/month` for a budget."""
    window: Literal["fixed", "sliding", "calendar"] | None = None
    """None: sliding for seconds, minutes and hours, calendar for one day, week, month or
    year, fixed for several of them."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")] | None = None
    """Name in headers, events and keys; None: made of resource and period."""
    on_outage: OnOutage | None = None
    """None: what the tier says for this resource."""
    local_share: Share | None = None
    """None: what the tier says."""
    anchor_day: Annotated[Whole, Field(ge=1, le=31)] = 1
    """Day on which a calendar month begins, at the latest its last day."""
    anchor_hour: Annotated[Whole, Field(ge=0, le=23)] = 0
    """Hour at which a calendar day, week, month or year begins."""
    zone: Zone | None = None
    """Time zone of a calendar window; None: that of the configuration."""
    carry_over: Part | None = None
    """Part of the amount up to which the next window gets what this one leaves, such as `50%`."""
    shadow: Flag = False
    """Whether it only counts, and events tell what it would have refused."""

    @model_validator(mode="before")
    @classmethod
    def _from_notation(cls, value: Any) -> Any:
        return {"limit": value} if isinstance(value, str) else value

    @field_validator("limit")
    @classmethod
    def _is_notation(cls, value: str) -> str:
        cls.parse(value)
        return value

    @model_validator(mode="after")
    def _window_exists(self) -> Self:
        multiples, unit = self.rate.multiples, self.rate.unit
        calendar = self.window_kind == "calendar"
        if calendar and (multiples > 1 or unit in ("second", "minute")):
            raise ValueError("a calendar window is one hour, day, week, month or year")
        if self.zone is not None and not calendar:
            raise ValueError("`zone` needs a calendar window")
        if self.anchor_hour and (not calendar or unit == "hour"):
            raise ValueError("`anchor_hour` needs a calendar day, week, month or year")
        if self.anchor_day > 1 and (not calendar or unit != "month"):
            raise ValueError("`anchor_day` needs a calendar month")
        if self.carry_over and self.window_kind == "sliding":
            raise ValueError(
                "`carry_over` needs a fixed or calendar window: a sliding one has no end"
            )
        return self

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read the notation of a rate; raise `ValueError` saying how to write it."""
        return parse_rate(text)

    @property
    def rate(self) -> Rate:
        """The notation as numbers."""
        return self.parse(self.limit)

    @property
    def window_kind(self) -> Literal["fixed", "sliding", "calendar"]:
        """The kind of the window, chosen or by default."""
        if self.window is not None:
            return self.window
        if self.rate.unit in ("second", "minute", "hour"):
            return "sliding"
        return "calendar" if self.rate.multiples == 1 else "fixed"


class BudgetConfig(LimitConfig):
    """One limit of money, in dollars or base tokens."""

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read the notation of a budget; raise `ValueError` saying how to write it."""
        return parse_budget(text)


def _rate_list(value: Any) -> Any:
    return split_rates(value) if isinstance(value, str) else _listed(value)


def _budget_list(value: Any) -> Any:
    return split_budgets(value) if isinstance(value, str) else _listed(value)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | LimitConfig) else value


Rates = Annotated[
    tuple[LimitConfig, ...],
    BeforeValidator(_rate_list, json_schema_input_type=str | LimitConfig | list[str | LimitConfig]),
]
Budgets = Annotated[
    tuple[BudgetConfig, ...],
    BeforeValidator(
        _budget_list, json_schema_input_type=str | BudgetConfig | list[str | BudgetConfig]
    ),
]


class OfferConfig(Section):
    """A model to offer; of a tier's offers the first that fits all limits is taken."""

    model: Name
    ceiling: Part = 1.0
    """Part of each token and money limit up to which this offer stands, such as `80%`."""
    max_tokens: Count | None = None
    """None: what the tier says."""
    min_tokens: Count | None = None
    """None: what the tier says."""


class TierOutageConfig(Section):
    """What becomes of calls while the store does not answer, by the kind of limit."""

    requests: OnOutage = "open"
    tokens: OnOutage = "open"
    budget: OnOutage = "local"
    concurrency: OnOutage = "open"


class LimitedConfig(Section):
    """Limits that stand together, whatever they count for."""

    requests: Rates = ()
    tokens: Rates = ()
    """Input and output tokens together."""
    budget: Budgets = ()
    concurrency: Count | None = None
    """Calls at the same time."""
    on_outage: TierOutageConfig = Field(default_factory=TierOutageConfig)
    local_share: Share = 0.05
    """Part of a `local` limit that is admitted without the store in an outage."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [limit_name(option, limit) for option, limit in self.rated_limits]
        if self.concurrency is not None:
            names.append("concurrency")
        for name in repeated(names):
            raise ValueError(f"two limits are named {name!r}: give one a `name` of its own")
        return self

    @property
    def rated_limits(self) -> list[tuple[RatedOption, LimitConfig]]:
        """All limits in a window of time, with the option each stands under."""
        groups: tuple[tuple[RatedOption, tuple[LimitConfig, ...]], ...] = (
            ("requests", self.requests),
            ("tokens", self.tokens),
            ("budget", self.budget),
        )
        return [(option, limit) for option, limits in groups for limit in limits]


class TierConfig(LimitedConfig):
    """One plan: what a principal may use."""

    max_tokens: Count = 1024
    """Largest output to grant to one call."""
    min_tokens: Count = 1
    """A call that could be granted less output than this is refused."""
    models: tuple[Pattern, ...] = ()
    """Models a caller may ask for, exact or as a prefix ending in `*`, beside the offers.
    Empty: only the offers, or any model where there are none."""
    offers: Annotated[tuple[OfferConfig, ...], Field(max_length=32)] = ()
    """Models to choose from, best first; empty: the one the caller asks for."""
    tasks: dict[Name, Filled[OfferConfig]] = Field(
        default_factory=dict[str, tuple[OfferConfig, ...]]
    )
    """What a call is for, to the offers for that, in place of `offers` and of what is asked for."""
    urgent: Annotated[Decimal, Field(ge=1, le=100)] = Decimal(1)
    """Multiplies `max_tokens` for principals whose claims say urgent."""
    surcharges: dict[Name, Size] = Field(default_factory=dict[str, int])
    """Feature of a call, such as `web_search`, to the hidden input tokens reserved for it."""

    @model_validator(mode="after")
    def _outputs_agree(self) -> Self:
        bounds = [("", self.min_tokens, self.max_tokens)]
        for offer in self.all_offers:
            least, most = offer.min_tokens or self.min_tokens, offer.max_tokens or self.max_tokens
            bounds.append((f"offer {offer.model!r}: ", least, most))
        for place, least, most in bounds:
            if least > most:
                raise ValueError(f"{place}min_tokens {least} is above max_tokens {most}")
        return self

    @property
    def all_offers(self) -> tuple[OfferConfig, ...]:
        """The offers, and those of every task."""
        return sum(self.tasks.values(), self.offers)


def limit_name(option: RatedOption, limit: LimitConfig) -> str:
    """Return the name of a limit: its own, or one like `tokens-per-day`."""
    return limit.name or f"{option}-per-{limit.rate.period}"
