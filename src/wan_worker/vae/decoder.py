"""How does a latent frame become pictures? Each picture passes through the decoder by itself.

The decoder of both VAEs is causal (causal). One latent frame becomes four frames. Diffusers runs
all four through the last blocks together, in three dimensions. Here one frame is finished before
the next one starts, in two dimensions. This holds a fraction of the tensors at a time and computes
the same function (tests compare it with ``vae.decode``).
Not covered: latents' mean and deviation, pixels as bytes (pipelines.generate); tiles (tiles).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wan_worker.vae.causal import Past, activated, channels_last, convolved, residual

if TYPE_CHECKING:
    import torch


def pictures(decoder: Any, latents: "torch.Tensor", past: Past) -> "Iterator[torch.Tensor]":
    """Decode the next latent frame of a clip.

    Args:
        decoder: a WanDecoder3d. The memory order of its convolutions' weights changes; their values
            and shapes stay.
        latents: [1, z, h, w].
        past: this clip's past, empty before its first frame. It is filled here, and is complete
            once the caller has taken all pictures.

    Yields:
        [1, c, h * scale, w * scale], before patches are undone: one picture for the first latent
        frame, then as many as the decoder makes of each.
    """
    first = not past
    frame = convolved(decoder.conv_in, channels_last(latents), past)
    middle = decoder.mid_block
    frame = residual(middle.resnets[0], frame, past)
    for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
        frame = attention(frame.unsqueeze(2)).squeeze(2)
        frame = residual(block, channels_last(frame), past)
    blocks = decoder.up_blocks
    pending = [(0, frame)]
    del frame  # each tensor takes hundreds of megabytes: free it at once
    while pending:
        level = pending[-1][0]
        if level < len(blocks):
            larger = _enlarged(blocks[level], pending.pop()[1], past, first)
            pending += [(level + 1, larger.pop()) for _ in range(len(larger))]
        else:
            yield convolved(decoder.conv_out, activated(decoder.norm_out, pending.pop()[1]), past)


def _enlarged(block: Any, frame: "torch.Tensor", past: Past, first: bool) -> "list[torch.Tensor]":
    """Run one block. A block that upsamples time makes two frames, but one of a clip's first."""
    upsampler, shortcut = _upsampler(block), getattr(block, "avg_shortcut", None)
    block_input = None if shortcut is None else frame.unsqueeze(2)
    for resnet in block.resnets:
        frame = residual(resnet, frame, past)
    if upsampler is None:
        return [frame]
    frames: tuple[torch.Tensor, ...] = (frame,)
    if upsampler.mode == "upsample3d" and not first:
        # The first frame's channels come first, then the second frame's.
        frames = convolved(upsampler.time_conv, frame, past).chunk(2, dim=1)
    larger = [upsampler.resample(large) for large in frames]
    if shortcut is None:
        return larger
    shortcut_frames = shortcut(block_input, first_chunk=first).unbind(dim=2)
    return [large.add_(addend) for large, addend in zip(larger, shortcut_frames, strict=True)]


def _upsampler(block: Any) -> Any:
    """The upsampler of a WanResidualUpBlock or of a WanUpBlock."""
    if hasattr(block, "upsampler"):
        return block.upsampler
    return None if block.upsamplers is None else block.upsamplers[0]
