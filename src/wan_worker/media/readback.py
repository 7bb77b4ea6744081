"""What does a finished video hold? A decoder of its own reads it from the first byte to the last.

The decoder is started while the file is still being made, since starting one takes longer than
reading a small clip (benchmarks/job.py); so the file comes to it through a pipe.
Promises: no process outlives the block; a decoder that hangs, or a job that should stop, ends it.
Not covered: whether what it holds is what was asked for (artifact).
"""

import mmap
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from wan_worker.errors import EncodeFailed
from wan_worker.timing.progress import Control

THUMB: Final = 32
"""Width and height of the thumbnails, in pixels."""

DECODE_SECONDS: Final = 300.0
"""For a whole file."""

_DEMUXERS: Final = {"mp4": "mov", "webm": "matroska", "gif": "gif"}

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Contents:
    """What was found in a file."""

    width: int
    height: int
    num_frames: int
    seconds: float
    thumbs: Pixels
    """uint8 [frames * THUMB * THUMB * 3]: every frame, made small."""


class Reader:
    """A decoder that waits for one file."""

    def __init__(self, process: "subprocess.Popen[bytes]", form: str, thumbs_path: Path) -> None:
        self._process, self._form, self._thumbs_path = process, form, thumbs_path

    def read(self, path: Path, control: Control) -> Contents:
        """Decode a file to its end.

        Raises:
            EncodeFailed: it does not decode.
            Canceled, DeadlineExceeded: the job should stop.
        """
        with path.open("rb") as file:
            # Not closed by us: a decoder that is stopped midway still holds on to it.
            whole = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        listing = self._decoded(whole, control)
        pixels = np.fromfile(self._thumbs_path, dtype=np.uint8)
        return Contents(*_read_listing(listing), pixels)

    def _decoded(self, whole: mmap.mmap, control: Control) -> str:
        late = time.monotonic() + DECODE_SECONDS
        listings: list[bytes] = []

        def read() -> None:
            # Any buffer will do, whatever the type checker says: a file need not be in memory.
            listings.append(self._process.communicate(whole)[0])  # type: ignore[arg-type]

        # In a thread of its own: communicate can't be asked twice to send the same file.
        reading = threading.Thread(target=read, name="read-back", daemon=True)
        reading.start()
        try:
            while reading.is_alive():
                reading.join(0.2)
                control.check()
                if time.monotonic() > late:
                    raise EncodeFailed(f"The {self._form} takes too long to decode")
        finally:
            if reading.is_alive():
                self._process.kill()
                reading.join()
        if self._process.returncode != 0:
            raise EncodeFailed(f"The {self._form} does not decode")
        return listings[0].decode()


@contextmanager
def reader(path: Path, form: str, ffmpeg: str) -> Iterator[Reader]:
    """A decoder for the file that will be there when it is asked to read.

    Args:
        form: mp4, webm or gif.

    Raises:
        EncodeFailed: there is no such program.
    """
    thumbs_path = path.with_suffix(".thumbs")
    try:
        process = subprocess.Popen(
            _command(ffmpeg, form, thumbs_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise EncodeFailed("ffmpeg can't be started in this image") from error
    try:
        yield Reader(process, form, thumbs_path)
    finally:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()
        thumbs_path.unlink(missing_ok=True)


def _command(ffmpeg: str, form: str, thumbs_path: Path) -> list[str]:
    # One pass, two outputs: a line for each frame, and each frame as a thumbnail.
    return [
        ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "error", "-xerror", "-y",
        "-f", _DEMUXERS[form], "-i", "pipe:0",
        "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "pipe:1",
        "-map", "0:v:0", "-fps_mode", "passthrough",
        "-vf", f"scale={THUMB}:{THUMB}:flags=area,format=rgb24",
        "-f", "rawvideo", f"file:{thumbs_path}",
    ]  # fmt: skip


def _read_listing(text: str) -> tuple[int, int, int, float]:
    """Width, height, frames and seconds from ffmpeg's framecrc muxer.

    Header lines are ``#tb 0: 1/16`` and ``#dimensions 0: 832x480``; each other line is
    ``stream, dts, pts, duration, size, checksum``.
    """
    width = height = count = 0
    tick = end = 0.0
    for line in text.splitlines():
        if line.startswith("#tb 0: "):
            numerator, denominator = line.removeprefix("#tb 0: ").split("/")
            tick = int(numerator) / int(denominator)
        elif line.startswith("#dimensions 0: "):
            wide, high = line.removeprefix("#dimensions 0: ").split("x")
            width, height = int(wide), int(high)
        elif line and not line.startswith("#"):
            fields = [field.strip() for field in line.split(",")]
            count += 1
            end = max(end, (int(fields[2]) + int(fields[3])) * tick)
    return width, height, count, end
