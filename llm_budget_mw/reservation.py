"""What one admission holds, until somebody settles it: its holder, or one call inside."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from llm_budget_mw.types import Grant, Plan

if TYPE_CHECKING:
    from llm_budget_mw.shell import Held


class Reservation:
    """A reservation that the first call which it covers may draw upon, once.

    A handler may make calls in several threads at once, and after its request has ended.
    """

    def __init__(self, held: Held) -> None:
        self.held = held
        self.handed_over = False
        """True once a call has taken it, and settles it."""
        self._retained = False
        self._lock = threading.Lock()

    def take_over(self, plan: Plan) -> Held | None:
        """Hand the reservation to a call, if it is there and covers what that would hold."""
        drawn = _drawn(self.held.grant, plan)
        with self._lock:
            if drawn is None or self.handed_over or self._retained:
                return None
            self.handed_over = True
        return self.held._replace(grant=drawn)

    def retain(self) -> bool:
        """Keep it from calls for good; False if one has taken it, and settles it."""
        with self._lock:
            self._retained = not self.handed_over
            return self._retained


def _drawn(grant: Grant, plan: Plan) -> Grant | None:
    """Return the grant with the first offer of a plan it covers; None if it covers none."""
    held = grant.charges
    for offer in plan.offers:
        # What grows with the stream of its request does not grow for a call: all of it, or none.
        least = offer.max_output if grant.offer.bound else offer.min_output
        tokens, nano = held.tokens - offer.fixed_tokens, held.cost_nano - offer.fixed_nano
        output = min(offer.max_output, tokens // offer.per_output_tokens)
        if offer.per_output_nano:
            output = min(output, nano // offer.per_output_nano)
        if nano >= 0 and output >= least:
            return grant._replace(offer=offer, output=output)
    return None
