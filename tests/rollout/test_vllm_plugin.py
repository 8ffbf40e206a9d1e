"""An engine process must not outlive the actor that started it."""

import subprocess
import sys
from importlib.metadata import entry_points

import psutil

PROGRAM = """
import multiprocessing, time
from importlib.metadata import entry_points

def child():
    (plugin,) = entry_points(group="vllm.general_plugins", name="museg_end_with_parent")
    plugin.load()()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(100)

if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=child).start()
    time.sleep(100)
"""


def test_a_process_with_the_plugin_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        assert not psutil.wait_procs([child], timeout=10)[1]


def test_a_process_that_nobody_forked_goes_on() -> None:
    (plugin,) = entry_points(group="vllm.general_plugins", name="museg_end_with_parent")
    plugin.load()()
