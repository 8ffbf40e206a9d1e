import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from museg_ray.errors import ResourceError
from museg_ray.runs.folder import LOCK_FILE, is_unused, locked, make_run_folder, move_aside, read_run_id, write_json


def test_two_unnamed_runs_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    assert make_run_folder(tmp_path, "") != make_run_folder(tmp_path, "")


def test_an_empty_folder_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    folder = make_run_folder(tmp_path, "mine")
    assert folder == tmp_path / "mine"
    with locked(folder):
        assert is_unused(folder), "what a run leaves that was killed at once is no run"
    run_id = read_run_id(folder)
    make_run_folder(tmp_path, "mine")
    assert len(run_id) == 32 and read_run_id(folder) == run_id != read_run_id(make_run_folder(tmp_path, ""))


def test_invariant_what_no_run_has_made_is_not_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name in ("config.yaml", "checkpoints/epoch3.pt", "run.lock", "a.partial"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ResourceError, match=r"no run of museg_ray: .* Nothing in it was touched"):
        make_run_folder(tmp_path, "mine")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("marker", ["", "[]", '{"format": 1}', '{"format": 2, "run_id": "a"}'])
def test_a_marker_that_cannot_be_read_is_refused(marker: str, tmp_path: Path) -> None:
    (tmp_path / "museg-run.json").write_text(marker)
    with pytest.raises(ResourceError, match=r"museg-run.json cannot be read|goes on with format 1"):
        read_run_id(tmp_path)


def test_a_folder_that_is_a_link_is_moved_aside_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "mine").symlink_to(tmp_path / "disk")
    folder = make_run_folder(tmp_path, "mine")
    run_id = read_run_id(folder)
    assert read_run_id(move_aside(folder)) == run_id
    assert read_run_id(make_run_folder(tmp_path, "mine")) != run_id
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "disk", "disk.aside"}


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


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_left_alone(
    link: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    folder = make_run_folder(tmp_path, "mine")
    link(folder / LOCK_FILE, tmp_path / "precious.txt")
    with pytest.raises(ResourceError), locked(folder):
        pytest.fail("locked")
    assert (tmp_path / "precious.txt").read_text() == "precious"


def test_a_marker_that_a_kill_left_empty_is_made_anew(tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path, "mine")
    (folder / "museg-run.json").write_text("")
    assert len(read_run_id(make_run_folder(tmp_path, "mine"))) == 32
    (folder / "museg-run.json").write_text("")
    (folder / "metrics.jsonl").touch()
    with pytest.raises(ResourceError, match="cannot be read"):
        read_run_id(make_run_folder(tmp_path, "mine"))
