"""How is a frame decoded that does not fit into the GPU? Square by square, and blended on the CPU.

A tile is decoded over all frames before the next one begins, since the decoder carries features
from frame to frame. So the whole clip waits in main memory, as uint8 (224 MB for 81 frames of
1280x720), before its first frame leaves. Neighbours overlap and fade into each other.

Not covered: which jobs need it (memory), and the decoder itself (generate). The decoder's attention
spans a frame, and in tiles only the tile: the result is near the whole frame's, and not equal.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from wan_worker.planning.activations import TILE, TILE_STRIDE

if TYPE_CHECKING:
    import torch


def in_tiles(
    decode: "Callable[[torch.Tensor], Iterator[torch.Tensor]]",
    latents: "torch.Tensor",
    scale: int,
    check: Callable[[], None],
    tile: int = TILE,
    stride: int = TILE_STRIDE,
) -> "Iterator[torch.Tensor]":
    """Decode latents tile by tile.

    Args:
        decode: latents [1, z, frames, h, w] to chunks of uint8 [n, h * scale, w * scale, 3] on
            the CPU.
        scale: pixels of a latent's side.
        check: called for each chunk of each tile; raises to stop.
        tile, stride: in pixels, multiples of ``scale``.

    Yields:
        The chunks that ``decode`` would yield of the whole, on the CPU.
    """
    import torch

    chunks: list[torch.Tensor] = []
    high, wide = latents.shape[3:]
    side, step = tile // scale, stride // scale
    for row, top in enumerate(tops := starts(high, side, step)):
        for column, left in enumerate(lefts := starts(wide, side, step)):
            above = tops[row - 1] + side - top if row else 0
            before = lefts[column - 1] + side - left if column else 0
            part = latents[..., top : top + side, left : left + side]
            for index, made in enumerate(decode(part)):
                check()
                if index == len(chunks):
                    shape = (len(made), high * scale, wide * scale, 3)
                    chunks.append(torch.zeros(shape, dtype=torch.uint8))
                down, right = made.shape[1:3]
                y, x = top * scale, left * scale
                place = chunks[index][:, y : y + down, x : x + right]
                weight = _ramp(down, above * scale).unsqueeze(1) * _ramp(right, before * scale)
                mixed = place.float().lerp(made.float(), weight.unsqueeze(-1))
                place.copy_(mixed.round())
    yield from chunks


def starts(length: int, side: int, step: int) -> list[int]:
    """Where tiles begin along one axis: the last one ends where the axis does."""
    if length <= side:
        return [0]
    return [*range(0, length - side, step), length - side]


def _ramp(length: int, overlap: int) -> "torch.Tensor":
    """A new tile's weights along one axis: rising over what is there already, then 1."""
    import torch

    rising = torch.arange(1, overlap + 1) / (overlap + 1)
    return torch.cat([rising, torch.ones(length - overlap)])
