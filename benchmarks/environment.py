"""What was measured on; always the first group."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from benchmarks import _server
from benchmarks._deployment import configuration
from benchmarks.measure import Result
from llm_budget_mw.tokens.exact import load_counter

_PACKAGES = ("redis", "hiredis", "starlette", "fastapi", "slowapi", "fastapi-limiter", "structlog")


def run() -> Iterable[Result]:
    """Name the machine, the server and the versions."""
    yield Result("processor", f"{_processor()}, {os.cpu_count()} cores")
    yield Result("load average at the start", f"{os.getloadavg()[0]:.2f}")
    yield Result("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield Result("server", _store())
    yield Result("tokenizer", type(load_counter(configuration().tokens)).__name__)
    yield Result("packages", ", ".join(_version(name) for name in _PACKAGES))


def _processor() -> str:
    """Return the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _store() -> str:
    facts = _server.facts("server")
    if "valkey_version" in facts:
        return f"Valkey {facts['valkey_version']}"
    return f"Redis {facts['redis_version']}"


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"
