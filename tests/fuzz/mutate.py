"""Breaks what is fine, at random and repeatably: fields, bytes, and the order of events."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from llm_budget_mw.dialects.protocol import RequestHead
from tests.fuzz.seeds import SEEDS, Seeds, compact
from tests.fuzz.sweep import with_child


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"content": value}
    return value


_HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 16, 128, 129, 1024, 2**31 - 1, 2**31, 2**53, 2**53 + 1,
    2**63, 2**64, 10**30, 10**400, -(2**63), 0.5, 28.0, -0.0, 1e-300, 1e16, 1e308, math.inf,
    -math.inf, math.nan, "", "0", "12", "NaN", "true", "\ud800", "\udfff\ud800", "\x00", "\r\n\r\n",
    "é\u2028\u2029\u0085", "\U0001f389", "data: x\n\n", "x" * 257, "x" * 2000, "data:;base64,",
    "data:image/png;base64,====", [], {}, [[]], [None], [{}], [0, "", None], {"": None},
    {"type": None}, {"text": "x"}, _nested(60), _nested(70), _nested(199), _nested(250),
)  # fmt: skip
_TOKENS = (
    b"\xff", b"\xfe\xff", b"\x00", b'"', b"\\", b"\\u", b"\\ud83c", b"\r", b"\n", b"\r\n", b"\n\n",
    b"\r\n\r\n", b"\xef\xbb\xbf", b"NaN", b"-Infinity", b"1e999", b"[DONE]", b"data: ", b"data:",
    b"data: [DONE]\n\n", b": ping\n\n", b"event: x\n", b"id: 1\n", b"[", b"]", b"{", b"}", b",",
    b":", b'"usage":null', b'"usage"', b'"delta":{"content":"', b'"}', b"9" * 400, b"\xed\xa0\x80",
    b"[" * 300, b"\xe2\x80\xa8", b"\x1f\x8b\x08", b"\x00\x00\x00\x10",
)  # fmt: skip
_MEMBER = re.compile(rb'"[A-Za-z_]+":(?:[^,{}\[\]"]+|"[^"\\]*")')
_SMALL_BYTES = 2000
_SIZES = (1, 1, 2, 3, 5, 8, 13, 64, 1000)
_ENCODINGS = ("gzip", "br", "identity", " GZIP ", "deflate, gzip")


class Answer(NamedTuple):
    """A whole answer, or a stream with the sizes of the pieces it arrives in."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sizes: tuple[int, ...] = ()


class Mutator:
    """Mutations of the seeds of one dialect, from one source of randomness."""

    def __init__(self, seeds: Seeds, random: Random) -> None:
        self._seeds = seeds
        self._random = random
        self._choose = random.choice
        self._words = VOCABULARY[seeds.dialect.name]

    def _maybe(self, part: float) -> bool:
        return self._random.random() < part

    def request(self) -> tuple[RequestHead, bytes]:
        """Return a request with something wrong in its path, its fields or its bytes."""
        seeds = self._source(0.02)
        path = self._choose(seeds.paths)
        if self._maybe(0.05):
            at = self._random.randrange(len(path) + 1)
            path = (
                path[:at] + self._choose(["%", "%2F", "/", "\x00", "é", "..", ":", "?"]) + path[at:]
            )
        query = self._choose(["", "", "alt=sse", "alt=json&alt=%00"])
        head = RequestHead("POST", path, query, {"content-type": "application/json"})
        return head, self._broken(self._json(self._choose(seeds.requests)))

    def answer(self) -> Answer:
        """Return a whole answer with something wrong in it."""
        body = self._broken(self._json(self._choose(self._source(0.05).answers)))
        status = self._choose([200, 200, 200, 200, 400, 429, 500, 529])
        return Answer(status, self._headers("application/json"), body)

    def stream(self) -> Answer:
        """Return a stream whose events are wrong, repeated, missing, or of another format."""
        seeds = self._source(0.05)
        events = list(self._choose(seeds.streams))
        for _ in range(self._random.randrange(4)):
            self._disorder(events)
        kind = seeds.stream_type
        if seeds.dialect.name == "gemini" and self._maybe(0.4):
            body, kind = b"[" + b",\r\n".join(map(compact, events)) + b"]", "application/json"
        else:
            body = seeds.write(events)
        if self._maybe(0.2):
            body = body.replace(b"\n", self._choose([b"\r\n", b"\r", b"\n\n"]))
        body = self._broken(body)
        return Answer(200, self._headers(kind), body, self._sizes(len(body)))

    def _source(self, strange: float) -> Seeds:
        return SEEDS[self._choose(_NAMES)] if self._maybe(strange) else self._seeds

    def _headers(self, kind: str) -> dict[str, str]:
        headers = {"content-type": kind}
        for name, value in self._seeds.headers.items():
            if self._maybe(0.3):
                headers[name] = self._choose([value, "", "-1", "9" * 17, "²", "1e3", "NaN"])
        if self._maybe(0.03):
            headers["content-encoding"] = self._choose(_ENCODINGS)
        return headers

    def _sizes(self, length: int) -> tuple[int, ...]:
        if self._maybe(0.1):
            return (1,) * length
        sizes: list[int] = []
        while length > 0:
            sizes.append(self._choose(_SIZES))
            length -= sizes[-1]
        return tuple(sizes)

    def _disorder(self, events: list[Any]) -> None:
        at = self._random.randrange(len(events)) if events else 0
        kind = self._random.randrange(8)
        if kind == 0:
            other = self._source(0.3)
            events.insert(at, self._choose(self._choose(other.streams)))
        elif kind == 1:
            events.insert(at, self._choose(_HOSTILE))
        elif kind == 2 and events:
            del events[at]
        elif kind == 3 and events:
            events.append(events[at])
        elif events and isinstance(events[at], dict):
            events[at] = self.changed(events[at])

    def _json(self, value: Any) -> bytes:
        for _ in range(self._choose((0, 1, 1, 1, 2, 4))):
            value = self.changed(value)
        if self._maybe(0.8):
            return compact(value)
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")

    def changed(self, value: Any) -> Any:
        """Return a value with one field changed, somewhere in it."""
        random = self._random
        if not value or not isinstance(value, dict | list) or self._maybe(0.05):
            return self._choose(_HOSTILE)
        keys: Sequence[Any] = list(value) if isinstance(value, dict) else range(len(value))
        key = self._choose(keys)
        child = value[key]
        if isinstance(child, dict | list) and child and self._maybe(0.75):
            return with_child(value, key, self.changed(child))
        kind = random.randrange(8)
        copy = value.copy()
        if kind == 0:
            del copy[key]
        elif kind == 1 and isinstance(copy, dict):
            copy[self._choose(self._words)] = copy.pop(key)
        elif kind == 2 and isinstance(copy, dict):
            copy[self._choose(self._words)] = self._choose(_HOSTILE)
        elif kind == 2 and isinstance(copy, list):
            # Many only of what is small: megabytes are for `bulk`.
            small = len(compact(copy[0])) < _SMALL_BYTES
            copy.extend(copy[:1] * self._choose((1, 3, 130) if small else (1,)))
        elif kind == 3 and type(child) is int and abs(child) < 2**64:
            copy[key] = self._choose((-child, child * 10**9, child / 1, str(child), child / 3))
        else:
            copy[key] = self._choose(_HOSTILE)
        return copy

    def _broken(self, data: bytes) -> bytes:
        """Return the bytes, one time in four with something done to them that JSON is not."""
        for _ in range(self._choose((0, 0, 0, 0, 0, 0, 1, 3))):
            data = self._damaged(data)
        return data

    def _damaged(self, data: bytes) -> bytes:
        random = self._random
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + self._choose(_SIZES))
        kind = random.randrange(8)
        if kind == 0:
            return data[:at]
        if kind == 1:
            return data[:at] + data[end:]
        if kind == 2:
            return data[:end] + data[at:]
        if kind == 3 and at < len(data):
            return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        if kind == 4 and self._maybe(0.1):
            return gzip.compress(data, mtime=0)
        if kind in (5, 6):
            return self._repeated_key(data)
        return data[:at] + self._choose(_TOKENS) + data[at:]

    def _repeated_key(self, data: bytes) -> bytes:
        members = list(_MEMBER.finditer(data))
        if not members:
            return data
        member = self._choose(members)
        name = member[0].partition(b":")[0]
        try:
            other = compact(self._choose(_HOSTILE))
        except RecursionError:
            other = b"null"
        twice = [member[0], name + b":" + other]
        random_order = twice if self._maybe(0.5) else twice[::-1]
        return data[: member.start()] + b",".join(random_order) + data[member.end() :]


def _names_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for child in value:
            yield from _names_in(child)


_NAMES = tuple(SEEDS)
_FOR_ALL = (
    "model",
    "type",
    "usage",
    "error",
    "message",
    "n",
    "stream",
    "index",
    "MAX_TOKENS",
    "Options",
)
VOCABULARY: Mapping[str, Sequence[str]] = {
    name: sorted(
        {*_names_in([seeds.requests, seeds.answers, seeds.streams, seeds.bounds]), *_FOR_ALL}
    )
    + [bound[-1] for bound in seeds.bounds]
    for name, seeds in SEEDS.items()
}
"""The names of fields that mean something to a dialect."""
