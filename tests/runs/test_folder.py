import json
import subprocess
import sys
from pathlib import Path

import pytest

from museg_ray.errors import ResourceError
from museg_ray.runs.folder import LOCK_FILE, is_empty, locked, make_run_folder, require_empty, write_json


def test_two_unnamed_runs_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    assert make_run_folder(tmp_path, "") != make_run_folder(tmp_path, "")


def test_an_empty_folder_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    folder = make_run_folder(tmp_path, "mine")
    assert folder == tmp_path / "mine"
    with locked(folder):
        require_empty(folder)
    assert is_empty(folder), "what a run leaves that was killed at once is no run"


def test_a_run_never_writes_into_anothers_folder(tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path, "mine")
    (folder / "notes.txt").touch()
    with pytest.raises(ResourceError, match=r"not empty.*no run that could be resumed"):
        require_empty(folder)
    (folder / "config.yaml").touch()
    with pytest.raises(ResourceError, match=r"not empty.*--resume"):
        require_empty(folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="file/run"):
        make_run_folder(tmp_path / "file", "run")


TAKE = """
import sys
from pathlib import Path
from museg_ray.runs.folder import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_has_a_folder_and_a_killed_one_has_it_no_more(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TAKE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        with pytest.raises(ResourceError, match=rf"pid {other.pid} on "), locked(tmp_path):
            pytest.fail("both have it")
        other.kill()
        other.wait()
        with locked(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text() != f"pid {other.pid}"


def test_json_is_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"steps": 3})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
