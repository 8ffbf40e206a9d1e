"""What takes three times as long as usual is said, with who is waited for."""

import asyncio

from museg_ray.train.patience import Patience
from tests.simulated import run_simulated


def test_three_times_as_long_as_usual_is_said_and_again_after_twice_as_long() -> None:
    async def trial() -> None:
        said: list[str] = []
        patience = Patience(said.append, lambda: "waited for rollout-1")
        for took_s in (20, 10, 20, 59):
            with patience.over("a step"):
                await asyncio.sleep(took_s)
        assert not said, "20 s is usual"
        with patience.over("a step", "step 5"):
            await asyncio.sleep(130)
        assert said == [
            "step 5 takes 60 s by now, 20 s usually: waited for rollout-1",
            "step 5 takes 120 s by now, 20 s usually: waited for rollout-1",
        ]
        await asyncio.sleep(1000)
        assert len(said) == 2, "it is over"

    run_simulated(trial())


def test_what_was_never_done_before_has_three_minutes_and_what_is_quick_ten_seconds() -> None:
    async def trial() -> None:
        said: list[str] = []
        patience = Patience(said.append, lambda: "nobody")
        with patience.over("a push"):
            await asyncio.sleep(179)
        for _ in range(3):
            with patience.over("another"):
                await asyncio.sleep(0.1)
        with patience.over("another"):
            await asyncio.sleep(9.9)
        assert not said
        with patience.over("new"):
            await asyncio.sleep(181)
        assert said == ["new takes 180 s by now: nobody"]

    run_simulated(trial())


def test_what_fails_tells_nothing_of_what_is_usual() -> None:
    async def trial() -> None:
        said: list[str] = []
        patience = Patience(said.append, lambda: "nobody")
        try:
            with patience.over("a step"):
                raise ValueError
        except ValueError:
            pass
        with patience.over("a step"):
            await asyncio.sleep(170)
        assert not said

    run_simulated(trial())
