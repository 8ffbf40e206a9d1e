import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from museg_ray.config.schema import SyntheticConfig, VideoConfig
from museg_ray.data.annotations import read_annotations
from museg_ray.demo.corpus import Corpus, ensure_corpus
from museg_ray.demo.scene import COLORS, MAX_COVERAGE, Scene, draw_background, draw_frame, draw_scene
from museg_ray.errors import ResourceError
from museg_ray.video.prepare import read_clip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SyntheticConfig:
    return SyntheticConfig(dir=str(tmp_path_factory.mktemp("corpus")), num_train_videos=6, num_heldout_videos=3)


@pytest.fixture(scope="module")
def corpus(config: SyntheticConfig) -> Corpus:
    return ensure_corpus(config)


def _scenes(count: int) -> list[Scene]:
    return [draw_scene(np.random.default_rng((9, i))) for i in range(count)]


def test_train_and_heldout_share_no_video(corpus: Corpus) -> None:
    train = {query.video for query in read_annotations(corpus.train)}
    heldout = {query.video for query in read_annotations(corpus.heldout)}
    assert len(train) == 6 and len(heldout) == 3
    assert not train & heldout
    assert len({Path(video).read_bytes() for video in train | heldout}) == 9


def test_decoded_clips_have_the_annotated_duration_at_two_frames_a_second(corpus: Corpus) -> None:
    video = VideoConfig(min_pixels=3136, max_pixels=5000)
    for query in read_annotations(corpus.heldout):
        clip = read_clip(query.video, video)
        assert clip.duration_s == query.duration_s
        assert clip.sample_fps == 2.0
        assert clip.frames.shape[1:] in {(56, 56, 3), (56, 84, 3), (84, 56, 3)}


def test_the_asked_object_is_in_the_frames_exactly_during_its_segments(corpus: Corpus) -> None:
    video = VideoConfig(min_pixels=3136, max_pixels=5000)
    for query in read_annotations(corpus.heldout):
        color = query.question.split()[1]
        same_color = [q for q in read_annotations(corpus.heldout) if q.video == query.video and color in q.question]
        if len(same_color) > 1:
            continue  # a distractor of this colour: colour alone does not tell when
        clip = read_clip(query.video, video)
        distance = np.abs(clip.frames.astype(int) - np.array(COLORS[color])).sum(axis=-1)  # [T, H, W]
        seen = (distance < 90).sum(axis=(1, 2)) > 20  # [T]
        truth = [any(start_s <= time_s < end_s for start_s, end_s in query.segments) for time_s in clip.times_s]
        assert seen.tolist() == truth, query


def test_a_second_call_renders_nothing(config: SyntheticConfig, corpus: Corpus) -> None:
    calls: list[int] = []
    assert ensure_corpus(config, lambda done, total: calls.append(done)) == corpus
    assert calls == []


def test_the_same_settings_give_the_same_annotations(corpus: Corpus, tmp_path: Path) -> None:
    again = ensure_corpus(SyntheticConfig(dir=str(tmp_path), num_train_videos=6, num_heldout_videos=3))
    assert again.train.read_text() == corpus.train.read_text()
    other = ensure_corpus(SyntheticConfig(dir=str(tmp_path), num_train_videos=6, num_heldout_videos=3, seed=1))
    assert other.train.read_text() != corpus.train.read_text()


def test_annotations_follow_the_museg_schema(corpus: Corpus) -> None:
    for line in corpus.train.read_text().splitlines():
        row = json.loads(line)
        assert set(row) == {"idx", "problem", "solution", "video", "duration", "task"}
        assert row["task"] == ("tvg" if len(row["solution"]) == 1 else "tal")


def test_a_failed_rendering_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left on device"):
        ensure_corpus(SyntheticConfig(dir=str(tmp_path), num_train_videos=2, num_heldout_videos=1), fail)
    assert list(tmp_path.iterdir()) == []


def test_appearances_are_apart_inside_the_video_and_short_against_it() -> None:
    for scene in _scenes(200):
        for drawn in scene.objects:
            assert all(0 <= a.start_s < a.end_s <= scene.duration_s for a in drawn.appearances)
            assert all(before.end_s < after.start_s for before, after in pairwise(drawn.appearances))
            covered_s = sum(a.end_s - a.start_s for a in drawn.appearances)
            assert covered_s <= MAX_COVERAGE * scene.duration_s


def test_no_two_objects_are_in_the_same_quadrant_at_the_same_time() -> None:
    for scene in _scenes(200):
        visits = [a for drawn in scene.objects for a in drawn.appearances]
        for i, one in enumerate(visits):
            for other in visits[:i]:
                together = one.start_s < other.end_s and other.start_s < one.end_s
                assert not (together and one.quadrant == other.quadrant)


def test_scenes_have_one_to_four_segments_and_distractors_of_the_same_colour() -> None:
    scenes = _scenes(200)
    assert {len(o.segments) for scene in scenes for o in scene.objects} == {1, 2, 3, 4}
    assert all(len({(o.color, o.shape) for o in scene.objects}) == len(scene.objects) for scene in scenes)
    assert any(len({o.color for o in scene.objects}) < len(scene.objects) for scene in scenes)


def test_a_visible_object_moves() -> None:
    scene = _scenes(1)[0]
    background = draw_background(scene)
    visit = max((a for o in scene.objects for a in o.appearances), key=lambda a: a.end_s - a.start_s)
    first = draw_frame(scene, background, visit.start_s)
    last = draw_frame(scene, background, visit.end_s - 0.01)
    assert (first != last).any()
