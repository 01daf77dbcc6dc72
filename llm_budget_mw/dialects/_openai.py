"""What OpenAI's chat format reports while and after it answers, in all its variants.

OpenAI, Azure, Groq, DeepSeek, Mistral, Together, OpenRouter, xAI and vLLM differ in where
the usage stands, never in what its fields mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from llm_budget_mw._sse import read_data
from llm_budget_mw.dialects._json import first_count, is_array, items, label, look_at, table
from llm_budget_mw.dialects._stream import Transcript
from llm_budget_mw.types import Usage

# One choice, whose delta holds text and nothing else. A quote inside a JSON string is
# always escaped, so this cannot match inside of one.
_ONLY_TEXT = re.compile(
    rb'"delta":\{(?:"role":"assistant",)?"content":"([^"\\]*+(?:\\.[^"\\]*+)*+)"\}'
).match
_DELTA = b'"delta"'
_USAGE = b'"usage"'
_NULLS = (b":null", b": null")

_NOT_GENERATED = frozenset({"role", "type", "id", "index", "annotations", "reasoning_details"})
_NOT_TEXT = frozenset({"audio", "images"})


def read_usage(answer: dict[str, Any]) -> Usage | None:
    """Read the usage of an answer or of one chunk; None if it reports none.

    Output is at least `total - prompt`: some report hidden reasoning only there.
    """
    report = table(answer.get("usage")) or table(table(answer.get("x_groq")).get("usage"))
    prompt = first_count(report, "prompt_tokens")
    output = _output(report, prompt)
    if prompt is None and output is None:
        return None
    into = _details(report, "prompt")
    out = _details(report, "completion")
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        cache_read_tokens=_cached(report, into),
        cache_write_tokens=first_count(into, "cache_write_tokens") or 0,
        reasoning_tokens=first_count(out, "reasoning_tokens") or 0,
        input_audio_tokens=first_count(into, "audio_tokens") or 0,
        output_audio_tokens=first_count(out, "audio_tokens") or 0,
        model=label(answer.get("model")),
        service_tier=label(answer.get("service_tier")),
    )


def _output(report: dict[str, Any], prompt: int | None) -> int | None:
    completion = first_count(report, "completion_tokens")
    total = first_count(report, "total_tokens")
    if prompt is None or total is None or total <= prompt:
        return completion
    return max(completion or 0, total - prompt)


def _details(report: dict[str, Any], side: str) -> dict[str, Any]:
    return table(report.get(f"{side}_tokens_details")) or table(report.get(f"{side}_token_details"))


def _cached(report: dict[str, Any], details: dict[str, Any]) -> int:
    flat = ("cached_tokens", "num_cached_tokens", "prompt_cache_hit_tokens")
    # The same number under several names: never the sum of them.
    return first_count(details, "cached_tokens") or first_count(report, *flat) or 0


class ChatInterpreter:
    """Understands the chunks of one chat completion."""

    def __init__(self, *, withhold_usage: bool) -> None:
        self.transcript = Transcript()
        self.complete = False
        self._withhold_usage = withhold_usage
        self._frame: tuple[bytes, bytes, int] | None = None
        """What stood around the text of the last event that was text alone, and its length."""
        self._usage: Usage | None = None
        self._model: str | None = None
        self._service_tier: str | None = None

    def read(self, event: bytes) -> bool:
        """Take in one event; False for the usage chunk nobody but us asked for."""
        if self._frame is not None:
            before, after, size = self._frame
            if event.startswith(before) and event.endswith(after) and len(event) >= size:
                # The same event with another text, as nearly all of a stream are.
                text = event[len(before) : len(event) - len(after)]
                if b'"' not in text and b"\\" not in text:
                    self.transcript.add_raw(text)
                    return True
        match = _ONLY_TEXT(event, event.find(_DELTA))
        if match and event.find(_DELTA, match.end()) < 0 and _has_no_usage(event):
            before, after = event[: match.start(1)], event[match.end(1) :]
            self._frame = before, after, len(before) + len(after)
            self.transcript.add_raw(match[1])
            return True
        return self._read_whole(event, read_data(event))

    @property
    def usage(self) -> Usage | None:
        """The last usage seen, with the last model and tier any chunk named."""
        if self._usage is None:
            return None
        return replace(self._usage, model=self._model, service_tier=self._service_tier)

    def _read_whole(self, event: bytes, data: bytes) -> bool:
        if data.startswith(b"[DONE]"):
            self.complete = True
            return True
        chunk = look_at(data)
        if not chunk:
            self.transcript.miss_event(event, data)
        self._model = label(chunk.get("model")) or self._model
        self._service_tier = label(chunk.get("service_tier")) or self._service_tier
        for choice in map(table, items(chunk.get("choices"))):
            self._read_delta(table(choice.get("delta")))
            # Where legacy completions, which share all else, have their text.
            self.transcript.add(choice.get("text"))
        usage = read_usage(chunk)
        self._usage = usage or self._usage
        if usage or "choices" in chunk:
            self.transcript.understand()
        elif chunk and "error" not in chunk:
            self.transcript.miss()
        is_extra = usage and not chunk.get("choices") and not chunk.get("error")
        return not (is_extra and self._withhold_usage)

    def _read_delta(self, delta: dict[str, Any]) -> None:
        if not _NOT_TEXT.isdisjoint(delta):
            self.transcript.skip()
            return
        for text in _strings(delta):
            self.transcript.add(text)


def _has_no_usage(event: bytes) -> bool:
    at = event.find(_USAGE)
    while at >= 0:
        at += len(_USAGE)
        if not event.startswith(_NULLS, at):
            return False
        at = event.find(_USAGE, at)
    return True


def _strings(value: Any) -> Iterator[str]:
    """Yield generated text wherever it stands: content, reasoning, tool calls, refusals."""
    if isinstance(value, str):
        yield value
    elif is_array(value):
        for item in value:
            yield from _strings(item)
    else:
        for key, item in table(value).items():
            if key not in _NOT_GENERATED:
                yield from _strings(item)
