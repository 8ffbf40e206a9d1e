"""Where the learner's processes meet."""

import logging
import os
import socket
from datetime import timedelta

import deepspeed
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # documented, missing in __all__

from museg_ray.learner.deepspeed_engine import learner_device
from museg_ray.learner.rank import Rank

_store: Store | None = None
"""Rank 0 serves the store for as long as its process lives."""


def open_store(host: str, num_ranks: int) -> int:
    """Rank 0, before all join: serve the store on a free port of `host`, and tell which.

    The socket is our own: the store's would listen on all addresses of the machine.
    """
    global _store
    server = socket.create_server((host, 0), backlog=num_ranks)
    port = int(server.getsockname()[1])
    _store = TCPStore(host, port, num_ranks, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())
    return port


def join_process_group(rank: Rank, timeout_s: float) -> None:
    """Make the process group of all ranks, once a process; returns when all have joined.

    A rank that waits longer than `timeout_s` for another fails. With one rank the store lives in the process and no
    port is opened, so two runs on one machine cannot collide.
    """
    if dist.is_initialized():
        return
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed would compile an op for all-reduce through shared memory at the first start (40 s, and a compiler must
    # be there); this is the table it looks in. Without the op it uses the process group's own all-reduce.
    deepspeed.ops.__compatible_ops__ = {}
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed insists; Ray shows the process its own GPUs only
    backend = "nccl" if learner_device().type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=_store_of(rank), rank=rank.index, world_size=rank.count, timeout=timedelta(seconds=timeout_s)
    )


def _store_of(rank: Rank) -> Store:
    if rank.count == 1:
        return dist.HashStore()  # type: ignore[attr-defined]  # documented, missing in __all__
    if _store is not None:
        return _store
    return TCPStore(rank.host, rank.port, rank.count, is_master=False)
