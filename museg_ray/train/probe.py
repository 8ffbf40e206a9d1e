"""Do rollout and learner agree? Asked before anything is trained, and after every push of weights."""

from dataclasses import replace
from itertools import chain

import numpy as np

from museg_ray.config.schema import Config
from museg_ray.errors import ParityError, QueryError
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.rollout.engine import Sampling
from museg_ray.rollout.pool import Request
from museg_ray.train.groups import GroupMaker
from museg_ray.train.parts import Parts
from museg_ray.train.plan import StepPlan
from museg_ray.types import Clip, GroundingQuery, Group, Issue
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip

PROBE = "museg-probe"
PROBE_FRAMES, PROBE_TOKENS = 4, 8


async def probe_parity(config: Config, parts: Parts, maker: GroupMaker, plan: StepPlan) -> bool:
    """Sample one group of the plan's first readable query and let the learner score it, without an update. The learner
    must hold the weights that the engines have.

    Invariant: a run gives the same numbers with and without a probe. It draws from no sampler, writes into no book, and
    the group's first token is another one than the step's own: the engines cache keys and values by what a prompt
    begins with, and a group that found those of the probe would be computed in other pieces, so rounded otherwise.

    Returns:
        False where no video of the plan can be read: the step will say so, and the next plan can be probed.

    Raises:
        ParityError: they disagree.
    """
    for query in plan.queries:
        prompt_ids = maker.prompt_ids(query, plan.phase)
        issue = Issue(-1, query, plan.phase.name, seed=config.run.seed, step=plan.step)
        try:
            clip = await parts.clips.get(query.video)
            clip, group = await maker.sample(issue, [prompt_ids[1], *prompt_ids[1:]], clip)
            gaps = await parts.learner.gaps(group, {group.clip_key: clip})
        except QueryError:
            continue
        _check(float(np.mean(gaps)), max(gaps), config, plan.step)
        return True
    return False


class PushProbe:
    """A few tokens about a made-up video, scored by every engine and by the learner.

    Invariant: an engine that has other weights than the learner is replaced before the push ends. Checksums cannot
    see all of it: an output head that goes on with its old packed copy, features kept of an older tower.
    """

    def __init__(self, config: Config, parts: Parts) -> None:
        self._parts, self._limit = parts, config.train.max_logprob_gap
        size, duration_s = 2 * config.video.size_multiple, PROBE_FRAMES / config.video.fps
        frames = np.random.default_rng(0).integers(0, 256, (PROBE_FRAMES, size, size, 3), np.uint8)
        times_s = (np.arange(PROBE_FRAMES) / config.video.fps).astype(np.float32)
        clip = Clip(PROBE, PROBE, frames, times_s, duration_s)
        self._clip = ClipHandle(PreparedClip(PROBE, PROBE, frames.shape, duration_s, False), None, clip)
        query = GroundingQuery(PROBE, PROBE, "When does it happen?", ((0.0, duration_s),))
        self._request = Request(
            Issue(-1, query, PROBE, config.run.seed),
            chat_prompt_ids(parts.tokenizer, query.question),
            self._clip,
            Sampling(1, config.rollout.temperature, PROBE_TOKENS),
        )

    async def check(self) -> float:
        """The largest mean gap of an engine that goes on serving, in nats.

        Raises:
            ParityError: all of them disagree with the learner.
        """
        answers = await self._parts.rollouts.answers(self._request)
        if not answers:  # all are lost: those that come are compared with one another
            return 0.0
        gaps = dict(zip(answers, await self._gaps(list(answers.values())), strict=True))
        wrong = {name: gap for name, gap in gaps.items() if not gap <= self._limit}
        texts = {
            name: f"after a push its log-probs differ from the learner's by {gap:.2e} nats on average, more than "
            f"train.max_logprob_gap = {self._limit:.0e}"
            for name, gap in wrong.items()
        }
        if len(wrong) == len(gaps):
            name = next(iter(wrong))
            raise ParityError(
                f"Not one engine computes what the learner computes: of {name}, {texts[name]}. The weights of the last "
                "push are not those of the learner, or the two compute other models: see `museg selftest`."
            )
        for name, text in texts.items():
            self._parts.rollouts.distrust(name, text)
        return max(gap for name, gap in gaps.items() if name not in wrong)

    async def _gaps(self, groups: list[Group]) -> list[float]:
        """In one pass: they are about the same prompt."""
        responses = tuple(chain.from_iterable(group.responses for group in groups))
        joined = replace(groups[0], responses=responses)
        return await self._parts.learner.gaps(joined, {joined.clip_key: self._clip})


def _check(gap_mean: float, gap_max: float, config: Config, step: int) -> None:
    limit = config.train.max_logprob_gap
    if gap_mean <= limit:  # False for a gap that is no number
        return
    raise ParityError(
        f"Before step {step}, with nothing trained since the start: rollout and learner log-probs of the same tokens "
        f"differ by {gap_mean:.2e} nats on average (the worst response by {gap_max:.2e}), more than "
        f"train.max_logprob_gap = {limit:.0e}. So the two compute different models. Look at model.path "
        f"({config.model.path}): are its weights "
        "and its config.json of one model, and after a resume still the folder that the run began with? Then at the "
        "versions of transformers and vLLM (the installed ones must be those of the lock file), and at the video "
        "positions: `pytest tests/model/test_positions.py`. For bfloat16 engines a limit of about 0.08 is usual."
    )
