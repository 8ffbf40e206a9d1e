"""How a run's folder is opened, where no run has to be made for it; tests/train/test_exactness.py has the rest."""

import sys
from pathlib import Path

import pytest

from museg_ray.cli.demo import demo_config_path
from museg_ray.cli.main import main
from museg_ray.config.load import load_config
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import ConfigError, ResourceError
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


def test_a_folder_that_is_not_a_runs_is_left_alone(config: Config, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("thesis.tex", "download.partial"):
        (tmp_path / "mine" / name).touch()
    with pytest.raises(ResourceError, match="no run that could be resumed"), open_run(config):
        pytest.fail("opened")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"thesis.tex", "download.partial", "run.lock"}


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
