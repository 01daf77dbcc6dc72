"""The calls that are made: what is asked, how the provider is to answer, who leaves early."""

from __future__ import annotations

import json
import random
import time
from typing import Any, NamedTuple

MODEL = "gpt-4o"
TIERS = ("strict", "counted", "local")
PRINCIPALS = 2
"""Of each tier at one time: few, so that all processes meet in the same accounts."""
GENERATION_S = 6.0
"""After this time others take over, as those before have used up what they had."""
TIMEOUT_S = 20.0
"""Of every HTTP client here: longer than the longest call."""
_LONGEST = 40
_SLOW_MS = 160
"""A token of a call that lasts longer than the lease of its reservation."""
_KINDS = ("plain", "slow", "fails", "breaks", "leaves", "impatient")
_WEIGHTS = (50, 4, 5, 13, 18, 10)


class Script(NamedTuple):
    """How the provider answers one call."""

    words: int
    delay_ms: int
    fails: bool = False
    breaks_after: int | None = None

    def written(self) -> str:
        """Return it as the header it travels in."""
        return json.dumps(self)

    @classmethod
    def read(cls, header: str) -> Script:
        """Read what `written` wrote."""
        return cls(*json.loads(header))


class Ask(NamedTuple):
    """One call."""

    request: dict[str, Any]
    script: Script
    leaves_after: int | None
    """Words after which whoever asked does not want to hear more; None: all are wanted."""
    patience_s: float | None = None
    """After this time a task that made the call is cancelled, wherever it is."""


def ask(rng: random.Random) -> Ask:
    """Make up a call: most are plain, some slow, some fail in one of several ways."""
    words = rng.randrange(2, _LONGEST)
    script = Script(words, rng.choice((0, 2, 10, 30)))
    leaves_after = None
    patience_s = None
    match rng.choices(_KINDS, _WEIGHTS)[0]:
        case "slow":
            script = script._replace(words=_LONGEST, delay_ms=_SLOW_MS)
        case "fails":
            script = script._replace(fails=True)
        case "breaks":
            script = script._replace(breaks_after=rng.randrange(words))
        case "leaves":
            leaves_after = rng.randrange(words)
        case "impatient":
            patience_s = rng.choice((0.001, 0.003, 0.01, 0.1, 0.5))
    request = {
        "model": MODEL,
        "max_tokens": words + rng.randrange(-1, 5),
        "messages": [{"role": "user", "content": "word " * rng.randrange(1, 30)}],
        "stream": rng.random() < 0.7,
    }
    return Ask(request, script, leaves_after, patience_s)


def principals(number: int) -> list[tuple[str, str]]:
    """Return name and tier of everyone in a generation."""
    return [(f"{tier}-{number}-{each}", tier) for tier in TIERS for each in range(PRINCIPALS)]


def someone(rng: random.Random, began_at: float) -> tuple[str, str]:
    """Return name and tier of one who asks now; `began_at` is the start, in seconds."""
    return rng.choice(principals(int((time.time() - began_at) / GENERATION_S)))


def words_in(line: str) -> int:
    """Return how many words one line of a stream brings."""
    choices = _event(line).get("choices", [])
    return sum(bool(choice.get("delta", {}).get("content")) for choice in choices)


def usage_in(line: str) -> dict[str, int] | None:
    """Return the usage that one line of an answer reports, if it does."""
    usage: dict[str, int] | None = _event(line).get("usage")
    return usage


def _event(line: str) -> dict[str, Any]:
    """Return one line as an event of a stream, or as the whole of an answer that is none."""
    text = line.removeprefix("data: ")
    event: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
    return event
