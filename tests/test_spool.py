"""Tests of `llm_budget_mw.spool`: settlements that outlive their process, and files that are none."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_budget_mw.config import OutageConfig
from llm_budget_mw.outage import KEEP_S, Outage
from llm_budget_mw.spool import Spool
from llm_budget_mw.types import Charges, Grant
from tests.deployment import ManualClock
from tests.stores.conftest import make_bench
from tests.stores.kit import DAY, MONTH, SLIDING, SLOT, Bench, limit, limits, plan, tokens

USED = Charges(1, 30, 30)
NOW = 1_800_000_000.0


class Process:
    """A queue with a spool, as one process has it."""

    def __init__(self, folder: Path, queue: int = 100) -> None:
        self.monotonic, self.wall = ManualClock(50.0), ManualClock(NOW)
        self.outage = Outage(OutageConfig(queue=queue), self.monotonic)
        self.spool = Spool(folder, self.outage, self.wall)

    def settle(self, grant: Grant) -> None:
        self.outage.keep(grant, USED)

    def deliver(self, bench: Bench) -> str:
        """Settle all that waits; return the outcomes."""
        outcomes = [bench.store.settle(kept.grant, kept.charges) for kept in self.outage.take(1000)]
        self.spool.delivered()
        return "".join(outcomes)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = make_bench("memory", "")
    yield made
    made.store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "spool"


EACH = limits(
    limit(1000),
    limit(1000, "cost", MONTH),
    limit(1000, "requests", SLIDING),
    limit(9, "concurrency", SLOT),
    limit(5000, "tokens", DAY),
)


def unasked(fixed: int = 50) -> Grant:
    """Return an admission the store never saw."""
    asked = plan(EACH, offers=[tokens(fixed)])
    return Grant(asked, asked.offers[0], 0, None)


def test_the_next_process_delivers_once(bench: Bench, folder: Path) -> None:
    """Calls that the store admitted, and one that it never saw; a second delivery is nothing."""
    first = Process(folder)
    first.settle(bench.take(EACH, 50))
    first.settle(unasked())
    assert first.spool.write() == 2
    queued = first.outage.queued()
    first.spool.close()
    assert bench.used(EACH) == [50, 50, 1, 1, 50]

    second = Process(folder)
    assert second.spool.adopt() == 2
    assert second.deliver(bench) == "14"
    assert bench.used(EACH) == [60, 60, 2, 0, 60]
    assert list(folder.iterdir()) == []
    assert [bench.store.settle(kept.grant, kept.charges) for kept in queued] == ["2", "2"]
    assert bench.used(EACH) == [60, 60, 2, 0, 60]


def test_a_file_is_for_its_owner_and_the_disk(folder: Path) -> None:
    """Nobody else reads who spends what; nothing is written twice."""
    process = Process(folder)
    for count in (1, 2):
        process.settle(unasked())
        assert process.spool.write() == process.spool.write() == count
    [file] = folder.iterdir()

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert file.read_bytes().count(b"\n") == 2
    process.spool.close()


def test_the_file_of_a_process_that_lives_is_left_alone(folder: Path) -> None:
    """It delivers by itself; when it has, the file is gone."""
    first, second = Process(folder), Process(folder)
    first.settle(unasked())
    first.spool.write()

    assert second.spool.adopt() == 0
    first.outage.take()
    first.spool.delivered()
    assert list(folder.iterdir()) == []


def test_what_is_not_delivered_stays(bench: Bench, folder: Path) -> None:
    """A process that dies over it leaves it to yet another."""
    first = Process(folder)
    first.settle(unasked())
    first.spool.write()
    first.spool.close()
    second = Process(folder)
    assert second.spool.adopt() == 1
    assert second.spool.write() == 1
    second.spool.close()

    third = Process(folder)
    assert third.spool.adopt() == 1
    assert third.deliver(bench) == "4"


def test_a_queue_without_room_leaves_files_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is dropped to make room for it."""
    first = Process(folder)
    for _ in range(5):
        first.settle(unasked())
    first.spool.write()
    first.spool.close()

    assert Process(folder, queue=4).spool.adopt() == 0
    assert "5 settlements, more than the queue takes now" in caplog.text
    assert Process(folder, queue=5).spool.adopt() == 5


def test_after_a_day_it_is_too_late(folder: Path) -> None:
    """The store may have forgotten that it had it; a clock that was set back is no harm."""
    first = Process(folder)
    first.settle(unasked())
    first.monotonic.now += 60
    first.settle(unasked())
    first.wall.now += 60
    first.spool.write()
    first.spool.close()

    for later_s, found in ((-3600, 2), (KEEP_S + 30, 1)):
        second = Process(folder)
        second.wall.now += later_s
        assert second.spool.adopt() == 2
        assert (second.outage.waiting, second.outage.lost) == (found, 2 - found)
        second.spool.close()


def line_of(folder: Path) -> str:
    process = Process(folder)
    process.settle(unasked())
    process.spool.write()
    process.spool.close()
    [file] = folder.iterdir()
    text = file.read_text()
    file.unlink()
    return text.rstrip("\n")


BAD: dict[str, Callable[[str], str]] = {
    "nothing": lambda line: "",
    "no JSON": lambda line: line[:-3],
    "binary": lambda line: "\x00\x7f",
    "another shape": lambda line: '{"a": 1}',
    "too long": lambda line: line[:-1] + " " * 70_000 + "]",
    "deep": lambda line: "[" * 50_000,
    "a credit": lambda line: line.replace("[1,30,30]", "[1,-30,30]"),
    "no number": lambda line: line.replace("[1,30,30]", "[1,NaN,30]"),
    "too much": lambda line: line.replace("[1,30,30]", "[1,30,99999999999999999]"),
    "another key": lambda line: line.replace('"acme"', '"a}:{b"'),
    "another id": lambda line: line.replace('["', '["g', 1),
    "another zone": lambda line: line.replace('"UTC"', '"Mars/Base"'),
    "two of a name": lambda line: line.replace("cost-calendar-month", "tokens-fixed-60000"),
}


@pytest.mark.parametrize("kind", BAD)
def test_lines_that_are_none_are_said_and_kept(
    folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever wrote them: no crash, no charge, and the good ones around them count."""
    good = line_of(folder)
    bad = BAD[kind](good)
    assert bad != good
    file = folder / "0.settlements"
    file.write_text(f"{good}\n{bad}\n{good}\n")
    file.chmod(0o600)

    process = Process(folder)
    assert process.spool.adopt() == 2
    assert "no settlements" in caplog.text
    process.outage.take(9)
    process.spool.delivered()
    [kept] = folder.iterdir()
    assert (kept.suffix, bad in kept.read_text()) == (".bad", True)


def test_what_is_no_file_of_ours_is_not_read(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Links, pipes, directories, and what others could have written."""
    good = line_of(folder)
    (tmp_path / "elsewhere").write_text(good)
    (folder / "1.settlements").symlink_to(tmp_path / "elsewhere")
    (folder / "2.settlements").mkdir()
    os.mkfifo(folder / "3.settlements", 0o600)
    (folder / "4.settlements").write_text(good)
    (folder / "4.settlements").chmod(0o666)

    assert Process(folder).spool.adopt() == 0
    assert "4.settlements was not read: it is not a file that we alone can write" in caplog.text


def test_a_disk_that_cannot_be_written_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits is lost with its process then, and counted as such."""
    (tmp_path / "file").write_text("")
    process = Process(tmp_path / "file")
    process.settle(unasked())

    assert process.spool.write() == 0
    assert "settlements cannot be written" in caplog.text
