"""Frames -> file, by an ffmpeg process of our own, or by Pillow for a still image.

imageio-ffmpeg supplies only the binary, because its writer hides failures. Frames go through a pipe
as they are decoded, so the encoder and the decoder work at the same time. The arguments are a list
of constants, numbers and a path of our own; they contain no text of a caller.

Promises: an error carries the end of ffmpeg's own message, without paths; a failure leaves no
process and no partial file; a hung ffmpeg is killed at the job's deadline or after a stall; the
same frames give the same bytes on the same machine.
Not covered: whether the file is right (artifact).
"""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wan_worker.errors import ConfigInvalid, DiskFull, EncodeFailed, WorkerError
from wan_worker.faults import is_disk_full
from wan_worker.timing.progress import Control

if TYPE_CHECKING:
    from wan_worker.pipelines.generate import Frames

STALL_SECONDS: Final = 120.0
"""If a single write takes longer than this, ffmpeg hangs."""

CLOSE_SECONDS: Final = 300.0
"""The limit for the encoder's last frames, and for moving the index to the file's front."""

CONTENT_TYPES: Final = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "gif": "image/gif",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
EXTENSIONS: Final = {
    "mp4": "mp4",
    "webm": "webm",
    "gif": "gif",
    "png": "png",
    "jpeg": "jpg",
    "webp": "webp",
}
ENCODERS: Final = ("libx264", "libvpx-vp9", "gif")
"""The encoders that find_ffmpeg requires, in the order of the video formats."""


@dataclass(frozen=True)
class Spec:
    """The requested file. ``fps`` is None for a still image."""

    format: str
    width: int
    height: int
    num_frames: int
    fps: int | None
    may_end_early: bool = False
    """True if fewer frames, but at least one, give a shorter file instead of an error."""


def find_ffmpeg() -> str:
    """Find imageio-ffmpeg's binary and test that it runs.

    Raises:
        ConfigInvalid: there is no binary, it does not run, or it lacks an encoder.
    """
    import imageio_ffmpeg

    try:
        path: str = imageio_ffmpeg.get_ffmpeg_exe()
        encoders = subprocess.run(
            [path, "-hide_banner", "-encoders"], capture_output=True, timeout=30, check=True
        ).stdout
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise ConfigInvalid(
            "ffmpeg is missing or does not run: install imageio-ffmpeg's binary wheel, and unset "
            "IMAGEIO_FFMPEG_EXE"
        ) from error
    absent = [name for name in ENCODERS if f" {name} ".encode() not in encoders]
    if absent:
        raise ConfigInvalid(
            f"ffmpeg was built without {', '.join(absent)}: unset IMAGEIO_FFMPEG_EXE"
        )
    return path


def write(
    frames: Iterable["Frames"], target: Path, spec: Spec, control: Control, ffmpeg: str
) -> int:
    """Encode every frame into ``target``.

    Args:
        frames: uint8 [n, height, width, 3] chunks, ``spec.num_frames`` in all.

    Returns:
        The number of frames written.

    Raises:
        EncodeFailed: ffmpeg died or hung, or the frames differ from ``spec``.
        DiskFull: there is no room for the file.
    """
    _check_room(target, spec)
    checked = _CheckedFrames(frames, spec)
    try:
        if spec.fps is not None:
            _write_video(iter(checked), target, spec, control, ffmpeg)
        else:
            _write_image(iter(checked), target, spec)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFull("The disk filled up while the file was written") from error
        raise
    return checked.count


def _video_command(ffmpeg: str, target: Path, spec: Spec) -> list[str]:
    if spec.fps is None:
        raise ValueError("a video needs a frame rate")
    output = {"mp4": _mp4, "webm": _webm, "gif": _gif}[spec.format](spec, spec.fps)
    return [
        ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "error", "-y",
        "-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{spec.width}x{spec.height}",
        "-framerate", str(spec.fps), "-i", "pipe:0",
        *output,
        "-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact",
        "-f", spec.format, f"file:{target}",
    ]  # fmt: skip


# Players assume BT.709 for HD and guess for smaller videos. So convert with BT.709 and declare it.
_BT709: Final = (
    "-vf", "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:"
           "flags=accurate_rnd+full_chroma_int,format=yuv420p,"
           "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709",
)  # fmt: skip


def _mp4(spec: Spec, fps: int) -> list[str]:
    return [
        *_BT709, "-c:v", "libx264", "-preset", "veryfast", "-crf", "17",
        # A frame is a whole number of these ticks. The default of 1/1000 s rounds the duration.
        "-movie_timescale", str(fps * 1000), "-video_track_timescale", str(fps * 1000),
        "-movflags", "+faststart",
    ]  # fmt: skip


def _webm(spec: Spec, fps: int) -> list[str]:
    # A bit rate of 0 means constant quality. Slower settings than 4 gained a tenth of a dB on a
    # moving, noisy clip. Row threads are on because tiles alone leave cores idle at 480p.
    return [
        *_BT709, "-c:v", "libvpx-vp9", "-b:v", "0", "-crf", "20",
        "-deadline", "good", "-cpu-used", "4", "-row-mt", "1",
        "-cues_to_front", "1",
    ]  # fmt: skip


def _gif(spec: Spec, fps: int) -> list[str]:
    """A palette for every frame. One for the whole clip would hold all its frames in memory.

    On a moving, noisy clip the result was also closer to the source (by 2 dB) and smaller (by a
    third) than with ffmpeg's usual single palette. Dither is ordered, because error diffusion
    crawls between frames.
    """
    last_start, end = (_hundredths(spec.num_frames - frames_back, fps) for frames_back in (1, 0))
    return [
        "-filter_complex", "[0:v]split[picture][sample];"
        "[sample]palettegen=stats_mode=single:reserve_transparent=0[palette];"
        "[picture][palette]paletteuse=new=1:dither=bayer:bayer_scale=3",
        "-c:v", "gif", "-loop", "0",
        # Sets the clip's exact duration: ffmpeg would repeat the delay of the frame before.
        "-final_delay", str(end - last_start),
    ]  # fmt: skip


def _hundredths(frames: int, fps: int) -> int:
    """When a frame begins, in GIF's ticks. Each is rounded alone, so that errors don't add up."""
    return (200 * frames + fps) // (2 * fps)


def _write_video(
    frames: Iterator["Frames"], target: Path, spec: Spec, control: Control, ffmpeg: str
) -> None:
    log_path = target.with_suffix(".ffmpeg.log")
    try:
        with log_path.open("wb") as log:
            try:
                process = subprocess.Popen(
                    _video_command(ffmpeg, target, spec),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
            except OSError as error:
                raise EncodeFailed("ffmpeg can't be started in this image") from error
        with _watchdog(process, control) as waiting:
            assert process.stdin is not None  # noqa: S101 (stdin=PIPE above; for the type checker)
            try:
                for chunk in waiting.tracked(frames):
                    with waiting(STALL_SECONDS):
                        process.stdin.write(chunk.data.cast("B"))
                # The watchdog sets the limit: wait(timeout) polls and returns up to 50 ms late.
                with waiting(CLOSE_SECONDS):
                    process.stdin.close()
                    process.wait()
            except BrokenPipeError as error:
                with waiting(CLOSE_SECONDS):
                    process.wait()
                if process.returncode == 0:
                    raise EncodeFailed("ffmpeg ended before the last frame") from error
        if process.returncode != 0:
            control.check()  # killed because the job ended
            if waiting.hung:
                raise EncodeFailed("ffmpeg hung and was ended; try again")
            raise _failure(log_path, process.returncode)
    finally:
        log_path.unlink(missing_ok=True)


@contextmanager
def _watchdog(process: "subprocess.Popen[bytes]", control: Control) -> Iterator["_FfmpegWait"]:
    """Kill ffmpeg if the job must end or a write stalls. Leave no process behind."""
    waiting = _FfmpegWait()
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.2):
            if waiting.frames_are_due:  # the code that makes the frames checks the job then
                continue
            try:
                control.check()
            except WorkerError:
                process.kill()
                return
            if waiting.is_late():
                waiting.hung = True
                process.kill()
                return

    thread = threading.Thread(target=watch, name="ffmpeg-watchdog", daemon=True)
    thread.start()
    try:
        yield waiting
    finally:
        finished.set()
        thread.join()
        if process.poll() is None:
            process.kill()
        if process.stdin is not None:
            with suppress(OSError):  # flushing into a process that is gone
                process.stdin.close()
        process.wait()


class _FfmpegWait:
    """Are we waiting for ffmpeg, and how long may that take?"""

    def __init__(self) -> None:
        self._deadline: float | None = None
        self.frames_are_due = False
        """Whether ffmpeg waits for the next frames."""
        self.hung = False
        """Whether it exceeded the limit and was killed."""

    def tracked(self, frames: Iterator["Frames"]) -> Iterator["Frames"]:
        """Yield the same frames; ``frames_are_due`` is True while the next ones are made."""
        self.frames_are_due = True
        for chunk in frames:
            self.frames_are_due = False
            yield chunk
            self.frames_are_due = True
        self.frames_are_due = False

    @contextmanager
    def __call__(self, seconds: float) -> Iterator[None]:
        """Allow the block to wait for ffmpeg for at most ``seconds``."""
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = None

    def is_late(self) -> bool:
        deadline = self._deadline
        return deadline is not None and time.monotonic() > deadline


def _failure(log_path: Path, returncode: int) -> WorkerError:
    text = log_path.read_text("utf-8", "replace")[-2000:]
    if "No space left on device" in text:
        return DiskFull("The disk filled up while the video was written")
    message = " | ".join(line.strip() for line in text.splitlines()[-3:])
    # Do not show the worker's paths.
    redacted = re.sub(r"(file:)?(/[^\s:'\"|]+)+", "<path>", message)
    return EncodeFailed(f"ffmpeg failed with status {returncode}: {redacted[:300] or 'no words'}")


def _write_image(frames: Iterator["Frames"], target: Path, spec: Spec) -> None:
    from PIL import Image

    chunks = list(frames)
    options: dict[str, dict[str, object]] = {
        "png": {"compress_level": 6},
        "jpeg": {"quality": 95, "subsampling": 0},
        "webp": {"quality": 95, "method": 4},
    }
    try:
        Image.fromarray(chunks[0][0]).save(
            target, format=spec.format.upper(), **options[spec.format]
        )
    except OSError as error:
        if is_disk_full(error):
            raise
        raise EncodeFailed(f"The {spec.format} could not be written") from error


class _CheckedFrames:
    """Pass chunks on; check their shape and the number of frames."""

    def __init__(self, frames: Iterable["Frames"], spec: Spec) -> None:
        self._frames, self._spec = frames, spec
        self.count = 0

    def __iter__(self) -> Iterator["Frames"]:
        spec = self._spec
        for chunk in self._frames:
            if chunk.shape[1:] != (spec.height, spec.width, 3) or chunk.dtype.name != "uint8":
                raise EncodeFailed(
                    f"A frame is {chunk.dtype.name} {chunk.shape[1:]}, not uint8 "
                    f"{(spec.height, spec.width, 3)}"
                )
            self.count += len(chunk)
            if self.count > spec.num_frames:
                raise EncodeFailed(f"More frames than the {spec.num_frames} asked for")
            yield chunk
        if self.count == 0 or (self.count < spec.num_frames and not spec.may_end_early):
            raise EncodeFailed(
                f"{self.count} frames were made, not the {spec.num_frames} asked for"
            )


_BYTES_PER_PIXEL: Final = {"mp4": 0.5, "webm": 0.25, "gif": 1.5}
"""More than the encoders need at these qualities. A video codec needs a quarter byte per pixel, and
faststart writes it twice. GIF: its longest code, 12 bits, for each pixel. Still images: all three
bytes, as in PNG."""


def _check_room(target: Path, spec: Spec) -> None:
    rate = _BYTES_PER_PIXEL.get(spec.format, 3)
    needed = int(spec.width * spec.height * spec.num_frames * rate) + 16 * 1024**2
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise DiskFull(
            f"The worker's disk has {free // 1024**2} MB free; this file may take "
            f"{needed // 1024**2} MB"
        )
