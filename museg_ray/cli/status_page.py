"""The page of `museg status`: what a person reads in five seconds."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from museg_ray.shown_text import one_line
from museg_ray.terminal.console import make_table
from museg_ray.terminal.panel import clock

STYLES = {"serving": "green", "starting": "yellow", "waiting": "yellow", "draining": "magenta"}


def status_page(status: Mapping[str, Any]) -> Group:
    """
    Args:
        status: as `train/status.py` makes it.
    """
    return Group(_heading(status), Text(), _crews(status["crews"]), Text(), *_lines(status))


def _heading(status: Mapping[str, Any]) -> Text:
    age_s = time.time() - status["unix_s"]
    text = Text.assemble((one_line(status["run"]), "bold"), f"  step {status['step']} of {status['total_steps']}")
    text.append(f", phase {one_line(status['phase'])}, weights v{status['weight_version']}")
    text.append(f", staleness {status['max_staleness']}")
    text.append(f"\n{one_line(status['driver'])}, {one_line(status['folder'])}", "dim")
    if age_s > 10:
        text.append(f"\nsaid {age_s:.0f} s ago: the driver is busy, or gone", "bold yellow")
    return text


def _crews(crews: Mapping[str, Any]) -> Table:
    table = make_table(["crew", "member", "state"], ["age", "jobs"], pad_edge=False)
    for role, crew in crews.items():
        serving = sum(member["state"] == "serving" for member in crew["members"])
        first = f"{role}: {serving} of {crew['num_wanted']} serve"
        for member in crew["members"] or [{"name": "-", "state": "-", "age_s": 0.0, "num_jobs": 0}]:
            state = Text(member["state"], STYLES.get(member["state"], "dim"))
            table.add_row(first, member["name"], state, clock(member["age_s"]), str(member["num_jobs"]))
            first = ""
    return table


def _lines(status: Mapping[str, Any]) -> list[RenderableType]:
    queues = ", ".join(f"{name} {count}" for name, count in status["queues"].items())
    losses = sum(crew["num_losses"] for crew in status["crews"].values())
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_row("waits", status["waits"])
    table.add_row("queues", queues)
    table.add_row("losses", f"{losses} members since the start")
    table.add_row("alarms", Text(", ".join(status["alarms"]) or "none", "yellow" if status["alarms"] else ""))
    for place, event in enumerate(status["events"]):
        ago = clock(status["unix_s"] - event["unix_s"])
        table.add_row(
            "events" if place == 0 else "", Text.assemble((f"{ago:>8} ago  ", "dim"), one_line(event["text"]))
        )
    return [table]
