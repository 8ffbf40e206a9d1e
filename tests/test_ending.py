"""How a process ends. Each test plays it in a process of its own."""

import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

WAIT_S = 60


def _start(script: str, first_line: str) -> "subprocess.Popen[str]":
    """The script, once it has printed a first line."""
    command = [sys.executable, "-u", "-c", textwrap.dedent(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert first_line in process.stdout.readline()
    return process


def test_an_orphan_of_a_dead_child_ends_with_the_block_that_started_it() -> None:
    process = _start(
        """
        import subprocess, time
        from museg_ray import ending
        ending.take_over()
        with ending.processes_end():
            subprocess.run("sleep 600 >/dev/null 2>&1 &", shell=True)
            print(ending.still_living())
        print(ending.still_living())
        """,
        "(",  # a process, of whatever name by now
    )
    assert process.communicate(timeout=WAIT_S)[0] == "[]\n"


def test_the_tracker_of_semaphores_is_left_to_end_by_itself() -> None:
    process = _start(
        """
        import multiprocessing
        from museg_ray import ending
        ending.take_over()
        semaphore = multiprocessing.get_context("spawn").Semaphore()
        print(ending.still_living())
        ending.end_at_once("over")
        """,
        "[]",
    )
    _, said = process.communicate(timeout=WAIT_S)
    assert said.startswith("over\n") and "Killed" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_second_signal_ends_at_once_and_says_what_it_killed(number: signal.Signals) -> None:
    process = _start(
        """
        import subprocess, time
        from museg_ray import ending
        ending.take_over()
        subprocess.Popen(["sleep", "600"])
        try:
            print("there", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            print("closing", flush=True)
            time.sleep(600)
        """,
        "there",
    )
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(number)
    assert process.stdout is not None and process.stdout.readline() == "closing\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 128 + number
    assert said == f"Interrupted again: ended at once.\nKilled: sleep ({child.pid}).\n"
    assert not child.is_running()


def test_a_signal_cancels_the_task_that_asked_for_it() -> None:
    process = _start(
        """
        import asyncio
        from museg_ray import ending
        ending.take_over()
        async def run():
            try:
                with ending.cancelled_by_signal():
                    print("there", flush=True)
                    await asyncio.sleep(600)
            finally:
                await asyncio.sleep(0)
                print("closed", flush=True)
        try:
            asyncio.run(run())
        except asyncio.CancelledError:
            print(repr(ending.received_signal()))
        """,
        "there",
    )
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=WAIT_S)
    assert printed.splitlines() == ["closed", "<Signals.SIGTERM: 15>"]
