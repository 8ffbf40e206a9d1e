"""crews.png: which actor was there when, and how it left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from museg_ray.report.run_folder import RunFolder
from museg_ray.report.style import BLUE, GREEN, MUTED, ORANGE, PURPLE, house_style, save_png

COLORS = {"rollout": BLUE, "reward": ORANGE, "clips": PURPLE, "learner": GREEN}
ROW_INCHES = 0.22


@dataclass(slots=True)
class Stay:
    """The time of one member, in minutes since the run's first event."""

    member: str
    role: str
    from_min: float
    to_min: float
    was_lost: bool = False


def draw_crews(run: RunFolder) -> Path | None:
    """Draw `crews.png` in the run folder; None where the run has no events."""
    stays = stays_of(run.events)
    if not stays:
        return None
    with house_style():
        figure = Figure(figsize=(10, 1.0 + ROW_INCHES * len(stays)))
        axes = figure.add_subplot()
        for place, stay in enumerate(stays):
            color = COLORS.get(stay.role, MUTED)
            axes.barh(place, stay.to_min - stay.from_min, left=stay.from_min, height=0.6, color=color)
            if stay.was_lost:
                axes.plot(stay.to_min, place, marker="x", color="black", markersize=6)
        axes.set_yticks(range(len(stays)), [stay.member for stay in stays])
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.set_xlabel("minutes since the first event")
        axes.set_title("Who was there when (x: lost)")
        figure.tight_layout()
        return save_png(figure, run.path / "crews.png")


def stays_of(events: Sequence[Mapping[str, Any]]) -> list[Stay]:
    """One a member that served, in the order of joining; a driver that was started again names its members anew."""
    if not events:
        return []
    first_s, last_s = events[0]["unix_s"], events[-1]["unix_s"]
    stays: list[Stay] = []
    here: dict[str, Stay] = {}
    for event in events:
        now_min = (event["unix_s"] - first_s) / 60
        if event["kind"] == "start":
            for stay in here.values():  # went with the driver before
                stay.to_min, stay.was_lost = now_min, True
            here.clear()
        elif event["kind"] == "join":
            stay = Stay(event["member"], event["role"], now_min, (last_s - first_s) / 60)
            here[stay.member] = stay
            stays.append(stay)
        elif event["kind"] in ("loss", "leave") and event.get("member") in here:
            gone = here.pop(event["member"])
            gone.to_min, gone.was_lost = now_min, event["kind"] == "loss"
    return sorted(stays, key=lambda stay: (list(COLORS).index(stay.role), stay.from_min))
