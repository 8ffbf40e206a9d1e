"""A Ray of our own: for one run, for one user, on one machine.

It listens on the loopback address alone, lets in who has a token, and leaves neither process nor file behind.
"""

import os
import secrets
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread

import ray
from ray._private import ray_constants

from museg_ray.ending import end_at_once, processes_end, say
from museg_ray.errors import ResourceError
from museg_ray.fleet.scratch import scratch_folder

AUTH_MODE, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"
OTHER_MACHINES = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
"""0, as on laptops: Ray takes the loopback address for that of the machine. Else it looks for the address that other
machines reach this one by, also where 127.0.0.1 is asked for, and its C++ parts listen on all addresses (Ray 2.60)."""

LOOK_EVERY_S = 0.5
FULL_BYTES = 64 * 1024


@contextmanager
def local_ray(num_cpus: int, is_alone: bool = True) -> Iterator[None]:
    """Start a Ray on free ports, so that two runs on one machine do not meet, and end it with all its processes.

    Args:
        num_cpus: that it may reserve; logical, whatever the machine has.
        is_alone: no second node joins, for which it would listen on all addresses.

    Raises:
        ResourceError: it does not start.
    """
    with ExitStack() as session:
        with start_told("this machine"):
            session.enter_context(_started(num_cpus, is_alone))
        yield


@contextmanager
def start_told(place: str) -> Iterator[None]:
    """
    Raises:
        ResourceError: Ray did not start or answer at `place` in the block.
    """
    try:
        yield
    except Exception as error:  # of a node that takes too long Ray says so by a bare one
        raise ResourceError(
            f"Ray did not start on {place}: {error}. Check free ports and disk space (a local Ray writes to "
            "$RAY_TMPDIR, else to $TMPDIR or /tmp), or unset RAY_ADDRESS to start a local Ray."
        ) from error


@contextmanager
def _started(num_cpus: int, is_alone: bool) -> Iterator[None]:
    with scratch_folder() as folder, processes_end():
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        settings = {
            AUTH_MODE: "token",
            TOKEN_PATH: str(token),
            OTHER_MACHINES: "0" if is_alone else "1",
            "TMPDIR": str(folder),
            "RAY_worker_niceness": "0",  # Ray's 15 starves the run beside anything else on the machine
            # Ray keeps what it knows of the last 100,000 calls for its dashboard, which this one lacks: 7.6 MiB more
            # for every hundred small steps.
            "RAY_task_events_report_interval_ms": "0",
            # Where else ranks would meet on all addresses of the machine.
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        with _settings(settings):
            try:
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="error",
                    _temp_dir=str(folder / "ray"),  # Ray opens it to all users; they do not get that far
                )
                with _raylet_watched(folder):
                    yield
            finally:
                ray.shutdown()


def settings_to_join() -> dict[str, str]:
    """What another process of this user must `take_settings` of to be let in by the Ray that this one is on."""
    return {name: os.environ[name] for name in (AUTH_MODE, TOKEN_PATH, OTHER_MACHINES) if name in os.environ}


def take_settings(variables: Mapping[str, str]) -> None:
    """Put them into the environment, and have Ray read it again: it did so when it was imported."""
    if TOKEN_PATH in variables:
        os.environ.pop("RAY_AUTH_TOKEN", None)  # it would win over the path
    os.environ.update(variables)
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(OTHER_MACHINES) != "0"
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _settings(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ[name] for name in (*variables, "RAY_AUTH_TOKEN") if name in os.environ}
    take_settings(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        take_settings(before)


@contextmanager
def _raylet_watched(folder: Path) -> Iterator[None]:
    """Where Ray's raylet dies, Ray ends the driver from C++ half a second later, without a word: say it before that.
    Within a call of Ray's store it ends at once. What a raylet dies of, a full disk, is therefore told before."""
    (info,) = ray._private.worker._global_node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    raylet: subprocess.Popen[bytes] = info.process
    gone, (told, tell) = os.pidfd_open(raylet.pid), os.pipe()

    def watch() -> None:
        is_told = False
        while not (readable := select.select([gone, told], [], [], LOOK_EVERY_S)[0]):
            if not is_told and (full := _full(folder)):
                say(f"warning: {full} Ray may die of it; then the same command with --resume goes on.")
                is_told = True
        if told not in readable:
            how = signal.Signals(-raylet.wait()).name if raylet.wait() < 0 else f"exit code {raylet.wait()}"
            said = [f"error: ResourceError: The raylet of this run's Ray has died ({how}), and with it all its actors."]
            said += [full] if (full := _full(folder)) else []
            said += ["The same command with --resume (run.resume=true) goes on from the last checkpoint."]
            end_at_once(" ".join(said))

    thread = Thread(target=watch, name="watch-raylet", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(tell)
        thread.join()
        os.close(gone)
        os.close(told)


def _full(folder: Path) -> str:
    """In words, that the disk of a run's temporary folder is full; empty where it is not."""
    if shutil.disk_usage(folder).free >= FULL_BYTES:
        return ""
    return f"The disk of {folder} is full, where this run's Ray writes: free space there, or set RAY_TMPDIR to another."
