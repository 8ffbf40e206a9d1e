"""Where each weight of a policy lies in a weights file, agreed once for a run.

    8 bytes   length of the header
    header    {"__metadata__": {"version": "                   7", "frozen": "merger tower"}, NAME: {...}, ...}
    weights   one after another, under Hugging Face's names, the tied ones once

That is a safetensors file, which anything can read; its version always stands at the same place, so that the file can
be filled again in place. While it is being filled it has none.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""By safetensors' names of dtypes."""
_START = b'{"__metadata__":{"version":"'
VERSION_AT, VERSION_WIDTH = 8 + len(_START), 20
"""The byte of a file at which its version stands, and its length."""
_ALIGNMENT_BYTES = 64


class Part(StrEnum):
    """What is frozen or trained as a whole."""

    LANGUAGE = "language"
    """The language model with embeddings and output head."""
    TOWER = "tower"
    """The vision tower."""
    MERGER = "merger"
    """The layers between tower and language model."""


VISION = frozenset({Part.TOWER, Part.MERGER})
"""What video features come from."""


def part_of(name: str) -> Part:
    """The part that a weight belongs to; by Hugging Face's names and by vLLM's, of Qwen2.5-VL and Qwen3-VL."""
    _, is_vision, name_in_vision = name.partition("visual.")
    if not is_vision:
        return Part.LANGUAGE
    return Part.MERGER if name_in_vision.startswith(("merger.", "deepstack_merger_list.")) else Part.TOWER


@dataclass(frozen=True, slots=True)
class Layout:
    """Of every weights file of a run: all ranks find the same."""

    header: bytes
    """The file's first bytes, without a version."""
    offsets: Mapping[str, int]
    """The byte of the file at which each weight begins."""
    size_bytes: int

    @classmethod
    def of(cls, weights: Mapping[str, tuple[str, tuple[int, ...]]], frozen: Collection[Part] = ()) -> "Layout":
        """
        Args:
            weights: dtype, by safetensors' name, and shape of every weight of the parts that are not frozen.
            frozen: engines keep what they have of these parts.
        """
        assert not {part_of(name) for name in weights} & set(frozen), "frozen weights are not sent"
        entries, end = dict[str, dict[str, object]](), 0
        # The widest first, so that each begins at a multiple of its items' size.
        for name, (dtype, shape) in sorted(weights.items(), key=lambda weight: -ITEM_BYTES[weight[1][0]]):
            begin, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        metadata = {"version": " " * VERSION_WIDTH, "frozen": " ".join(sorted(frozen))}
        text = json.dumps({"__metadata__": metadata} | entries, separators=(",", ":")).encode()
        assert text.startswith(_START)
        text += b" " * (-(8 + len(text)) % _ALIGNMENT_BYTES)
        header = len(text).to_bytes(8, "little") + text
        offsets = {name: len(header) + entry["data_offsets"][0] for name, entry in entries.items()}  # type: ignore[index]
        return cls(header, offsets, len(header) + end)
