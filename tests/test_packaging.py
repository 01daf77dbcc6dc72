"""Tests of the package as it is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(
    path.parent.name
    for path in [*ROOT.glob("llm*/__init__.py"), *ROOT.glob("adapters/*/__init__.py")]
)
HEAVY = ("genai_prices", "tiktoken", "toktok", "redis", "opentelemetry")
"""Each of them costs more than everything that is imported at once."""


def run(script: str) -> str:
    """Run a script in a fresh interpreter; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    """Without the marker a checker ignores all of its annotations."""
    assert (resources.files(package) / "py.typed").is_file()


def test_importing_the_package_is_light() -> None:
    """What is heavy is imported when a guard is built, and only if it is used."""
    loaded = run("import llm_budget_mw, sys; print(*sys.modules)").split()

    assert [name for name in HEAVY if name in loaded] == []


def test_the_first_request_imports_nothing() -> None:
    """All of it happened at the start: no request waits for an import."""
    script = """
import sys
from llm_budget_mw import Guard, Principal
guard = Guard.open({"tiers": {"default": {"budget": "$1/day", "requests": "9/day"}}})
before = set(sys.modules)
text = "The quick brown fox jumps over the lazy dog. " * 200
message = {"role": "user", "content": text}
with guard.call(Principal("alice"), model="gpt-4o", messages=[message]) as call:
    call.record({"prompt_tokens": 9, "completion_tokens": 3})
guard.close()
print("imported:", *set(sys.modules) - before)
"""

    assert run(script).splitlines()[-1] == "imported:"
