"""`museg train`: a run from a configuration file, on a local Ray or inside a submitted Ray job."""

from pathlib import Path
from typing import Annotated

import typer

from museg_ray.config.load import load_config
from museg_ray.terminal.console import SafeConsole


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file, e.g. configs/museg_7b.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value pairs that win over the file.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run run.name where it is there: run.resume=true.")
    ] = False,
) -> None:
    """Train by GRPO: rollouts, rewards, updates, held-out evaluation before and after."""
    loaded = load_config(config, [*(overrides or ()), *(["run.resume=true"] if resume else [])])

    from museg_ray.train.run import run  # heavy imports (torch, ray): a wrong configuration is told at once

    SafeConsole().print_line(f"Run folder: {run(loaded)}")
