from __future__ import annotations

import json

import pytest

from llm_budget_mw.errors import AuthenticationError
from llm_budget_mw.identity.jwks import MAX_KEYS, KeySet, parse_jwks, read_max_age_s
from llm_budget_mw.identity.peek import Peek
from llm_budget_mw.identity.signatures import VerificationKey
from tests.identity.issuer import ec_jwk, rsa_jwk

A = VerificationKey(b"", ("RS256",), "a")
B = VerificationKey(b"", ("RS256",), "b")
EC = VerificationKey(b"", ("ES256",), "a")
EMPTY = KeySet(stale_s=1000, cooldown_s=30)
FRESH = EMPTY.received((A,), 300, now=0)


def wanted(kid: str | None, alg: str = "RS256") -> Peek:
    return Peek(alg, kid, "issuer")


@pytest.mark.parametrize(
    ("keys", "now", "kid", "key", "fetch"),
    [
        pytest.param(EMPTY, 0, "a", None, True, id="first-use"),
        pytest.param(EMPTY.failed(0), 1, "a", None, False, id="just-failed"),
        pytest.param(EMPTY.failed(0), 2, "a", None, True, id="failed-without-keys-retries-soon"),
        pytest.param(FRESH, 299, "a", A, False, id="fresh"),
        pytest.param(FRESH, 300, "a", A, True, id="stale-serves-and-refreshes"),
        pytest.param(FRESH.failed(300), 329, "a", A, False, id="failed-refresh-cools-down"),
        pytest.param(FRESH.failed(300), 330, "a", A, True, id="failed-refresh-is-repeated"),
        pytest.param(FRESH.failed(1299), 1299, "a", A, False, id="last-stale-moment"),
        pytest.param(FRESH.failed(1299), 1300, "a", None, False, id="too-stale"),
        pytest.param(FRESH.failed(1299), 1301, "a", None, True, id="too-stale-retries-soon"),
        pytest.param(FRESH, 29, "x", None, False, id="unknown-in-cool-down"),
        pytest.param(FRESH, 30, "x", None, True, id="unknown-after-cool-down"),
        pytest.param(FRESH, -5, "a", A, True, id="clock-set-back"),
    ],
)
def test_lookup(keys: KeySet, now: float, kid: str, key: VerificationKey, fetch: bool) -> None:
    """Which key serves, and whether the server is asked, follows from the time alone."""
    assert keys.look_up(wanted(kid), now) == (key, fetch)


def test_no_cool_down_is_shorter_than_configured_after_failure() -> None:
    """A cool-down below the retry pause is respected as it is."""
    keys = KeySet(stale_s=0, cooldown_s=0).failed(0)

    assert keys.look_up(wanted("a"), 0).fetch


def test_only_key_serves_credentials_without_a_key_id() -> None:
    """RFC 7515 leaves `kid` optional; with one fitting key there is no doubt."""
    keys = EMPTY.received((A, EC), 300, now=0)

    assert keys.look_up(wanted(None), 0).key is A
    assert keys.look_up(wanted(None, "ES256"), 0).key is EC


def test_key_is_not_guessed_among_several() -> None:
    """A credential without a key id is refused when two keys fit."""
    keys = EMPTY.received((A, B), 300, now=0)

    with pytest.raises(AuthenticationError) as caught:
        keys.look_up(wanted(None), 0)

    assert caught.value.status == 401


def test_no_key_fits_an_algorithm_nobody_has() -> None:
    """A missing key id does not make an RSA key verify ES256."""
    assert FRESH.look_up(wanted(None, "ES256"), 0).key is None


def test_key_id_is_looked_up_among_keys_of_the_algorithm() -> None:
    """Two keys may share an id if their types differ (RFC 7517 section 4.5)."""
    keys = EMPTY.received((A, EC), 300, now=0)

    assert keys.look_up(wanted("a", "ES256"), 0).key is EC


def test_refusal_tells_whose_fault_it_is() -> None:
    """With keys an unknown one is the client's fault, without any it is ours."""
    assert FRESH.refusal(0).status == 401
    assert (EMPTY.refusal(0).status, EMPTY.refusal(0).code) == (503, None)


def test_usable_keys_are_read_and_others_skipped() -> None:
    """One broken or secret member does not spoil a set."""
    members = [5, {"kty": "oct", "k": "AA", "kid": "s"}, rsa_jwk("r"), ec_jwk("e")]

    keys = parse_jwks(json.dumps({"keys": members}).encode(), ("RS256", "ES256"))

    assert [(key.kid, key.algorithms) for key in keys] == [("r", ("RS256",)), ("e", ("ES256",))]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [{"kty": "oct", "k": "AAAA"}]}',
        b"[" * 100_000,
        json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode(),
    ],
)
def test_answer_without_usable_keys_is_an_error(body: bytes) -> None:
    """An answer that brings no key never replaces keys that work."""
    with pytest.raises(ValueError, match="JWK set"):
        parse_jwks(body, ("RS256",))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", 1234),
        ("public", 1234),
        ("max-age=600", 600),
        ('public, MAX-AGE="900"', 900),
        ("max-age=0", 300),
        ("max-age=999999999999", 86_400),
        ("max-age=" + "9" * 5000, 86_400),
        ("s-maxage=600", 1234),
        ("max-age=-1", 1234),
        ("no-store, max-age=600", 300),
        ("no-cache", 300),
    ],
)
def test_max_age_is_bounded(header: str, seconds: int) -> None:
    """A key server can neither make us hammer it nor keep a key for ever."""
    assert read_max_age_s(header, 1234) == seconds
