"""The shape of the package: who may import whom, how long a file may be; and the tree in the README."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "museg_ray"
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = {
    "types",
    "errors",
    "files",
    "ending",
    "append_log",
    "clock",
    "events",
    "shown_text",
    "config",
    "algo",
    "metrics",
}
PURE = {"rewards", "data", "video", "model", "weights"}
BOOKS = {"ledger", "checkpoints", "runs", "terminal"}
ALLOWED = {
    "types": set(),
    "errors": set(),
    "files": set(),
    "ending": set(),
    "clock": set(),
    "events": set(),
    "shown_text": set(),
    "append_log": {"errors", "files"},
    "config": {"errors", "files"},
    "algo": GROUND,
    "metrics": GROUND,
    "fleet": GROUND,
    **{room: GROUND for room in PURE},
    "rewards": GROUND | {"fleet"},
    "video": GROUND | {"fleet"},
    "weights": GROUND | {"fleet"},
    "ledger": GROUND,
    "terminal": GROUND,
    "checkpoints": GROUND | {"data", "model", "ledger"},
    "runs": GROUND | {"rewards", "model"} | BOOKS,
    "rollout": GROUND | PURE | {"fleet"},
    "learner": GROUND | PURE | {"fleet"},
    "evaluation": GROUND | PURE | {"rollout"},
    "report": GROUND | {"video"},
    "demo": GROUND | PURE | {"evaluation"},
    "train": GROUND | PURE | BOOKS | {"fleet", "rollout", "learner", "evaluation", "report", "demo"},
    "bench": GROUND | PURE | BOOKS | {"fleet", "rollout", "train"},
    "cli": GROUND | PURE | BOOKS | {"fleet", "rollout", "train", "report", "bench", "demo"},
}


def _room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {module.split(".")[1] for module in modules if module.startswith("museg_ray.")}
    return rooms


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file: Path) -> None:
    if file == PACKAGE / "__init__.py":
        assert not _imported_rooms(file)
        return
    room = _room(file)
    assert _imported_rooms(file) <= ALLOWED[room] | {room}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") < 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


def test_the_readmes_tree_names_every_file() -> None:
    tree = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## Layout")[1].split("```")[1]
    unnamed = [str(file) for file in FILES if file.name != "__init__.py" and file.name not in tree]
    assert not unnamed
