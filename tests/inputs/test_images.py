"""Promises of images: what a stranger's bytes can't do, and what a good image becomes."""

import base64
import io
import struct
import threading
import warnings
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from wan_worker.errors import ImageRejected, UrlBlocked
from wan_worker.inputs import images

FIELD = "/input/image_url"
MAX_PIXELS = 1_000_000


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def quarters(width: int = 64, height: int = 48) -> Image.Image:
    """Red, green, blue and yellow corners: shows how an image was turned."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("lime", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    image.paste("yellow", (width // 2, height // 2, width, height))
    return image


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Rounded to full or nothing, as JPEG smears a little."""
    right, bottom = image.width - 3, image.height - 3
    spots = [(2, 2), (right, 2), (2, bottom), (right, bottom)]
    pixels = [image.getpixel(spot) for spot in spots]
    return [tuple(255 * (channel > 127) for channel in pixel) for pixel in pixels]  # type: ignore[union-attr]


RED, LIME, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def decoded(data: bytes, max_pixels: int = MAX_PIXELS) -> images.Decoded:
    result = images.decode(data, FIELD, max_pixels)
    assert result.image.mode == "RGB"
    return result


def rejected(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(ImageRejected) as problem:
        images.decode(data, FIELD, max_pixels)
    assert problem.value.field == FIELD
    assert problem.value.field == FIELD
    return problem.value.message


def codes(result: images.Decoded) -> list[str]:
    return [code for code, _ in result.warnings]


# Reading


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_accepted_format_is_decoded(form: str) -> None:
    result = decoded(saved(quarters(), form))
    assert result.image.size == (64, 48)
    assert corners(result.image) == [RED, LIME, BLUE, YELLOW]
    assert result.warnings == ()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b'<?xml version="1.0"?>\n<!-- a --><svg/>', "an SVG"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf\n<html>", "an HTML page"),
        (b"<!-- x --><html><svg/>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
        (b'{"error": "not found"}', "JSON"),
        (b"%PDF-1.7\n", "a PDF"),
        (saved(quarters(), "GIF"), "a GIF"),
        (saved(quarters(), "TIFF"), "a TIFF"),
        (saved(quarters(), "BMP"), "a BMP"),
        (saved(quarters(), "ICO"), "an icon"),
        (saved(quarters(), "JPEG2000"), "a JPEG 2000"),
        (saved(quarters(), "EPS"), "an EPS"),
        (b"8BPS\0\x01" + bytes(20), "a Photoshop"),
        (b"SIMPLE  =                    T", "a FITS"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "an AVIF"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "a HEIC"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "a video"),
        (b"\xff\x0a\x00", "a JPEG XL"),
        (b"PK\x03\x04....", "a ZIP"),
        (b"#!/bin/sh\nexit 1\n", "not a known image"),
        (b"\x00" * 100, "not a known image"),
    ],
)
def test_other_format_is_rejected_by_its_bytes_and_named(data: bytes, name: str) -> None:
    message = rejected(data)
    assert name in message
    assert "PNG, JPEG and WebP" in message


def test_sniffing_hostile_markup_takes_no_time() -> None:
    for data in (b"<!---->" * 200, b"<" * 2000, b" " * 2000, b"<?xml" * 300, b"<!doctype " * 100):
        images.sniff(data)


def test_empty_file_is_rejected() -> None:
    assert "empty" in rejected(b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.97])
def test_truncated_file_is_rejected(form: str, share: float) -> None:
    data = saved(Image.effect_noise((64, 64), 50).convert("RGB"), form)
    rejected(data[: int(len(data) * share)])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
def test_damaged_file_is_decoded_or_rejected_and_nothing_else(form: str, data: Any) -> None:
    damaged = bytearray(saved(quarters(32, 32), form))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded(bytes(damaged))
    except ImageRejected as problem:
        assert problem.field == FIELD


# Size


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims a size, with whatever chunks are asked for."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (header, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def webp_canvas(width: int, height: int) -> bytes:
    """A WebP that claims a canvas, around a small image."""
    inner = saved(quarters(), "WEBP")[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


PIXELS = (b"IDAT", zlib.compress(bytes(10)))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(40_000, 40_000, PIXELS), id="beyond what Pillow refuses"),
        pytest.param(png(11_000, 11_000, PIXELS), id="between Pillow's warning and its error"),
        pytest.param(png(1001, 1000, PIXELS), id="beyond ours only"),
    ],
)
def test_pixel_bomb_is_rejected_before_it_is_decoded(data: bytes) -> None:
    assert "at most 1000000 pixels" in rejected(data)


def test_webp_canvas_bomb_is_rejected() -> None:
    rejected(webp_canvas(16_384, 16_384))
    rejected(webp_canvas(4000, 4000))


def test_jpeg_bomb_is_rejected_before_it_is_decoded() -> None:
    data = saved(quarters(), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    assert "at most" in rejected(data[:at] + struct.pack(">HH", 65_000, 65_000) + data[at + 4 :])


def test_large_image_within_the_operators_limit_is_taken_without_a_warning() -> None:
    data = saved(Image.new("L", (9500, 9500)), "PNG")  # Pillow warns from 89 million pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(data, max_pixels=100_000_000).image.size == (9500, 9500)


@pytest.mark.parametrize("size", [(1, 1), (15, 100), (100, 15)])
def test_tiny_image_is_rejected(size: tuple[int, int]) -> None:
    assert "at least 16" in rejected(saved(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("size", [(16 * 8 + 1, 16), (16, 16 * 8 + 1), (1000, 20)])
def test_extreme_aspect_is_rejected(size: tuple[int, int]) -> None:
    assert "8 times" in rejected(saved(Image.new("RGB", size), "PNG"))


@pytest.mark.parametrize("size", [(16, 16), (128, 16), (16, 128), (1000, 1000)])
def test_image_at_the_limits_is_taken(size: tuple[int, int]) -> None:
    assert decoded(saved(Image.new("RGB", size), "PNG")).image.size == size


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000))),
        (b"iTXt", b"Comment\0\x01\0\0\0" + zlib.compress(bytes(50_000_000))),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(50_000_000))),
    ],
    ids=["zTXt", "iTXt", "iCCP"],
)
def test_compressed_metadata_bomb_in_a_png_is_rejected(chunk: tuple[bytes, bytes]) -> None:
    rejected(png(64, 64, chunk, PIXELS))


def test_many_texts_in_a_png_are_rejected_before_they_fill_memory() -> None:
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000)))
    rejected(png(64, 64, *[text] * 100, PIXELS))


def test_ordinary_text_and_profile_in_a_png_are_fine() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "a cat", zip=True)
    decoded(saved(quarters(), "PNG", pnginfo=notes, icc_profile=b"p" * 500))


# Frames, turns, modes


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animated_image_gives_its_first_frame_and_a_warning(form: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "lime")]
    result = decoded(saved(frames[0], form, save_all=True, append_images=frames[1:], duration=100))
    assert codes(result) == ["ANIMATION_FIRST_FRAME"]
    assert corners(result.image) == [RED] * 4


TURNS = {
    1: [RED, LIME, BLUE, YELLOW],
    2: [LIME, RED, YELLOW, BLUE],
    3: [YELLOW, BLUE, LIME, RED],
    4: [BLUE, YELLOW, RED, LIME],
    5: [RED, BLUE, LIME, YELLOW],
    6: [BLUE, RED, YELLOW, LIME],
    7: [YELLOW, LIME, BLUE, RED],
    8: [LIME, YELLOW, RED, BLUE],
    0: [RED, LIME, BLUE, YELLOW],
    99: [RED, LIME, BLUE, YELLOW],
}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decoded(saved(quarters(), form, exif=exif))
    assert corners(result.image) == TURNS[orientation]
    assert result.image.size == ((48, 64) if 5 <= orientation <= 8 else (64, 48))


def test_unreadable_exif_does_not_cost_the_image() -> None:
    result = decoded(saved(quarters(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40))
    assert corners(result.image) == [RED, LIME, BLUE, YELLOW]


@pytest.mark.parametrize(
    ("image", "form", "color"),
    [
        (Image.new("L", (16, 16), 200), "PNG", (200, 200, 200)),
        (Image.new("1", (16, 16), 1), "PNG", (255, 255, 255)),
        (Image.new("RGB", (16, 16), "navy").quantize(4), "PNG", (0, 0, 128)),
        (Image.new("L", (16, 16), 200), "JPEG", (200, 200, 200)),
        (Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", (0, 255, 255)),
        (Image.new("I;16", (16, 16), 65_535), "PNG", (255, 255, 255)),
        (Image.new("I;16", (16, 16), 32_896), "PNG", (128, 128, 128)),
        (Image.new("I;16", (16, 16), 257), "PNG", (1, 1, 1)),
        (Image.new("LA", (16, 16), (200, 255)), "PNG", (200, 200, 200)),
        (Image.new("RGBA", (16, 16), (10, 20, 30, 255)), "PNG", (10, 20, 30)),
    ],
    ids=["grey", "bilevel", "palette", "grey JPEG", "CMYK", "16-bit white", "16-bit grey",
         "16-bit black", "opaque grey-alpha", "opaque RGBA"],
)  # fmt: skip
def test_mode_becomes_rgb_with_the_same_color(
    image: Image.Image, form: str, color: tuple[int, int, int]
) -> None:
    result = decoded(saved(image, form))
    pixel = result.image.getpixel((8, 8))
    assert all(abs(a - b) <= 2 for a, b in zip(pixel, color, strict=True))  # type: ignore[arg-type]
    assert result.warnings == ()


def palette_with_clear_color() -> bytes:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return saved(image, "PNG", transparency=bytes([128, 255]))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), "PNG"), id="RGBA"),
        pytest.param(saved(Image.new("LA", (16, 16), (0, 128)), "PNG"), id="grey-alpha"),
        pytest.param(palette_with_clear_color(), id="palette"),
        pytest.param(
            saved(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), "WEBP", lossless=True), id="WebP"
        ),
    ],
)
def test_transparency_is_put_on_white_with_a_warning(data: bytes) -> None:
    result = decoded(data)
    assert result.image.getpixel((8, 8)) == (127, 127, 127)
    assert codes(result) == ["ALPHA_FLATTENED"]
    assert "white" in result.warnings[0][1]


def test_transparent_color_of_an_rgb_png_becomes_white() -> None:
    data = saved(Image.new("RGB", (16, 16), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert decoded(data).image.getpixel((8, 8)) == (255, 255, 255)


def test_metadata_is_left_behind() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decoded(saved(quarters(), "JPEG", exif=exif)).image
    again = Image.open(io.BytesIO(saved(image, "PNG")))
    assert again.size == image.size
    assert not again.getexif().get(0x0112, 0) > 1


def test_decoding_in_threads_leaves_global_state_alone() -> None:
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    data = saved(quarters(), "PNG")
    threads = [threading.Thread(target=decoded, args=(data,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


# Fitting


@pytest.mark.parametrize(
    "size", [(64, 48), (32, 24), (128, 96), (48, 48), (16, 96), (96, 16), (33, 7)]
)
def test_cover_gives_exactly_the_size(size: tuple[int, int]) -> None:
    image = images.cover(quarters(), *size)
    assert image.size == size
    assert image.mode == "RGB"


def test_cover_keeps_the_centre() -> None:
    image = Image.new("RGB", (90, 30), "red")
    image.paste("lime", (30, 0, 60, 30))
    assert corners(images.cover(image, 60, 60)) == [LIME] * 4
    assert corners(images.cover(image.transpose(Image.Transpose.ROTATE_90), 60, 60)) == [LIME] * 4


def test_cover_of_the_right_size_changes_no_pixel() -> None:
    image = quarters()
    assert images.cover(image, 64, 48).tobytes() == image.tobytes()


# URL or bytes?


@pytest.mark.parametrize("text", ["http://a.example/x.png", "HTTPS://a.example", " https://a/"])
def test_http_url_is_a_url(text: str) -> None:
    assert images.kind(text, FIELD) == "url"


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64,iVBORw0KGgo=",
        "DATA:image/png;base64,",
        base64.b64encode(saved(quarters(), "PNG")).decode(),
        base64.b64encode(saved(quarters(), "WEBP")).decode(),
        base64.b64encode(saved(quarters(), "JPEG")).decode(),
        base64.encodebytes(saved(quarters(), "JPEG")).decode(),
        "not base64 at all!",
        "",
    ],
    ids=["data URI", "data URI in capitals", "PNG", "WebP", "JPEG, like a path", "wrapped JPEG",
         "junk", "empty"],
)  # fmt: skip
def test_data_uri_and_base64_are_inline(text: str) -> None:
    assert images.kind(text, FIELD) == "inline"


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd", "FILE:/etc/passwd", "/etc/passwd", "/runpod-volume/cat.png",
        "./cat.png", "../../etc/passwd", "~/cat.png", "cat.png", "images/cat.jpeg", "my cat.webp",
        "C:\\cat.png", "c:/cat.png", "\\\\server\\share\\cat.png", "//host/cat.png",
        "ftp://host/cat.png", "s3://bucket/cat.png", "javascript:alert(1)", "blob:https://a/b",
        " file:///etc/passwd",
    ],
)  # fmt: skip
def test_local_path_and_other_scheme_are_blocked(text: str) -> None:
    with pytest.raises(UrlBlocked) as problem:
        images.kind(text, FIELD)
    assert problem.value.field == FIELD
    assert "passwd" not in problem.value.message


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text,
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"data:IMAGE/PNG;charset=x;BASE64,{text}",
        lambda text: "\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + "\n",
    ],
    ids=["bare", "data URI", "data URI with parameters", "wrapped lines"],
)
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_inline_bytes_come_back(wrap: Any, size: int) -> None:
    data = bytes(range(256)) * 4
    text = base64.b64encode(data[:size]).decode()
    assert images.decode_inline(wrap(text), FIELD, size) == data[:size]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("iVBORw0KGgo!", "not valid base64"),
        ("iVBORw0KGg-_", "not valid base64"),
        ("iVBORw0KGgo", "not valid base64"),
        ("iVBORw0=KGgo", "not valid base64"),
        ("A===", "not valid base64"),
        ("iVBORw0KGgo\u00e9", "not valid base64"),
        ("data:image/png;base64,iVBORw0KGgo", "not valid base64"),
        ("data:image/png,iVBORw0KGgo=", "of the form"),
        ("data:image/png;base64", "of the form"),
        ("data:text/html;base64,PGh0bWw+", "does not hold an image"),
        ("data:;base64,PGh0bWw+", "does not hold an image"),
        ("data:application/octet-stream;base64,PGh0bWw+", "does not hold an image"),
    ],
)
def test_bad_inline_data_is_rejected(text: str, rule: str) -> None:
    with pytest.raises(ImageRejected, match=rule) as problem:
        images.decode_inline(text, FIELD, 1000)
    assert "iVBOR" not in problem.value.message


def test_inline_data_over_the_limit_is_rejected_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ImageRejected, match="larger than 1000"):
        images.decode_inline("A" * 1336, FIELD, 1000)
