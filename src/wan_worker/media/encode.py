"""Frames -> file, by an ffmpeg process that we own, or by Pillow for a still image.

imageio-ffmpeg supplies the binary and nothing else: its writer hides failures. Frames go through a
pipe as they are decoded, so the encoder works beside the decoder. Arguments are a list of
constants, numbers and a path that we made; nothing a caller wrote reaches them.

Promises: a failure names itself (the tail of ffmpeg's own words, without paths), and leaves neither
a process nor a partial file behind; a hung ffmpeg is killed at the job's deadline or after a
stall; the same frames give the same bytes on the same machine.
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
"""A single write to ffmpeg that takes longer than this means that it hangs."""

CLOSE_SECONDS: Final = 300.0
"""For the encoder's last frames and the move of the index to the front of the file."""

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
"""What find_ffmpeg looks for, in the order of the video formats."""


@dataclass(frozen=True)
class Spec:
    """The file that was asked for. ``fps`` is None for a still image."""

    format: str
    width: int
    height: int
    num_frames: int
    fps: int | None
    may_end_early: bool = False
    """Fewer frames, but at least one, make a shorter file and not an error."""


def find_ffmpeg() -> str:
    """The ffmpeg binary that imageio-ffmpeg carries, tried out.

    Raises:
        ConfigInvalid: there is none, it does not run, or it lacks an encoder.
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
        EncodeFailed: ffmpeg died, hung, or the frames are not what ``spec`` says.
        DiskFull: there is no room for the file.
    """
    _check_room(target, spec)
    counted = _Counted(frames, spec)
    try:
        if spec.fps is not None:
            _write_video(iter(counted), target, spec, control, ffmpeg)
        else:
            _write_image(iter(counted), target, spec)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFull("The disk filled up while the file was written") from error
        raise
    return counted.count


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


# Players take HD for BT.709 and guess below it: convert by that matrix and say so.
_BT709: Final = (
    "-vf", "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:"
           "flags=accurate_rnd+full_chroma_int,format=yuv420p,"
           "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709",
)  # fmt: skip


def _mp4(spec: Spec, fps: int) -> list[str]:
    return [
        *_BT709, "-c:v", "libx264", "-preset", "veryfast", "-crf", "17",
        # Ticks that a frame is a whole number of: the default of 1/1000 s rounds the duration.
        "-movie_timescale", str(fps * 1000), "-video_track_timescale", str(fps * 1000),
        "-movflags", "+faststart",
    ]  # fmt: skip


def _webm(spec: Spec, fps: int) -> list[str]:
    # Constant quality (a bit rate of 0 says so). Slower settings than 4 gained a tenth of a dB on a
    # moving, noisy clip. Row threads because tiles alone leave cores idle at 480p.
    return [
        *_BT709, "-c:v", "libvpx-vp9", "-b:v", "0", "-crf", "20",
        "-deadline", "good", "-cpu-used", "4", "-row-mt", "1",
        "-cues_to_front", "1",
    ]  # fmt: skip


def _gif(spec: Spec, fps: int) -> list[str]:
    """A palette for every frame: one for the whole clip would hold all its frames in memory.

    It also came out closer to the source (by 2 dB) and smaller (by a third) than ffmpeg's usual
    single palette on a moving, noisy clip. Ordered dither: error diffusion crawls between frames.
    """
    first, end = (_hundredths(spec.num_frames - back, fps) for back in (1, 0))
    return [
        "-filter_complex", "[0:v]split[picture][sample];"
        "[sample]palettegen=stats_mode=single:reserve_transparent=0[palette];"
        "[picture][palette]paletteuse=new=1:dither=bayer:bayer_scale=3",
        "-c:v", "gif", "-loop", "0",
        # So that the clip lasts as asked: ffmpeg would repeat the delay of the frame before.
        "-final_delay", str(end - first),
    ]  # fmt: skip


def _hundredths(frames: int, fps: int) -> int:
    """When a frame begins, in GIF's ticks: rounded by itself, so that errors don't add up."""
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
        with _watched(process, control) as writing:
            assert process.stdin is not None  # noqa: S101 (asked for above; for the type checker)
            try:
                for chunk in writing.between(frames):
                    with writing(STALL_SECONDS):
                        process.stdin.write(chunk.data.cast("B"))
                # The watchdog has the clock: wait() with a limit polls, and wakes up to 50 ms late.
                with writing(CLOSE_SECONDS):
                    process.stdin.close()
                    process.wait()
            except BrokenPipeError as error:
                with writing(CLOSE_SECONDS):
                    process.wait()
                if process.returncode == 0:
                    raise EncodeFailed("ffmpeg ended before the last frame") from error
        if process.returncode != 0:
            control.check()  # killed because the job ended, not by itself
            if writing.hung:
                raise EncodeFailed("ffmpeg hung and was ended; try again")
            raise _failure(log_path, process.returncode)
    finally:
        log_path.unlink(missing_ok=True)


@contextmanager
def _watched(process: "subprocess.Popen[bytes]", control: Control) -> Iterator["_Writing"]:
    """Kill ffmpeg when the job must end or a write stalls; leave no process behind."""
    writing = _Writing()
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.2):
            if writing.making:  # where frames are made is where the job is stopped
                continue
            try:
                control.check()
            except WorkerError:
                process.kill()
                return
            if writing.is_late():
                writing.hung = True
                process.kill()
                return

    watchdog = threading.Thread(target=watch, name="ffmpeg-watchdog", daemon=True)
    watchdog.start()
    try:
        yield writing
    finally:
        finished.set()
        watchdog.join()
        if process.poll() is None:
            process.kill()
        if process.stdin is not None:
            with suppress(OSError):  # flushing into a process that is gone
                process.stdin.close()
        process.wait()


class _Writing:
    """How long may that take which ffmpeg is waited for?"""

    def __init__(self) -> None:
        self._until: float | None = None
        self.making = False
        """Whether ffmpeg waits for us, and not we for it."""
        self.hung = False
        """It took longer, and was killed."""

    def between(self, frames: Iterator["Frames"]) -> Iterator["Frames"]:
        """The same frames; ``making`` while the next one is made."""
        self.making = True
        for chunk in frames:
            self.making = False
            yield chunk
            self.making = True
        self.making = False

    @contextmanager
    def __call__(self, seconds: float) -> Iterator[None]:
        """The block waits for ffmpeg, for so long at most."""
        self._until = time.monotonic() + seconds
        try:
            yield
        finally:
            self._until = None

    def is_late(self) -> bool:
        until = self._until
        return until is not None and time.monotonic() > until


def _failure(log_path: Path, returncode: int) -> WorkerError:
    text = log_path.read_text("utf-8", "replace")[-2000:]
    if "No space left on device" in text:
        return DiskFull("The disk filled up while the video was written")
    last = " | ".join(line.strip() for line in text.splitlines()[-3:])
    # Paths of the worker are nobody's business.
    redacted = re.sub(r"(file:)?(/[^\s:'\"|]+)+", "<path>", last)
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


class _Counted:
    """The same chunks, each of the right shape, and neither more nor fewer than asked."""

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
"""More than the encoders need at these qualities: a quarter byte per pixel for a video codec, which
faststart writes twice; GIF's longest code, 12 bits, for each pixel. Still images: PNG's all three
bytes."""


def _check_room(target: Path, spec: Spec) -> None:
    rate = _BYTES_PER_PIXEL.get(spec.format, 3)
    needed = int(spec.width * spec.height * spec.num_frames * rate) + 16 * 1024**2
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise DiskFull(
            f"The worker's disk has {free // 1024**2} MB free; this file may take "
            f"{needed // 1024**2} MB"
        )
