import json
from pathlib import Path

import pytest

from museg_ray.errors import ResourceError
from museg_ray.train.run_folder import create_run_folder, write_json


def test_two_unnamed_runs_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    assert create_run_folder(tmp_path, "") != create_run_folder(tmp_path, "")


def test_an_empty_folder_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert create_run_folder(tmp_path, "mine") == tmp_path / "mine"


def test_a_run_never_writes_into_anothers_folder(tmp_path: Path) -> None:
    folder = create_run_folder(tmp_path, "mine")
    (folder / "config.yaml").touch()
    with pytest.raises(ResourceError, match="not empty"):
        create_run_folder(tmp_path, "mine")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="file/run"):
        create_run_folder(tmp_path / "file", "run")


def test_json_is_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"steps": 3})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
