"""Format reward r_F: is the response reasoning, then an answer, and nothing else?"""

from museg_ray.rewards.answer import ParsedResponse, shown


def format_reward(response: ParsedResponse) -> float:
    """r_F: 1 if the response is white space, one think block, white space, one answer block, white space, and the
    answer is valid; else 0.

    Source: format reward of MUSEG (arXiv 2505.20715, section 4.2). The published code gives it to an empty answer too.
    """
    return float(not format_problem(response))


def format_problem(response: ParsedResponse) -> str:
    """Why r_F is 0; empty where it is 1."""
    if response.answer_problem or response.think_problem:
        return response.answer_problem or response.think_problem
    text, think, answer = response.text, response.think, response.answer
    assert think and answer, "a missing block is a problem of its own"
    if answer.start < think.end:
        return "the answer does not come after the think block"
    outside = (text[: think.start] + text[think.end : answer.start] + text[answer.end :]).strip()
    return f"text outside the two blocks: {shown(outside)}" if outside else ""
