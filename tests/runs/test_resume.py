"""How a run's folder is opened, where no run has to be made for it; tests/train/test_exactness.py has the rest."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from museg_ray.cli.main import main
from museg_ray.cli.train import demo_config_path
from museg_ray.config.load import load_config
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import CheckpointError, ConfigError, ResourceError
from museg_ray.runs.resume import open_run, save_run_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config()
    config.run.dir, config.run.name, config.run.resume = str(tmp_path), "mine", True
    config.train.phases = [PhaseConfig("only", 2)]
    return config


def test_a_folder_that_is_not_there_is_begun(config: Config, tmp_path: Path) -> None:
    with open_run(config) as opened:
        assert (opened.folder, opened.resumed, opened.notices) == (tmp_path / "mine", None, [])
        save_run_config(config, opened)
    assert load_config(tmp_path / "mine" / "config.yaml") == config


def test_to_resume_a_run_without_a_name_is_refused(config: Config) -> None:
    config.run.name = ""
    with pytest.raises(ConfigError, match=r"run.resume needs run.name"), open_run(config):
        pytest.fail("opened")


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_that_is_not_a_runs_is_left_alone(restart: bool, config: Config, tmp_path: Path) -> None:
    config.run.restart = restart
    names = {"config.yaml", "download.partial", "plot.png", "checkpoints", "model", "tensorboard"}
    for name in names:
        (tmp_path / "mine" / name).mkdir(parents=True)
    with pytest.raises(ResourceError, match="no run of museg_ray"), open_run(config):
        pytest.fail("opened")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == names


@pytest.fixture
def used(config: Config, tmp_path: Path) -> Path:
    """A run's folder with steps in its books."""
    with open_run(config) as opened:
        save_run_config(config, opened)
    (tmp_path / "mine" / "metrics.jsonl").write_text('{"step": 1}\n')
    return tmp_path / "mine"


def lost_link(folder: Path) -> str:
    (folder / "checkpoints").symlink_to(folder / "disk" / "not mounted")
    return "is a link to .*not mounted, where nothing is"


def emptied(folder: Path) -> str:
    (folder / "checkpoints").mkdir()
    return "books hold steps, and .*checkpoints holds no checkpoint"


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_mtime_ns for path in folder.iterdir() if path.name != "run.lock"}


@pytest.mark.parametrize("lose", [lost_link, emptied, lambda folder: "books hold steps"])
def test_steps_without_a_checkpoint_are_refused_and_moved_aside_where_that_is_wished(
    lose: Callable[[Path], str], used: Path, config: Config
) -> None:
    reason = lose(used)
    before = times(used)
    with pytest.raises(CheckpointError, match=rf"{reason}.*run.restart=true"), open_run(config):
        pytest.fail("opened")
    assert times(used) == before
    config.run.restart = True
    with open_run(config) as opened:
        assert opened.resumed is None and not opened.is_used
        assert "begun anew: the run that was there is now in" in opened.notices[0]
        assert {path.name for path in used.iterdir()} == {"museg-run.json", "run.lock"}
    assert times(used.with_name("mine.aside")) == before


def test_a_copy_without_checkpoints_of_its_own_says_what_makes_it_the_run(used: Path, config: Config) -> None:
    (used / "disk").mkdir()
    (used / "checkpoints").symlink_to(used / "disk")
    with pytest.raises(CheckpointError, match="books hold steps"), open_run(config):
        pytest.fail("opened")
    shutil.copytree(used, used.parent / "copy", symlinks=True)
    config.run.name = "copy"
    with (
        pytest.raises(CheckpointError, match=r'link to .*disk, where .* set "inode" to \d+ in .*json') as refused,
        open_run(config),
    ):
        pytest.fail("opened")
    marker = used.parent / "copy" / "museg-run.json"
    inode = int(re.findall(r'"inode" to (\d+)', str(refused.value))[0])
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"inode": inode}))
    with pytest.raises(CheckpointError, match="books hold steps"), open_run(config):
        pytest.fail("opened")


def test_a_run_that_had_made_no_step_begins_in_the_same_folder(used: Path, config: Config) -> None:
    (used / "metrics.jsonl").unlink()
    with open_run(config) as opened:
        assert opened.resumed is None and opened.is_used
        assert "had made no step: it begins anew" in opened.notices[0]
    assert (used / "config.yaml").is_file()


def test_restart_without_resume_moves_any_run_aside_and_begins_a_new_one_where_none_is(
    used: Path, config: Config
) -> None:
    config.run.resume, config.run.restart = False, True
    for aside in ("mine.aside", "mine.aside-2"):
        with open_run(config) as opened:
            assert opened.resumed is None
            save_run_config(config, opened)
        assert (used.parent / aside / "config.yaml").is_file()
    config.run.name = "new"
    with open_run(config) as opened:
        assert opened.notices == []


def test_without_resume_a_run_that_is_there_is_refused_and_the_way_is_named(config: Config, tmp_path: Path) -> None:
    with open_run(config) as opened:
        save_run_config(config, opened)
    config.run.resume = False
    with pytest.raises(ResourceError, match="--resume"), open_run(config):
        pytest.fail("opened")


@pytest.mark.parametrize("command", [["train", "-c", str(demo_config_path())], ["demo"]], ids=["train", "demo"])
def test_the_commands_have_a_flag_for_it(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["museg", *command, "--resume"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "run.resume needs run.name (`museg demo`: --run-dir)" in capsys.readouterr().err
