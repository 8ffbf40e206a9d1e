"""The page of `museg status`, and what `museg scale` answers."""

import time
from typing import Any

import pytest

from museg_ray.cli.status_page import status_page
from museg_ray.config.schema import Config, RolloutConfig
from museg_ray.fleet.control import Wish
from museg_ray.fleet.member import CrewStatus
from museg_ray.terminal.console import SafeConsole
from museg_ray.train.handle import Handle


def a_status() -> dict[str, Any]:
    member = {"name": "rollout-0", "state": "serving", "age_s": 3725.0, "num_jobs": 4}
    now_s = time.time()
    return {
        "run": "first",
        "folder": "/runs/first",
        "driver": "pid 1 on head",
        "unix_s": now_s,
        "step": 12,
        "total_steps": 900,
        "phase": "timestamps",
        "weight_version": 12,
        "max_staleness": 1,
        "crews": {
            "rollout": {
                "num_wanted": 2,
                "num_losses": 1,
                "members": [member, member | {"name": "rollout-2", "state": "starting"}],
            },
            "reward": {"num_wanted": 1, "num_losses": 0, "members": []},
        },
        "queues": {"rollout": 5, "reward": 0, "learner": 1},
        "waits": "the learner waits for 3 of 14 groups of step 13",
        "alarms": ["video_blind"],
        "events": [{"unix_s": now_s - 75, "step": 11, "kind": "loss", "text": "rollout-1 is lost"}],
    }


def page(status: dict[str, Any]) -> str:
    console = SafeConsole(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(status_page(status))
    return console.export_text()


def test_the_page_tells_step_members_queues_waits_alarms_and_what_happened() -> None:
    text = page(a_status())
    for words in (
        "first  step 12 of 900, phase timestamps, weights v12, staleness 1",
        "rollout: 1 of 2 serve",
        "rollout-2",
        "starting",
        "1:02:05",
        "the learner waits for 3 of 14 groups of step 13",
        "rollout 5, reward 0, learner 1",
        "1 members since the start",
        "video_blind",
        "1:15 ago  rollout-1 is lost",
        "reward: 0 of 1 serve",
    ):
        assert words in text
    assert "busy, or gone" not in text


def test_a_status_that_is_old_says_so() -> None:
    assert "said 60 s ago: the driver is busy, or gone" in page(a_status() | {"unix_s": time.time() - 60})


class Crew:
    """Of one member."""

    def status(self) -> CrewStatus:
        return CrewStatus(1, 0, 0, [])

    def resize(self, size: int) -> None:
        pass


class SmallCluster:
    """What the handle asks of a run's parts."""

    def __init__(self) -> None:
        self.crews = {"rollout": Crew()}

    def free_resources(self) -> dict[str, float]:
        return {"CPU": 10.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (2, "rollout: 2 wanted, 1 before. Each reserves 4 CPU, 1 GPU: there is room."),
        (6, "so 5 more need 5 times that; free are 10 CPU, 2 GPU: room for 2. The other 3 wait until the cluster"),
        (1, "finish what they have and leave"),
    ],
)
def test_scaling_past_what_the_cluster_has_says_so_with_the_arithmetic(size: int, says: str) -> None:
    config = Config(rollout=RolloutConfig(num_cpus=4, num_gpus=1))
    handle = Handle(config, SmallCluster(), dict, str)  # type: ignore[arg-type]
    assert says in handle._do(Wish("scale", {"rollout": size}))
