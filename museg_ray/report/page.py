"""report.html: one self-contained page about a run, made from its folder alone, finished or not."""

import base64
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from museg_ray.config.schema import FURTHER_REWARDS
from museg_ray.files import whole_file
from museg_ray.metrics import names
from museg_ray.metrics.alarms import alarm_name
from museg_ray.report.crews import stays_of
from museg_ray.report.curves import draw_curves
from museg_ray.report.run_folder import RunFolder, read_run
from museg_ray.report.timelines import draw_timelines
from museg_ray.shown_text import shown

TOLD_EVENTS = ("start", "loss", "restart", "rewind", "scale", "drain", "leave")
"""What the page lists; joins, pushes, phases and checkpoints of an undisturbed run would fill it."""
REWARD_PARTS = ("matching", "global", "local", "timestamp", "format", *FURTHER_REWARDS)


def write_report(run_dir: Path) -> Path:
    """Draw the pictures and write `report.html` into the run folder; readers see the old page or the new one.

    Raises:
        DataError: the folder holds no run.
        CheckpointError: one of its files is damaged.
    """
    run = read_run(run_dir)
    template = _environment().get_template("page.html.jinja")
    page = template.render(
        run=run,
        scores=_scores(run),
        no_alarm=_why_no_alarm(run),
        heldout=run.summary.get("heldout"),
        curves=_inlined(draw_curves(run)),
        stays=stays_of(run.events),
        events=[event for event in run.events if event["kind"] in TOLD_EVENTS],
        timelines=_inlined(draw_timelines(run)),
        part_seconds=_part_seconds(run),
        samples=_samples(run),
        reward_parts=REWARD_PARTS,
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
    environment.filters["clock"] = _clock
    return environment


def _inlined(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def _scores(run: RunFolder) -> list[dict[str, Any]]:
    """The summary's scores; of an unfinished run the mean IoU of the answers that are there."""
    columns = {column: run.summary.get(column, {}) for column in ("before", "after", "blind", "swapped")}
    if not run.summary:
        for column, answers in (("before", run.before), ("after", run.after)):
            if answers:
                columns[column] = {"miou": fmean(answer["iou"] for answer in answers.values())}
    return [
        {"name": name, "meaning": meaning} | {column: scores.get(key) for column, scores in columns.items()}
        for key, name, meaning in (names.SCORES if run.summary else names.SCORES[:1])
    ]


def _why_no_alarm(run: RunFolder) -> str:
    """What it means that no alarm was raised."""
    window = run.alarm_window_steps
    if max((phase.last_step - phase.first_step + 1 for phase in run.phases), default=0) < window:
        only = alarm_name(names.ALARM_SKIPPED_UPDATES)
        return f"Only {only} could be raised: the others look at {window} steps of a phase, and no phase has so many."
    watched = ", ".join(alarm_name(metric) for metric in names.ALARMS)
    return f"None was raised. Watched, most over the last {window} steps of a phase: {watched}."


def _part_seconds(run: RunFolder) -> Mapping[str, float]:
    """Of every part of the whole run; of an unfinished one, of every part of the steps so far."""
    of_steps = {name: float(run.series(metric)[1].sum()) for name, metric in names.TIME_PARTS.items()}
    return run.summary.get("wall_s") or of_steps


def _samples(run: RunFolder) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The best and the worst response of one group a phase: of its last step that was written, the group whose rewards
    differ most; none where none was."""
    samples = []
    for phase in run.phases:
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in run.last_rollouts(phase.name):
            if row["advantage"] is not None:  # else in no update: nothing to compare
                groups.setdefault(row["query_id"], []).append(row)
        ranked = [sorted(group, key=lambda row: -row["reward_total"]) for group in groups.values()]
        if ranked:
            widest = max(ranked, key=lambda group: group[0]["reward_total"] - group[-1]["reward_total"])
            samples.append((widest[0], widest[-1]))
    return samples


def _clock(unix_s: float) -> str:
    """Of the day, where the page was made."""
    return time.strftime("%H:%M:%S", time.localtime(unix_s))
