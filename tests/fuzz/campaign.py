"""One dialect under all that can be thrown at it, and what came of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from llm_budget_mw.dialects.protocol import RequestHead
from tests.fuzz.bulk import check_bulk
from tests.fuzz.checks import Checks, build_engine
from tests.fuzz.generated import check_generated
from tests.fuzz.mutate import Answer, Mutator
from tests.fuzz.seeds import SEEDS, Seeds, compact
from tests.fuzz.sweep import one_field_wrong

_WANTED = (1, 16, 512, 1024, 1025, 5000, 2**31 - 1)
_GENERATED = 50
"""One input made up by hypothesis for so many mutations: it is far slower."""
_MOST_FAILURES = 5
_MOST_SHOWN = 2000
_SLOW_S = 1.0
"""Processor time that no small input takes."""

Check = Callable[[], object]


@dataclass
class Report:
    """What became of one dialect."""

    dialect: str
    inputs: int = 0
    seconds: float = 0.0
    slowest_ms: float = 0.0
    failures: list[str] = field(default_factory=list[str])


class Campaign:
    """All inputs for one dialect, the same for the same number."""

    def __init__(self, dialect: str, number: int) -> None:
        self.report = Report(dialect)
        self._seeds: Seeds = SEEDS[dialect]
        self._number = number
        self._checks = Checks(self._seeds, build_engine())

    def run(self, mutations: int, bulk_bytes: int, sweep_every: int = 1) -> Report:
        """Run everything, or one in so many wrong fields; goes on after a few failures."""
        started = time.perf_counter()
        for what, check in islice(self._swept(), 0, None, sweep_every):
            self._try(what, check)
        for position in range(mutations):
            self.mutation(position)
        self._try_many("generated", self._generated, mutations // _GENERATED)
        self._try_many("bulk", check_bulk, bulk_bytes)
        self.report.seconds = time.perf_counter() - started
        return self.report

    def mutation(self, position: int) -> None:
        """Run one mutation, which depends on nothing but its position and the seed."""
        random = Random(f"{self._number}/{self.report.dialect}/{position}")
        mutator = Mutator(self._seeds, random)
        kind = random.randrange(4)
        if kind < 2:
            head, body = mutator.request()
            wanted, renamed = random.choice(_WANTED), random.random() < 0.3
            shown = f"request {head.path!r} {body!r}"
            check: Check = lambda: self._checks.request(head, body, wanted, renamed)  # noqa: E731
        elif kind == 2:
            answer = mutator.answer()
            shown, check = f"answer {answer}", lambda: self._checks.answer(answer)
        else:
            stream = mutator.stream()
            shown, check = f"stream {stream}", lambda: self._checks.stream(stream)
        self._try(f"--seed {self._number} --at {position}: {shown}", check)

    def _generated(self, seeds: Seeds, examples: int) -> int:
        return check_generated(self._checks, seeds, examples, self._number)

    def _swept(self) -> Iterator[tuple[str, Check]]:
        """Yield a check for each field that is wrong, and for each byte a stream may end at."""
        checks, seeds = self._checks, self._seeds
        for request in seeds.requests:
            for wrong in one_field_wrong(request):
                for path in dict.fromkeys(seeds.paths):
                    yield from _request_check(checks, path, compact(wrong))
        for fine in seeds.answers:
            usage = seeds.dialect.read_usage(compact(fine), {})
            for wrong in one_field_wrong(fine):
                body = compact(wrong)
                answer = Answer(200, {"content-type": "application/json"}, body)
                yield f"answer {body!r}", lambda a=answer: checks.answer(a)  # type: ignore[misc]
                yield f"answer {body!r}", lambda u=usage, b=body: checks.answer_not_zero(u, b)  # type: ignore[misc]
        for events in seeds.streams:
            yield from self._swept_stream(events)

    def _swept_stream(self, events: tuple[object, ...]) -> Iterator[tuple[str, Check]]:
        checks, seeds = self._checks, self._seeds
        headers = {"content-type": seeds.stream_type}
        fine = seeds.write(events)
        yield f"cut {fine!r}", lambda: checks.every_cut(Answer(200, headers, fine))
        for position, event in enumerate(events):
            for wrong in one_field_wrong(event) if isinstance(event, dict) else ():
                body = seeds.write([*events[:position], wrong, *events[position + 1 :]])
                answer = Answer(200, headers, body, (7,) * (len(body) // 7 + 1))
                yield f"stream {body!r}", lambda a=answer: checks.stream(a)  # type: ignore[misc]
                yield f"stream {body!r}", lambda b=body: checks.stream_not_zero(headers, fine, b)  # type: ignore[misc]

    def _try(self, what: str, check: Check) -> None:
        if len(self.report.failures) >= _MOST_FAILURES:
            return
        self.report.inputs += 1
        started = time.thread_time()
        try:
            check()
        except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
            self._note(what, traceback.format_exc(limit=-4))
        taken = time.thread_time() - started
        self.report.slowest_ms = max(self.report.slowest_ms, taken * 1000)
        if taken > _SLOW_S:
            self._note(what, f"took {taken:.1f} s")

    def _try_many(self, what: str, check: Callable[[Seeds, int], int], amount: int) -> None:
        if not amount:
            return
        try:
            self.report.inputs += check(self._seeds, amount)
        except Exception:  # noqa: BLE001
            self._note(what, traceback.format_exc(limit=-6))

    def _note(self, what: str, why: str) -> None:
        self.report.failures.append(f"{self.report.dialect} {what[:_MOST_SHOWN]}\n{why}")


def _request_check(checks: Checks, path: str, body: bytes) -> Iterator[tuple[str, Check]]:
    head = RequestHead("POST", path)
    yield f"request {path!r} {body!r}", lambda: checks.request(head, body, 1024, renamed=False)
