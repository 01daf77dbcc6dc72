"""Tests of `llm_budget_mw.dialects.detection`."""

from __future__ import annotations

import time

import pytest

from llm_budget_mw.dialects import DIALECTS
from llm_budget_mw.dialects.detection import costs_nothing, detect, is_odd
from llm_budget_mw.dialects.protocol import RequestHead
from llm_budget_mw.errors import RequestError

ARN = "arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-lite-v1:0"
KNOWN = {
    "openai_chat": [
        "/v1/chat/completions",
        "/chat/completions",
        "/openai/v1/chat/completions",
        "/openai/deployments/my-gpt/chat/completions",
        "/api/v1/chat/completions",
        "/v1beta/openai/chat/completions",
    ],
    "openai_completions": [
        "/v1/completions",
        "/beta/completions",
        "/openai/deployments/d/completions",
    ],
    "openai_embeddings": ["/v1/embeddings", "/openai/deployments/d/embeddings"],
    "openai_responses": [
        "/v1/responses",
        "/openai/responses",
        "/openai/v1/responses/compact",
        "/v1/responses/input_tokens",
    ],
    "anthropic_messages": ["/v1/messages", "/anthropic/v1/messages"],
    "gemini": [
        "/v1beta/models/gemini-x:generateContent",
        "/v1beta/tunedModels/mine:streamGenerateContent",
        "/v1/projects/p/locations/l/publishers/google/models/gemini-x:streamGenerateContent",
    ],
    "bedrock": ["/model/amazon.nova-lite-v1:0/converse", f"/model/{ARN}/converse-stream"],
    "bedrock_invoke": ["/model/m/invoke", f"/aws/model/{ARN}/invoke-with-response-stream"],
    "cohere": ["/v2/chat", "/cohere/v2/chat"],
    "ollama": ["/api/chat", "/api/generate"],
}
UNKNOWN = [
    "/",
    "",
    "/v1",
    "/v1/models",
    "/v1/files",
    "/v1/images/generations",
    "/v1/audio/speech",
    "/v1/batches",
    "/v1/responses/resp_1/cancel",
    "/v1/messages/count_tokens",
    "/v1/messages/batches",
    "/v1/threads/t/messages",
    "/completions",
    "/converse",
    "/x/invoke",
    "/v1beta/models/gemini-x:countTokens",
    "/v1beta/models/gemini-x:embedContent",
    "/v1beta/models:generateContent",
    "/model/m/count-tokens",
    "/v1/chat",
    "/v2/rerank",
    "/api/embed",
    "/api/generates",
]


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, paths in KNOWN.items() for path in paths]
)
def test_a_path_tells_its_dialect(name: str, path: str) -> None:
    """As providers mount it, and however it is spelt."""
    assert detect(path) == name
    assert detect(path.upper() + "/") == name
    assert not is_odd(path)


def test_every_format_of_a_provider_is_told_somewhere() -> None:
    """All but one's own, and the one that only a configuration can know."""
    assert set(KNOWN) == set(DIALECTS) - {"custom", "openai_compatible"}


@pytest.mark.parametrize("path", UNKNOWN)
def test_other_paths_tell_nothing(path: str) -> None:
    """Also where they are near to one that does."""
    assert detect(path) is None


FREE = [
    "/v1/messages/count_tokens",
    "/anthropic/v1/messages/count_tokens",
    "/v1/responses/input_tokens",
    "/v1beta/models/gemini-x:countTokens",
    "/v1/projects/p/locations/l/publishers/google/models/gemini-x:computeTokens",
    "/model/amazon.nova-lite-v1:0/count-tokens",
    "/v1/tokenize",
    "/v1/moderations",
    "/v1/files",
    "/upload/v1beta/files",
    "/v1/uploads",
    "/v1/uploads/u/parts",
    "/v1/uploads/u/complete",
    "/v1/batches/b/cancel",
    "/v1/messages/batches/b/cancel",
    "/v1/responses/r/cancel",
]
BILLED = [
    *[paths[0] for paths in KNOWN.values()],
    "/v1/messages/batches",
    "/v1/batches",
    "/v1/images/generations",
    "/v1/audio/speech",
    "/v1/vector_stores/v/files",
    "/v1/fine_tuning/jobs",
    "/v1/threads/t/runs",
    "/v1beta/cachedContents",
    "/v1/files/../chat/completions/moderations",
    "/v1//files",
    "/x/chat/completions%2f../v1/files",
    "/my/moderations",
    "/",
]


@pytest.mark.parametrize("path", FREE)
def test_what_providers_do_for_nothing_is_known(path: str) -> None:
    """Counting, moderation, files, and an end; however it is spelt, but not for every method."""
    assert costs_nothing("POST", path)
    assert costs_nothing("POST", path.upper() + "/")
    assert not costs_nothing("PUT", path)


@pytest.mark.parametrize("path", BILLED)
def test_nothing_else_is_taken_for_free(path: str) -> None:
    """To read and to delete always is."""
    assert not costs_nothing("POST", path)
    assert all(costs_nothing(method, path) for method in ("GET", "HEAD", "OPTIONS", "DELETE"))


def refusal(name: str, path: str) -> str:
    """Return why a dialect refuses a request without anything in it, if it does."""
    try:
        DIALECTS[name].read_request(RequestHead("POST", path), b"{}")
    except RequestError as error:
        return error.code
    return ""


@pytest.mark.parametrize(("name", "path"), [(name, paths[0]) for name, paths in KNOWN.items()])
def test_the_dialect_told_takes_the_path(name: str, path: str) -> None:
    """What is told from a path is not refused for that path by the dialect itself."""
    assert refusal(name, path) != "unknown_route"


@pytest.mark.parametrize(
    "piece", ["/model/", "/models/x:", ":", "/v1", "%", "//", "/..", "deployments/", "%2525"]
)
def test_a_long_path_takes_no_time(piece: str) -> None:
    """64 KB of whatever the patterns begin with."""
    path = "/" + piece * (65_536 // len(piece))
    begun = time.perf_counter()

    detect(path)
    is_odd(path)
    costs_nothing("POST", path)

    assert time.perf_counter() - begun < 0.5
