"""The `museg` command. A user's mistake ends with one clear line and exit code 1, never with a traceback."""

import sys

import typer

from museg_ray.cli.bench import bench
from museg_ray.cli.data import data
from museg_ray.cli.data_prepare import prepare
from museg_ray.cli.data_probe import probe
from museg_ray.cli.export import export
from museg_ray.cli.ground import ground
from museg_ray.cli.handle import scale, status, stop
from museg_ray.cli.reward import reward
from museg_ray.cli.train import demo, train
from museg_ray.ending import received_signal, still_living, take_over
from museg_ray.errors import MusegError
from museg_ray.terminal.console import SafeConsole

EXIT_ERROR = 1

app = typer.Typer(
    help="Train and use video-language models that answer 'when does this happen?' (MUSEG, arXiv 2505.20715, on Ray).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, train, ground, export, status, scale, stop):
    app.command()(command)
app.add_typer(reward, name="reward")
app.add_typer(bench, name="bench")
data.command()(prepare)
data.command()(probe)
app.add_typer(data, name="data")


def _user_error(error: BaseException) -> MusegError | None:
    """The error of ours inside `error`: Ray wraps what an actor raises and adds the remote traceback to its text."""
    candidates = (getattr(error, "cause", None), error)
    return next((each for each in candidates if isinstance(each, MusegError)), None)


def main() -> None:
    take_over()
    console = SafeConsole(stderr=True)
    try:
        app()
    except SystemExit:
        _exit_if_interrupted(console)
        raise
    except Exception as error:
        mistake = _user_error(error)
        if mistake is None:
            raise  # a bug of ours: its traceback is wanted
        console.print("error:", style="bold red", end=" ")
        console.print_line(f"{type(mistake).__name__}: {mistake}")
        _exit_if_interrupted(console)
        sys.exit(EXIT_ERROR)


def _exit_if_interrupted(console: SafeConsole) -> None:
    """By Ctrl-C or SIGTERM, with a shell's code for that. What it says about processes has been looked at."""
    number = received_signal()
    if number is None:
        return
    left = ", ".join(still_living())
    said = f"still ending: {left}" if left else "all processes that it started have ended"
    console.print_line(f"Interrupted: {said}.")
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
