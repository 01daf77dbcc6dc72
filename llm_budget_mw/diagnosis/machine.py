"""What is wrong with a machine and with what the configuration expects of it; no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llm_budget_mw.config import Config
from llm_budget_mw.diagnosis.facts import MachineFacts, PriceFacts
from llm_budget_mw.diagnosis.finding import Finding, Severity
from llm_budget_mw.diagnosis.processes import EACH_PROCESS, several_processes

_OLD_DAYS, _VERY_OLD_DAYS = 90, 180
_FEW_CHARACTERS = 10
_GUESSABLE = ("secret", "password", "changeme", "example", "test", "1234")


def processes(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what several processes need and do not have."""
    several = several_processes(environ)
    if config.store.url.startswith("memory:"):
        yield _memory(config.store.url, several)
    if config.events.principal == "pseudonym" and config.events.id_secret is None:
        yield Finding(
            "events.id_secret",
            Severity.WARNING if several else Severity.NOTE,
            "no events.id_secret: a principal has another pseudonym in each process"
            + (f" ({several})" if several else "")
            + " and after each start",
            "set LLM_BUDGET_ID_SECRET to the same random text everywhere",
        )


def _memory(url: str, several: str | None) -> Finding:
    if url == EACH_PROCESS:
        seen = "each process counts by itself, as store.url says"
        return Finding("store.memory_only", Severity.NOTE, seen)
    seen = "limits hold in one process and are forgotten with it"
    return Finding(
        "store.memory_only",
        Severity.DANGER if several else Severity.WARNING,
        f"store.url is {url}: {seen}" + (f", and {several} starts several" if several else ""),
        f"name a Redis or Valkey, or write {EACH_PROCESS!r}",
    )


def prices(facts: PriceFacts) -> Iterator[Finding]:
    """Yield how old the prices are."""
    if facts.dated is None:
        yield Finding("prices.age", Severity.OK, f"prices are {facts.version}")
        return
    days = (facts.today - facts.dated).days
    seen = f"prices of {facts.version}; the newest with a date is {days} days old"
    if days <= _OLD_DAYS:
        yield Finding("prices.age", Severity.OK, seen)
    else:
        yield Finding(
            "prices.age",
            Severity.WARNING if days > _VERY_OLD_DAYS else Severity.NOTE,
            f"{seen}: newer models have no price, changed ones a wrong one",
            "install a newer genai-prices, or say prices in prices.models",
        )


def tokenizer(config: Config, facts: MachineFacts) -> Iterator[Finding]:
    """Yield whether input can be counted."""
    if not config.tokens.exact:
        yield Finding(
            "tokens.vocabulary",
            Severity.NOTE,
            "tokens.exact is false: input counts a token for each byte, some four times too high",
        )
    elif facts.tokenizer:
        yield Finding("tokens.vocabulary", Severity.OK, "a tokenizer is at hand")
    elif config.tokens.download:
        yield Finding(
            "tokens.vocabulary",
            Severity.NOTE,
            "no vocabulary is on this machine: the application fetches it when it starts",
            "put it into the image, see docs/operations.md",
        )
    else:
        yield Finding(
            "tokens.vocabulary",
            Severity.WARNING,
            "no vocabulary is on this machine: input counts a token for each byte, some four "
            "times too high",
            "install llm-budget-mw[fast-tokens], or see docs/operations.md",
        )


def keys(facts: MachineFacts) -> Iterator[Finding]:
    """Yield whether credentials can be verified, and not be forged."""
    if facts.key_problem:
        remedy = "correct the [jwt] table"
        yield Finding("jwt.key", Severity.DANGER, facts.key_problem, remedy)
    for issuer, secret in facts.secrets.items():
        if weakness := _weakness(secret):
            yield Finding(
                "jwt.key",
                Severity.DANGER,
                f"the shared secret of {issuer} {weakness}: whoever guesses it can be anybody",
                "make one with `openssl rand -base64 48`",
            )
    for url, problem in facts.key_servers.items():
        if problem:
            yield Finding(
                "jwt.key_server",
                Severity.DANGER,
                f"no keys from {url}: {problem}",
                "correct jwks_url, or let this machine reach it; until then nobody gets in",
            )
        else:
            yield Finding("jwt.key_server", Severity.OK, f"{url} has keys")


def _weakness(secret: str) -> str:
    if len(set(secret)) < _FEW_CHARACTERS:
        return "has few different characters"
    lower = secret.lower()
    # Random text of the length that is needed has none of these words but by a rare chance.
    found = next((word for word in _GUESSABLE if word in lower), None)
    return f"contains {found!r}" if found else ""
