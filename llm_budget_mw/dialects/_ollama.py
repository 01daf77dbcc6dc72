"""What Ollama reports while and after it answers."""

from __future__ import annotations

from typing import Any

from llm_budget_mw.dialects._json import count, dump, items, label, look_at, table
from llm_budget_mw.dialects._stream import Transcript
from llm_budget_mw.types import Usage

_NOTHING_RUN = ("load", "unload")
"""Reasons to be done of a request that has no prompt: it moves a model in or out of memory."""
_KNOWN = frozenset({"done", "error", "message", "response"})


def read_usage(answer: dict[str, Any]) -> Usage | None:
    """Read the counts of an answer or of its last line; None if there are none.

    The prompt's count is absent where the prompt was remembered: unknown, not zero.
    """
    if answer.get("done") is True and answer.get("done_reason") in _NOTHING_RUN:
        return Usage(0, 0, model=label(answer.get("model")))
    tokens_in = count(answer.get("prompt_eval_count"))
    tokens_out = count(answer.get("eval_count"))
    if tokens_in is None and tokens_out is None:
        return None
    return Usage(tokens_in, tokens_out, model=label(answer.get("model")))


class OllamaInterpreter:
    """Understands the lines of one answer."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self.complete = False
        """True once a line was `done`, and none an error."""
        self.usage: Usage | None = None
        self._failed = False

    def read(self, event: bytes) -> bool:
        """Take in one line; every one is for the client."""
        line = look_at(event)
        if line or (event.strip() and event.endswith(b"\n")):
            self._read_line(line)
        return True

    def _read_line(self, line: dict[str, Any]) -> None:
        if _KNOWN.isdisjoint(line):
            # Not of this format: who knows what it generated.
            self.transcript.skip()
        self.usage = read_usage(line) or self.usage
        self._failed = self._failed or bool(line.get("error"))
        self.complete = (self.complete or line.get("done") is True) and not self._failed
        message = table(line.get("message"))
        self.transcript.add(line.get("response"))
        self.transcript.add(message.get("content"))
        for holder in (line, message):
            self.transcript.add(holder.get("thinking"))
        for call in items(message.get("tool_calls")):
            self.transcript.add(dump(table(call).get("function")).decode())
        if line.get("image") is not None:
            self.transcript.skip()
