"""A reward of your own: the share of the answered time that is true, so that guessing wide does not pay.

    museg train -c configs/demo.yaml rewards.custom=examples.precision_reward.reward \
        'train.phases=[{name: precise, steps: 20, prompt: "Find every time {question}.", weights: {custom: 1.0}}]'
"""

from museg_ray.rewards.answer import ParsedResponse
from museg_ray.rewards.segments import intersection, total_length, union
from museg_ray.types import GroundingQuery


def reward(response: ParsedResponse, query: GroundingQuery) -> float:
    """|∪P ∩ ∪G| / |∪P| of covered seconds, in [0, 1]; 0 for an invalid answer."""
    answered = union(response.segments)
    if not answered:
        return 0.0
    return total_length(intersection(answered, union(query.segments))) / total_length(answered)
