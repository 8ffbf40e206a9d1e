"""`museg bench`: benchmarks, each a table and, with --json, a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from museg_ray.bench.result import BenchResult, Tell
from museg_ray.cli.files import write_text
from museg_ray.terminal.console import SafeConsole
from museg_ray.terminal.silence import silenced_libraries

bench = typer.Typer(help="Benchmarks against the naive or the published way, in one run.", no_args_is_help=True)

Rounds = Annotated[int, typer.Option(min=1, help="Measurements; the median counts.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]


def _run(what: str, json_file: Path | None, measure: Callable[[Tell], BenchResult]) -> None:
    with silenced_libraries() as terminal, SafeConsole(file=terminal).status(f"measuring {what} …") as status:
        result = measure(status.update)
    result.print(SafeConsole())
    if json_file is not None:
        write_text(json_file, result.as_json())


@bench.command()
def rewards(rounds: Rounds = 15, json_file: JsonFile = None) -> None:
    """Responses a second of both reward recipes, and the overhead of the reward pool."""
    from museg_ray.bench.rewards import bench_rewards
    from museg_ray.fleet.local_ray import local_ray

    with local_ray(num_cpus=2):
        _run("rewards", json_file, lambda tell: bench_rewards(rounds))


@bench.command()
def video(rounds: Rounds = 3, json_file: JsonFile = None) -> None:
    """Preparing clips against qwen-vl-utils: time, memory, tokens; and the bytes that a group moves to the engine."""
    from museg_ray.bench.video import bench_video

    _run("video", json_file, lambda tell: bench_video(rounds, tell))


@bench.command()
def learner(
    rounds: Rounds = 3,
    model: Annotated[
        Literal["tiny", "3b"],
        typer.Option(help="museg-tiny in float32, or the sizes of Qwen2.5-VL-3B with random weights in bfloat16."),
    ] = "tiny",
    json_file: JsonFile = None,
) -> None:
    """One update pass over a group, packed, against the published trainer's row by row: time, memory, equality."""
    from museg_ray.bench.learner import bench_learner

    _run("the learner", json_file, lambda tell: bench_learner(model, rounds, tell))


@bench.command()
def pipeline(json_file: JsonFile = None) -> None:
    """What the driver adds to rollouts and learner: overlap, its own time with many actors, its books, scaling."""
    from museg_ray.bench.pipeline import bench_pipeline

    _run("the pipeline", json_file, bench_pipeline)


@bench.command()
def weights(
    size_gib: Annotated[
        float, typer.Option(min=0.01, help="Of the made-up weights; it takes nine times as much.")
    ] = 2.0,
    rounds: Rounds = 5,
    is_real: Annotated[bool, typer.Option("--real", help="Also the phases of pushes in a real run.")] = False,
    json_file: JsonFile = None,
) -> None:
    """A push of weights to four engines and a second machine, over plain copies of as many bytes."""
    from museg_ray.bench.weights import bench_weights

    _run("weights", json_file, lambda tell: bench_weights(size_gib, rounds, tell, is_real))
