"""What a store's URL says, beyond what redis-py reads itself; no I/O.

redis[s]+cluster://[user:password@]host[:port],.../[?option=value]
redis[s]+sentinel://[user:password@]host[:port],.../service[/database][?option=value]
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from llm_budget_mw.stores._slots import Address

_PORTS = {"cluster": 6379, "sentinel": 26379}
_FORMS = {
    "cluster": "redis+cluster://[user:password@]host[:port],...",
    "sentinel": "redis+sentinel://[user:password@]host[:port],.../service[/database]",
}


class Hosts(NamedTuple):
    """A URL of several hosts."""

    addresses: tuple[Address, ...]
    service: str
    """What sentinels call the servers; empty for a cluster."""
    server: str
    """The URL of one server behind them, as redis-py reads it."""


def kind(url: str) -> str:
    """Return `cluster`, `sentinel`, or nothing for a single server."""
    return url.partition("://")[0].partition("+")[2]


def hosts(url: str) -> Hosts:
    """Read a URL of one of the two kinds; raises `ValueError` with the form to write it in."""
    parts, of = urlsplit(url), kind(url)
    credentials, at, names = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if of == "cluster":
        service, database = "", service
    if not names or bool(service) != (of == "sentinel") or "db" in parse_qs(parts.query):
        raise ValueError(f"write {_FORMS[of]}")
    if of == "cluster" and database not in {"", "0"}:
        raise ValueError("a cluster has no database but 0")
    addresses = tuple(_address(name, _PORTS[of]) for name in names.split(","))
    scheme = parts.scheme.partition("+")[0]
    server = f"{scheme}://{credentials}{at}localhost/{int(database or 0)}?{parts.query}"
    return Hosts(addresses, unquote(service), server)


def _address(name: str, port: int) -> Address:
    parts = urlsplit(f"//{name}")
    return parts.hostname or "localhost", parts.port or port
