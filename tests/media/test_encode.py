"""Frames to files with the real ffmpeg, and what happens when it fails (stub programs)."""

import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.builders.files import read, read_gif
from tests.builders.frames import FFMPEG, VIDEOS, Pixels, chunks, ramp, spec
from wan_worker.errors import Canceled, ConfigInvalid, DeadlineExceeded, DiskFull, EncodeFailed
from wan_worker.media import encode
from wan_worker.media.encode import Spec
from wan_worker.timing.progress import Control

CODECS = {"mp4": ("h264", "yuv420p"), "webm": ("vp9", "yuv420p"), "gif": ("gif", "bgra")}
TICKS = {"mp4": 1e-9, "webm": 0.001, "gif": 0.005}
"""Half of what a format's length may be off by is rounding; WebM's is rounded up by the muxer."""


def stub(tmp_path: Path, script: str) -> str:
    path = tmp_path / "ffmpeg-stub"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize("form", VIDEOS)
@pytest.mark.parametrize(("count", "fps"), [(1, 16), (5, 16), (18, 24), (33, 8), (30, 7), (25, 50)])
def test_the_file_holds_every_frame_at_the_rate_asked_for(
    tmp_path: Path, count: int, fps: int, form: str
) -> None:
    target = tmp_path / f"0.{form}"
    encode.write(chunks(ramp(count)), target, spec(count, fps, form=form), Control(), FFMPEG)
    clip = read(target)
    assert clip.frames.shape == (count, 48, 64, 3)
    if form != "gif":  # a GIF has delays, and no rate
        assert clip.fps == pytest.approx(fps, rel=1e-4)
    assert clip.seconds == pytest.approx(count / fps, abs=TICKS[form])
    assert (clip.codec, clip.pixel_format) == CODECS[form]


@pytest.mark.parametrize(
    ("count", "fps", "delays"),
    [
        (5, 16, {6, 7}),
        (48, 16, {6, 7}),
        (25, 50, {2}),
        (10, 10, {10}),
        (24, 24, {4, 5}),
        (2, 7, {14, 15}),
        (1, 16, {6}),
    ],
)
def test_a_gifs_delays_add_up_to_the_clip(
    tmp_path: Path, count: int, fps: int, delays: set[int]
) -> None:
    target = tmp_path / "0.gif"
    encode.write(chunks(ramp(count)), target, spec(count, fps, form="gif"), Control(), FFMPEG)
    if count == 1:
        assert read(target).seconds == 0.06
        return
    made = read_gif(target)
    assert set(made.delays) == delays
    assert abs(sum(made.delays) - 100 * count / fps) <= 0.5
    assert made.loops_forever


@pytest.mark.parametrize("form", ["webm", "gif"])
def test_odd_sizes_are_no_trouble_outside_mp4(tmp_path: Path, form: str) -> None:
    target, source = tmp_path / f"0.{form}", ramp(9, 51, 77)
    encode.write(chunks(source), target, spec(9, 16, 51, 77, form), Control(), FFMPEG)
    got = read(target).frames
    assert got.shape == (9, 51, 77, 3)
    assert np.abs(got.astype(int) - source).mean() < 8


def test_a_gif_takes_no_more_memory_for_more_frames(tmp_path: Path) -> None:
    peaks = []
    for count in (8, 64):
        frame = ramp(1, 360, 640)
        most = 0

        def source(count: int = count, frame: Pixels = frame) -> Iterator[Pixels]:
            nonlocal most
            for index in range(count):
                yield np.roll(frame, 4 * index, 2)
                for child in psutil.Process().children():
                    most = max(most, child.memory_info().rss)

        encode.write(
            source(), tmp_path / "0.gif", spec(count, 16, 360, 640, "gif"), Control(), FFMPEG
        )
        peaks.append(most)
    # 56 more frames would be 39 MB as they come and 52 MB with an alpha channel.
    assert peaks[1] - peaks[0] < 20e6


def test_a_gifs_palette_follows_the_picture(tmp_path: Path) -> None:
    """Each frame has its own colours: one palette for all would blur these hundreds."""
    source = np.zeros((6, 48, 64, 3), np.uint8)
    rng = np.random.default_rng(0)
    for index in range(6):
        colours = rng.integers(0, 256, (128, 3), np.uint8)
        source[index] = np.repeat(colours, 24, 0).reshape(48, 64, 3)
    target = tmp_path / "0.gif"
    encode.write(chunks(source), target, spec(6, form="gif"), Control(), FFMPEG)
    assert np.abs(read_gif(target).frames.astype(int) - source).mean() < 3


@pytest.mark.parametrize("form", VIDEOS)
def test_frames_are_in_order_and_look_like_the_source(tmp_path: Path, form: str) -> None:
    source = ramp(17)
    encode.write(chunks(source), tmp_path / "0", spec(17, form=form), Control(), FFMPEG)
    got = read(tmp_path / "0").frames
    errors = [
        [float(np.mean((a.astype(float) - b) ** 2)) for b in source.astype(float)] for a in got
    ]
    assert [int(np.argmin(row)) for row in errors] == list(range(17))
    assert max(row[i] for i, row in enumerate(errors)) < 60  # over 30 dB, colours included


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_colours_are_tagged_bt709_limited_range(tmp_path: Path, form: str) -> None:
    encode.write(chunks(ramp(5)), tmp_path / "0", spec(5, form=form), Control(), FFMPEG)
    # ITU-T H.273: 1 is BT.709 for primaries, transfer and matrix; ffmpeg's range 1 is limited.
    assert read(tmp_path / "0").colours == (1, 1, 1, 1)


@pytest.mark.parametrize("form", VIDEOS)
def test_colours_survive_the_conversion(tmp_path: Path, form: str) -> None:
    flat = np.zeros((5, 48, 64, 3), np.uint8)
    flat[:, :, :32] = (220, 30, 30)
    flat[:, :, 32:] = (30, 60, 200)
    encode.write(chunks(flat), tmp_path / "0", spec(5, form=form), Control(), FFMPEG)
    got = read(tmp_path / "0").frames.astype(int)
    assert np.abs(got[:, 8:40, 8:24] - (220, 30, 30)).max() <= 6
    assert np.abs(got[:, 8:40, 40:56] - (30, 60, 200)).max() <= 6


def test_the_index_comes_before_the_pictures(tmp_path: Path) -> None:
    encode.write(chunks(ramp(5)), tmp_path / "0.mp4", spec(5), Control(), FFMPEG)
    data = (tmp_path / "0.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("form", VIDEOS)
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, form: str) -> None:
    # Large enough for several threads: libvpx gives a small picture to one.
    source = np.repeat(np.repeat(ramp(9), 8, 1), 8, 2)
    wanted = spec(9, 16, 384, 512, form)
    for name in ("a", "b"):
        encode.write(chunks(source), tmp_path / name, wanted, Control(), FFMPEG)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_images_come_in_every_format(tmp_path: Path, form: str) -> None:
    target = tmp_path / f"0.{encode.EXTENSIONS[form]}"
    source = ramp(1)
    encode.write(iter([source]), target, Spec(form, 64, 48, 1, None), Control(), FFMPEG)
    with Image.open(target) as image:
        assert image.format == form.upper()
        difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - source[0])
    assert difference.mean() < (0.01 if form == "png" else 6)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (ramp(4), "4 frames were made"),
        (ramp(6), "More frames"),
        (ramp(5, height=46), "A frame is"),
        (ramp(5).astype(np.float32), "float32"),
    ],
    ids=["too few", "too many", "wrong shape", "wrong type"],
)
def test_frames_that_are_not_as_planned_are_refused(
    tmp_path: Path, frames: Pixels, words: str
) -> None:
    with pytest.raises(EncodeFailed, match=words):
        encode.write(chunks(frames), tmp_path / "0.mp4", spec(5), Control(), FFMPEG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "script",
    [
        None,
        "exit 1",
        "echo ' V..... mpeg4 '",
        "echo ' V....D libx264 '; echo ' V....D gif '",
        "echo ' V....D libx264 '; echo ' V....D libvpx-vp9 '",
    ],
    ids=["no file", "does not run", "no codec", "no VP9", "no GIF"],
)
def test_an_ffmpeg_that_will_not_do_is_noticed_at_start(
    tmp_path: Path, script: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/nonexistent/ffmpeg" if script is None else stub(tmp_path, script)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", path)
    with pytest.raises(ConfigInvalid, match="ffmpeg"):
        encode.find_ffmpeg()


def test_a_missing_ffmpeg_is_an_encode_failure(tmp_path: Path) -> None:
    with pytest.raises(EncodeFailed, match="can't be started"):
        encode.write(chunks(ramp(5)), tmp_path / "0.mp4", spec(5), Control(), "/nonexistent")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "script",
    [
        "echo 'boom in /secret/place/file.mp4' >&2; exit 1",
        "head -c 9000 >/dev/null; echo boom >&2; exit 3",
        "cat >/dev/null; echo boom >&2; exit 1",
    ],
    ids=["at start", "mid-stream", "at close"],
)
@pytest.mark.parametrize("form", VIDEOS)
def test_a_dying_ffmpeg_is_reported_with_its_words_but_no_path(
    tmp_path: Path, script: str, form: str
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    with pytest.raises(EncodeFailed) as caught:
        encode.write(
            chunks(ramp(65)), folder / f"0.{form}", spec(65, form=form), Control(),
            stub(tmp_path, script),
        )  # fmt: skip
    assert "boom" in caught.value.message
    assert "secret" not in caught.value.message
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    script = (
        "cat >/dev/null; echo 'av_interleaved_write_frame(): No space left on device' >&2; exit 1"
    )
    folder = tmp_path / "job"
    folder.mkdir()
    with pytest.raises(DiskFull):
        encode.write(chunks(ramp(5)), folder / "0.mp4", spec(5), Control(), stub(tmp_path, script))


def test_too_little_room_is_noticed_before_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))

    def never() -> Iterator[Pixels]:
        raise AssertionError("a frame was made")
        yield

    with pytest.raises(DiskFull):
        encode.write(never(), tmp_path / "0.mp4", spec(5), Control(), FFMPEG)


@pytest.mark.parametrize("form", VIDEOS)
def test_a_killed_ffmpeg_leaves_neither_file_nor_process(tmp_path: Path, form: str) -> None:
    def killing() -> Iterator[Pixels]:
        for index in range(200):
            if index == 3:
                (child,) = psutil.Process().children()
                child.kill()
            yield np.repeat(np.repeat(ramp(1), 8, 1), 8, 2)

    with pytest.raises(EncodeFailed, match="ffmpeg failed with status -9"):
        encode.write(killing(), tmp_path / "0", spec(200, 16, 384, 512, form), Control(), FFMPEG)
    assert list(tmp_path.iterdir()) == []
    assert psutil.Process().children() == []


@pytest.mark.parametrize("form", VIDEOS)
def test_a_command_holds_numbers_and_our_own_path_and_nothing_else(
    tmp_path: Path, form: str
) -> None:
    command = encode._video_command(FFMPEG, tmp_path / f"0.{form}", spec(5, form=form))
    assert command[-3:] == ["-f", form, f"file:{tmp_path}/0.{form}"]
    assert command[command.index("-i") + 1] == "pipe:0"
    assert command.count("-i") == 1


def test_a_hung_ffmpeg_is_killed_at_the_deadline(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(DeadlineExceeded):
        encode.write(
            chunks(ramp(81)), tmp_path / "0.mp4", spec(81), Control(seconds=0.6),
            stub(tmp_path, "exec sleep 60"),
        )  # fmt: skip
    assert set(psutil.Process().children(recursive=True)) <= before


def test_cancel_ends_a_hung_ffmpeg(tmp_path: Path) -> None:
    control = Control()
    timer = threading.Timer(0.3, control.cancel)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Canceled):
        encode.write(
            chunks(ramp(81)), tmp_path / "0.mp4", spec(81), control,
            stub(tmp_path, "exec sleep 60"),
        )  # fmt: skip
    timer.join()
    assert time.monotonic() - started < 30  # of 60


@pytest.mark.parametrize(
    ("limit", "program"),
    [("STALL_SECONDS", "exec sleep 60"), ("CLOSE_SECONDS", "cat > /dev/null; exec sleep 60")],
)
def test_an_ffmpeg_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, program: str
) -> None:
    monkeypatch.setattr(encode, limit, 0.3)
    with pytest.raises(EncodeFailed, match="hung"):
        encode.write(
            chunks(ramp(81)), tmp_path / "0.mp4", spec(81), Control(), stub(tmp_path, program)
        )
    assert not list(tmp_path.glob("0*"))


def test_an_ffmpeg_that_ends_too_soon_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(EncodeFailed, match="before the last frame"):
        encode.write(
            chunks(ramp(81)), tmp_path / "0.mp4", spec(81), Control(), stub(tmp_path, "exit 0")
        )


@pytest.mark.parametrize("made", [1, 9, 17])
def test_frames_that_end_early_make_a_shorter_file_where_that_is_allowed(
    tmp_path: Path, made: int
) -> None:
    target, wanted = tmp_path / "0.mp4", replace(spec(17), may_end_early=True)
    assert encode.write(chunks(ramp(made)), target, wanted, Control(), FFMPEG) == made
    assert read(target).frames.shape[0] == made
    with pytest.raises(EncodeFailed):
        encode.write(iter(()), target, wanted, Control(), FFMPEG)
    assert not target.exists()


def test_a_deadline_while_the_next_frames_are_made_leaves_the_file_to_who_makes_them(
    tmp_path: Path,
) -> None:
    now = 0.0
    control = Control(10, clock=lambda: now)

    def late() -> Iterator[Pixels]:
        nonlocal now
        yield ramp(5)
        now = 11.0
        time.sleep(0.5)  # longer than the watchdog's round
        control.extend(10)

    wanted = replace(spec(9), may_end_early=True)
    assert encode.write(late(), tmp_path / "0.mp4", wanted, control, FFMPEG) == 5
    assert read(tmp_path / "0.mp4").frames.shape[0] == 5


def test_a_failing_source_leaves_neither_file_nor_process(tmp_path: Path) -> None:
    def failing() -> Iterator[Pixels]:
        yield ramp(1)
        raise ZeroDivisionError

    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ZeroDivisionError):
        encode.write(failing(), tmp_path / "0.mp4", spec(5), Control(), FFMPEG)
    assert list(tmp_path.iterdir()) == []
    assert set(psutil.Process().children(recursive=True)) <= before
