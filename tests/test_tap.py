"""Tests of `llm_budget_mw.tap`."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.tap import Tap
from llm_budget_mw.types import Usage

JSON = {"content-type": "application/json"}
SSE = {"content-type": "Text/Event-Stream; charset=utf-8"}
ANSWER = json.dumps(
    {"model": "big", "usage": {"prompt_tokens": 12, "completion_tokens": 30}}
).encode()
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":30}}\n\n'
DONE = b"data: [DONE]\n\n"


def tap_of(*, asks_for_usage: bool = True, dialect: str = "openai_chat") -> Tap:
    spoken = dialect_for(dialect)
    body = {
        "model": "big",
        "stream": True,
        "stream_options": {"include_usage": asks_for_usage},
        "messages": [{"role": "user", "content": "hi"}],
    }
    call = spoken.read_request(RequestHead("POST", "/"), json.dumps(body).encode())
    return Tap(spoken, call)


def passed(
    tap: Tap,
    chunks: list[bytes],
    headers: Mapping[str, str],
    *,
    status: int = 200,
    ends: bool = True,
) -> Outcome:
    """Let an answer pass; return its outcome, text counted by its characters."""
    tap.start(status, headers)
    for chunk in chunks:
        tap.feed(chunk)
    if ends:
        tap.end()
    return tap.outcome(len)


def test_nothing_has_happened_before_the_start() -> None:
    """A new tap has seen nothing."""
    tap = tap_of()

    assert (tap.started, tap.ended, tap.status, tap.size) == (False, False, 0, 0)
    tap.start(200, JSON)
    assert (tap.started, tap.ended) == (True, False)


def test_a_whole_answer_is_read_after_its_end() -> None:
    """Cut into any pieces, its usage is read and its bytes are not changed."""
    tap = tap_of()
    outcome = passed(tap, [ANSWER[:7], b"", ANSWER[7:]], JSON)

    assert outcome == Outcome(Ending.COMPLETE, Usage(12, 30, model="big"))
    assert (tap.ended, tap.size, tap.rewrites) == (True, len(ANSWER), False)


def test_a_whole_answer_that_was_cut_is_unknown() -> None:
    """Half a JSON body says nothing, even if it looked complete."""
    assert passed(tap_of(), [ANSWER], JSON, ends=False) == Outcome(Ending.CUT)


def test_an_answer_without_usage_is_complete_and_unknown() -> None:
    """Only the provider's own words are usage."""
    for body in (b"", b"{}", b"not json", b"\xff" * 10, b'{"usage":null}'):
        assert passed(tap_of(), [body], JSON) == Outcome(Ending.COMPLETE)


@pytest.mark.parametrize("headers", [JSON, SSE])
def test_an_error_is_a_refusal_of_the_provider(headers: Mapping[str, str]) -> None:
    """Also one that came in the type of a stream, and one that was cut."""
    error = b'{"error":{"message":"no"}}'

    for ends in (True, False):
        outcome = passed(tap_of(), [error], headers, status=429, ends=ends)
        assert outcome == Outcome(Ending.REFUSED_UPSTREAM)


def test_an_error_may_report_usage() -> None:
    """What a refusing provider bills is passed on."""
    outcome = passed(tap_of(), [ANSWER], JSON, status=500)

    assert outcome == Outcome(Ending.REFUSED_UPSTREAM, Usage(12, 30, model="big"))


def test_an_answer_too_large_to_keep_is_unknown() -> None:
    """Beyond 16 MB nothing is kept, and all of it still passes."""
    tap = tap_of()
    chunk = bytes(4 * 1024 * 1024)
    outcome = passed(tap, [ANSWER, *([chunk] * 5), ANSWER], JSON)

    assert outcome == Outcome(Ending.COMPLETE)
    assert tap.size == 5 * len(chunk) + 2 * len(ANSWER)


def test_a_complete_stream_with_usage_needs_no_counting() -> None:
    """The protocol's own end and numbers."""
    outcome = passed(tap_of(), [TEXT, USAGE, DONE], SSE)

    assert (outcome.ending, outcome.counted_output) == (Ending.COMPLETE, None)
    assert outcome.usage == Usage(12, 30)


def test_a_complete_stream_without_usage_is_counted() -> None:
    """What was generated is there to count."""
    assert passed(tap_of(), [TEXT, TEXT, DONE], SSE) == Outcome(Ending.COMPLETE, None, 10)


def test_a_stream_without_its_terminator_was_cut() -> None:
    """A server may end the body of a broken stream neatly: only the protocol counts."""
    assert passed(tap_of(), [TEXT], SSE) == Outcome(Ending.CUT, None, 5)
    assert passed(tap_of(), [TEXT], SSE, ends=False) == Outcome(Ending.CUT, None, 5)
    assert passed(tap_of(), [], SSE) == Outcome(Ending.CUT, None, 0)


def test_the_usage_of_a_cut_stream_is_kept_and_its_output_counted() -> None:
    """Input was reported at the start, output only at an end that never came."""
    start = b'data: {"type":"message_start","message":{"usage":{"input_tokens":9}}}\n\n'
    delta = b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"hey"}}\n\n'
    body = b'{"model":"claude-x","max_tokens":9,"messages":[{"role":"user","content":"x"}]}'
    dialect = dialect_for("anthropic_messages")
    tap = Tap(dialect, dialect.read_request(RequestHead("POST", "/"), body))

    outcome = passed(tap, [start, delta], SSE)

    assert outcome == Outcome(Ending.CUT, Usage(9, None), 3)


def test_a_stream_nobody_can_read_is_unknown() -> None:
    """Compressed by the application: neither usage nor text, and so nothing to count."""
    tap = tap_of()
    outcome = passed(tap, [b"\x1f\x8b..."], {**SSE, "content-encoding": "gzip"})

    assert outcome == Outcome(Ending.CUT)


def test_usage_nobody_asked_for_is_taken_out_of_the_stream() -> None:
    """The client gets what it would have got; the tap says that it rewrites."""
    tap = tap_of(asks_for_usage=False)
    tap.start(200, SSE)

    out = tap.feed(TEXT) + tap.feed(USAGE + DONE[:5]) + tap.feed(DONE[5:-1]) + tap.end()

    assert tap.rewrites
    assert out == TEXT + DONE[:-1]
    assert tap.outcome(len).usage == Usage(12, 30)


def test_usage_that_was_asked_for_passes_unchanged() -> None:
    """Byte by byte, in step."""
    tap = tap_of()
    tap.start(200, SSE)
    stream = TEXT + USAGE + DONE

    assert b"".join(tap.feed(bytes([byte])) for byte in stream) + tap.end() == stream
    assert not tap.rewrites
