"""The start-up probe: do rollout and learner agree before anything is trained?"""

from dataclasses import replace

import numpy as np

from museg_ray.config.schema import Config
from museg_ray.errors import ParityError, QueryError
from museg_ray.metrics import names
from museg_ray.train.groups import GroupMaker
from museg_ray.train.parts import Parts
from museg_ray.train.plan import StepPlan
from museg_ray.types import Group, Issue, RewardParts


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
            gaps = await parts.learner.score([_without_reward(group)], {group.clip_key: clip})
        except QueryError:
            continue
        _check(gaps[names.PARITY_GAP_MEAN], gaps[names.PARITY_GAP_MAX], config, plan.step)
        return True
    return False


def _without_reward(group: Group) -> Group:
    nothing = RewardParts(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    count = len(group.responses)
    return replace(group, outcomes=(nothing,) * count, advantages=np.zeros(count, dtype=np.float32))


def _check(gap_mean: float, gap_max: float, config: Config, step: int) -> None:
    limit = config.train.max_logprob_gap
    if gap_mean <= limit:  # False for a gap that is no number
        return
    raise ParityError(
        f"Before step {step}, with nothing trained since the start: rollout and learner log-probs of the same tokens "
        f"differ by {gap_mean:.2e} nats on average (largest {gap_max:.2e}), more than train.max_logprob_gap = "
        f"{limit:.0e}. So the two compute different models. Look at model.path ({config.model.path}): are its weights "
        "and its config.json of one model, and after a resume still the folder that the run began with? Then at the "
        "versions of transformers and vLLM (the installed ones must be those of the lock file), and at the video "
        "positions: `pytest tests/model/test_positions.py`. For bfloat16 engines a limit of about 0.08 is usual."
    )
