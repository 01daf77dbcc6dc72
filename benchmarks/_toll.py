"""What servers have done so far, from their INFO: free of the noise of who asked them."""

from __future__ import annotations

from typing import Any, NamedTuple, Self


class Toll(NamedTuple):
    """Work of one server, or of several; the difference of two is what came between."""

    scripts: float
    """Calls of EVALSHA."""
    script_us: float
    """Time inside of scripts."""
    cpu_us: float
    """Processor time: scripts, commands read and replies written."""
    received: float
    """Bytes, without those of TCP."""
    sent: float

    @classmethod
    def of(cls, client: Any) -> Self:
        """Ask a server, through redis-py."""
        info = client.info("commandstats", "cpu", "stats")
        script = info.get("cmdstat_evalsha", {"calls": 0, "usec": 0})
        cpu_s = info["used_cpu_user"] + info["used_cpu_sys"]
        traffic = info["total_net_input_bytes"], info["total_net_output_bytes"]
        return cls(script["calls"], script["usec"], 1e6 * cpu_s, *traffic)

    def since(self, before: Toll) -> Toll:
        """Return what was done after `before`."""
        return Toll(*(now - then for now, then in zip(self, before, strict=True)))

    def each(self, count: float) -> Toll:
        """Return the part of one of `count` operations."""
        return Toll(*(number / count for number in self))


def total(tolls: list[Toll]) -> Toll:
    """Return what several servers did together."""
    return Toll(*map(sum, zip(*tolls, strict=True)))
