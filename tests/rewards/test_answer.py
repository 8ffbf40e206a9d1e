import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.rewards.answer import MAX_CHARS, MAX_SEGMENTS, parse_response
from museg_ray.rewards.format import format_problem, format_reward


def test_segments_are_read_in_seconds_and_sorted() -> None:
    parsed = parse_response("<think>x</think><answer>\n20.10-31.75\t12.30-15 \n</answer>")
    assert parsed.segments == ((12.3, 15.0), (20.1, 31.75))
    assert parsed.reasoning == "x"
    assert format_reward(parsed)


def test_the_answer_block_is_read_wherever_it_stands() -> None:
    assert parse_response("so: <answer>1-2</answer> I think").segments == ((1.0, 2.0),)
    assert parse_response("<think>a <answer>1-2</answer> b</think>").segments == ((1.0, 2.0),)


@pytest.mark.parametrize(
    "body",
    [
        "",
        " \n",
        "none",
        "1-2 and 3-4",
        "1-2, 3-4",
        "1 - 2",
        "1-2-3",
        "2-1",
        "2-2",
        "-1-2",
        "+1-2",
        "1-2s",
        "1.-2",
        ".5-2",
        "1e0-2e0",
        "0x1-0x2",
        "1_0-2_0",
        "0.00-inf",
        "nan-nan",
        "0-" + "9" * 400,
        "00:10-00:20",
        "X.XX-X.XX",
        "\u0661-\u0662",  # Arabic digits one and two
        "1\u20132",  # en dash
        "1-2 \x00",
        "1-2</think>",
    ],
)
def test_one_bad_item_makes_the_answer_invalid(body: str) -> None:
    parsed = parse_response(f"<think>1</think><answer>{body}</answer>")
    assert parsed.segments == ()
    assert not format_reward(parsed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1-2",
        "<answer>1-2",
        "1-2</answer>",
        "</answer>1-2<answer>",
        "<answer>1-2</answer><answer>1-2</answer>",
        "<answer><answer>1-2</answer></answer>",
        "<answer>1-2</answer></answer>",
        "<ANSWER>1-2</ANSWER>",
        "<answer >1-2</answer>",
    ],
)
def test_no_answer_block_or_several_make_the_answer_invalid(text: str) -> None:
    assert parse_response(text).segments == ()


@pytest.mark.parametrize(
    "text",
    [
        "<answer>1-2</answer>",
        "<think>a<answer>1-2</answer>",
        "<think>a</think><think>b</think><answer>1-2</answer>",
        "<think>a <think>b</think></think><answer>1-2</answer>",
        "<answer>1-2</answer><think>a</think>",
        "<think>a<answer>1-2</answer></think>",
        "Sure. <think>a</think><answer>1-2</answer>",
        "<think>a</think> so <answer>1-2</answer>",
        "<think>a</think><answer>1-2</answer>.",
        "<think>a</think><answer>1-2</answer><|im_end|>",
    ],
)
def test_only_one_think_block_and_then_one_answer_block_is_well_formed(text: str) -> None:
    parsed = parse_response(text)
    assert parsed.segments == ((1.0, 2.0),)
    assert not format_reward(parsed)


def test_white_space_around_the_blocks_is_well_formed() -> None:
    assert format_reward(parse_response(" \n<think></think>\n\n<answer>1-2</answer>\t"))


def test_an_answer_inside_the_think_block_is_no_part_of_the_reasoning() -> None:
    parsed = parse_response("<think>from 1<answer>1-2</answer>2 on</think>")
    assert parsed.reasoning == "from 1 2 on"


def test_a_response_over_the_length_limit_is_invalid() -> None:
    response = "<think>1 2</think><answer>1-2</answer>"
    assert format_reward(parse_response(response.ljust(MAX_CHARS)))
    parsed = parse_response(response.ljust(MAX_CHARS + 1))
    assert (parsed.segments, parsed.reasoning, format_reward(parsed)) == ((), "", 0.0)


def test_an_answer_of_too_many_segments_is_invalid() -> None:
    segments = [f"{start}-{start + 1}" for start in range(MAX_SEGMENTS + 1)]
    assert len(parse_response(f"<answer>{' '.join(segments[1:])}</answer>").segments) == MAX_SEGMENTS
    parsed = parse_response(f"<answer>{' '.join(segments)}</answer>")
    assert parsed.segments == () and "1001 segments" in parsed.answer_problem


@pytest.mark.parametrize(
    ("text", "in_answer", "in_format"),
    [
        ("<think>a</think><answer>1-2</answer>", "", ""),
        ("<think>a</think><answer> </answer>", "the answer is empty", "the answer is empty"),
        ("<think>a</think><answer>1-2", "1 <answer> and 0 </answer> tags", "1 <answer> and 0 </answer> tags"),
        ("</answer>1-2<answer>", "</answer> stands before <answer>", "</answer> stands before"),
        ("<answer>1-2 5</answer>", "'5' is not of the form START-END", "'5' is not"),
        ("<answer>9-2</answer>", "'9-2' does not end after its start", "'9-2'"),
        ("<answer>1-2</answer>", "", "0 <think> and 0 </think> tags"),
        ("<answer>1-2</answer><think>a</think>", "", "the answer does not come after the think block"),
        ("<think>a</think> so <answer>1-2</answer>", "", "text outside the two blocks: 'so'"),
    ],
)
def test_it_says_what_is_wrong(text: str, in_answer: str, in_format: str) -> None:
    parsed = parse_response(text)
    assert parsed.answer_problem.startswith(in_answer) and bool(parsed.answer_problem) == bool(in_answer)
    problem = format_problem(parsed)
    assert problem.startswith(in_format) and bool(problem) == bool(in_format)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "1-2", " ", "9", "-", ".", "<"])))
def test_well_formed_implies_a_valid_answer(pieces: list[str]) -> None:
    parsed = parse_response("".join(pieces))
    assert not format_reward(parsed) or parsed.segments
    assert bool(parsed.segments) != bool(parsed.answer_problem)
    assert all(0.0 <= start_s < end_s for start_s, end_s in parsed.segments)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)).map(lambda p: (p[0] / 100, (p[0] + p[1]) / 100)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([" ", "\n", "\t  "]),
)
def test_any_segments_are_read_back_sorted(segments: list[tuple[float, float]], space: str) -> None:
    body = space.join(f"{start_s:.2f}-{end_s:.2f}" for start_s, end_s in segments)
    parsed = parse_response(f"<think>x</think>{space}<answer>{space}{body}{space}</answer>")
    assert parsed.segments == tuple(sorted(segments))
    assert format_reward(parsed)


def test_times_later_than_any_video_are_refused() -> None:
    assert parse_response("<answer>1-1000000000000</answer>").segments == ((1.0, 1e12),)
    assert "later than 1e+12 s" in parse_response("<answer>1-1000000000001</answer>").answer_problem
