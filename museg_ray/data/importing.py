"""Imports annotation files of any format: reads and judges every row, and writes the folder and its report."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from museg_ray.data.annotations import join_video
from museg_ray.data.contradictions import RULE as CONTRADICTING
from museg_ray.data.contradictions import settle
from museg_ray.data.durations import Durations
from museg_ray.data.importers import IMPORTERS
from museg_ray.data.importers.generic import Unit, read_generic
from museg_ray.data.importers.guess import guess_format
from museg_ray.data.importers.rows import ImportedRow
from museg_ray.data.rules import MIN_SHARE, RULES, Policy
from museg_ray.data.store import write_folder
from museg_ray.data.validate import Validator, Verdict
from museg_ray.data.videos import Measure, VideoFiles
from museg_ray.errors import DataError
from museg_ray.files import is_url

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
    durations: Sequence[Path] = (),
    split: str = "train",
    min_share: float = MIN_SHARE,
    unit: Unit | None = None,
    measure: Measure = lambda path: None,
    watch: Watch = iter,
) -> dict[str, Any]:
    """Read, judge and store annotation files. Every row is kept or quarantined; the old files of `out` are replaced
    at the end, and stay where the import fails.

    Args:
        importer: key of IMPORTERS.
        files: of that format; ids start with their stems, which must differ.
        out: folder, made when it is not there.
        policies: of every rule, as from `rules.read_policies`.
        check_videos: look for every video file, and hold its rows to its length.
        video_root: where relative video paths start; each annotation file's folder when None. It is stored with the
            queries; without it, and with files in several folders, the paths are stored absolute.
        durations: CSV files with lengths, for rows whose annotation tells none; see `Durations`.
        split: written to every row.
        min_share: of a segment that must be left where it is cut off at an end of its video.
        unit: of the times of a generic file; None where each row tells.
        measure: how long a video file is.

    Returns:
        What report.json holds.

    Raises:
        DataError: no such importer, a file that cannot be read, a row that breaks a rule of policy `error`, no row
            that is kept, or durations of none of the videos.
        ResourceError: `out` cannot be written.
    """
    if importer not in IMPORTERS:
        raise DataError(f"There is no importer {importer!r}. The importers are {', '.join(IMPORTERS)}.")
    _check_stems(files)
    lengths = Durations(durations)
    root = _common_root(files, video_root)
    rows: Iterable[ImportedRow] = (row for file in files for row in _read(importer, file, unit))
    if not root:
        rows = map(_with_absolute_video, rows)
    validator = Validator(policies, VideoFiles(measure) if check_videos else None, root or None, min_share)
    judged = [validator.judge(row) for row in watch(map(lengths.fill, rows))]
    _check_kept(importer, files, judged)
    verdicts = settle(judged, policies[CONTRADICTING])
    lengths.check_use()
    report = {"importer": importer, "video_root": root or None, "durations": lengths.as_report()}
    report |= _counts(files, verdicts, policies)
    write_folder(out, verdicts, split, root, report)
    return report


def _read(importer: str, file: Path, unit: Unit | None) -> Iterator[ImportedRow]:
    """
    Raises:
        DataError: the file cannot be read as of this format; names the one that it seems to be of.
    """
    if unit is not None and importer != "generic":
        raise DataError(f"--unit is for generic files; those of {importer} have a unit of their own.")
    reader = partial(read_generic, unit=unit) if unit is not None else IMPORTERS[importer]
    try:
        yield from reader(file)
    except DataError as error:
        raise DataError(f"{error}{_hint(importer, file)}") from error


def _hint(importer: str, file: Path) -> str:
    other = guess_format(file)
    return f" {file.name} has the fields of {other}: import it as that." if other not in (None, importer) else ""


def _common_root(files: Sequence[Path], video_root: str | None) -> str:
    """Absolute folder or URL that all relative video paths start from; empty where each file has its own."""
    if video_root:
        return video_root if is_url(video_root) else str(Path(video_root).absolute())
    folders = {str(file.absolute().parent) for file in files}
    return folders.pop() if len(folders) == 1 else ""


def _with_absolute_video(row: ImportedRow) -> ImportedRow:
    """A row of a file that is not beside the others: no one root could say where its video is."""
    query = row.parsed
    if isinstance(query, DataError):
        return row
    return row._replace(parsed=replace(query, video=join_video(str(Path(row.file).parent), query.video)))


def _check_kept(importer: str, files: Sequence[Path], verdicts: Sequence[Verdict]) -> None:
    """A folder without queries is of no use, and must not replace one with some."""
    if not verdicts:
        raise DataError(f"There are no rows in {', '.join(map(str, files))}; nothing was written.")
    if all(verdict.query is None for verdict in verdicts):
        row, reason = verdicts[0].row, verdicts[0].reason
        raise DataError(
            f"None of {len(verdicts)} rows can be kept, so nothing was written. The first: {row.file}:{row.number}: "
            f"{reason}.{_hint(importer, files[0])} Is the format {importer!r}, and are --video-root and --rule as they "
            f"should be? The formats are {', '.join(IMPORTERS)}."
        )


def _check_stems(files: Sequence[Path]) -> None:
    file_of: dict[str, Path] = {}
    for file in files:
        other = file_of.setdefault(file.stem, file)
        if other is not file:
            raise DataError(
                f"{other} and {file} are both named {file.stem!r}, which the ids of their queries start with. "
                "Rename one of the files, or import them into two folders."
            )


def _counts(files: Sequence[Path], verdicts: Sequence[Verdict], policies: Mapping[str, Policy]) -> dict[str, Any]:
    verdicts_of: dict[str, list[Verdict]] = {str(file): [] for file in files}
    for verdict in verdicts:
        verdicts_of[verdict.row.file].append(verdict)
    return {
        "unread": sorted({name for verdict in verdicts for name in verdict.row.unread}),
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
