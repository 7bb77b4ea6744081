"""What is in these frames? Finds one plain shape on a plain background by image arithmetic.

Promises: numpy only; no network, no weights; the same frames give the same answer; no guesses: a
frame without a clear shape (noise, one flat colour, a blur without a body) gives None.
How: the background is the median of the picture's border. The shape is every pixel that is more
than half the way from the background to the most distant colour. Its kind is the outline that
overlaps it best when fitted into its bounding box. Its motion is the slope of its centroid's track.
Not covered: several shapes, patterned backgrounds, cameras that move, shapes under 40 pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data import COLOURS

NAMED_WITHIN = 80.0  # RGB distance beyond which a colour has no name here
STANDS_OUT = 45.0  # RGB distance from the background that a shape needs at least
BORDER_AGREES = 0.75  # share of border pixels that must be near the border's median
AREA = (0.01, 0.5)  # share of the picture that a shape may fill
COMPACT = 0.4  # least area over bounding box; scattered noise is far below
GRID = 32  # cells per side on which outlines are compared
MOVES, STAYS = 0.9, 0.45  # pixels per frame; drawn shapes move at about 2
STRAIGHT = 0.5  # the slower axis against the faster one, at most


@dataclass(frozen=True)
class Measured:
    """One answer for each question; None if the frames do not answer it.

    track: centroid (x, y) in pixels for each frame, None if no shape was found.
    velocity: (x, y) pixels per frame, y downwards; None for a single frame.
    fill: median area over bounding box: triangle 0.5, circle 0.785, square 1.
    """

    background: str | None
    colour: str | None
    kind: str | None
    motion: str | None
    track: tuple[tuple[float, float] | None, ...]
    velocity: tuple[float, float] | None
    fill: float | None


def colour_name(rgb: NDArray[np.float64]) -> str | None:
    """The nearest name, or None when nothing is near. rgb: [3], 0-255."""
    distance = {name: float(np.linalg.norm(rgb - np.array(v))) for name, v in COLOURS.items()}
    nearest = min(distance, key=lambda name: distance[name])
    return nearest if distance[nearest] <= NAMED_WITHIN else None


def background_of(frame: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Median colour [3] of the border of a frame [H, W, 3]; None if the border is not uniform."""
    border = np.concatenate([frame[0], frame[-1], frame[1:-1, 0], frame[1:-1, -1]])
    middle = np.median(border, axis=0)
    near = np.linalg.norm(border - middle, axis=1) < STANDS_OUT
    return middle if near.mean() >= BORDER_AGREES else None


def body_of(
    frame: NDArray[np.float64], background: NDArray[np.float64]
) -> NDArray[np.bool_] | None:
    """Mask [H, W] of the shape in one frame, or None."""
    distance = np.linalg.norm(frame - background, axis=2)
    # The shape's own distance: the median over what is clearly not background, edges left out.
    clear = distance[distance > STANDS_OUT]
    if clear.size < AREA[0] * distance.size:
        return None
    body: NDArray[np.bool_] = distance > max(STANDS_OUT, 0.5 * float(np.median(clear)))
    if not AREA[0] <= body.mean() <= AREA[1] or fill_of(body) < COMPACT:
        return None
    return body


def fill_of(body: NDArray[np.bool_]) -> float:
    """Area over bounding box of a mask [H, W] that is not empty."""
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return float(body.sum() / box)


def outline_of(body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mask inside its bounding box, sampled to [GRID, GRID], 0 or 1."""
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    at = (np.arange(GRID) + 0.5) / GRID
    y = rows[0] + (at * (rows[-1] - rows[0] + 1)).astype(int)
    x = columns[0] + (at * (columns[-1] - columns[0] + 1)).astype(int)
    return body[np.ix_(y, x)].astype(np.float64)


def outlines() -> dict[str, NDArray[np.float64]]:
    """The three ideal outlines on the same grid: each kind in its bounding box."""
    at = 2 * (np.arange(GRID) + 0.5) / GRID - 1
    x, y = np.meshgrid(at, at)
    inside = {
        "circle": x**2 + y**2 <= 1,
        "square": np.ones_like(x, dtype=bool),
        "triangle": 2 * np.abs(x) <= y + 1,
    }
    return {kind: mask.astype(np.float64) for kind, mask in inside.items()}


def kind_of(outline: NDArray[np.float64]) -> str:
    """The kind whose outline overlaps most: intersection over union of soft masks [GRID, GRID]."""
    overlap = {
        kind: float(np.minimum(outline, ideal).sum() / np.maximum(outline, ideal).sum())
        for kind, ideal in outlines().items()
    }
    return max(overlap, key=lambda kind: overlap[kind])


def velocity_of(track: list[tuple[float, float] | None]) -> tuple[float, float] | None:
    """Least-squares slope (x, y) in pixels per frame; None under three points."""
    found = [(t, *point) for t, point in enumerate(track) if point is not None]
    if len(found) < 3:
        return None
    t, x, y = np.array(found).T
    return float(np.polyfit(t, x, 1)[0]), float(np.polyfit(t, y, 1)[0])


def motion_of(velocity: tuple[float, float]) -> str | None:
    """left, right, up, down or still; None if the motion is in between or diagonal."""
    x, y = velocity
    fast, slow = max(abs(x), abs(y)), min(abs(x), abs(y))
    if fast <= STAYS:
        return "still"
    if fast < MOVES or slow > STRAIGHT * fast:
        return None
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def measure(frames: NDArray[np.uint8]) -> Measured:
    """Measure frames [F, H, W, 3]. A shape counts as found when most frames show it."""
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames must be [F, H, W, 3], not {list(frames.shape)}")
    backgrounds: list[NDArray[np.float64]] = []
    colours: list[NDArray[np.float64]] = []
    fills: list[float] = []
    shapes: list[NDArray[np.float64]] = []
    track: list[tuple[float, float] | None] = []
    for frame in frames.astype(np.float64):
        background = background_of(frame)
        body = None if background is None else body_of(frame, background)
        if background is not None:
            backgrounds.append(background)
        if body is None:
            track.append(None)
            continue
        rows, columns = np.nonzero(body)
        track.append((float(columns.mean() + 0.5), float(rows.mean() + 0.5)))
        colours.append(np.median(frame[body], axis=0))
        fills.append(fill_of(body))
        shapes.append(outline_of(body))
    most = len(frames) / 2
    seen = len(colours) > most
    fill = float(np.median(fills)) if seen else None
    velocity = velocity_of(track) if seen else None
    return Measured(
        background=colour_name(np.median(backgrounds, axis=0)) if len(backgrounds) > most else None,
        colour=colour_name(np.median(colours, axis=0)) if seen else None,
        kind=kind_of(np.mean(shapes, axis=0)) if seen else None,
        motion=None if velocity is None else motion_of(velocity),
        track=tuple(track),
        velocity=velocity,
        fill=fill,
    )
