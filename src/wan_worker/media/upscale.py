"""Frames -> larger frames, in tiles, one frame at a time.

Each frame from the decoder is enlarged and passed on at once, so memory does not grow with the
clip's length. Because of the tiles it does not grow with the frame's size either. The network
always makes 4x. For 2x its result is averaged over 2 x 2 pixels, as Real-ESRGAN's own ``outscale``
shrinks it, so one set of weights serves both.

Promises: the same frames give the same result on the same machine, whatever else is loaded: the
tile's size depends on the machine, not on its free memory; a cancelled job stops within one tile; a
tile's memory is bounded by ``UPSCALE_BYTES`` on a GPU and by ``CPU_SHARE`` on a CPU.
Tiles overlap by ``OVERLAP`` pixels. If a network's reach is within that (the tiny one), the result
equals the untiled one. The published network reaches 349 pixels in theory. Its residual scaling
leaves almost no influence beyond a few dozen. Tests bound the difference for a network of its depth
to one level of 255; the real weights have not been measured.
Not covered: which sizes are too large (planning.plan), files (encode).
"""

import math
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from wan_worker.machine.hardware import Hardware
from wan_worker.media import rrdbnet
from wan_worker.planning.activations import UPSCALE_BYTES
from wan_worker.timing.progress import Control
from wan_worker.weights.real_esrgan import SCALE, Parameters, Shape

if TYPE_CHECKING:
    import torch

    from wan_worker.pipelines.generate import Frames

OVERLAP: Final = 32
"""Pixels of context around a tile, on each side that has a neighbour."""

CPU_SHARE: Final = 1 / 16
"""Share of the machine's memory for a tile, if there is no GPU."""

_LEAST_SIDE: Final = 2 * OVERLAP


def tile_side(hardware: Hardware, shape: Shape) -> int:
    """Side of the square tile that the network gets at a time, with its context.

    ``sqrt(budget / (values per pixel x bytes per value))``: 2 bytes on a GPU, 4 on a CPU. For the
    published network and UPSCALE_BYTES it is 836 pixels, so that 832x480 is one tile.
    """
    on_gpu = hardware.device == "cuda"
    budget = UPSCALE_BYTES if on_gpu else hardware.memory_bytes * CPU_SHARE
    per_pixel = shape.values_per_pixel * (2 if on_gpu else 4)
    return max(math.isqrt(int(budget) // per_pixel), _LEAST_SIDE + 2)


def frames(
    source: "Generator[Frames, None, None]",
    network: Parameters | None,
    factor: int,
    hardware: Hardware,
    control: Control,
) -> "Generator[Frames, None, None]":
    """Enlarge every frame ``factor`` times per side. Without a network, return ``source``.

    Args:
        source: uint8 [n, h, w, 3] chunks, RGB.
        factor: 2 or 4.

    Yields:
        uint8 [1, factor x h, factor x w, 3].
    """
    if network is None:
        return source
    return _enlarged(source, network, factor, tile_side(hardware, network.shape), control)


def _enlarged(
    source: "Iterable[Frames]", network: Parameters, factor: int, side: int, control: Control
) -> "Generator[Frames, None, None]":
    import torch

    for chunk in source:
        for picture in chunk:
            pixels = torch.from_numpy(picture).to(network.device).permute(2, 0, 1)[None]
            enlarged = enlarge(pixels, network, factor, side, control)
            yield enlarged[0].permute(1, 2, 0).contiguous().cpu().numpy()[None]


def enlarge(
    pixels: "torch.Tensor", network: Parameters, factor: int, side: int, control: Control
) -> "torch.Tensor":
    """uint8 [1, 3, h, w] to uint8 [1, 3, factor x h, factor x w], tile by tile.

    Args:
        side: a tile's side, with its context.
    """
    import torch
    from torch.nn.functional import avg_pool2d

    height, width = pixels.shape[2:]
    result = pixels.new_empty((1, 3, height * factor, width * factor))
    for top, bottom in _spans(height, side):
        for left, right in _spans(width, side):
            control.check()
            context_top, context_left = max(0, top - OVERLAP), max(0, left - OVERLAP)
            tile = pixels[:, :, context_top : bottom + OVERLAP, context_left : right + OVERLAP]
            with torch.no_grad():
                enlarged = rrdbnet.forward(network, tile.to(network.dtype) / 255).float()
            if factor < SCALE:
                enlarged = avg_pool2d(enlarged, SCALE // factor)
            enlarged = enlarged[
                :, :, (top - context_top) * factor : (bottom - context_top) * factor,
                (left - context_left) * factor : (right - context_left) * factor,
            ]  # fmt: skip
            result[:, :, top * factor : bottom * factor, left * factor : right * factor] = (
                enlarged.clamp(0, 1).mul(255).round().to(torch.uint8)
            )
    return result


def _spans(length: int, side: int) -> Iterator[tuple[int, int]]:
    """Cut a length into the fewest equal parts that fit into ``side`` with their context."""
    count = 1 if length <= side else math.ceil(length / (side - 2 * OVERLAP))
    for index in range(count):
        yield length * index // count, length * (index + 1) // count
