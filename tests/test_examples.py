"""The examples, each started as a user would start it, against a provider on a real socket."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llm_budget_mw.testing import FakeProvider, Issuer
from tests.processes import on_gunicorn, running
from tests.serving import serving

EXAMPLES = Path(__file__).parents[1] / "examples"
DJANGO, ASGI = EXAMPLES / "django_project", "project.asgi:application"
MESSAGES = [{"role": "user", "content": "Say something about foxes."}]


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider(output_tokens=12, prices={"gpt-4o-mini": ("0.15", "0.60")})


@pytest.fixture
def provider_url(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(provider) as url:
        monkeypatch.setenv("PROVIDER_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-example")
        yield url


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Issuer:
    issuer = Issuer(issuer="https://login.example", audience="examples")
    monkeypatch.setenv("LLM_BUDGET_JWT_KEY", issuer.key)
    return issuer


@pytest.fixture(params=["plain_asgi", "fastapi_app", "flask_app", "django_project"])
def app_url(request: pytest.FixtureRequest, provider_url: str, issuer: Issuer) -> Iterator[str]:
    with _running(request.param) as url:
        yield url


def _running(name: str) -> AbstractContextManager[str]:
    """Start an example by the line in its docstring, or on uvicorn in a thread."""
    if name == "flask_app":
        return on_gunicorn("flask_app:app", "--chdir", str(EXAMPLES), "--threads", "32")
    if name == "django_project":
        return running("uvicorn", "--port", "{port}", "--app-dir", str(DJANGO), ASGI)
    return serving(_app(name))


def _app(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["app"]


def _client(url: str, issuer: Issuer) -> httpx2.Client:
    headers = {"authorization": f"Bearer {issuer.token('alice')}"}
    return httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=30)


def test_a_call_is_bounded_and_passed_on(
    app_url: str, issuer: Issuer, provider: FakeProvider
) -> None:
    """The provider gets the granted bound; the caller gets its answer and what remains."""
    with _client(app_url, issuer) as client:
        answer = client.post(
            "/v1/chat/completions", json={"model": "gpt-4o-mini", "messages": MESSAGES}
        )

    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 12
    assert answer.headers["x-ratelimit-remaining-requests"] == "19"
    assert provider.calls[0].max_tokens == 500


def test_a_stream_is_passed_on_as_it_comes(app_url: str, issuer: Issuer) -> None:
    """A streamed answer arrives whole, and ends as its protocol says."""
    body = {"model": "gpt-4o-mini", "messages": MESSAGES, "stream": True}

    with _client(app_url, issuer) as client:
        answer = client.post("/v1/chat/completions", json=body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.rstrip().endswith("data: [DONE]")


def test_more_than_twenty_calls_a_minute_are_refused(
    app_url: str, issuer: Issuer, provider: FakeProvider
) -> None:
    """A refused call never reaches the provider."""
    body = {"model": "gpt-4o-mini", "messages": MESSAGES, "max_tokens": 20}

    with _client(app_url, issuer) as client:
        answer = client.post("/v1/chat/completions", json=body)
        # A few more than 20 where a new minute begins in between.
        while answer.status_code == 200 and len(provider.calls) < 40:
            answer = client.post("/v1/chat/completions", json=body)

    assert answer.status_code == 429
    assert answer.json()["error"]["details"]["violated_policies"] == ["requests-per-minute"]
    assert 20 <= len(provider.calls) < 40


def test_nobody_unknown_gets_through(app_url: str, issuer: Issuer, provider: FakeProvider) -> None:
    """Without a credential, and beside the guarded routes, nothing reaches the provider."""
    with _client(app_url, issuer) as client:
        unguarded = client.post("/v1/files", json={})
        client.headers.pop("authorization")
        unknown = client.post("/v1/chat/completions", json={"model": "gpt-4o-mini"})

    assert (unknown.status_code, unguarded.status_code) == (401, 404)
    assert not provider.calls


@pytest.mark.parametrize("name", ["fastapi_app", "flask_app"])
def test_a_route_of_our_own_is_charged_what_its_call_cost(
    name: str, provider_url: str, issuer: Issuer, provider: FakeProvider
) -> None:
    """The examples with a route of their own charge for a summary what the provider bills."""
    with _running(name) as url, _client(url, issuer) as client:
        answer = client.post("/summaries", json={"text": "A fox jumped. " * 20})

    assert answer.status_code == 200
    assert answer.json()["micro_dollars"] == provider.cost_nano // 1000
    assert provider.calls[0].max_tokens == 200


@pytest.mark.parametrize(("name", "status"), [("fastapi_app", 429), ("flask_app", 413)])
def test_a_call_beyond_its_reservation_is_refused(
    name: str, status: int, provider_url: str, issuer: Issuer
) -> None:
    """A summary larger than the route reserved for, and than a limit, is answered as refused."""
    with _running(name) as url, _client(url, issuer) as client:
        answer = client.post("/summaries", json={"text": "🦊 " * 30_000})

    assert answer.status_code == status
    assert "tokens-per-minute" in answer.json()["detail"]


def test_a_marked_view_is_charged_what_its_call_cost(
    provider_url: str, issuer: Issuer, provider: FakeProvider
) -> None:
    """The Django example charges for a title what the provider bills for it."""
    text = {"text": "A fox jumped. " * 20}
    with _running("django_project") as url, _client(url, issuer) as client:
        # The first request of the process is the one that imports the views.
        unknown = client.post("/titles", json=text, headers={"authorization": ""})
        answer = client.post("/titles", json=text)

    assert (unknown.status_code, answer.status_code) == (401, 200)
    assert answer.json()["micro_dollars"] == provider.cost_nano // 1000
    assert provider.calls[0].max_tokens == 30


@pytest.mark.parametrize(
    ("command", "says"),
    [(("check",), "no issues"), (("llm_budget_limits", "alice"), "budget-per-month")],
)
def test_the_commands_of_the_django_project(
    command: tuple[str, ...], says: str, issuer: Issuer
) -> None:
    """`manage.py` knows the checks and the limits."""
    done = subprocess.run(
        [sys.executable, str(DJANGO / "manage.py"), *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{EXAMPLES.parent}:{EXAMPLES.parent / 'adapters'}"},
        check=True,
    )

    assert says in done.stdout


def test_the_worker_summarises_until_its_budget_ends(
    provider_url: str, provider: FakeProvider, tmp_path: Path
) -> None:
    """The script prints a summary for each line, and stops at the first refusal."""
    (tmp_path / "worker.py").write_text((EXAMPLES / "worker.py").read_text())
    config = re.sub(r"(?m)^budget = .*$", 'requests = "2/day"', _config())
    (tmp_path / "llm_budget.toml").write_text(config)

    done = subprocess.run(
        [sys.executable, str(tmp_path / "worker.py")],
        input="one\ntwo\nthree\n",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "LLM_BUDGET_JWT_KEY": "k" * 32},
        timeout=60,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    assert len(provider.calls) == 2, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert "requests-per-day is used up" in done.stderr


def _config() -> str:
    text = (EXAMPLES / "llm_budget.toml").read_text()
    return text.replace('requests = "20/minute"\n', "")
