"""How does a latent frame become pictures? Each on its own way through the decoder, to its end.

The decoder of both VAEs is causal: a convolution over time sees its own frame and the two before,
and everything else sees one frame. So a frame needs nothing but two earlier ones at each
convolution, and a 3x3x3 convolution at a frame is a 3x3 convolution over three frames' channels.
Diffusers takes the four frames that one latent frame becomes through the last blocks together, in
three dimensions; here each is a picture before the next one starts, in two, channels last in
memory: a fraction of the tensors at a time, and the same function (tests hold it against
``vae.decode``).
Not covered: latents' mean and deviation, pixels as bytes (generate); tiles (tiles).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Past = dict[Any, "tuple[torch.Tensor, ...]"]
"""By convolution: what it was given for the frames before, oldest first, two at most."""


def pictures(decoder: Any, latents: "torch.Tensor", past: Past) -> "Iterator[torch.Tensor]":
    """The pictures of a clip's next latent frame.

    Args:
        decoder: a WanDecoder3d; its convolutions' weights are laid out anew in memory, once, their
            values and shapes being as they were.
        latents: [1, z, h, w].
        past: of this clip, empty for its first frame; it is filled here.

    Yields:
        [1, c, h * scale, w * scale], before patches are undone: one for the first latent frame,
        then as many as the decoder makes of each.
    """
    first = not past
    frame = _convolved(decoder.conv_in, _channels_last(latents), past)
    middle = decoder.mid_block
    frame = _residual(middle.resnets[0], frame, past)
    for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
        frame = attention(frame.unsqueeze(2)).squeeze(2)
        frame = _residual(block, _channels_last(frame), past)
    blocks = decoder.up_blocks
    waiting = [(0, frame)]
    del frame  # no tensor is held longer than it is needed: each is hundreds of megabytes
    while waiting:
        level = waiting[-1][0]
        if level < len(blocks):
            larger = _enlarged(blocks[level], waiting.pop()[1], past, first)
            waiting += [(level + 1, larger.pop()) for _ in range(len(larger))]
        else:
            yield _convolved(decoder.conv_out, _activated(decoder.norm_out, waiting.pop()[1]), past)


def _enlarged(block: Any, frame: "torch.Tensor", past: Past, first: bool) -> "list[torch.Tensor]":
    """A frame through one block: two frames where it enlarges time, except for a clip's first."""
    upsampler, shortcut = _upsampler(block), getattr(block, "avg_shortcut", None)
    given = None if shortcut is None else frame.unsqueeze(2)
    for residual in block.resnets:
        frame = _residual(residual, frame, past)
    if upsampler is None:
        return [frame]
    frames: tuple[torch.Tensor, ...] = (frame,)
    if upsampler.mode == "upsample3d" and not first:
        # One frame's channels, then the next one's.
        frames = _convolved(upsampler.time_conv, frame, past).chunk(2, dim=1)
    larger = [upsampler.resample(each) for each in frames]
    if shortcut is None:
        return larger
    around = shortcut(given, first_chunk=first).unbind(dim=2)
    return [each.add_(more) for each, more in zip(larger, around, strict=True)]


def _upsampler(block: Any) -> Any:
    """Of a WanResidualUpBlock or of a WanUpBlock."""
    if hasattr(block, "upsampler"):
        return block.upsampler
    return None if block.upsamplers is None else block.upsamplers[0]


def _residual(block: Any, frame: "torch.Tensor", past: Past) -> "torch.Tensor":
    inner = _convolved(block.conv1, _activated(block.norm1, frame), past)
    inner = _convolved(block.conv2, _activated(block.norm2, inner), past)
    if block.in_dim != block.out_dim:
        frame = _convolved(block.conv_shortcut, frame, past)
    return inner.add_(frame)


def _activated(norm: Any, frame: "torch.Tensor") -> "torch.Tensor":
    """WanRMS_norm, which reckons in fp32 at least, and SiLU: a new tensor."""
    import torch
    from torch.nn import functional

    wide = frame.to(torch.promote_types(frame.dtype, torch.float32))
    normal = functional.normalize(wide, dim=1).to(frame.dtype)
    normal = normal.mul_(norm.scale).mul_(norm.gamma.view(1, -1, 1, 1))
    return functional.silu(normal, inplace=True)


def _convolved(layer: Any, frame: "torch.Tensor", past: Past) -> "torch.Tensor":
    """A causal convolution's output at ``frame``, which joins the layer's past.

    Where there is no frame yet the convolution is padded with zeros: those taps are left out.
    """
    import torch
    from torch.nn import functional

    reach = layer.kernel_size[0]
    frames = (*past.get(layer, ()), frame)
    if reach > 1:
        past[layer] = frames[1 - reach :]
    _lay_out(layer)
    kernel = layer.weight[:, :, reach - len(frames) :].transpose(1, 2).flatten(1, 2)
    # Causal padding, of which time's part is the past: left, right, top, bottom.
    left, _, top, _ = layer._padding[:4]
    stacked = torch.cat(frames, dim=1)
    del frames, frame
    return functional.conv2d(stacked, kernel, layer.bias, padding=(top, left))


def _channels_last(frame: "torch.Tensor") -> "torch.Tensor":
    import torch

    return frame.contiguous(memory_format=torch.channels_last)


def _lay_out(layer: Any) -> None:
    """Weights [out, in, time, h, w] in memory as [out, h, w, time, in].

    ``_convolved`` takes them as [out, time * in, h, w], channels last, without copying.
    """
    ordered = layer.weight.data.permute(0, 3, 4, 2, 1)
    if not ordered.is_contiguous():
        layer.weight.data = ordered.contiguous().permute(0, 4, 3, 1, 2)
