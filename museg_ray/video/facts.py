"""All that we believe about a video file, for people who wonder."""

from typing import Any

import av
import numpy as np

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError
from museg_ray.video.container import decoding_context, open_container, video_stream
from museg_ray.video.decoder import first_frame
from museg_ray.video.display import displayed_size, orientation
from museg_ray.video.frames import choose_indices, clip_size
from museg_ray.video.probe import CLOCK_ROUNDING_S, VideoProbe, probe

HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions by their number in ITU-T H.273."""
UNSPECIFIED = 2

Facts = dict[str, Any]


def video_facts(path: str, config: VideoConfig) -> Facts:
    """What the file is, what its header promises, what it holds, and what would be selected; or its fault.

    Args:
        config: what selects and resizes.
    """
    facts: Facts = {"file": path}
    try:
        facts |= _stream_facts(path)
        probed = probe(path)
        facts |= _time_facts(probed)
        facts |= _selection(probed, facts["displayed"], config)
        facts["notices"] += probed.notices
    except VideoError as error:
        facts |= {"fault": str(error.fault), "reason": str(error)}
    return facts


def _stream_facts(path: str) -> Facts:
    with open_container(path) as container:
        stream = video_stream(container)
        frame, pixel_shape = first_frame(path)
        height, width = displayed_size(frame, pixel_shape)
        transfer = HDR.get(int(frame.color_trc or 0))
        notices = [f"its colours are HDR ({transfer}): they are not tone-mapped, so paler than a player shows them"]
        return {
            "container": container.format.name,
            "codec": decoding_context(stream).name,
            "track": f"{stream.index} of {len(container.streams)}, {len(container.streams.video)} of them video",
            "stored": [frame.height, frame.width],
            "pixel_shape": str(stream.sample_aspect_ratio or 1),
            "orientation": orientation(frame),
            "displayed": [round(height), round(width)],
            "pixel_format": frame.format.name,
            "colour": _colour(frame),
            "notices": notices if transfer else [],
        }


def _colour(frame: av.VideoFrame) -> str:
    """Matrix, transfer function and primaries by their numbers in ITU-T H.273, as far as they are told."""
    told = {"matrix": frame.colorspace, "transfer": frame.color_trc, "primaries": frame.color_primaries}
    known = [f"{name} {int(value)}" for name, value in told.items() if value not in (None, UNSPECIFIED)]
    return ", ".join(known) or "not told"


def _time_facts(probed: VideoProbe) -> Facts:
    steps_s = np.diff(probed.starts_s)
    is_constant = len(steps_s) == 0 or float(np.ptp(steps_s)) <= 2 * CLOCK_ROUNDING_S
    return {
        "num_frames": len(probed.starts_s),
        "fps": round((len(probed.starts_s)) / probed.duration_s, 3),
        "rate": "constant" if is_constant else "variable",
        "promised_s": round(probed.promised_s, 3),
        "duration_s": probed.duration_s,
        "late_s": round(probed.late_s, 3),
    }


def _selection(probed: VideoProbe, displayed_shape: list[int], config: VideoConfig) -> Facts:
    indices = choose_indices(probed.starts_s, probed.duration_s, probed.average_fps, config)
    height, width = clip_size(displayed_shape[0], displayed_shape[1], len(indices), config)
    per_pair = height * width // config.size_multiple**2
    return {
        "selected": [len(indices), height, width],
        "times_s": [round(float(time_s), 3) for time_s in probed.starts_s[indices]],
        "video_tokens": len(indices) // 2 * per_pair,
    }
