"""Takes checkpoints while training goes on.

    begin(state) ─▶ the learner copies its state aside ─▶ training goes on
                     └─▶ its ranks write and hash the copy ─▶ manifest, name (checkpoint.publish) ─▶ retention

At most one is under way; the next one waits for it.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from museg_ray.checkpoints import folder as checkpoint
from museg_ray.checkpoints.state import DriverState
from museg_ray.config.load import save_config
from museg_ray.config.schema import Config
from museg_ray.errors import CheckpointError, ConfigError, MusegError, ResourceError
from museg_ray.events import EventKind, EventSink
from museg_ray.files import whole_file
from museg_ray.metrics.names import METRICS

Result = TypeVar("Result")


def check_best_metric(config: Config) -> None:
    """
    Raises:
        ConfigError: `checkpoint.best_metric` is no metric.
    """
    metric = config.checkpoint.best_metric
    if metric not in METRICS:
        raise ConfigError(f"checkpoint.best_metric is {metric!r}; it may be one of {', '.join(METRICS)}.")


class CheckpointedLearner(Protocol):
    """What is asked of the learner."""

    async def begin_checkpoint(self, folder: Path) -> None: ...

    async def finish_checkpoint(self) -> Mapping[str, dict[str, object]]: ...


class Checkpointer:
    """The checkpoints of one run, from one event loop."""

    def __init__(
        self, config: Config, run_dir: Path, learner: CheckpointedLearner, events: EventSink, run_id: str = ""
    ) -> None:
        """
        Args:
            config: of the run; goes into each checkpoint: what goes on from it compares itself with that.
            run_dir: gets the checkpoints.
            learner: writes its part.
            events: are told of each that is whole.
            run_id: of the run: no other's checkpoints are gone back to, or deleted.
        """
        self._config, self._learner, self._events, self._run_id = config, learner, events, run_id
        self._under_way: asyncio.Task[None] | None = None
        self.folder = run_dir / checkpoint.CHECKPOINTS_DIR
        checkpoint.retire(self.folder, config.checkpoint, run_id)  # a crash may have come between the last one and this

    def is_due(self, step: int) -> bool:
        """True every `every_steps` steps and at the last one."""
        every = self._config.checkpoint.every_steps
        return step == self._config.total_steps or (every > 0 and step % every == 0)

    async def begin(self, state: DriverState) -> None:
        """Start a checkpoint; returns once the learner has copied its state aside, and training may go on.

        Raises:
            ResourceError, LearnerError: this one, or the one before, could not be written.
        """
        await self.finish()
        partial = checkpoint.partial_folder(self.folder, state.step)
        try:
            checkpoint.remove_leftovers(self.folder, self._run_id)
            _prepare(partial, self._config, state)
        except OSError as error:
            raise _not_written(partial, error) from error
        await self._learner.begin_checkpoint(partial / checkpoint.LEARNER_DIR)
        self._under_way = asyncio.create_task(self._complete(partial, state.step))

    def raise_if_failed(self) -> None:
        """
        Raises:
            ResourceError, LearnerError: the checkpoint under way has failed by now.
        """
        if self._under_way is not None and self._under_way.done():
            self._take().result()

    async def finish(self) -> None:
        """Wait until the checkpoint under way, if any, is whole.

        Raises:
            ResourceError, LearnerError: it could not be written.
        """
        if self._under_way is not None:
            await self._take()

    async def close(self, finish: bool = False) -> MusegError | None:
        """End what is under way; the failure of it that nobody was told of, if there is one.

        Args:
            finish: let it become whole, as its calls' deadlines allow: the learner's state is aside, and what ended the
                run has not touched it. Else it is given up.
        """
        if self._under_way is None:
            return None
        if not finish:
            self._under_way.cancel()
        (outcome,) = await asyncio.gather(self._take(), return_exceptions=True)
        return outcome if isinstance(outcome, MusegError) else None

    async def newest(self) -> checkpoint.Checkpoint | None:
        """The newest one that is whole, for a learner that was lost; one under way is given up. None: there is none.

        Raises:
            CheckpointError: all are damaged. To begin anew would delete what the run has made, unasked.
        """
        await self.close()
        found, refusals = await asyncio.to_thread(checkpoint.newest_whole, self.folder, self._run_id)
        if found is None and refusals:
            raise CheckpointError(
                f"No checkpoint in {self.folder} is whole. {' '.join(refusals)} Restore one from a copy, then go on "
                "with --resume (run.resume=true)."
            )
        return found

    def _take(self) -> asyncio.Task[None]:
        """The task under way, whose end the caller now sees to."""
        assert self._under_way is not None
        task, self._under_way = self._under_way, None
        return task

    async def _complete(self, partial: Path, step: int) -> None:
        written = await self._learner.finish_checkpoint()
        try:
            # To the end also when it is given up: what is deleted under a thread that lists files would be missing in
            # a manifest that looks whole.
            await to_the_end(self._publish(partial, step, written))
        except OSError as error:
            raise _not_written(partial, error) from error
        try:
            await to_the_end(asyncio.to_thread(checkpoint.retire, self.folder, self._config.checkpoint, self._run_id))
        except OSError as error:
            raise ResourceError(
                f"An old checkpoint in {self.folder} could not be deleted: {error.strerror or error}. Make the folder "
                "writable, then go on with --resume (run.resume=true)."
            ) from error

    async def _publish(self, partial: Path, step: int, written: Mapping[str, dict[str, object]]) -> None:
        await asyncio.to_thread(checkpoint.publish, partial, written)
        self._events(EventKind.CHECKPOINT, f"checkpoint of step {step}")


async def to_the_end(closing: Coroutine[None, None, Result]) -> Result:
    """Await something that a Ctrl-C meanwhile must not break off; the Ctrl-C takes effect after it."""
    task = asyncio.ensure_future(closing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _prepare(partial: Path, config: Config, state: DriverState) -> None:
    (partial / checkpoint.LEARNER_DIR).mkdir(parents=True)
    with whole_file(partial / checkpoint.STATE_FILE) as state_file:  # first: by it the folder is known as the run's
        state_file.write_text(state.to_json(), encoding="utf-8")
    save_config(config, partial / checkpoint.CONFIG_FILE)


def _not_written(partial: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"The checkpoint {partial} could not be written: {error.strerror or error}. Free disk space there (lower "
        "checkpoint.keep_last or keep_best, or delete old checkpoints), then go on with --resume (run.resume=true)."
    )
