"""A file is delivered only if it is what was asked for."""

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders.frames import FFMPEG, VIDEOS, chunks, ramp, spec
from wan_worker.errors import EncodeFailed, GenerationFailed
from wan_worker.media import artifact, encode
from wan_worker.media.artifact import Artifact
from wan_worker.media.encode import Spec
from wan_worker.timing.progress import Control


def check(path: Path, wanted: Spec) -> Artifact:
    with artifact.reader(path, wanted, FFMPEG) as reader:
        return artifact.check(path, wanted, Control(), reader)


@pytest.fixture(params=VIDEOS)
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"0.{request.param}"
    encode.write(chunks(ramp(17)), path, wanted(path), Control(), FFMPEG)
    return path


def wanted(path: Path, count: int = 17, **changes: int) -> Spec:
    return spec(count, **changes, form=path.suffix[1:])


def test_a_good_video_passes_with_its_facts(video: Path) -> None:
    made = check(video, wanted(video))
    assert (made.width, made.height, made.num_frames, made.fps) == (64, 48, 17, 16)
    assert made.duration == 17 / 16
    kind = {"mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif"}
    assert made.content_type == kind[video.suffix[1:]]
    assert video.suffix == f".{made.extension}"
    assert made.bytes == video.stat().st_size
    assert made.sha256 == hashlib.sha256(video.read_bytes()).hexdigest()
    assert list(video.parent.iterdir()) == [video]


@pytest.mark.parametrize(
    "changes",
    [{"count": 16}, {"count": 18}, {"fps": 24}, {"fps": 17}, {"height": 64}, {"width": 80}],
    ids=["frame too many", "frame too few", "rate", "nearly the rate", "height", "width"],
)
def test_a_video_that_is_not_as_asked_is_refused(video: Path, changes: dict[str, int]) -> None:
    with pytest.raises(EncodeFailed):
        check(video, wanted(video, **changes))


@pytest.mark.parametrize("cut", [1, 2, 60, 400])
def test_a_truncated_video_is_refused(video: Path, cut: int) -> None:
    video.write_bytes(video.read_bytes()[:-cut])
    with pytest.raises(EncodeFailed):
        check(video, wanted(video))


def test_a_video_with_more_behind_its_end_is_refused(video: Path) -> None:
    video.write_bytes(video.read_bytes() + b"\0" * 9)
    with pytest.raises(EncodeFailed):
        check(video, wanted(video))


def test_a_video_of_another_format_is_refused(video: Path) -> None:
    for form in set(VIDEOS) - {video.suffix[1:]}:
        with pytest.raises(EncodeFailed, match="begin"):
            check(video, spec(17, form=form))


def test_an_mp4_with_its_index_cut_off_is_refused(mp4: Path) -> None:
    data = mp4.read_bytes()
    mp4.write_bytes(data.replace(b"moov", b"free"))
    with pytest.raises(EncodeFailed, match="parts"):
        check(mp4, spec(17))


@pytest.fixture
def mp4(tmp_path: Path) -> Path:
    path = tmp_path / "0.mp4"
    encode.write(chunks(ramp(17)), path, spec(17), Control(), FFMPEG)
    return path


def test_a_damaged_picture_inside_is_refused(video: Path) -> None:
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 700 if video.suffix == ".mp4" else len(data) // 2
    data[start : start + 400] = bytes(400)
    video.write_bytes(bytes(data))
    with pytest.raises(EncodeFailed):
        check(video, wanted(video))


def test_a_webm_must_have_its_index_before_its_pictures(tmp_path: Path) -> None:
    path = tmp_path / "0.webm"
    command = encode._video_command(FFMPEG, path, spec(17, form="webm"))
    at = command.index("-cues_to_front")
    subprocess.run([*command[:at], *command[at + 2 :]], input=ramp(17).tobytes(), check=True)
    with pytest.raises(EncodeFailed, match="index"):
        check(path, spec(17, form="webm"))


@pytest.mark.parametrize("form", VIDEOS)
def test_a_text_file_is_not_a_video(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"0.{form}"
    path.write_text("Traceback (most recent call last)\n" * 100)
    with pytest.raises(EncodeFailed, match="begin"):
        check(path, spec(17, form=form))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.mp4"
    path.touch()
    with pytest.raises(EncodeFailed, match="0 bytes"):
        check(path, spec(17))


@pytest.mark.parametrize("form", VIDEOS)
@pytest.mark.parametrize("level", [0, 127, 255], ids=["black", "grey", "white"])
def test_a_video_of_one_colour_is_a_failed_generation(
    tmp_path: Path, level: int, form: str
) -> None:
    frames = np.full((17, 48, 64, 3), level, np.uint8)
    path = tmp_path / f"0.{form}"
    encode.write(chunks(frames), path, spec(17, form=form), Control(), FFMPEG)
    with pytest.raises(GenerationFailed, match="one colour"):
        check(path, spec(17, form=form))


def test_a_video_that_goes_black_is_a_failed_generation(tmp_path: Path) -> None:
    frames = np.zeros((17, 48, 64, 3), np.uint8)
    frames[:6] = ramp(6)
    path = tmp_path / "0.mp4"
    encode.write(chunks(frames), path, spec(17), Control(), FFMPEG)
    with pytest.raises(GenerationFailed, match="11 of 17"):
        check(path, spec(17))


def test_a_fade_from_black_is_a_video(tmp_path: Path) -> None:
    frames = ramp(17)
    frames[:4] = 0
    path = tmp_path / "0.mp4"
    encode.write(chunks(frames), path, spec(17), Control(), FFMPEG)
    assert check(path, spec(17)).num_frames == 17


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_images_are_checked_too(tmp_path: Path, form: str) -> None:
    path = tmp_path / "0"
    wanted = Spec(form, 64, 48, 1, None)
    encode.write(iter([ramp(1)]), path, wanted, Control(), FFMPEG)
    made = check(path, wanted)
    assert (made.fps, made.duration, made.num_frames) == (None, None, 1)
    whole = path.read_bytes()
    for cut in (1, 2, 200):
        path.write_bytes(whole[:-cut])
        with pytest.raises(EncodeFailed):
            check(path, wanted)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    Image.fromarray(ramp(1)[0]).resize((32, 32)).save(path)
    with pytest.raises(EncodeFailed, match="The image is"):
        check(path, Spec("png", 64, 48, 1, None))
