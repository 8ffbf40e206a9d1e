"""report.html: one self-contained page about a run, made from its folder alone, finished or not."""

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from museg_ray.config.schema import FURTHER_REWARDS
from museg_ray.files import whole_file
from museg_ray.metrics import names
from museg_ray.metrics.alarms import Alarm, alarm_name
from museg_ray.report.crews import draw_crews
from museg_ray.report.curves import draw_curves
from museg_ray.report.run_folder import RunFolder, read_run
from museg_ray.report.timelines import draw_timelines
from museg_ray.shown_text import shown

SCORES = (
    ("miou", "mIoU", "overlap of predicted and true time, all queries"),
    ("r1_at_05", "R1@0.5", "first segment has IoU at least 0.5, queries with one segment"),
    ("multi_f1_at_05", "multi-segment F1@0.5", "segments found at IoU 0.5, queries with several"),
    ("count_accuracy", "right number of segments", "share of all queries"),
    ("format_rate", "right format", "one think block, one valid answer block, nothing else"),
)
TIME_PARTS = (
    ("clips", names.TIME_CLIPS_S),
    ("rollout", names.TIME_ROLLOUT_S),
    ("reward", names.TIME_REWARD_S),
    ("learner", names.TIME_LEARNER_S),
    ("weight sync", names.TIME_SYNC_S),
)
TOLD_EVENTS = ("start", "loss", "restart", "rewind", "scale", "drain", "leave")
"""What the page lists; joins, pushes, phases and checkpoints of an undisturbed run would fill it."""
REWARD_PARTS = ("matching", "global", "local", "timestamp", "format", *FURTHER_REWARDS)


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One held-out metric; None where it was not measured."""

    name: str
    meaning: str
    before: float | None
    after: float | None
    blind: float | None
    swapped: float | None

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True, slots=True)
class PartTime:
    """Seconds that a part of the run took, and its share of the longest."""

    name: str
    seconds: float
    share_of_longest: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The best and the worst response of one group."""

    phase: str
    step: int
    question: str
    truth: str
    responses: Sequence[Mapping[str, Any]]


def write_report(run_dir: Path) -> Path:
    """Draw the pictures and write `report.html` into the run folder; readers see the old page or the new one.

    Raises:
        DataError: the folder holds no run, or one of its files is damaged.
    """
    run = read_run(run_dir)
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            run=run,
            scores=_scores(run),
            alarms=_alarms_by_name(run.alarms),
            no_alarm=_why_no_alarm(run),
            heldout=run.summary.get("heldout"),
            curves=_inlined(draw_curves(run_dir)),
            crews=_inlined(crews) if (crews := draw_crews(run)) else "",
            events=[event for event in run.events if event["kind"] in TOLD_EVENTS],
            timelines=_inlined(draw_timelines(run_dir)),
            part_times=_part_times(run),
            samples=[sample for phase in run.phases for sample in _samples(run, phase.name)],
            reward_parts=REWARD_PARTS,
        )
    )
    path = run_dir / "report.html"
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _environment() -> Environment:
    # Responses are text of a model: escaped, or a sampled tag would become part of the page.
    environment = Environment(
        loader=PackageLoader("museg_ray.report", "."),
        autoescape=True,
        finalize=lambda value: shown(value) if isinstance(value, str) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, change=_change, duration=_duration, segments=_segments, clock=_clock)
    return environment


def _inlined(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def _scores(run: RunFolder) -> list[ScoreRow]:
    """The summary's scores; of an unfinished run the mean IoU of the answers that are there."""
    if run.summary:
        columns = [run.summary[column] for column in ("before", "after", "blind", "swapped")]
        return [ScoreRow(name, meaning, *(column.get(key) for column in columns)) for key, name, meaning in SCORES]
    _, name, meaning = SCORES[0]
    before, after = (_mean([answer.iou for answer in answers.values()]) for answers in (run.before, run.after))
    return [ScoreRow(name, meaning, before, after, blind=None, swapped=None)]


def _alarms_by_name(alarms: Sequence[Alarm]) -> dict[str, list[Alarm]]:
    """In the order of each name's first; one that came back stands with its name."""
    by_name: dict[str, list[Alarm]] = {}
    for alarm in alarms:
        by_name.setdefault(alarm.name, []).append(alarm)
    return by_name


def _why_no_alarm(run: RunFolder) -> str:
    """What it means that no alarm was raised."""
    window = run.alarm_window_steps
    if max((phase.last_step - phase.first_step + 1 for phase in run.phases), default=0) < window:
        only = alarm_name(names.ALARM_SKIPPED_UPDATES)
        return f"Only {only} could be raised: the others look at {window} steps of a phase, and no phase has so many."
    watched = ", ".join(alarm_name(metric) for metric in names.ALARMS)
    return f"None was raised. Watched, most over the last {window} steps of a phase: {watched}."


def _part_times(run: RunFolder) -> list[PartTime]:
    """Seconds by part of the whole run; of an unfinished one, by part of the steps so far."""
    seconds = run.summary.get("wall_s") or {name: float(run.series(metric)[1].sum()) for name, metric in TIME_PARTS}
    longest = max(seconds.values(), default=0.0) or 1.0
    return [PartTime(name.replace("_", " "), spent_s, spent_s / longest) for name, spent_s in seconds.items()]


def _samples(run: RunFolder, phase: str) -> list[Sample]:
    """Of the last step of a phase that was written, the group whose rewards differ most; none where none was."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in run.last_rollouts(phase):
        if row["advantage"] is None:  # in no update: nothing to compare
            continue
        groups.setdefault(row["query_id"], []).append(row)
    if not groups:
        return []
    ranked = [sorted(group, key=lambda row: -row["reward_total"]) for group in groups.values()]
    widest = max(ranked, key=lambda group: group[0]["reward_total"] - group[-1]["reward_total"])
    best = widest[0]
    return [Sample(phase, best["step"], best["question"], _segments(best["truth"]), (best, widest[-1]))]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _change(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _duration(seconds: float) -> str:
    """`12.1 s` under two minutes, `6 min 28 s` above."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _clock(unix_s: float) -> str:
    """Of the day, where the page was made."""
    return time.strftime("%H:%M:%S", time.localtime(unix_s))


def _segments(segments: Sequence[Mapping[str, float]]) -> str:
    return ", ".join(f"{segment['start_s']:.1f} to {segment['end_s']:.1f} s" for segment in segments) or "none"
