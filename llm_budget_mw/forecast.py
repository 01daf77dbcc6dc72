"""When a limit will be used up if things go on as they did so far in its window."""

from __future__ import annotations

from llm_budget_mw import _windows
from llm_budget_mw.types import LimitStatus

_TOO_EARLY = 20
"""Before this part (a twentieth) of the window is over nothing can be told: a month would be
judged by its first call."""


def exhausted_at(status: LimitStatus, now_ms: int) -> int | None:
    """Return when a limit will be used up, in milliseconds since the epoch; `now_ms` if it is.

    None where it lasts until its window ends, where too little of the window is over to tell,
    and for limits without such an end: sliding windows forget as they go, slots come back.
    What calls in flight hold counts as used. `now_ms` is the store's clock at the status.
    """
    window = status.limit.window
    if status.reset_ms is None or window.kind == "sliding":
        return None
    if not status.remaining:
        return now_ms
    start, end = _windows.span(window, now_ms)
    elapsed = end - start - status.reset_ms
    if status.used <= 0 or elapsed * _TOO_EARLY < end - start:
        return None
    left = -(-status.remaining * elapsed // status.used)
    return now_ms + left if left < status.reset_ms else None
