"""A provider that is never killed, and writes down what it bills for each call.

Every call tells how it wants to be answered, so that the seed of the run decides it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from llm_budget_mw.testing import FakeProvider
from tests.chaos.asking import MODEL, Script
from tests.chaos.journal import Journal

PRICES = {MODEL: ("2.50", "10")}
"""A whole number of nano-dollars for a token, so that no rounding can hide a difference."""
CALL_HEADER = "x-call"
SCRIPT_HEADER = "x-script"
_GRACE_S = 5
_BUG = 500


class Provider:
    """An ASGI application; a call is billed once, when it ends, by what it generated."""

    def __init__(self, ledger: Journal) -> None:
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call as its script says."""
        headers = Headers(scope=scope)
        script = Script.read(headers[SCRIPT_HEADER])
        fake = _fake(script)

        async def breaking_send(message: Message) -> None:
            # What breaks off before its first byte is no answer, not even one of an error.
            if script.breaks_after is not None and message.get("status") == _BUG:
                send.__self__.transport.abort()  # type: ignore[attr-defined]  # of uvicorn
            else:
                await send(message)

        try:
            await fake(scope, receive, breaking_send)
        finally:
            for call in fake.calls:
                self._ledger.add(
                    "bill",
                    call=headers[CALL_HEADER],
                    input=call.input_tokens,
                    output=call.output_tokens,
                    cost=call.cost_nano,
                    finished=call.finished,
                )


def _fake(script: Script) -> FakeProvider:
    fake = FakeProvider(output_tokens=script.words, delay_s=script.delay_ms / 1000, prices=PRICES)
    if script.fails:
        fake.fail_next()
    elif script.breaks_after is not None:
        fake.break_next(after=script.breaks_after)
    return fake


def main(ledger: Path, port: int) -> None:
    """Serve until SIGTERM."""
    uvicorn.run(
        Provider(Journal(ledger)),
        port=port,
        lifespan="off",
        log_level="critical",
        timeout_graceful_shutdown=_GRACE_S,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
