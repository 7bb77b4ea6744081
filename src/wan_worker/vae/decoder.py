"""How does a latent frame become pictures? Each on its own way through the decoder, to its end.

The decoder of both VAEs is causal (causal). Diffusers takes the four frames that one latent frame
becomes through the last blocks together, in three dimensions; here each is a picture before the
next one starts, in two: a fraction of the tensors at a time, and the same function (tests hold it
against ``vae.decode``).
Not covered: latents' mean and deviation, pixels as bytes (generate); tiles (tiles).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wan_worker.vae.causal import Past, activated, channels_last, convolved, residual

if TYPE_CHECKING:
    import torch


def pictures(decoder: Any, latents: "torch.Tensor", past: Past) -> "Iterator[torch.Tensor]":
    """The pictures of a clip's next latent frame.

    Args:
        decoder: a WanDecoder3d; its convolutions' weights are laid out anew in memory, their values
            and shapes being as they were.
        latents: [1, z, h, w].
        past: of this clip, empty for its first frame; it is filled here, and complete once all
            pictures have been taken.

    Yields:
        [1, c, h * scale, w * scale], before patches are undone: one for the first latent frame,
        then as many as the decoder makes of each.
    """
    first = not past
    frame = convolved(decoder.conv_in, channels_last(latents), past)
    middle = decoder.mid_block
    frame = residual(middle.resnets[0], frame, past)
    for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
        frame = attention(frame.unsqueeze(2)).squeeze(2)
        frame = residual(block, channels_last(frame), past)
    blocks = decoder.up_blocks
    waiting = [(0, frame)]
    del frame  # no tensor is held longer than it is needed: each is hundreds of megabytes
    while waiting:
        level = waiting[-1][0]
        if level < len(blocks):
            larger = _enlarged(blocks[level], waiting.pop()[1], past, first)
            waiting += [(level + 1, larger.pop()) for _ in range(len(larger))]
        else:
            yield convolved(decoder.conv_out, activated(decoder.norm_out, waiting.pop()[1]), past)


def _enlarged(block: Any, frame: "torch.Tensor", past: Past, first: bool) -> "list[torch.Tensor]":
    """A frame through one block: two frames where it enlarges time, except for a clip's first."""
    upsampler, shortcut = _upsampler(block), getattr(block, "avg_shortcut", None)
    given = None if shortcut is None else frame.unsqueeze(2)
    for each in block.resnets:
        frame = residual(each, frame, past)
    if upsampler is None:
        return [frame]
    frames: tuple[torch.Tensor, ...] = (frame,)
    if upsampler.mode == "upsample3d" and not first:
        # One frame's channels, then the next one's.
        frames = convolved(upsampler.time_conv, frame, past).chunk(2, dim=1)
    larger = [upsampler.resample(one) for one in frames]
    if shortcut is None:
        return larger
    around = shortcut(given, first_chunk=first).unbind(dim=2)
    return [one.add_(more) for one, more in zip(larger, around, strict=True)]


def _upsampler(block: Any) -> Any:
    """Of a WanResidualUpBlock or of a WanUpBlock."""
    if hasattr(block, "upsampler"):
        return block.upsampler
    return None if block.upsamplers is None else block.upsamplers[0]
