"""`museg ground`: one video, one question, the time segments that answer it."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from museg_ray.config.load import MODEL_CONFIG_FILE, load_config
from museg_ray.config.schema import Config, EvaluationConfig, ModelConfig, VideoConfig
from museg_ray.data.fields import is_unicode
from museg_ray.errors import DataError
from museg_ray.shown_text import one_line, shown
from museg_ray.terminal.console import SafeConsole, print_json
from museg_ray.terminal.silence import silenced_libraries
from museg_ray.types import EVALUATION, Clip, GroundingQuery, Issue

if TYPE_CHECKING:
    from museg_ray.rewards.answer import ParsedResponse


QUESTION_TOKENS, VIDEO_TOKENS = 512, 3584
"""Room for a question with its prompt, and for a video, of a model that has no configuration of its own."""


def ground(
    video: Annotated[Path, typer.Argument(help="Video file.")],
    question: Annotated[str, typer.Argument(help="The event, e.g. 'the red circle is visible'.")],
    model: Annotated[str, typer.Option(help="Folder of a trained model, e.g. RUN/model; or museg-tiny.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a time line with key frames to this PNG.")] = None,
) -> None:
    """Print the time segments of an event in a video, and the reasoning that led to them."""
    if not is_unicode(question):
        raise DataError(f"The question {question!r} is not UTF-8 text. Type it in a terminal that is set to UTF-8.")

    from museg_ray.report.timelines import draw_grounding
    from museg_ray.rewards.answer import parse_response
    from museg_ray.video.prepare import read_clip

    with silenced_libraries() as terminal, SafeConsole(file=terminal).status("asking the model …"):
        from museg_ray.model.qwen_vl import resolve_model_path

        model_dir = resolve_model_path(model)
        config = _model_config(model_dir)
        clip = read_clip(str(video), config.video)
        text = asyncio.run(_ask(model_dir, config, clip, question))
    parsed = parse_response(text)
    if plot is not None:
        draw_grounding(plot, clip, question, parsed.segments)
    if as_json:
        about = {"video": clip.video, "question": question, "duration_s": clip.duration_s}
        print_json(about | {"segments": parsed.segments, "reasoning": parsed.reasoning, "response": text})
    else:
        _print(clip, question, text, parsed, plot)


def _model_config(model_dir: Path) -> Config:
    """The configuration beside the weights; where there is none the paper's sizes, in the units of the model's family,
    with room for them."""
    from museg_ray.model.qwen_vl import check_frames_fit, context_limit, load_vision_spec

    beside = model_dir / MODEL_CONFIG_FILE
    if beside.is_file():
        config = load_config(beside)
        check_frames_fit(config.video, model_dir)
        return config
    spec = load_vision_spec(model_dir)
    token_pixels, others = spec.size_multiple**2, QUESTION_TOKENS + EvaluationConfig().max_completion_tokens
    video_tokens = min(VIDEO_TOKENS, context_limit(model_dir) - others)
    video = VideoConfig(
        min_pixels=16 * token_pixels,
        max_pixels=768 * token_pixels,
        total_pixels=video_tokens * token_pixels,
        size_multiple=spec.size_multiple,
        pair_tokens=spec.pair_tokens,
    )
    return Config(model=ModelConfig(max_tokens=video_tokens + others), video=video)


async def _ask(model_dir: Path, config: Config, clip: Clip, question: str) -> str:
    """The model's greedy response, from the same engine that training rolls out with."""
    from museg_ray.rollout.vllm_setup import engine_environment

    os.environ.update(engine_environment(config.rollout))  # before vLLM is imported

    from museg_ray.data.prompts import render_prompt
    from museg_ray.model.prompt import chat_prompt_ids
    from museg_ray.model.qwen_vl import load_tokenizer
    from museg_ray.rollout.engine import RolloutEngine, Sampling

    engine = await RolloutEngine.start(model_dir, config.model, config.rollout)
    try:
        prompt_ids = chat_prompt_ids(load_tokenizer(model_dir), render_prompt(config.evaluation_prompt, question))
        query = GroundingQuery(query_id="ground", video=clip.video, question=question, segments=())
        issue = Issue(0, query, phase=EVALUATION, seed=0)
        sampling = Sampling(1, 0.0, config.evaluation.max_completion_tokens)
        group = await engine.generate(issue, prompt_ids, clip, sampling)
    finally:
        engine.close()
    return group.responses[0].text


def _print(clip: Clip, question: str, text: str, parsed: "ParsedResponse", plot: Path | None) -> None:
    console = SafeConsole(soft_wrap=True)
    place = f"  in {one_line(clip.video)} ({clip.duration_s:g} s)"
    console.print(Text.assemble((one_line(question), "bold"), (place, "dim")))
    for start_s, end_s in parsed.segments:
        console.print(f"  {start_s:8.2f} s – {end_s:.2f} s", style="green")
    if not parsed.segments:
        console.print("  The response holds no valid answer; here it is as the model wrote it:")
        console.print(f"  {text}")
    elif parsed.reasoning:
        console.print(Text.assemble(("reasoning: ", "dim"), shown(parsed.reasoning.strip())))
    if plot is not None:
        console.print(Text.assemble(("picture: ", "dim"), one_line(str(plot))))
