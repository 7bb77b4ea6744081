"""Read delivered files: PyAV, and Pillow for a GIF, share nothing with the code that wrote them."""

import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import av
import numpy as np
from PIL import Image, ImageSequence


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
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        else:  # WebM states the length of the file, not of its tracks
            assert container.duration is not None
            seconds = container.duration / av.time_base
        return Clip(
            frames=frames,
            fps=float(stream.average_rate),
            seconds=seconds,
            codec=context.name,
            pixel_format=str(context.pix_fmt),
            colours=(
                int(context.color_range),
                int(context.color_primaries),
                int(context.color_trc),
                int(context.colorspace),
            ),
        )


@dataclass(frozen=True)
class Animation:
    """A decoded GIF, by Pillow. ``frames`` as in Clip; ``delays`` in 1/100 s."""

    frames: np.ndarray[Any, np.dtype[np.uint8]]
    delays: tuple[int, ...]
    loops_forever: bool


def read_gif(path: Path) -> Animation:
    frames, delays = [], []
    with Image.open(path) as image:
        assert image.format == "GIF"
        for frame in ImageSequence.Iterator(image):
            delays.append(int(frame.info["duration"]) // 10)
            frames.append(np.asarray(frame.convert("RGB")))
        loops = image.info.get("loop") == 0
    return Animation(np.stack(frames), tuple(delays), loops)


def path_of(url: str) -> Path:
    """The local path behind a file URL."""
    parts = urlsplit(url)
    assert parts.scheme == "file"
    return Path(unquote(parts.path))


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        data: bytes = response.read()
        return data
