"""Untrusted bytes -> one safe, oriented RGB image.

Promises: only PNG, JPEG and WebP decoders ever read the bytes; the bytes alone select the decoder,
never a Content-Type or a file name; the pixel count is checked before a pixel is decoded; the
result is fully loaded, upright, 8-bit RGB, without alpha and metadata; every fault of the bytes is
an ImageRejected that says what they seem to be. Nothing here changes global state of Pillow or of
the warnings module, so any thread may run it.
Not covered: where the bytes come from (net), the size that the model needs (planning.plan), colour
profiles (pixels count as sRGB), the memory of the largest allowed image: up to ten bytes a pixel.
"""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from wan_worker.errors import ImageRejected, UrlBlocked
from wan_worker.inputs import image_parts

if TYPE_CHECKING:  # Pillow is imported only when there is an image: a bad request costs nothing
    from PIL import Image, ImageFile

T = TypeVar("T")

MIN_SIDE: Final = 16
"""Pixels, the models' grid. A smaller image has too little content to start a video."""
MAX_ASPECT: Final = 8
"""Long side over short side. Beyond it, a centre-crop would keep almost nothing."""
ACCEPTED: Final = "PNG, JPEG and WebP are accepted"

PATH: Final = re.compile(r"[/\\.~].*|[\w./\\ -]{1,512}\.[A-Za-z0-9]{2,5}", re.DOTALL)
"""Text that starts like a path or ends like a file name."""
JPEG_BASE64: Final = "/9j/"
"""A JPEG in base64 begins like this, which looks like an absolute path."""
SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
DATA_URI: Final = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)

FORMATS: Final = ("PNG", "JPEG", "WEBP")
SIGNATURES: Final = (
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"GIF8[79]a", "a GIF"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF"),
    (rb"....ftyp(avif|avis)", "an AVIF image"),
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "a HEIC image"),
    (rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", "a video"),
    (rb"%PDF-", "a PDF"),
    (rb"8BPS", "a Photoshop file"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "an EPS drawing"),
    (rb"SIMPLE  =", "a FITS file"),
    (rb"BM.{12}[\x0c\x28\x6c\x7c]\0\0\0", "a BMP"),
    (rb"\0\0\x01\0", "an icon"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb"\W*<(.*<)?(!doctype html|html)", "an HTML page"),
    (rb"\W*<(.*<)?svg", "an SVG drawing"),
    (rb"\W*<\?xml", "an XML document"),
    (rb"\s*[{\[]", "JSON"),
)
"""First bytes -> an accepted format, or a name for the rejection. The first match wins."""


@dataclass(frozen=True)
class Decoded:
    """An RGB image, and the changes that its owner should know, as (code, message)."""

    image: "Image.Image"
    warnings: tuple[tuple[str, str], ...]


def kind(text: str, field: str) -> Literal["url", "inline"]:
    """Is this a URL to fetch or an image to decode?

    Raises:
        UrlBlocked: it is a local path or a URL of another scheme.
    """
    start = text[:1024].strip()
    scheme = SCHEME.match(start)
    if scheme and scheme[0].lower() in ("http:", "https:"):
        return "url"
    if scheme and scheme[0].lower() == "data:":
        return "inline"
    if scheme or (PATH.fullmatch(start) and not start.startswith(JPEG_BASE64)):
        raise UrlBlocked(
            f"{field}: must be an http(s) URL, a data URI or base64; other schemes and paths"
            " of files are not read",
            field=field,
        )
    return "inline"


def decode_inline(text: str, field: str, max_bytes: int) -> bytes:
    """Decode a data URI or bare base64."""
    text = text.strip()
    if text[:5].lower() == "data:":
        head = DATA_URI.match(text[:1024])
        if head is None or not head[2].lower().endswith(";base64"):
            raise _rejected(field, "a data URI must be of the form data:image/png;base64,…")
        if not head[1].strip().lower().startswith("image/"):
            raise _rejected(field, f"the data URI does not hold an image; {ACCEPTED}")
        text = text[head.end() :]
    text = "".join(text.split())  # base64 is often wrapped into lines
    if len(text) // 4 * 3 - text[-2:].count("=") > max_bytes:
        raise _rejected(field, f"is larger than {max_bytes} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _rejected(field, "is not valid base64 (alphabet A-Z a-z 0-9 + /, padded)") from None


def sniff(data: bytes) -> str | None:
    """Guess the kind of file: one of FORMATS, another kind in words, or None."""
    start = data[:1024]
    for pattern, name in SIGNATURES:
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return name
    return None


def decode(data: bytes, field: str, max_pixels: int) -> Decoded:
    """Decode a whole file into one upright RGB image.

    Raises:
        ImageRejected: the file has another format, is damaged, too large, too small or too long.
    """
    if not data:
        raise _rejected(field, "is empty")
    form = sniff(data)
    if form not in FORMATS:
        raise _rejected(field, f"is {form or 'not a known image'}; {ACCEPTED}")
    if image_parts.too_many(data, form):
        raise _rejected(field, "is made of more parts than any program writes; save it anew")
    image = _guarded(lambda: _open(data, form), field)
    _check_size(image.width, image.height, field, max_pixels)
    notes = []
    if getattr(image, "is_animated", False):
        notes.append(("ANIMATION_FIRST_FRAME", f"{field}: is animated; its first frame is used"))
    # Load before _upright, which ignores faults and may load pixels to reach the metadata.
    _guarded(image.load, field)
    rgb, flattened = _guarded(lambda: _rgb(_upright(image)), field)
    if flattened:
        notes.append(("ALPHA_FLATTENED", f"{field}: is transparent; it was put on white"))
    return Decoded(rgb, tuple(notes))


def cover(image: "Image.Image", width: int, height: int) -> "Image.Image":
    """Scale to cover width x height, then cut the excess evenly on both sides."""
    from PIL import Image

    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    kept_width = min(width / scale, image.width)
    kept_height = min(height / scale, image.height)
    left = (image.width - kept_width) / 2
    top = (image.height - kept_height) / 2
    # Crop and scale in one step, so that nothing is rounded to whole pixels in between.
    box = (left, top, left + kept_width, top + kept_height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _rejected(field: str, rule: str) -> ImageRejected:
    return ImageRejected(rule[:1].upper() + rule[1:], field=field)


def _guarded(action: Callable[[], T], field: str) -> T:
    """Reject any error: damaged files raise OSError, SyntaxError, ValueError, struct.error…"""
    try:
        return action()
    except Exception as problem:
        raise _rejected(field, "is damaged, cut off or holds oversized metadata") from problem


def _open(data: bytes, form: str) -> "ImageFile.ImageFile":
    """Read the header.

    This calls the format's reader and not Image.open. Image.open warns (globally) of large images,
    but our own limit decides that. It also turns a JPEG with several pictures into another format.
    """
    from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    readers: dict[str, type[ImageFile.ImageFile]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    return readers[form](io.BytesIO(data))


def _check_size(width: int, height: int, field: str, max_pixels: int) -> None:
    size = f"is {width}x{height} pixels"
    if width * height > max_pixels:
        raise _rejected(field, f"{size}; at most {max_pixels} pixels in all are accepted")
    if min(width, height) < MIN_SIDE:
        raise _rejected(field, f"{size}; each side must have at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _rejected(field, f"{size}; the long side may be {MAX_ASPECT} times the short one")


def _upright(image: "Image.Image") -> "Image.Image":
    """Turn the image as EXIF says. Unreadable EXIF is ignored: the pixels are still good."""
    from PIL import ExifTags, Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - a parser of untrusted metadata
        return image
    return image if turn is None else image.transpose(turn)


def _rgb(image: "Image.Image") -> tuple["Image.Image", bool]:
    """8-bit RGB, and whether anything in it was transparent."""
    from PIL import Image

    if image.mode.startswith("I"):
        # 16-bit grey is scaled, because convert("RGB") would clip all above 255 to white.
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("RGB"), False
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = layer.getchannel("A")
    flat = Image.new("RGB", layer.size, "white")
    flat.paste(layer, mask=alpha)  # in place: each copy of an image at the limit takes 160 MB
    return flat, alpha.getextrema() != (255, 255)
