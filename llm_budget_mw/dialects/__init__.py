"""The wire formats this package knows, by the name a route gives them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llm_budget_mw.dialects.anthropic_messages import AnthropicMessages
from llm_budget_mw.dialects.bedrock import Bedrock
from llm_budget_mw.dialects.bedrock_invoke import BedrockInvoke
from llm_budget_mw.dialects.cohere import Cohere
from llm_budget_mw.dialects.custom import Custom
from llm_budget_mw.dialects.gemini import Gemini
from llm_budget_mw.dialects.ollama import Ollama
from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.dialects.openai_completions import OpenAICompletions
from llm_budget_mw.dialects.openai_embeddings import OpenAIEmbeddings
from llm_budget_mw.dialects.openai_responses import OpenAIResponses
from llm_budget_mw.dialects.protocol import Dialect
from llm_budget_mw.errors import ConfigurationError

__all__ = ["DIALECTS", "dialect_for"]

_ALL: tuple[Dialect, ...] = (
    OpenAIChat(),
    OpenAIChat(name="openai_compatible", bound_field="max_tokens"),
    OpenAIResponses(),
    OpenAICompletions(),
    OpenAIEmbeddings(),
    AnthropicMessages(),
    Gemini(),
    Bedrock(),
    BedrockInvoke(),
    Cohere(),
    Ollama(),
    Custom(),
)

DIALECTS: Mapping[str, Dialect] = MappingProxyType({dialect.name: dialect for dialect in _ALL})
"""Every dialect; `openai_compatible` is for servers that obey `max_tokens` only."""


def dialect_for(name: str, *, cache_prompt: bool = False) -> Dialect:
    """Return the dialect of that name; raises `ConfigurationError` if there is none.

    `cache_prompt` is for `anthropic_messages`, and changes no other.
    """
    if cache_prompt and name == AnthropicMessages.name:
        return AnthropicMessages(cache_prompt=True)
    dialect = DIALECTS.get(name)
    if dialect is None:
        known = ", ".join(DIALECTS)
        raise ConfigurationError(f"dialect: there is none called {name!r}; use one of {known}.")
    return dialect
