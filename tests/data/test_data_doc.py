"""What docs/data.md shows is what the code does."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from museg_ray.cli.main import app
from museg_ray.data.importers import IMPORTERS
from museg_ray.data.rules import RULES
from museg_ray.data.schema import QUARANTINE_SCHEMA, QUERY_SCHEMA

DOC = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def rows_of(section: str) -> list[list[str]]:
    """The cells of a section's tables, without code marks."""
    text = DOC.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line.replace("\\|", "/") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]


def test_the_rules_are_those_of_the_code() -> None:
    expected = [[name, rule.default.value, rule.meaning, rule.repair] for name, rule in RULES.items()]
    assert rows_of("Rules") == expected


def test_every_format_and_every_column_is_told() -> None:
    assert {row[0] for row in rows_of("Formats")} == set(IMPORTERS)
    assert [row[0] for row in rows_of("Columns")] == [*QUERY_SCHEMA.names, *QUARANTINE_SCHEMA.names]


def test_the_shown_commands_print_that(shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = shared_dir / "data" / "annotations"
    if not (annotations / "stage_1.jsonl").is_file():
        pytest.skip("the released annotations are not there")
    for name in ("stage_1.jsonl", "stage_2.jsonl"):
        (tmp_path / name).symlink_to(annotations / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```\n(.*?)\n```", DOC, re.DOTALL)[:4]
    for command, printed in zip(blocks[::2], blocks[1::2], strict=True):
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        output = result.output.replace(str(tmp_path), "/datasets/museg")
        assert [line.rstrip() for line in output.strip().splitlines()] == printed.splitlines()
