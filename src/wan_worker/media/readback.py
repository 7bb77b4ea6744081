"""What does a finished video hold? A separate decoder reads it from the first byte to the last.

The decoder is started while the file is still being written, because its start takes longer than
reading a small clip (benchmarks/job.py). So it gets the file through a pipe.
Promises: no process outlives the block; it is killed if it hangs or the job should stop.
Not covered: whether the content is the requested one (artifact).
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
"""The limit for a whole file."""

_DEMUXERS: Final = {"mp4": "mov", "webm": "matroska", "gif": "gif"}

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Contents:
    """The content of a file."""

    width: int
    height: int
    num_frames: int
    seconds: float
    thumbs: Pixels
    """uint8 [frames * THUMB * THUMB * 3]: a thumbnail of every frame."""


class Reader:
    """A decoder that waits for one file."""

    def __init__(self, process: "subprocess.Popen[bytes]", form: str, thumbs_path: Path) -> None:
        self._process, self._form, self._thumbs_path = process, form, thumbs_path

    def read(self, path: Path, control: Control) -> Contents:
        """Decode a file to its end.

        Raises:
            EncodeFailed: the file does not decode.
            Canceled, DeadlineExceeded: the job should stop.
        """
        with path.open("rb") as file:
            # We do not close it: a decoder that is stopped midway still uses it.
            whole = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        listing = self._decoded(whole, control)
        pixels = np.fromfile(self._thumbs_path, dtype=np.uint8)
        return Contents(*_read_listing(listing), pixels)

    def _decoded(self, whole: mmap.mmap, control: Control) -> str:
        deadline = time.monotonic() + DECODE_SECONDS
        listings: list[bytes] = []

        def read() -> None:
            # communicate accepts any buffer, so the file need not be in memory.
            listings.append(self._process.communicate(whole)[0])  # type: ignore[arg-type]

        # In a thread: communicate with a timeout could not be called again for the same file.
        thread = threading.Thread(target=read, name="read-back", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
                control.check()
                if time.monotonic() > deadline:
                    raise EncodeFailed(f"The {self._form} takes too long to decode")
        finally:
            if thread.is_alive():
                self._process.kill()
                thread.join()
        if self._process.returncode != 0:
            raise EncodeFailed(f"The {self._form} does not decode")
        return listings[0].decode()


@contextmanager
def reader(path: Path, form: str, ffmpeg: str) -> Iterator[Reader]:
    """Start a decoder. The file need not exist before ``read`` is called.

    Args:
        form: mp4, webm or gif.

    Raises:
        EncodeFailed: ffmpeg can't be started.
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
    # One pass with two outputs: a line and a thumbnail for each frame.
    return [
        ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "error", "-xerror", "-y",
        "-f", _DEMUXERS[form], "-i", "pipe:0",
        "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "pipe:1",
        "-map", "0:v:0", "-fps_mode", "passthrough",
        "-vf", f"scale={THUMB}:{THUMB}:flags=area,format=rgb24",
        "-f", "rawvideo", f"file:{thumbs_path}",
    ]  # fmt: skip


def _read_listing(text: str) -> tuple[int, int, int, float]:
    """Parse width, height, frames and seconds from ffmpeg's framecrc muxer.

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
            columns, rows = line.removeprefix("#dimensions 0: ").split("x")
            width, height = int(columns), int(rows)
        elif line and not line.startswith("#"):
            fields = [field.strip() for field in line.split(",")]
            count += 1
            end = max(end, (int(fields[2]) + int(fields[3])) * tick)
    return width, height, count, end
