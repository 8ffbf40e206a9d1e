import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from museg_ray.report.run_folder import Answer, read_run
from museg_ray.report.timelines import draw_grounding, draw_timelines, even_ranks
from museg_ray.types import Clip


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def share_of_green(path: Path) -> float:
    red, green, blue = np.moveaxis(pixels(path), -1, 0)
    return float(((green > 180) & (red < 90) & (blue < 90)).mean())


def write_green_video(path: Path, duration_s: int) -> None:
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[..., 1] = 230
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(4))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(4 * duration_s):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def answer(query_id: str, iou: float) -> Answer:
    return {"query_id": query_id, "iou": iou}


def test_queries_are_shown_at_even_ranks_from_the_best_to_the_worst():
    answers = {str(index): answer(str(index), index / 10) for index in range(11)}
    assert [shown["iou"] for shown in even_ranks(answers)] == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]


def test_few_queries_are_all_shown():
    answers = {str(index): answer(str(index), index / 10) for index in range(3)}
    assert [shown["query_id"] for shown in even_ranks(answers)] == ["2", "1", "0"]
    assert even_ranks({}) == []


def test_time_lines_are_drawn_where_no_video_can_be_read(make_run: Callable[..., Path]):
    path = draw_timelines(read_run(make_run()))
    assert path.name == "timelines.png"
    assert share_of_green(path) == 0.0


def test_frames_stand_above_the_time_line_where_the_video_can_be_read(make_run: Callable[..., Path]):
    run_dir = make_run()
    for shown in read_run(run_dir).after.values():
        write_green_video(Path(shown["video"]), duration_s=12)
    assert share_of_green(draw_timelines(read_run(run_dir))) > 0.1


@pytest.mark.parametrize("stop_after", [0, 3])
def test_an_unfinished_run_shows_the_answers_it_has(make_run: Callable[..., Path], stop_after: int):
    assert draw_timelines(read_run(make_run(stop_after=stop_after))).is_file()


def test_a_run_without_answers_gets_a_picture_that_says_so(make_run: Callable[..., Path]):
    run_dir = make_run(stop_after=0)
    (run_dir / "evaluation" / "before.jsonl").unlink()
    assert pixels(draw_timelines(read_run(run_dir))).shape[0] < 200


def test_an_invalid_answer_and_an_unknown_duration_are_drawn(make_run: Callable[..., Path]):
    run_dir = make_run()
    path = run_dir / "evaluation" / "after.jsonl"
    rows = [json.loads(line) | {"predicted": [], "duration_s": None} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert draw_timelines(read_run(run_dir)).is_file()


def test_a_grounding_picture_has_dollars_in_its_title_and_segments_past_the_end(tmp_path: Path, clip: Clip):
    segments = [(1.0, 2.0), (11.0, 40.0), (20.0, 21.0)]
    path = draw_grounding(tmp_path / "plot.png", clip, "when does the $5 \\frac{ note fall? " * 5, segments)
    assert pixels(path).shape[1] == 1500


def test_a_grounding_picture_without_an_answer_frames_nothing(tmp_path: Path, clip: Clip):
    with_answer = pixels(draw_grounding(tmp_path / "a.png", clip, "when?", [(0.0, 12.0)]))
    without = pixels(draw_grounding(tmp_path / "b.png", clip, "when?", []))
    blue = [((image == (0, 114, 178)).all(axis=-1)).sum() for image in (with_answer, without)]
    assert blue[0] > 10 * blue[1]
