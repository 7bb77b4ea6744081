"""A finished file is read back by a decoder that was waiting for it."""

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.builders.frames import FFMPEG, VIDEOS, chunks, ramp, spec
from wan_worker.errors import Canceled, DeadlineExceeded, EncodeFailed
from wan_worker.media import encode, readback
from wan_worker.timing.progress import Control


@pytest.fixture
def hung(tmp_path: Path) -> str:
    """An ffmpeg that takes everything and never ends."""
    program = tmp_path / "hung"
    program.write_text(f"#!{sys.executable}\nimport sys, time\nsys.stdin.read()\ntime.sleep(600)\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "0.mp4"
    encode.write(chunks(ramp(17)), path, spec(17), Control(), FFMPEG)
    return path


def test_a_decoder_that_takes_its_time_gets_all_of_the_file(tmp_path: Path, clip: Path) -> None:
    """Longer than it takes to look whether the job should stop, and more than a pipe holds."""
    slow = tmp_path / "slow"
    slow.write_text(
        f"#!{sys.executable}\nimport subprocess, sys, time\n"
        "first = sys.stdin.buffer.read(1)\ntime.sleep(1.2)\n"
        f"sys.exit(subprocess.run([{FFMPEG!r}, *sys.argv[1:]], "
        "input=first + sys.stdin.buffer.read()).returncode)\n"
    )
    slow.chmod(0o755)
    noise = np.random.default_rng(0).integers(0, 256, (17, 240, 320, 3), dtype=np.uint8)
    large = tmp_path / "large.mp4"
    encode.write(chunks(noise), large, spec(17, height=240, width=320), Control(), FFMPEG)
    assert large.stat().st_size > 10 * 65536
    with readback.reader(large, "mp4", str(slow)) as reader:
        assert reader.read(large, Control()).num_frames == 17


@pytest.mark.parametrize("form", VIDEOS)
def test_a_video_is_read_through_a_pipe_frame_by_frame(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"0.{form}"
    encode.write(chunks(ramp(17)), path, spec(17, form=form), Control(), FFMPEG)
    with readback.reader(path, form, FFMPEG) as reader:
        held = reader.read(path, Control())
    assert (held.width, held.height, held.num_frames) == (64, 48, 17)
    assert held.seconds == pytest.approx(17 / 16, abs=0.01)
    thumbs = held.thumbs.reshape(17, readback.THUMB, readback.THUMB, 3)
    assert len({frame.tobytes() for frame in thumbs}) == 17
    assert list(tmp_path.iterdir()) == [path]


def test_a_decoder_that_is_never_asked_is_gone_with_the_block(tmp_path: Path) -> None:
    before = psutil.Process().children()
    with readback.reader(tmp_path / "0.mp4", "mp4", FFMPEG):
        assert len(psutil.Process().children()) == len(before) + 1
    assert psutil.Process().children() == before


def test_cancel_ends_a_decoder_that_hangs(clip: Path, hung: str) -> None:
    control, before = Control(), psutil.Process().children()
    with readback.reader(clip, "mp4", hung) as reader:
        control.cancel()
        with pytest.raises(Canceled):
            reader.read(clip, control)
    assert psutil.Process().children() == before


def test_the_deadline_ends_a_decoder_that_hangs(clip: Path, hung: str) -> None:
    with readback.reader(clip, "mp4", hung) as reader, pytest.raises(DeadlineExceeded):
        reader.read(clip, Control(seconds=0.1))


def test_a_decoder_that_hangs_has_a_limit_of_its_own(
    clip: Path, hung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readback, "DECODE_SECONDS", 0.1)
    with (
        readback.reader(clip, "mp4", hung) as reader,
        pytest.raises(EncodeFailed, match="too long"),
    ):
        reader.read(clip, Control())


def test_a_missing_decoder_is_an_encode_failure(clip: Path) -> None:
    with pytest.raises(EncodeFailed, match="started"), readback.reader(clip, "mp4", "/no/ffmpeg"):
        pass
