"""1,500 made-up responses with the rewards that MUSEG's published code gives them."""

import gzip
import json
from importlib.resources import files
from typing import NamedTuple

from museg_ray.types import Segment


class GoldenCase(NamedTuple):
    response: str
    truth: tuple[Segment, ...]
    reference: dict[str, float]
    """The published code's numbers, named as the fields of `ReferenceRewards`."""


def golden_cases() -> list[GoldenCase]:
    """All cases, in the order of the file."""
    packed = files("museg_ray").joinpath("assets/rewards_reference.jsonl.gz").read_bytes()
    return [_case(json.loads(line)) for line in gzip.decompress(packed).decode("utf-8").splitlines()]


def _case(row: dict[str, object]) -> GoldenCase:
    response, truth = row.pop("response"), row.pop("ground_truth")
    assert isinstance(response, str) and isinstance(truth, list)
    return GoldenCase(response, tuple((start_s, end_s) for start_s, end_s in truth), row)  # type: ignore[arg-type]
