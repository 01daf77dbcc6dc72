"""What was seen of a server and of this machine: plain values, gathered by `ask` and `look`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, NamedTuple

Shape = Literal["single", "sentinel", "cluster"]
"""What kind of server the URL of the store speaks of."""


class Failure(NamedTuple):
    """Why a server gave no answer, or not the one that was needed."""

    kind: Literal["silent", "unreachable", "credentials", "refused"]
    text: str


@dataclass(frozen=True)
class NodeFacts:
    """One server that holds counters. None stands for what could not be looked at."""

    name: str
    """`host:port`, or the path of a socket."""
    info: Mapping[str, Any] | None = None
    """The reply to INFO."""
    settings: Mapping[str, str] | None = None
    """The replies to CONFIG GET."""


@dataclass(frozen=True)
class StoreFacts:
    """A store as it answered; made by `ask.at_store`."""

    shape: Shape
    deadline_ms: int
    failure: Failure | None = None
    """Nothing below is known then."""
    latency_ms: float = 0.0
    """The median of a few round trips."""
    ahead_ms: float | None = None
    """The server's clock less ours."""
    scripts: Failure | None = None
    """Why an admission did not work; None if it did."""
    tried: bool = False
    """Whether one was tried, and what a script may do."""
    forbidden: Mapping[str, str] = field(default_factory=dict[str, str])
    """Commands a script cannot run, to what the server says."""
    clustered: bool | None = None
    """Whether the server is part of a cluster."""
    cluster: Mapping[str, str] | None = None
    """The reply to CLUSTER INFO."""
    nodes: tuple[NodeFacts, ...] = ()

    @property
    def misnamed(self) -> bool:
        """Whether the URL speaks of a cluster where there is none, or the other way round."""
        return self.clustered is not None and self.clustered != (self.shape == "cluster")


class PriceFacts(NamedTuple):
    """How old the prices are; made by `look.at_prices`."""

    version: str
    today: date
    dated: date | None = None
    """Since when the newest price holds that has a date and holds by now."""


@dataclass(frozen=True)
class MachineFacts:
    """This machine as the application will find it; made by `look.at_machine`."""

    tokenizer: bool = True
    """Whether a vocabulary is at hand."""
    key_servers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Addresses of keys to why they could not be had; empty if they were."""
    key_problem: str = ""
    """Why the configured keys cannot be used; empty if they can."""
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Issuers to their shared secrets."""
