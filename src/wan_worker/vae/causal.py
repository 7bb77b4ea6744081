"""How do a VAE's causal layers work on one frame?

A convolution over time sees its own frame and the two before. Every other layer sees one frame.
So each convolution needs only two earlier frames. A 3x3x3 convolution at one frame is then a 3x3
convolution over the channels of three frames. Frames are [n, c, h, w], channels last in memory.
Not covered: the order of the layers (encoder, decoder).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Past = dict[Any, "tuple[torch.Tensor, ...]"]
"""For each convolution: its inputs at the earlier frames, oldest first, at most two."""


def residual(block: Any, frame: "torch.Tensor", past: Past) -> "torch.Tensor":
    """Run a WanResidualBlock on ``frame`` and add the frame to its convolutions' past."""
    inner = convolved(block.conv1, activated(block.norm1, frame), past)
    inner = convolved(block.conv2, activated(block.norm2, inner), past)
    if block.in_dim != block.out_dim:
        frame = convolved(block.conv_shortcut, frame, past)
    return inner.add_(frame)


def activated(norm: Any, frame: "torch.Tensor") -> "torch.Tensor":
    """WanRMS_norm, computed in fp32 or wider, then SiLU. Returns a new tensor."""
    import torch
    from torch.nn import functional

    wide = frame.to(torch.promote_types(frame.dtype, torch.float32))
    normal = functional.normalize(wide, dim=1).to(frame.dtype)
    normal = normal.mul_(norm.scale).mul_(norm.gamma.view(1, -1, 1, 1))
    return functional.silu(normal, inplace=True)


def convolved(layer: Any, frame: "torch.Tensor", past: Past) -> "torch.Tensor":
    """Run a causal convolution on ``frame`` and add the frame to the layer's past.

    Before the first frame, the convolution pads with zeros: the taps that see them are left out.
    """
    import torch

    reach = layer.kernel_size[0]
    frames = (*past.get(layer, ()), frame)
    if reach > 1:
        past[layer] = frames[1 - reach :]
    stacked = torch.cat(frames, dim=1)
    del frames, frame  # free the oldest frame
    return product(layer, stacked)


def product(layer: Any, stacked: "torch.Tensor") -> "torch.Tensor":
    """Apply the layer's last taps over time, one per frame; the frames' channels are stacked."""
    from torch.nn import functional

    _lay_out(layer)
    taps = stacked.shape[1] // layer.in_channels
    kernel = layer.weight[:, :, layer.kernel_size[0] - taps :].transpose(1, 2).flatten(1, 2)
    # Left, right, top, bottom. The past stands in for the padding in time.
    left, _, top, _ = layer._padding[:4]
    return functional.conv2d(stacked, kernel, layer.bias, padding=(top, left))


def channels_last(frame: "torch.Tensor") -> "torch.Tensor":
    """Store a pixel's channels side by side in memory. All functions here keep that order."""
    import torch

    return frame.contiguous(memory_format=torch.channels_last)


def _lay_out(layer: Any) -> None:
    """Store weights [out, in, time, h, w] in memory as [out, h, w, time, in].

    A second call changes nothing. ``product`` then reads them as [out, time * in, h, w], channels
    last, without a copy. Values and shape stay. (``safetensors.save_file`` needs contiguous ones.)
    """
    ordered = layer.weight.data.permute(0, 3, 4, 2, 1).contiguous()
    layer.weight.data = ordered.permute(0, 4, 3, 1, 2)
