"""A hold that grows with the stream it covers: what may pass, and when to ask for more of it.

Never is more passed on than is held. Nothing here waits: whoever passes the stream on asks
the store, ahead of need where it can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from llm_budget_mw.dialects._stream import unescape
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.tap import Tap
from llm_budget_mw.types import Grant, Usage

_AHEAD = 0.75
"""Part of the hold that has passed when more is asked for."""
_LEAST_STEP = 64
"""Fewest output tokens to ask for, where not even so few are left."""


class StoppedError(OSError):
    """The stream has been ended: nobody takes any more of it.

    An `OSError`, as servers raise it where the client has gone: frameworks know what to do.
    """


class _Event(NamedTuple):
    """An event that was looked at and has not passed."""

    raw: bytes
    output: bytes


class Elastic:
    """The hold of one streamed answer, and what of it has come and not passed.

    What has passed is counted with the tokenizer where the bytes of its text, which are never
    fewer than its tokens, would not fit; what the provider reports counts where it is more.
    """

    def __init__(self, grant: Grant, tap: Tap, count: Callable[[str], int]) -> None:
        self.output = grant.output
        """Output tokens held, for one sampling."""
        self.grown = 0
        """How often the hold has grown."""
        self.exhausted = False
        """True once what comes next is not covered and will not be."""
        self.stopped = False
        """True once the stream was ended because of that."""
        self._bound = grant.max_tokens
        self._samplings = grant.offer.per_output_tokens
        self._input = grant.offer.fixed_tokens
        self._step = max(_LEAST_STEP, grant.output // 2)
        self._refused = False
        self._tap = tap
        self._count = count
        self._arrived: deque[bytes] = deque()
        self._next: _Event | None = None
        self._counted = 0
        self._uncounted = bytearray()
        self._need = 0

    @property
    def passed(self) -> int:
        """An upper bound on the output tokens that were passed on, over all samplings."""
        return self._counted + len(self._uncounted)

    @property
    def waits(self) -> bool:
        """True if something has come that is not covered."""
        return self._next is not None

    def take(self, chunk: bytes, *, more: bool) -> None:
        """Take the next piece of the answer, the last one without `more`."""
        if self._tap.opaque:
            self._tap.feed(chunk)
            self._arrived.append(chunk)
        else:
            self._arrived += self._tap.cut(chunk)
        if not more and (rest := self._tap.rest()):
            self._arrived.append(rest)

    def ready(self) -> bytes:
        """Return all that may be passed on now, and count it as passed."""
        passed: list[bytes] = []
        while self._look():
            event = self._next
            if event is None or not self._passes(event.output):
                break
            passed.append(event.raw)
            self._next = None
        return b"".join(passed)

    def ask(self) -> int | None:
        """Return how much output to hold, in all; None if there is enough for now."""
        if self.output >= self._bound:
            return None
        if not self.waits and (self._refused or not self._runs_short()):
            return None
        return min(self._bound, max(self._least(), self.output + self._step))

    def answer(self, asked: int, output: int) -> None:
        """Note how much is held after `asked`."""
        if output > self.output:
            self.output = output
            self.grown += 1
            self._refused = False
            self._step = max(_LEAST_STEP, output // 2)
            return
        # Less may still be there; it is asked for once it is needed.
        self._refused = True
        self._step //= 2
        self.exhausted = self.waits and asked <= self._least()

    def waive(self) -> None:
        """Cover everything from now on: the answer is paid for by others."""
        self._bound = self.output

    def stop(self) -> bytes:
        """End the stream; return what the client is still to get."""
        self.stopped = True
        self._recount()
        sent = self._tap.reported.input_tokens
        return self._tap.stop(Usage(self._input if sent is None else sent, self.passed))

    def raise_if_stopped(self) -> None:
        """Raise `StoppedError` where nothing can be passed on any more."""
        if self.stopped:
            raise StoppedError("the stream was ended: no more of it could be held")

    def outcome(self, seen: Outcome) -> Outcome:
        """Return how the call ended, from what the edge has seen."""
        if self.stopped:
            seen = seen._replace(ending=Ending.STOPPED, counted_output=self.passed)
        return seen._replace(grown=self.grown)

    def _look(self) -> bool:
        """Look at the next event the client is to get; False if there is none."""
        while self._next is None and self._arrived:
            event = self._arrived.popleft()
            output = event if self._tap.opaque else self._tap.look(event)
            if output is not None:
                self._next = _Event(event, output)
        return self._next is not None

    def _passes(self, output: bytes) -> bool:
        """Count the output of an event as passed, if it is covered."""
        if not output or self.output >= self._bound:
            return True
        if self._tap.opaque:
            self._need = self._bound * self._samplings
            return False
        room = self.output * self._samplings
        reported = self._tap.reported.output_tokens or 0
        if max(self.passed + len(output), reported) <= room:
            self._uncounted += output
        else:
            self._recount()
            tokens = self._tokens(output)
            self._need = max(self._counted + tokens, reported)
            if self._need > room:
                return False
            self._counted += tokens
        if reported > self.passed:
            self._counted, self._uncounted = reported, bytearray()
        return True

    def _runs_short(self) -> bool:
        mark = _AHEAD * self.output * self._samplings
        if self.passed > mark:
            self._recount()
        return self.passed > mark

    def _least(self) -> int:
        """Return the least output that covers what waits."""
        return -(-self._need // self._samplings) if self.waits else 0

    def _recount(self) -> None:
        if self._uncounted:
            self._counted += self._tokens(bytes(self._uncounted))
            self._uncounted.clear()

    def _tokens(self, output: bytes) -> int:
        return min(len(output), self._count(unescape(output)))
