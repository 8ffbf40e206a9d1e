"""Timestamp reward r_T: does the reasoning name the times that the answer gives?"""

import re
from collections import Counter
from collections.abc import Iterable

from museg_ray.types import Segment

MAX_CITATIONS = 10
"""A time written more often than this in the reasoning does not count as cited: repetition is no reasoning."""

_NUMBER = re.compile(r"(?<![0-9])(?<!(?<!\.)\.)(?<![0-9]:)[0-9]++(?:\.[0-9]++)?+(?!\.[0-9]|:[0-9])")
"""A whole number as written: neither the `10.0` in `110.0` nor any part of `1.2.3`, `.10` or the clock time `01:10`."""


def timestamp_reward(segments: Iterable[Segment], reasoning: str, rule: str) -> float:
    """r_T in [0, 1]: are the starts and ends of the answer written as numbers in the reasoning, 1 to 10 times each?

    Two times are equal when they are after rounding to 0.01 s. An invalid answer has no segments and gets 0.

    Args:
        rule: `all`: 1 if every time is cited, else 0 (the paper); `fraction`: the share of different times cited.

    Source: timestamp reward of MUSEG (arXiv 2505.20715, section 4.2.2). The published code looks for the text of the
    float as an unescaped pattern, so that `110.0` or `1000` cite `10.0` there, and `10` does not.
    """
    num_citations = count_citations(segments, reasoning)
    if not num_citations:
        return 0.0
    num_cited = sum(1 <= count <= MAX_CITATIONS for count in num_citations.values())
    if rule == "fraction":
        return num_cited / len(num_citations)
    assert rule == "all", rule
    return float(num_cited == len(num_citations))


def count_citations(segments: Iterable[Segment], reasoning: str) -> dict[float, int]:
    """How often the reasoning writes each time of the answer; times in seconds, rounded to 0.01."""
    num_citations = {round(time_s, 2): 0 for segment in segments for time_s in segment}
    if num_citations:
        for number, count in Counter(_NUMBER.findall(reasoning)).items():
            time_s = round(float(number), 2)
            if time_s in num_citations:
                num_citations[time_s] += count
    return num_citations
