"""The end of an answer in the words of each model behind InvokeModelWithResponseStream."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterable
from typing import Any

from llm_budget_mw.dialects._eventstream import read_message
from llm_budget_mw.dialects._invoke import METRICS, unpacked
from llm_budget_mw.dialects._json import dump, items, look_at, table
from llm_budget_mw.dialects.tails.anthropic import MessageTail
from llm_budget_mw.dialects.tails.bedrock import BlockTail, write
from llm_budget_mw.dialects.tails.openai import ChatTail
from llm_budget_mw.types import Usage

_TITAN = {"outputText": "", "index": 0, "completionReason": "LENGTH"}
_LLAMA = {"generation": "", "stop_reason": "length"}
_MISTRAL = {"outputs": [{"text": "", "stop_reason": "length"}]}
_ENDED = ("completionReason", "stop_reason")


class InvokeTail:
    """The model's own end, with Bedrock's counts in its last chunk."""

    def __init__(self) -> None:
        self._claude, self._chat, self._nova = MessageTail(), ChatTail(), BlockTail()
        self._ends: Callable[[Usage], Iterable[dict[str, Any]]] | None = None
        self._done = False

    def note(self, event: bytes) -> None:
        """Take in an event the client got."""
        message = read_message(event)
        if message is not None:
            self._take(look_at(unpacked(message.payload)))

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those events."""
        chunks = list(self._ends(usage)) if self._ends and not self._done else []
        if chunks:
            sent, got = usage.input_tokens or 0, usage.output_tokens or 0
            chunks[-1] = {**chunks[-1], METRICS: {"inputTokenCount": sent, "outputTokenCount": got}}
        return b"".join(write("chunk", {"bytes": _packed(chunk)}) for chunk in chunks)

    def _take(self, chunk: dict[str, Any]) -> None:
        self._done = self._done or METRICS in chunk
        if isinstance(chunk.get("type"), str):
            self._claude.take(chunk)
            self._ends = self._claude.events
        elif "choices" in chunk:
            self._chat.take(chunk)
            self._ends = lambda usage: filter(None, [self._chat.last()])
        elif "outputText" in chunk or "generation" in chunk or "outputs" in chunk:
            self._take_text(chunk)
        else:
            for kind, payload in chunk.items():
                self._nova.take(kind, table(payload))
                self._ends = self._nova_events

    def _take_text(self, chunk: dict[str, Any]) -> None:
        last = _TITAN if "outputText" in chunk else _LLAMA if "generation" in chunk else _MISTRAL
        parts = [chunk, *map(table, items(chunk.get("outputs")))]
        ended = any(part.get(name) for part in parts for name in _ENDED)
        self._ends = lambda usage: [] if ended else [dict(last)]

    def _nova_events(self, usage: Usage) -> Iterable[dict[str, Any]]:
        return [{kind: payload} for kind, payload in self._nova.events(usage)]


def _packed(chunk: dict[str, Any]) -> str:
    return binascii.b2a_base64(dump(chunk), newline=False).decode()
