"""`museg export`: a model folder out of a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from museg_ray.config.load import load_config
from museg_ray.errors import CheckpointError
from museg_ray.shown_text import one_line
from museg_ray.terminal.console import SafeConsole
from museg_ray.terminal.silence import silenced_libraries


def export(
    source: Annotated[
        Path, typer.Argument(help="Run folder (its newest whole checkpoint), or RUN/checkpoints/step-….")
    ],
    out_dir: Annotated[Path, typer.Argument(help="Folder of the model; new or empty.")],
    best: Annotated[bool, typer.Option("--best", help="Of a run: the checkpoint with the best score.")] = False,
) -> None:
    """Write a Hugging Face folder that transformers, vLLM and `museg ground` load."""
    from museg_ray.checkpoints import folder as checkpoints

    console = SafeConsole(soft_wrap=True)
    if (source / checkpoints.CHECKPOINTS_DIR).is_dir():
        chosen, refusals = checkpoints.choose(source / checkpoints.CHECKPOINTS_DIR, best)
        for refusal in refusals:
            console.print(Text.assemble(("warning: ", "yellow"), one_line(refusal)))
    elif best:
        raise CheckpointError(f"{source} is no run folder with checkpoints; --best chooses among those of a run.")
    else:
        chosen = checkpoints.as_checkpoint(source.resolve())
        checkpoints.verify(chosen)
    with (
        silenced_libraries() as terminal,
        SafeConsole(file=terminal).status(f"step {chosen.step}: writing the model …"),
    ):
        from museg_ray.model.export import export_checkpoint

        config = load_config(chosen.config_path)
        size_bytes = export_checkpoint(chosen.learner_dir, config, out_dir)
    console.print_line(f"Model of step {chosen.step}: {out_dir} ({size_bytes / 1024**2:.1f} MiB)")
