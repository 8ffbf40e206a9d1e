"""`museg demo`: the whole system on this machine's CPU, in minutes."""

from pathlib import Path
from typing import Annotated

import typer

from museg_ray.config.load import load_config
from museg_ray.terminal.console import SafeConsole


def demo(
    run_dir: Annotated[Path | None, typer.Option(help="Folder of this run; new or empty, but for --resume.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds query order and sampling.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --run-dir where it is there.")
    ] = False,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value pairs that win over the demo's.")] = None,
) -> None:
    """Train museg-tiny on rendered videos through both reward phases and show what it learned."""
    settings = [f"run.seed={seed}", *(overrides or ())]
    if resume:
        settings.append("run.resume=true")
    loaded = load_config(demo_config_path(), settings)
    if run_dir is not None:  # not as an override: as YAML 1.10 would be 1.1, another run
        place = run_dir.expanduser().resolve()
        loaded.run.dir, loaded.run.name = str(place.parent), place.name

    from museg_ray.train.run import run

    SafeConsole().print_line(f"Run folder: {run(loaded)}")


def demo_config_path() -> Path:
    """`configs/demo.yaml` of the clone, or the copy inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / "configs" / "demo.yaml", package / "configs" / "demo.yaml")
    return next(place for place in places if place.is_file())
