"""Whether a run that is resumed still has the training data that it has trained with: `train_queries/` keeps it.

train_queries/train-1f0c9b2a.parquet    every query of `train.jsonl` as it was read, by the hash of the file's path
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from museg_ray.data.schema import QUERY_SCHEMA
from museg_ray.data.store import query_row, read_table
from museg_ray.errors import DataError, ResourceError
from museg_ray.files import whole_file
from museg_ray.runs.rewind import QUERIES_DIR
from museg_ray.types import GroundingQuery

Row = dict[str, Any]
KEPT_SCHEMA = pa.schema([field for field in QUERY_SCHEMA if field.name not in ("split", "repairs")])
CORPUS = "the rendered corpus"
NO_ROW: Row = {"query_id": "nothing"}


def keep_queries(run_dir: Path, queries: Mapping[str, Sequence[GroundingQuery]]) -> None:
    """Write down what the run trains with.

    Args:
        queries: by annotation file.

    Raises:
        ResourceError: disk full and the like.
    """
    try:
        (run_dir / QUERIES_DIR).mkdir(exist_ok=True)
        for path, of_file in queries.items():
            with whole_file(_kept_file(run_dir, path)) as partial:
                pq.write_table(_table(of_file), partial)
    except OSError as error:
        raise ResourceError(f"{run_dir / QUERIES_DIR} cannot be written: {error.strerror or error}.") from error


def changed_data(
    run_dir: Path, queries: Mapping[str, Sequence[GroundingQuery]], drawn_from: Collection[str]
) -> list[str]:
    """The first row that differs of each annotation file that does.

    Args:
        queries: by annotation file.
        drawn_from: files that the run has drawn from; that another one is new is no change.
    """
    changes = (_first_change(path, _kept_file(run_dir, path), queries[path]) for path in queries if path in drawn_from)
    return [change for change in changes if change]


def refusal(change: str) -> DataError:
    return DataError(
        f"{change} Restore the file, or start a new run under another run.name; or go on with what it holds now by "
        "run.accept_changed_data=true."
    )


def _first_change(path: str, file: Path, queries: Sequence[GroundingQuery]) -> str:
    now = _table(queries)
    try:
        was = read_table(file, KEPT_SCHEMA.names)
    except DataError as error:
        return f"What the run has trained with of {path or CORPUS} cannot be told any more: {error}"
    if was.equals(now):
        return ""
    rows = zip_longest(was.to_pylist(), now.to_pylist(), fillvalue=NO_ROW)
    number, old, new = next((number, old, new) for number, (old, new) in enumerate(rows, start=1) if old != new)
    key = next(key for key in ("query_id", *KEPT_SCHEMA.names) if old.get(key) != new.get(key))
    return (
        f"{path or CORPUS}, query {number} ({new['query_id']}): {key} is {_shown(new, key)}, but was "
        f"{_shown(old, key)} when the run trained with it (in all {len(now)} queries, and {len(was)} then)."
    )


def _shown(row: Row, key: str) -> str:
    value = row[key]
    return repr([[each["start_s"], each["end_s"]] for each in value] if key == "segments" else value)


def _kept_file(run_dir: Path, path: str) -> Path:
    name = f"{Path(path).stem or 'corpus'}-{blake3(path.encode()).hexdigest(length=4)}.parquet"
    return run_dir / QUERIES_DIR / name


def _table(queries: Sequence[GroundingQuery]) -> pa.Table:
    return pa.Table.from_pylist([query_row(query) for query in queries], schema=KEPT_SCHEMA)
