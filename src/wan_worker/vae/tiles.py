"""How is a frame decoded that does not fit into the GPU? In tiles that are blended on the CPU.

The decoder carries features from frame to frame. So one tile is decoded over all frames before the
next tile begins. The whole clip therefore waits in main memory, as uint8 (224 MB for 81 frames of
1280x720), before its first frame leaves. Neighbouring tiles overlap and fade into each other.

Not covered: which jobs need tiles (planning.memory), the decoder itself (pipelines.generate). The
decoder's attention sees a whole frame, but here only a tile: the result is close, not equal.
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
        decode: turns latents [1, z, frames, h, w] into chunks of uint8
            [n, h * scale, w * scale, 3] on the CPU.
        scale: pixels along one side of a latent.
        check: called for each chunk of each tile; raises to stop.
        tile, stride: in pixels, multiples of ``scale``.

    Yields:
        The chunks that ``decode`` would yield for the whole frame, on the CPU.
    """
    import torch

    chunks: list[torch.Tensor] = []
    latent_height, latent_width = latents.shape[3:]
    side, step = tile // scale, stride // scale
    for row, top in enumerate(tops := starts(latent_height, side, step)):
        for column, left in enumerate(lefts := starts(latent_width, side, step)):
            above = tops[row - 1] + side - top if row else 0
            before = lefts[column - 1] + side - left if column else 0
            part = latents[..., top : top + side, left : left + side]
            for index, decoded in enumerate(decode(part)):
                check()
                if index == len(chunks):
                    shape = (len(decoded), latent_height * scale, latent_width * scale, 3)
                    chunks.append(torch.zeros(shape, dtype=torch.uint8))
                height, width = decoded.shape[1:3]
                y, x = top * scale, left * scale
                region = chunks[index][:, y : y + height, x : x + width]
                weight = _ramp(height, above * scale).unsqueeze(1) * _ramp(width, before * scale)
                blended = region.float().lerp(decoded.float(), weight.unsqueeze(-1))
                region.copy_(blended.round())
    yield from chunks


def starts(length: int, side: int, step: int) -> list[int]:
    """Where tiles begin along one axis. The last tile ends at the end of the axis."""
    if length <= side:
        return [0]
    return [*range(0, length - side, step), length - side]


def _ramp(length: int, overlap: int) -> "torch.Tensor":
    """A new tile's weights along one axis: they rise over the overlap, then stay at 1."""
    import torch

    rising = torch.arange(1, overlap + 1) / (overlap + 1)
    return torch.cat([rising, torch.ones(length - overlap)])
