"""A scene: which objects are visible when and where, and how a moment of it looks.

Times are whole seconds, so that one temporal patch of the model (two frames at 2 fps) is either fully inside
or fully outside an appearance. Appearances are short against the video and most objects are distractors:
no fixed interval answers well, so a model that does not look cannot score (design.md, "reward hacking").
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from museg_ray.types import ByteArray, Segment

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 190, 50),
    "blue": (50, 70, 230),
    "yellow": (230, 215, 40),
}
SHAPES = ("circle", "square", "triangle")
KINDS = tuple(product(COLORS, SHAPES))

DURATIONS_S = (8, 10, 12)
MAX_COVERAGE = 0.4
"""Largest share of the video that one object is visible for: it bounds what the best blind answer can score."""
LONGEST_APPEARANCE_S = {1: 4, 2: 3, 3: 3, 4: 2}
"""Longest single appearance in seconds, by the number of appearances."""
SIZES = ((112, 112), (128, 128), (144, 144), (112, 168), (168, 112))  # (height, width) in pixels
FRAME_RATES = (10, 12, 15, 24)
QUADRANTS = 4


@dataclass(frozen=True, slots=True)
class Appearance:
    """One visit of one object: it drifts inside one quadrant from one place to another."""

    start_s: int
    end_s: int
    quadrant: int
    """0 top left, 1 top right, 2 bottom left, 3 bottom right."""
    path: tuple[float, float, float, float]
    """(y0, x0, y1, x1): centre at start and end, as shares of the quadrant."""
    radius: float
    """Half the object's size, as a share of the quadrant's shorter side."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    color: str
    shape: str
    appearances: tuple[Appearance, ...]

    @property
    def event(self) -> str:
        return f"the {self.color} {self.shape} is visible"

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple((float(a.start_s), float(a.end_s)) for a in self.appearances)


@dataclass(frozen=True, slots=True)
class Scene:
    duration_s: int
    height: int
    width: int
    fps: int
    background: int
    """Grey level. Mid-grey: a dark one is a large constant after normalisation and hides the objects."""
    texture_seed: int
    objects: tuple[SceneObject, ...]


def _draw_intervals(rng: np.random.Generator, duration_s: int, count: int) -> list[tuple[int, int]]:
    """`count` intervals in whole seconds with at least 1 s between them, covering at most `MAX_COVERAGE` of the video
    (fewer intervals where so many would cover more)."""
    budget_s = int(MAX_COVERAGE * duration_s)
    count = min(count, budget_s)
    lengths_s = rng.integers(1, LONGEST_APPEARANCE_S[count] + 1, size=count)
    while lengths_s.sum() > budget_s:
        lengths_s = rng.integers(1, LONGEST_APPEARANCE_S[count] + 1, size=count)
    free_s = duration_s - int(lengths_s.sum()) - (count - 1)
    offsets_s = np.sort(rng.integers(0, free_s + 1, size=count))
    starts_s = offsets_s + np.concatenate([[0], np.cumsum(lengths_s[:-1] + 1)])
    return [(int(start), int(start + length)) for start, length in zip(starts_s, lengths_s, strict=True)]


def _free_quadrants(taken: list[Appearance], start_s: int, end_s: int) -> list[int]:
    busy = {a.quadrant for a in taken if a.start_s < end_s and start_s < a.end_s}
    return [quadrant for quadrant in range(QUADRANTS) if quadrant not in busy]


def _draw_object(
    rng: np.random.Generator, kind: tuple[str, str], duration_s: int, taken: list[Appearance]
) -> SceneObject | None:
    count = int(rng.choice([1, 2, 3, 4], p=[0.4, 0.25, 0.2, 0.15]))
    appearances: list[Appearance] = []
    for start_s, end_s in _draw_intervals(rng, duration_s, count):
        free = _free_quadrants(taken + appearances, start_s, end_s)
        if not free:
            continue
        path = rng.uniform(0.38, 0.62, size=4)
        radius = float(rng.uniform(0.30, 0.38))
        quadrant = int(rng.choice(free))
        appearances.append(Appearance(start_s, end_s, quadrant, tuple(path.tolist()), radius))
    return SceneObject(*kind, tuple(appearances)) if appearances else None


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene of 2 to 4 different objects. In a third of the scenes two objects share their colour."""
    duration_s = int(rng.choice(DURATIONS_S))
    height, width = SIZES[rng.integers(len(SIZES))]
    num_objects = int(rng.integers(2, 5))
    kinds = [KINDS[i] for i in rng.permutation(len(KINDS))[:num_objects]]
    if rng.random() < 1 / 3:
        color = kinds[0][0]
        other_shape = SHAPES[(SHAPES.index(kinds[0][1]) + int(rng.integers(1, 3))) % len(SHAPES)]
        kinds = [kinds[0], (color, other_shape), *[k for k in kinds[1:] if k[0] != color]]
    objects: list[SceneObject] = []
    for kind in kinds[:4]:
        taken = [a for o in objects for a in o.appearances]
        drawn = _draw_object(rng, kind, duration_s, taken)
        if drawn is not None:
            objects.append(drawn)
    fps = int(rng.choice(FRAME_RATES))
    return Scene(duration_s, height, width, fps, int(rng.integers(100, 140)), int(rng.integers(2**31)), tuple(objects))


def _shape_mask(
    shape: str, rows: np.ndarray, columns: np.ndarray, center: tuple[float, float], radius: float
) -> np.ndarray:
    dy, dx = rows - center[0], columns - center[1]
    if shape == "circle":
        return dy**2 + dx**2 <= radius**2
    if shape == "square":
        return (np.abs(dy) <= 0.88 * radius) & (np.abs(dx) <= 0.88 * radius)
    assert shape == "triangle", shape
    return (dy <= 0.85 * radius) & (np.abs(dx) <= (dy + radius) * 0.6) & (dy >= -radius)


def _paint(frame: ByteArray, scene: Scene, drawn: SceneObject, visit: Appearance, time_s: float) -> None:
    quadrant_h, quadrant_w = scene.height / 2, scene.width / 2
    done = (time_s - visit.start_s) / (visit.end_s - visit.start_s)
    y0, x0, y1, x1 = visit.path
    center = (
        (visit.quadrant // 2 + y0 + (y1 - y0) * done) * quadrant_h,
        (visit.quadrant % 2 + x0 + (x1 - x0) * done) * quadrant_w,
    )
    rows = np.arange(scene.height)[:, None]
    columns = np.arange(scene.width)[None, :]
    mask = _shape_mask(drawn.shape, rows, columns, center, visit.radius * min(quadrant_h, quadrant_w))
    frame[mask] = COLORS[drawn.color]


def draw_background(scene: Scene) -> ByteArray:
    """Mid-grey with a blocky texture, the same for the whole video: [H, W, 3] uint8."""
    rng = np.random.default_rng(scene.texture_seed)
    texture = rng.integers(-8, 9, size=(scene.height // 8 + 1, scene.width // 8 + 1, 1))
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)[: scene.height, : scene.width]
    return np.broadcast_to(scene.background + texture, (scene.height, scene.width, 3)).astype(np.uint8)


def draw_frame(scene: Scene, background: ByteArray, time_s: float) -> ByteArray:
    """The picture at one moment: [H, W, 3] uint8 RGB."""
    frame = background.copy()
    for drawn in scene.objects:
        for visit in drawn.appearances:
            if visit.start_s <= time_s < visit.end_s:
                _paint(frame, scene, drawn, visit, time_s)
    return frame
