"""Input made to break something: a clear 4xx in the words of its dialect, and nothing held."""

from __future__ import annotations

import gzip
import json
import logging
import tracemalloc
import zlib
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope

from tests.asgi.driver import RawClient, UvicornServer, chunked, head
from tests.edge.driver import ANSWER, CHAT, ISSUER, MESSAGES, OWN, QUESTION, Bench, Exchange
from tests.edge.driver import answering as answer

FINE = answer(json.dumps(ANSWER).encode())
HI = [{"role": "user", "content": "hi"}]
GOOD: dict[str, dict[str, Any]] = {
    CHAT: QUESTION,
    MESSAGES: {"model": "claude-x", "max_tokens": 40, "messages": HI},
}
BOUND = 100_000
BOMB = gzip.compress(b" " * 50 * BOUND)


def packed(body: dict[str, Any]) -> bytes:
    """Return a body as JSON."""
    return json.dumps(body).encode()


def wrong(path: str) -> list[tuple[str, bytes]]:
    """Return what is no request in this dialect, each with a name."""
    good = GOOD[path]
    deep = b'{"model":"big","max_tokens":4,"messages":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    objects = b'{"a":' * 15_000 + b"1" + b"}" * 15_000
    changed: list[tuple[str, Any]] = [
        ("max_tokens", -1),
        ("max_tokens", 10**30),
        ("max_tokens", "many"),
        ("max_tokens", [1]),
        ("max_tokens", 1e400),
        ("model", {"a": 1}),
        ("model", "nobody-knows"),
        ("model", "x" * 50_000),
        ("messages", 7),
        ("messages", [[]]),
        ("messages", [{"role": "user", "content": 7}]),
        ("stream", "yes"),
    ]
    return [
        ("empty", b""),
        ("blank", b"   "),
        ("no JSON", b"{]"),
        ("NUL", b"\x00" * 100),
        ("an array", b"[]"),
        ("a string", b'"x"'),
        ("null", b"null"),
        ("no text", b'{"model":"\xff"}'),
        ("two values", packed(good) + b"{}"),
        ("deep arrays", deep),
        ("deep objects", objects),
        ("NaN", b'{"model":"big","max_tokens":NaN,"messages":[]}'),
        *[(f"{name} {str(value)[:12]}", packed({**good, name: value})) for name, value in changed],
    ]


CASES = [
    pytest.param(path, body, id=f"{path} {name}") for path in GOOD for name, body in wrong(path)
]


def envelope(path: str, raw: bytes) -> dict[str, Any]:
    """Return the error in an answer, as the SDK of its dialect looks for it."""
    answered: dict[str, Any] = json.loads(raw)
    if path == OWN:  # problem details of RFC 9457
        assert answered["detail"]
        assert answered["title"]
        return answered
    if path == MESSAGES:
        assert answered["type"] == "error"
    error: dict[str, Any] = answered["error"]
    assert error["message"]
    assert error["type"]
    return error


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_what_is_no_request_is_a_400(
    path: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """In the dialect's envelope, with nothing held and nothing logged."""
    bench = Bench(FINE, max_body_bytes=BOUND)

    with caplog.at_level(logging.WARNING):
        exchange = await bench.post(body, path)

    assert exchange.status == 400
    assert envelope(path, exchange.body)
    assert not bench.store.plans
    assert not caplog.records


@pytest.mark.parametrize("path", [CHAT, MESSAGES, OWN])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_bound_is_a_413(path: str, announced: bool) -> None:
    """Announced, nothing of it is read; unannounced, no more than the bound."""
    headers = (("content-length", str(BOUND + 1)),) if announced else ()
    bench = Bench(FINE, max_body_bytes=BOUND)

    exchange = await bench.post(b" " * 3 * BOUND, path, parts=300, headers=headers)

    assert exchange.status == 413
    assert envelope(path, exchange.body)["code"] == "request_too_large"
    assert exchange.received == (0 if announced else 101)
    assert not bench.store.plans


async def test_a_body_of_tiny_pieces_takes_little_memory() -> None:
    """Two-byte pieces are not kept as objects of their own."""
    exchange = Exchange()
    left = 200_000

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": bytes(2), "more_body": left > 0}

    bench = Bench(FINE, max_body_bytes=1_000_000)
    tracemalloc.start()
    await bench.middleware(exchange.scope, receive, exchange._send)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert exchange.status == 400
    assert peak < 4_000_000


@pytest.mark.parametrize("path", [CHAT, MESSAGES, OWN])
@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        (BOMB, "gzip", 413),
        (BOMB, " X-GZIP ", 413),
        (zlib.compress(b" " * 50 * BOUND), "deflate", 413),
        (BOMB[:40], "gzip", 400),
        (gzip.compress(b"{}") + b"more", "gzip", 400),
        (b"{}", "br", 415),
        (b"{}", "gzip, gzip", 415),
        (b"{}", "\x7f" * 5000, 415),
    ],
    ids=["bomb", "other name", "deflate", "cut", "more", "br", "twice", "long name"],
)
async def test_a_compressed_body_unfolds_no_further_than_the_bound(
    path: str, body: bytes, coding: str, status: int
) -> None:
    """Whatever it claims to be, memory is bounded and the answer a 4xx."""
    bench = Bench(FINE, max_body_bytes=BOUND)

    exchange = await bench.post(body, path, headers=(("content-encoding", coding),))

    assert exchange.status == status
    assert envelope(path, exchange.body)
    assert not bench.store.plans


@pytest.mark.parametrize("path", list(GOOD))
@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
async def test_a_compressed_request_is_understood(path: str, pack: Any) -> None:
    """It reaches the application decoded, without the name of its coding."""
    seen: list[tuple[dict[str, Any], list[bytes]]] = []

    async def look(scope: Scope, receive: Receive) -> None:
        body = json.loads((await receive())["body"])
        seen.append((body, [name for name, _ in scope["headers"]]))

    coding = "gzip" if pack is gzip.compress else "deflate"
    bench = Bench(answer(b"{}", before=look))

    await bench.post(pack(packed(GOOD[path])), path, headers=(("content-encoding", coding),))

    ((body, names),) = seen
    assert body["messages"] == GOOD[path]["messages"]
    assert b"content-encoding" not in names


@pytest.mark.parametrize("path", list(GOOD))
async def test_of_two_keys_the_upstream_sees_the_one_that_was_priced(path: str) -> None:
    """Whichever it is, it is one, and not above what was held."""
    seen: list[bytes] = []

    async def look(scope: Scope, receive: Receive) -> None:
        seen.append((await receive())["body"])

    model = GOOD[path]["model"]
    raw = b'{"max_tokens":900,"model":"%b","messages":[{"role":"user","content":"x"}],' % (
        model.encode()
    )
    raw += b'"model":"%b","max_tokens":5,"\\u006dax_tokens":7}' % model.encode()
    bench = Bench(answer(b"{}", before=look))

    await bench.post(raw, path)

    (passed,) = seen
    assert passed.count(b"max_tokens") == 1
    assert json.loads(passed)["max_tokens"] == bench.settled["max_tokens"] == 7


@pytest.mark.parametrize("field", ["n", "max_tokens", "max_completion_tokens"])
async def test_a_number_no_model_can_mean_is_refused(field: str) -> None:
    """A billion answers, or tokens, are no request; there is no overflow and no hold."""
    bench = Bench(FINE)

    exchange = await bench.post({**QUESTION, field: 10**9})

    # As many output tokens as that are only asked for: the grant is what the tier allows.
    assert exchange.status == (400 if field == "n" else 200)
    assert all(plan.offers[0].max_output <= 1024 for plan in bench.store.plans)


class TestOnASocket:
    """The same over HTTP/1.1, where the framing is hostile as well."""

    @pytest.mark.parametrize("path", [CHAT, MESSAGES])
    @pytest.mark.parametrize("size", [1, 1000])
    def test_a_chunked_body_is_read(self, path: str, size: int) -> None:
        """In chunks of any size, without a length."""
        bench = Bench(FINE)

        with UvicornServer(bench.middleware) as running, RawClient(running.url) as client:
            client.say(head(path, "transfer-encoding: chunked", "connection: close"))
            client.say(chunked(packed(GOOD[path]), size))
            assert client.read_all().startswith(b"HTTP/1.1 200")

    def test_an_endless_body_is_given_up_at_the_bound(self) -> None:
        """The answer comes while the client is still sending."""
        bench = Bench(FINE, max_body_bytes=BOUND)

        with UvicornServer(bench.middleware) as running, RawClient(running.url) as client:
            client.say(head(CHAT, "transfer-encoding: chunked"))
            client.say(b"%x\r\n%b\r\n" % (2 * BOUND, b" " * 2 * BOUND))
            assert client.read_until(b"request_too_large").startswith(b"HTTP/1.1 413")

        assert not bench.store.plans

    def test_a_large_body_is_refused_before_it_is_sent(self) -> None:
        """`Expect: 100-continue` saves the upload."""
        bench = Bench(FINE, max_body_bytes=BOUND)

        with UvicornServer(bench.middleware) as running, RawClient(running.url) as client:
            client.say(head(CHAT, f"content-length: {10**9}", "expect: 100-continue"))
            seen = client.read_until(b"request_too_large")

        assert seen.startswith(b"HTTP/1.1 413")

    def test_an_empty_chunked_body_is_a_400(self) -> None:
        """No bytes are no JSON."""
        with (
            UvicornServer(Bench(FINE).middleware) as running,
            RawClient(running.url) as client,
        ):
            client.say(head(CHAT, "transfer-encoding: chunked", "connection: close"))
            client.say(chunked(b"", 1))
            assert client.read_all().startswith(b"HTTP/1.1 400")

    def test_who_leaves_in_the_middle_of_a_body_holds_nothing(self) -> None:
        """Half a request is none; the next one is served."""
        bench = Bench(FINE, {"concurrency": 1})

        with UvicornServer(bench.middleware) as running:
            with RawClient(running.url) as client:
                client.say(head(CHAT, "content-length: 1000") + b'{"model"')
                client.leave()
            with RawClient(running.url) as client:
                client.ask(QUESTION, CHAT, "connection: close")
                assert client.read_all().startswith(b"HTTP/1.1 200")

        assert len(bench.store.plans) == 1


async def test_an_unread_body_of_a_stranger_stays_unread() -> None:
    """Who is not known cannot make the server read, decode or parse anything."""
    bench = Bench(FINE)
    exchange = Exchange(BOMB, token=ISSUER.token("alice", expires_in=-500))

    async def receive() -> Message:
        raise AssertionError("something was read")

    async def send(message: Message) -> None:
        exchange.sent.append(message)

    await bench.middleware(exchange.scope, receive, send)

    assert exchange.status == 401
