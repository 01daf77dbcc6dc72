"""The table of the demo: every number in it was found, and compared with what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

Column = Literal["asked", "answer", "used", "charged", "remains", "held"]
COLUMNS: tuple[Column, ...] = ("asked", "answer", "used", "charged", "remains", "held")


class Line:
    """What became of one scene."""

    def __init__(self, number: int, title: str) -> None:
        self.number = number
        self.title = title
        self.problems: list[str] = []
        self.ended = False
        self._cells: dict[Column, str] = {}

    def tell(self, column: Column, text: str) -> None:
        """Fill a cell with what is no result."""
        self._cells[column] = text

    def check(self, column: Column, text: str, **numbers: tuple[object, object]) -> None:
        """Fill a cell with a text around numbers; each is a pair of found and expected."""
        found = text.format(**{name: pair[0] for name, pair in numbers.items()})
        self._cells[column] = found
        if any(pair[0] != pair[1] for pair in numbers.values()):
            expected = text.format(**{name: pair[1] for name, pair in numbers.items()})
            self.problems.append(f"{column}: expected '{expected}', found '{found}'")

    @property
    def as_expected(self) -> bool:
        """True once the scene has ended without a problem."""
        return self.ended and not self.problems

    @property
    def cells(self) -> list[str]:
        """The line of the table: number, title, one text for each column, verdict."""
        texts = [self._cells.get(column, "") for column in COLUMNS]
        return [str(self.number), self.title, *texts, self.verdict]

    @property
    def plain(self) -> str:
        """The line as text."""
        cells = [f"{column}: {self._cells[column]}" for column in COLUMNS if column in self._cells]
        return "; ".join([f"{self.number} {self.title}", *cells, self.verdict])

    @property
    def verdict(self) -> str:
        """The last word on the scene, as soon as there is one."""
        if not self.ended:
            return ""
        return "FAILED" if self.problems else "ok"

    @property
    def style(self) -> str:
        """The colour of the line."""
        if self.problems:
            return "red"
        return "" if self.ended else "dim"


class Board:
    """All lines; on a terminal a table that changes, elsewhere plain lines as they end."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines = list(lines)
        self._console = Console()
        self._live = Live(get_renderable=self._table, console=self._console)

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def ended(self, line: Line) -> None:
        """Note the end of a scene."""
        line.ended = True
        if not self._console.is_terminal:
            print(line.plain, flush=True)
            for problem in line.problems:
                print(f"    {problem}", flush=True)

    @property
    def summary(self) -> str:
        """The last line of the demo."""
        good = sum(line.as_expected for line in self.lines)
        return f"{good} of {len(self.lines)} scenes as expected"

    def _table(self) -> Group:
        table = Table("", "scene", *COLUMNS, "", box=box.SIMPLE_HEAD, title="llm-budget-mw")
        for line in self.lines:
            table.add_row(*line.cells, style=line.style)
        problems = [
            Text(f"scene {line.number}: {problem}", style="red")
            for line in self.lines
            for problem in line.problems
        ]
        return Group(table, *problems)
