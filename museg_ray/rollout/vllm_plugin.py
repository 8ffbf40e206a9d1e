"""What vLLM runs in each of its processes as they start (entry point `vllm.general_plugins`)."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that happens.

    vLLM's engine process does not look after its parent: where Ray's raylet dies with the driver, and so cannot clear
    up behind the rollout actor, the engine would live on with all its memory (seen with vLLM 0.32 and Ray 2.60).
    """
    parent = multiprocessing.parent_process()
    if parent is None:  # the actor itself, or a program of somebody else's
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
