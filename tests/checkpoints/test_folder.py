"""Checkpoint folders: whole or refused, whatever happens to them or while they are written."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from museg_ray.checkpoints import folder as checkpoints
from museg_ray.checkpoints.state import BookMarks, DriverState, Notes, TrainerState
from museg_ray.config.learning import CheckpointConfig
from museg_ray.errors import CheckpointError
from museg_ray.files import described

RUN_ID = "a-run"
FILES = (
    "learner/shard-00000-of-00002.safetensors",
    "learner/shard-00001-of-00002.safetensors",
    "learner/rng-00000.pt",
    "learner/rng-00001.pt",
    "config.yaml",
    "driver.json",
    "learner/learner.json",
)


def state(step: int, score: float | None = None) -> DriverState:
    reached = TrainerState(step, "only", step, step, {}, {}, num_empty=0, untold=[("missing", "gone")])
    return DriverState(
        reached, books=BookMarks(), best_metric="reward/matching", score=score, notes=Notes().as_dict(), run_id=RUN_ID
    )


def build(parent: Path, step: int, score: float | None = None, size_bytes: int = 5000) -> Path:
    """A complete partial folder."""
    partial = checkpoints.partial_folder(parent, step)
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "learner").mkdir(parents=True)
    for name in FILES[:-2]:
        (partial / name).write_bytes(random.Random(step).randbytes(size_bytes))
    (partial / "learner" / "learner.json").write_text('{"format": 1, "num_shards": 2}')
    (partial / "driver.json").write_text(state(step, score).to_json())
    return partial


def steps_of(parent: Path) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints.list_checkpoints(parent)]


@pytest.fixture
def whole(tmp_path: Path) -> checkpoints.Checkpoint:
    return checkpoints.publish(build(tmp_path, 50, score=0.25))


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_lacks_a_file_of_any_rank_is_not_published(name: str, tmp_path: Path) -> None:
    partial = build(tmp_path, 50)
    (partial / name).unlink()
    with pytest.raises(CheckpointError, match=name.split("/")[-1]):
        checkpoints.publish(partial)
    assert steps_of(tmp_path) == []


def test_what_its_writers_have_hashed_is_not_read_again_and_is_verified_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, read = build(tmp_path, 50), []
    shards = [name for name in FILES if "shard-" in name]
    written = {Path(name).name: described(partial / name) for name in shards}
    monkeypatch.setattr(checkpoints, "described", lambda path: (read.append(path), described(path))[1])
    whole = checkpoints.publish(partial, written)
    assert not {path.name for path in read} & written.keys() and len(read) == len(FILES) - len(shards)
    checkpoints.verify(whole)
    (whole.folder / shards[0]).write_bytes(bytes(5000))
    with pytest.raises(CheckpointError, match="its BLAKE3 differs"):
        checkpoints.verify(whole)


def test_a_shard_that_is_not_as_long_as_its_writer_says_is_not_published(tmp_path: Path) -> None:
    partial = build(tmp_path, 50)
    (shard, *_) = [partial / name for name in FILES if "shard-" in name]
    written = {shard.name: described(shard)}
    shard.write_bytes(bytes(4999))
    with pytest.raises(CheckpointError, match="has 4999 bytes; 5000 were written"):
        checkpoints.publish(partial, written)
    assert steps_of(tmp_path) == []


def test_scores_of_another_metric_are_not_compared(tmp_path: Path) -> None:
    for step, score in ((10, 5.0), (20, 0.3), (30, 0.2)):
        partial = build(tmp_path, step)
        metric = "reward/total" if step == 10 else "reward/matching"
        (partial / "driver.json").write_text(replace(state(step, score), best_metric=metric).to_json())
        checkpoints.publish(partial)
    checkpoints.retire(tmp_path, CheckpointConfig(keep_last=1, keep_best=1), RUN_ID)
    assert steps_of(tmp_path) == [20, 30]


def test_a_published_checkpoint_verifies_and_gives_its_state_back(whole: checkpoints.Checkpoint) -> None:
    checkpoints.verify(whole)
    assert (whole.folder.name, whole.step) == ("step-000050", 50)
    assert whole.read_state() == state(50, 0.25)
    assert checkpoints.newest_whole(whole.folder.parent, RUN_ID) == (whole, [])


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "delete"])
def test_a_damaged_file_is_found_and_the_older_checkpoint_is_taken(
    name: str, damage: str, whole: checkpoints.Checkpoint
) -> None:
    newer = checkpoints.publish(build(whole.folder.parent, 60))
    path = newer.folder / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[-1]
    elif damage == "grow":
        content += b"x"
    path.unlink()
    if damage != "delete":
        path.write_bytes(content)
    if (name, damage) == ("manifest.json", "cut"):
        path.write_bytes(content[:-10])  # its last byte is white space
    with pytest.raises(CheckpointError, match="step-000060"):
        checkpoints.verify(newer)
    found, (refusal,) = checkpoints.newest_whole(whole.folder.parent, RUN_ID)
    assert found == whole
    assert "step 60" in refusal and str(path if name != "manifest.json" else newer.folder) in refusal


def test_a_checkpoint_that_a_later_version_wrote_is_refused(whole: checkpoints.Checkpoint) -> None:
    manifest = whole.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="format 2; this version of museg_ray reads 1"):
        checkpoints.verify(whole)


@pytest.mark.parametrize("path", ["", "checkpoints", "step-50", "step-000050.partial", "step-000051"])
def test_what_is_no_checkpoint_is_refused_by_its_name(path: str, whole: checkpoints.Checkpoint) -> None:
    build(whole.folder.parent, 50)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoints.as_checkpoint(whole.folder.parent / path)


@pytest.mark.parametrize(
    ("scores", "keep_last", "keep_best", "kept"),
    [
        ([0.1, 0.9, 0.3, 0.4, 0.2], 2, 1, [2, 4, 5]),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 2, 1, [4, 5]),  # the best one is among the newest
        ([0.9, 0.9, 0.9, 0.1, 0.1], 1, 1, [3, 5]),  # of equal ones the newest
        ([0.9, 0.8, None, 0.1, None], 1, 2, [1, 2, 5]),
        ([None, None, None], 1, 3, [3]),
        ([0.9, 0.5, 0.1], 1, 0, [3]),
        ([0.5], 3, 3, [1]),
    ],
)
def test_the_newest_and_the_best_are_kept(
    scores: list[float | None], keep_last: int, keep_best: int, kept: list[int], tmp_path: Path
) -> None:
    for step, score in enumerate(scores, start=1):
        checkpoints.publish(build(tmp_path, step, score, size_bytes=10))
        checkpoints.retire(tmp_path, CheckpointConfig(keep_last=keep_last, keep_best=keep_best), RUN_ID)
    assert steps_of(tmp_path) == kept
    assert not list(tmp_path.glob("*.partial"))


class Crash(Exception):
    """In place of a process that ends."""


STAGES = ["sync", "described", "_write_synced", "os.walk", "rename", "unlink"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_crash_at_any_stage_leaves_whole_checkpoints_alone(
    stage: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoints.publish(build(tmp_path, step))
    target, name = {"os.walk": (os, "walk"), "rename": (Path, "rename"), "unlink": (Path, "unlink")}.get(
        stage, (checkpoints, stage)
    )
    real, calls = getattr(target, name), 0

    def crash(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise Crash
        return real(*args, **options)

    partial = build(tmp_path, 3)
    monkeypatch.setattr(target, name, crash)
    try:
        checkpoints.publish(partial)
        checkpoints.retire(tmp_path, CheckpointConfig(keep_last=1, keep_best=0), RUN_ID)
    except Crash:
        pass
    monkeypatch.undo()
    assert steps_of(tmp_path), "none was lost before a newer one was whole"
    for checkpoint in checkpoints.list_checkpoints(tmp_path):
        checkpoints.verify(checkpoint)
    checkpoints.remove_leftovers(tmp_path, RUN_ID)
    assert all(path.name.startswith("step-") and path.suffix == "" for path in tmp_path.iterdir())


LOOP = """
import itertools, sys
from dataclasses import replace
from pathlib import Path
from museg_ray.config.learning import CheckpointConfig
from museg_ray.checkpoints import folder as checkpoints
from tests.checkpoints.test_folder import RUN_ID, build
parent = Path(sys.argv[1])
checkpoints.remove_leftovers(parent, RUN_ID)
first = max((each.step for each in checkpoints.list_checkpoints(parent)), default=0) + 1
for step in itertools.count(first):
    checkpoints.publish(build(parent, step, score=step % 7, size_bytes=300_000))
    checkpoints.retire(parent, CheckpointConfig(keep_last=2, keep_best=1), RUN_ID)
    if step == first:
        print("one", flush=True)
"""


def test_every_checkpoint_that_is_there_after_a_kill_at_a_random_moment_is_whole(
    tmp_path: Path, repository: Path
) -> None:
    random_delay = random.Random(0)
    newest = 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, str(tmp_path)], cwd=repository, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "one\n"
            time.sleep(0.3 * random_delay.random())
            process.send_signal(signal.SIGKILL)
        present = checkpoints.list_checkpoints(tmp_path)
        for checkpoint in present:
            checkpoints.verify(checkpoint)
        assert present[-1].step > newest
        newest = present[-1].step


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_invariant_nothing_is_deleted_but_what_bears_the_runs_id(tmp_path: Path) -> None:
    (tmp_path / "epoch.partial").mkdir()
    (tmp_path / "epoch.partial" / "driver.json").write_text(state(1).to_json())
    for name, run_id in (("step-000001", "another"), ("step-000002", RUN_ID), ("step-000003", RUN_ID)):
        partial = build(tmp_path, int(name[-1]))
        (partial / "driver.json").write_text(replace(state(int(name[-1])), run_id=run_id).to_json())
        checkpoints.publish(partial)
    (tmp_path / "step-000002" / "driver.json").write_text("{}")  # whose it is cannot be told
    (build(tmp_path, 7) / "driver.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    checkpoints.publish(build(tmp_path / "elsewhere", 4))
    (tmp_path / "step-000004").symlink_to(tmp_path / "elsewhere" / "step-000004")
    before = everything(tmp_path)
    checkpoints.retire(tmp_path, CheckpointConfig(keep_last=1, keep_best=0), RUN_ID)
    checkpoints.remove_leftovers(tmp_path, RUN_ID)
    assert everything(tmp_path) == before
    checkpoints.retire(tmp_path, CheckpointConfig(keep_last=1, keep_best=0), "another")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("is_retired", [True, False], ids=["retired", "half written"])
def test_of_a_checkpoint_only_its_own_files_are_deleted_and_no_link(is_retired: bool, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "config.yaml").touch()
    parent = tmp_path / "checkpoints"
    folder = build(parent, 1)
    if is_retired:
        folder = checkpoints.publish(folder).folder
        checkpoints.publish(build(parent, 2))
    (folder / "notes.md").touch()
    (folder / "learner" / "shard-00009-of-00009.safetensors").symlink_to(precious / "config.yaml")
    (folder / "more").symlink_to(precious)
    checkpoints.retire(parent, CheckpointConfig(keep_last=1, keep_best=0), RUN_ID)
    checkpoints.remove_leftovers(parent, RUN_ID)
    left = {"notes.md", "more", "learner", "learner/shard-00009-of-00009.safetensors"}
    assert everything(parent / "step-000001.partial") == left
    assert (precious / "config.yaml").is_file()


def test_a_checkpoint_of_another_run_is_not_gone_on_with(whole: checkpoints.Checkpoint) -> None:
    found, (refusal,) = checkpoints.newest_whole(whole.folder.parent, "another")
    assert found is None and "belongs to another run" in refusal


def test_what_is_set_aside_is_no_checkpoint_any_more_and_whole(whole: checkpoints.Checkpoint) -> None:
    before = everything(whole.folder)
    asides = []
    for _ in range(2):
        asides.append(checkpoints.set_aside(whole))
        checkpoints.publish(build(whole.folder.parent, 50))
    assert [path.name for path in asides] == ["step-000050.set-aside", "step-000050.set-aside-2"]
    assert everything(asides[0]) == before and steps_of(whole.folder.parent) == [50]
    checkpoints.remove_leftovers(whole.folder.parent, RUN_ID)
    assert everything(asides[0]) == before


def test_a_copy_under_a_later_name_is_no_later_checkpoint(whole: checkpoints.Checkpoint) -> None:
    shutil.copytree(whole.folder, whole.folder.with_name("step-000060"))
    found, (refusal,) = checkpoints.newest_whole(whole.folder.parent, RUN_ID)
    assert found == whole and "holds step 50: it has another one's name" in refusal


def test_a_kill_before_the_first_file_is_whole_keeps_no_later_checkpoint_from_being_built(tmp_path: Path) -> None:
    learner = tmp_path / "step-000006.partial" / "learner"
    learner.mkdir(parents=True)
    (learner.parent / ".driver.json.0123456789abcdef.partial").write_text("{")
    checkpoints.remove_leftovers(tmp_path, RUN_ID)
    assert not learner.parent.exists()
    learner.mkdir(parents=True)
    (learner / "thesis.tex").touch()
    assert checkpoints.publish(build(tmp_path, 6)).folder.name == "step-000006"
    assert (learner / "thesis.tex").is_file()
