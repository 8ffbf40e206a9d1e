"""The folder of an import, with `queries.parquet`, `quarantine.parquet` and `report.json`: written and read back."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from museg_ray.data.annotations import join_video, kept_to_rules, read_annotations
from museg_ray.data.fields import TASKS, expect, read_duration_s, read_json, read_segments
from museg_ray.data.importers import IMPORTERS
from museg_ray.data.schema import QUARANTINE_SCHEMA, QUERY_SCHEMA, VIDEO_ROOT_KEY
from museg_ray.data.validate import Repair, Verdict
from museg_ray.errors import DataError, ResourceError
from museg_ray.files import whole_file
from museg_ray.types import GroundingQuery

QUERIES, QUARANTINE, REPORT = "queries.parquet", "quarantine.parquet", "report.json"


def load_queries(path: Path, video_root: str | None = None) -> list[GroundingQuery]:
    """The queries of an annotation file: .jsonl in MUSEG's schema, or .parquet as the import writes it.

    Args:
        path: the file.
        video_root: folder or URL that relative video paths start from; when None, the root that a .parquet names,
            else the file's own folder.

    Raises:
        DataError: another kind of file, or a malformed one.
    """
    if path.suffix == ".jsonl":
        return read_annotations(path, video_root)
    if path.suffix == ".parquet":
        return read_queries(path, video_root)
    raise DataError(
        f"{path} is neither .jsonl in MUSEG's schema nor .parquet of queries. "
        f"`museg data import` makes DIR/{QUERIES} of other formats: {', '.join(IMPORTERS)}."
    )


def read_queries(path: Path, video_root: str | None = None) -> list[GroundingQuery]:
    """All queries of a Parquet file in its order, whoever wrote it; columns beyond those of a query are not read.

    Args:
        path: file with the columns of `QUERY_SCHEMA`, of which split and repairs may be absent.
        video_root: folder or URL that relative video paths start from; when None, the root that the import used, else
            the file's own folder.

    Raises:
        DataError: it cannot be read, is not of the schema, or has a row that breaks a rule; names row and field.
    """
    columns = [name for name in QUERY_SCHEMA.names if name not in ("split", "repairs")]
    table = read_table(path, columns)
    root = video_root or _stored_root(table.schema) or str(path.parent)
    queries: dict[str, GroundingQuery] = {}
    for number, row in enumerate(table.to_pylist(), start=1):
        try:
            query = _read_query(row, root)
            expect(query.query_id not in queries, "query_id", query.query_id, "another one in every row")
        except DataError as error:
            raise DataError(
                f"{path}: row {number}: {error}. Correct it, or import the annotations anew with `museg data import`."
            ) from error
        queries[query.query_id] = query
    if not queries:
        raise DataError(f"{path} has no rows; see quarantine.parquet beside it for what became of them.")
    return list(queries.values())


def read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """Those columns of a Parquet file.

    Raises:
        DataError: it cannot be read, or lacks one of them.
    """
    try:
        missing = [name for name in columns if name not in pq.read_schema(path).names]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r}; expected {', '.join(columns)}.")
        return pq.read_table(path, columns=list(columns), partitioning=None)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}; `museg data import … --out {path.parent}` makes it.") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"Cannot read {path} as Parquet: {error}") from error


def read_report(folder: Path) -> dict[str, Any]:
    """What an import wrote to report.json.

    Raises:
        DataError: there is none, or it is not one of ours.
    """
    report = read_json(folder / REPORT)
    if not isinstance(report, dict) or "rules" not in report:
        raise DataError(f"{folder / REPORT} is no report of an import. Import the annotations anew.")
    return report


def _stored_root(schema: pa.Schema) -> str:
    """Where an import looked for videos; empty where the file does not tell, as files of other hands do not."""
    return (schema.metadata or {}).get(VIDEO_ROOT_KEY, b"").decode()


def _read_query(row: dict[str, Any], root: str) -> GroundingQuery:
    for name in ("query_id", "video", "question"):
        expect(isinstance(row[name], str) and bool(row[name].strip()), name, row[name], "a text")
    expect(row["task"] in TASKS, "task", row["task"], " or ".join(TASKS))
    read = {
        "video": join_video(root, row["video"].strip()),
        "segments": read_segments(_pairs(row["segments"]), "segments"),
        "duration_s": read_duration_s(row["duration_s"], "duration_s"),
        "source": row["source"] or "",
    }
    return kept_to_rules(GroundingQuery(**row | read), "segments")


def _pairs(structs: Any) -> Any:
    is_structs = isinstance(structs, list) and all(isinstance(struct, dict) for struct in structs)
    return [[struct.get("start_s"), struct.get("end_s")] for struct in structs] if is_structs else structs


def write_folder(out: Path, verdicts: Sequence[Verdict], split: str, root: str, report: dict[str, Any]) -> None:
    """Write the three files of an import, in place of those of an earlier one.

    All three are written before the first takes its place: where that fails, the old files stay, and no part of a new
    one. Each is replaced whole, `queries.parquet` last. The three renames are not one: who is killed between them
    leaves a new report beside old queries, and two imports into one folder at once may each leave some.

    Args:
        out: folder, made when it is not there.
        split: written to every query.
        root: folder or URL that the relative video paths start from; empty where there are none.

    Raises:
        ResourceError: `out` cannot be written.
    """
    kept = [
        query_row(verdict.query) | {"split": split, "repairs": [_repair_struct(repair) for repair in verdict.repairs]}
        for verdict in verdicts
        if verdict.query is not None
    ]
    quarantined = [_quarantine_row(verdict) for verdict in verdicts if verdict.query is None]
    schema = QUERY_SCHEMA.with_metadata({VIDEO_ROOT_KEY: root.encode()} if root else None)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # what enters first is renamed last
            queries, quarantine, text = (
                stack.enter_context(whole_file(out / name)) for name in (QUERIES, QUARANTINE, REPORT)
            )
            pq.write_table(pa.Table.from_pylist(kept, schema=schema), queries)
            pq.write_table(pa.Table.from_pylist(quarantined, schema=QUARANTINE_SCHEMA), quarantine)
            text.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(
            f"Cannot write to {out}: {error.strerror or error}. Name a folder that can be written."
        ) from error


def query_row(query: GroundingQuery) -> dict[str, Any]:
    """The columns of `QUERY_SCHEMA` that a query has by itself."""
    return asdict(query) | {"segments": [{"start_s": start_s, "end_s": end_s} for start_s, end_s in query.segments]}


def _repair_struct(repair: Repair) -> dict[str, Any]:
    return repair._asdict() | {"before": json.dumps(repair.before), "after": json.dumps(repair.after)}


def _quarantine_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "file": verdict.row.file,
        "row": verdict.row.number,
        "raw": verdict.row.raw,
        "rules": [finding.rule for finding in verdict.findings],
        "reason": verdict.reason,
    }
