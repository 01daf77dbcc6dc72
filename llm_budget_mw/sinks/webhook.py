"""Alerts sent to a webhook: signed JSON, tried again, and never in the way of a request.

Nothing but the configured address is ever spoken to: redirects are not followed, and no
proxy is taken from the environment. Of an answer nothing but its status counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import math
import os
import random
import re
import secrets
import socket
import threading
import time
from collections import deque
from typing import NamedTuple
from urllib.parse import urlsplit

from llm_budget_mw import _windows
from llm_budget_mw.events import ALERTS, Event

ID = "X-LLM-Budget-Id"
"""Of the event: the same in every try."""
TIMESTAMP = "X-LLM-Budget-Timestamp"
"""Seconds since the epoch, of this try."""
SIGNATURE = "X-LLM-Budget-Signature"
"""`v1=` and the HMAC-SHA256 of timestamp, a dot and the body, in hexadecimal digits."""

_TRIES = 5
_CAPACITY = 256
_ANSWER_BYTES = 16 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\n]*)?\r?\n")
_TAKEN = range(200, 300)
_REDIRECTS = range(300, 400)
_TOO_MANY = 429
_SERVER_ERROR = 500
_FAILURES = (OSError, ValueError, http.client.HTTPException)
_log = logging.getLogger(__name__)


class _Message(NamedTuple):
    """One alert as it is sent."""

    id: str
    name: str
    body: bytes


class _Queue:
    """What one process has to send, and the thread that does: a fork starts with none of it."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.messages: deque[_Message] = deque()
        self.thread: threading.Thread | None = None
        self.full = False
        """True once something found no room, until all is sent."""
        self.closing = threading.Event()
        self.deadline = math.inf


class WebhookSink:
    """Sends alerts to one address, in order, in a thread that is there while there are any.

    A connection that fails, a 429 and a 5xx are tried again, five times in all, after
    `pause_s` and twice as long each time; any other answer is final. A try takes no longer
    than `timeout_s`. An alert that finds 256 others waiting is lost.
    """

    def __init__(
        self, url: str, secret: bytes, *, pause_s: float = 1.0, timeout_s: float = 5.0
    ) -> None:
        self.lost = 0
        """Alerts that were not delivered."""
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        self._secret = secret
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._queue = _Queue()

    def emit(self, event: Event) -> None:
        """Queue an alert; other events are not sent."""
        if event.name not in ALERTS:
            return
        message = _message(event)
        queue = self._own_queue()
        with queue.lock:
            if len(queue.messages) < _CAPACITY:
                queue.messages.append(message)
                self._start(queue)
                return
            first, queue.full = not queue.full, True
        self._lose(message, f"{_CAPACITY} others are waiting", quiet=not first)

    def close(self, within_s: float = 5.0) -> None:
        """Send what waits, each once more at most; what takes longer than this is lost."""
        queue = self._own_queue()
        queue.deadline = time.monotonic() + within_s
        queue.closing.set()
        thread = queue.thread
        if thread is not None:
            thread.join(within_s)
        else:
            self._send_all(queue)
        # Another one: a guard may be opened and closed several times, by tests for one.
        self._queue = _Queue()
        with queue.lock:
            left = list(queue.messages)
            queue.messages.clear()
        for message in left:
            self._lose(message, "there was no time left")

    def _own_queue(self) -> _Queue:
        # A forked process has copies of locks that nobody will open, and not the thread.
        if self._queue.process != os.getpid():
            self._queue = _Queue()
        return self._queue

    def _start(self, queue: _Queue) -> None:
        if queue.thread is not None:
            return
        thread = threading.Thread(
            target=self._send_all, args=(queue,), name="llm-budget-webhook", daemon=True
        )
        # The interpreter starts no thread while it ends: then `close` sends what waits.
        with contextlib.suppress(RuntimeError):
            thread.start()
            queue.thread = thread

    def _send_all(self, queue: _Queue) -> None:
        while True:
            with queue.lock:
                if not queue.messages:
                    queue.thread, queue.full = None, False
                    return
                message = queue.messages.popleft()
            try:
                self._deliver(message, queue)
            except Exception:  # noqa: BLE001 (the thread must not end while others wait)
                _log.exception("the alert %s %s cannot be sent", message.name, message.id)

    def _deliver(self, message: _Message, queue: _Queue) -> None:
        why = ""
        for number in range(_TRIES):
            if number:
                # Apart from each other, where many processes have something to tell.
                jitter = random.uniform(0.5, 1.0)  # noqa: S311
                queue.closing.wait(self._pause_s * 2 ** (number - 1) * jitter)
            closing = queue.closing.is_set()
            try:
                status = self._try(message, queue.deadline)
            except _FAILURES as error:
                why = str(error) or type(error).__name__
            else:
                if status in _TAKEN:
                    return
                why = f"the answer was {_shown(status)}"
                if not _may_pass(status):
                    break
            if closing:
                break
        self._lose(message, why)

    def _try(self, message: _Message, deadline: float) -> int:
        """Return the status of one try; raises one of `_FAILURES` if there was none in time."""
        deadline = min(time.monotonic() + self._timeout_s, deadline)
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=_left(deadline))
        try:
            connection.request("POST", self._target, message.body, self._headers(message))
            return _read_status(connection.sock, deadline)
        finally:
            connection.close()

    def _headers(self, message: _Message) -> dict[str, str]:
        timestamp = str(int(time.time()))
        signed = timestamp.encode() + b"." + message.body
        signature = hmac.digest(self._secret, signed, hashlib.sha256).hex()
        return {
            "Content-Type": "application/json",
            "User-Agent": "llm-budget-mw",
            "Connection": "close",
            ID: message.id,
            TIMESTAMP: timestamp,
            SIGNATURE: f"v1={signature}",
        }

    def _lose(self, message: _Message, why: str, *, quiet: bool = False) -> None:
        with self._own_queue().lock:
            self.lost += 1
        if not quiet:
            _log.error("the alert %s %s is lost: %s", message.name, message.id, why)


def _message(event: Event) -> _Message:
    identity = secrets.token_hex(12)
    body = {
        "id": identity,
        "event": event.name,
        "severity": event.severity,
        "time": _windows.in_utc(time.time_ns() // 1_000_000),
        "attributes": event.attributes,
    }
    return _Message(identity, event.name, json.dumps(body).encode())


def _read_status(connection: socket.socket, deadline: float) -> int:
    """Read an answer to its end, as far as it is within time and size; return its status."""
    answer = b""
    # What fails after the status, even a body that never ends, changes nothing any more.
    with contextlib.suppress(OSError):
        while len(answer) < _ANSWER_BYTES:
            # Anew each time: a socket's own time-out starts again with every byte that drips in.
            connection.settimeout(_left(deadline))
            piece = connection.recv(_ANSWER_BYTES)
            if not piece:
                break
            answer += piece
    match = _STATUS_LINE.match(answer)
    if match is None:
        raise ValueError("no status came in time")
    return int(match[1])


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("there was no time left")
    return left


def _may_pass(status: int) -> bool:
    """Return whether another try may be answered otherwise."""
    return status == _TOO_MANY or status >= _SERVER_ERROR


def _shown(status: int) -> str:
    redirect = ", a redirect, which is not followed" if status in _REDIRECTS else ""
    return f"{status}{redirect}"
