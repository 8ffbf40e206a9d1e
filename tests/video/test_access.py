"""Who may use what a frame store makes."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from museg_ray.config.load import load_config
from museg_ray.errors import ConfigError, ResourceError
from museg_ray.video.folder import PRIVATE, own_storage
from museg_ray.video.prepare import Preparer, open_store, read_clip
from tests.video.conftest import Configure, RemoteFiles, Render

REPOSITORY = Path(__file__).parents[2]
MODES = {"private": (0o700, 0o600), "group": (0o2770, 0o660), "shared": (0o777, 0o666)}


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> set[tuple[tuple[str, ...], int]]:
    """Of a store's folder and all in it: in which part, and the mode."""
    paths = [folder, *folder.rglob("*")]
    return {(path.relative_to(folder).parts[:1], stat.S_IMODE(path.stat().st_mode)) for path in paths}


@pytest.mark.parametrize("store_mode", MODES)
def test_every_kind_of_entry_has_the_mode_that_is_set_whatever_the_umask(
    remote: RemoteFiles, render: Render, configure: Configure, umask: None, store_mode: str
) -> None:
    config = configure(store_mode=store_mode)
    folders, files = MODES[store_mode]
    url = remote.put("v.mp4", render(seconds=2).read_bytes())
    assert Preparer(config).prepare(url).was_decoded
    with open_store(config).lock("f" * 32, 0, lambda: None, lambda _: None):
        found = modes(Path(config.store_dir))
    parts = [("clips",), ("sources",), ("downloads",), ("locks",)]
    assert found == {((), folders)} | {(part, mode) for part in parts for mode in (folders, files)}


def test_a_file_that_is_written_is_never_open_to_more_than_it_may_be(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with PRIVATE.new_file(tmp_path / "a"):
            assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_single_look_opens_a_new_store_to_nobody(remote: RemoteFiles, render: Render, configure: Configure) -> None:
    config = configure()
    read_clip(remote.put("v.mp4", render(seconds=2).read_bytes()), config)
    assert {mode for _, mode in modes(Path(config.store_dir))} == {0o700, 0o600}


def test_a_store_made_with_other_modes_is_used_as_it_is(render: Render, configure: Configure) -> None:
    first, second = str(render("first.mp4", seconds=2)), str(render("second.mp4", seconds=3))
    store = Path(configure().store_dir)
    Preparer(configure(store_mode="shared")).prepare(first)
    before = {path: path.stat().st_mode for path in (store, *store.rglob("*"))}
    assert not Preparer(configure()).prepare(first).was_decoded
    assert Preparer(configure()).prepare(second).was_decoded
    assert {path: path.stat().st_mode for path in before} == before
    new = [path for path in store.rglob("*") if path not in before]
    assert len(new) == 2 and {stat.S_IMODE(path.stat().st_mode) for path in new} == {0o600}


def test_a_store_of_another_user_is_not_told_to_be_full(tmp_path: Path) -> None:
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    told = pytest.raises(ResourceError, match=r"Permission denied\. Set .* video\.store_mode=group")
    with told as caught, own_storage(tmp_path):
        raise refused
    assert "Free space" not in str(caught.value)


def test_another_mode_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"video\.store_mode is '0770'; it may be one of 'private', 'group', 'shared'"
    ):
        load_config(REPOSITORY / "configs/demo.yaml", ["video.store_mode='0770'"])
