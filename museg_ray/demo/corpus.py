"""Renders the synthetic corpus: mp4 files and MUSEG annotation files, train and held-out with no shared video.

`ensure_corpus` is the one entrance: it renders what is missing, in parallel, and never leaves a half-written corpus.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np

from museg_ray.config.schema import SyntheticConfig
from museg_ray.demo.scene import Scene, draw_background, draw_frame, draw_scene
from museg_ray.ending import end_with_parent
from museg_ray.errors import ResourceError

CORPUS_VERSION = 1
"""Raise when a change of this folder's code changes what is rendered: old corpora are then not reused."""
SPLITS = ("train", "heldout")

Progress = Callable[[int, int], None]
"""Called with (videos done, videos in all)."""


@dataclass(frozen=True, slots=True)
class Corpus:
    train: Path
    """Annotation file (.jsonl) of the train split."""
    heldout: Path


def encode_video(scene: Scene, path: Path) -> None:
    """Render a scene as H.264 in mp4 at the scene's own size and frame rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(scene.fps), options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        stream.codec_context.thread_count = 1  # the videos are many and small: one process each is faster
        background = draw_background(scene)
        for index in range(scene.duration_s * scene.fps):
            frame = draw_frame(scene, background, index / scene.fps)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _video_name(split: str, index: int) -> str:
    return f"videos/{split}_{index:05d}.mp4"


def _render_video(root: Path, seed: int, split: str, index: int) -> Scene:
    """Scenes are seeded one by one, so that a corpus with more videos starts with the same ones."""
    scene = draw_scene(np.random.default_rng((CORPUS_VERSION, seed, SPLITS.index(split), index)))
    encode_video(scene, root / _video_name(split, index))
    return scene


def _annotation_rows(split: str, scenes: Sequence[Scene]) -> list[dict[str, object]]:
    shown = [(index, scene, drawn) for index, scene in enumerate(scenes) for drawn in scene.objects]
    return [
        {
            "idx": number,
            "problem": drawn.event,
            "solution": [list(segment) for segment in drawn.segments],
            "video": _video_name(split, index),
            "duration": scene.duration_s,
            "task": "tvg" if len(drawn.segments) == 1 else "tal",
        }
        for number, (index, scene, drawn) in enumerate(shown)
    ]


def _render(root: Path, config: SyntheticConfig, progress: Progress) -> None:
    (root / "videos").mkdir()
    counts = {"train": config.num_train_videos, "heldout": config.num_heldout_videos}
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    scenes: dict[str, list[Scene]] = {split: [] for split in counts}
    # Spawned: a child that is forked while threads of other libraries hold a lock waits for it for ever. One whose
    # parent was killed would wait for work for ever.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), initializer=end_with_parent) as pool:
        futures = [pool.submit(_render_video, root, config.seed, split, index) for split, index in jobs]
        try:
            for done, ((split, _), future) in enumerate(zip(jobs, futures, strict=True), start=1):
                scenes[split].append(future.result())
                progress(done, len(jobs))
        except BaseException:  # also Ctrl-C: without this the pool would render the whole queue before it ends
            pool.shutdown(cancel_futures=True)
            raise
    for split, of_split in scenes.items():
        lines = [json.dumps(row) + "\n" for row in _annotation_rows(split, of_split)]
        (root / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def ensure_corpus(config: SyntheticConfig, progress: Progress = lambda done, total: None) -> Corpus:
    """The corpus for these settings, rendered when it is not there yet.

    A corpus appears whole or not at all: it is rendered in a temporary folder beside its place and renamed.
    Two processes may do so at once; the second one's copy is dropped.

    Raises:
        ResourceError: the folder cannot be written (names it and the system's reason).
    """
    name = f"v{CORPUS_VERSION}-seed{config.seed}-{config.num_train_videos}+{config.num_heldout_videos}"
    place = Path(config.dir).expanduser().resolve() / name
    corpus = Corpus(place / "train.jsonl", place / "heldout.jsonl")
    if place.is_dir():
        return corpus
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{name}-", ignore_cleanup_errors=True) as scratch:
            root = Path(scratch) / name
            root.mkdir()
            _render(root, config, progress)
            if not place.is_dir():
                shutil.move(root, place)
    except OSError as error:
        raise ResourceError(
            f"Cannot render the synthetic corpus into {place}: {error}. "
            "Free some space there or set data.synthetic.dir to another folder."
        ) from error
    return corpus
