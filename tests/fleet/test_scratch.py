"""The private folder of a run: who may look into it, and what is deleted when."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from museg_ray.fleet import scratch
from museg_ray.fleet.scratch import LOCK_FILE, PREFIX, remove_dead, scratch_folder


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders are made; `shm` in it stands for /dev/shm."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(scratch, "SEMAPHORES_DIR", tmp_path / "shm")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def other_run(base: Path) -> "Iterator[subprocess.Popen[str]]":
    """Another process with a folder of its own, a file and a semaphore."""
    script = (
        "import time\nfrom museg_ray.fleet.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n (folder / 'file').touch()\n print(folder, flush=True)\n time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def _folder_of(run: "subprocess.Popen[str]") -> Path:
    assert run.stdout is not None
    return Path(run.stdout.readline().strip())


def test_the_folder_is_private_and_gone_after_use(base: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == base and folder.stat().st_mode & 0o777 == 0o700
        (base / "shm" / f"sem.{folder.name}-x").touch()
    assert [path.name for path in base.rglob("*")] == ["shm"]


def test_what_a_killed_run_left_goes_when_the_next_one_starts(base: Path, other_run: "subprocess.Popen[str]") -> None:
    dead = _folder_of(other_run)
    (base / "shm" / f"sem.{dead.name}-x").touch()
    (base / "shm" / "sem.mp-of-somebody").touch()
    other_run.kill()
    other_run.wait()
    assert dead.is_dir()
    with scratch_folder():
        assert not dead.exists()
    assert [path.name for path in (base / "shm").iterdir()] == ["sem.mp-of-somebody"]


def test_the_folder_of_a_living_run_stays(base: Path, other_run: "subprocess.Popen[str]") -> None:
    living = _folder_of(other_run)
    with scratch_folder():
        assert (living / "file").is_file()


def test_what_is_not_provably_a_dead_run_stays(base: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder in (elsewhere, base / f"{PREFIX}without-a-lock", base / f"{PREFIX}linked-lock", base / "museg-x-other"):
        folder.mkdir(exist_ok=True)
        (folder / "file").touch()
    (elsewhere / LOCK_FILE).touch()
    (base / f"{PREFIX}link").symlink_to(elsewhere)
    (base / f"{PREFIX}linked-lock" / LOCK_FILE).symlink_to(elsewhere / LOCK_FILE)
    (base / f"{PREFIX}file").touch()
    before = sorted(base.rglob("*"))
    remove_dead(base)
    assert sorted(base.rglob("*")) == before and (elsewhere / "file").is_file()
