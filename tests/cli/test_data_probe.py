"""`museg data probe`."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from museg_ray.cli.main import app
from museg_ray.errors import DataError
from tests.video.odd_files import video
from tests.video.real_files import REAL_FILES, with_stream

MADE = {odd_file.name: odd_file.make for odd_file in REAL_FILES}


def probed(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", "probe", *map(str, arguments)])


def facts_of(path: Path, *options: object) -> dict[str, Any]:
    result = probed(path, "--json", *options)
    assert result.exit_code == 0
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def test_an_ordinary_file(tmp_path: Path) -> None:
    facts = facts_of(video(g="10")(tmp_path))
    assert (facts["container"], facts["codec"], facts["track"]) == (
        "mov,mp4,m4a,3gp,3g2,mj2",
        "h264",
        "0 of 1, 1 of them video",
    )
    assert (facts["stored"], facts["displayed"]) == ([56, 140], [56, 140])
    assert (facts["orientation"], facts["pixel_shape"], facts["rate"]) == ("upright", "1", "constant")
    assert (facts["num_frames"], facts["fps"], facts["promised_s"], facts["duration_s"]) == (50, 10, 5, 5)
    assert facts["selected"][0] == 10 and facts["times_s"] == [k / 2 for k in range(10)]
    assert facts["video_tokens"] == 5 * facts["selected"][1] * facts["selected"][2] // 28**2
    assert facts["notices"] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mirrored, turned by 90", {"orientation": "turned by 90° to the right and mirrored", "displayed": [140, 56]}),
        ("pixels of 2 to 1", {"pixel_shape": "2", "stored": [84, 56], "displayed": [84, 112]}),
        ("another track is the default", {"track": "1 of 2, 2 of them video", "num_frames": 50}),
        ("joined, the clock starts again", {"duration_s": 10.0, "notices": 1}),
        ("video after its sound", {"late_s": 2.0, "notices": 1}),
    ],
)
def test_what_is_odd_is_told(tmp_path: Path, name: str, expected: dict[str, Any]) -> None:
    facts = facts_of(MADE[name](tmp_path))
    told = facts | {"notices": len(facts["notices"])}
    assert {key: told[key] for key in expected} == expected


def test_colours_that_are_not_tone_mapped_are_told(tmp_path: Path) -> None:
    def as_hdr(stream: Any) -> None:
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 16, 9

    facts = facts_of(with_stream("hdr.mp4", as_hdr)(tmp_path))
    assert "transfer 16" in facts["colour"] and "HDR (PQ): they are not tone-mapped" in facts["notices"][0]


def test_a_fault_is_told_with_its_reason_and_the_other_files_are_shown(tmp_path: Path) -> None:
    good, bad = video()(tmp_path), tmp_path / "text.mp4"
    bad.write_text("no video")
    result = probed(bad, tmp_path / "absent.mp4", good)
    assert result.exit_code == 1
    assert "not_a_video" in result.stdout and "missing" in result.stdout and "10 frames of 196 x 84" in result.stdout


def test_a_configuration_selects_and_the_picture_shows_it(tmp_path: Path) -> None:
    path, plot = video()(tmp_path), tmp_path / "frames.png"
    config = tmp_path / "config.yaml"
    settings = "{fps: 1.0, pair_tokens: 3, max_pixels: 3136, min_pixels: 3136, total_pixels: 40000}"
    config.write_text(f"video: {settings}\ntrain: {{phases: [{{name: one, steps: 1}}]}}")
    facts = facts_of(path, "--config", config, "--plot", plot)
    num_frames, height, width = facts["selected"]
    assert num_frames == 4 and facts["video_tokens"] == 2 * (height * width // 28**2 + 3)
    assert plot.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="--plot draws one file, and 2 were given"):
        raise probed(path, path, "--plot", plot).exception or AssertionError


def test_uneven_times_are_called_variable(tmp_path: Path) -> None:
    starts_s = (0.0, 0.1, 0.5, 0.6, 1.4, 1.5)
    assert facts_of(video(starts_s=starts_s, clock=Fraction(1, 1000))(tmp_path))["rate"] == "variable"
