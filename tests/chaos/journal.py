"""Lines of JSON that outlive their writer, however that is killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """Appends to a file of its own, with one `write` for each line and nothing kept back.

    The kernel has a line when `add` returns, so SIGKILL takes none of those; it takes what was
    not yet said. Only a machine that goes down would need fsync.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, what: str, **fields: Any) -> None:
        """Write one line."""
        os.write(self._file, json.dumps({"what": what, **fields}).encode() + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal; one that was never finished is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
