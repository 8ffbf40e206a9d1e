"""Reading a response: `<think>…</think><answer>12.30-15.00 20.10-31.75</answer>`, seconds.

Total over all texts, in bounded time: texts and answers have a greatest length, and no pattern here backtracks
(possessive `++`).
"""

import re
from typing import NamedTuple

from museg_ray.types import MAX_TIME_S, Segment

MAX_CHARS = 100_000
"""Longest response that is read, several times what 4096 tokens of reasoning hold; a longer one is invalid. It bounds
the time of scoring: the worst text of this length takes under 0.1 s."""

MAX_SEGMENTS = 1000
"""Most segments an answer may have, five times the most of any true answer in MUSEG's data (218, THUMOS15). It bounds
the time of `maximum` matching."""

_NUMBER = r"[0-9]++(?:\.[0-9]++)?+"  # not \d, which takes the digits of every script
_ITEM = re.compile(rf"({_NUMBER})-({_NUMBER})")


class Block(NamedTuple):
    """A tagged stretch of a text; positions in characters."""

    start: int  # of the opening tag
    body_start: int
    body_end: int
    end: int  # after the closing tag


class ParsedResponse(NamedTuple):
    """A response, read once for all rewards."""

    text: str
    """As the model wrote it."""
    segments: tuple[Segment, ...]
    """The answer's segments in seconds, sorted; empty when the answer is invalid."""
    reasoning: str
    """Text of the one think block, empty when there is none."""
    answer_problem: str
    """Why the answer is invalid; empty when it is valid."""
    think: Block | None
    """The one think block."""
    think_problem: str
    """Why there is none; empty when there is."""
    answer: Block | None
    """The one answer block, valid or not."""


def parse_response(text: str) -> ParsedResponse:
    """Read a response once for all rewards. Never raises.

    Exactly one answer block is read, wherever it stands; no block or several make the answer invalid.

    Source: answer format of MUSEG (arXiv 2505.20715, section 4.2), with the holes of the published code closed: there
    an empty answer earns the full format reward, and `0.00-inf` a reward of NaN.
    """
    if len(text) > MAX_CHARS:
        problem = f"the response has {len(text)} characters; at most {MAX_CHARS} are read"
        return ParsedResponse(text, (), "", problem, None, problem, None)
    think, think_problem = _find_block(text, "think")
    answer, answer_problem = _find_block(text, "answer")
    segments: tuple[Segment, ...] = ()
    if answer:
        segments, answer_problem = _parse_segments(text[answer.body_start : answer.body_end])
    reasoning = _reasoning(text, think, answer)
    return ParsedResponse(text, segments, reasoning, answer_problem, think, think_problem, answer)


def parse_items(body: str) -> tuple[list[Segment], str]:
    """Segments of an answer's text in the order written, and what is wrong with it (then there are none).

    Items are split on white space; an item is NUMBER-NUMBER, a NUMBER ASCII digits with an optional decimal part (no
    sign, exponent or unit), start < end. One bad item makes the whole answer invalid.
    """
    items = body.split()
    if not items:
        return [], "the answer is empty"
    if len(items) > MAX_SEGMENTS:
        return [], f"the answer has {len(items)} segments; at most {MAX_SEGMENTS} are read"
    segments = []
    for item in items:
        match = _ITEM.fullmatch(item)
        if match is None:
            return [], f"{shown(item)} is not of the form START-END, two plain numbers"
        start_s, end_s = float(match[1]), float(match[2])
        if not start_s < end_s <= MAX_TIME_S:  # 400 digits are a number by the grammar
            fault = "does not end after its start" if end_s <= start_s else f"is later than {MAX_TIME_S:g} s"
            return [], f"{shown(item)} {fault}"
        segments.append((start_s, end_s))
    return segments, ""


def _parse_segments(body: str) -> tuple[tuple[Segment, ...], str]:
    segments, problem = parse_items(body)
    return tuple(sorted(segments)), problem


def _find_block(text: str, tag: str) -> tuple[Block | None, str]:
    """The one block of this tag; else none, and why: one of its two tags is missing, repeated, or out of order."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    num_opening, num_closing = text.count(opening), text.count(closing)
    if num_opening != 1 or num_closing != 1:
        return None, f"{num_opening} {opening} and {num_closing} {closing} tags where one of each must be"
    start, body_end = text.index(opening), text.index(closing)
    if body_end < start:
        return None, f"{closing} stands before {opening}"
    return Block(start, start + len(opening), body_end, body_end + len(closing)), ""


def _reasoning(text: str, think: Block | None, answer: Block | None) -> str:
    """Text of the think block; an answer written inside it is left out, since it would cite itself."""
    if think is None:
        return ""
    if answer is None or not think.start < answer.start < think.end:
        return text[think.body_start : think.body_end]
    return text[think.body_start : answer.start] + " " + text[answer.end : think.body_end]


def shown(text: str, limit: int = 40) -> str:
    """A text quoted for a message, shortened."""
    return repr(text if len(text) <= limit else text[:limit] + "…")
