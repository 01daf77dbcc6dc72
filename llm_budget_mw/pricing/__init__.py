"""A model and a usage to integer nano-dollars."""

from llm_budget_mw.pricing.price import LongContext, ModelPrice, PerClass
from llm_budget_mw.pricing.prices import Prices

__all__ = ["LongContext", "ModelPrice", "PerClass", "Prices"]
