"""The configuration: one frozen value, from TOML, mappings, the environment and keyword arguments."""

from __future__ import annotations

from llm_budget_mw.config.alerts import AlertsConfig
from llm_budget_mw.config.limits import limits_of
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
from llm_budget_mw.config.subjects import SubjectConfig
from llm_budget_mw.config.tiers import (
    BudgetConfig,
    LimitConfig,
    LimitedConfig,
    OfferConfig,
    TierConfig,
    TierOutageConfig,
)

__all__ = [
    "DIALECTS",
    "ENVIRONMENT",
    "AlertsConfig",
    "BudgetConfig",
    "Config",
    "EventsConfig",
    "JWTConfig",
    "LimitConfig",
    "LimitedConfig",
    "LongContextConfig",
    "ModelPriceConfig",
    "OfferConfig",
    "OutageConfig",
    "PricesConfig",
    "RefusalsConfig",
    "RouteConfig",
    "StoreConfig",
    "SubjectConfig",
    "TasksConfig",
    "TierConfig",
    "TierOutageConfig",
    "TokensConfig",
    "json_schema",
    "limits_of",
    "load",
    "load_route",
]
