"""No image file of the allowed size keeps a decoder busy: its parts are counted first."""

import io
import struct
import time
import zlib

import pytest
from PIL import Image

from wan_worker.errors import ImageRejected
from wan_worker.inputs import image_parts, images
from wan_worker.inputs.images import decode


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 40).convert("RGB").save(file, "JPEG", **options)
    return file.getvalue()


def with_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = jpeg(progressive=True)
    own = data.count(b"\xff\xda")
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - own) + b"\xff\xd9"


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    pixels = (b"IDAT", zlib.compress(bytes((64 * 3 + 1) * 64)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (header, *chunks, pixels, (b"IEND", b""))
    )


def segments(count: int) -> bytes:
    data = jpeg()
    return data[:2] + b"\xff\xfe\x00\x02" * count + data[2:]


BUSY = {
    "scans of a JPEG": with_scans(image_parts.MAX_SCANS + 1),
    "segments of a JPEG": segments(image_parts.MAX_SEGMENTS),
    "fill bytes of a JPEG": jpeg()[:2] + b"\xff" * 70_000 + jpeg()[2:],
    "junk between a JPEG's segments": jpeg()[:20] + bytes(70_000) + jpeg()[20:],
    "nothing but fill": jpeg()[:2] + b"\xff" * 70_000,
    "chunks of a PNG": png(*[(b"prVt", b"")] * image_parts.MAX_CHUNKS),
    "pieces of a PNG's pixels": png(*[(b"IDAT", b"")] * image_parts.MAX_CHUNKS),
}


@pytest.mark.parametrize("data", BUSY.values(), ids=BUSY)
def test_a_file_of_too_many_parts_is_rejected_before_it_is_decoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_open", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageRejected, match="parts"):
        decode(data, "/input/image_url", 1_000_000)


def test_a_walk_over_nothing_but_fill_takes_time_in_proportion() -> None:
    began = time.process_time()
    assert image_parts.too_many(jpeg()[:2] + b"\xff" * 2_000_000, "JPEG")
    assert time.process_time() - began < 1  # milliseconds; in the square it would be hours


def test_a_walk_ends_at_the_limit_and_not_at_the_end_of_the_file() -> None:
    walked = []

    class Watched(bytes):
        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            walked.append(key)
            return super().__getitem__(key)

    assert image_parts.too_many(Watched(png(*[(b"prVt", b"")] * 200_000)), "PNG")
    assert len(walked) <= image_parts.MAX_CHUNKS


def test_what_cameras_and_programs_write_is_taken() -> None:
    trailer = bytes(range(256)) * 1000 + b"\xff\xda\xff\xe0" * 5000  # a phone's film, say
    files = [
        jpeg(),
        jpeg(progressive=True),
        jpeg(progressive=True, restart_marker_blocks=1),
        jpeg(icc_profile=bytes(1_000_000), exif=bytes(60_000), comment=b"a cat"),
        with_scans(image_parts.MAX_SCANS),
        segments(500),
        jpeg() + trailer,
        jpeg()[:2] + b"\xff" * 100 + jpeg()[2:],
        png(*[(b"IDAT", b"")] * 20_000),
        png((b"tEXt", b"Comment\0a cat")),
    ]
    for data in files:
        assert decode(data, "/input/image_url", 1_000_000).image.size == (64, 64)


def test_a_file_that_ends_anywhere_is_walked_to_its_end() -> None:
    for data, form in ((jpeg(progressive=True), "JPEG"), (png((b"tEXt", b"a\0b")), "PNG")):
        for end in range(len(data)):
            assert not image_parts.too_many(data[:end], form)
