"""The layout of packed groups, against a definition written out with loops."""

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.model.packing import Pack, Row, Span, pack_rows

VIDEO = 9
PROMPT_IDS = [3, VIDEO, 5]
POSITIONS = torch.tensor([[0, 1, 9], [0, 1, 1], [0, 1, 1]])


def row(completions: Sequence[Sequence[int]]) -> Row:
    return Row(PROMPT_IDS, POSITIONS, completions)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A prompt with completions, of ids that are often the video's placeholder, and arbitrary prompt positions."""
    ids = st.integers(0, VIDEO)
    prompt = draw(st.lists(ids, min_size=1, max_size=6))
    positions = draw(st.lists(st.integers(0, 50), min_size=3 * len(prompt), max_size=3 * len(prompt)))
    completions = draw(st.lists(st.lists(ids, max_size=5), min_size=1, max_size=5))
    return Row(prompt, torch.tensor(positions).reshape(3, -1), completions)


@given(st.lists(rows(), min_size=1, max_size=4))
def test_a_pack_is_what_its_definition_says(given_rows: list[Row]) -> None:
    ids: list[int] = []
    positions: list[list[int]] = []  # of each token: temporal, height, width
    video_rows, logit_rows, targets, spans = [], [], [], []
    for each in given_rows:
        start = len(ids)
        for at, token in enumerate(each.prompt_ids):
            if token == VIDEO:
                video_rows.append(len(ids))
            ids.append(token)
            positions.append(each.positions[:, at].tolist())
        last_of_prompt = len(ids) - 1
        after = max(each.positions.flatten().tolist()) + 1
        for completion in each.completions:
            for at, token in enumerate(completion):
                logit_rows.append(last_of_prompt if at == 0 else len(ids) - 1)
                targets.append(token)
                ids.append(token)
                positions.append([after + at] * 3)
        spans.append(Span(start, len(each.prompt_ids), tuple(map(len, each.completions))))
        assert (spans[-1].first_completion, spans[-1].end) == (last_of_prompt + 1, len(ids))
    pack = pack_rows(given_rows, VIDEO)
    assert pack.spans == tuple(spans)
    assert pack.input_ids.tolist() == ids
    assert pack.position_ids.T.tolist() == positions
    assert pack.video_rows.tolist() == video_rows
    assert pack.logit_rows.tolist() == logit_rows
    assert pack.targets.tolist() == targets
    assert {x.dtype for x in tensors(pack)} == {torch.long}


def tensors(pack: Pack) -> list[torch.Tensor]:
    return [pack.input_ids, pack.position_ids, pack.video_rows, pack.logit_rows, pack.targets]


def test_a_pack_keeps_the_order_of_the_responses_and_skips_empty_ones() -> None:
    pack = pack_rows([row([[7, 8], [], [1]])], VIDEO)
    assert pack.spans == (Span(0, 3, (2, 0, 1)),)
    assert pack.input_ids.tolist() == [*PROMPT_IDS, 7, 8, 1]
    assert pack.targets.tolist() == [7, 8, 1]


def test_the_first_token_of_each_completion_is_predicted_by_its_own_prompts_last_row() -> None:
    pack = pack_rows([row([[7, 8], [], [1, 2]]), row([[], [4]])], VIDEO)
    assert pack.logit_rows.tolist() == [2, 3, 2, 5, 9]


def test_every_completion_starts_right_after_the_largest_position_of_its_prompt() -> None:
    pack = pack_rows([row([[7, 8], [1]])], VIDEO)
    assert pack.position_ids.tolist() == [[0, 1, 9, 10, 11, 10], [0, 1, 1, 10, 11, 10], [0, 1, 1, 10, 11, 10]]


def test_a_sampled_placeholder_is_no_video_row() -> None:
    pack = pack_rows([row([[VIDEO, VIDEO], [VIDEO]]), row([[VIDEO]])], VIDEO)
    assert pack.video_rows.tolist() == [1, 7]


def test_groups_without_any_token_pack_to_their_prompts() -> None:
    pack = pack_rows([row([[], []]), row([[]])], VIDEO)
    assert pack.input_ids.tolist() == PROMPT_IDS * 2
    assert len(pack.targets) == len(pack.logit_rows) == 0


def test_a_pack_on_another_device_is_the_same_pack_there() -> None:
    pack = pack_rows([row([[7, 8], []])], VIDEO)
    moved = pack.to(torch.device("meta"))
    assert moved.spans == pack.spans
    assert all(x.device.type == "meta" for x in tensors(moved))
    assert [x.shape for x in tensors(moved)] == [x.shape for x in tensors(pack)]
