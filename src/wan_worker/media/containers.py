"""Is the file whole? Read its format's structure to the last byte, without decoding a picture.

A decoder accepts a file whose end is missing. These readers do not: all sizes must add up to the
end of the file. The index that a player needs to start or seek must come before the pictures.
Sources: ISO/IEC 14496-12 4.2 (boxes of an MP4), RFC 8794 and RFC 9559 (EBML and Matroska, which
includes WebM), the GIF89a specification, RFC 2083 (PNG), ITU-T T.81 annex B (JPEG), Google's WebP
container specification.
Not covered: the pictures themselves (artifact decodes them).
"""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

from wan_worker.errors import EncodeFailed

_MAX_PARTS: Final = 100_000
"""Far more than a clip has. It stops the reader if a damaged size would keep it busy."""

_SEGMENT, _CLUSTER, _CUES = 0x18538067, 0x1F43B675, 0x1C53BB6B
_EBML = 0x1A45DFA3


def check(path: Path, form: str) -> None:
    """Check the structure of a finished file.

    Args:
        form: mp4, webm, gif, png, jpeg or webp.

    Raises:
        EncodeFailed: the file begins like another format, is cut short, or ends with its index.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if not _SIGNATURES[form](file.read(16)):
            raise EncodeFailed(f"The file does not begin like a {form}")
        file.seek(0)
        try:
            _READERS[form](file, size)
        except (struct.error, IndexError) as error:
            raise EncodeFailed(f"The {form} is cut short") from error


def _mp4(file: BinaryIO, size: int) -> None:
    boxes: list[str] = []
    position = 0
    while position < size and len(boxes) < _MAX_PARTS:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        boxes.append(kind.decode("latin-1"))
        if length < 8:
            break
        position += length
    if "moov" not in boxes or "mdat" not in boxes or boxes.index("moov") > boxes.index("mdat"):
        raise EncodeFailed(f"The mp4's parts are out of order: {', '.join(boxes[:8])}")
    _must_end(position, size, "mp4")


def _webm(file: BinaryIO, size: int) -> None:
    """The EBML header and one Segment of whole elements, with the index before the pictures."""
    kind, length = _element(file)
    if kind != _EBML:
        raise EncodeFailed("The webm has no EBML header")
    file.seek(length, 1)
    kind, length = _element(file)
    if kind != _SEGMENT:
        raise EncodeFailed("The webm has no segment")
    _must_end(file.tell() + length, size, "webm")
    found: list[int] = []
    while file.tell() < size and len(found) < _MAX_PARTS:
        kind, length = _element(file)
        found.append(kind)
        file.seek(length, 1)
    _must_end(file.tell(), size, "webm")
    if _CLUSTER not in found or _CUES not in found or found.index(_CUES) > found.index(_CLUSTER):
        raise EncodeFailed("The webm's index does not come before its pictures")


def _element(file: BinaryIO) -> tuple[int, int]:
    """Read the id and data size of an EBML element; the file then stands at the data."""
    return _vint(file, keep_marker=True), _vint(file, keep_marker=False)


def _vint(file: BinaryIO, *, keep_marker: bool) -> int:
    """A variable-size integer (RFC 8794, 4): the first byte's leading zeros give the length."""
    first = file.read(1)[0]
    length = 9 - first.bit_length()
    if length > 8:
        raise EncodeFailed("The webm holds a size that can't be")
    rest = file.read(length - 1)
    if len(rest) < length - 1:
        raise IndexError
    value = first if keep_marker else first & ((1 << (8 - length)) - 1)
    return int.from_bytes(bytes([value]) + rest, "big")


def _gif(file: BinaryIO, size: int) -> None:
    """Header, colour table, then blocks. The trailer must be the file's last byte."""
    file.seek(10)
    _skip_colours(file, file.read(3)[0])
    for _ in range(_MAX_PARTS):
        introducer = file.read(1)[0]
        if introducer == 0x3B:  # the trailer
            _must_end(file.tell(), size, "gif")
            return
        if introducer == 0x21:  # an extension: its label, then sub-blocks
            file.seek(1, 1)
        elif introducer == 0x2C:  # a frame: place, size, flags, colours, LZW code size, sub-blocks
            _skip_colours(file, file.read(9)[8])
            file.seek(1, 1)
        else:
            raise EncodeFailed("The gif holds a block that no gif has")
        while length := file.read(1)[0]:
            file.seek(length, 1)
    raise EncodeFailed("The gif does not end")


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << ((flags & 7) + 1), 1)


def _png(file: BinaryIO, size: int) -> None:
    position = 8
    for _ in range(_MAX_PARTS):
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        position += length + 12  # length, kind and checksum
        if kind == b"IEND":
            _must_end(position, size, "png")
            return
    raise EncodeFailed("The png does not end")


def _jpeg(file: BinaryIO, size: int) -> None:
    file.seek(size - 2)
    if file.read(2) != b"\xff\xd9":
        raise EncodeFailed("The jpeg is cut short")


def _webp(file: BinaryIO, size: int) -> None:
    file.seek(4)
    (length,) = struct.unpack("<I", file.read(4))
    _must_end(8 + length, size, "webp")


def _must_end(position: int, size: int, form: str) -> None:
    if position != size:
        raise EncodeFailed(f"The {form} has {size} bytes where its parts say {position}")


_SIGNATURES: Final[Mapping[str, Callable[[bytes], bool]]] = MappingProxyType({
    "mp4": lambda head: head[4:8] == b"ftyp",
    "webm": lambda head: head[:4] == b"\x1a\x45\xdf\xa3",
    "gif": lambda head: head[:6] == b"GIF89a",
    "png": lambda head: head[:8] == b"\x89PNG\r\n\x1a\n",
    "jpeg": lambda head: head[:3] == b"\xff\xd8\xff",
    "webp": lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP",
})  # fmt: skip
_READERS: Final[Mapping[str, Callable[[BinaryIO, int], None]]] = MappingProxyType({
    "mp4": _mp4, "webm": _webm, "gif": _gif, "png": _png, "jpeg": _jpeg, "webp": _webp,
})  # fmt: skip
