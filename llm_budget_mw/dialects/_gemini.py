"""What Gemini reports while and after it answers.

Field names come as `camelCase` or, from some gateways, as `snake_case`; both mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic_core import from_json

from llm_budget_mw.dialects._json import (
    count,
    dump,
    first_count,
    is_array,
    items,
    label,
    look_at,
    table,
)
from llm_budget_mw.dialects._stream import Transcript
from llm_budget_mw.types import Usage

_UNDERSCORE = re.compile("_([a-z])")
_AUDIO = ("AUDIO", 4)
"""The modality's name, and its number in old answers."""
_MOST_CANDIDATES = 128
_MOST_SEARCHES = 1024
_KNOWN = frozenset({"candidates", "usageMetadata", "promptFeedback", "error"})
_PER_REQUEST = re.compile(r"gemini-[12](?!\d)").search
"""Models whose grounding is billed once for each request, not for each search."""
_HIDDEN_PARTS = ("inlineData", "thoughtSignature", "fileData")


def camel(name: str) -> str:
    """Return the `camelCase` of a field name."""
    return _UNDERSCORE.sub(lambda match: match[1].upper(), name)


def named(value: object) -> dict[str, Any]:
    """Return the object with its own names in `camelCase`, empty if it is none."""
    fields = table(value)
    # Google's own answers have no other names, and there are many of them in a stream.
    if "_" not in "".join(fields):
        return fields
    return {camel(name): item for name, item in fields.items()}


def read_usage(body: bytes) -> Usage | None:
    """Read the usage of a whole answer: an object, or all elements of a streamed array."""
    try:
        answer = from_json(body)
    except ValueError:
        return None
    counts = Counts()
    for chunk in answer if is_array(answer) else [answer]:
        counts.read(named(chunk))
    return counts.usage


def element_data(element: bytes) -> bytes:
    """Return an element of a streamed array without what separates it from the one before."""
    return element.lstrip(b"[, \t\r\n")


class Counts:
    """What the chunks of one answer count.

    Each counts from the beginning of the answer, and not always upwards: the last stands.
    """

    def __init__(self) -> None:
        self.blocked = False
        """True if the prompt was refused: nothing was generated."""
        self._generated = False
        self._searches: set[str] = set()
        self._report: dict[str, Any] = {}
        self._model: str | None = None

    def read(self, chunk: dict[str, Any]) -> None:
        """Take in one chunk."""
        self._model = label(chunk.get("modelVersion")) or self._model
        if named(chunk.get("promptFeedback")).get("blockReason"):
            self.blocked = True
        for candidate in map(named, items(chunk.get("candidates"))):
            parts = items(named(candidate.get("content")).get("parts"))
            self._generated = self._generated or any(map(_is_output, parts))
            self._read_searches(named(candidate.get("groundingMetadata")))
        report = named(chunk.get("usageMetadata"))
        # A blocked prompt may report the kind of traffic and nothing else.
        if any(count(value) is not None for value in report.values()):
            self._report = report

    @property
    def usage(self) -> Usage | None:
        """The last counts; None if there are none."""
        report = self._report
        prompt = first_count(report, "promptTokenCount")
        tools = first_count(report, "toolUsePromptTokenCount") or 0
        tokens_in = None if prompt is None else prompt + tools
        tokens_out = self._output(report, tokens_in)
        if tokens_in is None and tokens_out is None:
            return None
        into = ("promptTokensDetails", "toolUsePromptTokensDetails")
        searches = len(self._searches)
        return Usage(
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            cache_read_tokens=first_count(report, "cachedContentTokenCount") or 0,
            reasoning_tokens=first_count(report, "thoughtsTokenCount") or 0,
            input_audio_tokens=sum(_audio(report.get(name)) for name in into),
            output_audio_tokens=_audio(report.get("candidatesTokensDetails")),
            web_searches=min(searches, 1) if _PER_REQUEST(self._model or "") else searches,
            model=self._model,
            service_tier=label(report.get("serviceTier")) or label(report.get("trafficType")),
        )

    def _output(self, report: dict[str, Any], tokens_in: int | None) -> int | None:
        """Return candidates and thoughts, which are apart, or the total without the input.

        A zero is left out of an answer, but so is a number nobody counted: only where
        nothing was generated is it a zero.
        """
        candidates = first_count(report, "candidatesTokenCount", "responseTokenCount")
        thoughts = first_count(report, "thoughtsTokenCount") or 0
        total = first_count(report, "totalTokenCount")
        rest = 0 if total is None or tokens_in is None else max(0, total - tokens_in)
        if candidates is not None or rest > thoughts:
            return max((candidates or 0) + thoughts, rest)
        if self._generated or (total is None and not self.blocked):
            return None
        return thoughts

    def _read_searches(self, grounding: dict[str, Any]) -> None:
        for query in items(grounding.get("webSearchQueries")):
            if isinstance(query, str) and len(self._searches) < _MOST_SEARCHES:
                self._searches.add(query)


def _is_output(value: object) -> bool:
    part = table(value)
    return not part.get("thought") and any(part.values())


def _audio(details: object) -> int:
    parts = [named(part) for part in items(details)]
    return sum(
        first_count(part, "tokenCount") or 0 for part in parts if part.get("modality") in _AUDIO
    )


class GeminiInterpreter:
    """Understands the chunks of one answer; `data_of` takes the JSON out of an event."""

    def __init__(self, data_of: Callable[[bytes], bytes]) -> None:
        self.transcript = Transcript()
        self.complete = False
        """True once every candidate finished, or the prompt was blocked, and an array closed."""
        self._data_of = data_of
        self._counts = Counts()
        self._open_array = data_of is element_data
        self._failed = False
        self._seen: set[int] = set()
        self._finished: set[int] = set()

    def read(self, event: bytes) -> bool:
        """Take in one event; every one is for the client."""
        data = self._data_of(event)
        if data == b"]":
            self._open_array = False
        else:
            self._read_chunk(named(look_at(data)))
        ended = self._finished >= self._seen if self._seen else self._counts.blocked
        self.complete = ended and not self._failed and not self._open_array
        return True

    @property
    def usage(self) -> Usage | None:
        """The last counts; None if there are none."""
        return self._counts.usage

    def _read_chunk(self, chunk: dict[str, Any]) -> None:
        if chunk and _KNOWN.isdisjoint(chunk):
            # Not of this format: who knows what it generated.
            self.transcript.skip()
        self._counts.read(chunk)
        self._failed = self._failed or bool(chunk.get("error"))
        for candidate in map(named, items(chunk.get("candidates"))):
            self._read_candidate(candidate)
        if count(named(chunk.get("usageMetadata")).get("thoughtsTokenCount")):
            # Of what it thought the client gets a summary or nothing.
            self.transcript.skip()

    def _read_candidate(self, candidate: dict[str, Any]) -> None:
        index = candidate.get("index")
        index = index if isinstance(index, int) and 0 <= index < _MOST_CANDIDATES else 0
        self._seen.add(index)
        if candidate.get("finishReason"):
            self._finished.add(index)
        for part in map(named, items(named(candidate.get("content")).get("parts"))):
            if not part.keys().isdisjoint(_HIDDEN_PARTS):
                self.transcript.skip()
            for text in _texts(part):
                self.transcript.add(text)


def _texts(part: dict[str, Any]) -> Iterator[object]:
    yield part.get("text")
    yield named(part.get("executableCode")).get("code")
    call = part.get("functionCall")
    if call:
        yield dump(call).decode()
