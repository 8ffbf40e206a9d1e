"""A plausible run folder, written by the project's own recorder and logs."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from museg_ray.config.load import save_config
from museg_ray.config.schema import Config, PhaseConfig, RewardWeights
from museg_ray.ledger.rollout_log import RolloutLog
from museg_ray.metrics import names
from museg_ray.metrics.recorder import Recorder
from museg_ray.report.page import write_report
from museg_ray.types import GroundingQuery, Group, Issue, Response, RewardParts, Segment

GROUP_SIZE = 4
SCORES = {"miou": 0.48, "r1_at_05": 0.51, "multi_f1_at_05": 0.31, "count_accuracy": 0.41, "format_rate": 0.94}


def step_metrics(step: int, cites: bool, rng: np.random.Generator) -> dict[str, float]:
    learned = 1 - math.exp(-step / 25)
    matching, timestamp = 0.5 + 0.14 * learned + rng.normal(0, 0.02), 0.55 + 0.35 * learned + rng.normal(0, 0.03)
    form = min(1.0, 0.93 + 0.06 * learned + rng.normal(0, 0.01))
    rollout_s, learner_s = 2.1 + rng.normal(0, 0.1), 1.7 + rng.normal(0, 0.1)
    return {
        names.REWARD_TOTAL: matching + form + (timestamp if cites else 0.0),
        names.REWARD_MATCHING: matching,
        names.REWARD_GLOBAL: matching - 0.06,
        names.REWARD_LOCAL: matching + 0.06,
        names.REWARD_TIMESTAMP: timestamp,
        names.REWARD_FORMAT: form,
        names.REWARD_STD: 0.45 - 0.1 * learned + rng.normal(0, 0.02),
        names.PARITY_GAP_MEAN: 3e-7 * (1 + rng.random()),
        names.PARITY_GAP_MAX: 5e-6 * (1 + rng.random()),
        names.TIME_CLIPS_S: 0.11,
        names.TIME_ROLLOUT_S: rollout_s,
        names.TIME_REWARD_S: 0.06,
        names.TIME_LEARNER_S: learner_s,
        names.TIME_SYNC_S: 0.21,
        names.TIME_STEP_S: rollout_s + learner_s + 0.5,
        names.ROLLOUT_RESPONSES_PER_S: 64 / rollout_s,
    }


def sampled_group(query: GroundingQuery, step: int, phase: str) -> Group:
    rewards, responses = [], []
    for index in range(GROUP_SIZE):
        shift = 0.4 * index
        predicted = tuple((start_s + shift, end_s + shift) for start_s, end_s in query.segments)
        answer = " ".join(f"{start_s:.1f}-{end_s:.1f}" for start_s, end_s in predicted)
        matching = max(0.0, 1 - 0.25 * index)
        rewards.append(RewardParts(matching + 2, matching, matching, matching, 1.0, 1.0, predicted))
        text = f"<think>It shows at {answer}.</think><answer>{answer}</answer>"
        responses.append(Response(tuple(range(40)), np.zeros(40, np.float32), text, finished=True))
    totals = np.array([reward.total for reward in rewards], np.float32)
    issue, advantages = Issue(0, query, phase, 0, step), (totals - totals.mean()) / totals.std()
    return Group(issue, "clip", 12.0, (1, 2), tuple(responses), step, tuple(rewards), advantages)


def write_answers(path: Path, queries: Sequence[GroundingQuery], error_s: float, rng: np.random.Generator) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for query in queries:
            predicted = [noisy(segment, error_s, rng) for segment in query.segments]
            shared = [max(0, min(p[1], t[1]) - max(p[0], t[0])) for p, t in zip(predicted, query.segments, strict=True)]
            lengths = sum(end_s - start_s for start_s, end_s in (*predicted, *query.segments))
            row = {
                "query_id": query.query_id,
                "video": query.video,
                "question": query.question,
                "duration_s": query.duration_s,
                "segments": query.segments,
                "predicted": predicted,
                "response": "<answer>...</answer>",
                "iou": sum(shared) / (lengths - sum(shared)),
            }
            file.write(json.dumps(row) + "\n")


def noisy(segment: Segment, error_s: float, rng: np.random.Generator) -> Segment:
    start_s, end_s = segment[0] + rng.normal(0, error_s), segment[1] + rng.normal(0, error_s)
    start_s = round(max(0.0, start_s), 1)
    return start_s, round(max(end_s, start_s + 0.3), 1)


def build_run_folder(
    run_dir: Path, queries: Sequence[GroundingQuery], phase_steps: tuple[int, int], stop_after: int | None = None
) -> Path:
    """A run of two phases; `stop_after` leaves it as a crash after that step would."""
    rng = np.random.default_rng(0)
    phases = [
        PhaseConfig("timestamps", phase_steps[0], weights=RewardWeights(timestamp=1.0)),
        PhaseConfig("free", phase_steps[1]),
    ]
    config = Config()
    config.train.phases = phases
    run_dir.mkdir(parents=True)
    save_config(config, run_dir / "config.yaml")
    recorder, rollouts = Recorder(run_dir, run_dir.name), RolloutLog(run_dir / "rollouts.parquet")
    num_steps = sum(phase_steps) if stop_after is None else stop_after
    for step in range(1, num_steps + 1):
        phase = phases[0] if step <= phase_steps[0] else phases[1]
        recorder.log(step, phase.name, step_metrics(step, phase is phases[0], rng))
        rollouts.append([sampled_group(query, step, phase.name) for query in queries[:2]])
    recorder.close()
    rollouts.flush()
    write_answers(run_dir / "evaluation" / "before.jsonl", queries, 1.0, rng)
    if stop_after is None:
        write_answers(run_dir / "evaluation" / "after.jsonl", queries, 0.4, rng)
        write_summary(run_dir / "summary.json", num_steps)
    return run_dir


def write_summary(path: Path, num_steps: int) -> None:
    summary = {
        "seed": 0,
        "steps": num_steps,
        "wall_s": {"corpus": 12.1, "start-up": 48.9, "evaluation before": 20.2, "training": 388.0, "export": 3.1},
        "before": SCORES,
        "after": {name: value + 0.15 for name, value in SCORES.items() if name != "format_rate"} | {"format_rate": 1.0},
        "blind": {name: value - 0.12 for name, value in SCORES.items()} | {"format_rate": 1.0},
        "swapped": {name: value - 0.2 for name, value in SCORES.items()},
        "logprob_gap": {"mean": 4.1e-7, "max": 9.7e-6},
        "rollouts_per_s": 30.5,
        "versions": {"vllm": "0.32.0", "torch": "2.13.0", "ray": "2.60.0", "deepspeed": "0.19.8"},
    }
    path.write_text(json.dumps(summary))


def heldout_queries(video_dir: Path) -> list[GroundingQuery]:
    """Eight queries; nobody has put their videos there."""
    truths = [((1.0, 3.5),), ((2.0, 4.0), (6.5, 9.0)), ((0.5, 1.5), (4.0, 5.0), (8.0, 11.0)), ((5.0, 7.5),)] * 2
    return [
        GroundingQuery(f"heldout/{i}", str(video_dir / f"{i}.mp4"), "the red circle is visible", truth, 12.0)
        for i, truth in enumerate(truths)
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Builds a run folder of 4 + 5 steps; `stop_after=n` leaves it unfinished after step n."""
    return lambda stop_after=None: build_run_folder(tmp_path / "run", heldout_queries(tmp_path), (4, 5), stop_after)


@pytest.fixture(scope="session")
def finished_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("report")
    return write_report(build_run_folder(folder / "run", heldout_queries(folder), (4, 5)))
