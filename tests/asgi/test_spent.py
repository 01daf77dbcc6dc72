"""The SDKs of AWS and Cohere, which try a 429 again whatever the headers say.

They run where they are installed; `tests/test_http.py` has the statuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.asgi.driver import Site, UvicornServer
from tests.asgi.provider import Counting
from tests.edge.driver import ISSUER

SPENT = {"budget": "$0.0005/month", "min_tokens": 30, "max_tokens": 30}
"""Enough for one call with 30 tokens of output, and not for two."""
ANSWER = {
    "usage": {
        "inputTokens": 10,
        "outputTokens": 30,
        "totalTokens": 40,
        "billed_units": {"input_tokens": 10, "output_tokens": 30},
    },
    "output": {"message": {"role": "assistant", "content": [{"text": "hi"}]}},
    "stopReason": "end_turn",
    "metrics": {"latencyMs": 1},
    "id": "c",
    "finish_reason": "COMPLETE",
    "message": {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
}


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as both providers do."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(ANSWER).encode()})


class Live(NamedTuple):
    """A guarded provider on a socket."""

    front: Counting
    url: str


@pytest.fixture
def live() -> Iterator[Live]:
    front = Counting(Site(answering, SPENT, sections={"routes": [{"path": "/*"}]}).app)
    with UvicornServer(front) as running:
        yield Live(front, running.url)


@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
def test_botocore_does_not_try_a_spent_budget_again(live: Live, mode: str) -> None:
    """One request, and the exception of a quota, in each of its ways to retry."""
    botocore: Any = pytest.importorskip("botocore")
    session: Any = pytest.importorskip("botocore.session")
    config: Any = pytest.importorskip("botocore.config")
    client = session.get_session().create_client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=live.url,
        config=config.Config(retries={"mode": mode}, signature_version=botocore.UNSIGNED),
    )

    def identify(params: dict[str, Any], **_: object) -> None:
        # Its own bearer tokens are for https only.
        params["headers"]["Authorization"] = f"Bearer {ISSUER.token('alice')}"

    client.meta.events.register("before-call.bedrock-runtime", identify)
    asked = {"modelId": "big", "messages": [{"role": "user", "content": [{"text": "hi there"}]}]}

    assert client.converse(**asked)["usage"]["outputTokens"] == 30
    with pytest.raises(client.exceptions.ServiceQuotaExceededException, match="budget-per-month"):
        client.converse(**asked)

    client.close()
    assert live.front.requests == 2


def test_cohere_does_not_try_a_spent_budget_again(live: Live) -> None:
    """One request, and an error with the status and the code."""
    cohere: Any = pytest.importorskip("cohere")
    asked = {"model": "big", "messages": [{"role": "user", "content": "hi there"}]}

    with httpx.Client() as http:
        client = cohere.ClientV2(ISSUER.token("alice"), base_url=live.url, httpx_client=http)
        assert client.chat(**asked).usage.billed_units.output_tokens == 30
        with pytest.raises(cohere.core.ApiError) as caught:
            client.chat(**asked)

    assert (caught.value.status_code, caught.value.body["code"]) == (402, "budget_exceeded")
    assert live.front.requests == 2
