"""The learner's ranks in Ray actors of their own, and the driver's one handle on them."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import ray
from ray.actor import ActorHandle

from museg_ray.clock import now_s
from museg_ray.config.learning import LearnerConfig
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import LearnerLostError, MusegError
from museg_ray.fleet.deadlines import DeadlineMissed, deadlines, within
from museg_ray.fleet.errors import MemberLost, put, result_of
from museg_ray.fleet.gpu_driver import check_gpu_driver
from museg_ray.fleet.places import ANYWHERE, Place, Places
from museg_ray.learner.rank import Rank
from museg_ray.types import Clip, Group
from museg_ray.video.loader import ClipHandle, ClipLoader
from museg_ray.weights.channel import WritePlace
from museg_ray.weights.layout import Layout
from museg_ray.weights.spans import Span

if TYPE_CHECKING:
    from museg_ray.learner.learner import Learner

Result = TypeVar("Result")
REASON_WAIT_S = 5.0
WRITING, CONTROL = "writing", "control"
"""The actor's threads for waiting and for telling that it lives; all else runs in its one other thread, in the order of
the calls."""


class LearnerActor:
    """One rank. Fetches what an update needs and puts away what it gives; `Learner` does the work."""

    _learner: "Learner"
    _loaded: dict[str, Clip]
    _writing: Future[dict[str, dict[str, object]]] | None = None

    def open_store(self, num_ranks: int) -> tuple[str, int]:
        """Rank 0: (host, port) where all ranks meet."""
        from museg_ray.learner.process_group import open_store

        host = ray.util.get_node_ip_address()
        return host, open_store(host, num_ranks)

    def start(self, config: Config, model_dir: Path, rank: Rank, checkpoint: Path | None) -> str:
        """The first call of most; the id of its machine. Not in `__init__`, whose errors Ray reports without their
        type."""
        if config.learner.num_gpus:
            check_gpu_driver()
        # Here and not above: DeepSpeed chooses its accelerator when it is imported, from this process's environment.
        from museg_ray.learner.learner import Learner

        self._rank, self._learner = rank, Learner(config, model_dir, rank, checkpoint)
        self._clips = ClipLoader(config.video)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        return ray.get_runtime_context().get_node_id()

    def load(self, groups: Sequence[Group], clips: Mapping[str, ClipHandle]) -> None:
        """Fetch the clips of this rank alone, for the call after this one."""
        self._loaded = {key: self._clips.load(clips[key]) for key in self._learner.clip_keys(groups)}

    def update(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        return self._learner.update(groups, self._take_loaded(), step)

    def gaps(self, groups: Sequence[Group]) -> list[float]:
        (group,) = groups
        return self._learner.gaps(group, self._take_loaded())

    def weight_layout(self) -> Layout:
        return self._learner.weight_layout

    def write_weights(self, version: int, places: Sequence[WritePlace]) -> list[Span]:
        return self._learner.write_weights(version, places[self._rank.index])

    def start_phase(self, phase: PhaseConfig) -> None:
        self._learner.start_phase(phase)

    def begin_checkpoint(self, folder: Path) -> None:
        snapshot = self._learner.snapshot()
        self._writing = self._writer.submit(snapshot.write, folder)

    @ray.method(concurrency_group=WRITING)
    def finish_checkpoint(self) -> dict[str, dict[str, object]]:
        """Waits beside the updates: these go on while files are written. See `Snapshot.write`."""
        assert self._writing is not None, "no checkpoint has begun"
        return self._writing.result()

    def export_model(self, out_dir: Path) -> None:
        self._learner.export_model(out_dir)

    @ray.method(concurrency_group=CONTROL)
    def ping(self) -> None:
        """Returns while the process lives, also in the middle of an update."""

    def _take_loaded(self) -> dict[str, Clip]:
        loaded, self._loaded = self._loaded, {}
        return loaded


def _environment(config: LearnerConfig) -> dict[str, str]:
    """Environment variables of the learner's process, set before torch and DeepSpeed are imported."""
    variables: dict[str, str] = {}
    if config.num_gpus == 0:
        # Ray leaves GPUs visible to actors that reserve none. Waiting threads must not spin on the engines' cores.
        variables |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}
    else:
        # Packs differ in length: blocks of fixed sizes leave gaps between them that no later pack fits into.
        # PYTORCH_CUDA_ALLOC_CONF, the older name, goes before this one where a user sets it (torch 2.13).
        variables["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if config.num_threads > 0:
        variables["OMP_NUM_THREADS"] = str(config.num_threads)
    return variables


class LearnerHandle:
    """What the driver holds of all ranks. Errors of ours come out as they were raised; used from one event loop.

    Every call goes to all ranks, since they work together; one that fails fails the call at once, without waiting for
    the others, which may be waiting for it.
    """

    def __init__(
        self, config: Config, model_dir: Path, checkpoint: Path | None = None, places: Places | None = None
    ) -> None:
        """Nothing is started yet, see `ready`.

        Args:
            config: of the run.
            model_dir: the model that the run started from.
            checkpoint: the `learner` folder of a checkpoint to go on from.
            places: of the run; None: wherever Ray finds room.
        """
        self._config, self._model_dir, self._checkpoint = config, model_dir, checkpoint
        self._places, self._deadlines = places, deadlines(config)
        self._calls: dict[asyncio.Future[Any], tuple[str, float]] = {}
        self._place: Place = ANYWHERE
        self._actors: list[ActorHandle] = []
        self._nodes: list[str] = []  # of each rank, by Ray's id

    @property
    def doing(self) -> str:
        """The calls that are awaited and since when, in words; empty: none is."""
        now = now_s()
        return " and ".join(f"{method} since {now - since_s:.0f} s" for method, since_s in self._calls.values())

    def _make_actors(self) -> None:
        learner = self._config.learner
        self._actors = [
            ray.remote(concurrency_groups={WRITING: 1, CONTROL: 1})(LearnerActor)
            .options(
                num_cpus=learner.num_cpus,
                num_gpus=learner.num_gpus,
                runtime_env={"env_vars": _environment(learner)},
                scheduling_strategy=self._place.strategy(index),
            )
            .remote()
            for index in range(learner.num_ranks)
        ]

    async def ready(self) -> None:
        """Start all ranks and wait until they hold the model.

        Raises:
            ModelError, ConfigError: the learner cannot start on this folder or these settings.
            LearnerError: a process died, or the checkpoint does not fit.
            LearnerLostError: one does not answer.
            ResourceError: the cluster has had no room for them for `fleet.place_timeout_s`.
        """
        self._place = self._places.take("learner") if self._places else ANYWHERE
        await self._place.ready(self._config.fleet.place_timeout_s)
        self._make_actors()
        count = len(self._actors)
        host, port = "", 0
        await self._within("first_answer", [actor.ping.remote() for actor in self._actors])
        if count > 1:
            ((host, port),) = await self._within("open_store", [self._actors[0].open_store.remote(count)])
        starts = [
            actor.start.remote(self._config, self._model_dir, Rank(index, count, host, port), self._checkpoint)
            for index, actor in enumerate(self._actors)
        ]
        self._nodes = await self._watched("start", starts)

    async def restart(self, checkpoint: Path | None) -> None:
        """A new group of ranks in the place of one that lost a rank, from a checkpoint's `learner` folder; None: from
        the model that the run started from.

        Raises:
            as `ready`.
        """
        await self.close()
        self._checkpoint = checkpoint
        await self.ready()

    async def update(self, groups: Sequence[Group], clips: Mapping[str, ClipHandle], step: int) -> dict[str, float]:
        """The updates of one step, see `Learner.update`. The ranks open their clips themselves: no pixel passes here.

        Raises:
            LearnerError: not finite three times in a row.
            LearnerLostError: a process died, or is not done within `learner.step_timeout_s`.
            VideoError: a clip is no longer there; nothing was updated.
        """
        return await self._with_clips("update", groups, clips, step)

    async def gaps(self, group: Group, clips: Mapping[str, ClipHandle]) -> list[float]:
        """How far each response's log-probs are from the learner's, see `Learner.gaps`.

        Raises:
            LearnerLostError, VideoError: as `update`.
        """
        return await self._with_clips("gaps", [group], clips)

    async def weight_layout(self) -> Layout:
        """See `Learner.weight_layout`."""
        layout, *others = await self._all("weight_layout")
        assert all(other == layout for other in others), "the ranks have other weights"
        return layout

    async def nodes(self) -> list[str]:
        return self._nodes

    async def write_weights(self, version: int, places: Sequence[WritePlace]) -> list[list[Span]]:
        """See `Learner.write_weights`; one place a rank, and what each wrote."""
        return await self._all("write_weights", version, places)

    async def start_phase(self, phase: PhaseConfig) -> None:
        """Start anew what the phase wants fresh: exactly at its first step, before any update of that phase."""
        await self._all("start_phase", phase)

    async def begin_checkpoint(self, folder: Path) -> None:
        """Copy the learner's state aside; training may go on while every rank writes its files into `folder`, which is
        there and which all machines see."""
        await self._all("begin_checkpoint", folder)

    async def finish_checkpoint(self) -> dict[str, dict[str, object]]:
        """Wait until the files of `begin_checkpoint` are whole; `files.described` of the large ones, by name.

        Raises:
            LearnerError: they could not be written.
        """
        written = await self._all("finish_checkpoint")
        return {name: file for of_rank in written for name, file in of_rank.items()}

    async def export_model(self, out_dir: Path) -> None:
        """Write a Hugging Face folder of the policy."""
        await self._all("export_model", out_dir)

    async def ping(self) -> None:
        """
        Raises:
            LearnerLostError: a process died, or does not answer.
        """
        await self._within("ping", [actor.ping.remote() for actor in self._actors])

    async def close(self) -> None:
        """End the learner's processes, also in the middle of an update."""
        actors, self._actors = self._actors, []
        for actor in actors:
            ray.kill(actor)
        self._place.leave()

    async def _with_clips(
        self, method: str, groups: Sequence[Group], clips: Mapping[str, ClipHandle], *args: Any
    ) -> Any:
        """All ranks have their clips before any of them begins: one that lacks a clip would leave the others in the
        middle of what they do together."""
        shared = put(groups)  # once, however many ranks read them
        await self._all("load", shared, clips)
        return (await self._all(method, shared, *args))[0]

    async def _all(self, method: str, *args: Any) -> list[Any]:
        """What each rank returns."""
        return await self._watched(method, [getattr(actor, method).remote(*args) for actor in self._actors])

    async def _watched(self, method: str, calls: Sequence[Awaitable[Result]]) -> list[Result]:
        """What the calls return; ranks that do not answer meanwhile are noticed long before the call's deadline."""
        work = asyncio.ensure_future(self._within(method, calls))
        watch = asyncio.ensure_future(self._watch())
        self._calls[work] = method, now_s()
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():  # a rank is gone: the others are given a moment to say why
                await asyncio.wait({work}, timeout=REASON_WAIT_S)
            return work.result() if work.done() else watch.result()
        finally:
            del self._calls[work]
            work.cancel()
            watch.cancel()

    async def _watch(self) -> NoReturn:
        """
        Raises:
            LearnerLostError
        """
        while True:
            await asyncio.sleep(self._config.fleet.ping_every_s)
            await self.ping()

    async def _within(self, method: str, calls: Sequence[Awaitable[Result]]) -> list[Result]:
        try:
            return await within(self._deadlines[f"learner.{method}"], f"the learner's {method}", _all_results(calls))
        except DeadlineMissed as error:
            raise LearnerLostError(f"{error}; look into the learner's worker log.") from None
        except MemberLost as error:
            raise LearnerLostError(f"a learner process died ({error}); its worker log has the reason") from error


async def _all_results(calls: Sequence[Awaitable[Result]]) -> list[Result]:
    """What each call returns. When one fails, the others are given a moment to say why: a rank that died may show first
    on those that wait for it, as a connection that was closed."""
    tasks = [asyncio.ensure_future(result_of(call)) for call in calls]
    try:
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            await asyncio.wait(pending, timeout=REASON_WAIT_S)
    finally:
        for task in tasks:
            task.cancel()
    errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    raised = [error for error in errors if error is not None]
    if raised:
        raise min(raised, key=lambda error: not isinstance(error, MusegError))
    return [task.result() for task in tasks]
