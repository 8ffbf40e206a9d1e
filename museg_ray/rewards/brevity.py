"""The further reward `brevity`: against responses that only grow."""

from museg_ray.config.schema import BrevityConfig
from museg_ray.rewards.answer import ParsedResponse
from museg_ray.types import GroundingQuery


def brevity_reward(response: ParsedResponse, _query: GroundingQuery, shape: BrevityConfig) -> float:
    """1 up to `free_chars` characters, 0 from `max_chars` on, linear between, in [0, 1]; 0 for an invalid answer.

    Only valid answers earn it: an empty response would be the shortest of all. In characters, since the reward is
    about what the model wrote and knows no tokenizer.

    Source: the soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), raised by 1.
    """
    if not response.segments:
        return 0.0
    excess = (len(response.text) - shape.free_chars) / (shape.max_chars - shape.free_chars)
    return 1.0 - min(max(excess, 0.0), 1.0)
