"""The store's own books, read past the way that is being disturbed.

The layout is that of `llm_budget_mw/stores/lua/ledger.lua`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import unpack_from
from typing import Literal, cast

import redis

from llm_budget_mw import assembly
from llm_budget_mw.config import Config
from llm_budget_mw.types import Limit, Plan, Principal, SubjectLimits
from tests.chaos.ledgers import Account, Record, Standing

_STATES: dict[int, Literal["held", "expired", "settled"]] = {
    1: "held",
    2: "expired",
    3: "settled",
}
_RECORD = "<BddddBB"
_RECORD_SIZE = 35
_HEAD_SIZE = 56
_NUMBERS_SIZE = 40
_ROUNDS = 100


class Books:
    """The accounts of some principals; `config` names the store directly."""

    def __init__(self, config: Config) -> None:
        self._client = redis.Redis.from_url(config.store.url, socket_timeout=10)
        self._prefix = config.store.prefix
        self._engine = assembly.build_engine(config)
        self._store = assembly.build_store(config)

    def accounts(self, principals: Iterable[tuple[str, str]]) -> list[Account]:
        """Return the accounts of those that ever called, given by name and tier."""
        return [
            read_account(entry.subject.name, entry.limits.limits, fields)
            for plan in map(self._plan, principals)
            for entry in plan.subjects
            if (fields := self._fields(entry))
        ]

    def collect(self, principals: Iterable[tuple[str, str]]) -> None:
        """End what is past its lease, as the next admission of each would."""
        for plan in map(self._plan, principals):
            for _ in range(_ROUNDS):
                self._store.admit(plan)
                if not any(self._holds(entry) for entry in plan.subjects):
                    break

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()
        self._store.close()

    def _plan(self, principal: tuple[str, str]) -> Plan:
        name, tier = principal
        return self._engine.glance(Principal(name, tier=tier))

    def _fields(self, entry: SubjectLimits) -> dict[bytes, bytes]:
        key = f"{self._prefix}:1:{{{entry.subject.partition}}}:{entry.subject.name}"
        return cast("dict[bytes, bytes]", self._client.hgetall(key))

    def _holds(self, entry: SubjectLimits) -> bool:
        account = read_account("", (), self._fields(entry))
        return any(record.state == "held" for record in account.records.values())


def read_account(subject: str, limits: Sequence[Limit], fields: dict[bytes, bytes]) -> Account:
    """Read the fields of one account."""
    numbers = dict(_numbers(fields.get(b"@")))
    standings = [_standing(limit, numbers.get(limit.name, (0, 0, 0, 0, 0))) for limit in limits]
    records = {
        name[1:].decode(): _record(value) for name, value in fields.items() if name.startswith(b"#")
    }
    return Account(subject, standings, records)


def _numbers(account: bytes | None) -> Iterator[tuple[str, tuple[float, ...]]]:
    if account is None:
        return
    count = int(unpack_from("<d", account, _HEAD_SIZE - 8)[0])
    names = account[_HEAD_SIZE + _NUMBERS_SIZE * count :].decode().split()
    for number, name in enumerate(names):
        yield name, unpack_from("<5d", account, _HEAD_SIZE + _NUMBERS_SIZE * number)


def _standing(limit: Limit, numbers: tuple[float, ...]) -> Standing:
    _, committed, held, _, previous = map(int, numbers)
    return Standing(
        limit.name,
        limit.resource,
        limit.amount,
        limit.on_outage,
        limit.local_share,
        committed + previous,
        held,
    )


def _record(value: bytes) -> Record:
    state, *_, count = unpack_from(_RECORD, value)
    amounts = unpack_from(f"<{count}d", value, _RECORD_SIZE)
    names = value[_RECORD_SIZE + 8 * count :].decode().split()
    return Record(_STATES[state], dict(zip(names, map(int, amounts), strict=True)))
