"""The Celery example, as its docstring starts it: real workers on a real broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.result import AsyncResult

from llm_budget_mw import Guard, Principal, hand_over
from llm_budget_mw.testing import FakeProvider, Issuer
from tests.servers import ValkeyServer
from tests.serving import serving

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SECRET = "a secret of thirty-two bytes or more"
ALICE = Principal("alice")
WAIT_S = 60


@pytest.fixture
def redis_url() -> Iterator[str]:
    with ValkeyServer() as server:
        yield server.url


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider(output_tokens=12, prices={"gpt-4o-mini": ("0.15", "0.60")})


@pytest.fixture
def jobs(redis_url: str, provider: FakeProvider) -> Iterator[Celery]:
    with serving(provider) as provider_url:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}",
            "LLM_BUDGET_STORE_URL": redis_url,
            "LLM_BUDGET_JWT_KEY": Issuer().key,
            "HANDOVER_SECRET": SECRET,
            "PROVIDER_URL": provider_url,
            "OPENAI_API_KEY": "sk-example",
        }
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "celery_worker", "worker"),
                *("--concurrency", "2", "--loglevel", "error", "--without-mingle"),
            ],
            cwd=EXAMPLES,
            env=environment,
        )
        try:
            yield Celery("celery_worker", broker=redis_url, backend=redis_url)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(WAIT_S)


def send(jobs: Celery, who: str, text: str = "A fox jumped.") -> AsyncResult[str]:
    return jobs.send_task("celery_worker.summarise", [who, text])


def test_jobs_are_charged_to_whom_they_were_sent_for(
    jobs: Celery, provider: FakeProvider, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over both processes of the worker no more than the limit; a forged principal gets nothing."""
    forged = send(jobs, hand_over(ALICE, "another secret of 32 bytes or more"))
    sent = [send(jobs, hand_over(ALICE, SECRET)) for _ in range(8)]

    assert all(isinstance(job.get(timeout=WAIT_S), str) for job in sent)
    with pytest.raises(Exception, match="the principal of this job is not valid"):
        forged.get(timeout=WAIT_S)

    monkeypatch.setenv("LLM_BUDGET_STORE_URL", redis_url)
    monkeypatch.setenv("LLM_BUDGET_JWT_KEY", Issuer().key)
    guard = Guard.open(EXAMPLES / "llm_budget.toml", sinks=())
    used = {status.limit.name: status.used for status in guard.limits(ALICE)}
    guard.close()
    assert used["requests-per-minute"] == len(provider.calls) == 8
    assert used["budget-per-month"] == provider.cost_nano
    assert used["concurrency"] == 0
