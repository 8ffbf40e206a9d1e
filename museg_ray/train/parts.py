"""The parts that a run joins, started together and closed together."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from museg_ray.config.schema import Config
from museg_ray.learner.actor import LearnerHandle
from museg_ray.model.qwen_vl import load_tokenizer
from museg_ray.rewards.pool import RewardPool
from museg_ray.rollout.pool import RolloutPool
from museg_ray.video.actor import ClipPool


@dataclass(frozen=True, slots=True)
class Parts:
    """Actors of one run. The driver knows them; they know neither it nor one another."""

    tokenizer: PreTrainedTokenizerBase
    clips: ClipPool
    rollouts: RolloutPool
    rewards: RewardPool
    learner: LearnerHandle

    @classmethod
    async def start(cls, config: Config, model_dir: Path, checkpoint: Path | None = None) -> "Parts":
        """Start all actors at once and wait until they are up and engines and learner hold the model.

        Args:
            checkpoint: `learner` folder of the checkpoint that the learner goes on from; the engines hold the weights
                of the model folder also then.

        Raises:
            MusegError: a part did not start; those that did are closed.
        """
        # Absolute here, in the driver: the actors' working folders are others.
        store_dir = str(Path(config.video.store_dir).absolute())
        config = replace(config, video=replace(config.video, store_dir=store_dir))
        parts = cls(
            tokenizer=load_tokenizer(model_dir),
            clips=ClipPool(config.video),
            rollouts=RolloutPool(config, model_dir),
            rewards=RewardPool(config.rewards),
            learner=LearnerHandle(config, model_dir, checkpoint),
        )
        try:
            await asyncio.gather(
                parts.rollouts.ready(), parts.rewards.ready(), parts.learner.ready(), parts.clips.ready()
            )
        except BaseException:  # also a cancellation by Ctrl-C: the engines' processes must not outlive the run
            await parts.close()
            raise
        return parts

    async def close(self) -> None:
        self.clips.close()
        self.rewards.close()
        await self.rollouts.close()
        await self.learner.close()
