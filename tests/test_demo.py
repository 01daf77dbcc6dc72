"""Tests of the demo: it passes, it can fail, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_PATIENCE_S = 60


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the demo with its temporary files in `directory`."""
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(directory: Path) -> Iterator[str]:
    """Yield what is still there of a demo: its files, and processes that were told of them."""
    yield from map(str, directory.glob("llmb-*"))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(directory).encode() in told:
            yield str(process)


def test_the_demo_passes(tmp_path: Path) -> None:
    """Every figure of every scene is the expected one."""
    demo = start(tmp_path)

    shown, _ = demo.communicate(timeout=_PATIENCE_S)

    assert demo.returncode == 0, shown
    assert shown.endswith("8 of 8 scenes as expected\n")
    assert not list(left_behind(tmp_path))


def test_the_demo_can_fail(tmp_path: Path) -> None:
    """A wrong expectation is found, shown with what is true, and ends it with status 1."""
    demo = start(tmp_path, "--scene", "3", "--expect-upstream", "4")

    shown, _ = demo.communicate(timeout=_PATIENCE_S)

    assert demo.returncode == 1
    assert "expected '4 reached the provider', found '3 reached the provider'" in shown
    assert shown.endswith("0 of 1 scenes as expected\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_stops_all_it_started(
    number: signal.Signals, tmp_path: Path
) -> None:
    """In the middle of a scene, with four processes running."""
    demo = start(tmp_path, "--scene", "7")
    deadline = time.monotonic() + _PATIENCE_S
    while not list(tmp_path.glob("llmb-*/worker.log")) and time.monotonic() < deadline:
        time.sleep(0.02)  # the only way to learn that another process has come so far

    demo.send_signal(number)
    shown, _ = demo.communicate(timeout=_PATIENCE_S)

    assert demo.returncode == 1, shown
    assert shown.endswith("stopped\n")
    assert not list(left_behind(tmp_path))
