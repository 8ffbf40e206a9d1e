"""The words of the synthetic task: prompts, responses, and the scan that ties each second to its frames."""

from collections.abc import Sequence

from museg_ray.types import Segment

CITE_PROMPT = "Find every time {question}. Refer to specific timestamps."
"""Phase 1: the reasoning is to name the times."""
FREE_PROMPT = "Find every time {question}."
"""Phase 2 and evaluation."""
SCAN_PROMPT = "Second by second: {question}?"
"""The first lessons of the warm start: the scan alone."""


def format_segments(segments: Sequence[Segment]) -> str:
    return " ".join(f"{start_s:.1f}-{end_s:.1f}" for start_s, end_s in segments)


def write_scan(event: str, segments: Sequence[Segment], duration_s: int) -> str:
    """One word a second: the object's colour while it is visible, else `no`.

    The colour word and not `yes`: its logit can grow with "this colour is asked for" and with "this colour is seen"
    separately, where `yes` needs their product, which a tiny model does not find.
    """
    color = event.split()[1]
    visible = [any(start_s <= second < end_s for start_s, end_s in segments) for second in range(duration_s)]
    return " ".join(color if seen else "no" for seen in visible)


def write_response(scan: str, segments: Sequence[Segment]) -> str:
    """A full response in MUSEG's form: a scan of the video, the times read off it, then the answer."""
    cited = " and ".join(f"{start_s:.1f} to {end_s:.1f}" for start_s, end_s in segments)
    return f"<think>{scan}. So from {cited}.</think><answer>{format_segments(segments)}</answer>"
