"""Whether a run that is resumed still has the queries and the model that it began with: `inputs/` keeps them.

inputs/train-1f0c9b2a.parquet     every query of `train.jsonl` as it was read, by the hash of the file's path
inputs/heldout-6b21d0e4.parquet   likewise those that it is measured by
inputs/qwen-90c1a7f2.parquet      size and hash of the files in the model's folder
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from museg_ray.config.schema import Config
from museg_ray.data.schema import QUERY_SCHEMA
from museg_ray.data.store import query_row, read_table
from museg_ray.errors import DataError, ResourceError
from museg_ray.files import whole_file
from museg_ray.model.qwen_vl import is_model_file
from museg_ray.runs.rewind import INPUTS_DIR
from museg_ray.train.queries import RunQueries
from museg_ray.types import GroundingQuery

Row = dict[str, Any]
Inputs = Mapping[str, pa.Table]
"""By where they come from: annotation files as the phases name them, the held-out queries, the model's folder."""
KEPT_SCHEMA = pa.schema([field for field in QUERY_SCHEMA if field.name not in ("split", "repairs")])
FILES_SCHEMA = pa.schema([("file", pa.string()), ("size_bytes", pa.int64()), ("blake3", pa.string())])
CORPUS = "the rendered corpus"
BLOCK_BYTES, NUM_BLOCKS = 1 << 14, 256
"""What is hashed of a file of the model's."""


def read_inputs(config: Config, queries: RunQueries, model_dir: Path) -> Inputs:
    """What the numbers of a run follow from, beside its configuration.

    Raises:
        ResourceError: a file of the model's cannot be read.
    """
    train = {path: _table(of_file) for path, of_file in queries.train.items()}
    heldout = f"{config.data.heldout or CORPUS} (held out)"
    return {**train, heldout: _table(queries.heldout), config.model.path: _model_files(model_dir)}


def keep_inputs(run_dir: Path, inputs: Inputs) -> None:
    """Write down what the run trains with.

    Raises:
        ResourceError: disk full and the like.
    """
    try:
        (run_dir / INPUTS_DIR).mkdir(exist_ok=True)
        for name, table in inputs.items():
            with whole_file(_kept_file(run_dir, name)) as partial:
                pq.write_table(table, partial)
    except OSError as error:
        raise ResourceError(f"{run_dir / INPUTS_DIR} cannot be written: {error.strerror or error}.") from error


def changed_inputs(run_dir: Path, inputs: Inputs, unused: Collection[str]) -> list[str]:
    """The first row that differs of each input that does.

    Args:
        unused: those that the run has not drawn from yet: that they are new, or others, is no change.
    """
    changes = (_first_change(name, _kept_file(run_dir, name), inputs[name]) for name in inputs if name not in unused)
    return [change for change in changes if change]


def refusal(change: str) -> DataError:
    return DataError(
        f"{change} Restore the file, or start a new run under another run.name; or go on with what it holds now by "
        "run.accept_changed_data=true."
    )


def _first_change(name: str, file: Path, now: pa.Table) -> str:
    id_key = now.schema.names[0]
    try:
        was = read_table(file, now.schema.names)
    except DataError as error:
        return f"What the run has trained with of {name or CORPUS} cannot be told any more: {error}"
    if was.equals(now):
        return ""
    rows = zip_longest(was.to_pylist(), now.to_pylist(), fillvalue={id_key: "nothing"})
    number, old, new = next((number, old, new) for number, (old, new) in enumerate(rows, start=1) if old != new)
    key = next(key for key in now.schema.names if old.get(key) != new.get(key))
    return (
        f"{name or CORPUS}, {id_key.removesuffix('_id')} {number} ({new[id_key]}): {key} is {_shown(new, key)}, but "
        f"was {_shown(old, key)} in the run so far (in all {len(now)} rows, and {len(was)} then)."
    )


def _shown(row: Row, key: str) -> str:
    value = row[key]
    return repr([[each["start_s"], each["end_s"]] for each in value] if key == "segments" else value)


def _kept_file(run_dir: Path, name: str) -> Path:
    return run_dir / INPUTS_DIR / f"{Path(name).stem or 'corpus'}-{blake3(name.encode()).hexdigest(length=4)}.parquet"


def _table(queries: Sequence[GroundingQuery]) -> pa.Table:
    return pa.Table.from_pylist([query_row(query) for query in queries], schema=KEPT_SCHEMA)


def _model_files(folder: Path) -> pa.Table:
    """Weights and, as they make tokens and frames of the data, the small files beside them."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors" or is_model_file(path.name))
        rows = [{"file": path.name, "size_bytes": path.stat().st_size, "blake3": _sampled_hash(path)} for path in files]
    except OSError as error:
        raise ResourceError(f"The model folder {folder} cannot be read: {error}.") from error
    return pa.Table.from_pylist(rows, schema=FILES_SCHEMA)


def _sampled_hash(path: Path) -> str:
    """Of 4 MiB of a file in evenly spread blocks, its beginning among them, where a .safetensors names its tensors; of
    all of a smaller file. To read a model of 15 GB as a whole would take a start minutes. So what lies between the
    blocks is not seen: a change of a few weights, or of one tensor smaller than 1/256 of its file. Training, and
    another model, change more than that."""
    hasher, size_bytes = blake3(), path.stat().st_size
    with path.open("rb") as file:
        for start in range(0, size_bytes, max(BLOCK_BYTES, size_bytes // NUM_BLOCKS)):
            file.seek(start)
            hasher.update(file.read(BLOCK_BYTES))
    return hasher.hexdigest(length=16)
