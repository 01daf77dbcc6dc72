"""What the sync and the async guard do alike: plans, events, settlements; nothing here waits."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Self

from llm_budget_mw import allowance, events
from llm_budget_mw.alerts import Anomaly, Crossing
from llm_budget_mw.config import Config
from llm_budget_mw.diagnosis.examine import Start
from llm_budget_mw.engine import Ending, Engine, Outcome
from llm_budget_mw.errors import StoreError
from llm_budget_mw.events import Event, Identifier, Origin, Sink
from llm_budget_mw.outage import Outage
from llm_budget_mw.outputs import Outputs
from llm_budget_mw.stores import _told
from llm_budget_mw.tasks import Classify, classifier
from llm_budget_mw.types import (
    Decision,
    Grade,
    Grant,
    ModelCall,
    Plan,
    Principal,
    Settlement,
    Subject,
)

_log = logging.getLogger(__name__)


class Held(NamedTuple):
    """An admitted call and what its settlement will need."""

    grant: Grant
    origin: Origin
    started_at: float


class Shell:
    """What the sync and the async guard do alike; nothing here waits."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        sinks: Sequence[Sink],
        clock: Callable[[], float],
        classify: Classify | None,
        *,
        shared: bool,
    ) -> None:
        self.engine = engine
        self.config = config
        self.outage = Outage(
            config.outage, clock, shared=shared, local=allowance.needs_slots(config)
        )
        self.outputs = Outputs(clock)
        self._sinks = tuple(sinks)
        self._checks: Start | None = None
        self._classify = classify or classifier(config.tasks)
        self._clock = clock
        secret = config.events.id_secret
        key = secret.get_secret_value().encode() if secret else secrets.token_bytes(32)
        self._identifier = Identifier(config.events.principal, key)

    def emit(self, event: Event) -> None:
        """Give an event to every sink; a sink that fails is logged and does not matter."""
        for sink in self._sinks:
            try:
                sink.emit(event)
            except Exception:  # noqa: BLE001 (a sink is foreign code)
                _log.exception("a sink could not take %s", event.name)

    def examined(self, store: object) -> Self:
        """Name in the log what is dangerous here; a `store` that was given is not looked at."""
        if store is None:
            self._checks = Start(self.config, self.engine.prices)
        return self

    def called(self, subject: Subject) -> str:
        """Return what a subject is called in events."""
        return self._identifier.subject(subject)

    def classified(
        self, principal: Principal, call: ModelCall, headers: Mapping[str, str]
    ) -> ModelCall:
        """Return the call of a request with what the request says of it noted.

        Its task, if its tier has offers for that, and the subjects a header names.
        """
        named = self.engine.policy.headers
        labels = {kind: headers[name] for kind, name in named.items() if headers.get(name)}
        if labels:
            call = dataclasses.replace(call, labels=labels)
        if not self.engine.policy.tier(principal).config.tasks:
            return call
        return self.with_task(principal, call, self._classify(principal, call, headers))

    def with_task(self, principal: Principal, call: ModelCall, task: str | None) -> ModelCall:
        """Return a call with this task noted, if its tier has offers for that."""
        tasks = self.engine.policy.tier(principal).config.tasks
        return dataclasses.replace(call, task=task) if task in tasks else call

    def plan(self, origin: Origin, *, exact: bool = False) -> Plan:
        """Plan a call, with the cheap bound on its input unless `exact`; see `Engine.plan`."""
        principal, call, feature = origin.principal, origin.call, origin.feature
        return self._sized(self.engine.plan(principal, call, feature, exact=exact), origin)

    def _sized(self, plan: Plan, origin: Origin) -> Plan:
        """Return the plan with what is expected of the call in place of its bound, where it may."""
        return self.outputs.sized(plan, origin.route) if origin.elastic else plan

    def hold(self, decided: Decision, origin: Origin) -> Held | None:
        """Note an admission; emit the event of a refusal."""
        if self._checks is not None:
            self._checks.call_begins()
        if isinstance(decided, Grant):
            return Held(decided, origin, self._clock())
        who = self._identifier.name(origin.principal)
        self.emit(events.refused(decided, origin, who))
        return None

    def _without_store(self, plan: Plan, origin: Origin, error: StoreError | None) -> Decision:
        decided = self.outage.admit(plan)
        if not plan.subjects:
            return decided  # there was nothing to check, but what operators have stopped
        if isinstance(decided, Grant):
            who = self._identifier.name(origin.principal)
            self.emit(events.unchecked(decided, origin, who, str(error or "breaker open")))
        elif error is not None:
            self.outage.abandon(plan)  # the script may yet run, when the server wakes up
        return decided

    def _settlement(self, held: Held, outcome: Outcome) -> Settlement:
        settlement = self.engine.settle(held.grant, outcome, held.origin.call)
        self.outage.settle(held.grant, settlement.charges)
        self._note_output(held, settlement)
        return settlement._replace(grown=outcome.grown)

    def _note_output(self, held: Held, settlement: Settlement) -> None:
        """Note how long an answer of an elastic route was, unless it was we who ended it."""
        output = settlement.usage.output_tokens
        known = settlement.grade in (Grade.EXACT, Grade.COUNTED)
        if held.origin.elastic and known and output and settlement.ending != Ending.STOPPED:
            offer = held.grant.offer
            self.outputs.note(held.origin.route, offer.model, -(-output // offer.per_output_tokens))

    def _tell(self, reply: str, grant: Grant) -> None:
        """Emit what the reply to a settlement has to tell."""
        if " " in reply:
            told = _told.read(reply, grant)
            self.crossed(told.crossings)
            self.unusual(told.anomalies)

    def crossed(self, crossings: Iterable[Crossing]) -> None:
        """Emit an event for each threshold that was crossed."""
        for crossing in crossings:
            self.emit(events.threshold_crossed(crossing, self.called(crossing.subject)))

    def unusual(self, anomalies: Iterable[Anomaly]) -> None:
        """Emit an event for each limit that is used unusually fast."""
        for anomaly in anomalies:
            self.emit(events.anomaly_found(anomaly, self.called(anomaly.subject)))

    def _close_sinks(self) -> None:
        """Let sinks that have something to end do it; it may take some seconds."""
        for sink in self._sinks:
            close = getattr(sink, "close", None)
            if close is None:
                continue
            try:
                close()
            except Exception:  # noqa: BLE001 (a sink is foreign code)
                _log.exception("the sink %s could not be closed", type(sink).__name__)

    def _report(self, held: Held, settlement: Settlement) -> None:
        who = self._identifier.name(held.origin.principal)
        duration_ms = round((self._clock() - held.started_at) * 1000)
        version = self.engine.prices.version
        self.emit(events.settled(settlement, held.origin, who, version, duration_ms))
