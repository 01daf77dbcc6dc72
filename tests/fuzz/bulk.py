"""Large hostile input: what would take for ever if any of it took time by the square."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.types import ModelCall, Prompt
from tests.dialects.streaming import run
from tests.fuzz.seeds import Seeds, compact, framed
from tests.fuzz.sweep import with_child

MEBIBYTE = 1024 * 1024
MOST_SECONDS = 20.0
"""Of processor time for a mebibyte. Blank lines, the dearest, take two, and six under coverage."""
_SINGLE = 50
"""One part in so many of the input is also fed byte by byte."""
_PIECE = 1024

_ATOMS = (
    b'"', b"\\", b'\\"', b"{", b"[", b"[]", b"{},", b"\n", b"\r", b"\r\n\r", b"\n\n", b"\xff", b"\\ud83d",
    b"data: ", b"data: \n\n", b"data: {}\n\n", b'"delta"', b'"delta":{"content":"', b'"usage":null',
    b'"usage"', b'{"a":', b'"bytes":"', b"[DONE]", b"9", b"\x00\x00\x00\x10",
)  # fmt: skip
Job = Callable[[], object]
_CALL = ModelCall("big", Prompt(("hello",)), 100, stream=True)


def check_bulk(seeds: Seeds, size: int, every: int = 1) -> int:
    """Check that no input of that size, or one in so many, takes too long; return their number."""
    count = 0
    most = MOST_SECONDS * size / MEBIBYTE
    both = zip(_jobs(seeds, size), _jobs(seeds, size // 4), strict=True)
    for (what, job), (_, quarter) in islice(both, 0, None, every):
        count += 1
        taken = _seconds(job)
        # Four times as long if linear, sixteen times by the square.
        if taken > most / 10 and taken > 8 * _seconds(quarter):
            taken = min(taken, _seconds(job))
            times = taken / min(_seconds(quarter) for _ in range(3))
            assert times < 8, f"{seeds.dialect.name}: {what} took {times:.1f} times as long"
        assert taken < most, f"{seeds.dialect.name}: {what} took {taken:.1f} s"
    return count


def _seconds(job: Job) -> float:
    started = time.process_time()
    job()
    return time.process_time() - started


def _jobs(seeds: Seeds, size: int) -> Iterator[tuple[str, Job]]:
    for what, body in _streams(seeds, size):
        small = body[: size // _SINGLE]
        yield f"a stream of {what}", partial(_read_stream, seeds, body, len(body))
        yield f"a stream of {what}, in pieces", partial(_read_stream, seeds, body, _PIECE)
        yield f"a stream of {what}, byte by byte", partial(_read_stream, seeds, small, 1)
    for what, body in [*_atoms(size), *_grown(seeds.answers, size)]:
        yield f"an answer with {what}", partial(seeds.dialect.read_usage, body, {})
    for what, body in [*_atoms(size), *_grown(seeds.requests, size)]:
        yield f"a request with {what}", partial(_read_request, seeds, body)


def _read_stream(seeds: Seeds, body: bytes, piece: int) -> None:
    reader = seeds.dialect.open_stream(_CALL, {"content-type": seeds.stream_type})
    run(reader, [body[at : at + piece] for at in range(0, len(body), piece)])


def _read_request(seeds: Seeds, body: bytes) -> None:
    head = RequestHead("POST", seeds.paths[0])
    try:
        call = seeds.dialect.read_request(head, body)
    except RequestError:
        return
    seeds.dialect.write_grant(head, call, call.model or "big", 1)


def _atoms(size: int) -> Iterator[tuple[str, bytes]]:
    for atom in _ATOMS:
        yield repr(atom), atom * (size // len(atom))


def _streams(seeds: Seeds, size: int) -> Iterator[tuple[str, bytes]]:
    first = seeds.write(seeds.streams[0][:1])
    for what, body in _atoms(size):
        yield what, body
        yield f"{what} in an event", first + b'data: {"choices":[{"delta":{"content":"' + body
        if seeds.stream_type.endswith("eventstream"):
            yield f"{what} in a message", framed(body, event_type="chunk", message_type="event")
    whole = seeds.write(seeds.streams[0])
    yield "a fine stream again and again", whole * (size // len(whole))
    for number, event in enumerate(seeds.streams[0]):
        one = seeds.write([event])
        yield f"event {number} again and again", one * (size // len(one))
        for what, grown in _each_grown(event if isinstance(event, dict) else {}, size):
            yield f"event {number} with {what}", seeds.write([grown])


def _grown(values: tuple[dict[str, Any], ...], size: int) -> Iterator[tuple[str, bytes]]:
    """Yield the values with each text and each array repeated until they are that large."""
    for value in values:
        for what, grown in _each_grown(value, size):
            yield what, compact(grown)


def _each_grown(value: Any, size: int) -> Iterator[tuple[str, Any]]:
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        if isinstance(child, str) and child:
            yield f"{key} grown", with_child(value, key, child * (size // len(child)))
        if isinstance(child, list) and child:
            times = size // len(compact(child))
            yield f"{key} grown", with_child(value, key, child * max(1, times))
        if isinstance(child, dict | list):
            for what, grown in _each_grown(child, size):
                yield what, with_child(value, key, grown)
