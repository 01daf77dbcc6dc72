"""The default authenticator: a JWT, verified as RFC 8725 asks.

The order is the point. What bounds work comes first (one credential, its size), then the
cache, then what only selects (`peek`), then the signature with that issuer's keys and
algorithms, and only then is a claim believed. `JWTAuthenticator` and
`AsyncJWTAuthenticator` differ in the one line that waits for a key server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from llm_budget_mw.errors import AuthenticationError, ConfigurationError
from llm_budget_mw.identity.bearer import check_syntax, malformed, read_credential
from llm_budget_mw.identity.cache import PrincipalCache
from llm_budget_mw.identity.claims import (
    check_claims,
    check_typ,
    expires_at,
    read_claims,
    to_principal,
)
from llm_budget_mw.identity.keyserver import RemoteKeys
from llm_budget_mw.identity.peek import Peek, peek
from llm_budget_mw.identity.signatures import VerificationKey, load_key, verify
from llm_budget_mw.types import Principal

if TYPE_CHECKING:
    from llm_budget_mw.config import JWTConfig


class JWTAuthenticator:
    """Verifies bearer JWTs; waits for a key server by blocking the thread.

    With several configurations the token's issuer selects among them, and `Principal.id`
    is `issuer|subject`. `clock` gives seconds of the Unix epoch. Raises
    `ConfigurationError` for keys that cannot be used.
    """

    def __init__(
        self, configs: Sequence[JWTConfig], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._verifier = _Verifier(configs, clock)

    def authenticate(self, headers: Sequence[tuple[str, str]]) -> Principal:
        """Return the principal of a request; see `Authenticator.authenticate`."""
        outcome = self._verifier.begin(headers)
        if isinstance(outcome, Principal):
            return outcome
        with contextlib.suppress(TimeoutError):
            outcome.pending.result(outcome.timeout_s)
        return self._verifier.finish(outcome)


class AsyncJWTAuthenticator:
    """Verifies bearer JWTs; waits for a key server without stalling the event loop.

    Everything else is as in `JWTAuthenticator`. Not bound to one event loop.
    """

    def __init__(
        self, configs: Sequence[JWTConfig], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._verifier = _Verifier(configs, clock)

    async def authenticate(self, headers: Sequence[tuple[str, str]]) -> Principal:
        """Return the principal of a request; see `Authenticator.authenticate`."""
        outcome = self._verifier.begin(headers)
        if isinstance(outcome, Principal):
            return outcome
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(outcome.timeout_s):
                await asyncio.wrap_future(outcome.pending)
        return self._verifier.finish(outcome)


class _Issuer(NamedTuple):
    config: JWTConfig
    keys: VerificationKey | RemoteKeys


class _Attempt(NamedTuple):
    """A credential that is not in the cache, on its way through verification."""

    credential: str
    digest: bytes
    peek: Peek
    config: JWTConfig


class _Waiting(NamedTuple):
    """An attempt whose key has to be fetched first."""

    attempt: _Attempt
    keys: RemoteKeys
    pending: Future[None]
    timeout_s: float


class _Verifier:
    """Everything both authenticators share, none of which waits."""

    def __init__(self, configs: Sequence[JWTConfig], clock: Callable[[], float]) -> None:
        _check_issuers([config.issuer for config in configs])
        self._issuers = {
            config.issuer: _Issuer(config, _open_keys(config, clock)) for config in configs
        }
        self._names = frozenset(name for config in configs for name in config.headers)
        self._max_bytes = max(config.max_token_bytes for config in configs)
        self._cache = PrincipalCache()
        self._clock = clock

    def begin(self, headers: Sequence[tuple[str, str]]) -> Principal | _Waiting:
        credential = read_credential(headers, self._names)
        # Bytes and characters are the same number here: it is ASCII.
        if len(credential) > self._max_bytes:
            raise malformed("the credential is too large")
        digest = hashlib.sha256(credential.encode()).digest()
        known = self._cache.get(digest, self._clock())
        return known or self._begin_new(credential, digest)

    def _begin_new(self, credential: str, digest: bytes) -> Principal | _Waiting:
        check_syntax(credential)
        seen = peek(credential)
        config, keys = self._select(seen)
        if len(credential) > config.max_token_bytes:
            raise malformed("the credential is too large")
        attempt = _Attempt(credential, digest, seen, config)
        if isinstance(keys, VerificationKey):
            return self._verify(attempt, keys)
        found = keys.look_up(seen)
        if isinstance(found, Future):
            return _Waiting(attempt, keys, found, config.jwks_timeout_s)
        return self._verify(attempt, found)

    def finish(self, waiting: _Waiting) -> Principal:
        key = waiting.keys.conclude(waiting.attempt.peek, waiting.pending)
        return self._verify(waiting.attempt, key)

    def _select(self, seen: Peek) -> _Issuer:
        issuer = self._issuers.get(seen.issuer)
        if issuer is None:
            raise AuthenticationError("the credential is from another issuer")
        # Refused here already, so that it cannot be a reason to ask the key server.
        if seen.alg not in issuer.config.algorithms:
            raise AuthenticationError("the credential's algorithm is not accepted")
        return issuer

    def _verify(self, attempt: _Attempt, key: VerificationKey) -> Principal:
        now = self._clock()
        header, payload = verify(attempt.credential, key)
        claims = read_claims(payload)
        check_typ(header, attempt.config.typ)
        check_claims(claims, attempt.config, now)
        principal = to_principal(claims, attempt.config, qualify=len(self._issuers) > 1)
        self._cache.put(attempt.digest, principal, expires_at=expires_at(claims), now=now)
        return principal


def _check_issuers(issuers: list[str]) -> None:
    if not issuers:
        raise ConfigurationError("jwt is empty: configure at least one issuer")
    if len(set(issuers)) < len(issuers):
        raise ConfigurationError(f"jwt.issuer = {issuers!r}: configure each issuer once")
    # With "a" and "a|b", the ids "a" + "b|c" and "a|b" + "c" would be one.
    if len(issuers) > 1 and any("|" in issuer for issuer in issuers):
        raise ConfigurationError(
            f"jwt.issuer = {issuers!r}: with several issuers none may hold '|'"
        )


def _open_keys(config: JWTConfig, clock: Callable[[], float]) -> VerificationKey | RemoteKeys:
    if config.jwks_url is not None:
        return RemoteKeys(config.jwks_url, config, clock)
    if config.key is not None:
        return load_key(config.key.get_secret_value(), config.algorithms, "jwt.key")
    try:
        # Editors end a file with a line break, which belongs to no secret.
        text = config.key_file.read_text("utf-8").strip() if config.key_file else ""
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"jwt.key_file = {str(config.key_file)!r}: {error}") from error
    return load_key(text, config.algorithms, "jwt.key_file")
