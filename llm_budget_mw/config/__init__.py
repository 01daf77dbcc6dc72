"""The configuration: one frozen value, from TOML, mappings, the environment and keyword arguments."""

from __future__ import annotations

from llm_budget_mw.config.load import ENVIRONMENT, json_schema, load, load_route
from llm_budget_mw.config.model import (
    DIALECTS,
    Config,
    EventsConfig,
    JWTConfig,
    OutageConfig,
    RefusalsConfig,
    RouteConfig,
    StoreConfig,
    TasksConfig,
)
from llm_budget_mw.config.prices import (
    LongContextConfig,
    ModelPriceConfig,
    PricesConfig,
    TokensConfig,
)
from llm_budget_mw.config.tier_limits import tier_limits
from llm_budget_mw.config.tiers import (
    BudgetConfig,
    LimitConfig,
    OfferConfig,
    TierConfig,
    TierOutageConfig,
)

__all__ = [
    "DIALECTS",
    "ENVIRONMENT",
    "BudgetConfig",
    "Config",
    "EventsConfig",
    "JWTConfig",
    "LimitConfig",
    "LongContextConfig",
    "ModelPriceConfig",
    "OfferConfig",
    "OutageConfig",
    "PricesConfig",
    "RefusalsConfig",
    "RouteConfig",
    "StoreConfig",
    "TasksConfig",
    "TierConfig",
    "TierOutageConfig",
    "TokensConfig",
    "json_schema",
    "load",
    "load_route",
    "tier_limits",
]
