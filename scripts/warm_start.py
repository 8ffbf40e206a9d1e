"""How museg-tiny was made: `make tiny` trains it anew from random weights, and replaces the packaged folder.

The packaged folder defines the architecture, which is that of Qwen2.5-VL at about 1.3 M parameters, with the same
classes, special tokens and chat format, so that the rest of the system cannot tell them apart. In its files

* the tokenizer is a byte-level BPE of the demo's prompts and responses, with digits as tokens of their own, as Qwen's
* `initializer_range` is 0.06: Qwen's 0.02 leaves the video features of so narrow a model almost constant, and it then
  learns without looking
* `tokens_per_second` is 1, one position a second: each word of a scan is then equally far from its frames
* the processor's frames have 56 x 56 to 84 x 56 pixels

The training is supervised, up to the point where reinforcement learning has clear room above it:

    random weights ─▶ scans ("no no red red no …", a word a second), which tie each time to its frames
                   ─▶ full responses, a scan and then what a careless annotator answered ─▶ the packaged model

The careless annotator mostly names only the first of several segments. So the model learns to see and to read off what
it saw, and then to answer badly, which the rewards can tell and the loss cannot: that is GRPO's part of the work.
The videos are a corpus of their own; neither the demo's train split nor its held-out videos are among them.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from museg_ray.cli.train import demo_config_path
from museg_ray.config.load import MODEL_CONFIG_FILE, load_config, save_config
from museg_ray.config.schema import Config, SyntheticConfig
from museg_ray.data.annotations import read_annotations
from museg_ray.demo.corpus import ensure_corpus
from museg_ray.model.packing import Pack, Row, pack_rows
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.policy import PolicyModel, Videos
from museg_ray.model.positions import prompt_positions, seconds_per_grid
from museg_ray.model.prompt import chat_prompt_ids, expand_video
from museg_ray.model.qwen_vl import (
    PACKAGED_MODEL_DIR,
    end_token_id,
    forbidden_token_ids,
    load_tokenizer,
    load_vision_spec,
)
from museg_ray.types import Clip, GroundingQuery, Segment
from museg_ray.video.prepare import read_clip

CORPUS = SyntheticConfig(num_train_videos=3000, num_heldout_videos=0, seed=1)
SEED = 0
VIDEOS_PER_STEP = 16
WARMUP_SHARE = 0.08
ADAM_BETAS = (0.9, 0.98)
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json")
"""Of the packaged folder: what a model has beside its weights and configuration."""
CITE_PROMPT = "Find every time {question}. Refer to specific timestamps."
"""Phase 1: the reasoning is to name the times."""
FREE_PROMPT = "Find every time {question}."
"""Phase 2 and evaluation."""
SCAN_PROMPT = "Second by second: {question}?"
"""The first lessons of the warm start: the scan alone."""


@dataclass(frozen=True, slots=True)
class Course:
    """One stretch of supervised training, with an optimiser and a one-cycle learning rate of its own."""

    num_steps: int
    learning_rate: float
    num_scan_steps: int
    """First steps with scans only: without them the model learns to answer without looking."""
    first_only_probability: float
    """How often the annotator names only the first of several segments."""


COURSES = (
    Course(1200, 2e-3, num_scan_steps=300, first_only_probability=0.0),
    Course(250, 1e-3, num_scan_steps=0, first_only_probability=0.6),
)
"""The second one leaves a habit of naming one segment of several: MUSEG's first failure signature, and the room that
reinforcement learning has. Greedy answers then almost always name one; samples often name all, so that a group shows
the difference; at 0.85 too few did, and held-out mIoU fell in training."""


Lesson = tuple[str, str]
"""A prompt about a video, and what to say to it."""


def careless_segments(rng: np.random.Generator, course: Course, segments: Sequence[Segment]) -> Sequence[Segment]:
    """What the careless annotator notes of the true segments: all, or the first."""
    return segments[:1] if rng.random() < course.first_only_probability else segments


def draw_lesson(rng: np.random.Generator, course: Course, query: GroundingQuery, scan_only: bool) -> Lesson:
    assert query.duration_s is not None, "the corpus gives every duration"
    scan = write_scan(query.question, query.segments, int(query.duration_s))
    if scan_only:
        return SCAN_PROMPT.format(question=query.question), scan
    prompt = CITE_PROMPT if rng.random() < 0.5 else FREE_PROMPT
    segments = careless_segments(rng, course, query.segments)
    return prompt.format(question=query.question), write_response(scan, segments)


def format_segments(segments: Sequence[Segment]) -> str:
    return " ".join(f"{start_s:.1f}-{end_s:.1f}" for start_s, end_s in segments)


def write_scan(event: str, segments: Sequence[Segment], duration_s: int) -> str:
    """One word a second: the object's colour while it is visible, else `no`.

    The colour word and not `yes`: its logit can grow with "this colour is asked for" and with "this colour is seen"
    separately, where `yes` needs their product, which a tiny model does not find.
    """
    color = event.split()[1]
    visible = [any(start_s <= second < end_s for start_s, end_s in segments) for second in range(duration_s)]
    return " ".join(color if seen else "no" for seen in visible)


def write_response(scan: str, segments: Sequence[Segment]) -> str:
    """A full response in MUSEG's form: a scan of the video, the times read off it, then the answer."""
    cited = " and ".join(f"{start_s:.1f} to {end_s:.1f}" for start_s, end_s in segments)
    return f"<think>{scan}. So from {cited}.</think><answer>{format_segments(segments)}</answer>"


def build_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random float32 weights, the same for the same seed."""
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(PACKAGED_MODEL_DIR)).float()


def save_tiny_model(model: Qwen2_5_VLForConditionalGeneration, out_dir: Path) -> None:
    """Write a Hugging Face folder that stock transformers and stock vLLM load."""
    model.save_pretrained(out_dir)
    for name in TEXT_FILES:
        shutil.copyfile(PACKAGED_MODEL_DIR / name, out_dir / name)


class WarmStart:
    """A tiny policy under supervised training."""

    def __init__(self) -> None:
        self.tokenizer, self._spec = load_tokenizer(PACKAGED_MODEL_DIR), load_vision_spec(PACKAGED_MODEL_DIR)
        model = build_model(SEED)
        forbidden = forbidden_token_ids(self.tokenizer, model.config.text_config.vocab_size)
        self.policy = PolicyModel(model, forbidden, temperature=1.0, attention="split", chunk_tokens=1024)
        self._end_id = end_token_id(self.tokenizer)

    def loss(self, clip: Clip, lessons: Sequence[Lesson]) -> tuple[torch.Tensor, int]:
        """Summed negative log-likelihood of all responses to one video, and their number of tokens.

        The lessons share the video: the pack is `[start of the prompt and video | lesson 1 | … | lesson n]`.
        """
        pack, is_response = self._pack(clip, lessons)
        grids = torch.tensor([video_grid(clip.frames, self._spec)])
        logprobs, _ = self.policy(pack, Videos(grids, patchify(clip.frames, self._spec)))
        return -logprobs[is_response].sum(), int(is_response.sum())

    def _pack(self, clip: Clip, lessons: Sequence[Lesson]) -> tuple[Pack, torch.Tensor]:
        grid = video_grid(clip.frames, self._spec)
        branches: list[list[int]] = []
        is_response: list[bool] = []
        for user_text, text in lessons:
            prompt_ids = chat_prompt_ids(self.tokenizer, user_text)
            prompt = expand_video(prompt_ids, self._spec.num_video_tokens(grid), self._spec)
            split = max(i for i, token in enumerate(prompt) if token == self._spec.video_token_id) + 1
            shared, rest = prompt[:split], prompt[split:]
            response = [*self.tokenizer.encode(text, add_special_tokens=False), self._end_id]
            branches.append([*rest, *response])
            is_response += [False] * len(rest) + [True] * len(response)
        interval_s = seconds_per_grid(clip.sample_fps, self._spec, torch.float32)
        positions = prompt_positions(shared, grid, interval_s, self._spec)
        pack = pack_rows([Row(shared, positions, branches)], self._spec.video_token_id)
        return pack, torch.tensor(is_response)


def _learning_rate_factor(num_steps: int, step: int) -> float:
    """Linear warm-up, then a half cosine to 0."""
    warmup = WARMUP_SHARE * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


def _endless_videos(rng: np.random.Generator, num_videos: int) -> Iterator[int]:
    while True:
        yield from rng.permutation(num_videos).tolist()


def _load_corpus(config: Config, progress: Progress) -> list[tuple[Clip, list[GroundingQuery]]]:
    """Every video of the warm-start corpus with its queries; decoded in parallel."""
    render = progress.add_task("render videos", total=None)
    corpus = ensure_corpus(CORPUS, lambda done, total: progress.update(render, completed=done, total=total))
    by_video: dict[str, list[GroundingQuery]] = {}
    for query in read_annotations(corpus.train):
        by_video.setdefault(query.video, []).append(query)
    decode = progress.add_task("decode videos", total=len(by_video))
    loaded = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # see corpus.py
        clips = pool.map(read_clip, by_video, [config.video] * len(by_video), chunksize=16)
        for queries, clip in zip(by_video.values(), clips, strict=True):
            loaded.append((clip, queries))
            progress.advance(decode)
    return loaded


def rebuild_tiny_model(config: Config, out_dir: Path = PACKAGED_MODEL_DIR) -> None:
    """Train museg-tiny from random weights and write it to `out_dir`, whole or not at all.

    Args:
        config: the demo's; its video settings are what the model is trained on and what goes beside its weights.
    """
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".museg-tiny-") as scratch, Progress() as progress:
        warm_start = WarmStart()
        corpus = _load_corpus(config, progress)
        for course in COURSES:
            _train(warm_start, course, corpus, progress)
        trained = Path(scratch) / "trained"
        save_tiny_model(warm_start.policy.model.to(torch.bfloat16), trained)
        save_config(config, trained / MODEL_CONFIG_FILE)
        if out_dir.exists():
            out_dir.rename(Path(scratch) / "replaced")  # deleted with the rest, once the new one is in its place
        trained.rename(out_dir)


def _train(
    warm_start: WarmStart, course: Course, corpus: list[tuple[Clip, list[GroundingQuery]]], progress: Progress
) -> None:
    rng = np.random.default_rng(SEED)
    parameters = list(warm_start.policy.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=course.learning_rate, betas=ADAM_BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_learning_rate_factor, course.num_steps))
    videos = _endless_videos(rng, len(corpus))
    bar = progress.add_task("warm start", total=course.num_steps)
    for step in range(course.num_steps):
        num_tokens = 0
        for _ in range(VIDEOS_PER_STEP):
            clip, queries = corpus[next(videos)]
            lessons = [draw_lesson(rng, course, query, step < course.num_scan_steps) for query in queries]
            loss, count = warm_start.loss(clip, lessons)
            loss.backward()
            num_tokens += count
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= num_tokens  # the step's gradient is the mean over its response tokens
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.update(bar, advance=1, description=f"warm start (loss {loss.item() / count:.3f})")


if __name__ == "__main__":
    rebuild_tiny_model(load_config(demo_config_path()))
