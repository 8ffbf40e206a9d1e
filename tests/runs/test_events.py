"""What happens to a run beside its steps is written down at once, and kept."""

import json
from pathlib import Path

from museg_ray.events import EventKind, EventSink
from museg_ray.runs.events import NUM_RECENT, Events


def test_an_event_is_one_line_with_its_step_and_its_numbers(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl", lambda kind, text: None)
    assert not (tmp_path / "events.jsonl").exists(), "a run that is refused leaves none"
    tell: EventSink = events.add
    tell(EventKind.JOIN, "rollout-1 serves", role="rollout", started_s=3.5)
    events.step = 7
    tell(EventKind.LOSS, "rollout-1 died")
    first, second = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert first.pop("unix_s") <= second.pop("unix_s")
    assert first == {"step": 0, "kind": "join", "text": "rollout-1 serves", "role": "rollout", "started_s": 3.5}
    assert second == {"step": 7, "kind": "loss", "text": "rollout-1 died"}


def test_a_run_that_is_resumed_adds_to_the_events_before(tmp_path: Path) -> None:
    for text in ("first", "second"):
        events = Events(tmp_path / "events.jsonl", lambda kind, text: None)
        events.add(EventKind.PUSH, text)
        events.close()
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_the_last_events_stay_in_memory_and_no_more(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl", lambda kind, text: None)
    for number in range(NUM_RECENT + 5):
        events.add(EventKind.REQUEUE, str(number))
    assert [row["text"] for row in events.recent] == [str(number) for number in range(5, NUM_RECENT + 5)]
