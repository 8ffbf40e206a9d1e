"""Runs with fakes that are killed by SIGKILL and resumed by the same command end as one that was never interrupted."""

import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from museg_ray.checkpoints.folder import list_checkpoints, verify
from museg_ray.metrics import names
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR
from tests.train.fakes import EVERY_STEPS, NUM_STEPS, Ended, RunServer, write_data
from tests.train.pictures import books

RESUME = "run.resume=true"
AT_ANY_TIME = (RESUME, "run.restart=true")
"""Also before the first checkpoint, where a run has steps and nothing to go on from."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunServer]:
    server = RunServer(folder, write_data(folder / "data"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def uninterrupted(server: RunServer) -> Ended:
    ended = server.run("whole")
    assert ended.code == 0, ended.printed
    return ended


def picture(folder: Path) -> dict[str, Any]:
    (weight,) = (path.read_text() for path in folder.glob("model/weight"))
    checkpoints = list_checkpoints(folder / "checkpoints")
    return books(folder) | {
        "weight": weight,
        "learner": [(each.learner_dir / "shard-00000-of-00001.safetensors").read_text() for each in checkpoints],
        "files": sorted(path.name for path in folder.iterdir()),
    }


def test_the_fakes_show_every_book(folder: Path, uninterrupted: Ended) -> None:
    whole = picture(folder / "whole")
    steps = [row["step"] for row in whole["metrics"]]
    assert steps != list(range(1, NUM_STEPS + 1)) and steps[-1] == NUM_STEPS, "a step without a readable video"
    assert len({row[names.LEARNER_LOSS] for row in whole["metrics"]}) == len(steps)
    assert all(whole[book] for book in ("alarms", "quarantine", "curves"))
    assert {row["outcome"] for row in whole["ledger"]} == {"trained", "failed"}
    assert [step for step, _ in whole["checkpoints"]][-2:] == [NUM_STEPS - EVERY_STEPS, NUM_STEPS]
    assert json.loads((folder / "whole" / "summary.json").read_text())["resumed_at_steps"] == []


@pytest.mark.parametrize("share", [index / 24 for index in range(24)])
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(
    share: float, folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    moment = 1 + int(share * uninterrupted.num_moments)
    name = f"killed-{moment}"
    assert server.run(name, *AT_ANY_TIME, kill_at=moment).code == -9
    for checkpoint in list_checkpoints(folder / name / "checkpoints"):
        verify(checkpoint)
    ended = server.run(name, *AT_ANY_TIME)
    assert ended.code == 0, ended.printed
    assert picture(folder / name) == picture(folder / "whole")


def test_a_run_killed_at_random_times_ends_as_one_that_was_not(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    """Also in the middle of a write, where no moment of the fakes is."""
    delay = random.Random()
    for _ in range(8):
        server.run("random", *AT_ANY_TIME, kill_after_s=delay.uniform(0.02, 0.3))
    ended = server.run("random", *AT_ANY_TIME)
    assert ended.code == 0, ended.printed
    assert picture(folder / "random") == picture(folder / "whole")


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    """Every life dies a little later than the life before; most of them make a checkpoint."""
    for moment in range(60, 200, 5):
        if (ended := server.run("often", *AT_ANY_TIME, kill_at=moment)).code == 0:
            break
        assert ended.code == -9, ended.printed
    else:
        ended = server.run("often", *AT_ANY_TIME)
    assert ended.code == 0, ended.printed
    assert picture(folder / "often") == picture(folder / "whole")
    resumed_at = json.loads((folder / "often" / "summary.json").read_text())["resumed_at_steps"]
    assert len(resumed_at) > 1 and resumed_at == sorted(resumed_at)


def test_a_run_that_fell_back_on_an_older_checkpoint_says_so_and_ends_as_one_that_did_not(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    late = uninterrupted.num_moments - 3
    assert server.run("damaged", RESUME, kill_at=late).code == -9
    *_, newest = list_checkpoints(folder / "damaged" / "checkpoints")
    (newest.learner_dir / "learner.json").write_text("{}")
    ended = server.run("damaged", RESUME)
    assert ended.code == 0
    assert f"The checkpoint of step {newest.step} cannot be used" in ended.printed
    assert f"going on from step {newest.step - EVERY_STEPS}" in ended.printed
    assert picture(folder / "damaged") == picture(folder / "whole")


def test_a_run_without_a_whole_checkpoint_is_refused(folder: Path, server: RunServer, uninterrupted: Ended) -> None:
    assert server.run("lost", RESUME, kill_at=uninterrupted.num_moments - 3).code == -9
    for checkpoint in list_checkpoints(folder / "lost" / "checkpoints"):
        (checkpoint.folder / "manifest.json").unlink()
    ended = server.run("lost", RESUME)
    assert ended.code == 1
    assert "has no whole checkpoint to go on from" in ended.printed and "manifest.json" in ended.printed
    assert (folder / "lost" / "metrics.jsonl").is_file(), "what is refused is left alone"
    ended = server.run("lost", *AT_ANY_TIME)
    assert ended.code == 0 and "begun anew: the run that was there is now in" in ended.printed
    assert list_checkpoints(folder / "lost.aside" / "checkpoints")
    assert picture(folder / "lost") == picture(folder / "whole")


def test_a_run_that_has_ended_is_left_alone(folder: Path, server: RunServer, uninterrupted: Ended) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "whole").rglob("*") if path.name != "run.lock"}
    ended = server.run("whole", RESUME)
    assert ended.code == 0 and "has ended already" in ended.printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_that_fails_while_a_checkpoint_is_written_finishes_it_first(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    failed = server.run("failed", fail_at=EVERY_STEPS + 1)
    assert failed.code == 1 and "LearnerError: the loss is not finite" in failed.printed
    (kept,) = list_checkpoints(folder / "failed" / "checkpoints")
    verify(kept)
    assert kept.step == EVERY_STEPS
    assert server.run("failed", RESUME).code == 0
    (folder / "failed" / "failed_update.jsonl").unlink()
    assert picture(folder / "failed") == picture(folder / "whole")


def test_a_run_that_had_made_no_step_begins_anew_and_says_so(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    assert server.run("young", RESUME, kill_at=12).code == -9
    assert not (folder / "young" / "metrics.jsonl").exists()
    ended = server.run("young", RESUME)
    assert ended.code == 0 and "had made no step: it begins anew" in ended.printed
    assert picture(folder / "young") == picture(folder / "whole")


def test_steps_without_a_checkpoint_are_never_deleted(folder: Path, server: RunServer, uninterrupted: Ended) -> None:
    moment = 40
    while not (folder / "early" / "metrics.jsonl").exists():
        moment += 2
        assert server.run("early", *AT_ANY_TIME, kill_at=moment).code == -9
    assert not list_checkpoints(folder / "early" / "checkpoints")
    metrics = (folder / "early" / "metrics.jsonl").read_text()
    ended = server.run("early", RESUME)
    assert ended.code == 1 and "books hold steps" in ended.printed and "run.restart=true" in ended.printed
    assert (folder / "early" / "metrics.jsonl").read_text() == metrics


CHANGES = {
    "question": ('"event 3"', '"event 33"', "question is 'event 33', but was 'event 3'"),
    "truth": ("[5.0, 8.5]", "[5.0, 8.25]", r"segments is \[\[1.0, 3.0\], \[5.0, 8.25\]\], but was"),
    "path": ('"train4.mp4"', '"train5.mp4"', "video is .*train5.mp4', but was .*train4.mp4'"),
}


def test_invariant_changed_training_data_is_not_trained_with_unseen(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    file = folder / "data" / "train.jsonl"
    data = file.read_text()
    reordered = "".join(reversed(data.splitlines(keepends=True)))
    variants = {told: data.replace(was, now, 1) for was, now, told in CHANGES.values()}
    assert server.run("other-data", RESUME, kill_at=uninterrupted.num_moments - 30).code == -9
    try:
        for told, changed in {**variants, "11 rows, and 11 then": reordered}.items():
            file.write_text(changed)
            refused = server.run("other-data", RESUME)
            found = re.search(rf"train.jsonl, query \d+ \(train/\d+\): .*{told}", refused.printed)
            assert refused.code == 1 and found, refused.printed
            assert "run.accept_changed_data=true" in refused.printed
        ended = server.run("other-data", RESUME, "run.accept_changed_data=true")
    finally:
        file.write_text(data)
    assert ended.code == 0, ended.printed
    events = [json.loads(line) for line in (folder / "other-data" / "events.jsonl").read_text().splitlines()]
    (change,) = [event["text"] for event in events if event["kind"] == "change"]
    assert "query_id is 'train/10', but was 'train/0' in the run so far" in change


def check_is_refused_until_it_is_accepted(server: RunServer, folder: Path, told: str, *overrides: str) -> None:
    events = (folder / "events.jsonl").read_text()
    refused = server.run(folder.name, RESUME, *overrides)
    assert refused.code == 1 and re.search(told, refused.printed.replace("\n", " ")), refused.printed
    assert (folder / "events.jsonl").read_text() == events, "nothing is written before it is accepted"
    ended = server.run(folder.name, RESUME, "run.accept_changed_data=true", *overrides)
    assert ended.code == 0, ended.printed
    (change,) = [row for row in map(json.loads, (folder / "events.jsonl").open()) if row["kind"] == "change"]
    assert re.search(told, change["text"])


@pytest.mark.parametrize("change", ["added", "reordered"])
def test_invariant_a_run_is_measured_by_the_queries_that_it_began_with(
    change: str, folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    first, *others = (folder / "data" / "heldout.jsonl").read_text().splitlines(keepends=True)
    file = folder / f"{change}.jsonl"
    heldout = (f"data.heldout={file}", f"data.video_root={folder / 'data'}")
    file.write_text("".join([first, *others]))
    assert server.run(f"heldout-{change}", RESUME, *heldout, kill_at=uninterrupted.num_moments - 30).code == -9
    more = first.replace('"idx": 0', '"idx": 99')
    file.write_text("".join([first, *others, more] if change == "added" else [*others, first]))
    told = {"added": r"query 5 \(added/99\): query_id is", "reordered": r"query 1 \(reordered/1\): query_id is"}[change]
    check_is_refused_until_it_is_accepted(server, folder / f"heldout-{change}", rf"\(held out\), {told}", *heldout)


def test_invariant_a_run_goes_on_with_the_model_that_it_began_with(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    """What the KL term holds the policy to, and what adapters are added to."""
    path = f"model.path={shutil.copytree(PACKAGED_MODEL_DIR, folder / 'base')}"
    for name in ("copied", "replaced"):
        assert server.run(name, RESUME, path, kill_at=uninterrupted.num_moments - 30).code == -9
    for file in (folder / "base").iterdir():
        file.touch()
    assert server.run("copied", RESUME, path).code == 0, "the same bytes with another time are the same model"
    weights = folder / "base" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100:] = bytes(100)
    weights.write_bytes(content)
    told = r"base, file \d+ \(model.safetensors\): blake3 is '\w+', but was '\w+' in the run so far"
    check_is_refused_until_it_is_accepted(server, folder / "replaced", told, path)


def test_invariant_a_copy_deletes_no_checkpoint_that_is_its_originals_too(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    original, copy, disk = folder / "original", folder / "copy", folder / "disk"
    assert server.run("original", RESUME, kill_at=uninterrupted.num_moments - 30).code == -9
    (original / "checkpoints").rename(disk)
    (original / "checkpoints").symlink_to(disk)
    subprocess.run(["cp", "-a", original, copy], check=True)
    before = sorted(disk.rglob("*"))
    refused = server.run("copy", RESUME)
    assert refused.code == 1 and "copy is a copy of a run's folder" in refused.printed, refused.printed
    (copy / "checkpoints").unlink()
    shutil.copytree(disk, copy / "checkpoints")
    assert server.run("copy", RESUME).code == 0, "with checkpoints of its own it goes on"
    assert sorted(disk.rglob("*")) == before
    original.rename(folder / "moved")
    ended = server.run("moved", RESUME)
    assert ended.code == 0, ended.printed
    assert picture(folder / "moved") == picture(copy) == picture(folder / "whole")


def test_another_configuration_is_refused_or_shown_and_kept(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    assert server.run("changed", RESUME, kill_at=uninterrupted.num_moments - 30).code == -9
    refused = server.run("changed", RESUME, "run.seed=3")
    assert refused.code == 1 and "run.seed is 3, but the run to be resumed had 0" in refused.printed
    ended = server.run("changed", RESUME, "learner.learning_rate=0.5")
    assert ended.code == 0
    assert re.search(r"^warn   learner.learning_rate was 0.0001 up to step \d+ and is 0.5", ended.printed, re.M)
    (before,) = (folder / "changed").glob("config.before-step-*.yaml")
    assert "learning_rate: 0.0001" in before.read_text()
    assert "learning_rate: 0.5" in (folder / "changed" / "config.yaml").read_text()


def test_a_run_whose_evaluation_before_is_lost_is_refused(
    folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    assert server.run("blind", RESUME, kill_at=uninterrupted.num_moments - 3).code == -9
    (folder / "blind" / "evaluation" / "before.jsonl").unlink()
    ended = server.run("blind", RESUME)
    assert ended.code == 1 and "before.jsonl cannot be taken over" in ended.printed


def test_a_run_whose_books_were_cut_is_refused(folder: Path, server: RunServer, uninterrupted: Ended) -> None:
    assert server.run("cut", RESUME, kill_at=uninterrupted.num_moments - 3).code == -9
    metrics = folder / "cut" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[1:]))
    ended = server.run("cut", RESUME)
    assert ended.code == 1 and "metrics.jsonl does not begin with" in ended.printed


REFILLING = ("train.refill=zero_variance", "train.max_refills=2", "rollout.group_size=2", "train.prompts_per_step=5")


@pytest.fixture(scope="module")
def refilled(server: RunServer) -> Ended:
    ended = server.run("refilled", *REFILLING)
    assert ended.code == 0, ended.printed
    return ended


@pytest.mark.parametrize("share", [index / 6 for index in range(6)])
def test_a_run_that_refills_is_exact_too(share: float, folder: Path, server: RunServer, refilled: Ended) -> None:
    whole = picture(folder / "refilled")
    assert any("all earned the same" in row["reason"] for row in whole["ledger"]), "nothing was refilled"
    name = f"refilled-{int(share * 100)}"
    assert server.run(name, *AT_ANY_TIME, *REFILLING, kill_at=1 + int(share * refilled.num_moments)).code == -9
    ended = server.run(name, *AT_ANY_TIME, *REFILLING)
    assert ended.code == 0, ended.printed
    assert picture(folder / name) == whole


OVERLAPPING = ("train.max_staleness=1", "algo.correction=truncate")


@pytest.mark.parametrize("share", [0.3, 0.45, 0.6, 0.75, 0.9])
def test_a_run_that_overlaps_loses_and_repeats_nothing_when_it_is_killed_and_resumed(
    share: float, folder: Path, server: RunServer, uninterrupted: Ended
) -> None:
    name = f"overlapping-{int(share * 100)}"
    assert server.run(name, *AT_ANY_TIME, *OVERLAPPING, kill_at=1 + int(share * uninterrupted.num_moments)).code == -9
    ended = server.run(name, *AT_ANY_TIME, *OVERLAPPING)
    assert ended.code == 0, ended.printed
    left = books(folder / name)
    assert {row["outcome"] for row in left["ledger"]} == {"trained", "failed"}, "every issue ends"
    assert [row["issue_id"] for row in left["ledger"]] == list(range(2 * NUM_STEPS))
    logged = [(row["issue_id"], row["response_index"]) for row in left["rollouts"]]
    trained = [row["issue_id"] for row in left["ledger"] if row["outcome"] == "trained"]
    assert sorted(logged) == [(issue_id, index) for issue_id in trained for index in range(4)]
    assert max(row[names.ROLLOUT_AGE_MAX] for row in left["metrics"]) == 1.0
