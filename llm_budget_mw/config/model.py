"""The configuration of a whole deployment; read it with `load`, which explains what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SecretStr,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)

from llm_budget_mw.config.alerts import AlertsConfig
from llm_budget_mw.config.prices import PricesConfig, TokensConfig
from llm_budget_mw.config.section import (
    Address,
    Count,
    Filled,
    Flag,
    Name,
    Pattern,
    Seconds,
    Section,
    Size,
    Whole,
    Zone,
    repeated,
)
from llm_budget_mw.config.subjects import Subjects, check_subjects
from llm_budget_mw.config.tiers import LimitedConfig, TierConfig

STORE_SCHEMES = (
    "memory://",
    "redis://",
    "rediss://",
    "unix://",
    "redis+sentinel://",
    "rediss+sentinel://",
    "redis+cluster://",
    "rediss+cluster://",
)
DIALECTS = (
    "openai_chat",
    "openai_compatible",
    "openai_responses",
    "openai_completions",
    "openai_embeddings",
    "anthropic_messages",
    "gemini",
    "bedrock",
    "bedrock_invoke",
    "cohere",
    "ollama",
    "custom",
)
_FITTED = ("openai_chat", "openai_compatible", "anthropic_messages")
"""Dialects whose conversation is a list of `messages`."""
_UNSTREAMED = ("custom", "openai_embeddings")
# RFC 7518 section 3.2: a key has at least the size of the hash.
_HMAC_KEY_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
_MIN_SECRET = 16
_HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$"

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512",
    "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
]  # fmt: skip


class StoreConfig(Section):
    """Where the counters are."""

    url: Annotated[str, Field(repr=False)] = "memory://"
    """`memory://` counts in this process alone; Redis and Valkey count for all."""
    prefix: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,32}$")] = "llmb"
    """Beginning of every key."""
    deadline_ms: Annotated[Whole, Field(ge=1, le=60_000)] = 100
    """A command that has not answered by then counts as an outage."""
    lease_s: Annotated[Whole, Field(ge=5, le=3600)] = 120
    """How long a reservation lives that nobody settles or renews."""
    charge_on_expiry: Flag = True
    """Whether such a reservation is charged, or given back."""
    max_connections: Count = 64
    """More commands than this at once wait for each other."""

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if not value.startswith(STORE_SCHEMES):
            raise ValueError(f"should begin with {_words(STORE_SCHEMES)}")
        return value


def _how_many(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


class JWTConfig(Section):
    """An issuer whose tokens are accepted, and what their claims mean here."""

    algorithms: Filled[Algorithm] = ("RS256",)
    issuer: Name
    audience: Annotated[
        Annotated[Name, Tag("one")] | Annotated[Filled[Name], Tag("several")],
        Discriminator(_how_many),
    ]
    """A token is accepted if it names one of them."""
    key: SecretStr | None = None
    """A shared secret, or a public key in PEM. Better: `LLM_BUDGET_JWT_KEY`."""
    key_file: Path | None = None
    jwks_url: Address | None = None
    scope: Name | None = None
    """A scope every token must have; None: any."""
    scope_claims: tuple[Name, ...] = ("scope", "scp")
    leeway_s: Annotated[Whole, Field(ge=0, le=60)] = 30
    typ: Name | None = None
    """The `typ` header a token must have, such as `at+jwt`; None: any."""
    max_token_bytes: Count = 16_384
    principal_claim: Name = "sub"
    tenant_claim: Name | None = None
    tier_claim: Name | None = None
    urgent_claim: Name | None = None
    urgent_values: tuple[Name, ...] = ("true",)
    """Values of `urgent_claim` that make a principal urgent."""
    jwks_timeout_s: Seconds = 2.0
    jwks_max_age_s: Count = 3600
    """Keys older than this are fetched again."""
    jwks_stale_s: Size = 86_400
    """For how long after that they still serve while the issuer does not answer."""
    jwks_cooldown_s: Size = 30
    """An unknown key id leads to no more than one fetch in this time."""
    headers: tuple[Annotated[str, StringConstraints(pattern=_HEADER, to_lower=True)], ...] = ()
    """Headers beside `Authorization` that may hold the credential, such as `x-api-key`."""

    @model_validator(mode="after")
    def _one_key_source(self) -> Self:
        given = [name for name in ("key", "key_file", "jwks_url") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "exactly one of `key`, `key_file` and `jwks_url` is needed, "
                f"found {_words(given) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _key_suits_algorithms(self) -> Self:
        shared = [name for name in self.algorithms if name in _HMAC_KEY_BYTES]
        if not shared:
            return self
        # A public key must never be usable as the secret of another algorithm.
        if len(shared) < len(self.algorithms):
            raise ValueError(f"{_words(shared)} cannot be mixed with algorithms of public keys")
        if self.jwks_url is not None:
            raise ValueError(f"{shared[0]} needs a secret: `key` or `key_file`, not `jwks_url`")
        if self.key is not None:
            self._check_secret(self.key.get_secret_value(), shared)
        return self

    def _check_secret(self, secret: str, algorithms: Sequence[str]) -> None:
        least = max(_HMAC_KEY_BYTES[name] for name in algorithms)
        if len(secret.encode()) < least:
            raise ValueError(f"`key` is too short for {_words(algorithms)}: {least} bytes or more")
        if "-----BEGIN" in secret:
            raise ValueError(f"`key` is a public key or certificate, no secret for {algorithms[0]}")


def _is_absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("should begin with `/`")
    return path


class RouteConfig(Section):
    """Which requests are guarded, and what their bodies are."""

    path: Annotated[Pattern, AfterValidator(_is_absolute)]
    """A path, exact or as a prefix ending in `*`."""
    methods: Filled[Annotated[str, StringConstraints(pattern="^[A-Za-z]+$", to_upper=True)]] = (
        "POST",
    )
    dialect: str | None = None
    """The wire format: `openai_chat`, `anthropic_messages`, or `custom` for a body of one's own.
    None, below a prefix: what the path of each request tells."""
    unknown_route: Literal["refuse", "custom", "pass"] = "refuse"
    """Of a route without a dialect: what becomes of requests whose path tells none."""
    feature: Name | None = None
    """What the route is for, in events."""
    model: Name | None = None
    """Of a custom route: the model it calls; None: the first offer of the tier."""
    input_tokens: Size = 0
    """Of a custom route: an upper bound on the input of its call."""
    max_tokens: Count | None = None
    """Of a custom route: most output of its call; None: what the tier says."""
    fit_messages: Flag = False
    """Whether a call whose input is too long for a limit loses its oldest messages instead."""
    cache_prompt: Flag = False
    """Whether to have Anthropic cache system prompts and tools that are long enough."""
    hold: Literal["full", "elastic"] = "full"
    """Of streams: whether all output a call may have is reserved, or what is expected of it,
    which grows with the stream."""

    @field_validator("dialect")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in DIALECTS:
            raise ValueError(f"should be {_words(DIALECTS)}")
        return value

    @model_validator(mode="after")
    def _dialect_can_be_told(self) -> Self:
        if self.dialect is None and not self.path.endswith("*"):
            raise ValueError(
                f"`dialect` is required with the exact path {self.path!r}: name it, or write "
                "a prefix ending in `*` to have it told from the path of each request"
            )
        if self.dialect is not None and self.unknown_route != "refuse":
            raise ValueError(
                f"`unknown_route = {self.unknown_route!r}` can be set without `dialect` only; "
                f"with {self.dialect!r} no path is unknown: leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _fits_what_it_can(self) -> Self:
        if self.fit_messages and self.dialect not in _FITTED:
            raise ValueError(
                f"fit_messages can be set with the dialects {_words(_FITTED)} only, "
                f"not {self.dialect!r}"
            )
        return self

    @model_validator(mode="after")
    def _holds_what_streams(self) -> Self:
        if self.hold == "elastic" and self.dialect in _UNSTREAMED:
            raise ValueError(
                f"`hold = 'elastic'` cannot be set with dialect {self.dialect!r}, which has no "
                "streams that could be read: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _estimates_where_needed(self) -> Self:
        given = [name for name in ("model", "input_tokens", "max_tokens") if getattr(self, name)]
        if given and self.dialect is None and self.unknown_route != "custom":
            raise ValueError(
                f"{_words(given)} can be set with dialect 'custom' or `unknown_route = 'custom'` "
                "only; the dialects told from paths read it from the request"
            )
        if given and self.dialect not in ("custom", None):
            raise ValueError(
                f"{_words(given)} can be set with dialect 'custom' only; "
                f"{self.dialect!r} reads it from the request"
            )
        return self

    @model_validator(mode="after")
    def _caches_where_possible(self) -> Self:
        if self.cache_prompt and self.dialect not in ("anthropic_messages", None):
            raise ValueError(
                "`cache_prompt = true` can be set with dialect 'anthropic_messages' only; "
                f"with {self.dialect!r} leave it out"
            )
        return self


class RefusalsConfig(Section):
    """How a refusal looks to a client."""

    budget_status: Literal[402, 403, 422, 429] = 429
    """A budget is used up."""
    rate_status: Literal[402, 403, 422, 429] = 429
    """Another limit is used up, or busy."""
    never_status: Literal[400, 413, 422] = 413
    """The request is larger than a whole limit."""
    stopped_status: Literal[402, 403, 429, 503] = 403
    """An operator has stopped such calls."""
    store_status: Literal[429, 500, 502, 503] = 503
    """The store does not answer, and a limit is `closed`."""
    retryable_s: Size = 60
    """A longer wait is answered with `x-should-retry: false`."""
    upgrade_hint: Annotated[Name, Field(max_length=1000)] | None = None
    """A sentence added where a larger tier would have helped."""


class EventsConfig(Section):
    """What is told about each call, and to whom."""

    principal: Literal["pseudonym", "plain", "none"] = "pseudonym"
    """How events name the principal."""
    id_secret: SecretStr | None = None
    """Key of the pseudonyms (better: `LLM_BUDGET_ID_SECRET`). None: a random one, so that
    pseudonyms differ between processes and change at every start."""
    log: Flag = True
    metrics: Flag = True
    span: Flag = True
    """Whether the current trace span gets the numbers of the call."""

    @field_validator("id_secret")
    @classmethod
    def _is_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _MIN_SECRET:
            raise ValueError(f"should have at least {_MIN_SECRET} characters, or it can be guessed")
        return value


class OutageConfig(Section):
    """When the store counts as gone, and when it is asked again."""

    failures: Count = 5
    """Failures in a row after which it is no longer asked."""
    open_s: Seconds = 1.0
    """For how long, the first time; it doubles with every failed attempt."""
    max_open_s: Seconds = 5.0
    queue: Size = 10_000
    """Settlements kept until it is back."""
    processes: Annotated[Whole, Field(ge=1, le=1000)] = 4
    """Slots into which the `local_share` of each limit is divided; a process without one admits
    nothing of `local` limits."""
    local_s: Annotated[Whole, Field(ge=1, le=86_400)] = 600
    """For how long after the store's last word a process may go on with its slot."""
    drain_s: Seconds = 5.0
    """How long the end of a process waits for settlements to be delivered."""
    spool: Path | None = None
    """Directory for settlements that outlive their process; None: they are lost with it."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.open_s > self.max_open_s:
            raise ValueError(f"open_s {self.open_s} is above max_open_s {self.max_open_s}")
        return self


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | JWTConfig) else value


def _has_default(tiers: dict[str, TierConfig]) -> dict[str, TierConfig]:
    if "default" not in tiers:
        raise ValueError("should have a tier named `default`, for principals without another")
    return tiers


class TasksConfig(Section):
    """Where a call says what it is for, which chooses among the `tasks` of its tier."""

    claim: Name | None = None
    """A claim of the credential; it counts before the header."""
    header: Annotated[str, StringConstraints(pattern=_HEADER, to_lower=True)] | None = None
    """A header of the request, such as `x-task`: the client's own word."""


class Config(Section):
    """The whole configuration."""

    tiers: Annotated[dict[Name, TierConfig], AfterValidator(_has_default)]
    store: StoreConfig = Field(default_factory=StoreConfig)
    jwt: Annotated[
        tuple[JWTConfig, ...],
        BeforeValidator(_listed, json_schema_input_type=JWTConfig | list[JWTConfig]),
    ] = ()
    """Accepted issuers; empty: the application passes an authenticator of its own."""
    routes: tuple[RouteConfig, ...] = ()
    limits: Annotated[Subjects, AfterValidator(check_subjects)] = ()
    """Limits of what principals share, beside those of their tiers."""
    mode: Literal["enforce", "shadow"] = "enforce"
    """`shadow`: every limit only counts, and events tell what it would have refused."""
    tasks: TasksConfig = Field(default_factory=TasksConfig)
    prices: PricesConfig = Field(default_factory=PricesConfig)
    tokens: TokensConfig = Field(default_factory=TokensConfig)
    refusals: RefusalsConfig = Field(default_factory=RefusalsConfig)
    events: EventsConfig = Field(default_factory=EventsConfig)
    outage: OutageConfig = Field(default_factory=OutageConfig)
    alerts: AlertsConfig | None = None
    """None: nobody is told of thresholds."""
    limits_path: Annotated[str, StringConstraints(pattern=r"^/[^*?#]{0,199}$")] | None = None
    """Where callers are told of their own limits, such as `/budget`; None: nowhere."""
    max_body_bytes: Count = 10 * 1024 * 1024
    """A request with a larger body is refused unread."""
    time_zone: Zone = "UTC"
    """Of calendar windows that name none."""

    @field_validator("routes")
    @classmethod
    def _paths_differ(cls, value: tuple[RouteConfig, ...]) -> tuple[RouteConfig, ...]:
        for path in repeated(route.path for route in value):
            raise ValueError(f"two routes have the path {path!r}: one is enough")
        return value

    @model_validator(mode="after")
    def _limits_path_is_free(self) -> Self:
        if self.limits_path in {route.path for route in self.routes}:
            raise ValueError(
                f"limits_path {self.limits_path!r} is the path of a route: give it one of its own"
            )
        return self

    @model_validator(mode="after")
    def _base_tokens_have_a_price(self) -> Self:
        tables: list[tuple[str, LimitedConfig]] = [
            *((f"of tier {name!r}", tier) for name, tier in self.tiers.items()),
            *((f"in `limits` of {table.of!r}", table) for table in self.limits),
        ]
        for place, table in tables:
            measures = {limit.rate.measure for limit in table.budget}
            if "base_tokens" in measures and self.prices.reference_model is None:
                raise ValueError(
                    f"a budget {place} is in base tokens: set `prices.reference_model` "
                    "to the model whose input token is one"
                )
        return self


def _words(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
