"""Timestamp reward: does the reasoning name the times that the answer gives?"""

import re
from collections import Counter
from collections.abc import Iterable

from museg_ray.types import Segment

MAX_CITATIONS = 10
"""A time written more often than this in the reasoning does not count as cited: repetition is no reasoning."""

_NUMBER = re.compile(r"(?<![0-9.])[0-9]++(?:\.[0-9]++)?+(?!\.[0-9])")
"""A whole number as written: neither the `10.0` in `110.0` nor any part of `1.2.3`."""


def timestamp_reward(segments: Iterable[Segment], reasoning: str) -> float:
    """r_T: 1 if every start and end of the answer is written 1 to 10 times as a number in the reasoning, else 0.

    Two times are equal when they are after rounding to 0.01 s. An invalid answer has no segments and gets 0.

    Source: timestamp reward of MUSEG (arXiv 2505.20715, section 4.2.2). The published code looks for the text of the
    float as an unescaped pattern, so that `110.0` or `1000` cite `10.0` there, and `10` does not.
    """
    times_s = {round(time_s, 2) for segment in segments for time_s in segment}
    if not times_s:
        return 0.0
    num_citations: Counter[float] = Counter()
    for number, count in Counter(_NUMBER.findall(reasoning)).items():
        num_citations[round(float(number), 2)] += count
    return float(all(1 <= num_citations[time_s] <= MAX_CITATIONS for time_s in times_s))
