"""What Gemini reports while and after it answers.

Field names come as `camelCase` or, from some gateways, as `snake_case`; both mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic_core import from_json

from llm_budget_mw.dialects._json import (
    count,
    dump,
    first_count,
    is_array,
    is_object,
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
_ONLY_TEXT = {"text"}
_HIDDEN_PARTS = ("inlineData", "thoughtSignature", "fileData")


def camel(name: str) -> str:
    """Return the `camelCase` of a field name."""
    return _UNDERSCORE.sub(lambda match: match[1].upper(), name)


def named(value: object) -> dict[str, Any]:
    """Return the object with its own names in `camelCase`, empty if it is none."""
    if not is_object(value):
        return {}
    # Google's own answers have no other names, and there are many of them in a stream.
    if "_" not in "".join(value):
        return value
    return {camel(name): item for name, item in value.items()}


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


class Candidate(NamedTuple):
    """What one chunk has of one candidate."""

    fields: dict[str, Any]
    parts: list[Any]
    """Of its content, under the names they came with."""


class Counts:
    """What the chunks of one answer count.

    Each counts from the beginning of the answer, and not always upwards: the last stands.
    """

    def __init__(self) -> None:
        self.blocked = False
        """True if the prompt was refused: nothing was generated."""
        self.thought = False
        """True once a thought was counted."""
        self._generated = False
        self._searches: set[str] = set()
        self._report: dict[str, Any] = {}
        self._model: str | None = None

    def read(self, chunk: dict[str, Any]) -> list[Candidate]:
        """Take in one chunk; return its candidates."""
        self._model = label(chunk.get("modelVersion")) or self._model
        if "promptFeedback" in chunk and named(chunk["promptFeedback"]).get("blockReason"):
            self.blocked = True
        candidates = [_candidate(value) for value in items(chunk.get("candidates"))]
        for fields, parts in candidates:
            self._generated = self._generated or any(map(_is_output, parts))
            if "groundingMetadata" in fields:
                self._read_searches(named(fields["groundingMetadata"]))
        report = named(chunk.get("usageMetadata"))
        # A blocked prompt may report the kind of traffic and nothing else.
        if first_count(report, *report) is not None:
            self._report = report
            self.thought = self.thought or bool(count(report.get("thoughtsTokenCount")))
        return candidates

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


def _candidate(value: object) -> Candidate:
    fields = named(value)
    return Candidate(fields, items(named(fields.get("content")).get("parts")))


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
        self._in_array = data_of is element_data
        self._open_array = False
        self._failed = False
        self._seen: set[int] = set()
        self._finished: set[int] = set()

    def read(self, event: bytes) -> bool:
        """Take in one event; every one is for the client."""
        data = self._data_of(event)
        if self._in_array and event.lstrip().startswith(b"["):
            # Not where an object came in place of an array.
            self._open_array = True
        if data == b"]":
            self._open_array = False
        elif data and (chunk := named(look_at(data))):
            self._read_chunk(chunk)
        elif not self._in_array:
            self.transcript.miss_event(event, data)
        elif data and not data.startswith(b"{"):
            self.transcript.miss()
        ended = self._finished >= self._seen if self._seen else self._counts.blocked
        self.complete = ended and not self._failed and not self._open_array
        return True

    @property
    def usage(self) -> Usage | None:
        """The last counts; None if there are none."""
        return self._counts.usage

    def _read_chunk(self, chunk: dict[str, Any]) -> None:
        if _KNOWN.isdisjoint(chunk):
            # Not of this format: who knows what it generated.
            self.transcript.skip()
        self.transcript.understand()
        for candidate in self._counts.read(chunk):
            self._read_candidate(*candidate)
        self._failed = self._failed or bool(chunk.get("error"))
        if self._counts.thought:
            # Of what it thought the client gets a summary or nothing.
            self.transcript.skip()

    def _read_candidate(self, fields: dict[str, Any], parts: list[Any]) -> None:
        index = fields.get("index")
        index = index if isinstance(index, int) and 0 <= index < _MOST_CANDIDATES else 0
        self._seen.add(index)
        if fields.get("finishReason"):
            self._finished.add(index)
        for part in map(named, parts):
            self.transcript.add(part.get("text"))
            if part.keys() != _ONLY_TEXT:
                self._read_other(part)

    def _read_other(self, part: dict[str, Any]) -> None:
        """Take in what a part has besides text."""
        if not part.keys().isdisjoint(_HIDDEN_PARTS):
            self.transcript.skip()
        self.transcript.add(named(part.get("executableCode")).get("code"))
        call = part.get("functionCall")
        if call:
            self.transcript.add(dump(call).decode())
