"""The end of one of Ollama's answers."""

from __future__ import annotations

from typing import Any

from llm_budget_mw.dialects._json import dump, look_at
from llm_budget_mw.types import Usage

_HEAD = ("model", "created_at", "remote_model", "remote_host")


class OllamaTail:
    """A last line that is done."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._generates = False
        """True where the text stands in `response`, not in a message."""
        self._done = False

    def note(self, event: bytes) -> None:
        """Take in a line the client got."""
        line = look_at(event)
        self._head |= {name: line[name] for name in _HEAD if name in line}
        self._generates = self._generates or "response" in line
        self._done = self._done or line.get("done") is True

    def end(self, usage: Usage) -> bytes:
        """Return what ends the stream behind those lines."""
        if self._done:
            return b""
        text: dict[str, Any] = {"message": {"role": "assistant", "content": ""}}
        if self._generates:
            text = {"response": ""}
        last = {**self._head, **text, "done": True, "done_reason": "length"}
        return dump({**last, "eval_count": usage.output_tokens or 0}) + b"\n"
