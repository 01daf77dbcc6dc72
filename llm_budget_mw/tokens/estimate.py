"""The input tokens of a prompt: cheaply and too high, or counted where that is worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llm_budget_mw.tokens.bound import byte_bound, fixed_tokens, text_bytes, utf8_bytes
from llm_budget_mw.tokens.families import family_of
from llm_budget_mw.types import Prompt

if TYPE_CHECKING:
    from llm_budget_mw.config.prices import TokensConfig
    from llm_budget_mw.tokens.exact import Counter

# Each text takes at least this much of the byte allowance: calling the tokenizer costs time too.
_LEAST_PIECE = 16
_MOST_BYTES_OF_A_CHARACTER = 4


class InputEstimate(NamedTuple):
    """How many tokens a prompt has at most."""

    tokens: int
    exact: bool
    """True if all text was counted with the model's own tokenizer."""


class Estimator:
    """Estimates prompts; pure, and safe to share between threads."""

    def __init__(self, config: TokensConfig, counter: Counter | None) -> None:
        self._config = config
        self._counter = counter

    def bound(self, prompt: Prompt, model: str) -> InputEstimate:
        """Return the strict upper bound, cheap enough for the event loop."""
        return InputEstimate(byte_bound(prompt, model), exact=False)

    def count(self, prompt: Prompt, model: str) -> InputEstimate:
        """Return the counted estimate, never above `bound`.

        Text beyond `tokens.max_exact_bytes` counts a token for each byte. For a model with
        another tokenizer the count is multiplied by its family's factor. See `offload`.
        """
        bound = byte_bound(prompt, model)
        if self._counter is None:
            return InputEstimate(bound, exact=False)
        family = family_of(model)
        counted, whole = self._count_texts(self._counter, prompt, family.encoding)
        tokens = -(-counted * family.percent // 100) + fixed_tokens(prompt, model)
        return InputEstimate(min(bound, tokens), exact=whole and family.exact)

    def worth_counting(self, prompt: Prompt, bound: InputEstimate, charge_share: float) -> bool:
        """Return whether counting could change the decision.

        `charge_share` is the part that the charge for `bound` has in all that the call would
        hold. Where most of the bound is not text, counting cannot lower it.
        """
        if self._counter is None or not self._config.exact or charge_share <= self._config.share:
            return False
        return 2 * text_bytes(prompt.texts) >= bound.tokens

    def offload(self, prompt: Prompt) -> bool:
        """Return whether `count` takes so long that it belongs in a thread."""
        return text_bytes(prompt.texts) > self._config.offload_bytes

    def _count_texts(self, counter: Counter, prompt: Prompt, encoding: str) -> tuple[int, bool]:
        """Return the tokens of all text, and whether all of it was counted."""
        allowance, tokens, whole = self._config.max_exact_bytes, 0, True
        for text in prompt.texts:
            size = utf8_bytes(text)
            head = text if size <= allowance else _within(text, allowance)
            tokens += size - utf8_bytes(head) + (counter.count(head, encoding) if head else 0)
            allowance = max(0, allowance - max(size, _LEAST_PIECE))
            whole = whole and head == text
        return tokens, whole


def _within(text: str, size: int) -> str:
    """Return a beginning of `text` of at most `size` bytes."""
    return text[:size] if text.isascii() else text[: size // _MOST_BYTES_OF_A_CHARACTER]
