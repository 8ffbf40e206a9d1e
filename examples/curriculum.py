"""An order of your own: few and long segments first.

    museg train -c configs/demo.yaml data.curriculum=examples.curriculum.difficulty

In the first pass only; every later one is in random order.
"""

from museg_ray.types import GroundingQuery


def difficulty(query: GroundingQuery, epoch: int) -> float:
    """From n to n + 1 for n segments: nearer to n, the longer the shortest of them lasts."""
    if epoch > 0:
        return 0.0
    shortest_s = min(end_s - start_s for start_s, end_s in query.segments)
    return len(query.segments) + 1.0 / (1.0 + shortest_s)
