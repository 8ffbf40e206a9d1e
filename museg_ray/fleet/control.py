"""The handle on a running job: a mailbox on the cluster that the driver looks into, found by the run's name.

    museg scale RUN --rollout 3 ──▶ Mailbox (an actor of the run's driver) ◀── driver, every second: leaves its status
    museg status RUN            ◀── the last status that the driver left there     and answers, sees what is wished

The driver may be busy, or on a machine that nobody can reach; the mailbox is an actor of its own, on whatever machine.
"""

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from museg_ray.errors import ResourceError
from museg_ray.files import whole_file
from museg_ray.fleet.deadlines import ANSWER, ASKED, Deadline, within
from museg_ray.fleet.errors import MemberLost, result_of
from museg_ray.fleet.local_ray import settings_to_join, take_settings

NAMESPACE = "museg"
CONTROL_FILE = "control.json"
"""In the folder of a run that is going on: where its mailbox is."""
EVENTS_FILE = "events.jsonl"
"""There from the moment in which a driver starts in a folder."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks of a running job."""

    kind: str
    """`scale` or `stop`."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """`scale`: members wanted, by crew."""


class Mailbox:
    """Holds wishes until the driver has answered them, and its last status."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self._asked: dict[int, tuple[Wish, asyncio.Future[str]]] = {}
        self._numbers = count()

    async def status(self) -> dict[str, Any]:
        return self._status

    async def wish(self, wish: Wish) -> str:
        """The driver's answer, in words.

        Raises:
            TimeoutError: it has not answered within `ANSWER`.
        """
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._asked[number] = wish, answer
        try:
            async with asyncio.timeout(ANSWER.limit_s):
                return await answer
        finally:
            del self._asked[number]

    async def exchange(self, status: dict[str, Any], answers: Mapping[int, str]) -> dict[int, Wish]:
        """For the driver: it leaves its status, and answers by the number of the wish.

        Returns:
            The wishes whose askers still wait. One comes again until it is answered, since whatever brings it to the
            driver may break off on the way: to do it twice must be as good as once.
        """
        self._status = status
        for number, text in answers.items():
            if number in self._asked and not self._asked[number][1].done():  # whoever asked may have gone
                self._asked[number][1].set_result(text)
        return {number: wish for number, (wish, answer) in self._asked.items() if not answer.done()}


class RayControl:
    """The driver's side: a mailbox on Ray, and the file in the run's folder that tells where. Both end with it."""

    def __init__(self, run_dir: Path, deadlines: Mapping[str, Deadline]) -> None:
        self._deadlines = deadlines
        self._path, name = run_dir / CONTROL_FILE, run_dir.name
        try:
            self._mailbox = _start_mailbox(name)
        except ValueError:  # a run of this name in another folder has it
            name = f"{name}@{token_hex(4)}"
            self._mailbox = _start_mailbox(name)
        found = {"run": name, "address": ray.get_runtime_context().gcs_address, "settings": settings_to_join()}
        with whole_file(self._path) as partial:
            partial.touch(0o600)  # it says where the token of the run's Ray is
            partial.write_text(json.dumps(found), encoding="utf-8")

    async def exchange(self, status: dict[str, Any], answers: Mapping[int, str]) -> dict[int, Wish]:
        call = result_of(self._mailbox.exchange.remote(status, answers))
        try:
            return await within(self._deadlines["mailbox.exchange"], "the mailbox's exchange", call)
        except MemberLost:  # Ray starts it anew, and the next status reaches it; whoever asked has seen it die
            return {}

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        ray.kill(self._mailbox)


def _start_mailbox(run_name: str) -> ActorHandle:
    # No CPU: it must find a place on a full cluster. Wherever that is may go away: the run needs it for nothing.
    options = {"name": mailbox_name(run_name), "namespace": NAMESPACE, "num_cpus": 0, "max_concurrency": 1000}
    options["max_restarts"] = -1
    return ray.remote(Mailbox).options(**options).remote()


def mailbox_name(run_name: str) -> str:
    return f"run {run_name}"


class Caller:
    """Somebody else's side: finds a run's mailbox and asks it."""

    def __init__(self, run: str, address: str = "") -> None:
        """Join the cluster that the run is on.

        Args:
            run: its folder, or its name.
            address: of the cluster; empty: the folder tells it, else `RAY_ADDRESS`, else a Ray on this machine.

        Raises:
            ResourceError: no such cluster, or no such run on it.
        """
        self._run, found = run, _read_control(Path(run))
        if not found and not address and Path(run, EVENTS_FILE).is_file():
            raise ResourceError(
                f"The run in {run} has ended, or is about to start. What an ended one did is in its report.html."
            )
        if found and not address:
            take_settings(found.get("settings", {}))
        place = address or found.get("address") or os.environ.get("RAY_ADDRESS") or "auto"
        try:
            ray.init(address=place, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, OSError, RayError) as error:
            raise ResourceError(
                f"No Ray answers at {place}: {error}. Give the run's folder, or --address of its cluster."
            ) from None
        try:
            self._mailbox = ray.get_actor(mailbox_name(found.get("run", Path(run).name)), NAMESPACE)
        except ValueError:
            there = ", ".join(running_runs()) or "none"
            raise ResourceError(f"No run {run} is going on at {place}; those that are: {there}.") from None

    def status(self) -> dict[str, Any]:
        """
        Raises:
            ResourceError: the run has just ended, or does not answer.
        """
        return self._ask(self._mailbox.status.remote())

    def wish(self, wish: Wish) -> str:
        """The driver's answer.

        Raises:
            ResourceError: the run has just ended, or does not answer.
        """
        return self._ask(self._mailbox.wish.remote(wish))

    def _ask(self, reference: ray.ObjectRef) -> Any:
        try:
            return ray.get(reference, timeout=ASKED.limit_s)
        except (RayError, TimeoutError) as error:
            raise ResourceError(
                f"The run {self._run} does not answer ({type(error).__name__}): it may have ended."
            ) from None


def running_runs() -> list[str]:
    """Names of the runs that have a mailbox on the cluster that this process has joined."""
    prefix = mailbox_name("")
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in named if actor["namespace"] == NAMESPACE]
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def _read_control(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / CONTROL_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
