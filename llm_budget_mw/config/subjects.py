"""Limits of what principals share: a tenant, a feature, a model, a session, the deployment."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from llm_budget_mw.config.section import Name, repeated
from llm_budget_mw.config.tiers import LimitedConfig, Part

KNOWN = ("deployment", "tenant", "feature", "model")
"""What the package can tell by itself; anything else is read from a claim or a header."""
_RESERVED = ("user", "by")
_HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$"


class SubjectConfig(LimitedConfig):
    """Limits of one kind of subject, for each of them or for some."""

    of: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    """`deployment`, `tenant`, `feature`, `model`, or a word of one's own such as `team`."""
    only: tuple[Name, ...] = ()
    """The ones these limits are for; empty: each that no other table names."""
    claim: Name | None = None
    """Of a word of one's own: the claim of the credential that says which one."""
    header: Annotated[str, StringConstraints(pattern=_HEADER, to_lower=True)] | None = None
    """Of a word of one's own: the header that says which one, counted for each principal apart.
    It is the client's own word: such a limit can be evaded, and limits nobody else."""
    reserve: Part | None = None
    """Part of each limit that only urgent principals may use, such as `10%`."""
    per_principal: Part | None = None
    """Part of each limit one principal may use, so that nobody starves the others."""

    @model_validator(mode="after")
    def _can_be_told(self) -> Self:
        sources = [name for name in ("claim", "header") if getattr(self, name)]
        if self.of in _RESERVED:
            raise ValueError(f"of = {self.of!r} is a word of this package: choose another")
        if self.of in KNOWN and sources:
            raise ValueError(f"`{sources[0]}` is not needed: which {self.of} it is, is known")
        if self.of not in KNOWN and len(sources) != 1:
            raise ValueError(
                f"exactly one of `claim` and `header` has to say which {self.of} a call counts "
                f"for; without either, `of` is one of {', '.join(KNOWN)}"
            )
        if self.of == "deployment" and self.only:
            raise ValueError("`only` cannot be set: there is one deployment")
        return self

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.reserve == 1:
            raise ValueError("`reserve = 100%` leaves nothing to others: set less")
        if self.per_principal and self.header:
            raise ValueError(
                "`per_principal` cannot be set with `header`: it counts for one anyway"
            )
        return self


def check_subjects(tables: tuple[SubjectConfig, ...]) -> tuple[SubjectConfig, ...]:
    """Return the tables; raise `ValueError` where two are for the same subject."""
    places = [(table.of, name) for table in tables for name in table.only or (None,)]
    for kind, name in repeated(places):
        which = "each" if name is None else f"the one named {name!r}"
        raise ValueError(f"two tables are `of = {kind!r}` for {which}: make them one")
    sources = {(table.of, table.claim, table.header) for table in tables}
    for kind in repeated(of for of, _, _ in sources):
        raise ValueError(f"the tables `of = {kind!r}` differ in `claim` or `header`")
    return tables


Subjects = Annotated[tuple[SubjectConfig, ...], Field(max_length=32)]
