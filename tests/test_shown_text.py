import ast
import sys
import unicodedata
from pathlib import Path

from museg_ray.shown_text import one_line, shown
from tests.hostile import ESCAPED, HOSTILE, SURROGATE, UNSEEN

PACKAGE = Path(__file__).resolve().parents[1] / "museg_ray"
MAY_PRINT = {"terminal/console.py", "bench/apart.py"}
"""The console; and two processes of benchmarks whose standard output another process reads."""
PRINTS = {"print", "typer.echo", "sys.stdout.write", "sys.stderr.write", "Text.from_markup"}
OF_RICH = {"Console", "get_console", "render"}
VISIBLE_FORMATS = ("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN")
"""Of category Cf, but signs of their scripts that are seen."""


def test_every_character_that_is_a_command_or_is_not_seen_is_an_escape() -> None:
    unseen = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in UNSEEN]
    unseen = [c for c in unseen if c == "\u061c" or not unicodedata.name(c, "").startswith(VISIBLE_FORMATS)]
    escaped = one_line("".join(unseen))
    assert escaped.isascii() and escaped.isprintable()
    assert one_line(HOSTILE + SURROGATE) == ESCAPED + r"\udcff"


def test_what_is_seen_stays_as_it_is() -> None:
    text = "Wann fällt „es“ um? 何時 → 3.5 s, \\x1b, 🐞, e\u0301"
    assert shown(text) == one_line(text) == text


def test_ends_of_lines_and_tabs_stay_only_where_a_place_has_several_lines() -> None:
    assert shown("a\n\tb\r") == "a\n\tb\\r"
    assert one_line("a\n\tb") == r"a\n\tb"


def test_the_package_prints_through_the_safe_console_alone() -> None:
    """A rich console of one's own, or a bare print, would send foreign text to the terminal as it is."""
    past = []
    for file in PACKAGE.rglob("*.py"):
        place = str(file.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            prints = isinstance(node, ast.Call) and ast.unparse(node.func) in PRINTS
            imports = isinstance(node, ast.ImportFrom) and any(alias.name in OF_RICH for alias in node.names)
            if place not in MAY_PRINT and (prints or imports):
                past.append(f"{place}:{node.lineno}")
    assert not past
