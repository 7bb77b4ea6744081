"""Frames for the encoder, and what it is asked to make of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from wan_worker.media import encode
from wan_worker.media.encode import Spec

FFMPEG = encode.find_ffmpeg()
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def ramp(count: int, height: int = 48, width: int = 64) -> Pixels:
    """Frames that differ in place and time: a bright bar that moves right, brighter each frame."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for index in range(count):
        frames[index, :, index * 2 : index * 2 + 12] = (200, 60 + 2 * index, 40)
        frames[index, : height // 2, :, 2] = 120
    return frames


def chunks(frames: Pixels) -> Iterator[Pixels]:
    """As the decoder yields them: one frame, then fours."""
    yield frames[:1]
    for start in range(1, len(frames), 4):
        yield frames[start : start + 4]


def spec(count: int, fps: int = 16, height: int = 48, width: int = 64, form: str = "mp4") -> Spec:
    return Spec(form, width, height, count, fps)


VIDEOS = ("mp4", "webm", "gif")
