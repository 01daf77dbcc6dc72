"""Settling calls whose answer was thrown away, neither read to its end nor closed.

A garbage collection may run in the middle of anything, so it only leaves a note here; a
thread does the rest.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from queue import SimpleQueue
from typing import Protocol

_log = logging.getLogger(__name__)


class _Abandoned(Protocol):
    def abandon(self) -> None: ...


_notes: SimpleQueue[_Abandoned] = SimpleQueue()
"""Its `put` may interrupt itself, which that of other queues may not."""
_lock = threading.Lock()
_thread: threading.Thread | None = None


def watch(holder: object, watched: _Abandoned) -> weakref.finalize[[_Abandoned], object]:
    """Have `watched` settled once `holder` is gone; detach what is returned to stop that."""
    _ensure_thread()
    finalizer = weakref.finalize(holder, _note, watched)
    finalizer.atexit = False  # then its lease ends it
    return finalizer


def _note(watched: _Abandoned) -> None:
    _notes.put(watched)


def _ensure_thread() -> None:
    global _thread
    if _thread is not None and _thread.is_alive():
        return
    with _lock:
        if _thread is None or not _thread.is_alive():  # a fork leaves it behind in the parent
            _thread = threading.Thread(target=_run, name="llm-budget-abandoned", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
                _thread.start()


def _run() -> None:
    while True:
        try:
            _notes.get().abandon()
        except Exception:  # noqa: BLE001 (nothing may end this thread)
            _log.exception("an abandoned call could not be settled; its lease will end it")
