"""`museg status`, `museg scale`, `museg stop`: a hold on a run that is going on, from any machine of its cluster."""

import json
import shlex
import time
from typing import Annotated, Any

import typer

from museg_ray.cli.status_page import status_page
from museg_ray.errors import ConfigError, ResourceError
from museg_ray.terminal.console import SafeConsole, print_json

Run = Annotated[str, typer.Argument(help="The run's folder, or its name.")]
Address = Annotated[
    str,
    typer.Option(
        help="Of the run's cluster, as ray takes it; http://head:8265 asks through its Jobs API, from outside."
    ),
]
JOB_TIMEOUT_S = 120.0


def status(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the page.")] = False,
    address: Address = "",
) -> None:
    """How a run stands: step, crews with every member, who waits for whom, alarms, what happened last."""
    if address.startswith("http"):
        found: dict[str, Any] = json.loads(_through_jobs(address, ["museg", "status", run, "--json"]))
    else:
        found = _caller(run, address).status()
    if not found:
        raise ResourceError(f"The run {run} is starting: it has no status yet. Ask again in a moment.")
    if as_json:
        print_json(found)
    else:
        SafeConsole().print(status_page(found))


def scale(
    run: Run,
    rollout: Annotated[int | None, typer.Option(help="Rollout actors wanted.")] = None,
    reward: Annotated[int | None, typer.Option(help="Reward actors wanted.")] = None,
    clips: Annotated[int | None, typer.Option(help="Clip preparation actors wanted.")] = None,
    address: Address = "",
) -> None:
    """Have more or fewer members from now on, while the run goes on. It drops nothing, and needs no restart."""
    asked = {"rollout": rollout, "reward": reward, "clips": clips}
    sizes = {role: size for role, size in asked.items() if size is not None}
    if not sizes:
        raise ConfigError("museg scale needs at least one of --rollout, --reward and --clips.")
    for role, size in sizes.items():
        if size < 1:
            raise ConfigError(f"--{role} is {size}; a crew needs at least 1 member.")
    _wish(run, address, "scale", sizes)


def stop(run: Run, address: Address = "") -> None:
    """End a run after its present step, with a checkpoint that --resume goes on from."""
    _wish(run, address, "stop", {})


def _wish(run: str, address: str, what: str, sizes: dict[str, int]) -> None:
    if address.startswith("http"):
        options = [word for role, size in sizes.items() for word in (f"--{role}", str(size))]
        answer = _through_jobs(address, ["museg", what, run, *options])
    else:
        from museg_ray.fleet.control import Wish

        answer = _caller(run, address).wish(Wish(what, sizes))
    SafeConsole().print_line(answer)


def _caller(run: str, address: str) -> Any:
    from museg_ray.fleet.control import Caller  # Ray takes a second to import

    return Caller(run, address)


def _through_jobs(address: str, command: list[str]) -> str:
    """The last line that the command prints as a job of the cluster.

    Raises:
        ResourceError: the cluster does not answer, or the command failed there.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=shlex.join(command))
        deadline_s = time.monotonic() + JOB_TIMEOUT_S
        while not (now := client.get_job_status(job)).is_terminal() and time.monotonic() < deadline_s:
            time.sleep(0.3)
        printed = client.get_job_logs(job).strip()
    except (ConnectionError, RuntimeError, OSError) as error:
        raise ResourceError(f"The Jobs API at {address} does not answer: {error}") from None
    answer = (printed.splitlines() or ["no output"])[-1]  # before it may stand what libraries print
    if now != JobStatus.SUCCEEDED:
        raise ResourceError(f"`{shlex.join(command)}` as a job of {address} ended as {now}: {answer}")
    return answer
