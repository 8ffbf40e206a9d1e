"""timelines.png: what the model answered on held-out videos before and after training, beside the truth;
and the picture of `museg ground --plot`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError
from museg_ray.report.filmstrip import draw_strip, is_inside, num_tiles, tile_times, tile_width
from museg_ray.report.run_folder import Answer, RunFolder
from museg_ray.report.style import AFTER_COLOR, BEFORE_COLOR, MUTED, TRUTH_COLOR, save_png, spread
from museg_ray.report.timeline_text import Track
from museg_ray.report.tracks import TRACK_INCHES, draw_tracks
from museg_ray.shown_text import one_line
from museg_ray.types import Clip, Segment
from museg_ray.video.prepare import read_clip

NUM_QUERIES = 6
STRIP_CLIP = VideoConfig(max_frames=48, max_pixels=128 * 28 * 28)
"""Few and small frames: they are drawn half an inch high."""

WIDTH, LEFT, RIGHT = 10.0, 0.8, 0.95  # inches, like all below
INNER = WIDTH - LEFT - RIGHT
HEADER, QUESTION, STRIP, TIMES, SPACE = 0.85, 0.3, 0.55, 0.3, 0.28
NUM_KEY_FRAMES = 8


def draw_timelines(run: RunFolder) -> Path:
    """Draw `timelines.png`: up to six held-out queries, at even ranks from the best answer to the worst.

    Without the evaluation after training, the answers before it are ranked and shown alone. Where a video cannot be
    read its strip is left out and the reason stands in its place.
    """
    return save_png(run.path / "timelines.png", _timelines, run)


def draw_grounding(path: Path, clip: Clip, question: str, segments: Sequence[Segment]) -> Path:
    """Draw key frames of a clip above its time line; frames inside the predicted segments are framed.

    Args:
        path: the .png to write.
        clip: the clip that the model saw.
        question: the title.
        segments: the model's answer; empty when it was invalid.
    """
    return save_png(path, _grounding, clip, question, segments)


def draw_selection(path: Path, clip: Clip) -> Path:
    """Draw the frames that the model sees, in rows, each under its time."""
    return save_png(path, _selection, clip)


def _selection(clip: Clip) -> Figure:
    columns = min(len(clip.frames), num_tiles(clip, INNER, STRIP))
    tops = [HEADER + row * (STRIP + TIMES) for row in range(-(-len(clip.frames) // columns))]
    figure = Figure(figsize=(WIDTH, tops[-1] + STRIP + TIMES))
    title = f"{Path(clip.video).name}: {len(clip.frames)} frames of {clip.duration_s:g} s"
    _write(figure, LEFT, 0.4, title, fontweight="bold")
    for row, top in enumerate(tops):
        times_s = clip.times_s[row * columns : (row + 1) * columns].tolist()
        axes = draw_strip(figure, clip, times_s, (LEFT, top, INNER * len(times_s) / columns, STRIP))
        for index, time_s in enumerate(times_s):
            middle = (index + 0.5) * INNER / columns
            axes.text(middle, STRIP + 0.03, f"{time_s:.2f}", color=MUTED, fontsize=6, ha="center")
    return figure


def even_ranks(answers: Mapping[str, Answer]) -> list[Answer]:
    """Answers at even ranks of IoU with the best and the worst, so that nobody picks the pretty ones."""
    ranked = sorted(answers.values(), key=lambda answer: (-answer["iou"], answer["query_id"]))
    count = min(NUM_QUERIES, len(ranked))
    return [ranked[round(index * (len(ranked) - 1) / max(count - 1, 1))] for index in range(count)]


def _timelines(run: RunFolder) -> Figure:
    chosen = even_ranks(run.after or run.before)
    tracks = [_tracks(run, answer) for answer in chosen]
    heights = [QUESTION + STRIP + len(rows) * TRACK_INCHES + TIMES + SPACE for rows in tracks]
    figure = Figure(figsize=(WIDTH, HEADER + sum(heights)))
    _write(figure, LEFT, 0.3, "Held-out videos", fontsize=15, fontweight="bold")
    _write(figure, LEFT, 0.58, _how_chosen(run, len(chosen)), color=MUTED)
    top = HEADER
    for answer, rows, height in zip(chosen, tracks, heights, strict=True):
        _draw_answer(figure, answer, rows, top)
        top += height
    return figure


def _how_chosen(run: RunFolder, count: int) -> str:
    if not count:
        return "No evaluation has finished yet."
    total, when = len(run.after or run.before), "after" if run.after else "before"
    ranks = f"at even ranks from the best answer {when} training (top) to the worst (bottom)"
    return f"{count} of {total} queries, {ranks}."


def _tracks(run: RunFolder, answer: Answer) -> list[Track]:
    rows = [Track("truth", answer["segments"], TRUTH_COLOR)]
    for label, answers, color in (("before", run.before, BEFORE_COLOR), ("after", run.after, AFTER_COLOR)):
        if answer["query_id"] in answers:
            given = answers[answer["query_id"]]
            rows.append(Track(label, given["predicted"], color, f"IoU {given['iou']:.2f}"))
    return rows


def _draw_answer(figure: Figure, answer: Answer, tracks: Sequence[Track], top: float) -> None:
    _write(
        figure,
        LEFT,
        top + 0.12,
        textwrap.shorten(answer["question"], 78, placeholder=" …"),
        fontsize=11,
        fontweight="bold",
    )
    _write(figure, WIDTH - RIGHT, top + 0.12, Path(answer["video"]).name, color=MUTED, fontsize=9, ha="right")
    top += QUESTION
    clip = _read_strip_clip(answer["video"])
    if clip is not None:
        duration_s = clip.duration_s
        times_s = tile_times(duration_s, num_tiles(clip, INNER, STRIP))
        draw_strip(figure, clip, times_s, (LEFT, top, INNER, STRIP))
    else:
        duration_s = answer["duration_s"] or max(end_s for track in tracks for _, end_s in track.segments)
        _write(figure, LEFT, top + STRIP / 2, "The video cannot be read here.", color=MUTED, style="italic")
    draw_tracks(figure, tracks, duration_s, LEFT, top + STRIP + 0.06, INNER)


def _read_strip_clip(video: str) -> Clip | None:
    """None where the file cannot be read: a run folder is often looked at far from its videos."""
    try:
        return read_clip(video, STRIP_CLIP)
    except VideoError:
        return None


def _grounding(clip: Clip, question: str, segments: Sequence[Segment]) -> Figure:
    title = textwrap.wrap(question, 78)
    strip = min(1.3, INNER / NUM_KEY_FRAMES * 0.94 / tile_width(clip, 1.0))
    strip_top = 0.32 + 0.26 * len(title)
    tracks_top = strip_top + strip + 0.72
    figure = Figure(figsize=(WIDTH, tracks_top + TRACK_INCHES + TIMES + 0.05))
    for line, text in enumerate(title):
        _write(figure, LEFT, 0.32 + 0.26 * line, text, fontsize=14, fontweight="bold")
    _draw_key_frames(figure, clip, segments, (LEFT, strip_top, INNER, strip))
    axes = draw_tracks(figure, [Track("answer", segments, AFTER_COLOR)], clip.duration_s, LEFT, tracks_top, INNER)
    _label_segments(axes, segments, clip.duration_s)
    return figure


def _draw_key_frames(
    figure: Figure, clip: Clip, segments: Sequence[Segment], box: tuple[float, float, float, float]
) -> None:
    times_s = tile_times(clip.duration_s, NUM_KEY_FRAMES, segments)
    axes = draw_strip(figure, clip, times_s, box, segments)
    for index, time_s in enumerate(times_s):
        color = AFTER_COLOR if is_inside(time_s, segments) else MUTED
        middle = (index + 0.5) * INNER / NUM_KEY_FRAMES
        axes.text(middle, -0.09, f"{time_s:.1f} s", color=color, fontsize=9, ha="center", va="top")


def _label_segments(axes: Axes, segments: Sequence[Segment], duration_s: float) -> None:
    middles_s = [min((start_s + min(end_s, duration_s)) / 2, duration_s) for start_s, end_s in segments]
    for (start_s, end_s), place_s in zip(segments, spread(middles_s, gap=0.13 * duration_s), strict=True):
        text = f"{start_s:.1f} to {end_s:.1f} s"
        axes.text(place_s, -0.55, text, ha="center", color=AFTER_COLOR, fontweight="bold")


def _write(figure: Figure, left: float, top: float, text: str, **look: Any) -> None:
    """Text whose middle is `top` inches below the upper edge."""
    figure.text(left / WIDTH, 1 - top / figure.get_size_inches()[1], one_line(text), va="center", **look)
