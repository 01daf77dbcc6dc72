"""Tests of `llm_budget_mw.tokens.estimate`."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.config.prices import TokensConfig
from llm_budget_mw.tokens.bound import utf8_bytes
from llm_budget_mw.tokens.estimate import Estimator, InputEstimate
from llm_budget_mw.tokens.exact import ToktokCounter
from llm_budget_mw.types import Media, Prompt

MODELS = ["gpt-4o", "gpt-4", "gpt-oss-20b", "claude-opus-5", "claude-3-haiku", "gemini-3", "other"]
MEGABYTE = 2**20
HIDDEN = 16


class Recorder:
    """Counts one token for ten bytes, and remembers what it was given."""

    def __init__(self) -> None:
        self.bytes = 0
        self.calls = 0
        self.encodings: set[str] = set()

    def count(self, text: str, encoding: str) -> int:
        self.bytes += utf8_bytes(text)
        self.calls += 1
        self.encodings.add(encoding)
        return -(-utf8_bytes(text) // 10)


@functools.cache
def estimator() -> Estimator:
    return Estimator(TokensConfig(), ToktokCounter())


@given(
    st.lists(st.text(st.characters(exclude_categories=[])), max_size=4),
    st.integers(0, 100),
    st.sampled_from(MODELS),
)
def test_counting_never_exceeds_the_bound(texts: list[str], overhead: int, model: str) -> None:
    """The counted estimate lowers a reservation or leaves it, whatever the text."""
    prompt = Prompt(texts, overhead, (Media("image"),))

    counted = estimator().count(prompt, model)

    assert counted.tokens <= estimator().bound(prompt, model).tokens


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(" " * MEGABYTE, id="spaces"),
        pytest.param("x" * MEGABYTE, id="no-space"),
        pytest.param("\ud800" * (MEGABYTE // 3), id="surrogates"),
        pytest.param("𒀀" * (MEGABYTE // 4), id="rare-script"),
    ],
)
@pytest.mark.parametrize("model", ["gpt-4o", "claude-opus-5"])
def test_a_megabyte_of_anything_is_bounded(text: str, model: str) -> None:
    """Whatever it consists of, long input yields a number, and not above the bound."""
    prompt = Prompt((text,))

    assert estimator().count(prompt, model).tokens <= estimator().bound(prompt, model).tokens


@pytest.mark.parametrize("character", ["x", "é", "👍"])
@pytest.mark.parametrize("pieces", [1, 7])
def test_only_so_much_is_given_to_the_tokenizer(character: str, pieces: int) -> None:
    """Text beyond the cap is not tokenized and counts its bytes."""
    recorder = Recorder()
    capped = Estimator(TokensConfig(max_exact_bytes=1_000), recorder)
    prompt = Prompt((character * 2_000,) * pieces)
    size = 2_000 * pieces * len(character.encode())

    tokens, exact = capped.count(prompt, "gpt-4o")

    assert 0 < recorder.bytes <= 1_000
    assert not exact
    assert tokens >= size - recorder.bytes + HIDDEN


def test_many_tiny_texts_do_not_make_many_calls() -> None:
    """Each call to the tokenizer uses up some of the cap."""
    recorder = Recorder()
    capped = Estimator(TokensConfig(max_exact_bytes=1_600), recorder)

    estimate = capped.count(Prompt(("a",) * 50_000), "gpt-4o")

    assert recorder.calls <= 100
    assert not estimate.exact


def test_text_that_just_fits_is_counted_whole() -> None:
    """The cap itself is allowed."""
    capped = Estimator(TokensConfig(max_exact_bytes=1_000), Recorder())

    assert capped.count(Prompt(("x" * 1_000,)), "gpt-4o") == (100 + HIDDEN, True)
    assert capped.count(Prompt(("x" * 999, "yy")), "gpt-4o") == (100 + 1 + 1 + HIDDEN, False)


@pytest.mark.parametrize(
    ("model", "tokens", "exact"),
    [
        ("gpt-4o", 100, True),
        ("gpt-4", 100, True),
        ("claude-3-haiku", 135, False),
        ("claude-opus-5", 180, False),
        ("mistral-large", 135, False),
    ],
)
def test_other_tokenizers_count_more(model: str, tokens: int, exact: bool) -> None:
    """A count with OpenAI's encoding is multiplied by what the family was seen to need."""
    counting = Estimator(TokensConfig(), Recorder())

    assert counting.count(Prompt(("x" * 1_000,), 9), model) == (tokens + 9 + HIDDEN, exact)


@pytest.mark.parametrize(
    ("model", "encoding"), [("gpt-4o", "o200k_base"), ("gpt-3.5-turbo", "cl100k_base")]
)
def test_each_family_is_counted_in_its_encoding(model: str, encoding: str) -> None:
    """Older models have the older vocabulary."""
    recorder = Recorder()

    Estimator(TokensConfig(), recorder).count(Prompt(("hello",)), model)

    assert recorder.encodings == {encoding}


def test_one_user_message_is_estimated_close_to_its_count() -> None:
    """English text is counted far below its bytes."""
    text = "The budget is a fact instead of a graph. " * 50

    estimate = estimator().count(Prompt((text,), overhead_tokens=7), "gpt-4o")

    assert estimate.exact
    assert 450 < estimate.tokens < 600 < len(text)


def test_without_a_tokenizer_the_bound_is_the_estimate() -> None:
    """Nothing is guessed: the bound holds."""
    plain = Estimator(TokensConfig(), None)
    prompt = Prompt(("hello",), 3)

    assert plain.count(prompt, "gpt-4o") == plain.bound(prompt, "gpt-4o")
    assert not plain.worth_counting(prompt, plain.bound(prompt, "gpt-4o"), 1.0)


@pytest.mark.parametrize(
    ("share", "worth"), [(0.0, False), (0.25, False), (0.26, True), (1.0, True), (9.0, True)]
)
def test_counting_is_worth_it_where_the_charge_is_large(share: float, worth: bool) -> None:
    """A charge that is a small part of what is left cannot change the decision."""
    prompt = Prompt(("x" * 1_000,))
    bound = estimator().bound(prompt, "gpt-4o")

    assert estimator().worth_counting(prompt, bound, share) is worth


def test_counting_is_not_worth_it_where_text_is_not_the_cost() -> None:
    """Tokenizing a caption does not make its image cheaper."""
    prompt = Prompt(("a caption",), media=(Media("image"),))

    assert not estimator().worth_counting(prompt, estimator().bound(prompt, "gpt-4o"), 1.0)


def test_counting_is_not_worth_it_where_it_is_switched_off() -> None:
    """The option wins over a tokenizer that happens to be there."""
    switched_off = Estimator(TokensConfig(exact=False), Recorder())

    assert not switched_off.worth_counting(Prompt(("x" * 99,)), InputEstimate(99, False), 1.0)


@pytest.mark.parametrize(("length", "offload"), [(16_384, False), (16_385, True)])
def test_long_prompts_are_counted_off_the_event_loop(length: int, offload: bool) -> None:
    """The caller is told which prompts would hold up other requests."""
    assert estimator().offload(Prompt(("x" * length,))) is offload
