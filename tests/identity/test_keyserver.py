from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm_budget_mw.errors import AuthenticationError
from llm_budget_mw.identity import AsyncAuthenticator, Authenticator
from llm_budget_mw.identity.authenticators import AsyncJWTAuthenticator, JWTAuthenticator
from llm_budget_mw.identity.keyserver import fetch
from tests.identity.issuer import (
    NOW,
    OTHER_RSA_KEY,
    RSA_KEY,
    KeyServer,
    ManualClock,
    bearer,
    issue,
    make_config,
    rsa_jwk,
)

TOO_LARGE = json.dumps({"keys": [rsa_jwk("a")]}).encode().ljust(512 * 1024 + 1)
SECRET = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U"


def connect(server: KeyServer, clock: ManualClock, **options: Any) -> Authenticator:
    config = make_config(jwks_url=server.url, **options)
    return JWTAuthenticator([config], clock=clock)


def credential(kid: str = "a", key: Any = RSA_KEY, **claims: Any) -> list[tuple[str, str]]:
    """Return headers whose credential outlives every test."""
    return bearer(issue(key, header={"kid": kid}, **({"exp": NOW + 10_000_000} | claims)))


def refusal(authenticator: Authenticator, headers: list[tuple[str, str]]) -> int:
    with pytest.raises(AuthenticationError) as caught:
        authenticator.authenticate(headers)
    return caught.value.status


def eventually(condition: Any) -> None:
    """Wait for a background fetch, for at most five seconds."""
    pause = threading.Event()
    assert any(condition() or pause.wait(0.005) for _ in range(1000))


def test_keys_are_fetched_once_for_many_credentials(
    key_server: KeyServer, clock: ManualClock
) -> None:
    """The first credential fetches, the others find the keys."""
    key_server.publish(rsa_jwk("a"))
    authenticator = connect(key_server, clock)

    names = [authenticator.authenticate(credential(sub=f"u{n}")).id for n in range(5)]

    assert names == ["u0", "u1", "u2", "u3", "u4"]
    assert key_server.hits == ["/jwks.json"]


def test_simultaneous_first_requests_share_one_fetch(
    key_server: KeyServer, clock: ManualClock
) -> None:
    """Ten threads that need the keys at once ask the server once."""
    key_server.publish(rsa_jwk("a"))
    key_server.gate.clear()
    authenticator = connect(key_server, clock)

    with ThreadPoolExecutor(10) as pool:
        calls = [
            pool.submit(authenticator.authenticate, credential(sub=f"u{n}")) for n in range(10)
        ]
        eventually(lambda: key_server.hits)
        key_server.gate.set()

    assert {call.result().id for call in calls} == {f"u{n}" for n in range(10)}
    assert len(key_server.hits) == 1


def test_unknown_key_ids_cause_one_fetch(key_server: KeyServer, clock: ManualClock) -> None:
    """A hundred invented key ids ask the server once in a cool-down."""
    key_server.publish(rsa_jwk("a"))
    authenticator = connect(key_server, clock)
    authenticator.authenticate(credential())
    clock.now += 31
    key_server.hits.clear()

    statuses = {refusal(authenticator, credential(f"x{n}")) for n in range(100)}

    assert statuses == {401}
    assert len(key_server.hits) == 1


def test_unacceptable_algorithms_cause_no_fetch(key_server: KeyServer, clock: ManualClock) -> None:
    """What no key could verify is refused before the server is asked."""
    authenticator = connect(key_server, clock)

    assert refusal(authenticator, bearer(issue("s" * 32, "HS256", {"kid": "a"}))) == 401
    assert key_server.hits == []


def test_rotated_key_is_found(key_server: KeyServer, clock: ManualClock) -> None:
    """A credential signed with a new key makes us look, and is accepted."""
    key_server.publish(rsa_jwk("a"))
    authenticator = connect(key_server, clock)
    authenticator.authenticate(credential())
    key_server.publish(rsa_jwk("a"), rsa_jwk("b", OTHER_RSA_KEY))
    clock.now += 31

    assert authenticator.authenticate(credential("b", OTHER_RSA_KEY, sub="bob")).id == "bob"


def test_withdrawn_key_stops_verifying(key_server: KeyServer, clock: ManualClock) -> None:
    """After the maximum age a key that is no longer published is refused."""
    key_server.publish(rsa_jwk("a"))
    authenticator = connect(key_server, clock)
    authenticator.authenticate(credential())
    key_server.publish(rsa_jwk("b", OTHER_RSA_KEY))
    clock.now += 3601

    authenticator.authenticate(credential())
    clock.now += 61
    authenticator.authenticate(credential("b", OTHER_RSA_KEY))

    assert refusal(authenticator, credential()) == 401


def test_stale_keys_serve_while_new_ones_are_fetched(
    key_server: KeyServer, clock: ManualClock
) -> None:
    """Past the maximum age nobody waits: the answer comes while the server still thinks."""
    key_server.publish(rsa_jwk("a"))
    authenticator = connect(key_server, clock)
    authenticator.authenticate(credential())
    key_server.gate.clear()
    clock.now += 3601

    assert authenticator.authenticate(credential()).id == "alice"
    assert authenticator.authenticate(credential(sub="bob")).id == "bob"

    eventually(lambda: len(key_server.hits) == 2)


def test_cache_control_of_the_server_counts(key_server: KeyServer, clock: ManualClock) -> None:
    """The server's own maximum age comes before the configured one."""
    key_server.publish(rsa_jwk("a"))
    key_server.headers["Cache-Control"] = "public, max-age=600"
    authenticator = connect(key_server, clock)
    authenticator.authenticate(credential())
    clock.now += 601

    authenticator.authenticate(credential())

    eventually(lambda: len(key_server.hits) == 2)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        pytest.param(500, {}, b"", id="error"),
        pytest.param(302, {"Location": "/elsewhere"}, b"", id="redirect"),
        pytest.param(200, {}, b"<html>", id="not-json"),
        pytest.param(200, {}, b"[]", id="no-set"),
        pytest.param(200, {}, TOO_LARGE, id="oversized"),
        pytest.param(200, {}, b'{"keys": [{"kty": "oct", "k": "AAAA"}]}', id="only-a-secret"),
    ],
)
def test_answer_without_keys_is_not_the_clients_fault(
    key_server: KeyServer,
    clock: ManualClock,
    status: int,
    headers: dict[str, str],
    body: bytes,
) -> None:
    """Whatever else the server says is a 503, asked for once."""
    key_server.status, key_server.headers, key_server.body = status, headers, body
    authenticator = connect(key_server, clock)

    assert [refusal(authenticator, credential()) for _ in range(3)] == [503, 503, 503]
    assert key_server.hits == ["/jwks.json"]


def test_server_that_is_down_is_not_the_clients_fault(clock: ManualClock) -> None:
    """A refused connection is a 503."""
    config = make_config(jwks_url="http://127.0.0.1:1/jwks.json")

    assert refusal(JWTAuthenticator([config], clock=clock), credential()) == 503


def test_server_that_recovers_is_asked_again(key_server: KeyServer, clock: ManualClock) -> None:
    """Two seconds after a failure without any key the next request tries again."""
    key_server.status = 500
    authenticator = connect(key_server, clock)
    assert refusal(authenticator, credential()) == 503
    key_server.publish(rsa_jwk("a"))
    clock.now += 2

    assert authenticator.authenticate(credential()).id == "alice"


def test_outage_is_bridged_until_the_stale_bound(key_server: KeyServer, clock: ManualClock) -> None:
    """Keys serve through an outage for a day past their age, and not a second longer."""
    key_server.publish(rsa_jwk("a"))
    authenticator = connect(key_server, clock, jwks_stale_s=86_400)
    authenticator.authenticate(credential())
    key_server.status = 500

    clock.now += 3600 + 86_399
    assert authenticator.authenticate(credential()).id == "alice"
    eventually(lambda: len(key_server.hits) == 2)
    clock.now += 61

    assert refusal(authenticator, credential()) == 503


def test_secret_in_a_key_set_is_never_used(key_server: KeyServer, clock: ManualClock) -> None:
    """A published `oct` key verifies nothing, its RSA neighbour does."""
    key_server.publish({"kty": "oct", "k": SECRET, "kid": "s", "alg": "RS256"}, rsa_jwk("a"))
    authenticator = connect(key_server, clock)

    assert refusal(authenticator, credential("s")) == 401
    assert refusal(authenticator, bearer(issue(SECRET, "HS256", {"kid": "s"}))) == 401
    assert authenticator.authenticate(credential()).id == "alice"


def test_silent_server_is_asked_once(key_server: KeyServer, clock: ManualClock) -> None:
    """A server that accepts and says nothing is a 503 after the time-out."""
    key_server.gate.clear()
    authenticator = connect(key_server, clock, jwks_timeout_s=0.1)

    assert [refusal(authenticator, credential()) for _ in range(3)] == [503] * 3
    assert len(key_server.hits) <= 1


def test_hanging_fetch_is_waited_for_once(key_server: KeyServer, clock: ManualClock) -> None:
    """A fetch that outlives its time-out delays one request and starts no second thread."""
    key_server.drips = "head"
    authenticator = connect(key_server, clock, jwks_timeout_s=0.1)
    assert refusal(authenticator, credential()) == 503
    clock.now += 60

    begun = time.monotonic()
    assert [refusal(authenticator, credential()) for _ in range(20)] == [503] * 20

    assert time.monotonic() - begun < 1
    assert key_server.hits == ["/jwks.json"]


def test_dripping_answer_is_cut_off(key_server: KeyServer) -> None:
    """A byte now and then resets the socket's time-out, but not the deadline."""
    key_server.drips = "body"

    with pytest.raises(TimeoutError, match="too long"):
        fetch(key_server.url, timeout_s=0.1)


def test_opening_an_authenticator_asks_nobody(key_server: KeyServer, clock: ManualClock) -> None:
    """Nothing is fetched before a credential needs it."""
    connect(key_server, clock)

    assert key_server.hits == []


async def test_event_loop_keeps_ticking_while_the_server_is_slow(
    key_server: KeyServer, clock: ManualClock
) -> None:
    """The loop turns freely until the keys arrive, and all waiters then go on."""
    key_server.publish(rsa_jwk("a"))
    key_server.gate.clear()
    config = make_config(jwks_url=key_server.url)
    authenticator: AsyncAuthenticator = AsyncJWTAuthenticator([config], clock=clock)
    calls = [asyncio.create_task(authenticator.authenticate(credential())) for _ in range(5)]

    for _ in range(1000):
        await asyncio.sleep(0)
    assert not any(call.done() for call in calls)
    key_server.gate.set()

    assert [principal.id for principal in await asyncio.gather(*calls)] == ["alice"] * 5
    assert len(key_server.hits) == 1


async def test_slow_server_does_not_hold_a_coroutine(
    key_server: KeyServer, clock: ManualClock
) -> None:
    """The time-out holds for coroutines too."""
    key_server.gate.clear()
    config = make_config(jwks_url=key_server.url, jwks_timeout_s=0.1)

    with pytest.raises(AuthenticationError) as caught:
        await AsyncJWTAuthenticator([config], clock=clock).authenticate(credential())

    assert caught.value.status == 503


async def test_cancelled_request_leaves_the_fetch_to_the_others(
    key_server: KeyServer, clock: ManualClock
) -> None:
    """A client that goes away does not take the keys with it."""
    key_server.publish(rsa_jwk("a"))
    key_server.gate.clear()
    authenticator = AsyncJWTAuthenticator([make_config(jwks_url=key_server.url)], clock=clock)
    first = asyncio.create_task(authenticator.authenticate(credential()))
    second = asyncio.create_task(authenticator.authenticate(credential()))
    await asyncio.sleep(0)
    first.cancel()
    key_server.gate.set()

    assert (await second).id == "alice"
    assert first.cancelled()


def test_keys_outlive_the_event_loop_that_fetched_them(
    key_server: KeyServer, clock: ManualClock
) -> None:
    """A framework that runs each request in a loop of its own fetches once."""
    key_server.publish(rsa_jwk("a"))
    authenticator = AsyncJWTAuthenticator([make_config(jwks_url=key_server.url)], clock=clock)

    for name in ("alice", "bob"):
        assert asyncio.run(authenticator.authenticate(credential(sub=name))).id == name
    assert len(key_server.hits) == 1
