"""What is known about a run: the provider's bills, the workers' journals, the store's accounts.

Only values, and how lines of journals become them. Amounts of money are nano-dollars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from llm_budget_mw.events import SETTLED, UNCHECKED
from llm_budget_mw.subjects import subject_of
from llm_budget_mw.types import Charges, OnOutage, Resource


class Bill(NamedTuple):
    """What the provider takes for one call: all that it generated, heard or not."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


NO_BILL = Bill()


@dataclass
class Call:
    """One reservation, as the worker that asked for it wrote it down."""

    worker: str
    subjects: tuple[str, ...]
    """Names of the accounts it counts for."""
    asked: list[Charges] = field(default_factory=list)
    """The settlements that were about to be sent, repetitions included."""
    answered: bool = False
    """Whether the store is known to have settled it."""
    unchecked: bool = False
    """Whether it was admitted without the store."""
    event: dict[str, Any] | None = None
    """Attributes of `budget.settled`."""


@dataclass
class Worker:
    """How a worker ended."""

    undelivered: int | None = None
    """Settlements it could not deliver before it ended in good order; None: it was killed."""

    @property
    def left_nothing(self) -> bool:
        """Whether all that it began must have been settled."""
        return self.undelivered == 0


class Standing(NamedTuple):
    """One limit of one account."""

    name: str
    resource: Resource
    amount: int
    on_outage: OnOutage
    local_share: float
    used: int
    """Committed, in the window and in the one before."""
    held: int


class Record(NamedTuple):
    """What an account still knows about one reservation."""

    state: Literal["held", "expired", "settled"]
    amounts: Mapping[str, int]
    """By limit: what is held, or what expiry charged."""


class Account(NamedTuple):
    """What the store counts for one subject."""

    subject: str
    standings: Sequence[Standing]
    records: Mapping[str, Record]
    """By reservation id."""


@dataclass
class Ledgers:
    """Everything there is to be compared."""

    bills: dict[str, Bill]
    calls: dict[str, Call]
    workers: dict[str, Worker]
    accounts: Sequence[Account]
    """After everyone has ended and every lease has."""
    heard: Mapping[str, int] = field(default_factory=dict)
    """By call: tokens of output that certainly reached a client."""
    glimpses: Sequence[Account] = ()
    """Accounts as they were at some moments of the run."""


def read_bills(lines: Sequence[Mapping[str, Any]]) -> dict[str, Bill]:
    """Read the provider's ledger; raises `ValueError` if it bills a call twice."""
    bills: dict[str, Bill] = {}
    for line in lines:
        if line["call"] in bills:
            raise ValueError(f"call {line['call']} came to the provider twice: no bill tells which")
        bills[line["call"]] = Bill(line["input"], line["output"], line["cost"])
    return bills


def read_worker(name: str, lines: Sequence[Mapping[str, Any]]) -> tuple[Worker, dict[str, Call]]:
    """Read one worker's journal: how it ended, and its calls."""
    worker, calls = Worker(), dict[str, Call]()
    for line in lines:
        match line["what"]:
            case "admit":
                calls[line["call"]] = Call(name, tuple(line["subjects"]))
            case "settle":
                calls[line["call"]].asked.append(Charges(*line["charges"]))
            case "settled":
                calls[line["call"]].answered = True
            case "event":
                _take_event(line, name, calls)
            case "closed":
                worker.undelivered = line["undelivered"]
    return worker, calls


def _take_event(line: Mapping[str, Any], worker: str, calls: dict[str, Call]) -> None:
    if line["name"] == UNCHECKED:
        # With an open breaker the store was not even asked, and nothing else was written.
        subjects = (subject_of(line["tenant"], line["principal"]).name,)
        calls.setdefault(line["reservation"], Call(worker, subjects)).unchecked = True
    elif line["name"] == SETTLED:
        calls[line["reservation"]].event = dict(line)
