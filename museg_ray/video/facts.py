"""All that we believe about a video file, for people who wonder."""

from typing import Any

import av
import numpy as np

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError
from museg_ray.types import Clip
from museg_ray.video.container import decoding_context, open_container, video_stream
from museg_ray.video.decode import decode_clip
from museg_ray.video.decoder import first_frame
from museg_ray.video.display import Display
from museg_ray.video.prepare import downloads
from museg_ray.video.probe import CLOCK_ROUNDING_S, VideoProbe, probe
from museg_ray.video.source import find_source, local_file

HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions by their number in ITU-T H.273."""
UNSPECIFIED = 2

Facts = dict[str, Any]


def video_facts(video: str, config: VideoConfig) -> tuple[Facts, Clip | None]:
    """What a file is, what its header promises, what it holds, and what is selected of it; or its fault and no clip.

    Args:
        video: path or URL.
        config: what selects and resizes.
    """
    facts: Facts = {"file": video}
    try:
        with local_file(find_source(video), downloads(config), lambda: None) as path:
            facts |= _stream_facts(str(path))
            probed = probe(str(path))
            facts |= _time_facts(probed)
            clip = decode_clip(str(path), "probed", config, probed)
    except VideoError as error:
        return facts | {"fault": str(error.fault), "reason": str(error)}, None
    notices = facts.pop("notices") + probed.notices
    return facts | _selection(clip, config) | {"notices": notices}, clip


def _stream_facts(path: str) -> Facts:
    with open_container(path) as container:
        stream = video_stream(container)
        frame, pixel_shape = first_frame(path), stream.sample_aspect_ratio or 1
        display = Display.of(frame, float(pixel_shape))
        height, width = display.size(frame)
        transfer = HDR.get(int(frame.color_trc or 0))
        notices = [f"its colours are HDR ({transfer}): they are not tone-mapped, so paler than a player shows them"]
        return {
            "container": container.format.name,
            "codec": decoding_context(stream).name,
            "track": f"{stream.index} of {len(container.streams)}, {len(container.streams.video)} of them video",
            "stored": [frame.height, frame.width],
            "pixel_shape": str(pixel_shape),
            "orientation": display.orientation,
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


def _selection(clip: Clip, config: VideoConfig) -> Facts:
    num_frames, height, width, _ = clip.frames.shape
    per_pair = height * width // config.size_multiple**2 + config.pair_tokens
    return {
        "selected": [num_frames, height, width],
        "times_s": [round(float(time_s), 3) for time_s in clip.times_s],
        "video_tokens": num_frames // 2 * per_pair,
    }
