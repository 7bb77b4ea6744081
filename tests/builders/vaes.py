"""Both of Wan's VAEs, made small."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan

WAN_2_1: dict[str, Any] = {"base_dim": 8, "z_dim": 4}
WAN_2_2 = WAN_2_1 | {
    "decoder_base_dim": 12,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "is_residual": True,
    "scale_factor_spatial": 16,
}
"""The published ones' structure: four levels, two of which double the frames; few channels."""


def small(config: dict[str, Any]) -> Any:
    """A VAE of random weights, of which none is zero or one."""
    torch.manual_seed(0)
    z_dim = config["z_dim"]
    made = AutoencoderKLWan(**config, latents_mean=[0.0] * z_dim, latents_std=[1.0] * z_dim).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "gamma" in name or "bias" in name:
                weight.uniform_(-1, 1)
    return made
