"""A process that makes guarded calls until it is told to stop, or dies.

`python -m tests.chaos.worker SETTINGS KIND NAME PORT`
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Literal

from tests.chaos.journal import Journal
from tests.chaos.settings import Settings

Kind = Literal["relay", "threads", "tasks"]
"""The middleware in an application, `Guard` in threads, `AsyncGuard` in tasks."""


def main(path: Path, kind: str, name: str, port: int) -> None:
    """Run one worker; `port` is for a relay."""
    settings = Settings.read(path)
    journal = Journal(settings.journal(name))
    if kind == "relay":
        from tests.chaos.relay import serve

        serve(settings, journal, port)
    elif kind == "threads":
        from tests.chaos.jobs import work_in_threads

        work_in_threads(settings, journal, name)
    else:
        from tests.chaos.jobs import work_in_tasks

        asyncio.run(work_in_tasks(settings, journal, name))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
