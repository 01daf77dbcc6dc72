"""Where the configuration comes from, and that nothing of it gets lost."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from llm_budget_mw.config import (
    Config,
    JWTConfig,
    ModelPriceConfig,
    StoreConfig,
    TierConfig,
    load,
)
from llm_budget_mw.errors import ConfigurationError

FULL = Path(__file__).with_name("full.toml")
SMALL: dict[str, Any] = {"tiers": {"default": {}}}
ISSUER = {"issuer": "https://a.example", "audience": "b", "algorithms": ["HS256"]}
KEY = "k" * 32


def sections(value: Any) -> Iterator[BaseModel]:
    """Walk through all sections inside a value."""
    if isinstance(value, BaseModel):
        yield value
        value = dict(value)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for part in value:
            yield from sections(part)


def test_the_full_example_sets_every_option() -> None:
    """Each option of each section is written in the full example, and differs from its default."""
    config = load(FULL)
    unset: dict[type[BaseModel], set[str]] = {}
    for section in sections(config):
        fresh = {name for name, field in type(section).model_fields.items()}
        changed = {
            name
            for name in section.model_fields_set
            if getattr(section, name) != type(section).model_fields[name].get_default()
        }
        unset.setdefault(type(section), fresh).difference_update(changed)

    assert {section.__name__: names for section, names in unset.items() if names} == {}


def test_every_option_round_trips() -> None:
    """What a configuration says of itself is read back as the same configuration."""
    config = load(FULL)

    assert load(config.model_dump()) == config


def test_values_arrive_as_written() -> None:
    """Plain options have the values of the file, under the names of the file."""
    config = load(FULL).model_dump(mode="json")
    for section in ("store", "outage", "refusals", "tokens"):
        assert config[section] == tomllib.loads(FULL.read_text())[section]


def test_short_forms_become_values() -> None:
    """Notations, percentages, prices, methods and header names have one form inside."""
    config = load(FULL)
    pro = config.tiers["pro"]

    assert [limit.limit for limit in config.tiers["default"].requests] == ["20/minute", "1000/day"]
    assert [offer.ceiling for offer in pro.offers] == [0.8, 1.0]
    assert pro.urgent == Decimal("1.5")
    assert config.prices.models["gpt-4o"].cache_write == Decimal("6.25")
    assert config.prices.unknown == ModelPriceConfig(input=Decimal(15), output=Decimal(75))
    assert config.routes[0].methods == ("POST", "PUT")
    assert config.jwt[0].headers == ("x-api-key",)


def test_one_issuer_needs_no_list() -> None:
    """A single table `jwt`, or a model, is an issuer like a list of one."""
    expected = load(SMALL, jwt=[{**ISSUER, "key": KEY}])

    assert load(SMALL, jwt={**ISSUER, "key": KEY}) == expected
    assert load(SMALL, jwt=expected.jwt[0]) == expected


@pytest.mark.parametrize("source", [FULL, str(FULL), tomllib.loads(FULL.read_text())])
def test_sources_are_equal(source: Path | str | Mapping[str, Any]) -> None:
    """A path, its text, and the mapping in the file give the same configuration."""
    assert load(source) == load(FULL)


def test_keyword_arguments_alone_suffice() -> None:
    """Without a source, what is passed is all there is."""
    config = load(tiers={"default": TierConfig(max_tokens=7)}, time_zone="Asia/Tokyo")

    assert config.tiers["default"].max_tokens == 7
    assert config.time_zone == "Asia/Tokyo"


def test_keyword_arguments_are_merged_into_tables() -> None:
    """An override of one option of a table leaves the others of it as they were."""
    config = load(FULL, store={"prefix": "other"}, tiers={"default": {"max_tokens": 5}})

    assert config.store == StoreConfig(**{**dict(load(FULL).store), "prefix": "other"})
    assert config.tiers["default"].requests == load(FULL).tiers["default"].requests
    assert config.tiers["default"].max_tokens == 5


def test_load_leaves_its_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging and the environment change nothing in the mapping that was passed."""
    monkeypatch.setenv("LLM_BUDGET_STORE_URL", "redis://env")
    source = {**SMALL, "store": {"prefix": "a"}}
    load(source, store={"lease_s": 9})

    assert source == {**SMALL, "store": {"prefix": "a"}}


def test_the_environment_is_stronger_than_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets come from the environment where it has them."""
    monkeypatch.setenv("LLM_BUDGET_STORE_URL", "rediss://env")
    monkeypatch.setenv("LLM_BUDGET_ID_SECRET", "sixteen or more characters")
    monkeypatch.setenv("LLM_BUDGET_JWT_KEY", KEY)
    file = {**SMALL, "store": {"url": "redis://file"}, "jwt": {**ISSUER, "key": "f" * 32}}
    config = load(file)

    assert config.store.url == "rediss://env"
    assert config.events.id_secret == SecretStr("sixteen or more characters")
    assert config.jwt[0].key == SecretStr(KEY)


def test_keyword_arguments_are_stronger_than_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the program passes is not overruled from outside, as table or as model."""
    monkeypatch.setenv("LLM_BUDGET_STORE_URL", "rediss://env")

    assert load(SMALL, store={"url": "redis://arg"}).store.url == "redis://arg"
    assert load(SMALL, store=StoreConfig(url="redis://arg")).store.url == "redis://arg"
    assert load(SMALL, store={"prefix": "a"}).store.url == "rediss://env"


def test_the_environment_reaches_into_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a mapping that holds finished models takes its secrets from the environment."""
    monkeypatch.setenv("LLM_BUDGET_STORE_URL", "rediss://env")
    config = load({**SMALL, "store": StoreConfig(prefix="mine")})

    assert config.store == StoreConfig(url="rediss://env", prefix="mine")


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass on unset variables as empty ones."""
    monkeypatch.setenv("LLM_BUDGET_STORE_URL", "")

    assert load(SMALL).store.url == "memory://"


@pytest.mark.parametrize(
    "issuers", [{}, {"jwt": []}, {"jwt": [{**ISSUER, "key": KEY}] * 2}, {"jwt": "x"}]
)
def test_a_key_without_its_issuer_is_refused(
    monkeypatch: pytest.MonkeyPatch, issuers: dict[str, Any]
) -> None:
    """A key in the environment that belongs to no single issuer is never ignored."""
    monkeypatch.setenv("LLM_BUDGET_JWT_KEY", KEY)

    with pytest.raises(ConfigurationError, match=r"LLM_BUDGET_JWT_KEY is set.*exactly one"):
        load(SMALL, **issuers)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param(b"[tiers\n", "is not a TOML file: .*line 1, column 7", id="syntax"),
        pytest.param(b"a = '\xff'", "is not a TOML file: .*utf-8", id="encoding"),
        pytest.param(b"a = 1\na = 2", "is not a TOML file: Cannot overwrite", id="repeated"),
    ],
)
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes, complaint: str) -> None:
    """A broken file is named, with the place where it breaks."""
    path = tmp_path / "broken.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=f"broken.toml {complaint}"):
        load(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, and a folder, are named with the reason."""
    with pytest.raises(ConfigurationError, match=r"missing\.toml cannot be read: No such file"):
        load(tmp_path / "missing.toml")
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load(tmp_path)
    with pytest.raises(ConfigurationError, match="null"):
        load("a\0b")


def test_a_configuration_never_changes() -> None:
    """Assigning to an option raises."""
    config: Any = load(SMALL)

    with pytest.raises(ValidationError, match="frozen"):
        config.time_zone = "Asia/Tokyo"


def test_secrets_are_not_printed() -> None:
    """No representation of a configuration shows a key or the address of the store."""
    secrets = ("0123456789abcdef", "a secret of some length", "swordfish")
    shown = repr(load(FULL, store={"url": "redis://:swordfish@host"}))

    assert [secret for secret in secrets if secret in shown] == []


def test_defaults_are_the_documented_ones() -> None:
    """A configuration of one empty tier counts in memory and guards nothing it was not told of."""
    config = load(SMALL)

    assert isinstance(config, Config)
    assert (config.store.url, config.store.deadline_ms, config.store.lease_s) == (
        "memory://", 100, 120,
    )  # fmt: skip
    assert (config.jwt, config.routes, config.prices.unknown) == ((), (), "refuse")
    assert config.tiers["default"].on_outage.model_dump() == {
        "requests": "open", "tokens": "open", "budget": "local", "concurrency": "open",
    }  # fmt: skip


def test_a_secret_may_be_in_a_file() -> None:
    """An algorithm with a shared secret takes it from a file as well."""
    issuer = {**ISSUER, "key_file": "secret.txt"}

    assert load(SMALL, jwt=issuer).jwt[0].key_file == Path("secret.txt")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]:8080"])
def test_plain_http_is_fine_on_this_machine(host: str) -> None:
    """Keys may come unencrypted over the loopback interface."""
    issuer = JWTConfig(issuer="a", audience="b", jwks_url=f"http://{host}/keys")

    assert load(SMALL, jwt=issuer).jwt == (issuer,)
