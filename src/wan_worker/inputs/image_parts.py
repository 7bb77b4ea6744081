"""Does this image file have too many parts? Checked before a decoder works on it.

A size limit alone does not bound a decoder's time. Each scan of a progressive JPEG covers the whole
picture again, so that 20 MB of empty scans take an hour. Pillow reads segments, chunks and fill
bytes one by one in Python. So the parts are counted first. The count walks from header to header
and ends at the limit.

Not covered: whether the parts are valid (the decoder checks), WebP (its reader is C; its parts are
frames, and only one is decoded).
"""

import re
from typing import Final

MAX_SCANS: Final = 100
"""For a JPEG. Encoders write about ten; libjpeg's own tools accept up to a hundred."""
MAX_SEGMENTS: Final = 2_000
"""For a JPEG. The largest profile, 16 MB in pieces of 64 KB, has 255."""
MAX_FILL_BYTES: Final = 65_536
"""For the bytes between a JPEG's segments, which carry no information."""
MAX_CHUNKS: Final = 50_000
"""For a PNG. Programs write pieces of 1 KB or more; 20 MB of those are 20,000."""

# Stuffed zeros, restarts and TEM stand alone. Other markers begin a segment or end the picture.
# Only the last fill byte is matched: `\xff+` would walk a run of fill bytes once for each of them.
_SEGMENT: Final = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
_SCAN, _END = b"\xda", b"\xd9"


def too_many(data: bytes, form: str) -> bool:
    """Whether a PNG or JPEG has more parts than any program writes."""
    if form == "JPEG":
        return _jpeg(data)
    return form == "PNG" and _png(data)


def _jpeg(data: bytes) -> bool:
    at, fill, in_scan = 2, 0, False
    scans = segments = 0
    while (found := _SEGMENT.search(data, at)) and found[1] != _END:
        if not in_scan:
            fill += found.end() - 2 - at
        in_scan = found[1] == _SCAN
        scans += in_scan
        segments += 1
        if scans > MAX_SCANS or segments > MAX_SEGMENTS or fill > MAX_FILL_BYTES:
            return True
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        at = found.end() + max(2, length)
    return found is None and not in_scan and fill + len(data) - at > MAX_FILL_BYTES


def _png(data: bytes) -> bool:
    at, chunks = 8, 0
    while at + 8 <= len(data):
        chunks += 1
        if chunks > MAX_CHUNKS:
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return False
