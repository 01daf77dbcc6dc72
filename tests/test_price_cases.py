"""What real answers cost: usage as providers report it, priced by hand.

Every case has the published prices of November 2026 beside its tokens, in dollars per million;
the expected cost is worked out from these alone, in integers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from llm_budget_mw import decision
from llm_budget_mw.config.prices import PricesConfig
from llm_budget_mw.dialects import DIALECTS
from llm_budget_mw.engine import Ending, Engine, Outcome
from llm_budget_mw.policy import Policy
from llm_budget_mw.pricing import Prices
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.tokens.estimate import Estimator
from llm_budget_mw.types import Grant, ModelCall, Prompt, Usage
from tests.deployment import ALICE, NOON_MS, configured

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)
NANO_PER_DOLLAR = 1_000_000_000


class Tokens(NamedTuple):
    """So many tokens at so many dollars per million."""

    number: int
    usd_per_million: str


class Fee(NamedTuple):
    """So many searches or requests at so many dollars per thousand."""

    number: int
    usd_per_thousand: str


class Case(NamedTuple):
    """An answer, the model that was asked for, and what is to be paid."""

    dialect: str
    asked: str
    answer: dict[str, Any]
    bill: tuple[Tokens | Fee, ...]
    headers: Mapping[str, str] = {}


def nano_dollars(usd: str) -> int:
    """Return dollars with up to nine decimals as an integer, digit by digit."""
    whole, _, decimals = usd.partition(".")
    return int(whole) * NANO_PER_DOLLAR + int(decimals.ljust(9, "0"))


def expected_nano(case: Case) -> int:
    """Add up the bill; a fraction of a nano-dollar counts as a whole one."""
    millionths = 0
    for item in case.bill:
        if isinstance(item, Tokens):
            millionths += item.number * nano_dollars(item.usd_per_million)
        else:
            millionths += item.number * nano_dollars(item.usd_per_thousand) * 1_000
    return -(-millionths // 1_000_000)


def chat(
    model: str, prompt: int, completion: int, tier: str | None = None, **usage: Any
) -> dict[str, Any]:
    """Return an answer of OpenAI's chat, with details and totals as they come."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    total = {"total_tokens": prompt + completion}
    answer = {"object": "chat.completion", "model": model, "usage": {**counts, **total, **usage}}
    return answer | ({"service_tier": tier} if tier else {})


def cached(tokens: int, **more: int) -> dict[str, Any]:
    return {"prompt_tokens_details": {"cached_tokens": tokens, **more}}


def response(model: str, tokens_in: int, tokens_out: int, **fields: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        **fields.pop("usage", {}),
    }
    return {
        "object": "response",
        "status": "completed",
        "model": model,
        "output": [],
        "usage": usage,
        **fields,
    }


def message(model: str, plain: int, out: int, **usage: Any) -> dict[str, Any]:
    counts = {"input_tokens": plain, "output_tokens": out, **usage}
    return {"type": "message", "model": model, "content": [], "usage": counts}


def gemini(model: str, prompt: int, candidates: int, **fields: Any) -> dict[str, Any]:
    metadata = {"promptTokenCount": prompt, "candidatesTokenCount": candidates}
    queries = fields.pop("queries", [])
    candidate = {
        "content": {"role": "model", "parts": [{"text": "hi"}]},
        "finishReason": "STOP",
        "groundingMetadata": {"webSearchQueries": queries},
    }
    total = prompt + candidates + fields.get("thoughtsTokenCount", 0)
    total += fields.get("toolUsePromptTokenCount", 0)
    return {
        "candidates": [candidate],
        "modelVersion": model,
        "usageMetadata": {**metadata, "totalTokenCount": total, **fields},
    }


def converse(plain: int, out: int, read: int = 0, write: int = 0, **fields: Any) -> dict[str, Any]:
    usage = {"inputTokens": plain, "outputTokens": out, "totalTokens": plain + out + read + write}
    usage |= {"cacheReadInputTokens": read, "cacheWriteInputTokens": write}
    details = fields.pop("cacheDetails", None)
    usage |= {"cacheDetails": details} if details else {}
    return {"output": {"message": {}}, "stopReason": "end_turn", "usage": usage, **fields}


SPLIT = {"ephemeral_5m_input_tokens": 88, "ephemeral_1h_input_tokens": 100}
SEARCHED = {"type": "web_search_call", "action": {"type": "search", "query": "x"}}
OPENED = {"type": "web_search_call", "action": {"type": "open_page", "url": "x"}}
SONNET = "claude-sonnet-4-5-20250929"
ON_BEDROCK = "anthropic.claude-sonnet-4-5-20250929-v1:0"
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us." + ON_BEDROCK

CASES = {
    # OpenAI Chat Completions
    "chat": Case(
        "openai_chat",
        "gpt-4o",
        chat("gpt-4o", 1_000, 500),
        (Tokens(1_000, "2.50"), Tokens(500, "10")),
    ),
    "chat cached": Case(
        "openai_chat",
        "gpt-4o",
        chat("gpt-4o-2024-08-06", 1_000, 500, **cached(600)),
        (Tokens(400, "2.50"), Tokens(600, "1.25"), Tokens(500, "10")),
    ),
    "chat a fraction of a nano-dollar": Case(
        "openai_chat",
        "gpt-5-nano",
        chat("gpt-5-nano", 1_001, 1, **cached(1)),
        (Tokens(1_000, "0.05"), Tokens(1, "0.005"), Tokens(1, "0.40")),
    ),
    "chat of a date to come": Case(
        "openai_chat",
        "gpt-4o-mini",
        chat("gpt-4o-mini-2031-01-01", 2_000, 100),
        (Tokens(2_000, "0.15"), Tokens(100, "0.60")),
    ),
    "chat 4.1": Case(
        "openai_chat",
        "gpt-4.1",
        chat("gpt-4.1-2025-04-14", 4_096, 64, "default", **cached(4_000)),
        (Tokens(96, "2"), Tokens(4_000, "0.50"), Tokens(64, "8")),
    ),
    "chat reasoning is output": Case(
        "openai_chat",
        "gpt-5",
        chat("gpt-5", 1_200, 350, completion_tokens_details={"reasoning_tokens": 300}),
        (Tokens(1_200, "1.25"), Tokens(350, "10")),
    ),
    "chat flex": Case(
        "openai_chat",
        "gpt-5",
        chat("gpt-5", 1_000, 200, "flex", **cached(512)),
        (Tokens(488, "0.625"), Tokens(512, "0.0625"), Tokens(200, "5")),
    ),
    "chat priority": Case(
        "openai_chat",
        "gpt-5",
        chat("gpt-5", 1_000, 200, "priority", **cached(512)),
        (Tokens(488, "2.50"), Tokens(512, "0.25"), Tokens(200, "20")),
    ),
    "chat priority asked and not given": Case(
        "openai_chat",
        "gpt-5",
        chat("gpt-5", 1_000, 200, "default"),
        (Tokens(1_000, "1.25"), Tokens(200, "10")),
    ),
    "chat scale is paid in advance": Case(
        "openai_chat",
        "gpt-4o",
        chat("gpt-4o", 100, 10, "scale"),
        (Tokens(100, "2.50"), Tokens(10, "10")),
    ),
    "chat flex of o3": Case(
        "openai_chat",
        "o3",
        chat("o3", 300, 30, "flex"),
        (Tokens(300, "1"), Tokens(30, "4")),
    ),
    "chat ultrafast at six times": Case(
        "openai_chat",
        "gpt-5.5",
        chat("gpt-5.5", 1_000, 100, "ultrafast"),
        (Tokens(1_000, "30"), Tokens(100, "180")),
    ),
    "chat in a tier nobody knows, as priority": Case(
        "openai_chat",
        "gpt-4o",
        chat("gpt-4o", 1_000, 100, "hyperfast"),
        (Tokens(1_000, "4.25"), Tokens(100, "17")),
    ),
    "chat up to the threshold": Case(
        "openai_chat",
        "gpt-5.5",
        chat("gpt-5.5", 272_000, 10, **cached(100_000)),
        (Tokens(172_000, "5"), Tokens(100_000, "0.50"), Tokens(10, "30")),
    ),
    "chat above the threshold": Case(
        "openai_chat",
        "gpt-5.5",
        chat("gpt-5.5", 272_001, 10, **cached(100_000)),
        (Tokens(172_001, "10"), Tokens(100_000, "1"), Tokens(10, "45")),
    ),
    "chat cache writes": Case(
        "openai_chat",
        "gpt-5.6",
        chat("gpt-5.6", 5_000, 20, **cached(1_000, cache_write_tokens=3_000)),
        (Tokens(1_000, "4"), Tokens(3_000, "5"), Tokens(1_000, "0.40"), Tokens(20, "20")),
    ),
    "chat sound in and out": Case(
        "openai_chat",
        "gpt-audio",
        chat(
            "gpt-audio",
            200,
            100,
            prompt_tokens_details={"audio_tokens": 150},
            completion_tokens_details={"audio_tokens": 80},
        ),
        (Tokens(50, "2.50"), Tokens(150, "32"), Tokens(20, "10"), Tokens(80, "64")),
    ),
    # Others that speak it
    "deepseek at its hour": Case(
        "openai_compatible",
        "deepseek-chat",
        chat("deepseek-chat", 1_000, 50, prompt_cache_hit_tokens=900, prompt_cache_miss_tokens=100),
        (Tokens(100, "0.27"), Tokens(900, "0.07"), Tokens(50, "1.10")),
    ),
    "groq": Case(
        "openai_compatible",
        "llama-3.3-70b-versatile",
        chat("llama-3.3-70b-versatile", 700, 70, "on_demand", total_time=0.1),
        (Tokens(700, "0.59"), Tokens(70, "0.79")),
    ),
    "xai counts reasoning in the total only": Case(
        "openai_compatible",
        "grok-4",
        chat("grok-4", 100, 20) | {"usage": {"prompt_tokens": 100, "total_tokens": 400}},
        (Tokens(100, "3"), Tokens(300, "15")),
    ),
    "xai above the threshold": Case(
        "openai_compatible",
        "grok-4.20",
        chat("grok-4.20", 200_000, 10, **cached(50_000)),
        (Tokens(150_000, "2.50"), Tokens(50_000, "0.40"), Tokens(10, "5")),
    ),
    "mistral cached without a price of its own": Case(
        "openai_compatible",
        "open-mistral-7b",
        chat("open-mistral-7b", 500, 40, num_cached_tokens=256),
        (Tokens(500, "0.25"), Tokens(40, "0.25")),
    ),
    "perplexity and its fee": Case(
        "openai_compatible",
        "sonar",
        chat("sonar", 30, 300),
        (Tokens(330, "1"), Fee(1, "12")),
    ),
    "azure, under the name of a deployment": Case(
        "openai_chat",
        "gpt-4o",
        chat("my-deployment", 100, 10),
        (Tokens(100, "2.50"), Tokens(10, "10")),
    ),
    # OpenAI Responses
    "responses": Case(
        "openai_responses",
        "gpt-5",
        response(
            "gpt-5-2025-08-07",
            328,
            52,
            usage={
                "input_tokens_details": {"cached_tokens": 128},
                "output_tokens_details": {"reasoning_tokens": 40},
            },
        ),
        (Tokens(200, "1.25"), Tokens(128, "0.125"), Tokens(52, "10")),
    ),
    "responses priority": Case(
        "openai_responses",
        "gpt-5-mini",
        response("gpt-5-mini", 1_000, 100, service_tier="priority"),
        (Tokens(1_000, "0.45"), Tokens(100, "3.60")),
    ),
    "responses two searches, one page": Case(
        "openai_responses",
        "gpt-5",
        response("gpt-5", 9_000, 400, output=[SEARCHED, OPENED, SEARCHED]),
        (Tokens(9_000, "1.25"), Tokens(400, "10"), Fee(2, "10")),
    ),
    "responses searches as billed": Case(
        "openai_responses",
        "gpt-4.1",
        response("gpt-4.1", 100, 10, tool_usage={"web_search": {"num_requests": 3}}),
        (Tokens(100, "2"), Tokens(10, "8"), Fee(3, "10")),
    ),
    "responses searches without a listed price, at the dearest": Case(
        "openai_responses",
        "o3-mini",
        response("o3-mini", 100, 10, output=[SEARCHED]),
        (Tokens(100, "1.10"), Tokens(10, "4.40"), Fee(1, "35")),
    ),
    "responses images at their own model's price": Case(
        "openai_responses",
        "gpt-5",
        response(
            "gpt-5",
            500,
            50,
            tools=[{"type": "image_generation", "model": "gpt-image-1"}],
            tool_usage={"image_gen": {"input_tokens": 60, "output_tokens": 1_056}},
        ),
        (Tokens(500, "1.25"), Tokens(50, "10"), Tokens(60, "10"), Tokens(1_056, "40")),
    ),
    "responses images of the tool's own model, cached ones too": Case(
        "openai_responses",
        "gpt-5",
        response(
            "gpt-5",
            500,
            50,
            tool_usage={
                "image_gen": {"input_tokens": 60, "output_tokens": 1_056, "cached_tokens": 20}
            },
        ),
        # At the dearest of its family, as long as no list has it.
        (
            Tokens(500, "1.25"),
            Tokens(50, "10"),
            Tokens(40, "10"),
            Tokens(20, "2.50"),
            Tokens(1_056, "40"),
        ),
    ),
    "chat with a model that searches": Case(
        "openai_chat",
        "gpt-4o-search-preview",
        chat("gpt-4o-search-preview-2025-03-11", 20, 200),
        (Tokens(20, "2.50"), Tokens(200, "10"), Fee(1, "35")),
    ),
    "responses writes kept for twelve hours": Case(
        "openai_responses",
        "gpt-5.6",
        response(
            "gpt-5.6",
            4_000,
            10,
            usage={
                "input_tokens_details": {
                    "cached_tokens": 0,
                    "cache_write_tokens": 3_000,
                    "cache_write_tokens_details": {"ttl_12h_tokens": 2_000},
                }
            },
        ),
        (Tokens(1_000, "4"), Tokens(1_000, "5"), Tokens(2_000, "10"), Tokens(10, "20")),
    ),
    "responses long context, all classes": Case(
        "openai_responses",
        "gpt-5.6",
        response(
            "gpt-5.6",
            300_000,
            100,
            usage={
                "input_tokens_details": {"cached_tokens": 200_000, "cache_write_tokens": 50_000}
            },
        ),
        (Tokens(50_000, "8"), Tokens(200_000, "0.80"), Tokens(50_000, "10"), Tokens(100, "30")),
    ),
    "responses counting tokens is free": Case(
        "openai_responses",
        "gpt-5",
        {"object": "response.input_tokens", "input_tokens": 5_000},
        (),
    ),
    # Completions and embeddings
    "completions": Case(
        "openai_completions",
        "gpt-3.5-turbo-instruct",
        chat("gpt-3.5-turbo-instruct:20230824-v2", 5, 16),
        (Tokens(5, "1.50"), Tokens(16, "2")),
    ),
    "completions of a base model": Case(
        "openai_completions",
        "davinci-002",
        chat("davinci-002", 50, 160),
        (Tokens(50, "2"), Tokens(160, "2")),
    ),
    "embeddings": Case(
        "openai_embeddings",
        "text-embedding-3-small",
        {
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 12_345, "total_tokens": 12_345},
        },
        (Tokens(12_345, "0.02"),),
    ),
    "embeddings large": Case(
        "openai_embeddings",
        "text-embedding-3-large",
        {"model": "text-embedding-3-large", "usage": {"prompt_tokens": 8, "total_tokens": 8}},
        (Tokens(8, "0.13"),),
    ),
    "embeddings of one who reports the total alone": Case(
        "openai_embeddings",
        "voyage-3.5",
        {"model": "voyage-3.5", "usage": {"total_tokens": 77}},
        (Tokens(77, "0.06"),),
    ),
    # Anthropic Messages
    "messages": Case(
        "anthropic_messages",
        "claude-sonnet-4-5",
        message(SONNET, 1_000, 200, service_tier="standard"),
        (Tokens(1_000, "3"), Tokens(200, "15")),
    ),
    "messages all classes of the cache": Case(
        "anthropic_messages",
        "claude-sonnet-4-5",
        message(
            SONNET,
            21,
            393,
            cache_creation_input_tokens=188,
            cache_read_input_tokens=2_048,
            cache_creation=SPLIT,
            output_tokens_details={"thinking_tokens": 200},
            inference_geo="global",
        ),
        (
            Tokens(21, "3"),
            Tokens(2_048, "0.30"),
            Tokens(88, "3.75"),
            Tokens(100, "6"),
            Tokens(393, "15"),
        ),
    ),
    "messages writes that are not split are short": Case(
        "anthropic_messages",
        "claude-haiku-4-5",
        message("claude-haiku-4-5-20251001", 10, 5, cache_creation_input_tokens=5_000),
        (Tokens(10, "1"), Tokens(5_000, "1.25"), Tokens(5, "5")),
    ),
    "messages up to the threshold": Case(
        "anthropic_messages",
        "claude-sonnet-4-5",
        message(SONNET, 100_000, 10, cache_read_input_tokens=100_000),
        (Tokens(100_000, "3"), Tokens(100_000, "0.30"), Tokens(10, "15")),
    ),
    "messages above the threshold, cache included": Case(
        "anthropic_messages",
        "claude-sonnet-4-5",
        message(
            SONNET,
            100_001,
            10,
            cache_read_input_tokens=90_000,
            cache_creation_input_tokens=10_000,
            cache_creation={"ephemeral_1h_input_tokens": 4_000, "ephemeral_5m_input_tokens": 6_000},
        ),
        (
            Tokens(100_001, "6"),
            Tokens(90_000, "0.60"),
            Tokens(6_000, "7.50"),
            Tokens(4_000, "12"),
            Tokens(10, "22.50"),
        ),
    ),
    "messages a million tokens at a flat price": Case(
        "anthropic_messages",
        "claude-opus-4-7",
        message("claude-opus-4-7", 900_000, 1_000),
        (Tokens(900_000, "5"), Tokens(1_000, "25")),
    ),
    "messages searches": Case(
        "anthropic_messages",
        "claude-sonnet-4-5",
        message(SONNET, 8_000, 300, server_tool_use={"web_search_requests": 2}),
        (Tokens(8_000, "3"), Tokens(300, "15"), Fee(2, "10")),
    ),
    "messages batch": Case(
        "anthropic_messages",
        "claude-opus-4-7",
        message("claude-opus-4-7", 1_000, 100, cache_read_input_tokens=500, service_tier="batch"),
        (Tokens(1_000, "2.50"), Tokens(500, "0.25"), Tokens(100, "12.50")),
    ),
    "messages fast": Case(
        "anthropic_messages",
        "claude-opus-4-8",
        message("claude-opus-4-8", 1_000, 100, cache_creation_input_tokens=40, speed="fast"),
        (Tokens(1_000, "10"), Tokens(40, "12.50"), Tokens(100, "50")),
    ),
    "messages fast without a listed price, at six times": Case(
        "anthropic_messages",
        "claude-opus-4-6",
        message("claude-opus-4-6", 1_000, 100, speed="fast"),
        (Tokens(1_000, "30"), Tokens(100, "150")),
    ),
    "messages bound to a region": Case(
        "anthropic_messages",
        "claude-opus-4-8",
        message(
            "claude-opus-4-8",
            1_000,
            100,
            cache_read_input_tokens=200,
            inference_geo="us",
            server_tool_use={"web_search_requests": 1},
        ),
        (Tokens(1_000, "5.50"), Tokens(200, "0.55"), Tokens(100, "27.50"), Fee(1, "10")),
    ),
    "messages fast and bound to a region": Case(
        "anthropic_messages",
        "claude-opus-4-8",
        message("claude-opus-4-8", 1_000, 100, inference_geo="us", speed="fast"),
        (Tokens(1_000, "11"), Tokens(100, "55")),
    ),
    "messages priority is paid in advance": Case(
        "anthropic_messages",
        "claude-sonnet-4-5",
        message(SONNET, 1_000, 100, service_tier="priority"),
        (Tokens(1_000, "3"), Tokens(100, "15")),
    ),
    "messages compaction and advisor": Case(
        "anthropic_messages",
        "claude-haiku-4-5",
        message(
            "claude-haiku-4-5",
            100,
            10,
            iterations=[
                {"type": "message", "input_tokens": 100, "output_tokens": 10},
                {"type": "compaction", "input_tokens": 5_000, "output_tokens": 300},
                {
                    "type": "advisor_message",
                    "model": "claude-opus-4-7",
                    "input_tokens": 700,
                    "output_tokens": 70,
                },
            ],
        ),
        (
            Tokens(5_100, "1"),
            Tokens(310, "5"),
            Tokens(700, "5"),
            Tokens(70, "25"),
        ),
    ),
    "messages compaction of a fast call": Case(
        "anthropic_messages",
        "claude-opus-4-8",
        message(
            "claude-opus-4-8",
            100,
            10,
            speed="fast",
            iterations=[
                {"type": "compaction", "input_tokens": 5_000, "output_tokens": 300},
                {
                    "type": "advisor_message",
                    "model": "claude-opus-4-7",
                    "input_tokens": 700,
                    "output_tokens": 70,
                },
            ],
        ),
        (Tokens(5_100, "10"), Tokens(310, "50"), Tokens(700, "5"), Tokens(70, "25")),
    ),
    "messages on Vertex": Case(
        "anthropic_messages",
        "claude-3-5-haiku@20241022",
        message("claude-3-5-haiku-20241022", 1_000, 100, cache_read_input_tokens=300),
        (Tokens(1_000, "0.80"), Tokens(300, "0.08"), Tokens(100, "4")),
    ),
    # Gemini
    "gemini up to the threshold": Case(
        "gemini",
        "gemini-2.5-pro",
        gemini("gemini-2.5-pro", 200_000, 100, thoughtsTokenCount=400),
        (Tokens(200_000, "1.25"), Tokens(500, "10")),
    ),
    "gemini above the threshold": Case(
        "gemini",
        "gemini-2.5-pro",
        gemini("gemini-2.5-pro", 200_001, 100, cachedContentTokenCount=100_000),
        (Tokens(100_001, "2.50"), Tokens(100_000, "0.25"), Tokens(100, "15")),
    ),
    "gemini sound": Case(
        "gemini",
        "gemini-2.5-flash",
        gemini(
            "gemini-2.5-flash",
            350,
            12,
            thoughtsTokenCount=62,
            promptTokensDetails=[
                {"modality": "TEXT", "tokenCount": 50},
                {"modality": "AUDIO", "tokenCount": 300},
            ],
        ),
        (Tokens(50, "0.30"), Tokens(300, "1"), Tokens(74, "2.50")),
    ),
    "gemini images drawn, all output at their price": Case(
        "gemini",
        "gemini-2.5-flash-image",
        gemini(
            "gemini-2.5-flash-image",
            20,
            1_300,
            candidatesTokensDetails=[{"modality": "IMAGE", "tokenCount": 1_290}],
        ),
        (Tokens(20, "0.30"), Tokens(1_300, "30")),
    ),
    "gemini 2 grounding, once a request": Case(
        "gemini",
        "gemini-2.5-flash",
        gemini("gemini-2.5-flash", 100, 10, queries=["a", "b"]),
        (Tokens(100, "0.30"), Tokens(10, "2.50"), Fee(1, "35")),
    ),
    "gemini 3 grounding, each search": Case(
        "gemini",
        "gemini-3-pro-preview",
        gemini("gemini-3-pro-preview", 100, 10, queries=["a", "b", "a"]),
        (Tokens(100, "2"), Tokens(10, "12"), Fee(2, "14")),
    ),
    "gemini reads what tools found": Case(
        "gemini",
        "models/gemini-2.5-flash",
        gemini("gemini-2.5-flash", 100, 10, toolUsePromptTokenCount=2_000),
        (Tokens(2_100, "0.30"), Tokens(10, "2.50")),
    ),
    "gemini priority without a listed price": Case(
        "gemini",
        "gemini-2.5-flash",
        gemini("gemini-2.5-flash", 1_000, 100, serviceTier="priority"),
        (Tokens(1_000, "0.54"), Tokens(100, "4.50")),
    ),
    "gemini priority on Vertex": Case(
        "gemini",
        "publishers/google/models/gemini-2.5-pro",
        gemini("gemini-2.5-pro", 1_000, 100, trafficType="ON_DEMAND_PRIORITY"),
        (Tokens(1_000, "2.25"), Tokens(100, "18")),
    ),
    "gemini flex without a listed price, as standard": Case(
        "gemini",
        "gemini-2.5-pro",
        gemini("gemini-2.5-pro", 1_000, 100, serviceTier="flex"),
        (Tokens(1_000, "1.25"), Tokens(100, "10")),
    ),
    "gemini paid in advance": Case(
        "gemini",
        "gemini-2.5-pro",
        gemini("gemini-2.5-pro", 1_000, 100, trafficType="PROVISIONED_THROUGHPUT"),
        (Tokens(1_000, "1.25"), Tokens(100, "10")),
    ),
    # Bedrock
    "converse in a region": Case(
        "bedrock",
        "us." + ON_BEDROCK,
        converse(
            433,
            16,
            2_752,
            900,
            cacheDetails=[
                {"ttl": "5m", "inputTokens": 500},
                {"ttl": "1h", "inputTokens": 400},
            ],
        ),
        (
            Tokens(433, "3.30"),
            Tokens(2_752, "0.33"),
            Tokens(500, "4.125"),
            Tokens(400, "6.60"),
            Tokens(16, "16.50"),
        ),
    ),
    "converse anywhere": Case(
        "bedrock",
        "global." + ON_BEDROCK,
        converse(433, 16, 2_752),
        (Tokens(433, "3"), Tokens(2_752, "0.30"), Tokens(16, "15")),
    ),
    "converse through a profile": Case(
        "bedrock",
        PROFILE,
        converse(1_000, 10),
        (Tokens(1_000, "3.30"), Tokens(10, "16.50")),
    ),
    "converse nova": Case(
        "bedrock",
        "eu.amazon.nova-lite-v1:0",
        converse(100, 50, 1_000),
        (Tokens(100, "0.06"), Tokens(1_000, "0.015"), Tokens(50, "0.24")),
    ),
    "converse priority": Case(
        "bedrock",
        "amazon.nova-pro-v1:0",
        converse(1_000, 100, serviceTier={"type": "priority"}),
        (Tokens(1_000, "1.40"), Tokens(100, "5.60")),
    ),
    "converse flex without a listed price, as standard": Case(
        "bedrock",
        "amazon.nova-pro-v1:0",
        converse(1_000, 100, serviceTier={"type": "flex"}),
        (Tokens(1_000, "0.80"), Tokens(100, "3.20")),
    ),
    "converse on faster hardware": Case(
        "bedrock",
        "amazon.nova-pro-v1:0",
        converse(1_000, 100, performanceConfig={"latency": "optimized"}),
        (Tokens(1_000, "1"), Tokens(100, "4")),
    ),
    "invoke claude": Case(
        "bedrock_invoke",
        "us." + ON_BEDROCK,
        message(SONNET, 21, 39, cache_read_input_tokens=1_000) | {"model": None},
        (Tokens(21, "3.30"), Tokens(1_000, "0.33"), Tokens(39, "16.50")),
    ),
    "invoke llama": Case(
        "bedrock_invoke",
        "us.meta.llama3-3-70b-instruct-v1:0",
        {"generation": "hi", "prompt_token_count": 25, "generation_token_count": 140},
        (Tokens(165, "0.72"),),
    ),
    "invoke, counted in headers, with a tier": Case(
        "bedrock_invoke",
        "amazon.nova-pro-v1:0",
        {"who": "knows"},
        (Tokens(30, "1.40"), Tokens(7, "5.60")),
        {
            "x-amzn-bedrock-input-token-count": "30",
            "x-amzn-bedrock-output-token-count": "7",
            "x-amzn-bedrock-service-tier": "priority",
        },
    ),
    # Cohere
    "cohere pays what is billed": Case(
        "cohere",
        "command-a-03-2025",
        {
            "usage": {
                "billed_units": {"input_tokens": 8.0, "output_tokens": 28.0},
                "tokens": {"input_tokens": 503.0, "output_tokens": 30.0},
                "cached_tokens": 400,
            }
        },
        (Tokens(8, "2.50"), Tokens(28, "10")),
    ),
    "cohere without a bill": Case(
        "cohere",
        "command-r7b-12-2024",
        {"usage": {"tokens": {"input_tokens": 503, "output_tokens": 33}}},
        (Tokens(503, "0.0375"), Tokens(33, "0.15")),
    ),
    # Ollama
    "ollama, a hosted model": Case(
        "ollama",
        "gpt-5-nano",
        {"model": "gpt-5-nano", "done": True, "prompt_eval_count": 26, "eval_count": 298},
        (Tokens(26, "0.05"), Tokens(298, "0.40")),
    ),
    "ollama loads a model for nothing": Case(
        "ollama",
        "gpt-5-nano",
        {"model": "gpt-5-nano", "done": True, "done_reason": "load"},
        (),
    ),
}

PRICES = Prices(PricesConfig(), at=AT)


def usage_of(case: Case) -> Usage:
    """Return the usage as the dialect reads it."""
    usage = DIALECTS[case.dialect].read_usage(json.dumps(case.answer).encode(), case.headers)
    assert usage is not None
    return usage


@pytest.mark.parametrize("name", CASES)
def test_a_real_answer_costs_what_its_prices_come_to(name: str) -> None:
    """From the provider's own JSON to nano-dollars, exactly."""
    case = CASES[name]

    assert PRICES.cost(usage_of(case), case.asked) == expected_nano(case)


def test_a_stream_costs_as_the_answer_that_is_sent_at_once() -> None:
    """Region, cache and searches stand in its first event, output in its last."""
    case = CASES["messages bound to a region"]
    report = case.answer["usage"]
    first = {"type": "message_start", "message": {**case.answer, "usage": report}}
    last = {"type": "message_delta", "usage": {"output_tokens": report["output_tokens"]}}
    call = ModelCall(case.asked, Prompt(), 10, stream=True)
    reader = DIALECTS[case.dialect].open_stream(call, {})

    for event in (first, last, {"type": "message_stop"}):
        reader.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    reader.close()

    assert reader.usage
    assert PRICES.cost(reader.usage, case.asked) == expected_nano(case)


def test_every_dialect_has_cases() -> None:
    """The table leaves out no wire format that reports usage."""
    assert {case.dialect for case in CASES.values()} == set(DIALECTS) - {"custom"}
    assert len(CASES) >= 60


@pytest.mark.parametrize(
    ("dialect", "asked", "answer"),
    [
        ("openai_chat", "ft:gpt-4o:acme::x", chat("ft:gpt-4o:acme::x", 10, 5)),
        ("openai_compatible", "our-llama", chat("our-llama", 10, 5)),
        # Listed with the price of its text alone.
        ("openai_chat", "gpt-4o-audio-preview", chat("gpt-4o-audio-preview-2024-12-17", 10, 5)),
        ("ollama", "llama3.2", {"model": "llama3.2", "prompt_eval_count": 1, "eval_count": 1}),
        ("bedrock", "us.acme.model-v1:0", converse(10, 5)),
    ],
)
def test_a_model_without_a_price_has_no_cost(
    dialect: str, asked: str, answer: dict[str, Any]
) -> None:
    """Unknown is not zero."""
    assert PRICES.cost(usage_of(Case(dialect, asked, answer, ())), asked) is None


OWN = {
    "models": {
        "gpt-4o": {"input": "1.10", "output": "4.40"},
        "our-llama": {
            "input": "0.20",
            "output": "0.60",
            "cache_read": "0.05",
            "reasoning": "0.90",
            "long_context": {"above_tokens": 1_000, "input": "0.40", "output": "0.90"},
        },
        "searcher": {"input": 1, "output": 2, "web_search": "0.004"},
    },
    "aliases": {"prod-chat": "gpt-5", "small-chat": "our-llama"},
    "unknown": {"input": 15, "output": 75},
}


@pytest.mark.parametrize(
    "case",
    [
        Case(
            "openai_chat",
            "gpt-4o",
            chat("gpt-4o-2024-08-06", 1_000, 100, "priority", **cached(500)),
            (Tokens(1_000, "1.10"), Tokens(100, "4.40")),
        ),
        Case(
            "openai_chat",
            "prod-chat",
            chat("prod-chat", 1_000, 100, "priority"),
            (Tokens(1_000, "2.50"), Tokens(100, "20")),
        ),
        Case(
            "openai_compatible",
            "small-chat",
            chat("small-chat", 1_000, 50, **cached(600)),
            (Tokens(400, "0.20"), Tokens(600, "0.05"), Tokens(50, "0.60")),
        ),
        Case(
            "openai_compatible",
            "our-llama",
            chat("our-llama", 900, 50, completion_tokens_details={"reasoning_tokens": 30}),
            (Tokens(900, "0.20"), Tokens(20, "0.60"), Tokens(30, "0.90")),
        ),
        # Above the threshold reasoning keeps its proportion to output: 0.90 * 0.90 / 0.60.
        Case(
            "openai_compatible",
            "our-llama",
            chat("our-llama", 1_001, 50, completion_tokens_details={"reasoning_tokens": 30}),
            (Tokens(1_001, "0.40"), Tokens(20, "0.90"), Tokens(30, "1.35")),
        ),
        Case(
            "anthropic_messages",
            "searcher",
            message("searcher", 10, 5, server_tool_use={"web_search_requests": 3}),
            (Tokens(10, "1"), Tokens(5, "2"), Fee(3, "4")),
        ),
        Case(
            "ollama",
            "llama3.2",
            {"model": "llama3.2", "prompt_eval_count": 7, "eval_count": 3},
            (Tokens(7, "15"), Tokens(3, "75")),
        ),
        Case(
            "anthropic_messages",
            "claude-opus-4-7",
            message("claude-opus-4-7", 7, 3),
            (Tokens(7, "5"), Tokens(3, "25")),
        ),
    ],
    ids=[
        "a dated name in another tier",
        "an alias of a listed model",
        "an alias of a configured model",
        "reasoning",
        "long context",
        "searches",
        "an unknown model",
        "a model that is not overridden",
    ],
)
def test_what_the_configuration_says_is_the_price(case: Case) -> None:
    """Overrides hold for dated names and every tier; the rest is the catalogue's."""
    prices = Prices(PricesConfig.model_validate(OWN), at=AT)

    assert prices.cost(usage_of(case), case.asked) == expected_nano(case)


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("chat", 0),
        ("chat cached", 600 * 1_250),
        ("messages writes that are not split are short", -5_000 * 250),
        ("messages all classes of the cache", 2_048 * 2_700 - 88 * 750 - 100 * 3_000),
        (
            "messages above the threshold, cache included",
            90_000 * 5_400 - 6_000 * 1_500 - 4_000 * 6_000,
        ),
        ("messages bound to a region", 200 * 4_950),
        ("gemini above the threshold", 100_000 * 2_250),
        ("converse in a region", 2_752 * 2_970 - 500 * 825 - 400 * 3_300),
        ("responses images at their own model's price", 0),
    ],
)
def test_an_answer_is_settled_at_its_price_with_what_the_cache_saved(name: str, saved: int) -> None:
    """The settlement has the worked-out cost, and in nano-dollars a token what caching changed."""
    case = CASES[name]
    config = configured({"budget": "$900/day"}, prices={"catalogue": True})
    engine = Engine(Policy(config, PRICES), PRICES, Estimator(config.tokens, None), lease_ms=60_000)
    call = ModelCall(case.asked, Prompt(("hello",)), 10)
    plan = engine.plan(ALICE, call)
    grant = decision.decide(plan, MemoryStore(lambda: NOON_MS).admit(plan))
    assert isinstance(grant, Grant)

    done = engine.settle(grant, Outcome(Ending.COMPLETE, usage_of(case)), call)

    assert done.charges.cost_nano == expected_nano(case)
    assert done.cache_saved_nano == saved
