"""Input made up from the words of a dialect, by hypothesis: it fails with the least example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from llm_budget_mw.dialects.protocol import RequestHead
from tests.fuzz.checks import Checks
from tests.fuzz.mutate import VOCABULARY, Answer
from tests.fuzz.seeds import Seeds, compact

_PARTS = 3
"""Requests, answers and streams."""

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 200)
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=6)
)


def _values(seeds: Seeds) -> st.SearchStrategy[Any]:
    words = st.sampled_from(VOCABULARY[seeds.dialect.name])
    return st.recursive(
        _scalars | words,
        lambda inner: (
            st.dictionaries(words, inner, max_size=6)
            | st.lists(inner, max_size=4)
            | st.fixed_dictionaries({"type": words, "content": inner})
        ),
        max_leaves=24,
    )


def _objects(seeds: Seeds) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects of which some differ from a request or an answer in a few fields."""
    made_up = st.dictionaries(st.sampled_from(VOCABULARY[seeds.dialect.name]), _values(seeds))
    fine = st.sampled_from([*seeds.requests, *seeds.answers])
    return st.builds(lambda base, over: {**base, **over}, fine | st.just({}), made_up)


def check_generated(checks: Checks, seeds: Seeds, examples: int, number: int) -> int:
    """Run so many examples, the same for the same number; return how many there were."""
    count = 0
    once = settings(
        max_examples=max(1, examples // _PARTS),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )

    def repeatably(test: Callable[..., None]) -> Callable[..., None]:
        return once(seed(number)(test))

    @repeatably
    @given(
        st.sampled_from(seeds.paths),
        _objects(seeds),
        st.sampled_from([1, 16, 1024, 5000]),
        st.booleans(),
    )
    def request(path: str, body: dict[str, Any], wanted: int, renamed: bool) -> None:
        nonlocal count
        count += 1
        checks.request(RequestHead("POST", path), compact(body), wanted, renamed)

    @repeatably
    @given(_objects(seeds), st.sampled_from([200, 500]))
    def answer(body: dict[str, Any], status: int) -> None:
        nonlocal count
        count += 1
        checks.answer(Answer(status, {"content-type": "application/json"}, compact(body)))

    events = st.sampled_from([event for stream in seeds.streams for event in stream])

    @repeatably
    @given(
        st.lists(events | _objects(seeds) | _values(seeds), max_size=6).map(seeds.write)
        | st.binary(max_size=60),
        st.lists(st.integers(1, 40)),
    )
    def stream(body: bytes, sizes: list[int]) -> None:
        nonlocal count
        count += 1
        headers = {"content-type": seeds.stream_type}
        checks.stream(Answer(200, headers, body, (*sizes, len(body) + 1)))

    for test in (request, answer, stream):
        test()
    return count
