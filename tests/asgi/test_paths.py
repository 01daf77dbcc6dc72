"""The path a granted model is written into, on a real server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.asgi.driver import Site, UvicornServer
from tests.edge.driver import ISSUER

ARN = "arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-lite-v1:0"
NOVA = "amazon.nova-lite-v1:0"
GEMINI = {"contents": [{"parts": [{"text": "hi"}]}]}
CONVERSE = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path as an application finds it."""
    found = {"path": scope["path"], "raw_path": scope["raw_path"].decode()}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(found).encode()})


def seen(asked: str, granted: str, path: str, body: dict[str, Any]) -> tuple[str, str]:
    """Ask for one model and be granted another; return the paths the application saw."""
    # Too small a part of the limit for anything.
    refused = [] if asked == granted else [{"model": asked, "ceiling": 0.000001}]
    tier = {
        "tokens": "1000000/day",
        "offers": [*refused, {"model": granted}],
        "max_tokens": 50,
    }
    prices = {"catalogue": False, "unknown": {"input": "1", "output": "1"}}
    site = Site(echo, tier, sections={"routes": [{"path": "/*"}], "prices": prices})
    with UvicornServer(site.app) as server:
        headers = {"authorization": f"Bearer {ISSUER.token('alice')}"}
        answer = httpx.post(server.url + path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found["path"], found["raw_path"]


@pytest.mark.parametrize(
    ("asked", "granted", "sent", "body", "path", "raw_path"),
    [
        pytest.param(
            "gemini-a",
            "gemini-b",
            "/v1beta/models/gemini-a:generateContent",
            GEMINI,
            "/v1beta/models/gemini-b:generateContent",
            "/v1beta/models/gemini-b:generateContent",
            id="gemini",
        ),
        pytest.param(
            "gemini-a",
            "gemini b",
            "/v1beta/models/gemini-a%3AgenerateContent",
            GEMINI,
            "/v1beta/models/gemini b:generateContent",
            "/v1beta/models/gemini%20b:generateContent",
            id="gemini, encoded",
        ),
        pytest.param(
            "model-a",
            NOVA,
            "/model/model-a/converse",
            CONVERSE,
            f"/model/{NOVA}/converse",
            "/model/amazon.nova-lite-v1%3A0/converse",
            id="bedrock id",
        ),
        pytest.param(
            NOVA,
            ARN,
            "/proxied%20here/model/amazon.nova-lite-v1%3A0/converse-stream",
            CONVERSE,
            f"/proxied here/model/{ARN}/converse-stream",
            f"/proxied%20here/model/{ARN.replace(':', '%3A').replace('/', '%2F')}/converse-stream",
            id="bedrock ARN",
        ),
        pytest.param(
            ARN,
            NOVA,
            f"/model/{ARN.replace(':', '%3A').replace('/', '%2F')}/invoke",
            {**CONVERSE, "inferenceConfig": {}},
            f"/model/{NOVA}/invoke",
            "/model/amazon.nova-lite-v1%3A0/invoke",
            id="bedrock ARN, invoked",
        ),
    ],
)
def test_another_model_is_in_both_paths(
    asked: str, granted: str, sent: str, body: dict[str, Any], path: str, raw_path: str
) -> None:
    """`path` is decoded; in `raw_path` a model is one segment, whatever it holds."""
    assert seen(asked, granted, sent, body) == (path, raw_path)


def test_the_path_of_the_model_asked_for_is_left_alone() -> None:
    """As it came, in the spelling of the client."""
    sent = "/model/amazon.nova-lite-v1%3a0/converse"

    assert seen(NOVA, NOVA, sent, CONVERSE) == (f"/model/{NOVA}/converse", sent)
