"""How do a VAE's causal layers work on one frame?

A convolution over time sees its own frame and the two before, and everything else sees one frame.
So a frame needs nothing but two earlier ones at each convolution, and a 3x3x3 convolution at a
frame is a 3x3 convolution over three frames' channels. Frames are [n, c, h, w], channels last in
memory.
Not covered: the order of the layers (encoder, decoder).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Past = dict[Any, "tuple[torch.Tensor, ...]"]
"""By convolution: what it was given for the frames before, oldest first, two at most."""


def residual(block: Any, frame: "torch.Tensor", past: Past) -> "torch.Tensor":
    """A WanResidualBlock at ``frame``, which joins the past of its convolutions."""
    inner = convolved(block.conv1, activated(block.norm1, frame), past)
    inner = convolved(block.conv2, activated(block.norm2, inner), past)
    if block.in_dim != block.out_dim:
        frame = convolved(block.conv_shortcut, frame, past)
    return inner.add_(frame)


def activated(norm: Any, frame: "torch.Tensor") -> "torch.Tensor":
    """WanRMS_norm, which reckons in fp32 at least, and SiLU: a new tensor."""
    import torch
    from torch.nn import functional

    wide = frame.to(torch.promote_types(frame.dtype, torch.float32))
    normal = functional.normalize(wide, dim=1).to(frame.dtype)
    normal = normal.mul_(norm.scale).mul_(norm.gamma.view(1, -1, 1, 1))
    return functional.silu(normal, inplace=True)


def convolved(layer: Any, frame: "torch.Tensor", past: Past) -> "torch.Tensor":
    """A causal convolution's output at ``frame``, which joins the layer's past.

    Where there is no frame yet the convolution is padded with zeros: those taps are left out.
    """
    import torch

    reach = layer.kernel_size[0]
    frames = (*past.get(layer, ()), frame)
    if reach > 1:
        past[layer] = frames[1 - reach :]
    stacked = torch.cat(frames, dim=1)
    del frames, frame  # the oldest is needed no more
    return product(layer, stacked)


def product(layer: Any, stacked: "torch.Tensor") -> "torch.Tensor":
    """The layer's last taps over time on as many frames, of which the channels are stacked."""
    from torch.nn import functional

    _lay_out(layer)
    taps = stacked.shape[1] // layer.in_channels
    kernel = layer.weight[:, :, layer.kernel_size[0] - taps :].transpose(1, 2).flatten(1, 2)
    # Causal padding, of which time's part is the past: left, right, top, bottom.
    left, _, top, _ = layer._padding[:4]
    return functional.conv2d(stacked, kernel, layer.bias, padding=(top, left))


def channels_last(frame: "torch.Tensor") -> "torch.Tensor":
    """The same frame, a pixel's channels side by side in memory: all here keep that order."""
    import torch

    return frame.contiguous(memory_format=torch.channels_last)


def _lay_out(layer: Any) -> None:
    """Weights [out, in, time, h, w] in memory as [out, h, w, time, in]; nothing the second time.

    ``product`` takes them as [out, time * in, h, w], channels last, without copying. Their values
    and shape stay; ``safetensors.save_file`` would want them contiguous.
    """
    ordered = layer.weight.data.permute(0, 3, 4, 2, 1).contiguous()
    layer.weight.data = ordered.permute(0, 4, 3, 1, 2)
