"""The recipe `paper`: all rewards of one response (MUSEG, arXiv 2505.20715, section 4.2) and their weighted sum."""

import math

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.rewards.answer import ParsedResponse, parse_response
from museg_ray.rewards.citation import timestamp_reward
from museg_ray.rewards.format import format_reward
from museg_ray.rewards.further import Reward, further_rewards
from museg_ray.rewards.matching import global_reward, local_reward
from museg_ray.rewards.segments import union
from museg_ray.types import GroundingQuery, RewardParts


class Recipe:
    """Scores responses; built once from `rewards` of the configuration, for any query and phase.

    r_G = IoU of unions; r_L = mean NGIoU of matched segments; r_M = (r_G + r_L) / 2; r_T = all times of the answer
    cited in the reasoning; r_F = one think block, then one valid answer block, and nothing else. Each is finite and in
    [0, 1], and 0 for an invalid answer. total = w_M r_M + w_T r_T + w_F r_F + Σ w_k r_k over the further rewards.
    """

    def __init__(self, config: RewardConfig) -> None:
        """
        Raises:
            ConfigError: `rewards.custom` cannot be imported.
        """
        self._config = config
        self._further = further_rewards(config)

    def prepare(self, query: GroundingQuery, weights: RewardWeights) -> "PreparedQuery":
        """What scores the responses to one query.

        Args:
            query: its m >= 1 true segments have 0 <= start < end.
            weights: of the phase; a further reward of weight 0 is not computed.
        """
        weighed = [(name, reward, getattr(weights, name)) for name, reward in self._further.items()]
        return PreparedQuery(self._config, query, weights, [part for part in weighed if part[2]])

    def score(self, text: str, query: GroundingQuery, weights: RewardWeights) -> RewardParts:
        """Rewards of one response, for any text whatever; special tokens are visible in it."""
        return self.prepare(query, weights).score(parse_response(text))


class PreparedQuery:
    """A query with what all its responses share, computed once; see `Recipe`."""

    def __init__(
        self,
        config: RewardConfig,
        query: GroundingQuery,
        weights: RewardWeights,
        further: list[tuple[str, Reward, float]],
    ) -> None:
        truth = sorted(query.segments)
        assert truth and all(0.0 <= start_s < end_s < math.inf for start_s, end_s in truth), f"ill-formed: {truth}"
        self._query, self._weights, self._further = query, weights, further
        self._truth, self._truth_union = truth, union(truth)
        self._measure, self._local, self._citation = config.global_matching, config.local_matching, config.timestamp

    def score(self, response: ParsedResponse) -> RewardParts:
        """Rewards of one response."""
        segments, weights = response.segments, self._weights
        global_match = global_reward(union(segments), self._truth_union, self._measure)
        if self._local == "none":
            local_match, matching = 0.0, global_match
        else:
            local_match = local_reward(segments, self._truth, self._local)
            matching = (global_match + local_match) / 2.0
        timestamp = timestamp_reward(segments, response.reasoning, self._citation)
        well_formed = format_reward(response)
        total = weights.matching * matching + weights.timestamp * timestamp + weights.format * well_formed
        extras = tuple((name, reward(response, self._query)) for name, reward, _ in self._further)
        total += sum(weight * value for (_, _, weight), (_, value) in zip(self._further, extras, strict=True))
        return RewardParts(total, global_match, local_match, matching, timestamp, well_formed, segments, extras)
