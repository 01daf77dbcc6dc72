"""What calls cost, and how closely their tokens are counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llm_budget_mw.config.section import Count, Flag, Name, Seconds, Section, Share, Size, Usd


class LongContextConfig(Section):
    """Prices of a call whose input is long; they hold for the whole call."""

    above_tokens: Count
    """The call costs these prices if its input has more tokens than this."""
    input: Usd
    output: Usd
    cache_read: Usd | None = None
    """None: the price of input."""


class ModelPriceConfig(Section):
    """Prices of one model in USD per million tokens; what is None costs as its plain kind does."""

    input: Usd
    output: Usd
    cache_read: Usd | None = None
    cache_write: Usd | None = None
    cache_write_1h: Usd | None = None
    reasoning: Usd | None = None
    input_audio: Usd | None = None
    output_audio: Usd | None = None
    web_search: Usd | None = None
    """USD for one search."""
    long_context: LongContextConfig | None = None


def _written_as(value: Any) -> str:
    return "table" if isinstance(value, Mapping | ModelPriceConfig) else "word"


class PricesConfig(Section):
    """Where prices come from: the models named here, then the catalogue."""

    models: dict[Name, ModelPriceConfig] = Field(default_factory=dict)
    """Model name to its prices; stronger than the catalogue."""
    unknown: Annotated[
        Annotated[Literal["refuse", "tokens-only"], Tag("word")]
        | Annotated[ModelPriceConfig, Tag("table")],
        Discriminator(_written_as),
    ] = "refuse"
    """A model without a price: refuse the call, count its tokens but no money, or cost this."""
    catalogue: Flag = True
    """Whether to ask the price list of the genai-prices package."""
    aliases: dict[Name, Name] = Field(default_factory=dict)
    """A name in requests (a deployment, a fine-tuned model) to the model whose prices it has."""
    reference_model: Name | None = None
    """The model whose input tokens `base_tokens` are; budgets in base tokens need it."""


class TokensConfig(Section):
    """How the input of a call is measured before the call."""

    exact: Flag = True
    """Whether to run a tokenizer where the cheap upper bound could change the decision."""
    share: Share = 0.25
    """Tokenize if the cheap bound is more than this part of what the call would hold."""
    max_exact_bytes: Size = 262_144
    """Input is tokenized up to here; the rest counts a token for each byte."""
    offload_bytes: Size = 16_384
    """Longer input is tokenized in a thread, away from the event loop."""
    download: Flag = False
    """Whether the tokenizer may fetch a vocabulary that is not on this machine."""
    download_timeout_s: Seconds = 10.0
