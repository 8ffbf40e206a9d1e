"""Parts that only note what they are asked, and a trainer over them."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from museg_ray.checkpoints.state import DriverState, Notes, TrainerState
from museg_ray.config.learning import AlgoConfig
from museg_ray.config.schema import Config, PhaseConfig, RewardWeights, TrainConfig
from museg_ray.errors import UnfitQueryError, VideoError, VideoFault
from museg_ray.fleet.control import Mailbox
from museg_ray.fleet.member import CrewStatus
from museg_ray.metrics import names
from museg_ray.model.qwen_vl import load_tokenizer
from museg_ray.rollout.pool import Request
from museg_ray.runs.books import Books
from museg_ray.runs.step_result import StepResult
from museg_ray.terminal.console import SafeConsole
from museg_ray.terminal.display import Display
from museg_ray.train.issues import IssueSource
from museg_ray.train.parts import Parts
from museg_ray.train.probe import PROBE
from museg_ray.train.pumps import Act
from museg_ray.train.trainer import Trainer
from museg_ray.types import GroundingQuery, Group, Issue, Response, RewardParts, Unscored
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip
from museg_ray.weights.channel import Confirmed
from tests.whole_ledger import read_ledger

LEARNED = {names.LEARNER_LOSS: 0.0, names.PARITY_GAP_MEAN: 0.0, names.PARITY_GAP_MAX: 0.0}
TEXTS = ("good", "bad", "worse")
PHASES = [
    PhaseConfig("timestamps", 2, "Cite. {question}", RewardWeights(timestamp=1.0)),
    PhaseConfig("free", 2, "{question}", train="other.jsonl", fresh_optimizer=True, fresh_reference=True),
    PhaseConfig("last", 1, "{question}", RewardWeights(matching=0.5), multi_segment_share=0.0, fresh_schedule=True),
]


class NotingParts:
    """Stands for every actor of a run; `unscored` holds the (query, text) that no reward actor can score, `unreadable`
    the videos that cannot be read."""

    def __init__(self, unscored: set[tuple[str, str]], unreadable: set[str]) -> None:
        self.unscored, self.unreadable = unscored, unreadable
        self.num_waiting = self.num_decoded = self.num_restarts = 0
        self.ahead: list[str] = []
        self.gone_once: set[str] = set()
        self.too_long: set[str] = set()
        """Queries that have no room in the model."""
        self.lasts_s: dict[str, float] = {}
        """Of videos: else 12."""
        self.gone_at_learner: list[str] = []
        """One an update that is tried."""
        self.equal: set[str] = set()
        """Queries whose responses all earn the same."""
        self.weights: list[RewardWeights] = []
        self.updates: list[Sequence[Group]] = []
        self.steps: list[int] = []
        self.scored: list[Group] = []
        self.gap = 0.0
        self.pushed: list[int] = []
        self.started: list[tuple[int, str]] = []  # updates made before, name of the phase

    def prefetch(self, videos: Iterable[str]) -> None:
        self.ahead += videos

    async def get(self, video: str, anew: bool = False) -> ClipHandle:
        if video in self.unreadable:
            raise VideoError(f"{video} is broken", VideoFault.CUT_OFF)
        return ClipHandle(
            PreparedClip(video, video, (1, 1, 1, 3), self.lasts_s.get(video, 12.0), was_decoded=True), None
        )

    async def sample(self, issue: Issue, prompt_ids: Any, clip: Any, sampling: Any) -> Group:
        video = issue.query.video
        if video in self.gone_once:
            self.gone_once.remove(video)
            raise VideoError("its machine is gone", VideoFault.UNREACHABLE)
        if issue.query.query_id in self.too_long:
            raise UnfitQueryError(f"{issue.query.query_id} is too long")
        responses = tuple(Response((1,), np.zeros(1, np.float32), text, True) for text in TEXTS)
        return Group(issue, video, 12.0, (1,), responses, weight_version=self.pushed[-1] if self.pushed else 0)

    async def score(self, group: Group, weights: RewardWeights) -> tuple[RewardParts | Unscored, ...]:
        self.weights.append(weights)
        return tuple(
            Unscored(text, ("died", "died again"))
            if (group.query.query_id, text) in self.unscored
            else RewardParts(1.0 if group.query.query_id in self.equal else 1.0 / (1 + index), 0, 0, 0, 0, 0)
            for index, text in enumerate(TEXTS)
        )

    async def start_phase(self, phase: PhaseConfig) -> None:
        self.started.append((len(self.updates), phase.name))

    async def update(self, groups: Sequence[Group], clips: Any, step: int) -> dict[str, float]:
        assert {group.clip_key for group in groups} <= clips.keys()
        if self.gone_at_learner:
            raise VideoError(f"{self.gone_at_learner.pop()} is gone", VideoFault.UNREACHABLE)
        self.updates.append(groups)
        self.steps.append(step)
        return LEARNED

    async def ping(self) -> None:
        pass

    async def restart(self, checkpoint: None) -> None:
        self.num_restarts += 1

    def status(self) -> CrewStatus:
        return CrewStatus(1, 0, 0, [])

    async def publish(self, version: int, weights: str) -> list[Confirmed]:
        self.pushed.append(version)
        return [Confirmed(version)]

    @property
    def nodes(self) -> set[str]:
        return {"here"}

    async def answers(self, request: Request) -> dict[str, Group]:
        group = await self.sample(request.issue, request.prompt_ids, request.clip, request.sampling)
        return {"rollout-0": replace(group, responses=group.responses[:1])}

    async def gaps(self, group: Group, clips: Any) -> list[float]:
        assert group.clip_key in clips
        self.scored += [group] if group.clip_key != PROBE else []
        return [self.gap] * len(group.responses)


class NotingWeights:
    """The channel."""

    phases_s = {"prepare": 0.0, "write": 0.0, "transfer": 0.0}  # noqa: RUF012

    async def publish(self, version: int, nodes: Any) -> str:
        return "weights"


def queries(stem: str, count: int, num_segments: int = 1) -> list[GroundingQuery]:
    segments = tuple((float(2 * i), 2.0 * i + 1) for i in range(num_segments))
    return [GroundingQuery(f"{stem}/{i}-{num_segments}", f"{stem}{i}.mp4", "it", segments) for i in range(count)]


class NotingCheckpoints:
    """Stands for the checkpoints of a run; one is due after every step."""

    def __init__(self) -> None:
        self.reached: list[DriverState] = []

    def is_due(self, step: int) -> bool:
        return True

    async def begin(self, state: DriverState) -> None:
        self.reached.append(state)

    def raise_if_failed(self) -> None:
        pass

    async def finish(self) -> None:
        pass

    async def newest(self) -> None:
        """None is whole."""


class Run:
    """A trainer run to its end, or to its error, over `NotingParts`."""

    def __init__(
        self,
        folder: Path,
        model_dir: Path,
        phases: list[PhaseConfig],
        unscored: set[tuple[str, str]],
        unreadable: set[str] | None = None,
        goes_on: "tuple[Run, int] | None" = None,
        algo: AlgoConfig | None = None,
        **train: Any,
    ) -> None:
        config = Config(train=TrainConfig(prompts_per_step=2, phases=phases, **train), algo=algo or AlgoConfig())
        config.data.train, config.data.multi_segment_share = "main.jsonl", 0.5
        self.parts = NotingParts(unscored, unreadable or set())
        actors = [self.parts, self.parts, self.parts, self.parts, NotingWeights()]
        parts = Parts(load_tokenizer(model_dir), *actors, Mailbox(), dict)  # type: ignore[arg-type]
        files = {f"{stem}.jsonl": queries(stem, 9) + queries(stem, 9, 2) for stem in ("main", "other")}
        used = {config.train_file(phase) for phase in phases}
        source = IssueSource(config, {path: of_file for path, of_file in files.items() if path in used})
        self.folder, self.results = Path(tempfile.mkdtemp(dir=folder)), list[StepResult]()
        self.state: DriverState | None = None
        if goes_on is not None:
            before, step = goes_on
            self.state = before.checkpoints.reached[step - 1]
            shutil.copytree(before.folder, self.folder, dirs_exist_ok=True)
        self.checkpoints: Any = NotingCheckpoints()
        display = Display("test", phases, config.total_steps, SafeConsole(file=StringIO()))
        self.books = Books(config, self.folder, display, Notes())
        self.trainer = Trainer(config, parts, source, self.books, self.checkpoints)

    def to_end(self, export: Act | None = None) -> "Run":
        tell = self.books.on_step

        def on_step(result: StepResult) -> None:
            self.results.append(result)
            tell(result)

        self.books.on_step = on_step  # type: ignore[method-assign]
        left_open = self.books.rewind(self.state) if self.state else []
        try:
            asyncio.run(self.trainer.run(self.state.trainer if self.state else None, left_open, export))
        finally:
            self.books.close()
        return self

    @property
    def reached(self) -> list[TrainerState]:
        return [state.trainer for state in self.checkpoints.reached]

    @property
    def issued(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in read_ledger(self.folder / "ledger.jsonl")]

    @property
    def quarantined(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "quarantine.jsonl").read_text().splitlines()]
