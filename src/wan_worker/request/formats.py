"""What can the delivered file hold? File formats and players set these rules, not models.

Pure; the rules are checked before any work. Not covered: writing the files (media.encode), and
whether a file fits into a response: how well frames compress is known only after they are written
(delivery.storage).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from wan_worker.catalog.components import UPSCALER
from wan_worker.catalog.models import Size
from wan_worker.errors import InvalidRequest

Mode = Literal["image", "video"]

VIDEO_FORMATS: Final = ("mp4", "webm", "gif")
IMAGE_FORMATS: Final = ("png", "jpeg", "webp")

MAX_GIF_FPS: Final = 50
"""Browsers show a GIF frame that is shorter than 2/100 s for 10/100 s."""

MAX_VIDEO_PIXELS: Final = 36_864 * 16 * 16
"""Largest frame of H.264 level 5.1 (ITU-T H.264, table A-1: MaxFS in macroblocks of 16x16):
4096x2304. Phones and televisions decode no higher level. Wan's own frames are far smaller."""


def output_format(asked: str | None, mode: Mode) -> str:
    """The format that was asked for, or the mode's first one."""
    formats = VIDEO_FORMATS if mode == "video" else IMAGE_FORMATS
    if asked is None:
        return formats[0]
    if asked not in formats:
        raise InvalidRequest(
            f"mode {mode} can be delivered as: {', '.join(formats)}", field="/input/output_format"
        )
    return asked


def check_container(
    size: Size | None, fields: Mapping[str, Any], form: str, where: Mapping[str, str]
) -> None:
    """Refuse a size or rate that the format can't hold.

    Args:
        size: the explicit size; sizes that the worker chooses are even.
        where: JSON pointer of each field.
    """
    if form == "gif" and fields.get("fps", 0) > MAX_GIF_FPS:
        raise InvalidRequest(
            f"A gif has up to {MAX_GIF_FPS} frames a second: players slow down shorter ones; "
            "mp4 and webm have no such limit",
            field="/input/fps",
        )
    # VP9 rounds the size of its colour planes up. GIF has no colour planes.
    if form == "mp4" and size is not None and fields.get("upscale", 1) == 1:
        for name, side in zip(("width", "height"), size, strict=True):
            if side % 2:
                raise InvalidRequest(
                    "An mp4's width and height must be even (H.264 stores colour in 2x2 blocks); "
                    "webm and gif take any size",
                    field=where.get("size", f"/input/{name}"),
                )


def check_upscaled(mode: Mode, area: int, factor: int, field: str) -> None:
    """Refuse frames that would be too large after upscaling.

    Args:
        area: pixels of a frame before upscaling; an image's shape is fitted into at most these.
    """
    if factor == 1 or mode == "image" or area * factor**2 <= MAX_VIDEO_PIXELS:
        return
    smaller = "upscale 2, or " if factor == 4 and area * 2**2 <= MAX_VIDEO_PIXELS else ""
    raise InvalidRequest(
        f"{area * factor**2} pixels a frame are more than the {MAX_VIDEO_PIXELS} (4096x2304) that "
        f"players decode (H.264 level 5.1); ask for {smaller}a smaller size",
        field=field,
    )


def reasons(form: str, fps: int, upscale: int) -> Iterator[str]:
    """Where the file differs from its numbers, and how frames are upscaled."""
    if form == "gif" and 100 % fps:
        yield (
            f"fps: {fps}; a gif counts in 1/100 s, so its frames last {100 // fps} or "
            f"{100 // fps + 1} of these, and the clip as long as asked to the nearest"
        )
    if upscale > 1:
        halved = "" if upscale == 4 else ", its 4x averaged down over 2x2 pixels"
        yield f"upscale: {upscale}x by {UPSCALER.name}{halved}"
