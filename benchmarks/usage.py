"""Reading usage from an answer or a stream, next to parsing the same JSON once."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable
from time import perf_counter
from types import FrameType

from benchmarks._answers import EVENTS, Sample, samples
from benchmarks.measure import Result, Variant, alternate, at_most
from llm_budget_mw.dialects import DIALECTS
from llm_budget_mw.types import ModelCall, Prompt

_ROUNDS = 9
_ANSWERS = 20
"""Read in a row, in each round."""
_PIECE = 16 * 1024
_CALL = ModelCall("m", Prompt(), 10, stream=True, body={"stream_options": {"include_usage": True}})


def run() -> Iterable[Result]:
    """Measure every dialect that reads answers."""
    return asyncio.run(_run())


async def _run() -> list[Result]:
    results: list[Result] = []
    for sample in samples():
        if sample.answer:
            results += await _measure_answer(sample)
        if sample.events:
            results += await _measure_stream(sample)
    return results


async def _measure_answer(sample: Sample) -> list[Result]:
    dialect, answer = DIALECTS[sample.dialect], sample.answer
    if dialect.read_usage(answer, {}) is None:
        raise ValueError(f"no usage in the answer of {sample.name}")
    times = await alternate(
        _ROUNDS,
        {
            "ours": _timed(lambda: dialect.read_usage(answer, {}), _ANSWERS),
            "parsed": _timed(lambda: _parse([answer]), _ANSWERS),
        },
    )
    title = f"usage, {sample.name}, answer of 1 MB"
    return [Result(f"{title} / json.loads", times.ratio("ours", "parsed"), "x", at_most(1.2))]


async def _measure_stream(sample: Sample) -> list[Result]:
    events = [event.wire for event in sample.events]
    stream = b"".join(events)
    pieces = [stream[at : at + _PIECE] for at in range(0, len(stream), _PIECE)]
    documents = [event.data for event in sample.events if event.data]
    times = await alternate(
        _ROUNDS,
        {
            "an event a piece": _timed(lambda: _read(sample, events)),
            "pieces of 16 KB": _timed(lambda: _read(sample, pieces)),
            "parsed": _timed(lambda: _parse(documents)),
        },
    )
    title = f"usage, {sample.name}, stream of {EVENTS} events"
    parses = _parses(lambda: _read(sample, events)) / len(documents)
    return [
        *(
            Result(f"{title}, {name} / json.loads", times.ratio(name, "parsed"), "x")
            for name in ("an event a piece", "pieces of 16 KB")
        ),
        Result(f"{title}: JSON parses for an event", parses, "", at_most(1)),
    ]


def _read(sample: Sample, pieces: Iterable[bytes]) -> None:
    """Read a stream as an edge does, to the end."""
    reader = DIALECTS[sample.dialect].open_stream(_CALL, {"content-type": sample.stream_type})
    for piece in pieces:
        reader.feed(piece)
    reader.close()
    if not reader.complete or reader.usage is None:
        raise ValueError(f"no usage in the stream of {sample.name}")


def _parse(documents: Iterable[bytes]) -> None:
    """Parse each document, and keep none: what is measured against."""
    for document in documents:
        json.loads(document)


def _timed(work: Callable[[], object], count: int = 1) -> Variant:
    async def variant() -> float:
        begin = perf_counter()
        for _ in range(count):
            work()
        return (perf_counter() - begin) / count

    return variant


def _parses(work: Callable[[], object]) -> int:
    """Return how many documents were parsed, by whatever parser."""
    found = 0

    def note(frame: FrameType, event: str, called: object) -> None:
        nonlocal found
        name = getattr(called, "__name__", "") if event == "c_call" else ""
        found += name == "from_json" or (event == "call" and frame.f_code is json.loads.__code__)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found
