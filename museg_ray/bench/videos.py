"""Videos to measure with: a panning texture, moving squares and sensor noise, as ordinary H.264 with B-frames."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from museg_ray.types import ByteArray

FPS = 30
NUM_NOISES = 8
SQUARE = 60
UNIQUE_S = 30
"""Seconds that are rendered and encoded; longer videos repeat them, packet by packet."""
SWAY = 80
"""Pixels that the background moves to and fro."""


@dataclass(frozen=True, slots=True)
class BenchVideo:
    name: str
    seconds: int
    """A multiple of UNIQUE_S."""
    width: int
    height: int

    def write(self, folder: Path) -> Path:
        """Render and encode it."""
        path, once = folder / f"{self.name.replace(' ', '_')}.mp4", folder / "once.mp4"
        self._encode(once)
        with av.open(str(path), "w") as output, av.open(str(once)) as source:
            stream = output.add_stream_from_template(source.streams.video[0])
            for repeat in range(self.seconds // UNIQUE_S):
                source.seek(0)
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        packet.pts += round(repeat * UNIQUE_S / packet.time_base)
                        packet.dts += round(repeat * UNIQUE_S / packet.time_base)
                        output.mux(packet)
        return path

    def _encode(self, path: Path) -> None:
        options = {"preset": "veryfast", "bf": "3"}
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options=options)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            for frame in self._frames():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    def _frames(self) -> Iterator[ByteArray]:
        rng = np.random.default_rng(0)
        background = _texture(rng, self.height + 2 * SWAY, self.width + 2 * SWAY)
        noises = rng.integers(0, 7, (NUM_NOISES, self.height, self.width, 1), dtype=np.uint8)
        for index in range(UNIQUE_S * FPS):
            x, y = int(SWAY * (1 + np.sin(index / 50))), int(SWAY * (1 + np.cos(index / 70)))
            frame = background[y : y + self.height, x : x + self.width] + noises[index % NUM_NOISES]
            for square in range(6):
                left = (index * (2 + square) + square * 97) % (self.width - SQUARE)
                top = int((self.height - SQUARE) * (0.5 + 0.5 * np.sin(index / 20 + square)))
                frame[top : top + SQUARE, left : left + SQUARE] = (square * 40, 255 - square * 40, 128)
            yield frame


def _texture(rng: np.random.Generator, height: int, width: int) -> ByteArray:
    """[height, width, 3] smooth blobs, darker than 240 so that noise does not wrap around."""
    coarse = torch.from_numpy(rng.random((1, 3, height // 8 + 1, width // 8 + 1), dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (fine.clamp(0, 1) * 240).byte().permute(1, 2, 0).contiguous().numpy()
