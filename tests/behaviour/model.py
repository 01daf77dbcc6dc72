"""The application every framework serves in the table of behaviours, as far as it knows none.

`user` in a request says what the handler is to do; the configuration and the file for events
come in the environment, as each server is a process of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import structlog

CHAT, OWN, OPEN, LIMITS = "/v1/chat/completions", "/ask", "/open", "/budget"
CONFIG_VARIABLE, EVENTS_VARIABLE = "BEHAVIOUR_CONFIG", "BEHAVIOUR_EVENTS"
PAUSE_S = 0.01
_JSON, _EVENTS = "application/json", "text/event-stream; charset=utf-8"
_LONG = 1000


class Reply(NamedTuple):
    """What a handler answers."""

    status: int
    kind: str
    pieces: list[bytes]
    pause_s: float = 0.0
    """Between the pieces of a stream that goes on until the client has enough."""


def configuration() -> dict[str, Any]:
    """Return the configuration of this process, and send its events to their file."""
    events = Path(os.environ[EVENTS_VARIABLE]).open("a", buffering=1)  # noqa: SIM115 (for good)
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(events),
    )
    config: dict[str, Any] = json.loads(os.environ[CONFIG_VARIABLE])
    return config


def more(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a call for the handler to make by itself."""
    return {"model": "big", "messages": asked["messages"], "max_tokens": 20, "n": 100}


def reply(asked: dict[str, Any]) -> Reply:
    """Answer as a provider would, or fail as `user` wants it."""
    if asked.get("user") == "fail":
        raise ValueError("a bug")
    if asked.get("user") == "timeout":
        raise httpx.ReadTimeout("the provider did not answer")
    if asked.get("user") == "refused":
        return Reply(429, _JSON, [b'{"error": {"message": "overloaded"}}'])
    used = min(30, asked["max_tokens"])
    usage = {"prompt_tokens": 12, "completion_tokens": used, "total_tokens": 12 + used}
    if not asked.get("stream"):
        answer = {"model": asked["model"], "choices": [], "usage": usage}
        return Reply(200, _JSON, [json.dumps(answer).encode()])
    if asked.get("user") == "endless":
        return Reply(200, _EVENTS, [_delta()] * _LONG, PAUSE_S)
    asks = (asked.get("stream_options") or {}).get("include_usage")
    last = [_event({"choices": [], "usage": usage})] if asks else []
    return Reply(200, _EVENTS, [_delta(), _delta(), *last, b"data: [DONE]\n\n"])


def report(asked: dict[str, Any]) -> dict[str, int] | None:
    """Return the usage to report on a route of the application's own; None to say nothing."""
    return {"prompt_tokens": 7, "completion_tokens": 5} if asked.get("user") == "report" else None


def _delta() -> bytes:
    return _event({"choices": [{"index": 0, "delta": {"content": "abcd"}}], "usage": None})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
