"""`flask llm-budget limits`: what a principal may use, and what it has used."""

from __future__ import annotations

import click
from flask import current_app
from flask.cli import AppGroup

from llm_budget_mw import statement
from llm_budget_mw.errors import StoreError
from llm_budget_mw.guard import Guard
from llm_budget_mw.types import Principal

commands = AppGroup("llm-budget", help="Budgets for calls to language models.")


class StoreAwayError(click.ClickException):
    """The store did not answer."""

    exit_code = 2


@commands.command("limits")
@click.argument("principal")
@click.option("--tenant", help="The tenant the principal belongs to.")
@click.option("--tier", help="The tier in its credential; without it, `default`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; money in dollars, as text.")
def limits(principal: str, tenant: str | None, tier: str | None, as_json: bool) -> None:
    """Print every limit of PRINCIPAL as it stands now. Nothing is reserved."""
    guard: Guard = current_app.extensions["llm_budget"].guard
    if tier is not None and tier not in guard.config.tiers:
        click.echo(f"There is no tier {tier!r}: these are the limits of `default`.", err=True)
    if guard.config.store.url.startswith("memory:"):
        click.echo("The store is the memory of each process: others are not seen.", err=True)
    try:
        statuses = guard.limits(Principal(principal, tenant=tenant, tier=tier))
    except StoreError as error:
        raise StoreAwayError(f"the store does not answer: {error}") from error
    written = statement.as_json if as_json else statement.as_table
    click.echo(written(statuses, guard.store.now_ms()))
