"""Whether several processes serve the application, as far as the environment tells."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from itertools import zip_longest

from llm_budget_mw.config import Config
from llm_budget_mw.errors import ConfigurationError

EACH_PROCESS = "memory://?each-process"
"""The URL of a store in memory of which every process is meant to have its own."""
_COUNTS = ("WEB_CONCURRENCY", "UVICORN_WORKERS", "GRANIAN_WORKERS")
_GUNICORN = "GUNICORN_CMD_ARGS"


def several_processes(environ: Mapping[str, str]) -> str | None:
    """Return what says that there are several worker processes, such as `WEB_CONCURRENCY=4`.

    None if nothing does; a `--workers` of the command line cannot be seen here.
    """
    workers = _gunicorn_workers(environ.get(_GUNICORN, ""))
    if workers is not None:  # gunicorn takes them before `WEB_CONCURRENCY`
        return f"{_GUNICORN} with {workers} workers" if workers > 1 else None
    for name in _COUNTS:
        value = environ.get(name, "").strip()
        if _whole(value) > 1:
            return f"{name}={value}"
    return None


def memory_store_shared(environ: Mapping[str, str]) -> str | None:
    """Return why a store in memory cannot hold a budget here; None if nothing speaks against it."""
    seen = several_processes(environ)
    return f"{seen} starts several processes, and each would count by itself" if seen else None


def check_store(config: Config, environ: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` for a store in memory where several processes are to hold limits."""
    reason, url = memory_store_shared(environ), config.store.url
    refuses = config.mode == "enforce"
    if reason and refuses and url.startswith("memory:") and url != EACH_PROCESS:
        raise ConfigurationError(
            f"store.url = {url!r}: {reason}, so that all of them spend the whole of every limit; "
            f"name a Redis or Valkey that they share, or write {EACH_PROCESS!r} to have each "
            "process count by itself"
        )


def _gunicorn_workers(arguments: str) -> int | None:
    """Return the number of workers in arguments of gunicorn; None if they name none."""
    try:
        words = shlex.split(arguments)
    except ValueError:
        return None  # gunicorn refuses them
    found: int | None = None
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word in ("-w", "--workers"):
            found = _whole(following)
        elif word.startswith("--workers="):
            found = _whole(word.removeprefix("--workers="))
        elif word.startswith("-w") and not word.startswith("--"):
            found = _whole(word.removeprefix("-w").removeprefix("="))
    return found


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0
