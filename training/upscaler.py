"""The tiny upscaler: `PYTHONPATH=src python -m training.upscaler weights/tiny`.

Nothing is trained. Its convolutions pass the three colours through the middle of their kernels, so
that it enlarges like nearest neighbour. Every weight has a small offset, so that all weights affect
the result.
"""

import argparse
from pathlib import Path

import torch

from wan_worker.catalog.components import UPSCALER
from wan_worker.weights.real_esrgan import Shape, save

SHAPE = Shape(num_feat=6, num_block=1, num_grow_ch=3)
OFF = 0.003


def make(shape: Shape = SHAPE, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make its tensors, by name."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(size, generator=generator) * OFF for name, size in shape.tensors().items()
    }
    for name in ("conv_first", "conv_up1", "conv_up2", "conv_hr", "conv_last"):
        for colour in range(3):
            tensors[f"{name}.weight"][colour, colour, 1, 1] += 1
    return tensors


def write(weights: Path) -> None:
    folder = weights / UPSCALER.name
    folder.mkdir(parents=True, exist_ok=True)
    save(make(), SHAPE, folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    write(parser.parse_args().weights)
