import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from museg_ray.errors import DataError
from museg_ray.report.page import write_report


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
    row = html[html.index("multi-segment F1@0.5") :].split("</tr>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == ["-"] * 5


def test_a_folder_without_a_run_gets_no_page(tmp_path: Path):
    with pytest.raises(DataError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
