"""The layout of a packed group."""

import torch

from museg_ray.model.packing import pack_group

PROMPT_IDS = [3, 4, 5]
POSITIONS = torch.tensor([[0, 1, 9], [0, 1, 1], [0, 1, 1]])


def test_a_pack_keeps_the_order_of_the_responses_and_skips_empty_ones() -> None:
    pack = pack_group(PROMPT_IDS, POSITIONS, [[7, 8], [], [9]])
    assert (pack.num_prompt_tokens, pack.num_responses) == (3, 3)
    assert pack.input_ids.tolist() == [3, 4, 5, 7, 8, 9]
    assert pack.targets.tolist() == [7, 8, 9]
    assert pack.response_index.tolist() == [0, 0, 2]


def test_the_first_token_of_each_completion_is_predicted_by_the_prompt() -> None:
    assert pack_group(PROMPT_IDS, POSITIONS, [[7, 8], [], [9, 10]]).logit_rows.tolist() == [2, 3, 2, 5]


def test_every_completion_starts_right_after_the_largest_prompt_position() -> None:
    pack = pack_group(PROMPT_IDS, POSITIONS, [[7, 8], [9]])
    assert pack.position_ids.tolist() == [[0, 1, 9, 10, 11, 10], [0, 1, 1, 10, 11, 10], [0, 1, 1, 10, 11, 10]]


def test_a_completion_sees_the_prompt_and_itself_and_no_other_completion() -> None:
    mask = pack_group(PROMPT_IDS, POSITIONS, [[7, 8], [9]]).attention_mask
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]


def test_a_group_without_any_token_packs_to_the_prompt() -> None:
    pack = pack_group(PROMPT_IDS, POSITIONS, [[], []])
    assert pack.input_ids.tolist() == PROMPT_IDS
    assert pack.targets.dtype == pack.logit_rows.dtype == torch.long and len(pack.targets) == 0
