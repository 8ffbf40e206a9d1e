"""Four full steps, two a phase, with the real vLLM, DeepSpeed and Ray on the packaged tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import vllm
from transformers import Qwen2_5_VLForConditionalGeneration

from museg_ray.checkpoints.folder import list_checkpoints, verify
from museg_ray.config.load import load_config
from museg_ray.data.prompts import render_prompt
from museg_ray.model.export import export_checkpoint
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR, load_tokenizer
from museg_ray.video.prepare import read_clip
from tests.whole_ledger import read_ledger


def _metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_phase_trains_its_steps(whole_run: tuple[Path, str]) -> None:
    rows = _metrics(whole_run[0])
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["phase"] for row in rows] == ["timestamps", "timestamps", "free", "free"]


def test_rollout_and_learner_agree_before_and_after_a_weight_push(whole_run: tuple[Path, str]) -> None:
    for row in _metrics(whole_run[0]):
        assert row["parity/gap_mean"] < 1e-5
        assert row["parity/gap_max"] < 1e-3
    assert [row["weights/version"] for row in _metrics(whole_run[0])] == [1, 2, 3, 4]


def test_every_issued_query_ends_exactly_once(whole_run: tuple[Path, str]) -> None:
    ledger = read_ledger(whole_run[0] / "ledger.jsonl")
    assert [row.issue_id for row in ledger] == list(range(8))
    assert [row.outcome for row in ledger] == ["trained"] * 8
    assert [row.weight_version for row in ledger] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_every_response_is_logged_with_its_rewards(whole_run: tuple[Path, str]) -> None:
    group_size = load_config(whole_run[0] / "config.yaml").rollout.group_size
    rollouts = pq.read_table(whole_run[0] / "rollouts.parquet")
    assert rollouts.num_rows == 8 * group_size


def test_the_summary_compares_before_after_blind_and_swapped(whole_run: tuple[Path, str]) -> None:
    summary = json.loads((whole_run[0] / "summary.json").read_text())
    assert (summary["seed"], summary["steps"]) == (5, 4)
    for answers in ("before", "after", "blind", "swapped"):
        assert 0 <= summary[answers]["miou"] <= 1
    assert summary["logprob_gap"]["mean"] < 1e-5
    assert summary["rollouts_per_s"] > 0
    assert summary["versions"]["ray"] and summary["wall_s"]["train"] > 0


def _answers(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "evaluation" / f"{name}.jsonl").read_text().splitlines()]


def test_the_exported_model_loads_in_transformers_with_every_weight_trained(whole_run: tuple[Path, str]) -> None:
    trained = Qwen2_5_VLForConditionalGeneration.from_pretrained(whole_run[0] / "model", dtype=torch.float32)
    start = Qwen2_5_VLForConditionalGeneration.from_pretrained(PACKAGED_MODEL_DIR, dtype=torch.float32)
    assert trained.state_dict().keys() == start.state_dict().keys()
    changed = {name for name, tensor in trained.named_parameters() if not tensor.equal(start.get_parameter(name))}
    assert changed == {name for name, _ in start.named_parameters()}


@pytest.fixture
def stock_vllm(whole_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[vllm.LLM]:
    """vLLM on the exported folder with nothing of museg_ray in it."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling takes longer than the test
    model = vllm.LLM(
        str(whole_run[0] / "model"),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=8,
        enforce_eager=True,
        kv_cache_memory_bytes=2**27,
        # In one process and not two: each imports vLLM anew. By its path, since a CPU turns "uni" into "mp".
        distributed_executor_backend="vllm.v1.executor.uniproc_executor.UniProcExecutor",
    )
    yield model
    model.llm_engine.engine_core.shutdown()


def test_stock_vllm_gives_the_exported_model_the_answers_of_the_evaluation_after(
    whole_run: tuple[Path, str], stock_vllm: vllm.LLM
) -> None:
    """The export, the learner's last weights and the engines' are one: what was measured is what the user gets."""
    folder = whole_run[0]
    before, after = _answers(folder, "before"), _answers(folder, "after")
    assert [row["response"] for row in before] != [row["response"] for row in after], "nothing to tell apart"
    config = load_config(folder / "config.yaml")
    tokenizer = load_tokenizer(folder / "model")
    for row in after:
        ids = chat_prompt_ids(tokenizer, render_prompt(config.evaluation_prompt, row["question"]))
        clip = read_clip(row["video"], config.video)
        metadata = {"fps": clip.sample_fps, "total_num_frames": len(clip.frames), "duration": clip.duration_s}
        metadata |= {"frames_indices": list(range(len(clip.frames))), "do_sample_frames": False}
        prompt = {
            "prompt_token_ids": ids,
            "multi_modal_data": {"video": [(clip.frames, metadata)]},
            "mm_processor_kwargs": {"do_resize": False, "do_sample_frames": False},
        }
        greedy = vllm.SamplingParams(temperature=0, max_tokens=config.evaluation.max_completion_tokens)
        answer = stock_vllm.generate(prompt, greedy, use_tqdm=False)[0].outputs[0]
        assert answer.text == row["response"]


def test_an_export_of_the_last_checkpoint_is_the_runs_own_model(whole_run: tuple[Path, str], tmp_path: Path) -> None:
    """Byte for byte; what stock vLLM makes of that is tested above."""
    *_, last = list_checkpoints(whole_run[0] / "checkpoints")
    export_checkpoint(last.learner_dir, load_config(last.config_path), tmp_path / "model")
    own = whole_run[0] / "model"
    assert sorted(path.name for path in own.iterdir()) == sorted(path.name for path in (tmp_path / "model").iterdir())
    for name in ("model.safetensors", "config.json", "tokenizer.json", "processor_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (own / name).read_bytes(), name


def test_a_person_finds_pictures_and_a_report(whole_run: tuple[Path, str]) -> None:
    for name in ("report.html", "curves.png", "timelines.png", "config.yaml"):
        assert (whole_run[0] / name).stat().st_size > 0


def test_the_last_step_has_a_checkpoint_that_is_whole(whole_run: tuple[Path, str]) -> None:
    folder, printed = whole_run
    *_, last = list_checkpoints(folder / "checkpoints")
    verify(last)
    assert last.step == 4
    assert str(last.folder.parent) in printed


def test_without_a_terminal_it_prints_plain_lines_and_the_closing_table(whole_run: tuple[Path, str]) -> None:
    printed = whole_run[1]
    assert "\x1b[" not in printed
    for word in ("phase timestamps", "phase free", "before", "after", "blind", "swapped"):
        assert word in printed
