"""The README and the documents do what they say: their code runs, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from llm_budget_mw import load
from llm_budget_mw.testing import FakeProvider, Issuer
from tests.serving import serving

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """Return the fenced blocks of a document in one language."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(issuer="https://login.example", audience="chat")


@pytest.fixture
def configured(
    provider: FakeProvider, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Lay out what the README tells its reader to have."""
    toml = blocks(README, "toml")[0]
    (tmp_path / "llm_budget.toml").write_text(toml)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_BUDGET_JWT_KEY", issuer.key)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-example")
    with serving(provider) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        yield


def run(code: str) -> dict[str, Any]:
    """Run a block as a module of its own."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - the README is ours
    return names


@asynccontextmanager
async def closing_with_app(client: Any) -> AsyncGenerator[None, None]:
    async with client:
        yield


@pytest.mark.usefixtures("configured")
def test_the_application_of_the_readme_works(provider: FakeProvider, issuer: Issuer) -> None:
    """Its route answers who has a credential, with the granted bound, and nobody else."""
    names = run(blocks(README, "python")[0])
    app = names["app"]
    app.router.lifespan_context = lambda _: closing_with_app(names["client"])

    with serving(app) as url, httpx2.Client(base_url=url) as client:
        headers = {"authorization": f"Bearer {issuer.token('alice')}"}
        known = client.post("/ask", params={"question": "Who?"}, headers=headers)
        unknown = client.post("/ask", params={"question": "Who?"})

    assert (known.status_code, unknown.status_code) == (200, 401)
    assert known.json().startswith("the quick brown fox")
    assert [call.max_tokens for call in provider.calls] == [500]


@pytest.mark.usefixtures("configured")
def test_the_worker_of_the_readme_works(provider: FakeProvider) -> None:
    """It makes one call, within the bound of its tier."""
    run(blocks(README, "python")[-1])

    assert [call.max_tokens for call in provider.calls] == [500]


@pytest.mark.usefixtures("configured")
def test_the_flask_application_of_the_readme_works(provider: FakeProvider, issuer: Issuer) -> None:
    """Its view calls within its bound for who has a credential, and for nobody else."""
    names = run(blocks(README, "python")[1])
    headers = {"authorization": f"Bearer {issuer.token('alice')}"}

    with names["client"], names["app"].test_client() as client:
        known = client.post("/search", data="Who?", headers=headers)
        unknown = client.post("/search", data="Who?")

    assert (known.status_code, unknown.status_code) == (200, 401)
    assert known.text.startswith("the quick brown fox")
    assert [call.max_tokens for call in provider.calls] == [300]


@pytest.mark.usefixtures("configured")
def test_the_django_settings_of_the_readme_work() -> None:
    """A site that has them, and the middleware they need above, passes every check."""
    code = blocks(README, "python")[2].replace("[...,", "[*BELOW,")
    site = (
        "from django.conf import settings\nimport django\nfrom django.core import checks\n"
        "apps = ['django.contrib.auth', 'django.contrib.contenttypes', 'django.contrib.sessions']\n"
        "layers = ['sessions.middleware.Session', 'auth.middleware.Authentication']\n"
        "names = {'BELOW': apps}\n"
        f"lines = {code!r}.splitlines()\n"
        "exec(lines[0], names)\n"
        "names['BELOW'] = [f'django.contrib.{layer}Middleware' for layer in layers]\n"
        "exec('\\n'.join(lines[1:]), names)\n"
        "chosen = {name: names[name] for name in ('INSTALLED_APPS', 'MIDDLEWARE', 'LLM_BUDGET')}\n"
        "settings.configure(SECRET_KEY='k' * 50, ROOT_URLCONF='__main__', **chosen)\n"
        "urlpatterns = []\ndjango.setup()\n"
        "assert not checks.run_checks(), checks.run_checks()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", site],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_two_commands_lead_to_a_refused_request() -> None:
    """The first makes the environment; the second shows calls being refused."""
    [console] = blocks(README, "console")
    install, demo = console.splitlines()
    make, target = install.split()
    python, *arguments = demo.split()

    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (make, python) == ("make", ".venv/bin/python")
    assert f"\n{target}: " in (ROOT / "Makefile").read_text()
    assert done.returncode == 0, done.stderr
    assert "47 refused (429)" in done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_configuration_shown_is_valid(document: Path) -> None:
    """Each TOML block is a whole configuration, or part of one."""
    for toml in blocks(document, "toml"):
        load(whole(tomllib.loads(toml)))


def whole(part: dict[str, Any]) -> dict[str, Any]:
    """Add what a part of a configuration leaves to the rest of it, and to the environment."""
    issuer = part.get("jwt")
    if issuer and not {"jwks_url", "key_file"} & set(issuer):
        issuer["key"] = "k" * 32
    if "webhook" in part.get("alerts", {}):
        part["alerts"]["webhook_secret"] = "s" * 32
    return {**part, "tiers": {"default": {}, **part.get("tiers", {})}}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    """Links within the project name files that exist."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())

    for link in links:
        assert link.startswith("https://") or (document.parent / link).exists(), link
