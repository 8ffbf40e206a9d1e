"""`museg reward`: why a response scored as it did, and the rewards of a file of responses."""

import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.progress import track
from rich.table import Table
from rich.text import Text

from museg_ray.cli.files import write_text
from museg_ray.config.load import load_config
from museg_ray.config.schema import PhaseConfig, RewardConfig, RewardWeights
from museg_ray.data.fields import expect, numbered_lines, read_object, read_pairs, read_segments, required
from museg_ray.errors import ConfigError, DataError
from museg_ray.report.timeline_text import Track, text_timeline
from museg_ray.rewards.answer import parse_items
from museg_ray.rewards.recipe import Recipe
from museg_ray.rewards.reference import ReferenceRewards, reference_rewards
from museg_ray.rewards.segments import iou
from museg_ray.shown_text import one_line
from museg_ray.terminal.console import SafeConsole, make_table
from museg_ray.types import GroundingQuery, Segment

if TYPE_CHECKING:
    from museg_ray.rewards.explain import Explanation

PHASE_1 = RewardWeights(matching=1.0, timestamp=1.0, format=1.0)
PAPER_COLUMNS = ("global", "local", "matching", "timestamp", "format", "total")
TIMELINE_WIDTH = 64
PIPE_WIDTH = 120

reward = typer.Typer(help="Rewards of responses: explained one by one, or computed for a file.", no_args_is_help=True)


RecipeName = Literal["paper", "reference"]
"""`paper` trains; `reference` is the published code's, to compare with."""


@reward.command("explain")
def explain_command(
    ground_truth: Annotated[str, typer.Option(help="True segments, e.g. '10-20 30.5-40'; or as JSON.")],
    response: Annotated[str, typer.Option(help="The model's response; - reads it from standard input.")],
    duration: Annotated[float | None, typer.Option(help="Seconds of the video, for a reward of your own.")] = None,
    question: Annotated[str, typer.Option(help="What was asked; shown, and given to a reward of your own.")] = "",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Score as this configuration or run's config.yaml does.")
    ] = None,
    phase: Annotated[str, typer.Option(help="With --config: name of the phase whose weights count.")] = "",
) -> None:
    """Print every part of a response's reward with the matched pairs and a time line."""
    from museg_ray.rewards.explain import explain

    truth = _ground_truth(ground_truth)
    text = _standard_input() if response == "-" else response
    settings, weights = _settings(config, phase)
    query = GroundingQuery("explain/0", "", question, truth, duration)
    explanation = explain(text, query, settings, weights)
    console = SafeConsole(PIPE_WIDTH)
    for shown in _explained(explanation, question, reference_rewards(text, truth)):
        console.print(shown)


@reward.command("score")
def score_command(
    responses: Annotated[
        Path, typer.Argument(help="JSON lines with response and ground_truth, the list of true segments.")
    ],
    out: Annotated[Path, typer.Option(help="File of rewards to write, one JSON line a response, in order.")],
    recipe: Annotated[RecipeName, typer.Option(help="Whose rewards.")] = "paper",
) -> None:
    """Score a file of responses. The total of `paper` has the weights of phase 1: r_M + r_T + r_F."""
    rows = list(_read_rows(responses, recipe))
    console = SafeConsole()
    score = partial(_paper_row, Recipe(RewardConfig())) if recipe == "paper" else _reference_row
    scored = [
        score(text, truth)
        for text, truth in track(rows, f"scoring {len(rows)} responses", console=console, transient=True)
    ]
    write_text(out, "".join(json.dumps(row) + "\n" for row in scored))
    console.print(_summary(scored, recipe))
    console.print_line(f"{len(scored)} rows in {out}")


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"The response on standard input is not UTF-8 text: {error}. Convert it to UTF-8.") from error


def _ground_truth(given: str) -> tuple[Segment, ...]:
    try:
        value = json.loads(given)
    except (ValueError, RecursionError):
        segments, problem = parse_items(given)
        if problem:
            raise DataError(
                f"--ground-truth {given!r}: {problem}. Expected segments in seconds such as '10-20 30.5-40'."
            ) from None
        return tuple(sorted(segments))
    return read_segments(value, "--ground-truth")


def _settings(config: Path | None, phase: str) -> tuple[RewardConfig, RewardWeights]:
    """Reward settings and weights: the paper's phase 1, or those of a phase of a configuration, its first by default.

    Raises:
        ConfigError: no phase of that name.
    """
    if config is None:
        if phase:
            raise ConfigError("--phase needs --config, the file whose phases are meant.")
        return RewardConfig(), PHASE_1
    loaded = load_config(config)
    found: list[PhaseConfig] = [p for p in loaded.train.phases if not phase or p.name == phase]
    if not found:
        names = ", ".join(repr(p.name) for p in loaded.train.phases)
        raise ConfigError(f"{config} has no phase {phase!r}; its phases are {names}.")
    return loaded.rewards, found[0].weights


def _explained(explanation: "Explanation", question: str, reference: ReferenceRewards) -> Iterator[RenderableType]:
    response = explanation.response
    if question:
        yield Text(one_line(question), "bold")
    tracks = [Track("truth", explanation.truth, "default"), Track("answer", response.segments, "cyan")]
    yield Padding(text_timeline(tracks, TIMELINE_WIDTH), (1, 0))
    if response.answer_problem:
        yield Text.assemble(("The answer is invalid", "red"), f": {one_line(response.answer_problem)}.\n")
    else:
        yield Padding(_pairs_table(explanation), (0, 0, 1, 0))
    yield _parts_table(explanation)
    yield Text.assemble(("published code ", "dim"), _reference_line(reference))


def _pairs_table(explanation: "Explanation") -> Table:
    """Every answered and every true segment, paired ones side by side, in order of time."""
    answered, truth = explanation.response.segments, explanation.truth
    paired = {match.true: match for match in explanation.matches}
    rows: list[tuple[Segment | None, Segment | None, float]] = [
        (answered[paired[j].predicted], true, paired[j].ngiou) if j in paired else (None, true, 0.0)
        for j, true in enumerate(truth)
    ]
    matched = {match.predicted for match in explanation.matches}
    rows += [(segment, None, 0.0) for i, segment in enumerate(answered) if i not in matched]
    table = make_table(numbers=["answered, s", "true, s", "IoU", "NGIoU"])
    for answer, true, ngiou in sorted(rows, key=lambda row: row[1] or row[0] or (0.0, 0.0)):
        overlap = iou([answer], [true]) if answer and true else 0.0
        table.add_row(_shown(answer), _shown(true), f"{overlap:.3f}", f"{ngiou:.3f}")
    return table


def _parts_table(explanation: "Explanation") -> Table:
    table = make_table(["", "part"], ["value", "weight", "counts"])
    table.add_column("why", style="dim", overflow="fold")
    for part in explanation.parts:
        counts = "" if part.weight is None else f"{part.weight * part.value:.3f}"
        weight = "" if part.weight is None else f"x {part.weight:g}"
        table.add_row(part.symbol, part.name, f"{part.value:.3f}", weight, counts, one_line(part.why))
    table.add_section()
    table.add_row("", "total", "", "", Text(f"{explanation.rewards.total:.3f}", "bold"), "")
    return table


def _shown(segment: Segment | None) -> str:
    return "-" if segment is None else f"{segment[0]:.2f} to {segment[1]:.2f}"


def _reference_line(reference: ReferenceRewards) -> str:
    form, plain, global_f1, local_ngiou, matching = reference
    return (
        f"format {form:g} (stage 2: {plain:g}), F1 {global_f1:.3f} + NGIoU {local_ngiou:.3f} = {matching:.3f}, "
        f"total {form + matching:.3f} of 3"
    )


def _read_rows(path: Path, recipe: RecipeName) -> Iterator[tuple[str, tuple[Segment, ...]]]:
    """
    Raises:
        DataError: the file cannot be read, or a row is not of the form; names file and line.
    """
    for number, line in numbered_lines(path):
        try:
            yield _read_row(line, recipe)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}. Correct or remove the row.") from error


def _read_row(line: str, recipe: RecipeName) -> tuple[str, tuple[Segment, ...]]:
    row = read_object(line, "response and ground_truth")
    response = required(row, "response")
    expect(isinstance(response, str), "response", response, "a text")
    # The published code takes what comes.
    read = read_segments if recipe == "paper" else partial(read_pairs, are_finite=True)
    return response, read(required(row, "ground_truth"), "ground_truth")


def _paper_row(scorer: Recipe, text: str, truth: tuple[Segment, ...]) -> dict[str, float | None]:
    rewards = scorer.score(text, GroundingQuery("score/0", "", "", truth), PHASE_1)
    values = (rewards.global_match, rewards.local_match, rewards.matching, rewards.timestamp, rewards.format)
    return dict(zip(PAPER_COLUMNS, (*values, rewards.total), strict=True))


def _reference_row(text: str, truth: tuple[Segment, ...]) -> dict[str, float | None]:
    """JSON has no NaN; null stands for it."""
    rewards = reference_rewards(text, truth)._asdict()
    return {name: value if math.isfinite(value) else None for name, value in rewards.items()}


def _summary(scored: list[dict[str, float | None]], recipe: RecipeName) -> Table:
    table = make_table(["part"], ["mean", "least", "most"], title=f"recipe {recipe}")
    for name in scored[0] if scored else ():
        values = [value for row in scored if (value := row[name]) is not None]
        if values:
            table.add_row(name, *(f"{value:.3f}" for value in (sum(values) / len(values), min(values), max(values))))
    return table
