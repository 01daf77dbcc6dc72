"""Which subjects a call counts for, and what their names are in the store."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

from llm_budget_mw._money import usd_to_nano
from llm_budget_mw.config import Config, SubjectConfig, limits_of
from llm_budget_mw.types import Limit, LimitSet, ModelCall, Principal, Subject, SubjectLimits, Watch

_LONGEST_NAME = 200
"""A longer id, once escaped, is named by its hash: it stands in every key."""
EVERYTHING = "*"
"""The switch that stops every call."""


class _Table(NamedTuple):
    """The limits of one table of the configuration, for whoever asks."""

    config: SubjectConfig
    ordinary: LimitSet
    """Without what is reserved for urgent callers."""
    urgent: LimitSet
    each: LimitSet | None
    """What one principal may use of it."""


class Subjects:
    """The limits of what principals share, compiled."""

    def __init__(self, config: Config, base_tokens_nano: Callable[[int], int]) -> None:
        self._kinds: dict[str, tuple[_Table, ...]] = {}
        watch = watch_of(config)
        for table in config.limits:
            compiled = _compile(
                table, watch, limits_of(table, config, base_tokens_nano, f"{table.of}-")
            )
            # Tables that name who they are for come first.
            known = (*self._kinds.get(table.of, ()), compiled)
            self._kinds[table.of] = tuple(sorted(known, key=lambda each: not each.config.only))
        self.headers = {
            table.of: table.header for table in config.limits if table.header is not None
        }
        """Kinds of subjects to the headers that name them."""
        self.in_money = any(table.budget for table in config.limits)
        """True if a shared limit counts money."""

    @property
    def kinds(self) -> Iterable[str]:
        """The kinds of subjects that have limits."""
        return self._kinds

    def limits_of(self, kind: str, name: str) -> Sequence[Limit]:
        """Return the limits of a subject, without what is reserved."""
        table = _table_for(self._kinds.get(kind, ()), name)
        return () if table is None else table.urgent.limits

    def counted(
        self,
        principal: Principal,
        call: ModelCall | None,
        feature: str | None,
        models: Sequence[str],
    ) -> Iterator[SubjectLimits]:
        """Find the shared subjects of a call that have limits; `models` are those of its offers.

        Without a call there are only those of the principal and the deployment.
        """
        for kind, tables in self._kinds.items():
            if kind == "model":
                names: Sequence[str | None] = list(dict.fromkeys(models))
            else:
                names = (_value(tables[0].config, principal, call, feature),)
            for name in names:
                table = None if name is None else _table_for(tables, name)
                if name is not None and table is not None:
                    subject = subject_named(
                        kind, name, principal, own=table.config.header is not None
                    )
                    yield from _entries(
                        table, subject, principal, name if kind == "model" else None
                    )


# The same for every call of a principal in a while, and dear to put together.
@functools.lru_cache(maxsize=4096)
def switches_of(
    tenant: str | None,
    principal_id: str,
    feature: str | None,
    models: tuple[str, ...],
    counted: tuple[Subject, ...],
) -> tuple[str, ...]:
    """Return what may stop a call: a name for each offer's model, then those of the whole call."""
    principal = Principal(principal_id, tenant)
    whole = [switch_of(subject_of(tenant, principal_id))]
    if tenant:
        whole.append(switch_of(subject_named("tenant", tenant, principal)))
    if feature:
        whole.append(switch_of(subject_named("feature", feature, principal)))
    whole += [name for name in map(switch_of, counted) if not name.startswith("model/")]
    return (*map(model_switch, models), EVERYTHING, *dict.fromkeys(whole))


def model_switch(model: str) -> str:
    """Return the switch of a model."""
    return switch_of(Subject(*[f"model/{_escaped('model', model)}"] * 2))


def switch_of(subject: Subject) -> str:
    """Return the switch that stops every call of a subject."""
    return f"{subject.partition}:{subject.name}"


@functools.lru_cache(maxsize=4096)
def subject_of(tenant: str | None, principal_id: str) -> Subject:
    """Return the subject of a principal, escaped: no id can forge a separator or another's key.

    The partition is the tenant where there is one, so that a tenant's keys share a server.
    Raises `TypeError` if a name is no text, or the id is empty: an authenticator is wrong.
    """
    user = f"user/{_escaped('id', principal_id)}"
    # A tenant's name has no slash left after escaping, so it cannot be taken for a user's.
    return Subject(_escaped("tenant", tenant) if tenant else user, user)


def subject_named(kind: str, name: str, principal: Principal, *, own: bool = False) -> Subject:
    """Return the subject of a kind and a name; `own`: one of this principal's alone."""
    user = subject_of(principal.tenant, principal.id)
    if kind == "user":
        return user
    return _named(kind, name, principal.tenant, user if own else None)


@functools.lru_cache(maxsize=4096)
def _named(kind: str, name: str, tenant: str | None, user: Subject | None) -> Subject:
    if kind == "deployment":
        return Subject(kind, kind)
    full = f"{kind}/{_escaped(kind, name)}"
    if user is not None:
        return Subject(user.partition, f"{user.name}/{full}")
    if kind in ("feature", "model") or not tenant:
        return Subject(full, full)
    return Subject(_escaped("tenant", tenant), full)


def _entries(
    table: _Table, subject: Subject, principal: Principal, model: str | None
) -> Iterator[SubjectLimits]:
    limits = table.urgent if principal.urgent else table.ordinary
    yield SubjectLimits(subject, limits, model)
    if table.each is not None:
        user = subject_of(principal.tenant, principal.id)
        share = Subject(subject.partition, f"{subject.name}/by/{user.partition}/{user.name}")
        yield SubjectLimits(share, table.each, model)


def _value(
    config: SubjectConfig, principal: Principal, call: ModelCall | None, feature: str | None
) -> str | None:
    """Return which subject of a kind a call counts for; None for none."""
    if config.of == "deployment":
        return config.of
    if config.of == "tenant":
        return principal.tenant
    if config.of == "feature":
        return feature
    found = principal.claims.get(config.claim) if config.claim else None
    if config.header and call is not None:
        found = call.labels.get(config.of)
    return found if isinstance(found, str) and found else None


def _table_for(tables: tuple[_Table, ...], name: str) -> _Table | None:
    for table in tables:
        if not table.config.only or name in table.config.only:
            return table
    return None


def watch_of(config: Config) -> Watch:
    """Return what is told of limits."""
    alerts = config.alerts
    if alerts is None:
        return Watch()
    factor = alerts.anomaly_factor if alerts.anomaly else 0.0
    return Watch(alerts.thresholds, factor, usd_to_nano(alerts.anomaly_min_usd))


def _compile(config: SubjectConfig, watch: Watch, limits: tuple[Limit, ...]) -> _Table:
    whole, part = LimitSet(limits, watch), config.per_principal
    ordinary = LimitSet(_scaled(limits, 1 - config.reserve), watch) if config.reserve else whole
    each = LimitSet(_scaled(limits, part, "share-of-")) if part else None
    return _Table(config, ordinary, whole, each)


def _scaled(limits: Sequence[Limit], part: float, prefix: str = "") -> tuple[Limit, ...]:
    """Return limits of which only a part may be used."""
    return tuple(
        dataclasses.replace(
            limit,
            name=prefix + limit.name,
            amount=int(limit.amount * part),
            carry=int(limit.carry * part),
        )
        for limit in limits
    )


def _escaped(field: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"Principal.{field} is {name!r}: an authenticator has to make it a text")
    # JSON may hold half of a surrogate pair, and so may a claim.
    escaped = quote(name, safe="", errors="surrogatepass")
    if len(escaped) <= _LONGEST_NAME:
        return escaped
    # No escaped name has an equals sign, so none can be taken for a hash.
    return f"={hashlib.sha256(escaped.encode()).hexdigest()}"
