"""What all processes of one run are told, and the budgets they share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_budget_mw.testing import Issuer
from tests.chaos.asking import MODEL
from tests.chaos.provider import PRICES

LEASE_S = 5
"""The least there is, so that expiry can be seen."""
LOCAL_SHARE = 0.1
ROUTE = "/v1/chat/completions"
# In a window this long nothing rolls over, so that sums over a whole run can be compared.
_TIERS: dict[str, dict[str, Any]] = {
    "strict": {"budget": "$0.04/year", "tokens": "9000/year", "concurrency": 6},
    "counted": {"requests": "120/year", "budget": "$1/year", "concurrency": 12},
    "local": {"budget": "$0.04/year", "tokens": "16000/year"},
}
_RULES = {"strict": "closed", "counted": "closed", "local": "local"}


@dataclass(frozen=True)
class Settings:
    """One run, as every process of it reads it from a file."""

    folder: str
    """Where journals are written."""
    provider: str
    """Base URL."""
    config: dict[str, Any]
    """Of the middleware and of the guards."""
    seed: int
    began_at: float
    """In seconds of the Unix epoch."""

    def write(self, path: Path) -> Path:
        """Write it to a file; return that."""
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))

    def journal(self, name: str) -> Path:
        """Return where a process of this name writes."""
        return Path(self.folder) / f"{name}.jsonl"


def configuration(store_url: str, issuer: Issuer) -> dict[str, Any]:
    """Return the configuration of a run whose store is at this address."""
    sent, made = PRICES[MODEL]
    rule = {name: _on_outage(name) for name in _TIERS}
    tiers = {name: {**tier, **rule[name], "max_tokens": 64} for name, tier in _TIERS.items()}
    return {
        "tiers": {**tiers, "default": {"requests": "1/year"}},
        "jwt": issuer.config(),
        "store": {"url": store_url, "deadline_ms": 250, "lease_s": LEASE_S},
        "outage": {"failures": 3, "open_s": 0.3, "max_open_s": 1.0},
        "prices": {"catalogue": False, "models": {MODEL: {"input": sent, "output": made}}},
        "events": {"principal": "plain", "log": False, "metrics": False, "span": False},
        "routes": [{"path": ROUTE, "dialect": "openai_chat"}],
    }


def _on_outage(tier: str) -> dict[str, Any]:
    kinds = ("requests", "tokens", "budget", "concurrency")
    return {"on_outage": dict.fromkeys(kinds, _RULES[tier]), "local_share": LOCAL_SHARE}
