"""What a benchmark found: a table for the eye, and the same as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rich.text import Text

from museg_ray.terminal.console import SafeConsole, make_table

Row = dict[str, str | float]
"""Column -> value."""
Tell = Callable[[str], None]
"""Is told what is being done."""


@dataclass(frozen=True, slots=True)
class Target:
    """A number to reach."""

    name: str
    value: float
    target: float
    met: bool


def at_most(name: str, value: float, target: float) -> Target:
    return Target(name, value, target, value <= target)


def at_least(name: str, value: float, target: float) -> Target:
    return Target(name, value, target, value >= target)


def compared(what: str, case: str, value: float, against: float, unit: str = "ms") -> Row:
    """`what` reads `this / that`: the value of this and of that, and their ratio. `unit` heads the values' column."""
    return {"measured": what, "case": case, unit: value, "against": against, "ratio": value / against}


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One benchmark's rows, with the same columns in all, and what it was to reach."""

    bench: str
    rows: tuple[Row, ...]
    targets: tuple[Target, ...]

    def as_json(self) -> str:
        """The object that `--json` writes."""
        content = {"bench": self.bench, "rows": list(self.rows), "targets": [asdict(target) for target in self.targets]}
        return json.dumps(content, indent=2) + "\n"

    def print(self, console: SafeConsole) -> None:
        table = make_table()
        for column, value in self.rows[0].items():
            table.add_column(column, justify="left" if isinstance(value, str) else "right")
        for row in self.rows:
            table.add_row(*(value if isinstance(value, str) else _number(value) for value in row.values()))
        console.print(table)
        for target in self.targets:
            mark = Text("met   ", "green") if target.met else Text("missed", "bold red")
            console.print(mark, f"{target.name}: {_number(target.value)} (target {_number(target.target)})")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
