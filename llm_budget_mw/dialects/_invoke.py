"""What InvokeModel reports: each model in its own words, and Bedrock around them."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from llm_budget_mw.dialects import _anthropic, _bedrock, _openai
from llm_budget_mw.dialects._eventstream import read_message
from llm_budget_mw.dialects._json import count, first_count, items, label, look_at, table
from llm_budget_mw.dialects._stream import Transcript
from llm_budget_mw.types import Usage

METRICS = "amazon-bedrock-invocationMetrics"
"""What Bedrock adds to the last chunk of a stream, of whatever model."""
_METRICS_KEY = METRICS.encode()
_PREFIX = "x-amzn-bedrock-"
_COUNT_HEADERS = {
    "inputTokens": f"{_PREFIX}input-token-count",
    "outputTokens": f"{_PREFIX}output-token-count",
    "cacheReadInputTokens": f"{_PREFIX}cache-read-input-token-count",
    "cacheWriteInputTokens": f"{_PREFIX}cache-write-input-token-count",
}
_DIGITS = re.compile("[0-9]{1,16}")

_PAYLOAD = re.compile(rb'"bytes":\s*"([A-Za-z0-9+/=]*)"').search
_NOVA_TEXT = re.compile(
    rb'\{"contentBlockDelta":\{"delta":\{"text":"([ !#-\[\]-~]*)"\}'
    rb',"contentBlockIndex":(?:0|[1-9][0-9]?)\}\}'
).fullmatch
"""All of a chunk whose text JSON writes as it is: nearly every one of a stream."""
_CHUNK = "chunk"
_DELTA = b'"delta"'


def read_answer(body: bytes, headers: Mapping[str, str]) -> Usage | None:
    """Read the usage of a whole answer; what its body does not say, its headers may."""
    usage = _filled(_read_body(look_at(body)), _read_headers(headers))
    return _served(usage, read_tier(headers))


def read_tier(headers: Mapping[str, str]) -> str | None:
    """Return the service tier of a request or an answer with these headers."""
    latency = headers.get(f"{_PREFIX}performanceconfig-latency")
    return _bedrock.tier_of(latency, headers.get(f"{_PREFIX}service-tier"))


def _read_headers(headers: Mapping[str, str]) -> Usage | None:
    found = {name: headers.get(header, "") for name, header in _COUNT_HEADERS.items()}
    return _bedrock.read_counts(
        {name: int(value) for name, value in found.items() if _DIGITS.fullmatch(value)}
    )


def _read_body(answer: dict[str, Any]) -> Usage | None:
    """Read the body of any family: their names differ, so none is taken for another's."""
    return (
        _anthropic.read_usage(table(answer.get("usage")), label(answer.get("model")))
        or _openai.read_usage(answer)
        or _bedrock.read_usage(answer)
        or _read_counts(answer)
    )


def _read_counts(answer: dict[str, Any]) -> Usage | None:
    """Read what Titan and Llama count, at the top of an answer or of a chunk."""
    tokens_in = first_count(answer, "inputTextTokenCount", "prompt_token_count")
    tokens_out = first_count(answer, "totalOutputTextTokenCount", "generation_token_count")
    if tokens_out is None:
        results = [
            count(table(result).get("tokenCount")) for result in items(answer.get("results"))
        ]
        known = [tokens for tokens in results if tokens is not None]
        tokens_out = sum(known) if results and len(known) == len(results) else None
    if tokens_in is None and tokens_out is None:
        return None
    return Usage(input_tokens=tokens_in, output_tokens=tokens_out)


def _filled(usage: Usage | None, other: Usage | None) -> Usage | None:
    """Fill the sides that are unknown; each is taken whole, with its cache counts."""
    if usage is None or other is None:
        return usage or other
    if usage.output_tokens is None:
        usage = replace(usage, output_tokens=other.output_tokens)
    if usage.input_tokens is not None or other.input_tokens is None:
        return usage
    return replace(
        usage,
        input_tokens=other.input_tokens,
        cache_read_tokens=other.cache_read_tokens,
        cache_write_tokens=other.cache_write_tokens,
        cache_write_1h_tokens=other.cache_write_1h_tokens,
    )


def _served(usage: Usage | None, tier: str | None) -> Usage | None:
    """Add the tier that a header tells."""
    return replace(usage, service_tier=tier) if usage and tier else usage


class InvokeInterpreter:
    """Understands the messages of one InvokeModelWithResponseStream.

    What is inside tells whose words they are: the model granted may not be the one asked for.
    """

    def __init__(self, tier: str | None) -> None:
        self.transcript = Transcript()
        self.complete = False
        """True once the model's own terminator or Bedrock's metrics, in the last chunk, came."""
        self._tier = tier
        self._inner: _Family | None = None
        self._metrics: Usage | None = None
        self._measured = False
        self._failed = False

    def read(self, event: bytes) -> bool:
        """Take in one event; every one is for the client."""
        message = read_message(event)
        if message is None:
            return True
        if message.headers.get(":message-type") in _bedrock.FAILURES:
            self._failed = True
        elif message.headers.get(":event-type", _CHUNK) == _CHUNK:
            self._read_chunk(unpacked(message.payload))
        else:
            self.transcript.skip()
        inner = self._inner
        ended = self._measured or (inner is not None and inner.complete)
        self.complete = ended and not self._failed
        return True

    @property
    def usage(self) -> Usage | None:
        """The model's last counts, filled with Bedrock's."""
        usage = self._inner.usage if self._inner else None
        return _served(_filled(usage, self._metrics), self._tier)

    def _read_chunk(self, chunk: bytes) -> None:
        inner, fields = self._inner, None
        if inner is None or _METRICS_KEY in chunk:
            fields = look_at(chunk)
            inner = inner or self._choose(fields)
            metrics = table(fields.get(METRICS))
            self._measured = self._measured or bool(metrics)
            self._metrics = _bedrock.read_counts(metrics) or self._metrics
        if inner is not None:
            inner.take(chunk, fields)

    def _choose(self, chunk: dict[str, Any]) -> _Family | None:
        if isinstance(chunk.get("type"), str):
            inner: _Family = _Claude()
        elif "choices" in chunk:
            inner = _Chat(withhold_usage=False)
        elif chunk:
            inner = _Other()
        else:
            self.transcript.skip()
            return None
        inner.transcript.truncated = self.transcript.truncated
        self.transcript = inner.transcript
        self._inner = inner
        return inner


def unpacked(payload: bytes) -> bytes:
    """Return the chunk inside a payload; empty if there is none."""
    match = _PAYLOAD(payload)
    found = match[1] if match else str(look_at(payload).get("bytes", "")).encode()
    try:
        return binascii.a2b_base64(found)
    except binascii.Error:
        return b""


class _Family(Protocol):
    """Understands the chunks of one family of models; never raises."""

    transcript: Transcript
    complete: bool

    def take(self, chunk: bytes, fields: dict[str, Any] | None) -> None:
        """Take in one chunk; `fields` is what it holds, where that had to be parsed already."""
        ...

    @property
    def usage(self) -> Usage | None:
        """What was reported so far."""
        ...


class _Claude(_anthropic.MessageInterpreter):
    def take(self, chunk: bytes, fields: dict[str, Any] | None) -> None:
        """Take in one chunk; only what may be text is worth another look at the bytes."""
        if fields and _DELTA not in chunk:
            self._read_whole(fields)
        else:
            self.read(b"data: " + _one_line(chunk))


class _Chat(_openai.ChatInterpreter):
    def take(self, chunk: bytes, fields: dict[str, Any] | None) -> None:
        """Take in one chunk."""
        self.read(b"data: " + _one_line(chunk))


def _one_line(chunk: bytes) -> bytes:
    """Return the chunk as it may stand in a server-sent event."""
    return b" ".join(chunk.splitlines()) if b"\n" in chunk or b"\r" in chunk else chunk


class _Other:
    """Nova, Titan, Llama, and Mistral's own format."""

    def __init__(self) -> None:
        self._message = _bedrock.Message()
        self.transcript = self._message.transcript
        self.complete = False
        self._counts: dict[str, Any] = {}

    def take(self, chunk: bytes, fields: dict[str, Any] | None) -> None:
        """Take in one chunk."""
        text = _NOVA_TEXT(chunk)
        if text:
            self.transcript.add_raw(text[1])
            return
        known = False
        for name, value in (fields or look_at(_one_line(chunk))).items():
            known = self._read_member(name, value) or known
        if not known:
            # Who knows what it generated.
            self.transcript.skip()

    @property
    def usage(self) -> Usage | None:
        """The last counts; None if there are none."""
        return self._message.usage or _read_counts(self._counts)

    def _read_member(self, name: str, value: Any) -> bool:
        """Take in one field; return False if it is of no format known here."""
        if name in _NOVA_EVENTS:
            self._message.read(name, table(value))
            self.complete = self.complete or self._message.stopped
        elif name in _TEXTS:
            self.transcript.add(value)
        elif name in _COUNTS:
            self._counts[name] = value if count(value) is not None else self._counts.get(name)
        elif name in _ENDS:
            self.complete = self.complete or bool(value)
        elif name == "outputs":
            for output in map(table, items(value)):
                self.transcript.add(output.get("text"))
        else:
            return name == METRICS
        return True


_NOVA_EVENTS = frozenset(
    {
        "contentBlockDelta", "contentBlockStart", "contentBlockStop", "messageStart",
        "messageStop", "metadata",
    }
)  # fmt: skip
_TEXTS = ("outputText", "generation")
_COUNTS = (
    "inputTextTokenCount",
    "totalOutputTextTokenCount",
    "prompt_token_count",
    "generation_token_count",
)
_ENDS = ("completionReason", "stop_reason")
