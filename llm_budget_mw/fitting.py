"""Shortens a conversation to a number of tokens, so that what is left is still one.

The rule: what hangs together goes together. A tool's result never stays without its call,
nor a call without its results, and nothing of a turn stays without the user message that
opened it. Pure and linear: each message is counted at most once, the newest first.
"""

from __future__ import annotations

import dataclasses
import functools
import reprlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeGuard, TypeVar, cast

from llm_budget_mw.config.prices import TokensConfig
from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects._json import dump
from llm_budget_mw.dialects.protocol import Dialect, RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.tokens.estimate import Estimator
from llm_budget_mw.tokens.exact import load_counter
from llm_budget_mw.tokens.families import family_of
from llm_budget_mw.types import ModelCall, Prompt

Message = Mapping[str, object]
M = TypeVar("M", bound=Message)
MessageCounter = Callable[[Any], int]
"""Message to tokens, its share of the format's overhead included."""

_OPENAI = dialect_for("openai_chat")
_ANTHROPIC = dialect_for("anthropic_messages")
_HEAD = RequestHead("POST", "")
_EMPTY: Message = {"role": "user", "content": ""}
_INSTRUCTIONS = ("system", "developer")
_REQUIRED = {"max_tokens": 1}
"""What a request has to have besides its messages."""
_OPENAI_PARTS = frozenset({"image_url", "input_audio", "file", "refusal"})
_ANTHROPIC_MEMBERS = frozenset({"role", "content"})
_SUMMARY_SHARE = 8
"""One part in so many of the tokens is kept free for a summary, if nothing else is said."""


def fit_messages(
    messages: Sequence[M],
    max_tokens: int,
    *,
    model: str | None = None,
    counter: MessageCounter | None = None,
    pinned: Callable[[M], bool] | None = None,
    summarise: Callable[[list[M]], M | None] | None = None,
    summary_tokens: int | None = None,
) -> list[M]:
    """Return the newest part of a conversation that has at most `max_tokens`.

    `messages` are OpenAI's or Anthropic's, as plain mappings; neither they nor their list are
    changed. `max_tokens` is for them alone: tools, Anthropic's `system`, the answer, and some
    30 tokens that a provider adds to every request come on top.

    Kept always, in their order: system and developer messages, what `pinned` says, the last
    user message, and the last message with what belongs to it. Of the rest the oldest turns
    go, whole; a turn is a user message and all up to the next. If the last turn alone is too
    long, its oldest rounds go, each an assistant message with the results of its tools.

    `pinned` is a predicate and not positions, because it means the same messages when the
    list has grown or has been fitted before.

    `summarise` is called once, with what was dropped in its order, if anything was. It returns
    a message, or None: a user message, which goes with the oldest turns the next time, or a
    system or developer message, which stays for good and which Anthropic does not take there.
    It is put before what was kept of the turns it stands for, or left out if it does not fit;
    `summary_tokens` are kept free for it, an eighth of `max_tokens` unless given.

    `counter` gives the tokens of one message. Without one they are estimated as for `model`
    (None: any), never too low, by the tokenizer that is installed; the first time that takes
    some 0.5 s, to load it.

    Raises `RequestError`: 413 `prompt_too_long` if what is always kept does not fit, 400 for
    what is no message. Raises `TypeError` if `summarise` returns what cannot be a summary.

    Claude's signed thinking may be bound to all that came before it. The provider may refuse
    a shortened conversation that still holds some, unless `thinking.block_binding` drops it.
    """
    conversation = list(messages)
    _check(conversation)
    tally = _Tally(conversation, counter or _counter_of_any(model))
    anthropic = _is_claude(model) or any(map(_has_anthropic_part, conversation))
    shape = _shape(conversation, anthropic, pinned)
    window = _Window(conversation, shape, tally, max_tokens)
    if window.whole or summarise is None:
        return window.kept()
    window.leave_free(max_tokens // _SUMMARY_SHARE if summary_tokens is None else summary_tokens)
    summary = summarise(window.dropped())
    if summary is None or tally.count(_checked(summary)) > window.left:
        return window.kept()
    return window.kept(summary)


def fit_call(
    call: ModelCall, max_tokens: int, dialect: Dialect, estimator: Estimator, model: str
) -> ModelCall:
    """Return a call whose whole input is at most `max_tokens`, as `estimator` counts it for `model`.

    The call itself, if it has no more; else one with fewer messages, read by its dialect,
    which is OpenAI's chat or Anthropic's. May take three times as long as `Estimator.count`.
    Raises `RequestError`, 413 `prompt_too_long`, if it cannot be made to fit.
    """

    def exact(prompt: Prompt) -> int:
        return estimator.count(prompt, model).tokens

    def bound(prompt: Prompt) -> int:
        return estimator.bound(prompt, model).tokens

    if exact(call.prompt) <= max_tokens:
        return call
    fitted = _refit(call, max_tokens, dialect, exact)
    if exact(fitted.prompt) <= max_tokens:
        return fitted
    # The estimator stops to tokenize after so many bytes of a prompt, so counts do not add up.
    return _refit(call, max_tokens, dialect, bound)


def _refit(
    call: ModelCall, max_tokens: int, dialect: Dialect, estimate: Callable[[Prompt], int]
) -> ModelCall:
    count = _counter(dialect, estimate)
    beside = estimate(_read(dialect, [_EMPTY], call.body).prompt) - count(_EMPTY)
    messages: list[Message] = call.body["messages"]
    shape = _shape(messages, dialect.name == _ANTHROPIC.name, None)
    window = _Window(messages, shape, _Tally(messages, count), max_tokens - beside)
    fitted = _read(dialect, window.kept(), call.body)
    # What others noted on the call, such as its task, no dialect can read again.
    return dataclasses.replace(
        call, prompt=fitted.prompt, surcharges=fitted.surcharges, shortened=True, body=fitted.body
    )


class _Tally:
    """Counts messages by their positions."""

    def __init__(self, messages: Sequence[Message], count: MessageCounter) -> None:
        self.count = count
        self._messages = messages

    def total(self, positions: Sequence[int], most: int) -> int:
        """Return the tokens of these, the last first; of some only if they exceed `most`."""
        tokens = 0
        for position in reversed(positions):
            tokens += self._counted(position)
            if tokens > most:
                break
        return tokens

    def _counted(self, position: int) -> int:
        try:
            return self.count(self._messages[position])
        except RequestError as error:
            # It was read alone, as the first of its list.
            at = error.message.replace("messages[0]", f"messages[{position}]", 1)
            raise RequestError(at, status=error.status, code=error.code) from None


class _Shape(NamedTuple):
    """How a conversation may be shortened, as positions in it."""

    always: list[int]
    """What stays."""
    units: list[list[int]]
    """The rest, oldest first: what goes at once."""
    turns: list[int]
    """Where each turn begins."""


class _Window(Generic[M]):
    """What is kept of a conversation: what has to stay, and the newest units that fit."""

    def __init__(
        self, messages: Sequence[M], shape: _Shape, tally: _Tally, max_tokens: int
    ) -> None:
        self._messages = messages
        self._shape = shape
        self._taken: list[tuple[list[int], int]] = []
        """Units and their tokens, the newest first."""
        self.left = max_tokens - tally.total(shape.always, max_tokens)
        if self.left < 0:
            raise RequestError(
                "What has to stay of the conversation (its instructions, its last user message "
                f"and what follows) has more than the {max(0, max_tokens)} tokens there are for it.",
                status=413,
                code="prompt_too_long",
            )
        for unit in reversed(shape.units):
            tokens = tally.total(unit, self.left)
            if tokens > self.left:
                break
            self._taken.append((unit, tokens))
            self.left -= tokens

    @property
    def whole(self) -> bool:
        """True if nothing is dropped."""
        return len(self._taken) == len(self._shape.units)

    def leave_free(self, tokens: int) -> None:
        """Drop more, until so many tokens are left or nothing else can go."""
        while self._taken and self.left < tokens:
            self.left += self._taken.pop()[1]

    def dropped(self) -> list[M]:
        """Return what is not kept, in its order."""
        return [self._messages[position] for position in self._dropped()]

    def kept(self, summary: M | None = None) -> list[M]:
        """Return what is kept, in its order, with a summary of the rest where that began."""
        gone = self._dropped()
        stays = set(range(len(self._messages))).difference(gone)
        if summary is None:
            return [self._messages[position] for position in sorted(stays)]
        # Not in the midst of a turn: there it would stay for good as part of the last one.
        turn = max(0, bisect_right(self._shape.turns, gone[0]) - 1)
        at = self._shape.turns[turn]
        before = [self._messages[position] for position in sorted(stays) if position < at]
        after = [self._messages[position] for position in sorted(stays) if position >= at]
        return [*before, summary, *after]

    def _dropped(self) -> list[int]:
        units = self._shape.units[: len(self._shape.units) - len(self._taken)]
        return sorted([position for unit in units for position in unit])


def _shape(messages: Sequence[M], anthropic: bool, pinned: Callable[[M], bool] | None) -> _Shape:
    """Divide a conversation into what stays and what goes at once."""
    spoken = _spoken(messages, anthropic)
    groups = _groups(messages, spoken)
    opens = [messages[group[0]].get("role") == "user" for group in groups]
    turn_of = list(accumulate(opens, initial=0))[1:]
    keep = _wanted(messages, groups, pinned)
    # Nothing of a turn stays without the user message that opened it.
    first = {turn: number for number, turn in reversed(list(enumerate(turn_of)))}
    keep |= {first[turn_of[number]] for number in keep if opens[first[turn_of[number]]]}
    units: dict[tuple[int, int], list[int]] = {}
    for number, group in enumerate(groups):
        if number not in keep:
            turn = turn_of[number]
            # Of the last turn each group goes by itself.
            part = number if turn == turn_of[-1] else -1
            units.setdefault((turn, part), []).extend(group)
    free = {position for unit in units.values() for position in unit}
    always = [position for position in range(len(messages)) if position not in free]
    turns = [groups[number][0] for number in first.values()]
    return _Shape(always, list(units.values()), sorted(turns))


def _spoken(messages: Sequence[Message], anthropic: bool) -> list[int]:
    """Return the positions of all but instructions, which stay whatever goes around them.

    Among Anthropic's messages those after the first one do not stand alone: each belongs
    between a user message and the answer to it.
    """
    spoken: list[int] = []
    for position, message in enumerate(messages):
        if not _instructs(message) or (anthropic and spoken):
            spoken.append(position)
    return spoken


def _groups(messages: Sequence[Message], spoken: list[int]) -> list[list[int]]:
    """Divide messages into the least parts that can go without leaving half of anything."""
    hangs_on = list(range(len(spoken)))
    """For each the earliest it needs."""
    calls: dict[_Key, int] = {}
    for number, position in enumerate(spoken):
        message = messages[position]
        # An id may come again: the last call with it is meant.
        calls.update((key, number) for key in _calls(message) if key)
        before = max(0, number - 1)
        needs = [calls.get(key, before) if key else before for key in _results(message)]
        if _instructs(message) or (number and _instructs(messages[spoken[before]])):
            needs.append(before)
        hangs_on[number] = min([number, *needs])
    groups: list[list[int]] = []
    end = earliest = len(spoken)
    for number in reversed(range(len(spoken))):
        earliest = min(earliest, hangs_on[number])
        if earliest == number:
            groups.append(spoken[number:end])
            end = number
    return groups[::-1]


def _wanted(
    messages: Sequence[M], groups: list[list[int]], pinned: Callable[[M], bool] | None
) -> set[int]:
    """Return the numbers of the groups that stay: pinned, last, with the last user message."""
    wanted = {len(groups) - 1} if groups else set[int]()
    asked: int | None = None
    for number, group in enumerate(groups):
        for position in group:
            message = messages[position]
            if _instructs(message) or (pinned is not None and pinned(message)):
                wanted.add(number)
            if _asks(message):
                asked = number
    return wanted if asked is None else wanted | {asked}


_Key = tuple[str, str]
"""What a result names its call by: an id, or in OpenAI's older form the function's name."""


def _calls(message: Message) -> Iterator[_Key | None]:
    """Yield the key of each call in a message; None for one that nothing can answer."""
    for call in _mappings(message.get("tool_calls")):
        yield _key("id", call.get("id"))
    function = message.get("function_call")
    if _is_mapping(function):
        yield _key("name", function.get("name"))
    for part in _mappings(message.get("content")):
        if _kind(part).endswith("tool_use"):
            yield _key("id", part.get("id"))


def _results(message: Message) -> Iterator[_Key | None]:
    """Yield the key of each result in a message; None for one that names no call."""
    if message.get("role") == "tool":
        yield _key("id", message.get("tool_call_id"))
    elif message.get("role") == "function":
        yield _key("name", message.get("name"))
    for part in _mappings(message.get("content")):
        if _kind(part).endswith("tool_result"):
            yield _key("id", part.get("tool_use_id"))


def _key(kind: str, name: object) -> _Key | None:
    return (kind, name) if isinstance(name, str) else None


def _instructs(message: Message) -> bool:
    return message.get("role") in _INSTRUCTIONS


def _asks(message: Message) -> bool:
    """Return whether a message is a user's own, and not the results of tools alone."""
    if message.get("role") != "user":
        return False
    kinds = [_kind(part) for part in _mappings(message.get("content"))]
    return not kinds or not all(kind.endswith("tool_result") for kind in kinds)


def _check(messages: Sequence[object]) -> None:
    for position, message in enumerate(messages):
        if not _is_mapping(message):
            raise RequestError(
                f"messages[{position}] must be a mapping with a role, not "
                f"{reprlib.repr(message)}; an SDK's object becomes one by its model_dump()."
            )


def _checked(summary: M) -> M:
    role = summary.get("role") if _is_mapping(summary) else None
    if role != "user" and role not in _INSTRUCTIONS:
        raise TypeError(
            "summarise must return a user, system or developer message, or None, not "
            f"{reprlib.repr(summary)}"
        )
    return summary


def _is_mapping(value: object) -> TypeGuard[Message]:
    return isinstance(value, Mapping)


def _mappings(value: object) -> list[Message]:
    if not isinstance(value, list | tuple):
        return []
    return [item for item in cast("Sequence[object]", value) if _is_mapping(item)]


def _kind(part: Message) -> str:
    kind = part.get("type")
    return kind if isinstance(kind, str) else ""


def _is_claude(model: str | None) -> bool:
    return "claude" in family_of(model or "").name


def _has_openai_only(message: Message) -> bool:
    """Return whether a message has what Anthropic's dialect would not count."""
    kinds = map(_kind, _mappings(message.get("content")))
    return not _ANTHROPIC_MEMBERS.issuperset(message) or not _OPENAI_PARTS.isdisjoint(kinds)


def _has_anthropic_part(message: Message) -> bool:
    kinds = map(_kind, _mappings(message.get("content")))
    return any(kind not in _OPENAI_PARTS for kind in kinds if kind not in ("", "text"))


def _counter_of_any(model: str | None) -> MessageCounter:
    """Return a counter for messages of either format, by the tokenizer that is installed."""

    def estimate(prompt: Prompt) -> int:
        return _estimator().count(prompt, model or "").tokens

    openai, anthropic = _counter(_OPENAI, estimate), _counter(_ANTHROPIC, estimate)
    is_claude = _is_claude(model)

    def count(message: Message) -> int:
        if _has_openai_only(message):
            return openai(message)
        if is_claude or _has_anthropic_part(message):
            return anthropic(message)
        # Plain text is the same in both but for its overhead.
        return openai(message) if model else max(openai(message), anthropic(message))

    return count


def _counter(dialect: Dialect, estimate: Callable[[Prompt], int]) -> MessageCounter:
    """Return a counter of single messages, as a dialect reads them."""

    def whole(*messages: Message) -> int:
        return estimate(_read(dialect, messages, _REQUIRED).prompt)

    # What a request has besides its messages.
    beside = 2 * whole(_EMPTY) - whole(_EMPTY, _EMPTY)
    return lambda message: whole(message) - beside


def _read(dialect: Dialect, messages: Sequence[Message], body: Mapping[str, Any]) -> ModelCall:
    try:
        written = dump({**body, "messages": messages})
    except ValueError as error:
        raise RequestError(f"messages[0] cannot be written as JSON: {error}.") from None
    return dialect.read_request(_HEAD, written)


@functools.cache
def _estimator() -> Estimator:
    config = TokensConfig()
    return Estimator(config, load_counter(config))
