"""The keys of an issuer as they are kept in a process: the I/O around `jwks.KeySet`.

One thread per key set fetches, whoever waits for it. It is a thread of our own and not a
task or an executor's, because authentication must work from any event loop, from several
of them, and without one; and because a thread that hangs in a name look-up may then
neither block a loop nor the end of the process.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from llm_budget_mw.identity.jwks import KeySet, parse_jwks, read_max_age_s
from llm_budget_mw.identity.peek import Peek
from llm_budget_mw.identity.signatures import VerificationKey

if TYPE_CHECKING:
    from llm_budget_mw.config import JWTConfig

MAX_ANSWER_BYTES = 512 * 1024
_PIECE_BYTES = 64 * 1024
_FAILURES = (OSError, ValueError, http.client.HTTPException)
_HEADERS = [("Accept", "application/json"), ("User-Agent", "llm-budget-mw")]

_logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What a key server sent."""

    body: bytes
    cache_control: str


def fetch(url: str, timeout_s: float) -> Answer:
    """Get a key server's answer, of bounded size, without following redirects.

    Raises `OSError`, `ValueError` or `HTTPException`.
    """
    deadline = time.monotonic() + timeout_s
    try:
        with _opener().open(url, timeout=timeout_s) as response:
            body = _read_bounded(response, deadline)
            return Answer(body, response.headers.get("Cache-Control", ""))
    except urllib.error.HTTPError as error:
        error.close()
        raise ValueError(f"the key server answered {error.code}") from error


def _opener() -> urllib.request.OpenerDirector:
    # Put together by hand: the default one follows redirects and opens files. Plain http
    # is for loopback, where a proxy has no business.
    proxies = urllib.request.getproxies()
    opener = urllib.request.OpenerDirector()
    opener.addheaders = _HEADERS
    for handler in (
        urllib.request.ProxyHandler({name: proxies[name] for name in proxies if name == "https"}),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _read_bounded(response: http.client.HTTPResponse, deadline: float) -> bytes:
    body = b""
    while piece := response.read1(_PIECE_BYTES):
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
        # The socket's time-out starts anew with every byte that drips in.
        if time.monotonic() > deadline:
            raise TimeoutError("the answer took too long")
    return body


class RemoteKeys:
    """The keys of one issuer, fetched when `KeySet` says so; safe to share by threads.

    `clock` gives seconds and may be any clock.
    """

    def __init__(self, url: str, config: JWTConfig, clock: Callable[[], float]) -> None:
        self._url = url
        self._config = config
        self._clock = clock
        self._keys = KeySet(stale_s=config.jwks_stale_s, cooldown_s=config.jwks_cooldown_s)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pending: Future[None] | None = None

    def look_up(self, wanted: Peek) -> VerificationKey | Future[None]:
        """Return the key for a credential, or the fetch to wait for and then `conclude`.

        Raises `AuthenticationError` if there is no such key and it is too early to ask.
        """
        with self._lock:
            now = self._clock()
            key, due = self._keys.look_up(wanted, now)
            # A thread does not live on in a forked process, hence not `is None`.
            if due and (self._thread is None or not self._thread.is_alive()):
                self._start_fetch()
            found = key or self._pending
            if found is None:
                raise self._keys.refusal(now)
            return found

    def conclude(self, wanted: Peek, pending: Future[None]) -> VerificationKey:
        """Return the key after a fetch was waited for, in vain or not.

        Raises `AuthenticationError` if it did not bring the key.
        """
        with self._lock:
            now = self._clock()
            # Given up: while its thread hangs, the next requests are refused at once.
            if not pending.done() and self._pending is pending:
                self._pending = None
            key, _ = self._keys.look_up(wanted, now)
            if key is None:
                raise self._keys.refusal(now)
            return key

    def _start_fetch(self) -> None:
        pending: Future[None] = Future()
        # A waiter that is cancelled must not cancel what others wait for.
        pending.set_running_or_notify_cancel()
        self._thread = threading.Thread(
            target=self._fetch, args=(pending,), name="llm-budget-jwks", daemon=True
        )
        self._thread.start()
        self._pending = pending

    def _fetch(self, pending: Future[None]) -> None:
        try:
            answer = fetch(self._url, self._config.jwks_timeout_s)
            keys = parse_jwks(answer.body, self._config.algorithms)
        except _FAILURES as error:
            _logger.warning("no keys from %s: %s", self._url, error)
            keys, max_age_s = (), 0.0
        else:
            max_age_s = read_max_age_s(answer.cache_control, self._config.jwks_max_age_s)
        self._finish(pending, keys, max_age_s)

    def _finish(
        self, pending: Future[None], keys: tuple[VerificationKey, ...], max_age_s: float
    ) -> None:
        with self._lock:
            now = self._clock()
            state = self._keys
            self._keys = state.received(keys, max_age_s, now) if keys else state.failed(now)
            if self._pending is pending:
                self._pending = None
        pending.set_result(None)
