"""Training over fakes that wait instead of computing: the real trainer, crews, pools and books, for pipeline.py."""

import asyncio
import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from museg_ray.append_log import Row, read_rows
from museg_ray.bench.pipeline_fakes import GROUP_SIZE, FakeLearner, FakeWeights, FakeWorker, Waits
from museg_ray.checkpoints.state import Notes
from museg_ray.checkpoints.writer import Checkpointer
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.fleet.control import Mailbox
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR, load_tokenizer
from museg_ray.rewards.pool import RewardPool
from museg_ray.rollout.pool import RolloutPool
from museg_ray.runs.books import Books
from museg_ray.terminal.console import SafeConsole
from museg_ray.terminal.display import Display
from museg_ray.train.issues import IssueSource
from museg_ray.train.parts import Parts
from museg_ray.train.trainer import Trainer
from museg_ray.types import GroundingQuery
from museg_ray.video.actor import ClipPool

PHASE = "bench"
ANNOTATIONS = "bench.jsonl"
"""Stands for the file that the queries come from; nobody opens it."""
NUM_QUERIES = 4096
MAX_OTHER_ACTORS = 16
"""Reward actors, and clip actors, beside however many rollout actors."""

OnUpdate = Callable[[Parts, int], None]
"""Is told of every update when it begins, with its step."""


QUERIES = tuple(
    GroundingQuery(f"bench/{i}", f"/videos/{i}.mp4", f"event {i} is visible", ((1.0, 3.0), (5.0, 8.5))[: 1 + i % 2])
    for i in range(NUM_QUERIES)
)
"""Half of them have one segment, half two; each has a video of its own."""


def make_config(
    num_steps: int, num_actors: int, prompts_per_step: int, groups_per_actor: int, max_staleness: int = 0
) -> Config:
    """
    Args:
        num_steps: of the run.
        num_actors: of rollouts.
        prompts_per_step: groups of a step.
        groups_per_actor: that a rollout actor samples at once.
        max_staleness: k.
    """
    config, num_others = Config(), min(num_actors, MAX_OTHER_ACTORS)
    config.data.train, config.checkpoint.every_steps = ANNOTATIONS, 0
    config.video.num_actors = config.rewards.num_actors = num_others
    config.rollout.num_actors, config.rollout.group_size = num_actors, GROUP_SIZE
    config.rollout.max_num_seqs = groups_per_actor * GROUP_SIZE
    config.train.prompts_per_step, config.train.phases = prompts_per_step, [PhaseConfig(PHASE, num_steps)]
    config.train.max_staleness = max_staleness
    config.algo.correction = "truncate" if max_staleness else "none"
    return config


def train_fakes(
    config: Config,
    waits: Waits,
    on_update: OnUpdate = lambda parts, step: None,
    make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> list[Row]:
    """Train from the first step to the last, in a folder that is gone afterwards; the rows of its metrics.jsonl.

    Args:
        config: of `make_config`.
        waits: how long things take.
        on_update: see there.
        make_loop: of the event loop; None: one on the real clock.
    """
    with TemporaryDirectory(prefix="museg-bench-") as folder:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(_train(config, waits, on_update, Path(folder)))
        return list(read_rows(Path(folder) / "metrics.jsonl"))


async def _train(config: Config, waits: Waits, on_update: OnUpdate, run_dir: Path) -> None:
    books = open_books(config, run_dir)
    events = books.events.add

    learner: Any = FakeLearner(waits, lambda step: on_update(parts, step))
    parts = Parts(
        tokenizer=load_tokenizer(PACKAGED_MODEL_DIR),
        clips=ClipPool(config, events, lambda: FakeWorker(waits)),
        rollouts=RolloutPool(config, PACKAGED_MODEL_DIR, events, lambda: FakeWorker(waits)),
        rewards=RewardPool(config, events, lambda *_: FakeWorker(waits)),
        learner=learner,
        weights=FakeWeights(),
        control=Mailbox(),
        free_resources=lambda: {"CPU": math.inf, "GPU": math.inf},
    )
    source = IssueSource(config, {ANNOTATIONS: QUERIES})
    try:
        await parts.ready()
        checkpoints = Checkpointer(config, run_dir, parts.learner, books.events.add)
        await Trainer(config, parts, source, books, checkpoints).run()
    finally:
        await parts.close()
        books.close()


def open_books(config: Config, run_dir: Path) -> Books:
    """The books of a run whose terminal is a pipe that nobody reads."""
    display = Display(run_dir.name, config.train.phases, config.total_steps, SafeConsole(file=StringIO()))
    return Books(config, run_dir, display, Notes())
