"""One call of a guarded client: written into its request, watched in its answer, settled once."""

from __future__ import annotations

import re
from typing import Any, cast
from urllib.parse import quote

from llm_budget_mw.calls import AsyncCall, Call, running_loop
from llm_budget_mw.clients.errand import EXTENSION, Errand
from llm_budget_mw.clients.library import Library
from llm_budget_mw.dialects.protocol import Dialect, RequestHead, Rewritten
from llm_budget_mw.ending import answered, unanswered
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.tap import FIRST_ERROR, Tap
from llm_budget_mw.types import ModelCall

_REPLACED = (
    b"accept-encoding", b"content-encoding", b"content-length", b"transfer-encoding",
)  # fmt: skip
_FIRST_REDIRECT = 300
_PATH_SAFE = "/:@!$&'()*+,;=~"
"""What a path may hold as it is (RFC 3986 section 3.3)."""
_DEPLOYMENT = re.compile(rb"/deployments/[^/]+/")
"""Where Azure takes the model from, whatever the body says."""


class Watched:
    """Nothing here waits, but for `settle` where the call's guard is one for threads."""

    def __init__(
        self,
        library: Library,
        head: RequestHead,
        dialect: Dialect,
        asked: ModelCall,
        call: Call | AsyncCall,
    ) -> None:
        self.call = call
        self.tap = Tap(dialect, asked)
        self._library = library
        self._head = head
        self._dialect = dialect
        self._asked = asked
        self._errand: Errand | None = None
        self._outcome: Outcome | None = None
        self._settled = False

    def written(self, request: Any) -> Any:
        """Return the HTTP request with the grant in it; what comes next is sending it."""
        call = self.call
        written = self._dialect.write_grant(self._head, self._asked, call.model, call.max_tokens)
        # Its usage could not be read in a compressed answer.
        headers = [item for item in request.headers.raw if item[0].lower() not in _REPLACED]
        headers.append((b"accept-encoding", b"identity"))
        errand = Errand(call.principal.id, call.model, call.grant.charges.tokens)
        made = self._library.request(
            request.method,
            request.url.copy_with(raw_path=self._target(request, written)),
            headers=headers,
            content=written.body,
            extensions={**request.extensions, EXTENSION: errand},
        )
        self._errand = errand
        return made

    def _target(self, request: Any, written: Rewritten) -> bytes:
        """Return path and query, as they are sent."""
        path, mark, query = request.url.raw_path.partition(b"?")
        if written.path is not None:
            path = (written.raw_path or quote(written.path, safe=_PATH_SAFE)).encode()
        if self.call.model != self._asked.model:
            name = quote(self.call.model, safe="").encode()
            path = _DEPLOYMENT.sub(b"/deployments/" + name + b"/", path)
        return bytes(path + mark + query)

    def start(self, response: Any, stream: Any) -> Any:
        """Note how the answer begins; return it with a body that is watched."""
        headers = [(name.lower(), value) for name, value in response.headers.multi_items()]
        self.tap.start(response.status_code, dict(headers))
        if self.tap.rewrites:
            headers = [item for item in headers if item[0] != "content-length"]
        return self._library.response(
            response.status_code, headers=headers, stream=stream, extensions=response.extensions
        )

    def end(self, error: BaseException | None = None) -> None:
        """Note that the call has ended, as far as its answer is concerned."""
        if self._outcome is None:
            self._outcome = self._ended(error)
            if self._errand is not None:
                self._errand.used_tokens = _used(self._outcome)

    def settle(self, error: BaseException | None = None) -> None:
        """Settle from a thread, once; `error` is what ended the call."""
        if not self._ends(error):
            return
        if isinstance(self.call, AsyncCall) and running_loop() is not None:
            # A generator is closed where it is forgotten: its own loop cannot be waited for.
            self.call.abandon()
        else:
            self.call.__exit__(None, None, None)

    async def settle_async(self, error: BaseException | None = None) -> None:
        """Settle in a coroutine; like `settle`."""
        if self._ends(error):
            await self.call.__aexit__(None, None, None)

    def abandon(self) -> None:
        """Settle a call whose answer nobody holds any more."""
        if self._ends(None):
            self.call.abandon()

    def _ends(self, error: BaseException | None) -> bool:
        if self._settled:
            return False
        self._settled = True
        self.end(error)
        self.call.observe(cast("Outcome", self._outcome))
        return True

    def _ended(self, error: BaseException | None) -> Outcome:
        if not self.tap.started:
            unsent = self._errand is None or self._errand.queued
            if unsent or isinstance(error, self._library.unsent):
                return Outcome(Ending.NOT_CALLED)
            return unanswered(streams=self._asked.stream)
        if _FIRST_REDIRECT <= self.tap.status < FIRST_ERROR:
            return Outcome(Ending.REFUSED_UPSTREAM)  # where it leads is another call
        return answered(self.tap, error, self.call.count, streams=self._asked.stream)


def _used(outcome: Outcome) -> int | None:
    usage = outcome.usage
    if usage is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    return usage.input_tokens + usage.output_tokens
