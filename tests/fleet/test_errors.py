"""Ray's errors as ours."""

import pytest
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from museg_ray.errors import ResourceError
from museg_ray.fleet.errors import put


@pytest.mark.parametrize("full", [ObjectStoreFullError, OutOfDiskError])
def test_a_store_without_room_is_one_error_that_says_where(
    full: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(value: object) -> None:
        raise full("Local disk is full")

    monkeypatch.setattr(ray, "put", no_room)
    with pytest.raises(ResourceError, match=r"no room .*Local disk is full.*/dev/shm.*RAY_TMPDIR.*--resume"):
        put(b"")
