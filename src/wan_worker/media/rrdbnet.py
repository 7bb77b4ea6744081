"""The network of Real-ESRGAN x4plus (RRDBNet): a picture four times as wide and high.

Residual-in-residual dense blocks work at the picture's own size. Then the size is doubled twice, by
nearest neighbour and a convolution (Wang et al., ESRGAN, arXiv:1809.00219, section 3.1). There is
no module class: one short function computes it from named tensors.
Not covered: the parameters and their file (weights.real_esrgan), tiles and frames (upscale).
"""

from typing import TYPE_CHECKING, Final

from wan_worker.weights.real_esrgan import Parameters

if TYPE_CHECKING:
    import torch

_RESIDUAL: Final = 0.2
_SLOPE: Final = 0.2
"""Residual scaling and the leaky ReLU's slope, constants of the published network."""


def forward(parameters: Parameters, picture: "torch.Tensor") -> "torch.Tensor":
    """RGB in 0..1, [n, 3, h, w], to [n, 3, 4h, 4w]; not clamped."""
    import torch
    from torch.nn.functional import conv2d, interpolate, leaky_relu

    def conv(name: str, x: "torch.Tensor") -> "torch.Tensor":
        return conv2d(
            x, parameters.tensors[f"{name}.weight"], parameters.tensors[f"{name}.bias"], padding=1
        )

    def active(name: str, x: "torch.Tensor") -> "torch.Tensor":
        return leaky_relu(conv(name, x), _SLOPE, inplace=True)

    def dense(name: str, x: "torch.Tensor") -> "torch.Tensor":
        grown = x
        for index in range(1, 5):
            grown = torch.cat((grown, active(f"{name}.conv{index}", grown)), 1)
        return x + _RESIDUAL * conv(f"{name}.conv5", grown)

    first = x = conv("conv_first", picture)
    for block in range(parameters.shape.num_block):
        before = x
        for part in (1, 2, 3):
            x = dense(f"body.{block}.rdb{part}", x)
        x = before + _RESIDUAL * x
    x = first + conv("conv_body", x)
    for name in ("conv_up1", "conv_up2"):
        x = active(name, interpolate(x, scale_factor=2, mode="nearest"))
    return conv("conv_last", active("conv_hr", x))
