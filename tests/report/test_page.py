import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from museg_ray.errors import DataError
from museg_ray.metrics.alarms import Alarm
from museg_ray.report.page import write_report
from museg_ray.report.run_folder import RunFolder
from tests.hostile import HOSTILE, SURROGATE, assert_harmless


class Page(HTMLParser):
    """Collects the text and what the page would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def page_text(run_dir: Path) -> str:
    return re.sub(r"\s+", " ", Page(write_report(run_dir)).text)


def set_alarms(run_dir: Path, alarms: Sequence[Alarm] = (), window_steps: int = 20) -> Path:
    (run_dir / "alarms.jsonl").write_text("".join(json.dumps(alarm.as_dict()) + "\n" for alarm in alarms))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["alarms"]["window_steps"] = window_steps
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    return run_dir


def test_the_page_shows_results_responses_times_and_versions(finished_page: Path):
    text = re.sub(r"\s+", " ", Page(finished_page).text)
    for shown in ("0.480", "0.630", "+0.150", "timestamps, step 4", "free, step 9", "vllm", "6 min 28 s", "30.5"):
        assert shown in text
    assert "unfinished" not in text


def test_the_page_loads_nothing_from_outside(finished_page: Path):
    loads = Page(finished_page).loads
    assert len(loads) == 2
    assert all(load.startswith("data:image/png;base64,") for load in loads)
    assert "url(" not in finished_page.read_text()


def test_a_response_is_shown_as_text_and_never_as_part_of_the_page(finished_page: Path):
    html = finished_page.read_text()
    assert "&lt;think&gt;" in html
    assert "<think>" not in html


@pytest.mark.parametrize("stop_after", [0, 6])
def test_the_page_of_an_unfinished_run_says_what_is_missing(make_run: Callable[..., Path], stop_after: int):
    text = Page(write_report(make_run(stop_after=stop_after))).text
    assert "This run is unfinished." in text
    assert f"steps ({stop_after} of 9 are done)" in text


def test_metrics_that_no_query_could_give_are_dashes(make_run: Callable[..., Path]):
    run_dir = make_run()
    summary = json.loads((run_dir / "summary.json").read_text())
    for column in ("before", "after", "blind", "swapped"):
        del summary[column]["multi_f1_at_05"]
    (run_dir / "summary.json").write_text(json.dumps(summary))
    html = write_report(run_dir).read_text()
    row = html[html.index("multi-segment F1 at 0.5") :].split("</tr>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == ["-"] * 5


def test_each_alarm_is_shown_with_steps_numbers_and_what_to_check(make_run: Callable[..., Path]):
    alarms = [
        Alarm("video_blind", 1, 4, "60 % <same> answer", "blind & swapped"),
        Alarm("truncated", 2, 5, "25 % are cut", "the limit"),
        Alarm("video_blind", 6, 9, "70 % same answer", "blind & swapped"),
    ]
    text = page_text(set_alarms(make_run(), alarms))
    order = [
        "Steps 1 to 4: 60 % <same> answer.",
        "Steps 6 to 9: 70 %",
        "Check: blind & swapped",
        "truncated",
        "Steps 2",
    ]
    places = [text.index(shown) for shown in order]
    assert places == sorted(places)
    assert text.index("of 9 steps") < places[0] < text.index("Held-out results")
    assert text.count("Check:") == 2


def test_a_run_without_an_alarm_says_what_watched_it(make_run: Callable[..., Path]):
    text = page_text(set_alarms(make_run(), window_steps=5))
    assert "None was raised. Watched, most over the last 5 steps of a phase: single_segment, timestamp_stuck" in text


def test_a_run_too_short_for_any_alarm_does_not_claim_to_have_been_watched(make_run: Callable[..., Path]):
    text = page_text(set_alarms(make_run(), window_steps=6))
    assert "Only skipped_updates could be raised: the others look at" in text
    assert "None was raised" not in text


def test_a_run_with_its_alarms_off_has_no_section_about_them(make_run: Callable[..., Path]):
    assert "Alarms" not in page_text(set_alarms(make_run(), window_steps=0))


def test_a_folder_without_a_run_gets_no_page(tmp_path: Path):
    with pytest.raises(DataError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unscored_responses_are_counted_where_there_are_some(make_run: Callable[..., Path]):
    run_dir = make_run()
    assert "could not be scored" not in write_report(run_dir).read_text()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "phase": "free", "time_s": 1.0, "reward/quarantined": 3.0}) + "\n")
    assert "3 responses could not be scored" in write_report(run_dir).read_text()


def test_queries_without_a_readable_video_are_counted_where_there_are_some(make_run: Callable[..., Path]):
    run_dir = make_run()
    assert "unreadable video" not in write_report(run_dir).read_text()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "phase": "free", "time_s": 1.0, "video/unreadable": 2.0}) + "\n")
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(summary | {"heldout": {"asked": 160, "scored": 157}}))
    page = write_report(run_dir).read_text()
    assert "2 queries have an unreadable video" in page
    assert "Scored on 157 of 160 held-out questions" in page


def test_queries_that_do_not_fit_and_truths_that_were_cut_are_counted_where_there_are_some(
    make_run: Callable[..., Path],
):
    run_dir = make_run()
    page = write_report(run_dir).read_text()
    assert "do not fit" not in page and "Annotations differ" not in page
    rows = [{"fault": fault, "query_id": "a/1"} for fault in ("too_long", "beyond_file", "too_long", "cut_off")]
    (run_dir / "quarantine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "unscored"}]))
    truths = [("beyond_file", "a/1: 2 s"), ("beyond_file", "a/2: 1 s"), ("beyond_file", "a/1: 2 s")]
    with (run_dir / "events.jsonl").open("a") as file:
        for rule, text in truths:
            file.write(json.dumps({"unix_s": 1.0, "step": 1, "kind": "truth", "text": text, "rule": rule}) + "\n")
    page = write_report(run_dir).read_text()
    assert "do not fit: 2 too_long, 1 beyond_file." in page and "differ from the video files: 2 beyond_file." in page


def test_characters_that_are_not_seen_are_escapes_on_the_page_and_in_its_pictures(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    """One that turns the reading order round would turn what stands beside it too."""
    run_dir, hostile = make_run(), f"{HOSTILE}{SURROGATE}<script>"
    for path in (run_dir / "evaluation").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"question": hostile}) + "\n" for row in rows))
    event = {"unix_s": 0.0, "step": 1, "kind": "restart", "text": hostile}
    (run_dir / "events.jsonl").write_text(json.dumps(event) + "\n")
    set_alarms(run_dir, [Alarm(hostile, 1, 2, hostile, hostile)])
    sampled = RunFolder.last_rollouts
    monkeypatch.setattr(
        RunFolder,
        "last_rollouts",
        lambda run, phase: [row | {"question": hostile, "text": hostile} for row in sampled(run, phase)],
    )
    page = write_report(run_dir)
    assert "<script" not in page.read_text()
    text = Page(page).text
    assert_harmless(text)
    assert text.count("]0;owned") >= 6  # an event, an alarm's name and its two texts, a response, a question
