"""A machine's weights files: whoever reads has a whole version, whatever dies."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from museg_ray.errors import ResourceError, WeightsLostError
from museg_ray.types import FloatArray
from museg_ray.weights import host as host_module
from museg_ray.weights.file import held
from museg_ray.weights.host import WeightHost
from museg_ray.weights.tensors import fill, read_weights, tensor_layout
from museg_ray.weights.transfer import Address, fetch

NUM_ELEMENTS = 1 << 18
LAYOUT = tensor_layout({"a": torch.empty(NUM_ELEMENTS), "b": torch.empty(3, dtype=torch.bfloat16)})
WHOLE = (len(LAYOUT.header), LAYOUT.size_bytes)


def weights(version: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((NUM_ELEMENTS,), float(version)), "b": torch.full((3,), version, dtype=torch.bfloat16)}


def made() -> WeightHost:
    host = WeightHost()
    host.reserve(LAYOUT)
    return host


@pytest.fixture
def host() -> Iterator[WeightHost]:
    host = made()
    yield host
    host.close()


def publish(host: WeightHost, version: int) -> Path:
    file = host.begin(version, 0.0)
    fill(file, LAYOUT, weights(version))
    host.commit(version)
    return file


def versions_in(file: Path) -> set[float]:
    return {value for _, weight in read_weights(file) for value in weight.float().unique().tolist()}


def test_two_files_take_turns_and_the_one_that_serves_stays_as_it_is(host: WeightHost) -> None:
    files = [publish(host, version) for version in (1, 2, 3)]
    assert files[0] == files[2] != files[1]
    host.begin(4, 0.0)
    with held(files[2], 3):
        assert versions_in(files[2]) == {3.0}
    with pytest.raises(WeightsLostError), held(files[1], 2):
        pass


def test_a_version_whose_writer_died_is_never_served_and_the_next_one_takes_its_file(host: WeightHost) -> None:
    served = publish(host, 1)
    half = host.begin(2, 0.0)
    fill(half, LAYOUT, {"a": weights(2)["a"]})  # and there it died
    with pytest.raises(WeightsLostError, match="being filled"), held(half, 2):
        pass
    with held(served, 1):
        assert versions_in(served) == {1.0}
    assert publish(host, 3) == half
    with held(half, 3):
        assert versions_in(half) == {3.0}


def test_a_file_that_is_read_is_waited_for(host: WeightHost) -> None:
    read = publish(host, 1)
    publish(host, 2)
    began_s = time.monotonic()
    with read.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.3, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        assert host.begin(3, 30.0) == read
    assert 0.3 <= time.monotonic() - began_s < 10


def test_a_reader_that_hangs_keeps_its_file_and_another_one_is_made(host: WeightHost) -> None:
    stuck = publish(host, 1)
    publish(host, 2)
    with stuck.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        other = publish(host, 3)
        assert os.fstat(reader.fileno()).st_ino != other.stat().st_ino
        assert versions_in(Path(f"/proc/self/fd/{reader.fileno()}")) == {1.0}
    with held(other, 3):
        assert versions_in(other) == {3.0}


def test_room_that_is_not_there_is_told_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_module, "_free_bytes", lambda folder: LAYOUT.size_bytes)
    monkeypatch.setattr(host_module, "GIB", 1024**2)
    for folder, where in (("", "memory"), (str(tmp_path), str(tmp_path))):
        with pytest.raises(ResourceError, match=rf"need 2\.0 GiB of {where} .*2 files of 1\.0 GiB.* 1\.0 GiB are free"):
            WeightHost(folder).reserve(LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in {
        "memory.max": "3000",
        "memory.current": "2500",
        "memory.stat": "anon 2\ninactive_file 400\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(host_module, "CGROUP", tmp_path)
    assert host_module._free_bytes("") == 900
    (tmp_path / "memory.max").write_text("max\n")
    assert host_module._free_bytes("") > 1024**2


def test_the_room_is_taken_when_it_is_reserved_and_a_folder_shows_no_file(tmp_path: Path) -> None:
    host = WeightHost(str(tmp_path))
    host.reserve(LAYOUT)
    host.reserve(LAYOUT)
    assert all(os.fstat(file.fileno()).st_blocks * 512 >= LAYOUT.size_bytes for file in host._files)
    publish(host, 1)
    assert list(tmp_path.iterdir()) == []
    host.close()


# other machines -------------------------------------------------------------------------------------------------------


def test_another_machine_gets_exactly_what_it_asks_for(host: WeightHost) -> None:
    publish(host, 7)
    other = WeightHost()
    other.reserve(LAYOUT)
    file, middle = other.begin(7, 0.0), WHOLE[0] + 1001
    with pytest.raises(WeightsLostError, match="did not give all of weights 6"):
        other.fetch(6, {host.address(): [WHOLE]})
    assert other.fetch(7, {host.address(): [(WHOLE[0], middle), (middle + 8, WHOLE[1])]}) == WHOLE[1] - WHOLE[0] - 8
    assert other.fetch(7, {host.address(): [(middle, middle + 8)]}) == 8
    other.commit(7)
    assert versions_in(file) == {7.0}
    other.close()


def test_machines_exchange_what_their_ranks_have_before_a_version_serves() -> None:
    hosts, half = [WeightHost(), WeightHost()], (WHOLE[0] + WHOLE[1]) // 2
    for host in hosts:
        host.reserve(LAYOUT)
    files, whole = [host.begin(5, 0.0) for host in hosts], publish(other := made(), 5).read_bytes()
    for file, (start, end) in zip(files, ((WHOLE[0], half), (half, WHOLE[1])), strict=True):
        with file.open("r+b") as writer:
            writer.seek(start)
            writer.write(whole[start:end])
    hosts[0].fetch(5, {hosts[1].address(): [(half, WHOLE[1])]})
    hosts[1].fetch(5, {hosts[0].address(): [(WHOLE[0], half)]})
    for host, file in zip(hosts, files, strict=True):
        host.commit(5)
        assert file.read_bytes() == whole
        host.close()
    other.close()


def test_nobody_without_the_token_gets_weights(host: WeightHost) -> None:
    publish(host, 1)
    address = host.address()
    with pytest.raises(WeightsLostError, match="ended the connection"):
        fetch(Address(address.host, address.port, "guessed"), 1, [WHOLE], memoryview(bytearray(WHOLE[1])))


def test_a_machine_that_is_gone_is_told(host: WeightHost) -> None:
    publish(host, 1)
    address = host.address()
    host._server.close()  # type: ignore[union-attr]
    other = made()
    other.begin(1, 0.0)
    with pytest.raises(WeightsLostError, match="did not give all of weights 1"):
        other.fetch(1, {address: [WHOLE]})
    other.close()


# deaths ---------------------------------------------------------------------------------------------------------------


def _numbers(file: Path, mode: Any) -> FloatArray:
    """The weights `a`. By numpy: a forked process must not use torch's threads."""
    return np.memmap(file, np.float32, mode, LAYOUT.offsets["a"], (NUM_ELEMENTS,))


def _write_for_ever(file: Path, version: int, started: Connection) -> None:
    started.send(True)
    while True:
        _numbers(file, "r+")[:] = version


def _read_for_ever(file: Path, version: int, results: Connection) -> None:
    while True:
        try:
            with held(file, version):
                results.send(set(np.unique(_numbers(file, "r")).tolist()))
        except WeightsLostError:
            results.send(set())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["writer", "reader", "none"]), st.floats(0, 0.02)), min_size=1, max_size=4))
def test_invariant_whoever_is_killed_at_any_moment_no_wrong_weights_are_served(steps: list[tuple[str, float]]) -> None:
    """Without it an engine would sample from weights that no learner ever had, and nothing would say so."""
    host, context, version = made(), get_context("fork"), 0
    served = publish(host, version)
    for victim, after_s in steps:
        mine, theirs = context.Pipe()
        reader = context.Process(target=_read_for_ever, args=(served, version, theirs), daemon=True)
        reader.start()
        assert mine.recv() == {float(version)}
        half = host.begin(version + 1, 30.0)
        started, told = context.Pipe()
        writer = context.Process(target=_write_for_ever, args=(half, version + 1, told), daemon=True)
        writer.start()
        started.recv()
        time.sleep(after_s)
        if victim != "none":
            os.kill((writer if victim == "writer" else reader).pid or 0, signal.SIGKILL)
        for process in (reader, writer):
            time.sleep(0.001)
            process.kill()
            process.join()
        while mine.poll():
            try:
                assert mine.recv() == {float(version)}
            except EOFError:
                break
        with held(served, version):
            assert versions_in(served) == {float(version)}
        version += 2  # that of the writer never served
        served = publish(host, version)
    host.close()


def _hold_files(ready: Connection) -> None:
    host = made()
    file = host.begin(1, 0.0)
    _numbers(file, "r+")[:] = 1.0
    host.commit(1)
    ready.send(file)
    time.sleep(600)


def test_a_host_that_is_killed_leaves_nothing_in_memory() -> None:
    before = psutil.virtual_memory().shared
    mine, theirs = get_context("fork").Pipe()
    process = get_context("fork").Process(target=_hold_files, args=(theirs,), daemon=True)
    process.start()
    path = mine.recv()
    assert (_numbers(path, "r") == 1.0).all()
    process.kill()
    process.join()
    with pytest.raises(WeightsLostError, match="is gone"), held(path, 1):
        pass
    assert psutil.virtual_memory().shared < before + LAYOUT.size_bytes
