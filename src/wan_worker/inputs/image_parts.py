"""Is this image file made of as few parts as real ones are? Asked before a decoder works on it.

A size limit alone does not bound a decoder's time: each of a progressive JPEG's scans goes over the
whole picture again, so that 20 MB of empty scans take an hour, and Pillow reads segments, chunks
and fill bytes one by one in Python. So the parts are counted first, at the cost of a walk from
header to header that ends at the limit.

Not covered: whether the parts are right (the decoder), WebP (its reader is C and its parts are
frames, of which one is decoded).
"""

import re
from typing import Final

MAX_SCANS: Final = 100
"""Of a JPEG. Encoders write about ten; libjpeg's own tools take scripts of up to a hundred."""
MAX_SEGMENTS: Final = 2_000
"""Of a JPEG. A profile of 16 MB in pieces of 64 KB, the most that there can be, has 255."""
MAX_FILL_BYTES: Final = 65_536
"""Between a JPEG's segments, where there is nothing to be said."""
MAX_CHUNKS: Final = 50_000
"""Of a PNG. 20 MB in the smallest pieces that programs write, of 1 KB, have 20,000."""

# Stuffed zeros, restarts and TEM stand alone: what is left begins a segment, or ends the picture.
# Only the last fill byte is matched: `\xff+` would walk what is nothing but fill once for each byte.
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
