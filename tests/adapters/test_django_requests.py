"""What reaches a Django view of a guarded request, and what does not."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import override_settings
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart

from tests.adapters.django_bench import WORLDS, Bench
from tests.edge.driver import ANSWER, ISSUER, OWN, QUESTION

RAW = json.dumps(QUESTION).encode()
LARGE = b"[" + b"1," * 600 + b"1]"
BOMB = gzip.compress(b" " * 100_000)
GZIP = {"Content-Encoding": "gzip"}
both_worlds = pytest.mark.parametrize("world", WORLDS)


class Keeper:
    """A view that keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []
        self.bodies: list[bytes] = []
        self.streamed = b""

    def __call__(self, request: HttpRequest, **path: Any) -> HttpResponse:
        self.requests.append(request)
        self.bodies.append(request.body)
        self.streamed = request.read()
        return JsonResponse(ANSWER)

    @property
    def request(self) -> HttpRequest:
        """Return the one request that came."""
        (only,) = self.requests
        return only


@both_worlds
@pytest.mark.parametrize(
    ("body", "headers"),
    [(RAW, {}), (gzip.compress(RAW), GZIP)],
    ids=["plain", "compressed"],
)
async def test_the_view_reads_the_request_with_the_grant_in_it(
    world: str, body: bytes, headers: dict[str, str]
) -> None:
    """However it came, it is whole, plain, of the right length, and can be streamed."""
    keeper = Keeper()

    async with Bench(world, keeper, tier={"max_tokens": 25}) as bench:
        answer = await bench.post(body, headers=headers)

    request = keeper.request
    assert answer.status == 200
    assert json.loads(answer.body) == ANSWER
    assert json.loads(keeper.bodies[0]) == {**QUESTION, "max_tokens": 25}
    assert keeper.streamed == keeper.bodies[0]
    assert request.headers["content-length"] == str(len(keeper.bodies[0]))
    assert "content-encoding" not in request.headers
    assert bench.settled["output_tokens"] == 30


async def test_a_chunked_request_is_read_to_its_end() -> None:
    """Django takes a body without a length for an empty one; a server says where it ends."""
    keeper = Keeper()
    chunked: dict[str, Any] = {
        "CONTENT_LENGTH": "",
        "wsgi.input_terminated": True,
        "wsgi.input": io.BytesIO(RAW),
    }

    async with Bench("sync", keeper) as bench:
        answer = await bench.post(RAW, **chunked)

    assert answer.status == 200
    assert json.loads(keeper.bodies[0])["messages"] == QUESTION["messages"]


@both_worlds
@pytest.mark.parametrize(
    ("body", "options", "status", "code"),
    [
        (RAW, {"token": None}, 401, "unauthenticated"),
        (RAW, {"token": "nonsense"}, 401, "invalid_token"),
        (RAW, {"token": ISSUER.token("alice", expires_in=-3600)}, 401, "invalid_token"),
        (RAW, {"token": ISSUER.token("alice", iss="https://other.test")}, 401, "invalid_token"),
        (RAW, {"token": ISSUER.token("alice") + ", Bearer b"}, 400, None),
        (RAW[:-1], {}, 400, "invalid_request"),
        (b"", {}, 400, "invalid_request"),
        (b"\xff\xfe", {}, 400, "invalid_request"),
        (b"[" * 100_000, {}, 413, "request_too_large"),
        (LARGE, {}, 413, "request_too_large"),
        (BOMB, {"headers": GZIP}, 413, "request_too_large"),
        (gzip.compress(RAW)[:-4], {"headers": GZIP}, 400, "invalid_request"),
        (RAW, {"headers": {"Content-Encoding": "br"}}, 415, "unsupported_encoding"),
        (json.dumps({**QUESTION, "model": "unknown"}).encode(), {}, 403, None),
    ],
    ids=[
        "no credential",
        "nonsense",
        "expired",
        "of a foreign issuer",
        "two credentials",
        "broken JSON",
        "nothing",
        "no text",
        "deep JSON",
        "too large",
        "a bomb",
        "compressed and cut",
        "an encoding nobody can undo",
        "an unknown model",
    ],
)
async def test_what_cannot_be_read_never_reaches_the_view(
    world: str, body: bytes, options: dict[str, Any], status: int, code: str | None
) -> None:
    """It is answered in the dialect of the route, and nothing is held for it."""
    keeper = Keeper()

    async with Bench(world, keeper, tier={"models": ["big"]}, max_body_bytes=1024) as bench:
        answer = await bench.post(body, **options)

    assert answer.status == status
    assert code is None or answer.error["code"] == code
    assert keeper.requests == []
    assert bench.store.settled == []
    assert "budget.settled" not in bench.sink.names


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({"CONTENT_LENGTH": "many"}, 400),
        ({"CONTENT_LENGTH": "-5"}, 400),
        ({"CONTENT_LENGTH": "9" * 5000}, 413),
        ({"CONTENT_LENGTH": ""}, 400),
    ],
    ids=["no number", "negative", "thousands of digits", "none, and no end"],
)
async def test_a_wrong_length_is_refused(environ: dict[str, Any], status: int) -> None:
    """Where Django would read nothing, or fail."""
    keeper = Keeper()

    async with Bench("sync", keeper) as bench:
        answer = await bench.post(RAW, **environ)

    assert (answer.status, keeper.requests) == (status, [])


@both_worlds
async def test_a_picture_is_not_too_large(world: str) -> None:
    """On a guarded route the bound is `max_body_bytes`; elsewhere Django's own still counts."""
    keeper = Keeper()
    text = "A" * 3_000_000
    question = {**QUESTION, "messages": [{"role": "user", "content": text}]}

    async with Bench(
        world, keeper, tier={"tokens": "9000000/minute", "budget": "$900/day"}
    ) as bench:
        guarded = await bench.post(question)
        unguarded = await bench.post(question, path="/upload")

    assert (guarded.status, unguarded.status) == (200, 400)
    assert len(keeper.bodies) == 1


@both_worlds
async def test_an_unguarded_request_has_no_budget_and_no_headers(world: str) -> None:
    """It passes untouched, without a credential."""
    keeper = Keeper()

    async with Bench(world, keeper) as bench:
        answer = await bench.post(RAW, path="/other", token=None)

    assert keeper.request.llm_budget is None  # type: ignore[attr-defined]
    assert keeper.bodies == [RAW]
    assert not [name for name in answer.headers if "ratelimit" in name]


@both_worlds
async def test_a_form_with_a_file_reaches_its_view(world: str) -> None:
    """A body of the application's own is left as it was."""
    seen: dict[str, Any] = {}

    def view(request: HttpRequest) -> HttpResponse:
        seen["text"] = request.POST["text"]
        seen["file"] = request.FILES["file"].read()  # type: ignore[union-attr]
        return HttpResponse("fine")

    form = encode_multipart(BOUNDARY, {"text": "t", "file": SimpleUploadedFile("f", b"content")})

    async with Bench(world, view) as bench:
        answer = await bench.post(form, path=OWN, kind=MULTIPART_CONTENT)

    assert (answer.status, seen) == (200, {"text": "t", "file": b"content"})


@both_worlds
async def test_a_model_in_the_path_is_replaced_there(world: str) -> None:
    """The view is found by the path as it was granted."""
    keeper = Keeper()
    routes = [{"path": "/v1beta/models/*", "dialect": "gemini"}]
    tier = {"offers": [{"model": "big", "ceiling": 0.00001}, {"model": "small"}]}
    question = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}

    async with Bench(world, keeper, routes=routes, tier=tier) as bench:
        answer = await bench.post(question, path="/v1beta/models/big:generateContent")

    assert answer.status == 200
    assert keeper.request.path == "/v1beta/models/small:generateContent"
    assert keeper.request.path_info == keeper.request.path


@both_worlds
async def test_a_body_read_by_a_middleware_above_is_used(world: str) -> None:
    """A body in memory can be read twice; a stream that has passed is said to have."""
    keeper = Keeper()
    above = [f"{__name__}.reads_the_body"]

    async with Bench(world, keeper, above=above, tier={"max_tokens": 5}) as bench:
        answer = await bench.post()

    assert answer.status == 200
    assert keeper.request.headers["content-length"] == str(len(keeper.bodies[0]))
    assert json.loads(keeper.bodies[0])["max_tokens"] == 5


def reads_the_body(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        assert request.body
        assert request.headers["content-length"]
        return get_response(request)

    return middleware


async def test_a_body_that_is_gone_is_explained() -> None:
    """The error names the remedy."""
    async with Bench("sync", Keeper(), above=[f"{__name__}.takes_the_body"]) as bench:
        with pytest.raises(RuntimeError, match="put BudgetMiddleware above"):
            await bench.post()


def takes_the_body(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        request.read(3)
        return get_response(request)

    return middleware


@both_worlds
async def test_a_spent_limit_is_answered_with_everything_a_client_needs(world: str) -> None:
    """Status, wait, limits, and the words of the route's dialect."""
    async with Bench(world, Keeper(), tier={"requests": "1/day"}) as bench:
        first = await bench.post()
        refused = await bench.post()

    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert (refused.status, refused.error["code"]) == (429, "budget_exceeded")
    assert int(refused.headers["retry-after"]) > 0
    assert '"requests-per-day";r=0' in refused.headers["ratelimit"]
    assert refused.headers["x-should-retry"] == "false"


@both_worlds
async def test_without_a_store_the_rule_of_the_limits_decides(world: str) -> None:
    """A limit that is closed refuses, in the dialect of the route."""
    closed = {"tokens": "closed", "budget": "closed", "concurrency": "closed"}

    async with Bench(world, Keeper(), tier={"on_outage": closed}) as bench:
        bench.store.down = True
        answer = await bench.post()

    assert (answer.status, answer.error["code"]) == (503, "budget_unavailable")


async def test_a_setting_that_a_test_changes_counts_at_once() -> None:
    """Also for a client that has sent a request before."""
    async with Bench("sync", Keeper()) as bench:
        assert (await bench.post()).status == 200
        closed = Bench("sync", Keeper(), tier={"requests": "1/day"})
        with override_settings(LLM_BUDGET={"GUARD": closed.guard}):
            assert (await bench.post()).status == 200
            assert (await bench.post()).status == 429
        assert (await bench.post()).status == 200


async def test_a_mounted_site_is_guarded_by_its_whole_path() -> None:
    """Routes are named as clients name them."""
    keeper = Keeper()

    async with Bench("sync", keeper) as bench:
        await bench.post(path="/chat/completions", SCRIPT_NAME="/v1")

    assert bench.settled["total_tokens"] == 42
    assert keeper.request.path_info == "/chat/completions"
