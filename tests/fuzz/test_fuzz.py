"""A bounded part of the fuzzing: `make fuzz` runs a hundred thousand inputs for each dialect."""

from __future__ import annotations

from typing import Any

import pytest

from llm_budget_mw.dialects import DIALECTS, openai_chat
from llm_budget_mw.dialects._json import dump
from llm_budget_mw.dialects.openai_chat import OpenAIChat
from llm_budget_mw.dialects.protocol import RequestHead, Rewritten
from llm_budget_mw.types import ModelCall
from tests.dialects.streaming import run
from tests.fuzz.__main__ import main
from tests.fuzz.bulk import MEBIBYTE, check_bulk
from tests.fuzz.campaign import Campaign
from tests.fuzz.seeds import SEEDS, compact

_MUTATIONS = 200
_BULK = MEBIBYTE // 64


def test_every_dialect_is_fuzzed() -> None:
    """A new dialect needs seeds."""
    assert {seeds.dialect.name for seeds in SEEDS.values()} == DIALECTS.keys()


@pytest.mark.parametrize("dialect", sorted(SEEDS.keys() - {"custom"}))
def test_what_is_broken_was_fine(dialect: str) -> None:
    """The seeds are read: a request, and the usage of an answer and of a stream."""
    seeds = SEEDS[dialect]
    head = RequestHead("POST", seeds.paths[0])
    call = seeds.dialect.read_request(head, compact(seeds.requests[0]))
    usage = seeds.dialect.read_usage(compact(seeds.answers[0]), {})
    reader = seeds.dialect.open_stream(call, {"content-type": seeds.stream_type})
    seen = run(reader, [seeds.write(seeds.streams[0])])

    assert usage is not None
    assert usage.input_tokens
    if dialect != "openai_embeddings":
        assert seen.usage is not None
        assert (bool(seen.usage.output_tokens), seen.complete) == (True, True)


@pytest.mark.parametrize("dialect", SEEDS)
def test_nothing_breaks_a_dialect(dialect: str) -> None:
    """Broken in each field and at random: never an exception, never a bound or a count too much."""
    report = Campaign(dialect, number=1).run(_MUTATIONS, bulk_bytes=0, sweep_every=17)

    assert not report.failures
    assert report.inputs > _MUTATIONS


@pytest.mark.parametrize("dialect", SEEDS)
def test_no_input_takes_time_by_the_square(dialect: str) -> None:
    """Whatever is repeated: in requests, answers and streams, in one piece or byte by byte."""
    assert check_bulk(SEEDS[dialect], _BULK, every=5) > 0


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        ("anthropic_messages", {"usage": {"input_tokens": 1, "cache_read_input_tokens": 2**53}}),
        ("bedrock", {"usage": {"inputTokens": 1, "cacheReadInputTokens": 2**53}}),
        (
            "gemini",
            {"usageMetadata": {"promptTokenCount": 1, "toolUsePromptTokenCount": 2**53}},
        ),
    ],
)
def test_a_count_that_no_call_can_reach_is_none(dialect: str, answer: dict[str, Any]) -> None:
    """It is left out before it is added to others, so that no sum is more than a store can hold."""
    usage = DIALECTS[dialect].read_usage(compact(answer), {})

    assert usage is not None
    assert usage.input_tokens == 1


def test_the_command_repeats_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure shows the seed and the number of its input, which fail again by themselves."""

    def careless(
        self: OpenAIChat, head: RequestHead, call: ModelCall, model: str, output: int
    ) -> Rewritten:
        return Rewritten(dump({**call.body, "model": model, "max_completion_tokens": output}))

    monkeypatch.setattr(openai_chat.OpenAIChat, "write_grant", careless)
    campaign = Campaign("openai_compatible", number=7)
    position = 0
    while not campaign.report.failures:
        campaign.mutation(position)
        position += 1
    [failure] = campaign.report.failures

    assert f"--seed 7 --at {position - 1}: request" in failure
    arguments = ["--dialect", "openai_compatible", "--seed", "7", "--at", f"{position - 1}"]
    assert main(arguments) == 1
    assert failure.splitlines()[0] in capsys.readouterr().out
