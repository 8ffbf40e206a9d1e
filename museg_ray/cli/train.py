"""`museg train`: a run from a configuration file, on a local Ray or inside a submitted Ray job; `museg demo`: the whole
system on this machine's CPU, in minutes."""

from pathlib import Path
from typing import Annotated

import typer

from museg_ray.config.load import load_config
from museg_ray.config.schema import Config
from museg_ray.terminal.console import SafeConsole

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value pairs that win over the file's.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run of that name where it is there: run.resume=true.")
]


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file, e.g. configs/museg_7b.yaml.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train by GRPO: rollouts, rewards, updates, held-out evaluation before and after."""
    _run(_loaded(config, overrides, resume))


def demo(
    run_dir: Annotated[Path | None, typer.Option(help="Folder of this run; new or empty, but for --resume.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds query order and sampling.")] = 0,
    resume: Resume = False,
    overrides: Overrides = None,
) -> None:
    """Train museg-tiny on rendered videos through both reward phases and show what it learned."""
    loaded = _loaded(demo_config_path(), [f"run.seed={seed}", *(overrides or ())], resume)
    if run_dir is not None:  # not as an override: as YAML 1.10 would be 1.1, another run
        place = run_dir.expanduser().resolve()
        loaded.run.dir, loaded.run.name = str(place.parent), place.name
    _run(loaded)


def demo_config_path() -> Path:
    """`configs/demo.yaml` of the clone, or the copy inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / "configs" / "demo.yaml", package / "configs" / "demo.yaml")
    return next(place for place in places if place.is_file())


def _loaded(path: Path, overrides: list[str] | None, resume: bool) -> Config:
    return load_config(path, [*(overrides or ()), *(["run.resume=true"] if resume else [])])


def _run(config: Config) -> None:
    from museg_ray.train.run import run  # heavy imports (torch, ray): a wrong configuration is told at once

    SafeConsole().print_line(f"Run folder: {run(config)}")
