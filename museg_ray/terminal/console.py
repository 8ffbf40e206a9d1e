"""The console that every command prints with."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from museg_ray.shown_text import one_line, shown


class SafeConsole(Console):
    """A console that shows text as it is, whoever wrote it.

    Invariant: all that the package prints goes through one. Markup, emoji codes and control characters in a path or a
    response would else be obeyed. What is to have a colour is a `Text`, or is printed with a style.
    """

    def __init__(self, pipe_width: int | None = None, **settings: Any) -> None:
        """
        Args:
            pipe_width: where there is no terminal to ask; rich would take 80 and cut long tables.
            settings: of rich's console.
        """
        super().__init__(highlight=False, markup=False, emoji=False, **settings)
        if pipe_width is not None and not self.is_terminal:
            self.width = pipe_width

    def render_str(self, text: str, **look: Any) -> Text:
        """Before it is measured, so that tables stay straight, and before rich drops a part of what is escaped here."""
        return super().render_str(shown(text), **look)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What came as a `Text` too; rich's own commands, such as those that move the cursor, stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)

    def print_line(self, text: str, style: str = "") -> None:
        """One line whatever it holds and however long it is: a pipe has no width to break it at."""
        self.print(one_line(text), style=style, soft_wrap=True)


def make_table(words: Sequence[str] = (), numbers: Sequence[str] = (), **look: Any) -> Table:
    """A table in the look that all have: columns of words, then columns of numbers, none of which breaks a line.

    Args:
        words: headings.
        numbers: headings.
        look: further settings of rich's table.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title_justify="left", title_style="bold", **look)
    for heading in words:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, no_wrap=True, justify="right")
    return table


def print_json(value: Any) -> None:
    """One JSON object on standard output, with nothing but ASCII that can be seen: JSON has escapes for the rest."""
    print(json.dumps(value).replace("\x7f", "\\u007f"))  # DEL is the one that it does not use them for
