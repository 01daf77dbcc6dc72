"""What a store does: few operations, each atomic, none of which decides anything else.

A store never refuses a settlement. `StoreError` means that the answer is not known: the
operation may or may not have happened, which is why each of them may be repeated under the
same reservation id without charging twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from llm_budget_mw.outputs import Counts
from llm_budget_mw.stores._commands import Amended, Switches
from llm_budget_mw.types import Admission, Charges, Grant, Plan, Subject

AmendVerb = Literal["add", "drop", "reset", "show"]
SwitchVerb = Literal["stop", "resume", "show"]


class Store(Protocol):
    """A store for threads."""

    shared: bool
    """Whether other processes count in it as well, so that it can be away."""

    def admit(self, plan: Plan) -> Admission:
        """Hold the first offer that fits every limit, or write nothing.

        Raises `StoreError` when the store does not answer within its deadline.
        """
        ...

    def settle(self, grant: Grant, charges: Charges) -> str:
        """Replace a reservation by what was used; return one digit for each subject.

        `1` settled, `2` nothing to do, `3` settled after expiry, `4` charged without a
        reservation; then what it has to tell, see `_commands.read_told`. Raises `StoreError` as `admit` does.
        """
        ...

    def renew(self, grant: Grant) -> bool:
        """Prolong the lease of a running call; False if the reservation is no longer held."""
        ...

    def grow(self, grant: Grant, output: int) -> int:
        """Hold more output for a running call, in every limit or in none; never less.

        `output` is what is to be held in all. Returns what is held then: no more than
        `grant.output` if a limit has no room for it, or the reservation is no longer held.
        Raises `StoreError` as `admit` does.
        """
        ...

    def learn(self, noted: Mapping[str, Counts]) -> dict[str, Counts]:
        """Add to histograms of the length of answers, by name, and return them.

        What a lost reply leads to repeat counts twice. Raises `StoreError` as `admit` does.
        """
        ...

    def amend(self, subject: Subject, verb: AmendVerb, what: str = "") -> Amended:
        """Change what operators added to a subject's limits, or forget what it used.

        `what` is the line of an addition to `add`, the id of one to `drop`, or the names of
        limits to `reset`. Returns when it holds in every process. Raises `StoreError` as `admit` does.
        """
        ...

    def switch(self, verb: SwitchVerb, name: str = "", value: str = "") -> Switches:
        """Stop all calls of a name, or let them go on; `value` is "until reason", in ms.

        Returns when it holds in every process. Raises `StoreError` as `admit` does.
        """
        ...

    def claim(self, holder: str, slots: int, lease_ms: int) -> int:
        """Take one of so many slots for a process, or keep the one it has.

        Returns its number, from 1; 0 if others have them all. It is free again after
        `lease_ms`, at once with 0. Raises `StoreError` as `admit` does.
        """
        ...

    def now_ms(self) -> int:
        """Return the store's clock as last heard; no round trip."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class AsyncStore(Protocol):
    """A store for one event loop; the same operations."""

    shared: bool
    """Like `Store.shared`."""

    async def admit(self, plan: Plan) -> Admission:
        """Like `Store.admit`."""
        ...

    async def settle(self, grant: Grant, charges: Charges) -> str:
        """Like `Store.settle`."""
        ...

    async def renew(self, grant: Grant) -> bool:
        """Like `Store.renew`."""
        ...

    async def grow(self, grant: Grant, output: int) -> int:
        """Like `Store.grow`."""
        ...

    async def learn(self, noted: Mapping[str, Counts]) -> dict[str, Counts]:
        """Like `Store.learn`."""
        ...

    async def amend(self, subject: Subject, verb: AmendVerb, what: str = "") -> Amended:
        """Like `Store.amend`."""
        ...

    async def switch(self, verb: SwitchVerb, name: str = "", value: str = "") -> Switches:
        """Like `Store.switch`."""
        ...

    async def claim(self, holder: str, slots: int, lease_ms: int) -> int:
        """Like `Store.claim`."""
        ...

    def now_ms(self) -> int:
        """Like `Store.now_ms`."""
        ...

    async def close(self) -> None:
        """Like `Store.close`."""
        ...
