"""Input steered by coverage: `python -m tests.fuzz.guided DIALECT RUNS`, where atheris is.

A process of its own: libFuzzer ends the one it runs in.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGE = "atheris"
_SLOWEST_S = 10
_MEBIBYTES = 2048
_MOST_BYTES = 3000


def is_available() -> bool:
    """Return whether atheris is installed."""
    return find_spec(_PACKAGE) is not None


def check_guided(dialect: str, runs: int, number: int) -> str:
    """Run so many inputs in another process; return what it says if it found something."""
    command = [sys.executable, "-m", __name__, dialect, str(runs), str(number)]
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run([*command, scratch], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-6000:]


def _fuzz(dialect: str, runs: str, number: str, scratch: str) -> None:
    atheris: Any = importlib.import_module(_PACKAGE)
    with atheris.instrument_imports(include=["llm_budget_mw.dialects", "llm_budget_mw._sse"]):
        checks_of = importlib.import_module("tests.fuzz.checks")
        seeds_of = importlib.import_module("tests.fuzz.seeds")
    mutate = importlib.import_module("tests.fuzz.mutate")
    protocol = importlib.import_module("llm_budget_mw.dialects.protocol")
    seeds = seeds_of.SEEDS[dialect]
    checks = checks_of.Checks(seeds, checks_of.build_engine())

    def one(data: bytes) -> None:
        # The first byte says what the rest is.
        kind, rest = divmod(data[0] if data else 0, 4)
        body = data[1:]
        if kind % 3 == 0:
            path = seeds.paths[rest % len(seeds.paths)]
            checks.request(protocol.RequestHead("POST", path), body, 1024, rest > 1)
        elif kind % 3 == 1:
            checks.answer(mutate.Answer(200, {"content-type": "application/json"}, body))
        else:
            sizes = (rest + 1,) * (len(body) // (rest + 1) + 1)
            headers = {"content-type": seeds.stream_type}
            checks.stream(mutate.Answer(200, headers, body, sizes))

    corpus = Path(scratch)
    for position, value in enumerate([*seeds.requests, *seeds.answers]):
        kind = 0 if position < len(seeds.requests) else 4
        (corpus / f"{position}").write_bytes(bytes([kind]) + seeds_of.compact(value))
    for position, events in enumerate(seeds.streams):
        (corpus / f"stream-{position}").write_bytes(b"\x0b" + seeds.write(events))
    options = [
        f"-runs={runs}", f"-seed={number}", f"-timeout={_SLOWEST_S}", f"-max_len={_MOST_BYTES}",
        f"-rss_limit_mb={_MEBIBYTES}", f"-artifact_prefix={scratch}/", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, scratch], one)
    atheris.Fuzz()


if __name__ == "__main__":
    _fuzz(*sys.argv[1:])
