"""What holds for any input at all; each check raises `AssertionError` where it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_budget_mw.dialects._json import dump
from llm_budget_mw.dialects.protocol import Dialect, RequestHead, StreamReader
from llm_budget_mw.engine import Ending, Engine
from llm_budget_mw.errors import RequestError
from llm_budget_mw.tap import Tap
from llm_budget_mw.tokens.bound import byte_bound
from llm_budget_mw.types import MAX_AMOUNT, Grade, Grant, ModelCall, Offer, Plan, Prompt, Usage
from tests.deployment import ALICE, configured, engine_of
from tests.dialects.streaming import Seen, run
from tests.fuzz.mutate import Answer
from tests.fuzz.seeds import Field, Seeds

_OFFERED = 4096
_LONGEST_LABEL = 256
_MOST_EXTRA = 100_000
_MARK_BYTES = len(',"cache_control":{"type":"ephemeral"}')
_UNBOUNDED = ("compact", "input_tokens")
"""Last parts of the paths of Responses that take no bound."""
_COUNTING = (b"token", b"count", b"usage", b"units", b"eval", b"reason", b"feedback", b"\\u")
"""An answer without any of these has nothing that could be taken for a count."""


def build_engine() -> Engine:
    """Return an engine that prices any model, most of them from the catalogue."""
    prices = {
        "models": {"big": {"input": "2.50", "output": "10"}},
        "unknown": {"input": "5", "output": "25"},
    }
    return engine_of(configured({"budget": "$20/day", "max_tokens": _OFFERED}, prices=prices))


class Checks:
    """The properties of one dialect."""

    def __init__(self, seeds: Seeds, engine: Engine) -> None:
        self._seeds = seeds
        self._dialect: Dialect = seeds.dialect
        self._engine = engine
        self._call = ModelCall("big", Prompt(("hello",)), 100, stream=True)
        self._asked = ModelCall(
            "big", Prompt(), None, body={"stream_options": {"include_usage": True}}
        )

    def request(self, head: RequestHead, body: bytes, wanted: int, renamed: bool) -> None:
        """Check a request: refused by name, or bounded by what is written into it."""
        try:
            call = self._dialect.read_request(head, body)
        except RequestError:
            return
        self._check_call(call)
        most = _OFFERED if call.max_output is None else call.max_output
        output = min(wanted, most)
        model = call.model or "big"
        if renamed and len(model) < _LONGEST_LABEL // 2:
            model += "x"
        written = self._dialect.write_grant(head, call, model, output)
        if self._dialect.name == "custom":
            assert written.body == body
            return
        path = head.path if written.path is None else written.path
        self._check_bounds(path, json.loads(written.body), call, output)
        again = self._dialect.read_request(head._replace(path=path), written.body)
        if not path.rstrip("/").endswith(_UNBOUNDED):
            assert again.max_output is not None, "no bound was written"
            assert again.max_output <= output, "the provider may generate more than granted"
        assert (again.samplings, again.stream) == (call.samplings, call.stream)
        assert again.model == model, "another model was written"
        # Neither is read by a model, though it may be in a field that counts as input.
        most = byte_bound(call.prompt, "m") + len(dump(model)) + _MARK_BYTES
        assert byte_bound(again.prompt, "m") <= most, "the input grew"
        assert again.surcharges <= call.surcharges, "a feature appeared"

    def answer(self, answer: Answer) -> None:
        """Check a whole answer: counts that are counts, and a charge that is one."""
        usage = self._dialect.read_usage(answer.body, answer.headers)
        if usage is not None:
            _check_usage(usage)
            hint = answer.body.lower() + b" ".join(name.encode() for name in answer.headers)
            assert any(word in hint for word in _COUNTING), "a count came from nowhere"
        tap = Tap(self._dialect, self._call)
        tap.start(answer.status, answer.headers)
        assert tap.feed(answer.body) == answer.body
        tap.end()
        self._settle(tap)

    def stream(self, answer: Answer) -> None:
        """Check a stream: however it is cut into pieces, the same comes of it."""
        body, headers = answer.body, answer.headers
        pieces = list(_cut(body, answer.sizes))
        whole = self._read(self._call, headers, [body])
        for other in (pieces, [b"", *pieces, b""]):
            seen = self._read(self._call, headers, other)
            assert seen == whole, f"in pieces {seen}, whole {whole}"
        asked = self._read(self._asked, headers, pieces)
        assert asked.passed == body, "a byte was changed"
        assert asked[1:] == whole[1:], "asking for usage changed more than the bytes"
        if whole.usage is not None:
            _check_usage(whole.usage)
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            assert whole == Seen(body, None, "", complete=False, truncated=True), "read compressed"
        # As the edge does it, and as if the client had gone after some of it.
        for end in (len(pieces), len(pieces) // 2):
            tap = Tap(self._dialect, self._call)
            tap.start(answer.status, headers)
            for piece in pieces[:end]:
                tap.feed(piece)
            if end == len(pieces):
                tap.end()
            self._settle(tap)

    def every_cut(self, answer: Answer) -> None:
        """Check a stream that ends after any of its bytes."""
        for end in range(len(answer.body) + 1):
            seen = self._read(self._asked, answer.headers, [answer.body[:end]])
            assert seen.passed == answer.body[:end]
            if seen.usage is not None:
                _check_usage(seen.usage)

    def answer_not_zero(self, fine: Usage | None, wrong: bytes) -> None:
        """Check an answer with a field wrong: what was counted is counted or unknown."""
        _check_not_zero(fine, self._dialect.read_usage(wrong, {}))

    def stream_not_zero(self, headers: Mapping[str, str], fine: bytes, wrong: bytes) -> None:
        """Check a stream with a field wrong in the same way."""
        before = self._read(self._asked, headers, [fine]).usage
        _check_not_zero(before, self._read(self._asked, headers, [wrong]).usage)

    def _read(self, call: ModelCall, headers: Mapping[str, str], pieces: list[bytes]) -> Seen:
        reader: StreamReader = self._dialect.open_stream(call, headers)
        if reader.rewrites:
            return run(reader, pieces)
        fed = [reader.feed(piece) for piece in pieces]
        assert all(map(lambda a, b: a is b, fed, pieces)), "not the bytes that came"
        seen = run(reader, [])
        return seen._replace(passed=b"".join(fed) + seen.passed)

    def _check_call(self, call: ModelCall) -> None:
        assert call.max_output is None or 0 <= call.max_output < 2**31
        assert 1 <= call.samplings <= 2048 * 128
        assert call.model is None or 0 < len(call.model) <= _LONGEST_LABEL + 32
        assert byte_bound(call.prompt, "m") >= 0
        try:
            plan = self._engine.plan(ALICE, call)
        except RequestError:
            return
        for offer in plan.offers:
            assert min(offer[1:]) >= 0
            assert offer.min_output <= offer.max_output <= _OFFERED

    def _check_bounds(self, path: str, body: Any, call: ModelCall, output: int) -> None:
        found = [_at(body, field) for field in self._seeds.bounds]
        bounds = [bound for bound in found if bound is not None]
        if self._seeds.bounds and not path.rstrip("/").endswith(_UNBOUNDED):
            assert bounds, "no bound was written"
            assert all(type(bound) is int and bound <= output for bound in bounds), bounds
        if self._seeds.any_case:
            assert all(name == name.casefold() for name in body), "a bound by another spelling"
        if call.max_output is not None and output == call.max_output:
            return  # the caller's own numbers
        for field in self._seeds.budgets:
            budget = _at(body, field)
            assert type(budget) is not int or budget < output, "thinking beyond the bound"

    def _settle(self, tap: Tap) -> None:
        counted = 0
        grant = _granted(100)

        def count(text: str) -> int:
            nonlocal counted
            counted = self._engine.count(text, grant)
            return counted

        outcome = tap.outcome(count)
        done = self._engine.settle(grant, outcome, self._call)
        for charge in done.charges:
            assert type(charge) is int
            assert 0 <= charge <= MAX_AMOUNT
        if outcome.usage is None and outcome.counted_output is None:
            kept = grant.charges if done.grade is Grade.ESTIMATED else (0, 0, 0)
            assert done.charges == kept, "nothing is known, and something else was charged"
        if outcome.ending is Ending.CUT:
            assert done.grade is not Grade.EXACT


def _granted(output: int) -> Grant:
    offer = Offer("big", output, 1, 1.0, 21, 1, 52_500, 10_000)
    return Grant(Plan("0" * 24, (), (offer,), 60_000), offer, output, None)


def _check_usage(usage: Usage) -> None:
    for side in (usage.input_tokens, usage.output_tokens):
        assert side is None or (type(side) is int and 0 <= side <= MAX_AMOUNT), side
    part = (
        usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens,
        usage.reasoning_tokens, usage.input_audio_tokens, usage.output_audio_tokens,
        usage.web_searches,
    )  # fmt: skip
    assert all(type(number) is int and 0 <= number <= MAX_AMOUNT for number in part), part
    assert usage.cache_write_1h_tokens <= usage.cache_write_tokens
    for label in (usage.model, usage.service_tier):
        assert label is None or 0 < len(label) <= _LONGEST_LABEL
    assert len(usage.extra) < _MOST_EXTRA
    for extra in usage.extra:
        _check_usage(extra)


def _check_not_zero(fine: Usage | None, usage: Usage | None) -> None:
    if fine is None or usage is None:
        return
    for before, after in (
        (fine.input_tokens, usage.input_tokens),
        (fine.output_tokens, usage.output_tokens),
    ):
        assert not before or after != 0, "what is absent was taken for zero"


def _at(value: Any, field: Field) -> Any:
    for name in field:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _cut(body: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    start = 0
    for size in sizes:
        yield body[start : start + size]
        start += size
