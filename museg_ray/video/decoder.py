"""Frames out of a file, in the order of presentation, with the damage that was met on the way."""

from collections.abc import Collection, Generator
from contextlib import closing

import av

from museg_ray.errors import VideoError, VideoFault
from museg_ray.video.container import Clock, decoding_context, open_container, packets, video_stream


class Decoder:
    """Frames in the order of presentation, each with its stretch: the packets from one key frame up to the next.

    A decoder patches what it cannot read with what was there before, and on H.264 it often notices only later in the
    stretch: an error anywhere damages all of it. Where the container tells that a packet is not whole, as the last one
    of a file that was cut off, what came before it is sound.
    """

    def __init__(self, path: str, wanted_pts: Collection[int] | None = None) -> None:
        """
        Args:
            wanted_pts: frames that are neither wanted nor referred to may then be left out.
        """
        self.wanted_pts = wanted_pts
        self.damaged: set[int] = set()
        """Stretches with an error in them, as far as the file has been read."""
        self.stretch = 0
        """That of the last packet read."""
        self._path = path
        self._stretch_of: dict[int | None, int] = {}

    def __iter__(self) -> Generator[tuple[av.VideoFrame, int]]:
        with open_container(self._path) as container:
            stream = video_stream(container)
            decoder = decoding_context(stream)
            for packet, is_whole in packets(container, stream, Clock(container, stream)):
                self._note(packet, is_whole)
                if not is_whole:
                    continue
                if self.wanted_pts is not None:
                    is_needed = packet.pts is None or packet.pts in self.wanted_pts
                    decoder.skip_frame = "DEFAULT" if is_needed else "NONREF"
                try:
                    frames = decoder.decode(packet)
                except av.FFmpegError:
                    self.damaged.add(self.stretch)
                    continue
                for frame in frames:
                    stretch = self._stretch_of.get(frame.pts, self.stretch)
                    if frame.is_corrupt:
                        self.damaged.add(stretch)
                    yield frame, stretch

    def _note(self, packet: av.Packet, is_whole: bool) -> None:
        self.stretch += packet.is_keyframe or not is_whole
        if not is_whole:
            self.damaged.add(self.stretch)
        if packet.pts is not None:
            self._stretch_of[packet.pts] = self.stretch


def first_frame(path: str) -> av.VideoFrame:
    """
    Raises:
        VideoError: no frame of the local file can be decoded.
    """
    with closing(iter(Decoder(path))) as frames:
        for frame, _ in frames:
            return frame
    raise VideoError("its frames cannot be decoded", VideoFault.CORRUPT)
