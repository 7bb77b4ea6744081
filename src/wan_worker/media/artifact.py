"""Is the file the requested one? Decode it, compare it and hash it.

A "completed" job with a broken file costs its user more than a failed job.
Promises: the file has its format's signature and a minimum size, is whole to its last byte, and has
its index before its pictures, so that a player starts before the download ends (containers); it
decodes to the end; width, height, frame count and duration (to the format's own tick) are right; it
is not black or of one colour.
Not covered: whether the picture shows the prompt.
"""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from wan_worker.errors import EncodeFailed, GenerationFailed
from wan_worker.media import containers, readback
from wan_worker.media.encode import CONTENT_TYPES, EXTENSIONS, Spec
from wan_worker.media.readback import Pixels, Reader
from wan_worker.timing.progress import Control

MIN_BYTES: Final = {"mp4": 800, "webm": 300, "gif": 800, "png": 67, "jpeg": 100, "webp": 30}
"""Bytes. A smaller file has no picture: this is about the size of the container's headers."""

FLAT_LEVELS: Final = 2
"""A frame shows nothing if all its pixels lie within so many of 256 levels."""

TICKS: Final = {"mp4": 0.0005, "webm": 0.001, "gif": 0.01}
"""Seconds by which a clip's length may differ. MP4 counts in frames: half a millisecond. The other
formats round to their own tick: one tick."""


@dataclass(frozen=True)
class Artifact:
    """A checked file. ``fps`` and ``duration`` (seconds) are None for a still image."""

    path: Path
    content_type: str
    extension: str
    bytes: int
    sha256: str
    width: int
    height: int
    num_frames: int
    fps: int | None
    duration: float | None


def reader(path: Path, spec: Spec, ffmpeg: str) -> AbstractContextManager[Reader | None]:
    """The decoder with which ``check`` reads a video; None for a still image."""
    return nullcontext() if spec.fps is None else readback.reader(path, spec.format, ffmpeg)


def check(path: Path, spec: Spec, control: Control, reader: Reader | None) -> Artifact:
    """Read the file back and compare it with ``spec``.

    Args:
        reader: an unused one for this path and format.

    Raises:
        EncodeFailed: the file does not match ``spec``.
        GenerationFailed: the file matches, but shows nothing.
    """
    size = path.stat().st_size
    if size < MIN_BYTES[spec.format]:
        raise EncodeFailed(f"The {spec.format} has only {size} bytes")
    containers.check(path, spec.format)
    is_video = spec.fps is not None
    thumbs = _check_video(path, spec, reader, control) if is_video else _check_image(path, spec)
    control.check()
    pixels = thumbs.reshape(spec.num_frames, -1)
    flat = np.ptp(pixels, axis=1) <= FLAT_LEVELS
    # One flat frame may be part of a fade. A clip with mostly flat frames shows nothing.
    if flat.mean() > 0.5:
        raise GenerationFailed(
            f"{int(flat.sum())} of {spec.num_frames} frame(s) came out in one colour; try another "
            "seed or a lower guidance_scale"
        )
    return Artifact(
        path=path,
        content_type=CONTENT_TYPES[spec.format],
        extension=EXTENSIONS[spec.format],
        bytes=size,
        sha256=_sha256(path),
        width=spec.width,
        height=spec.height,
        num_frames=spec.num_frames,
        fps=spec.fps,
        duration=None if spec.fps is None else spec.num_frames / spec.fps,
    )


def _check_video(path: Path, spec: Spec, reader: Reader | None, control: Control) -> Pixels:
    if reader is None or spec.fps is None:
        raise ValueError("a video needs a reader and a frame rate")
    video = reader.read(path, control)
    found = (video.width, video.height, video.num_frames)
    expected = (spec.width, spec.height, spec.num_frames)
    if found != expected:
        raise EncodeFailed(f"The {spec.format} holds {found}, not {expected}")
    if abs(video.seconds - spec.num_frames / spec.fps) > TICKS[spec.format]:
        raise EncodeFailed(
            f"The {spec.format} lasts {video.seconds:.3f} s, not {spec.num_frames / spec.fps:.3f} s"
        )
    return video.thumbs


def _check_image(path: Path, spec: Spec) -> Pixels:
    from PIL import Image

    try:
        with Image.open(path, formats=(spec.format.upper(),)) as image:
            image.load()
            if image.size != (spec.width, spec.height):
                raise EncodeFailed(f"The image is {image.size}, not {(spec.width, spec.height)}")
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise EncodeFailed(f"The {spec.format} does not decode") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
