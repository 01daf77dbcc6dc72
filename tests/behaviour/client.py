"""What a client sees of a case, without what cannot be the same twice."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from llm_budget_mw.guard import Guard
from llm_budget_mw.testing import Issuer
from llm_budget_mw.types import Principal
from tests.behaviour import model

_OURS = re.compile("(x-)?ratelimit.*|retry-after.*|x-should-retry|www-authenticate|content-type")
_TIMES = re.compile(
    r"(?<=;t=)\d+|(?<=in )\d+(?= s)|(?<=\"retry_after\":)\d+|(?<=\"resets_in_s\": )\d+"
)
_NEVER_TWICE = ("reservation", "duration_ms", "principal", "price_version")
_DEPENDS_ON_WHEN = ("output_tokens", "total_tokens", "cost_nano", "cost_usd")
_SERVER_ERROR = 500
_PATIENCE_S = 10.0


class Case(NamedTuple):
    """One request of the table, or several of one principal, and what is to come of the last."""

    asked: dict[str, Any] | bytes
    status: int
    outcome: str
    """Grade and ending of the settlement, or the name of the other event there is."""
    used: int | None
    """Tokens charged in the end, over all its requests; None if that depends on when it ended."""
    path: str = model.CHAT
    before: int = 0
    """How many requests of the same kind come first."""
    events: int = 1
    """How many events the last one leads to."""
    token: str | None = ""
    encoding: str | None = None
    chunked: bool = False
    leaves: bool = False
    method: str = "POST"


class Seen(NamedTuple):
    """What there is to see of a case; equal for every framework."""

    status: int
    headers: dict[str, str]
    body: bytes
    limits: list[tuple[str, int, int]]
    """Name, used and remaining of each limit afterwards."""
    events: list[dict[str, Any]]


class Client:
    """Sends the cases of the table to one server."""

    def __init__(self, url: str, issuer: Issuer, guard: Guard, events: Path) -> None:
        self._port = int(url.rpartition(":")[2])
        self._issuer = issuer
        self._guard = guard
        self._events = events
        self._read = 0

    def see(self, name: str, case: Case) -> Seen:
        """Run a case to its end, its events included."""
        sub = f"{self._port}/{name}"
        for _ in range(case.before):
            self.send(case._replace(leaves=False), sub)
        status, headers, body = self.send(case, sub)
        events = self._new_events(case.before + case.events)
        return Seen(
            status,
            {name: _TIMES.sub("N", value) for name, value in sorted(headers.items())},
            b"" if case.leaves else _TIMES.sub("N", body.decode()).encode(),
            [] if case.leaves else self.limits(sub),
            [_comparable(event, when=case.leaves) for event in events],
        )

    def limits(self, sub: str) -> list[tuple[str, int, int]]:
        """Return what the store says of a principal."""
        statuses = self._guard.limits(Principal(sub))
        return [(status.limit.name, status.used, status.remaining) for status in statuses]

    def send(self, case: Case, sub: str) -> tuple[int, dict[str, str], bytes]:
        """Send one request; return status, headers of ours and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)
        raw = case.asked if isinstance(case.asked, bytes) else json.dumps(case.asked).encode()
        headers = {"Content-Type": "application/json"}
        token = self._issuer.token(sub) if case.token == "" else case.token
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if case.encoding is not None:
            headers["Content-Encoding"] = case.encoding
            raw = gzip.compress(raw)
        body: Any = iter([raw[:20], raw[20:]]) if case.chunked else raw
        connection.request(case.method, case.path, body, headers, encode_chunked=case.chunked)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        ours = {name: value for name, value in found.items() if _OURS.fullmatch(name)}
        content = answer.read1(1) if case.leaves else answer.read()
        connection.close()
        answer.close()
        if answer.status >= _SERVER_ERROR:
            return answer.status, {}, b""  # each framework has its own page for that
        return answer.status, _without_times(ours), content

    def _new_events(self, count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            lines = self._events.read_text().splitlines() if self._events.exists() else []
            if len(lines) - self._read >= count or time.monotonic() > deadline:
                break
            time.sleep(0.005)  # another process writes them
        new, self._read = lines[self._read :], len(lines)
        return [json.loads(line) for line in new]


def _without_times(headers: dict[str, str]) -> dict[str, str]:
    timed = {"retry-after", "retry-after-ms"}
    timed |= {name for name in headers if name.startswith("x-ratelimit-reset")}
    return {name: "N" if name in timed else value for name, value in headers.items()}


def _comparable(event: dict[str, Any], *, when: bool) -> dict[str, Any]:
    kept = {name: value for name, value in event.items() if name not in _NEVER_TWICE}
    kept |= {"request": "some"} if kept.get("request") else {}
    kept = {name: "N" if name == "retry_after_ms" else value for name, value in kept.items()}
    if when:
        kept |= {name: "some" for name in _DEPENDS_ON_WHEN if kept.get(name)}
    return kept
