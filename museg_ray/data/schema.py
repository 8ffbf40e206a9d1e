"""The columns of `queries.parquet` and `quarantine.parquet`. docs/data.md tells them to a reader."""

import pyarrow as pa

SEGMENTS = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64())]))

REPAIRS = pa.list_(
    pa.struct(
        [
            ("rule", pa.string()),
            ("before", pa.string()),  # the row's segments as JSON text, [[start_s, end_s], …]
            ("after", pa.string()),
            ("amount_s", pa.float64()),  # what the rule's meaning says; null where it has no amount
        ]
    )
)

QUERY_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),  # <file stem>/<idx>, unique
        pa.field("video", pa.string(), nullable=False),  # a relative path, an absolute one or a URL
        pa.field("question", pa.string(), nullable=False),
        pa.field("segments", SEGMENTS, nullable=False),  # 0 <= start_s < end_s, sorted, none overlaps another
        pa.field("task", pa.string(), nullable=False),  # tvg: one segment is asked for; tal: all
        pa.field("source", pa.string(), nullable=False),  # corpus; empty where the annotation does not tell
        pa.field("duration_s", pa.float64()),  # null where the annotation has none
        pa.field("split", pa.string(), nullable=False),
        pa.field("repairs", REPAIRS, nullable=False),  # in the order in which they were made
    ]
)

VIDEO_ROOT_KEY = b"museg_ray.video_root"
"""Metadata of queries.parquet: the absolute folder or the URL that its relative videos start from."""

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # line of a text file or place in a JSON file, from 1
        pa.field("raw", pa.string(), nullable=False),  # the line as it stood, or the element as JSON text
        pa.field("rules", pa.list_(pa.string()), nullable=False),  # all that the row breaks
        pa.field("reason", pa.string(), nullable=False),  # of those that put it here
    ]
)
