"""`museg bench rewards` in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 240


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, object]]:
    """What one short round prints, and the JSON it writes."""
    file = tmp_path_factory.mktemp("bench") / "rewards.json"
    command = [str(Path(sys.executable).with_name("museg")), "bench", "rewards", "--rounds", "1", "--json", str(file)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert printed.returncode == 0, printed.stdout + printed.stderr
    return printed.stdout, json.loads(file.read_text())


def test_it_prints_and_writes_both_recipes_and_the_pool(measured: tuple[str, dict[str, object]]) -> None:
    printed, written = measured
    assert written["bench"] == "rewards"
    rows = written["rows"]
    assert isinstance(rows, list)
    assert [row["way"].split(",")[0] for row in rows] == ["reference", "paper", "paper", "paper"]
    for row in rows:
        assert row["way"] in printed
        assert row["responses/s"] > 0 and row["µs each"] == pytest.approx(1e6 / row["responses/s"])
    targets = written["targets"]
    assert isinstance(targets, list) and len(targets) == 2
    assert all(set(target) == {"name", "value", "target", "met"} for target in targets)
