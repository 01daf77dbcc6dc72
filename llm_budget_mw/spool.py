"""Settlements on disk, for the next process: what the store did not take before this one ended.

One file for each process, which holds its lock as long as it lives; a file that nobody has
locked was left behind. Lines are JSON. Delivering one twice changes nothing, so that a file is
removed only when all of it is delivered. Of one with lines that are none, a copy is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from llm_budget_mw import _windows, forks
from llm_budget_mw.outage import Kept, Outage
from llm_budget_mw.types import (
    MAX_AMOUNT,
    Admission,
    Charges,
    Grant,
    Limit,
    LimitSet,
    Offer,
    Plan,
    Subject,
    SubjectLimits,
)

_log = logging.getLogger(__name__)
_LINE_BYTES = 64 * 1024
_FILE_BYTES = 64 * 1024 * 1024
_ID = re.compile("[0-9a-f]{24}")
_SUFFIX = ".settlements"


class _Account(NamedTuple):
    subject: Subject
    limits: tuple[Limit, ...]
    starts: tuple[int, ...]
    """Of the limits' windows at the admission."""


class _Line(NamedTuple):
    """A settlement as it stands in a file: all that a store needs of it."""

    id: str
    at: float
    """When the call ended, in seconds of the epoch."""
    admitted_ms: int
    """By the store's clock; 0 if the store was not there."""
    spares: int
    charges: Charges
    accounts: tuple[_Account, ...]


_LINES: TypeAdapter[_Line] = TypeAdapter(_Line, config={"defer_build": True})


class Spool:
    """The spool of one process, in the directory that the configuration names."""

    def __init__(
        self, folder: Path, outage: Outage, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._outage = outage
        self._wall_clock = wall_clock
        self._own: int | None = None
        """Our file, locked; None until there is something to write."""
        self._files: dict[Path, int] = {}
        """What is to be removed once all is delivered, locked: ours, and those we read."""
        self._written: set[str] = set()
        self._bytes = 0
        forks.register(self)

    def after_fork(self) -> None:
        """Leave the parent its files; it keeps the locks."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._own, self._files, self._written, self._bytes = None, {}, set(), 0

    def write(self) -> int:
        """Write what waits and is not written yet; return how many of these are on disk now."""
        waiting = self._outage.queued()
        new = {each.grant.plan.id: self._line(each) for each in waiting}
        text = b"".join(line for key, line in new.items() if key not in self._written)
        try:
            if text and self._bytes + len(text) <= _FILE_BYTES:
                _append(self._file(), text)
                self._bytes += len(text)
                self._written.update(new)
        except OSError as error:
            _log.critical("settlements cannot be written to %s: %s", self._folder, error)
        return sum(key in self._written for key in new)

    def adopt(self) -> int:
        """Queue what processes that have ended left behind; return how many settlements."""
        found = 0
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path not in self._files:
                found += self._read(path)
        return found

    def delivered(self) -> None:
        """Remove the files: nothing waits any more."""
        for path, descriptor in self._files.items():
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)
        self._own, self._files, self._written, self._bytes = None, {}, set(), 0

    def close(self) -> None:
        """Leave the files to the next process."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._own, self._files, self._written = None, {}, set()

    def _file(self) -> int:
        if self._own is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._folder / f"{secrets.token_hex(8)}{_SUFFIX}"
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
            self._own = self._files[path] = os.open(path, flags, 0o600)
            fcntl.flock(self._own, fcntl.LOCK_EX)
        return self._own

    def _read(self, path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            _log.warning("%s cannot be read: %s", path, error)
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its process lives
            os.close(descriptor)
            return 0
        kept = self._trusted(path, descriptor)
        if kept is None:
            os.close(descriptor)
            return 0
        self._files[path] = descriptor
        now = self._wall_clock()
        for line in kept:
            self._outage.keep(*_restored(line), waited_s=max(0.0, now - line.at))
            self._written.add(line.id)
        return len(kept)

    def _trusted(self, path: Path, descriptor: int) -> list[_Line] | None:
        """Return the settlements in a file; None if it is left alone."""
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            _log.critical("%s was not read: it is not a file that we alone can write", path)
            return None
        if not status.st_nlink or status.st_size > _FILE_BYTES:
            return None
        with os.fdopen(os.dup(descriptor), "rb") as file:
            good, bad = _sorted_out(iter(lambda: file.readline(_LINE_BYTES), b""))
        if bad:
            _log.critical("%s: %d lines are no settlements; the file was kept as .bad", path, bad)
            with contextlib.suppress(OSError):
                os.link(path, path.with_suffix(".bad"))
        if len(good) > self._outage.room:
            _log.warning("%s has %d settlements, more than the queue takes now", path, len(good))
            return None
        return good

    def _line(self, kept: Kept) -> bytes:
        at = self._wall_clock() - (self._outage.clock() - kept.at)
        return _LINES.dump_json(_written(kept, at)) + b"\n"


def _append(descriptor: int, text: bytes) -> None:
    view = memoryview(text)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _written(kept: Kept, at: float) -> _Line:
    plan, admission = kept.grant.plan, kept.grant.admission
    starts = iter(admission.counters[::5] if admission else ())
    accounts = [
        _Account(
            entry.subject,
            entry.limits.limits,
            tuple(int(next(starts, 0)) for _ in entry.limits.limits),
        )
        for entry in plan.subjects
    ]
    admitted_ms = admission.now_ms if admission else 0
    spares = kept.grant.offer.spares
    return _Line(plan.id, at, admitted_ms, spares, kept.charges, tuple(accounts))


def _restored(line: _Line) -> tuple[Grant, Charges]:
    subjects = [
        SubjectLimits(account.subject, LimitSet(account.limits)) for account in line.accounts
    ]
    offer = Offer("", 0, 0, 1.0, 0, 0, 0, 0, line.spares)
    plan = Plan(line.id, tuple(subjects), (offer,), 0)
    starts = [start for account in line.accounts for start in account.starts]
    counters = tuple(float(value) for start in starts for value in (start, 0, 0, 0, 0))
    admission = Admission(line.admitted_ms, 1, 0, counters) if line.admitted_ms else None
    return Grant(plan, offer, 0, admission), line.charges


def _sorted_out(texts: Iterable[bytes]) -> tuple[list[_Line], int]:
    good: list[_Line] = []
    bad = 0
    for text in texts:
        try:
            line = _LINES.validate_json(text, strict=False)
            _check(line)
        except (ValidationError, ValueError):
            bad += 1
        else:
            good.append(line)
    return good, bad


def _check(line: _Line) -> None:
    """Raise `ValueError` for what no process of ours wrote."""
    numbers = [*line.charges, line.admitted_ms, line.spares, *_numbers(line.accounts)]
    if not _ID.fullmatch(line.id) or not all(0 <= number <= MAX_AMOUNT for number in numbers):
        raise ValueError(line.id)
    for account in line.accounts:
        LimitSet(account.limits)
        if len(account.limits) != len(account.starts) or set("{}:\r\n ") & set(
            account.subject.partition + account.subject.name
        ):
            raise ValueError(line.id)
        for limit in account.limits:
            _windows.time_zone(limit.window.zone)


def _numbers(accounts: Iterable[_Account]) -> Iterator[Any]:
    for account in accounts:
        yield from account.starts
        for limit in account.limits:
            yield from (limit.amount, limit.window.length_ms, limit.window.anchor_hour)
