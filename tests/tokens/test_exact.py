"""Tests of `llm_budget_mw.tokens.exact`: real tokenizers, and no network."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import random
import socket
from pathlib import Path
from typing import NoReturn

import pytest
import structlog
import tiktoken
import tiktoken.registry

from llm_budget_mw.config.prices import TokensConfig
from llm_budget_mw.tokens.bound import utf8_bytes
from llm_budget_mw.tokens.exact import Counter, TiktokenCounter, ToktokCounter, load_counter
from llm_budget_mw.tokens.vocabulary import VOCABULARIES, Vocabulary, cache_directory

ENCODINGS = ["o200k_base", "cl100k_base"]
HOSTILE = {
    "empty": "",
    "special-token": "<|endoftext|><|fim_prefix|><|im_start|>",
    "lone-surrogates": "\ud800a\udfff" * 50,
    "reversed-pair": "\udc4d\ud83d" * 50,
    "emoji": "👩‍👩‍👧‍👦👍🏽🇩🇪" * 50,
    "rare-scripts": "𒀀𓀀ꙮ፨᠀𐎀" * 50,
    "chinese": "预算是事实而不是图表" * 50,
    "one-letter": "a" * 10_000,
    "controls": "\x00\x01\x7f\u200b\ufeff" * 50,
    "spaces": " " * 10_000,
    "newlines": "\r\n\t" * 3_000,
}
CONTENT = b"a vocabulary that is never parsed"
TINY = Vocabulary("tiny", "http://127.0.0.1:9/tiny", hashlib.sha256(CONTENT).hexdigest())


def tiny_encoding(pattern: str = r"\s+(?!\S)|\s+|\S+") -> tiktoken.Encoding:
    """One token for each byte, through tiktoken's real code."""
    bytes_only = {bytes([byte]): byte for byte in range(256)}
    return tiktoken.Encoding("tiny", pat_str=pattern, mergeable_ranks=bytes_only, special_tokens={})


@functools.cache
def toktok() -> ToktokCounter:
    return ToktokCounter()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whatever opens a connection."""

    def connect(*_args: object) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.parametrize(
    ("text", "encoding", "tokens"),
    [
        ("hello world", "o200k_base", 2),
        ("hello world", "cl100k_base", 2),
        ("<|endoftext|>", "o200k_base", 7),
        ("<|endoftext|>", "cl100k_base", 7),
        ("你好世界", "cl100k_base", 5),
        ("你好世界", "o200k_base", 2),
    ],
)
def test_known_texts_have_their_known_counts(text: str, encoding: str, tokens: int) -> None:
    """Counts are those of the published encodings, special tokens read as text."""
    assert toktok().count(text, encoding) == tokens


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_counted_within_its_bytes(text: str, encoding: str) -> None:
    """No text raises, and none has more tokens than bytes."""
    assert 0 <= toktok().count(text, encoding) <= utf8_bytes(text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_tiktoken_reads_hostile_text_as_text(text: str) -> None:
    """The other tokenizer does not raise either."""
    counter = TiktokenCounter({"tiny": tiny_encoding()})

    assert counter.count(text, "tiny") <= utf8_bytes(text)


def test_a_panic_in_rust_counts_the_bytes(capfd: pytest.CaptureFixture[str]) -> None:
    """A million spaces make tiktoken panic with what is not an `Exception`."""
    counter = TiktokenCounter({"tiny": tiny_encoding()})
    text = " " * 1_000_000

    with pytest.raises(BaseException, match=r"StackOverflow|Runtime") as caught:
        tiny_encoding().encode_ordinary(text)
    assert type(caught.value).__name__ == "PanicException"
    assert counter.count(text, "tiny") == 1_000_000
    assert "panicked" in capfd.readouterr().err


def test_being_interrupted_is_not_mistaken_for_a_panic() -> None:
    """Only the panic is caught: a process can still be stopped while it counts."""

    class Interrupted:
        def encode_ordinary(self, text: str) -> list[int]:
            raise KeyboardInterrupt(text)

    with pytest.raises(KeyboardInterrupt):
        TiktokenCounter({"tiny": Interrupted()}).count("a", "tiny")


def test_an_encoding_that_is_not_at_hand_counts_the_bytes() -> None:
    """Without its vocabulary a text is bounded, not guessed."""
    assert TiktokenCounter({}).count("né", "o200k_base") == 3


@pytest.mark.usefixtures("offline")
def test_a_vocabulary_in_the_cache_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a verified file in place tiktoken counts."""
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "tiny", tiny_encoding())
    TINY.path(tmp_path).write_bytes(CONTENT)

    counter = load_counter(TokensConfig(), directory=tmp_path, vocabularies=[TINY])

    assert isinstance(counter, TiktokenCounter)
    assert counter.count("abc", "tiny") == 3


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("content", [None, b"damaged"])
def test_nothing_is_downloaded_unasked(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged vocabulary means the other tokenizer, not a download."""
    for vocabulary in VOCABULARIES if content else ():
        vocabulary.path(tmp_path).write_bytes(content or b"")

    assert isinstance(load_counter(TokensConfig(), directory=tmp_path), ToktokCounter)


@pytest.mark.usefixtures("offline")
def test_without_a_cache_directory_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable makes tiktoken download every time, so it is not asked."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")

    assert isinstance(load_counter(TokensConfig(download=True)), ToktokCounter)


def test_counting_can_be_switched_off(tmp_path: Path) -> None:
    """Without exact counts no tokenizer takes up memory."""
    assert load_counter(TokensConfig(exact=False), directory=tmp_path) is None


def test_having_no_tokenizer_is_logged_once_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program starts, estimates by bytes, and says how to do better."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    with structlog.testing.capture_logs() as logs:
        counter = load_counter(TokensConfig(), directory=tmp_path)

    assert counter is None
    assert [(log["event"], log["log_level"]) for log in logs] == [("tokenizer.missing", "warning")]
    assert "TIKTOKEN_CACHE_DIR" in logs[0]["remedy"]


def test_a_failed_download_is_logged_and_survived(tmp_path: Path) -> None:
    """A start without the network falls back, and says why."""
    config = TokensConfig(download=True, download_timeout_s=5)

    with structlog.testing.capture_logs() as logs:
        counter = load_counter(config, directory=tmp_path, vocabularies=[TINY])

    assert isinstance(counter, ToktokCounter)
    assert [(log["event"], log["url"]) for log in logs] == [("tokenizer.download_failed", TINY.url)]


@pytest.mark.usefixtures("offline")
def test_a_file_that_is_there_is_not_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloads are for what is missing."""
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "tiny", tiny_encoding())
    TINY.path(tmp_path).write_bytes(CONTENT)

    with structlog.testing.capture_logs() as logs:
        load_counter(TokensConfig(download=True), directory=tmp_path, vocabularies=[TINY])

    assert logs == []


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_both_tokenizers_agree(encoding: str) -> None:
    """The fast tokenizer counts what the reference counts, on hostile and on random text."""
    directory = cache_directory()
    if directory is None or not all(v.is_in(directory) for v in VOCABULARIES):
        pytest.skip("set TIKTOKEN_CACHE_DIR to a directory with both vocabularies")
    reference: Counter | None = load_counter(TokensConfig())
    assert isinstance(reference, TiktokenCounter)

    letters = random.Random(7)
    texts = [*HOSTILE.values(), "".join(letters.choices("ab 1,.é中\n", k=20_000))]
    for text in texts:
        assert toktok().count(text, encoding) == reference.count(text, encoding)
