"""`manage.py llm_budget_limits`: what a principal may use, and what it has used."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from llm_budget_mw.errors import StoreError
from llm_budget_mw.statement import as_json, as_table
from llm_budget_mw.types import Principal
from llm_budget_mw_django.settings import get_guard

_STORE_AWAY = 2


class Command(BaseCommand):
    """Prints limits; ends with 2 if the store does not answer."""

    help = "Print every limit of a principal as it stands now. Nothing is reserved."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add what says whose limits."""
        parser.add_argument("principal", help="such as the subject of a credential")
        parser.add_argument("--tenant", help="the tenant the principal belongs to")
        parser.add_argument("--tier", help="the tier in its credential; without it, `default`")
        parser.add_argument(
            "--json", action="store_true", help="print JSON; money in dollars, as text"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the limits."""
        guard = get_guard()
        tier = options["tier"]
        if tier is not None and tier not in guard.config.tiers:
            self.stderr.write(f"There is no tier {tier!r}: these are the limits of `default`.")
        principal = Principal(options["principal"], tenant=options["tenant"], tier=tier)
        try:
            statuses = guard.limits(principal)
        except StoreError as error:
            raise CommandError(
                f"the store does not answer: {error}", returncode=_STORE_AWAY
            ) from error
        written = as_json if options["json"] else as_table
        self.stdout.write(written(statuses, guard.store.now_ms()))
