"""How a member of a crew fails: the one place that unwraps Ray's errors."""

import asyncio
from typing import Any

import ray
from ray import exceptions

from museg_ray.errors import MusegError, ResourceError


class MemberLost(Exception):
    """The process, the engine or the node of a member is gone, or it is stuck: what was inside it has no result."""


def put(value: Any) -> ray.ObjectRef:
    """`ray.put`.

    Raises:
        ResourceError: neither Ray's store nor the disk that it spills to has room.
    """
    try:
        return ray.put(value)
    except (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError) as error:
        raise ResourceError(
            f"Ray has no room for what its processes hand to each other ({first_line(error)}). It keeps that in "
            "/dev/shm, and in its temporary folder (RAY_TMPDIR, else TMPDIR or /tmp) where that is full: free space "
            "there, then go on with --resume (run.resume=true)."
        ) from None


async def result_of(reference: ray.ObjectRef) -> Any:
    """What a call of an actor returns. Whoever gives up waiting takes the call back from the actor.

    Raises:
        MemberLost: the actor's process or node is gone.
        MusegError: as the actor raised it.
        RayTaskError: the actor raised something else, which is a fault of ours.
    """
    try:
        return await reference
    except asyncio.CancelledError:
        ray.cancel(reference, recursive=False)
        raise
    except (exceptions.RayTaskError, exceptions.TaskCancelledError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MusegError | MemberLost):
            raise cause from None
        raise
    except exceptions.RayError as error:
        raise MemberLost(first_line(error)) from None


async def started(reference: ray.ObjectRef) -> None:
    """Wait for the first answer of an actor.

    Raises:
        RayError: its `__init__` raised, which it would do again.
        MemberLost: its process or node is gone.
    """
    try:
        await reference
    except exceptions.RayActorError as error:
        if error.actor_init_failed:
            raise
        raise MemberLost(first_line(error)) from None


def first_line(error: BaseException) -> str:
    """`ActorDiedError: The actor died unexpectedly before finishing this task.`"""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
