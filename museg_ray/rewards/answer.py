"""Reading a response: `<think>…</think><answer>12.30-15.00 20.10-31.75</answer>`, seconds.

Total over all texts, in bounded time: texts have a greatest length, and no pattern here backtracks (possessive `++`).
"""

import re
from dataclasses import dataclass

from museg_ray.types import Segment

MAX_CHARS = 100_000
"""Longest response that is read, several times what 4096 tokens of reasoning hold; a longer one is invalid. It bounds
the time of scoring: the worst text of this length takes under 0.1 s (0.4 s with `maximum` matching)."""

_NUMBER = r"[0-9]++(?:\.[0-9]++)?+"  # not \d, which takes the digits of every script
_ITEM = re.compile(rf"({_NUMBER})-({_NUMBER})")


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """What the rewards look at."""

    segments: tuple[Segment, ...]
    """The answer's segments, sorted; empty when the answer is invalid."""
    reasoning: str
    """Text of the one think block, empty when there is none."""
    well_formed: bool
    """The response is exactly one think block and then one valid answer block, with only white space around them."""


@dataclass(frozen=True, slots=True)
class _Block:
    """A tagged stretch of a text; positions in characters."""

    start: int  # of the opening tag
    body_start: int
    body_end: int
    end: int  # after the closing tag


def _find_block(text: str, tag: str) -> _Block | None:
    """The one block of this tag; None when either of its two tags is missing, repeated, or in the wrong order."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, body_end = text.index(opening), text.index(closing)
    if body_end < start:
        return None
    return _Block(start, start + len(opening), body_end, body_end + len(closing))


def _parse_segments(body: str) -> tuple[Segment, ...]:
    """Segments of an answer's text, sorted; empty when there is none or any item is not one.

    Items are split on white space; an item is NUMBER-NUMBER, a NUMBER ASCII digits with an optional decimal part (no
    sign, exponent or unit), start < end. One bad item makes the whole answer invalid.
    """
    segments = []
    for item in body.split():
        match = _ITEM.fullmatch(item)
        if match is None:
            return ()
        start_s, end_s = float(match[1]), float(match[2])
        if not start_s < end_s < float("inf"):  # 400 digits are a number by the grammar, but not a finite float
            return ()
        segments.append((start_s, end_s))
    return tuple(sorted(segments))


def _reasoning(text: str, think: _Block | None, answer: _Block | None) -> str:
    """Text of the think block; an answer written inside it is left out, since it would cite itself."""
    if think is None:
        return ""
    if answer is None or not think.start < answer.start < think.end:
        return text[think.body_start : think.body_end]
    return text[think.body_start : answer.start] + " " + text[answer.end : think.body_end]


def _is_well_formed(text: str, think: _Block | None, answer: _Block | None) -> bool:
    if think is None or answer is None or answer.start < think.end:
        return False
    outside = text[: think.start] + text[think.end : answer.start] + text[answer.end :]
    return not outside.strip()


def parse_response(text: str) -> ParsedResponse:
    """Read a response once for all rewards. Never raises.

    Exactly one answer block is read, wherever it stands; no block or several make the answer invalid.

    Source: answer format of MUSEG (arXiv 2505.20715, section 4.2), with the holes of the published code closed: there
    an empty answer earns the full format reward, and `0.00-inf` a reward of NaN.
    """
    if len(text) > MAX_CHARS:
        return ParsedResponse(segments=(), reasoning="", well_formed=False)
    think, answer = _find_block(text, "think"), _find_block(text, "answer")
    segments = _parse_segments(text[answer.body_start : answer.body_end]) if answer else ()
    return ParsedResponse(
        segments=segments,
        reasoning=_reasoning(text, think, answer),
        well_formed=bool(segments) and _is_well_formed(text, think, answer),
    )
