"""Conversations are shortened to what fits, and never to what no provider would take."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_budget_mw.config.prices import TokensConfig
from llm_budget_mw.dialects import dialect_for
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import RequestError
from llm_budget_mw.fitting import fit_call, fit_messages
from llm_budget_mw.tokens.estimate import Estimator
from llm_budget_mw.tokens.exact import load_counter
from llm_budget_mw.types import ModelCall

HEAD = RequestHead("POST", "")
Json = dict[str, Any]
EXACT = Estimator(TokensConfig(), load_counter(TokensConfig()))
BOUND = Estimator(TokensConfig(), None)


def user(content: Any = "question") -> Json:
    return {"role": "user", "content": content}


def said(content: Any = "answer") -> Json:
    return {"role": "assistant", "content": content}


def system(content: str = "rules") -> Json:
    return {"role": "system", "content": content}


def called(*ids: str) -> Json:
    calls = [{"id": i, "type": "function", "function": {"name": "f"}} for i in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(call: str | None) -> Json:
    return {"role": "tool", "tool_call_id": call, "content": "result"}


def used(*ids: str) -> Json:
    return said([{"type": "tool_use", "id": i, "name": "f", "input": {}} for i in ids])


def results(*ids: str, text: str = "") -> Json:
    blocks: list[Json] = [{"type": "tool_result", "tool_use_id": i, "content": "r"} for i in ids]
    return user([*blocks, *([{"type": "text", "text": text}] if text else [])])


def one(message: Any) -> int:
    """Count every message as one token."""
    return 1


def fit(messages: list[Json], most: int, **options: Any) -> list[Json]:
    return fit_messages(messages, most, counter=one, **options)


# --- conversations as they should be, in both formats ---


@st.composite
def openai_turns(draw: st.DrawFn) -> list[Json]:
    messages = [user(draw(st.text(max_size=9)))]
    for _ in range(draw(st.integers(0, 3))):
        ids = [str(number) for number in range(draw(st.integers(1, 3)))]
        # Ids come again in every round, as some servers number them.
        messages += [called(*ids), *[result(i) for i in draw(st.permutations(ids))]]
        if draw(st.booleans()):
            messages.append(system("a reminder"))
    if draw(st.booleans()):
        messages.append(said(draw(st.text(max_size=9))))
    return messages


@st.composite
def anthropic_turns(draw: st.DrawFn) -> list[Json]:
    messages = [user(draw(st.text(max_size=9)))]
    for _ in range(draw(st.integers(0, 3))):
        ids = [str(number) for number in range(draw(st.integers(1, 3)))]
        text = draw(st.sampled_from(["", "", "and hurry"]))
        messages += [used(*ids), results(*draw(st.permutations(ids)), text=text)]
    if draw(st.booleans()):
        messages.append(said([{"type": "text", "text": draw(st.text(max_size=9))}]))
    return messages


def joined(turns: list[list[Json]]) -> list[Json]:
    return [message for turn in turns for message in turn]


openai = st.lists(openai_turns(), min_size=1, max_size=5).map(
    lambda turns: [system(), *joined(turns)]
)
anthropic = st.lists(anthropic_turns(), min_size=1, max_size=5).map(joined)
conversations = st.one_of(openai, anthropic)


def unanswered(messages: list[Json]) -> Iterator[str]:
    """Yield what is wrong with tools, as the strictest provider would see it."""
    open_calls: set[str] = set()
    spoken = [m for m in messages if m["role"] != "system"]
    for message in spoken:
        blocks = message["content"] if isinstance(message["content"], list) else []
        answers = {b["tool_use_id"] for b in blocks if b["type"] == "tool_result"}
        if message["role"] == "tool":
            answers = {message["tool_call_id"]}
        if answers - open_calls:
            yield f"results without calls: {answers - open_calls}"
        open_calls -= answers
        calls = {b["id"] for b in blocks if b["type"] == "tool_use"}
        calls |= {call["id"] for call in message.get("tool_calls", [])}
        if open_calls and (calls or not answers):
            yield f"calls without results: {open_calls}"
        open_calls |= calls
    if open_calls:
        yield f"calls without results: {open_calls}"


def positions(part: list[Json], whole: list[Json]) -> list[int]:
    """Return where the very objects of `part` stand in `whole`."""
    places = {id(message): at for at, message in enumerate(whole)}
    return [places[id(message)] for message in part]


weights = st.lists(st.integers(0, 9), min_size=1, max_size=7)


@given(conversations, st.integers(0, 60), weights, st.data())
def test_what_is_kept_fits_and_is_a_conversation(
    messages: list[Json], most: int, weight: list[int], data: st.DataObject
) -> None:
    """Within the tokens, in order, the same objects; nothing orphaned; what must stay stays."""
    before = copy.deepcopy(messages)
    counted: list[int] = []
    tokens = {id(message): weight[at % len(weight)] for at, message in enumerate(messages)}
    chosen = data.draw(st.sets(st.sampled_from(range(len(messages))), max_size=2))
    pins = {id(messages[at]) for at in chosen}

    def count(message: Json) -> int:
        counted.append(id(message))
        return tokens[id(message)]

    def pinned(message: Json) -> bool:
        return id(message) in pins

    kept = refusal = None
    try:
        kept = fit_messages(messages, most, counter=count, pinned=pinned)
    except RequestError as error:
        refusal = error

    assert len(counted) == len(set(counted))
    assert messages == before
    if kept is None:
        assert refusal is not None
        assert (refusal.status, refusal.code) == (413, "prompt_too_long")
        assert sum(tokens.values()) > most
        return
    at = positions(kept, messages)
    own = [m for m in messages if m["role"] == "user" and not _is_results_alone(m)]
    spoken = [m for m in kept if m["role"] != "system"]
    assert at == sorted(set(at))
    assert sum(tokens[id(m)] for m in kept) <= most
    assert not list(unanswered(kept)) or list(unanswered(messages))
    assert pins <= {id(m) for m in kept}
    assert {id(m) for m in messages if m["role"] == "system"} <= {id(m) for m in kept}
    assert id(own[-1]) in {id(m) for m in kept}
    assert kept[-1] is messages[-1]
    assert spoken[0]["role"] == "user"
    assert fit_messages(kept, most, counter=count_of(tokens), pinned=pinned) == kept


def _is_results_alone(message: Json) -> bool:
    blocks = message["content"] if isinstance(message["content"], list) else [{"type": "text"}]
    return all(block["type"] == "tool_result" for block in blocks)


def count_of(tokens: dict[int, int]) -> Any:
    return lambda message: tokens[id(message)]


@given(conversations, st.integers(0, 400), st.sampled_from(["gpt-4o", "claude-opus-4-1", None]))
def test_the_packages_own_counter_is_kept_too(
    messages: list[Json], most: int, model: str | None
) -> None:
    """Fitted twice is fitted once, also where the format can only be guessed."""
    try:
        kept = fit_messages(messages, most, model=model)
    except RequestError:
        return

    assert fit_messages(kept, most, model=model) == kept


# --- which messages go ---


def test_the_oldest_turns_go_first_and_whole() -> None:
    """A turn of which only a part would fit goes as a whole, and so do all before it."""
    old, new = [user("1"), said("2"), said("3")], [user("4"), said("5")]
    messages = [system(), *old, *new, user("6")]

    assert fit(messages, 7) == messages
    assert fit(messages, 6) == [system(), *new, user("6")]
    assert fit(messages, 3) == [system(), user("6")]
    assert fit(messages, 2) == [system(), user("6")]


def test_an_older_turn_that_is_smaller_does_not_jump_the_gap() -> None:
    """The window has no hole: after the first turn that does not fit nothing older stays."""
    messages = [user("1"), user("2"), said(), said(), said(), user("3")]

    assert fit(messages, 3) == [user("3")]


def test_a_long_tool_loop_loses_its_oldest_rounds() -> None:
    """Where the last turn alone is too long it keeps its question and the latest rounds."""
    rounds = [[called("a", "b"), result("b"), result("a")] for _ in range(30)]
    messages = [user("before"), said(), user("do it"), *joined(rounds)]

    assert fit(messages, 8) == [user("do it"), *rounds[-2], *rounds[-1]]
    assert fit(messages, 6) == [user("do it"), *rounds[-1]]
    with pytest.raises(RequestError, match="more than the 3 tokens"):
        fit(messages, 3)


def test_a_question_beside_results_stays_with_its_call_and_its_turn() -> None:
    """The last user message may come with results; then their call and its turn's opening stay."""
    start, call, both = user("start"), used("1"), results("1", text="and this?")
    later = [used("2"), results("2"), used("3"), results("3")]

    assert fit([start, call, both, *later], 5) == [start, call, both, *later[2:]]


def test_a_pinned_message_keeps_what_it_needs() -> None:
    """A pinned result keeps its call and the user message before; not the rest of the turn."""
    first = [user("1"), called("x"), result("x"), said("fine")]
    messages = [*first, user("2"), said(), user("3")]

    kept = fit(messages, 4, pinned=lambda message: message is first[2])

    assert kept == [*first[:3], user("3")]


def test_a_greeting_goes_before_anything_else() -> None:
    """What stands before the first user message is the oldest turn."""
    messages = [said("Welcome!"), user("1"), said(), user("2")]

    assert fit(messages, 4) == messages
    assert fit(messages, 3) == messages[1:]


def test_a_conversation_without_a_user_message_is_shortened_too() -> None:
    """Its oldest messages go, and nothing opens what is left."""
    assert fit([system(), said("1"), said("2")], 2) == [system(), said("2")]


def test_nothing_is_nothing() -> None:
    """An empty list fits anywhere."""
    assert fit_messages([], 0) == []


def test_functions_of_the_older_form_hang_together_by_name() -> None:
    """`function_call` and the message with role `function` go together."""
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}
    answer = {"role": "function", "name": "f", "content": "r"}
    messages = [user("1"), call, said("wait"), answer, call, answer]

    assert fit(messages, 4) == [user("1"), call, answer]


def test_tools_the_provider_runs_answer_in_the_same_message() -> None:
    """Call and result in one message bind it to no other."""
    search = said(
        [
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
            {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        ]
    )

    assert fit([user("1"), search, said("2")], 2) == [user("1"), said("2")]


def test_a_later_instruction_to_claude_stays_where_it_is_allowed() -> None:
    """Anthropic takes one only between a user message and the answer to it: both stay."""
    first = [user("1"), system("from now on"), said("yes")]
    messages = [*first, user("2"), said(), user("3")]

    assert fit(messages, 4, model="claude-opus-4-8") == [*first, user("3")]
    assert fit(messages, 2, model="gpt-4o") == [first[1], user("3")]
    with pytest.raises(RequestError):
        fit(messages, 3, model="claude-opus-4-8")


# --- broken conversations ---


def test_results_whose_call_is_not_known_never_begin_anything() -> None:
    """They stay and go with the message before them: nobody can say whose they are."""
    odd = [result("nobody's"), result(None), results("nobody's")]
    messages = [user("1"), said("2"), *odd, said("3")]

    assert fit(messages, 6) == messages
    assert fit(messages, 5) == [user("1"), said("3")]


def test_a_result_before_its_call_is_none() -> None:
    """Only a call that came before can be answered."""
    messages = [user("1"), result("x"), user("2"), called("x"), user("3")]

    assert fit(messages, 3) == messages[2:]


def test_an_id_that_comes_again_means_the_last_call() -> None:
    """Ids numbered from 0 in each round do not glue all rounds together."""
    rounds = [[called("0"), result("0"), result("0")] for _ in range(3)]

    assert fit([user(), *joined(rounds)], 4) == [user(), *rounds[2]]


def test_a_user_who_speaks_before_the_result_opens_no_turn() -> None:
    """Between a call and its result nothing can be cut."""
    messages = [user("1"), called("x"), user("2"), result("x"), said("3")]

    assert fit(messages, 5) == messages
    with pytest.raises(RequestError):
        fit(messages, 4)


@pytest.mark.parametrize("odd", [5, None, "text", [user()], object()])
def test_what_is_no_message_is_named(odd: Any) -> None:
    """The error says which one, what it is, and what to do."""
    with pytest.raises(
        RequestError, match=r"messages\[1\] must be a mapping.*model_dump"
    ) as raised:
        fit_messages([user(), odd], 100)

    assert raised.value.status == 400


@pytest.mark.parametrize("odd", [user(object()), user(5), user({"a": 1})])
def test_a_message_that_cannot_be_counted_is_named(odd: Json) -> None:
    """By its place in the list that was given."""
    with pytest.raises(RequestError, match=r"messages\[1\]") as raised:
        fit_messages([user(), odd], 100)

    assert raised.value.status == 400


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["role", "content", "tool_calls", "tool_call_id", "function_call", "name"]
            ),
            st.recursive(
                st.none()
                | st.sampled_from(["user", "system", "tool", "function", "tool_use", "0", "1"]),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["type", "id", "name", "tool_use_id", "content"]), inner
                    )
                ),
                max_leaves=6,
            ),
        ),
        max_size=8,
    ),
    st.integers(-1, 9),
)
def test_hostile_messages_are_fitted_or_refused(messages: list[Json], most: int) -> None:
    """Whatever stands in them, there is an answer: a part of them that fits, or a `RequestError`."""
    try:
        kept = fit(messages, most)
    except RequestError:
        return

    at = positions(kept, messages)
    assert at == sorted(at)
    assert len(kept) <= most


@pytest.mark.parametrize(
    "message", [user("x"), called("x"), result("x")], ids=["user", "call", "result"]
)
def test_a_hundred_thousand_messages_are_looked_at_a_few_times_each(message: Json) -> None:
    """Work grows with the number of messages, and only what could stay is counted."""

    class Watched(dict[str, Any]):
        looks = 0

        def get(self, key: str, default: Any = None) -> Any:
            Watched.looks += 1
            return super().get(key, default)

    counted = 0

    def count(message: Any) -> int:
        nonlocal counted
        counted += 1
        return 1

    messages = [Watched(message) for _ in range(100_000)]
    try:
        assert len(fit_messages(messages, 100, counter=count)) == 100
    except RequestError:
        assert message["role"] == "tool"

    assert counted <= 102
    assert Watched.looks < 30 * len(messages)


# --- summaries ---


def test_a_summary_takes_the_place_of_what_went() -> None:
    """The hook sees all that was dropped, once, and its message opens what is left."""
    messages = [system(), user("1"), said("2"), user("3"), said("4"), user("5")]
    seen: list[list[Json]] = []

    def summarise(dropped: list[Json]) -> Json:
        seen.append(dropped)
        return user("so far")

    kept = fit(messages, 5, summarise=summarise, summary_tokens=1)

    assert kept == [system(), user("so far"), *messages[3:]]
    assert seen == [messages[1:3]]


def test_nothing_dropped_needs_no_summary() -> None:
    """The hook is not called where all fits."""
    assert fit([user()], 1, summarise=lambda dropped: pytest.fail("called")) == [user()]


def test_room_is_kept_for_a_summary() -> None:
    """Another turn goes to leave it an eighth of the tokens, or as many as were asked for."""
    messages = [user(str(number)) for number in range(20)]

    def summarise(dropped: list[Json]) -> Json:
        return user(f"{len(dropped)} messages")

    assert fit(messages, 16, summarise=summarise) == [user("6 messages"), *messages[6:]]
    assert fit(messages, 16, summarise=summarise, summary_tokens=0) == messages[4:]
    assert len(fit(messages, 16, summarise=summarise, summary_tokens=9)) == 8
    assert fit(messages, 16, summarise=summarise, summary_tokens=99) == [
        user("19 messages"),
        messages[-1],
    ]


@pytest.mark.parametrize("summary", [None, user("long")])
def test_a_summary_that_is_none_or_does_not_fit_is_left_out(summary: Json | None) -> None:
    """The conversation is fitted all the same."""
    messages = [user("1"), user("2"), user("3")]

    def count(message: Json) -> int:
        return 10 if message is summary else 1

    kept = fit_messages(messages, 2, counter=count, summarise=lambda dropped: summary)

    assert kept == messages[1:]


def test_a_summary_of_rounds_stands_before_their_turn() -> None:
    """Not inside of it, where it would stay for ever: the next fit drops it as the oldest."""
    rounds = [[called("0"), result("0")] for _ in range(5)]
    messages = [system(), user("do it"), *joined(rounds)]
    summaries = iter([user("first"), user("second")])

    def again(messages: list[Json]) -> list[Json]:
        return fit(messages, 7, summarise=lambda dropped: next(summaries), summary_tokens=1)

    once = again(messages)
    twice = again([*once, *rounds[0]])

    assert once == [system(), user("first"), user("do it"), *rounds[3], *rounds[4]]
    assert twice == [system(), user("second"), user("do it"), *rounds[4], *rounds[0]]


@pytest.mark.parametrize("wrong", ["text", said("so far"), result("x"), {}])
def test_what_cannot_be_a_summary_is_an_error(wrong: Any) -> None:
    """A conversation cannot begin with an answer, nor with a result."""
    with pytest.raises(TypeError, match="summarise must return"):
        fit([user("1"), user("2")], 1, summarise=lambda dropped: wrong)


# --- counting ---


PICTURE = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ" * 300
BASE64 = {"type": "base64", "media_type": "image/png", "data": PICTURE[22:]}
READ_AS = [
    ("openai_chat", "gpt-4o", user("Hello, world")),
    ("openai_chat", "gpt-4o", called("1", "2")),
    ("openai_chat", "gpt-4o", user([{"type": "image_url", "image_url": {"url": PICTURE}}])),
    ("anthropic_messages", "claude-opus-4-1", user("Hello, world")),
    ("anthropic_messages", "claude-opus-4-1", used("1", "2")),
    ("anthropic_messages", "claude-opus-4-1", user([{"type": "image", "source": BASE64}])),
    ("openai_chat", "claude-opus-4-1", called("1", "2")),
    ("openai_chat", "claude-opus-4-1", user([{"type": "image_url", "image_url": PICTURE}])),
    ("anthropic_messages", "some-model", user([{"type": "image", "source": BASE64}])),
]  # fmt: skip


def input_of(dialect: str, estimator: Estimator, model: str, **body: Any) -> int:
    return estimator.count(read(dialect, model=model, **body).prompt, model).tokens


def read(dialect: str, **body: Any) -> ModelCall:
    body = {"max_tokens": 9, **body}
    return dialect_for(dialect).read_request(HEAD, json.dumps(body).encode())


@pytest.mark.parametrize(("dialect", "model", "message"), READ_AS)
def test_a_message_counts_what_its_dialect_says(dialect: str, model: str, message: Json) -> None:
    """It fits into exactly the tokens by which a request with it is larger."""
    without = input_of(dialect, EXACT, model, messages=[user("")])
    tokens = input_of(dialect, EXACT, model, messages=[user(""), message]) - without

    assert fit_messages([message], tokens, model=model) == [message]
    with pytest.raises(RequestError, match="more than the"):
        fit_messages([message], tokens - 1, model=model)


def test_an_unknown_model_counts_the_dearer_format() -> None:
    """Plain text may be meant for either."""
    tokens = max(
        input_of(dialect, EXACT, "any", messages=[user(), user("")])
        - input_of(dialect, EXACT, "any", messages=[user("")])
        for dialect in ("openai_chat", "anthropic_messages")
    )

    assert fit_messages([user()], tokens)
    with pytest.raises(RequestError):
        fit_messages([user()], tokens - 1)


# --- calls ---

REQUESTS = st.one_of(
    st.tuples(st.just("openai_chat"), st.just("gpt-4o"), openai),
    st.tuples(st.just("anthropic_messages"), st.just("claude-opus-4-1"), anthropic),
)


@given(REQUESTS, st.integers(0, 250), st.sampled_from([EXACT, BOUND]))
def test_a_fitted_call_has_no_more_input_than_allowed(
    request: tuple[str, str, list[Json]], room: int, estimator: Estimator
) -> None:
    """By the same estimate as the request was measured with, tools and all; or it is refused."""
    dialect, model, messages = request
    tools = [{"name": "f", "input_schema": {}}]
    beside = input_of(dialect, estimator, model, messages=[user("")], tools=tools)
    most = beside + room
    call = read(dialect, model=model, messages=messages, tools=tools, stream=True)
    try:
        fitted = fit_call(call, most, dialect_for(dialect), estimator, model)
    except RequestError:
        assert estimator.count(call.prompt, model).tokens > most
        return

    assert estimator.count(fitted.prompt, model).tokens <= most
    assert {**fitted.body, "messages": messages} == {**call.body, "messages": messages}
    assert not list(unanswered(fitted.body["messages"])) or list(unanswered(messages))
    assert (fitted.model, fitted.max_output, fitted.stream) == (model, 9, True)
    assert fit_call(fitted, most, dialect_for(dialect), estimator, model) is fitted


def test_a_call_that_fits_is_left_alone() -> None:
    """The very same object comes back."""
    call = read("openai_chat", model="gpt-4o", messages=[user()])

    assert fit_call(call, 1000, dialect_for("openai_chat"), EXACT, "gpt-4o") is call


def test_what_goes_with_a_message_goes_from_the_call() -> None:
    """A cache mark in a dropped message is no longer paid for: the call is read anew."""
    marked = user([{"type": "text", "text": "x" * 999, "cache_control": {"type": "ephemeral"}}])
    call = read("anthropic_messages", model="claude-opus-4-1", messages=[marked, said(), user()])

    fitted = fit_call(call, 200, dialect_for("anthropic_messages"), EXACT, "claude-opus-4-1")

    assert call.surcharges == {"cache_write"}
    assert fitted.surcharges == frozenset()
    assert fitted.body["messages"] == [user()]


def test_what_was_noted_on_a_call_stays() -> None:
    """Its task chooses its offers, and is not in the body."""
    call = read("openai_chat", model="gpt-4o", messages=[user("x" * 999), user()])
    noted = dataclasses.replace(call, task="summaries")

    fitted = fit_call(noted, 60, dialect_for("openai_chat"), EXACT, "gpt-4o")

    assert fitted.body["messages"] == [user()]
    assert fitted.task == "summaries"


def test_text_beyond_what_is_tokenized_is_fitted_by_its_bytes() -> None:
    """An estimate that is not the sum of its messages is not exceeded either."""
    estimator = Estimator(TokensConfig(max_exact_bytes=100), load_counter(TokensConfig()))
    messages = [user("word " * 15) for _ in range(20)]
    call = read("openai_chat", model="gpt-4o", messages=messages)

    fitted = fit_call(call, 450, dialect_for("openai_chat"), estimator, "gpt-4o")

    assert estimator.count(fitted.prompt, "gpt-4o").tokens <= 450
    assert 1 < len(fitted.body["messages"]) < len(messages)


def test_tools_that_leave_no_room_for_messages_are_refused() -> None:
    """What stands beside the messages is not shortened."""
    tools = [{"name": "f", "description": "long " * 500}]
    call = read("openai_chat", model="gpt-4o", messages=[user()], tools=tools)

    with pytest.raises(RequestError) as raised:
        fit_call(call, 100, dialect_for("openai_chat"), EXACT, "gpt-4o")

    assert (raised.value.status, raised.value.code) == (413, "prompt_too_long")
    assert "-" not in raised.value.message
