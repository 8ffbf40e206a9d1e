import io
import json

import pytest
from rich.table import Table
from rich.text import Text

from museg_ray.terminal.console import SafeConsole, print_json
from tests.hostile import ESCAPED, HOSTILE, SURROGATE, assert_harmless


def printed(*renderables: object, width: int = 200) -> str:
    console = SafeConsole(file=io.StringIO(), width=width)
    console.print(*renderables)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_string_a_cell_and_a_heading_are_shown_as_they_are() -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    assert_harmless(printed(HOSTILE + SURROGATE))
    assert printed(table).count(ESCAPED) == 3


def test_what_an_escape_needs_is_measured_so_that_tables_stay_straight() -> None:
    table = Table()
    table.add_row(HOSTILE, "a")
    table.add_row("b", "c")
    assert len({len(line) for line in printed(table).splitlines()}) == 1


def test_a_styled_text_that_nobody_escaped_is_harmless_too() -> None:
    text = printed(Text.assemble(("\x1b]0;owned\x9b\u202e", "bold"), SURROGATE))
    assert text == "\\x1b]0;owned\\x9b\\u202e\\udcff\n"


def test_a_line_is_one_line() -> None:
    console = SafeConsole(file=io.StringIO(), width=20)
    console.print_line("a\nerror: no such run " * 5)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == r"a\nerror: no such run " * 5 + "\n"


def test_json_keeps_the_true_text_in_ascii_that_can_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"question": HOSTILE + SURROGATE})
    text = capsys.readouterr().out
    assert text.strip().isascii() and text.strip().isprintable()
    assert json.loads(text) == {"question": HOSTILE + SURROGATE}
