"""Imports annotation files into a folder with `queries.parquet`, `quarantine.parquet` and `report.json`, and reads
queries back."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from museg_ray.data.annotations import TASKS, expect, join_video, read_annotations, read_duration_s, read_segments
from museg_ray.data.importers import IMPORTERS
from museg_ray.data.importers.generic import read_csv
from museg_ray.data.importers.rows import ImportedRow, read_json
from museg_ray.data.rules import RULES, Policy
from museg_ray.data.schema import QUARANTINE_SCHEMA, QUERY_SCHEMA
from museg_ray.data.validate import Repair, Validator, Verdict
from museg_ray.errors import DataError, ResourceError
from museg_ray.types import GroundingQuery, Segment

QUERIES, QUARANTINE, REPORT = "queries.parquet", "quarantine.parquet", "report.json"

Watch = Callable[[Iterable[ImportedRow]], Iterable[ImportedRow]]
"""Passes rows on while it shows that they pass."""


def import_annotations(
    importer: str,
    files: Sequence[Path],
    out: Path,
    policies: Mapping[str, Policy],
    *,
    check_videos: bool,
    video_root: str | None = None,
    durations: Path | None = None,
    split: str = "train",
    watch: Watch = iter,
) -> dict[str, Any]:
    """Read, judge and store annotation files. Every row is kept or quarantined; the old files of `out` are replaced
    at the end, all together.

    Args:
        importer: key of IMPORTERS.
        files: of that format; ids start with their stems, which must differ.
        out: folder, made when it is not there.
        policies: of every rule, as from `rules.read_policies`.
        check_videos: look for every video file.
        video_root: folder or URL that relative video paths start from; each annotation file's folder when None.
        durations: CSV file with the lengths of videos, for rows whose annotation tells none; see `read_durations`.
        split: written to every row.

    Returns:
        What report.json holds.

    Raises:
        DataError: no such importer, a file that cannot be read, or a row that breaks a rule of policy `error`.
        ResourceError: `out` cannot be written.
    """
    if importer not in IMPORTERS:
        raise DataError(f"There is no importer {importer!r}. The importers are {', '.join(IMPORTERS)}.")
    _check_stems(files)
    rows: Iterator[ImportedRow] = (row for file in files for row in IMPORTERS[importer](file))
    if durations is not None:
        rows = _with_durations(rows, read_durations(durations))
    validator = Validator(policies, check_videos, video_root)
    verdicts = [validator.judge(row) for row in watch(rows)]
    report = _report(importer, files, verdicts, policies)
    _write(out, verdicts, split, report)
    return report


def read_durations(path: Path) -> dict[str, float]:
    """Lengths in seconds by video id (the file's name without its ending), from a CSV file with columns `id` and
    `length`, such as Charades_v1_train.csv.

    Raises:
        DataError: it cannot be read, or a row has no id or length; names the line.
    """
    lengths = {}
    for number, row in read_csv(path):
        try:
            lengths[row["id"]] = float(row["length"])
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path}:{number}: {error}; expected a column 'id' and a column 'length' in seconds."
            ) from error
    return lengths


def load_queries(path: Path, video_root: str | None = None) -> list[GroundingQuery]:
    """The queries of an annotation file: .jsonl in MUSEG's schema, or .parquet as the import writes it.

    Args:
        path: the file.
        video_root: folder or URL that relative video paths start from; the file's own folder when None.

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
        video_root: folder or URL that relative video paths start from; the file's own folder when None.

    Raises:
        DataError: it cannot be read, or is not of the schema; names row and field.
    """
    columns = [name for name in QUERY_SCHEMA.names if name not in ("split", "repairs")]
    table = read_table(path, columns)
    root = str(video_root or path.parent)
    queries: dict[str, GroundingQuery] = {}
    for number, row in enumerate(table.to_pylist(), start=1):
        try:
            query = _read_query(row, root)
            expect(query.query_id not in queries, "query_id", query.query_id, "another one in every row")
        except DataError as error:
            raise DataError(f"{path}: row {number}: {error}. Import the annotations anew.") from error
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


def _read_query(row: dict[str, Any], root: str) -> GroundingQuery:
    for name in ("query_id", "video", "question"):
        expect(isinstance(row[name], str) and bool(row[name].strip()), name, row[name], "a text")
    expect(row["task"] in TASKS, "task", row["task"], " or ".join(TASKS))
    return GroundingQuery(
        query_id=row["query_id"],
        video=join_video(root, row["video"]),
        question=row["question"],
        segments=read_segments(_pairs(row["segments"]), "segments"),
        duration_s=read_duration_s(row["duration_s"], "duration_s"),
        task=row["task"],
        source=row["source"] or "",
    )


def _pairs(structs: Any) -> Any:
    is_structs = isinstance(structs, list) and all(isinstance(struct, dict) for struct in structs)
    return [[struct.get("start_s"), struct.get("end_s")] for struct in structs] if is_structs else structs


def _check_stems(files: Sequence[Path]) -> None:
    file_of: dict[str, Path] = {}
    for file in files:
        other = file_of.setdefault(file.stem, file)
        if other is not file:
            raise DataError(
                f"{other} and {file} are both named {file.stem!r}, which the ids of their queries start with. "
                "Rename one of the files, or import them into two folders."
            )


def _with_durations(rows: Iterable[ImportedRow], lengths: Mapping[str, float]) -> Iterator[ImportedRow]:
    for row in rows:
        query = row.parsed
        if isinstance(query, GroundingQuery) and query.duration_s is None:
            length_s = read_duration_s(lengths.get(Path(query.video).stem), "length")
            row = row._replace(parsed=replace(query, duration_s=length_s))
        yield row


def _report(
    importer: str, files: Sequence[Path], verdicts: Sequence[Verdict], policies: Mapping[str, Policy]
) -> dict[str, Any]:
    verdicts_of: dict[str, list[Verdict]] = {str(file): [] for file in files}
    for verdict in verdicts:
        verdicts_of[verdict.row.file].append(verdict)
    return {
        "importer": importer,
        **_row_counts(verdicts),
        "rules": {name: _rule_counts(name, verdicts, policies[name]) for name in RULES},
        "files": {
            file: {
                **_row_counts(of_file),
                "rules": dict(Counter(finding.rule for verdict in of_file for finding in verdict.findings)),
            }
            for file, of_file in verdicts_of.items()
        },
    }


def _row_counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    kept = sum(verdict.query is not None for verdict in verdicts)
    return {"rows_in": len(verdicts), "rows_kept": kept, "rows_quarantined": len(verdicts) - kept}


def _rule_counts(name: str, verdicts: Sequence[Verdict], policy: Policy) -> dict[str, Any]:
    """Of the rows that break a rule; those quarantined for another rule that they break too are among the quarantined,
    so that rows = repaired + quarantined + noted."""
    broken = [(verdict, finding) for verdict in verdicts for finding in verdict.findings if finding.rule == name]
    kept = sum(verdict.query is not None for verdict, _ in broken)
    return {
        "policy": policy.value,
        "rows": len(broken),
        "repaired": 0 if policy is Policy.NOTE else kept,
        "quarantined": len(broken) - kept,
        "noted": kept if policy is Policy.NOTE else 0,
        "largest_s": max((finding.amount_s for _, finding in broken if finding.amount_s is not None), default=None),
    }


def _write(out: Path, verdicts: Sequence[Verdict], split: str, report: dict[str, Any]) -> None:
    """All three files or none: each is whole under a partial name before the first takes its place."""
    kept = [_query_row(verdict, verdict.query, split) for verdict in verdicts if verdict.query is not None]
    quarantined = [_quarantine_row(verdict) for verdict in verdicts if verdict.query is None]
    partial = {name: out / f".{name}.partial" for name in (QUERIES, QUARANTINE, REPORT)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(kept, schema=QUERY_SCHEMA), partial[QUERIES])
        pq.write_table(pa.Table.from_pylist(quarantined, schema=QUARANTINE_SCHEMA), partial[QUARANTINE])
        partial[REPORT].write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, file in partial.items():
            file.replace(out / name)
    except OSError as error:
        raise ResourceError(
            f"Cannot write to {out}: {error.strerror or error}. Name a folder that can be written."
        ) from error


def _query_row(verdict: Verdict, query: GroundingQuery, split: str) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        "video": query.video,
        "question": query.question,
        "segments": [{"start_s": start_s, "end_s": end_s} for start_s, end_s in query.segments],
        "task": query.task,
        "source": query.source,
        "duration_s": query.duration_s,
        "split": split,
        "repairs": [_repair_struct(repair) for repair in verdict.repairs],
    }


def _repair_struct(repair: Repair) -> dict[str, Any]:
    def as_json(segments: Sequence[Segment]) -> str:
        return json.dumps(segments)

    return repair._asdict() | {"before": as_json(repair.before), "after": as_json(repair.after)}


def _quarantine_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "file": verdict.row.file,
        "row": verdict.row.number,
        "raw": verdict.row.raw,
        "rules": [finding.rule for finding in verdict.findings],
        "reason": verdict.reason,
    }
