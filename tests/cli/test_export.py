"""`museg export` on checkpoints of the packaged model whose weights were changed by hand."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from museg_ray.checkpoints import folder as checkpoints
from museg_ray.checkpoints.state import BookMarks, DriverState, Notes, TrainerState
from museg_ray.cli.main import main
from museg_ray.config.load import MODEL_CONFIG_FILE, load_config, save_config
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR, load_policy, load_tokenizer

NUM_SHARDS = 2

Museg = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """float32, tied ones once."""
    model = load_policy(PACKAGED_MODEL_DIR, torch.float32)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def config() -> Config:
    config = Config()
    config.model.path, config.model.dtype = "museg-tiny", "bfloat16"
    config.train.phases = [PhaseConfig("only", 30)]
    return config


@pytest.fixture
def run_dir(tmp_path: Path, weights: dict[str, torch.Tensor], config: Config) -> Path:
    """Two checkpoints: of step 10, the best one, and of step 20."""
    frozen = "model.language_model.norm.weight"
    for step, score in ((10, 0.9), (20, 0.1)):
        trained = {name: tensor + step for name, tensor in weights.items() if name != frozen}
        write_checkpoint(tmp_path / "run", step, score, trained, config)
    return tmp_path / "run"


def write_checkpoint(
    run_dir: Path, step: int, score: float, trained: dict[str, torch.Tensor], config: Config
) -> checkpoints.Checkpoint:
    partial = checkpoints.partial_folder(run_dir / checkpoints.CHECKPOINTS_DIR, step)
    learner = partial / checkpoints.LEARNER_DIR
    learner.mkdir(parents=True)
    names = list(trained)
    for index in range(NUM_SHARDS):
        shard = {f"weights/{name}": trained[name] for name in names[index::NUM_SHARDS]}
        shard |= {f"exp_avg/{name}": torch.zeros_like(trained[name]) for name in names[index::NUM_SHARDS]}
        save_file(shard, learner / f"shard-{index:05d}-of-{NUM_SHARDS:05d}.safetensors")
    for index in range(NUM_SHARDS):
        (learner / f"rng-{index:05d}.pt").write_bytes(b"state")
    (learner / "learner.json").write_text(json.dumps({"format": 1, "num_shards": NUM_SHARDS}))
    reached = TrainerState(step, "only", step, step, {}, {}, 0, [])
    state = DriverState(reached, BookMarks(), "reward/matching", score, Notes().as_dict())
    (partial / checkpoints.STATE_FILE).write_text(state.to_json())
    save_config(config, partial / checkpoints.CONFIG_FILE)
    return checkpoints.publish(partial)


@pytest.fixture
def museg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Museg:
    def museg(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["museg", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), " ".join((printed.out + printed.err).split())

    return museg


def _shift(model_dir: Path, weights: dict[str, torch.Tensor]) -> set[float]:
    """By what the exported weights differ from the packaged ones, rounded."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_dir, dtype="auto")
    assert model.dtype == torch.bfloat16
    return {round(float((model.get_parameter(name).float() - before).median())) for name, before in weights.items()}


@pytest.mark.parametrize(
    ("source", "options", "step"),
    [("", [], 20), ("", ["--best"], 10), ("checkpoints/step-000010", [], 10), ("checkpoints/step-000020", [], 20)],
)
def test_a_run_or_a_checkpoint_becomes_a_model_folder(
    source: str, options: list[str], step: int, run_dir: Path, museg: Museg, weights: dict[str, torch.Tensor]
) -> None:
    out_dir = run_dir.parent / "model"
    code, printed = museg("export", run_dir / source, out_dir, *options)
    assert code == 0, printed
    assert f"Model of step {step}: {out_dir}" in printed and "MiB" in printed
    assert _shift(out_dir, weights) == {0, step}, "what was not trained is the model folder's"
    assert load_tokenizer(out_dir).chat_template
    assert load_config(out_dir / MODEL_CONFIG_FILE).total_steps == 30


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_exported(
    run_dir: Path, museg: Museg, weights: dict[str, torch.Tensor]
) -> None:
    (run_dir / "checkpoints" / "step-000020" / "learner" / "learner.json").unlink()
    code, printed = museg("export", run_dir, run_dir.parent / "model")
    assert code == 0 and "The checkpoint of step 20 cannot be used" in printed and "Model of step 10" in printed
    assert _shift(run_dir.parent / "model", weights) == {0, 10}


def test_a_damaged_checkpoint_is_refused(run_dir: Path, museg: Museg) -> None:
    damaged = run_dir / "checkpoints" / "step-000020"
    (damaged / "learner" / "learner.json").write_text("{}")
    code, printed = museg("export", damaged, run_dir.parent / "model")
    assert code == 1 and "CheckpointError" in printed and "learner.json" in printed
    assert not (run_dir.parent / "model").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, museg: Museg) -> None:
    code, printed = museg("export", tmp_path, tmp_path / "model")
    assert code == 1 and "is not a checkpoint" in printed
    (tmp_path / "checkpoints").mkdir()
    code, printed = museg("export", tmp_path, tmp_path / "model")
    assert code == 1 and "holds no whole checkpoint" in printed


def test_a_folder_that_holds_something_is_not_overwritten(run_dir: Path, museg: Museg) -> None:
    (run_dir.parent / "model").mkdir()
    (run_dir.parent / "model" / "mine.txt").touch()
    code, printed = museg("export", run_dir, run_dir.parent / "model")
    assert code == 1 and "not empty" in printed
    assert [path.name for path in (run_dir.parent / "model").iterdir()] == ["mine.txt"]


def test_weights_of_another_model_are_refused_by_name(run_dir: Path, museg: Museg, config: Config) -> None:
    write_checkpoint(run_dir, 30, 0.0, {"model.other.weight": torch.zeros(2)}, config)
    code, printed = museg("export", run_dir, run_dir.parent / "model")
    assert code == 1 and "model.other.weight" in printed


def test_adapters_are_merged(run_dir: Path, museg: Museg, weights: dict[str, torch.Tensor], config: Config) -> None:
    config.learner.lora.rank, config.learner.lora.alpha = 2, 4.0
    layer = "model.language_model.layers.0.mlp.up_proj"
    out_features, in_features = weights[f"{layer}.weight"].shape
    a, b = torch.randn(2, in_features), torch.randn(out_features, 2)
    trained = {f"{layer}.lora_A.default.weight": a, f"{layer}.lora_B.default.weight": b}
    write_checkpoint(run_dir, 30, 0.0, trained, config)
    code, printed = museg("export", run_dir, run_dir.parent / "model")
    assert code == 0, printed
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(run_dir.parent / "model", dtype=torch.float32)
    change = model.get_parameter(f"{layer}.weight") - weights[f"{layer}.weight"]
    torch.testing.assert_close(change, 2.0 * b @ a, atol=0.1, rtol=0.05)
    assert torch.equal(
        model.get_parameter("model.language_model.norm.weight"), weights["model.language_model.norm.weight"]
    )
