"""Read delivered files with PyAV: a reader that shares nothing with the code that wrote them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import av
import numpy as np


@dataclass(frozen=True)
class Clip:
    """A decoded video. ``frames`` is uint8 [n, height, width, 3], RGB."""

    frames: np.ndarray[Any, np.dtype[np.uint8]]
    fps: float
    seconds: float
    codec: str
    pixel_format: str
    colours: tuple[int, int, int, int]
    """Range (ffmpeg's number), primaries, transfer and matrix (numbers of ITU-T H.273)."""


def read(path: Path) -> Clip:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
        context = stream.codec_context
        assert stream.average_rate is not None
        assert stream.duration is not None
        assert stream.time_base is not None
        return Clip(
            frames=frames,
            fps=float(stream.average_rate),
            seconds=float(stream.duration * stream.time_base),
            codec=context.name,
            pixel_format=str(context.pix_fmt),
            colours=(
                int(context.color_range),
                int(context.color_primaries),
                int(context.color_trc),
                int(context.colorspace),
            ),
        )


def path_of(url: str) -> Path:
    """The local path behind a file URL."""
    parts = urlsplit(url)
    assert parts.scheme == "file"
    return Path(unquote(parts.path))
