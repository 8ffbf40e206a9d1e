"""The console that every command prints with."""

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from museg_ray.shown_text import one_line, shown


class SafeConsole(Console):
    """A console that shows text as it is, whoever wrote it.

    Invariant: all that the package prints goes through one. Markup, emoji codes and control characters in a path or a
    response would else be obeyed. What is to have a colour is a `Text`, or is printed with a style.
    """

    def __init__(self, **settings: Any) -> None:
        """
        Args:
            settings: of rich's console.
        """
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

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


def print_json(value: Any) -> None:
    """One JSON object on standard output, with nothing but ASCII that can be seen: JSON has escapes for the rest."""
    print(json.dumps(value).replace("\x7f", "\\u007f"))  # DEL is the one that it does not use them for
