"""When somebody is told how far a limit is used, and over which way."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from llm_budget_mw.config.notation import parse_threshold
from llm_budget_mw.config.section import Address, Flag, Real, Section, Usd, repeated

_MOST = 8
_MIN_SECRET = 16
_GRAPHIC = re.compile("[!-~]{1,2000}")

Threshold = Annotated[float, BeforeValidator(parse_threshold, json_schema_input_type=float | str)]


def _in_order(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) > _MOST:
        raise ValueError(f"should be at most {_MOST} thresholds, not {len(values)}")
    for twice in repeated(map(str, values)):
        raise ValueError(f"should differ: {twice} is there twice")
    return tuple(sorted(values))


def _is_bare(value: str) -> str:
    url = urlsplit(value)
    # Neither would be sent; what cannot be sent is found out at the start.
    if "@" in url.netloc or url.fragment:
        raise ValueError("should have no user, password or fragment in it")
    if not _GRAPHIC.fullmatch(value) or url.port == 0:
        raise ValueError("should be an address in ASCII, without blanks, and a port above 0")
    return value


Receiver = Annotated[Address, AfterValidator(_is_bare)]


class AlertsConfig(Section):
    """What is told of limits that are being used up, beside the events of each call."""

    thresholds: Annotated[tuple[Threshold, ...], AfterValidator(_in_order)] = (0.5, 0.8, 1.0, 1.2)
    """Parts of a limit, such as `80%` or `1.2`; each is told once in a window."""
    webhook: Annotated[Receiver | None, Field(repr=False)] = None
    """Where alerts are sent as JSON; None: only to the other sinks of events."""
    webhook_secret: SecretStr | None = None
    """Signs what is sent (better: `LLM_BUDGET_WEBHOOK_SECRET`)."""
    anomaly: Flag = False
    """Whether to tell of limits in money that are used up unusually fast."""
    anomaly_factor: Annotated[Real, Field(gt=0, le=1000)] = 1.0
    """Unusual is to spend, within minutes, this many times what is usual in a day."""
    anomaly_min_usd: Usd = Decimal(1)
    """Less than this is never unusual."""

    @model_validator(mode="after")
    def _is_signed(self) -> Self:
        secret = self.webhook_secret
        if secret is None and self.webhook is not None:
            raise ValueError(
                "`webhook` needs a `webhook_secret`, so that its receiver knows who sends: "
                "set the variable LLM_BUDGET_WEBHOOK_SECRET"
            )
        if secret is not None and len(secret.get_secret_value()) < _MIN_SECRET:
            raise ValueError(
                f"`webhook_secret` should have at least {_MIN_SECRET} characters, "
                "or it can be guessed"
            )
        return self
