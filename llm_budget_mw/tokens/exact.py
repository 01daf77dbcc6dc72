"""Counting tokens with a real tokenizer, loaded at start-up and never from a request."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from llm_budget_mw.tokens.bound import utf8_bytes
from llm_budget_mw.tokens.vocabulary import VOCABULARIES, Vocabulary, cache_directory, fetch

if TYPE_CHECKING:
    from llm_budget_mw.config.prices import TokensConfig

_log: Any = structlog.get_logger("llm_budget_mw")


class Counter(Protocol):
    """A tokenizer, as far as it is needed here. Safe to share between threads."""

    def count(self, text: str, encoding: str) -> int:
        """Return the number of tokens of `text`, special-token strings read as plain text.

        Never raises: where an encoding is not at hand or fails, its answer is the number of
        UTF-8 bytes, which is never too low.
        """
        ...


class Encoder(Protocol):
    """The one method used of `tiktoken.Encoding`."""

    def encode_ordinary(self, text: str) -> Sequence[int]:
        """Return the token ids of `text`."""
        ...


class TiktokenCounter:
    """Counts with tiktoken. Give it at most some hundred KB: long runs are slow."""

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        self._encoders = encoders

    def count(self, text: str, encoding: str) -> int:
        """Return the number of tokens of `text`."""
        encoder = self._encoders.get(encoding)
        if encoder is None:
            return utf8_bytes(text)
        try:
            return len(encoder.encode_ordinary(text))
        except BaseException as error:
            # A panic in Rust, as on a million spaces, is not an `Exception`, and its class
            # cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            return utf8_bytes(text)


class ToktokCounter:
    """Counts with toktok-rs, whose vocabularies are compiled in. Building one takes 0.5 s."""

    def __init__(self) -> None:
        self._batch_count = importlib.import_module("toktok").batch_count
        for vocabulary in VOCABULARIES:
            self.count("", vocabulary.encoding)

    def count(self, text: str, encoding: str) -> int:
        """Return the number of tokens of `text`."""
        try:
            return int(self._batch_count([text], encoding, threads=1)[0])
        except UnicodeEncodeError:
            return self.count(_without_surrogates(text), encoding)


def load_counter(
    config: TokensConfig,
    *,
    directory: Path | None = None,
    vocabularies: Sequence[Vocabulary] = VOCABULARIES,
) -> Counter | None:
    """Return the tokenizer to use, or None if there is none; at start-up only.

    tiktoken if at least one of its vocabulary files is in `directory` (by default where
    tiktoken keeps them), else toktok-rs if it is installed. Nothing is downloaded unless
    `tokens.download` is true.
    """
    if not config.exact:
        return None
    directory = directory or cache_directory()
    if directory and config.download:
        _download_missing(vocabularies, directory, config.download_timeout_s)
    present = [v for v in vocabularies if directory and v.is_in(directory)]
    if present:
        return TiktokenCounter({v.encoding: _load(v.encoding) for v in present})
    if importlib.util.find_spec("toktok"):
        return ToktokCounter()
    _log.warning(
        "tokenizer.missing",
        effect="input is estimated at one token for each byte, some four times too high",
        remedy="install llm-budget-mw[fast-tokens], or set TIKTOKEN_CACHE_DIR to a directory "
        "with tiktoken's files, or set tokens.download = true",
    )
    return None


def _download_missing(
    vocabularies: Sequence[Vocabulary], directory: Path, timeout_s: float
) -> None:
    for vocabulary in vocabularies:
        if not vocabulary.is_in(directory):
            try:
                fetch(vocabulary, directory, timeout_s)
            except (OSError, ValueError) as error:
                _log.warning("tokenizer.download_failed", url=vocabulary.url, reason=str(error))


def _load(encoding: str) -> Encoder:
    import tiktoken

    return tiktoken.get_encoding(encoding)


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
