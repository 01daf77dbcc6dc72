"""Work beside the requests, again and again while there is a reason: a thread, or a task.

A round does what is due and returns the seconds until the next one; None ends it, until it is
started again. It never holds up the end of a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from contextvars import Context

_log = logging.getLogger(__name__)
_AFTER_ERROR_S = 5.0


class Upkeep:
    """Rounds in a thread of their own."""

    def __init__(self, work: Callable[[], float | None], name: str) -> None:
        self._work = work
        self._name = name
        self._stopped = False
        self.after_fork()

    def after_fork(self) -> None:
        """Have no thread; that of the parent stayed there."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether there will be another round."""
        return self._thread is not None

    def start(self) -> None:
        """Have a round now, in the thread; it is started if need be."""
        with self._lock:
            self._wake.set()
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self, patience_s: float) -> None:
        """End after the present round, which is waited for; nothing starts it again."""
        with self._lock:
            self._stopped, thread = True, self._thread
            self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(patience_s)

    def _run(self) -> None:
        pause: float | None = 0.0
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if not self._stopped:
                pause = self._round()
            with self._lock:
                if self._stopped or (pause is None and not self._wake.is_set()):
                    self._thread = None
                    return

    def _round(self) -> float | None:
        try:
            return self._work()
        except Exception:  # noqa: BLE001 (nobody is there to hear of it)
            _log.exception("%s failed", self._name)
            return _AFTER_ERROR_S


class AsyncUpkeep:
    """Rounds in a task of one event loop; started in another one when that is closed."""

    def __init__(self, work: Callable[[], Awaitable[float | None]], name: str) -> None:
        self._work = work
        self._name = name
        self._stopped = False
        self.after_fork()

    def after_fork(self) -> None:
        """Have no task; that of the parent stayed there."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    @property
    def running(self) -> bool:
        """Whether there will be another round."""
        if self._task is None or self._loop is None:
            return False
        return not self._task.done() and not self._loop.is_closed()

    def start(self) -> None:
        """Have a round now, on its loop; on the running loop if there is none yet."""
        here = asyncio.get_running_loop()
        if self.running and self._loop is here:
            self._wake.set()
        elif self.running and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed in this moment
                self._loop.call_soon_threadsafe(self._wake.set)
        elif not self._stopped:
            self._loop, self._wake = here, asyncio.Event()
            # Not in the context of the request that happens to start it, which would live as long.
            self._task = here.create_task(self._run(self._wake), context=Context())

    async def stop(self) -> None:
        """End now; nothing starts it again."""
        self._stopped = True
        if self.running and self._task is not None and self._loop is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            pause = await self._round()
            if pause is None and not wake.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wake.wait()

    async def _round(self) -> float | None:
        try:
            return await self._work()
        except Exception:  # noqa: BLE001 (nobody is there to hear of it)
            _log.exception("%s failed", self._name)
            return _AFTER_ERROR_S
