"""Tests of `llm_budget_mw.tap`."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from typing import Any

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


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, br", "\xff"])
def test_a_stream_nobody_can_read_is_unknown(coding: str) -> None:
    """Compressed in a way that cannot be undone, or not at all: there is nothing to count."""
    tap = tap_of()
    outcome = passed(tap, [b"\x1f\x8b...", TEXT], {**SSE, "content-encoding": coding})

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


# --- streams by another type than their own


GEMINI_TEXT = b'{"candidates":[{"content":{"parts":[{"text":"hello"}]}}]}'
GEMINI_END = (
    b'{"candidates":[{"finishReason":"STOP"}],'
    b'"usageMetadata":{"promptTokenCount":12,"candidatesTokenCount":30}}'
)
GEMINI_USAGE = Usage(12, 30)


def gemini_tap(method: str = "streamGenerateContent") -> Tap:
    dialect = dialect_for("gemini")
    head = RequestHead("POST", f"/v1beta/models/g:{method}")
    return Tap(dialect, dialect.read_request(head, b'{"contents":[{"parts":[{"text":"hi"}]}]}'))


def test_an_array_that_was_cut_is_counted() -> None:
    """Its type is that of a whole answer: that it was asked for as a stream decides."""
    cut = [b"[", GEMINI_TEXT, b"\n,\n", GEMINI_TEXT[:30]]

    assert passed(gemini_tap(), cut, JSON, ends=False) == Outcome(Ending.CUT, None, 5)
    assert passed(gemini_tap(), cut, JSON) == Outcome(Ending.CUT, None, 5)


def test_a_whole_array_is_exact() -> None:
    """The last of its elements has the usage."""
    whole = [b"[" + GEMINI_TEXT + b"\n,\n" + GEMINI_END, b"\n]\n"]

    assert passed(gemini_tap(), whole, JSON) == Outcome(Ending.COMPLETE, GEMINI_USAGE)


def test_one_object_in_place_of_an_array_is_whole() -> None:
    """A server may answer a stream in one piece."""
    assert passed(gemini_tap(), [GEMINI_END], JSON) == Outcome(Ending.COMPLETE, GEMINI_USAGE)


def test_a_json_error_with_a_good_status_generated_nothing() -> None:
    """In place of a stream; in place of a whole answer nobody knows."""
    error = b'[{"error":{"code":400,"message":"no"}}]'

    assert passed(gemini_tap(), [error], JSON) == Outcome(Ending.CUT, None, 0)
    assert passed(gemini_tap("generateContent"), [error], JSON) == Outcome(Ending.COMPLETE)
    assert passed(tap_of(), [b'{"error":{"message":"no"}}'], JSON) == Outcome(Ending.COMPLETE)


def test_a_whole_answer_to_a_stream_is_read_whole() -> None:
    """Where the format has no streams in JSON."""
    assert passed(tap_of(), [ANSWER], JSON) == Outcome(Ending.COMPLETE, Usage(12, 30, model="big"))


@pytest.mark.parametrize("kind", ["", "text/plain", "application/octet-stream"])
def test_a_stream_whose_type_was_forgotten_is_read(kind: str) -> None:
    """It was asked for, and what comes is no JSON."""
    headers = {"content-type": kind} if kind else {}

    assert passed(tap_of(), [TEXT], headers) == Outcome(Ending.CUT, None, 5)
    assert passed(tap_of(), [USAGE, DONE], headers).usage == Usage(12, 30)


def test_no_answer_to_a_stream_is_unknown() -> None:
    """A handler that answers with a status alone may have asked a provider."""
    for headers in ({}, JSON):
        assert passed(tap_of(), [], headers, status=204) == Outcome(Ending.COMPLETE)
        assert passed(gemini_tap(), [], headers, ends=False) == Outcome(Ending.CUT)


def test_an_answer_in_another_format_is_unknown() -> None:
    """Not "no text": what was reserved stays charged."""
    claude = b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"hey"}}\n\n'

    assert passed(tap_of(), [claude], SSE) == Outcome(Ending.CUT)
    assert passed(tap_of(), [ANSWER], SSE) == Outcome(Ending.CUT)


# --- compressed answers


def raw_deflate(data: bytes) -> bytes:
    """Compress without zlib's frame, as many servers understand `deflate`."""
    squeeze = zlib.compressobj(wbits=-15)
    return squeeze.compress(data) + squeeze.flush()


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": (" X-GZip ", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "stored": ("gzip", lambda data: gzip.compress(data, 0)),
    "members": ("gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
}
every_coding = pytest.mark.parametrize(("coding", "compress"), CODINGS.values(), ids=CODINGS)


def pieces(data: bytes) -> list[list[bytes]]:
    """Cut data in one piece, in two anywhere, and in single bytes."""
    halves = [[data[:at], data[at:]] for at in range(1, len(data))]
    return [[data], *halves, [data[at : at + 1] for at in range(len(data))]]


@every_coding
def test_the_usage_of_a_compressed_answer_is_read(
    coding: str, compress: Callable[[bytes], bytes]
) -> None:
    """However it is cut, and what passes is what came."""
    for chunks in pieces(compress(ANSWER)):
        tap = tap_of()
        tap.start(200, {**JSON, "content-encoding": coding})
        assert [tap.feed(chunk) for chunk in chunks] == chunks
        assert tap.end() == b""
        assert tap.outcome(len) == Outcome(Ending.COMPLETE, Usage(12, 30, model="big"))


@every_coding
@pytest.mark.parametrize("asks", [True, False])
def test_a_compressed_stream_is_read_and_never_changed(
    coding: str, compress: Callable[[bytes], bytes], asks: bool
) -> None:
    """Not even where only we asked for its usage: that could not be taken out."""
    for chunks in pieces(compress(TEXT + USAGE + DONE)):
        tap = tap_of(asks_for_usage=asks)
        tap.start(200, {**SSE, "content-encoding": coding})
        assert [tap.feed(chunk) for chunk in chunks] == chunks
        assert tap.end() == b""
        assert not tap.rewrites
        assert tap.outcome(len) == Outcome(Ending.COMPLETE, Usage(12, 30))


def test_what_came_of_a_compressed_stream_is_counted() -> None:
    """Servers flush what they have: it is read in step."""
    squeeze = zlib.compressobj(wbits=31)
    chunks = [squeeze.compress(TEXT) + squeeze.flush(zlib.Z_SYNC_FLUSH) for _ in range(3)]

    outcome = passed(tap_of(), chunks, {**SSE, "content-encoding": "gzip"}, ends=False)

    assert outcome == Outcome(Ending.CUT, None, 15)


@pytest.mark.parametrize("at", [0, 1, 5, 40])
def test_damaged_compression_is_unknown(at: int) -> None:
    """Damaged, cut, or with something behind it."""
    good = gzip.compress(ANSWER)
    gzipped = {**JSON, "content-encoding": "gzip"}
    damaged = good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]

    for body in (damaged, good[:-1], good + b"junk", b""):
        usage = passed(tap_of(), [body], gzipped).usage
        assert usage is None or (body is damaged and at == 5)  # a time stamp nobody reads


def test_a_stream_that_is_damaged_on_the_way_is_unknown() -> None:
    """Text may be missing; but after its end nothing can be."""
    squeeze = zlib.compressobj(wbits=31)
    text = squeeze.compress(TEXT) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    headers = {**SSE, "content-encoding": "gzip"}
    whole = gzip.compress(TEXT + USAGE + DONE)

    assert passed(tap_of(), [text, b"\xff" * 9], headers) == Outcome(Ending.CUT)
    assert passed(tap_of(), [whole, b"\xff"], headers).usage == Usage(12, 30)


def bomb(size: int, filling: bytes) -> bytes:
    """Return a little that unfolds to so many megabytes."""
    squeeze = zlib.compressobj(9, wbits=31)
    blocks = [squeeze.compress(filling * (1_048_576 // len(filling))) for _ in range(size)]
    return b"".join([*blocks, squeeze.flush()])


@pytest.mark.parametrize(("headers", "grows"), [(JSON, 40), (SSE, 12)])
@pytest.mark.parametrize("filling", [b" ", TEXT.replace(b"hello", b"hello" * 800)])
def test_a_bomb_is_unknown_and_does_not_grow_memory(
    headers: dict[str, Any], grows: int, filling: bytes
) -> None:
    """Forty megabytes from forty kilobytes; a whole answer is kept up to 16."""
    chunks = [bomb(40, filling)]
    tracemalloc.start()

    outcome = passed(tap_of(), chunks, {**headers, "content-encoding": "gzip"})

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (outcome.usage, outcome.counted_output) == (None, None)
    assert peak < grows * 1_048_576


def test_headers_may_report_what_a_body_hides() -> None:
    """Bedrock counts in headers, too."""
    dialect = dialect_for("bedrock_invoke")
    body = b'{"anthropic_version":"x","max_tokens":9,"messages":[{"role":"user","content":"x"}]}'
    head = RequestHead("POST", "/model/anthropic.claude-x/invoke")
    tap = Tap(dialect, dialect.read_request(head, body))
    counts = {
        "x-amzn-bedrock-input-token-count": "12",
        "x-amzn-bedrock-output-token-count": "30",
        "content-encoding": "br",
    }

    assert passed(tap, [b"\x1b\x00"], {**JSON, **counts}).usage == Usage(12, 30)
