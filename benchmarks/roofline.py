"""What must a GPU compute at least, and how long does that take? Arithmetic, no measurement.

    python benchmarks/roofline.py [--json benchmarks/roofline.json]

A transformer's forward is counted by formula (the tests hold it against torch's own counter), the
decoder by torch's counter on the real class at full size under FakeTensorMode. Peaks are the
makers' figures for dense bf16 matrix products with fp32 accumulation, as TFLOP/s.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds  # noqa: E402

from wan_worker.activations import SHAPES, Shape  # noqa: E402
from wan_worker.catalog import MAX_PROMPT_TOKENS, MODELS, Model  # noqa: E402

PEAKS: Final = {
    "B200": (2250.0, "NVIDIA DGX B200 datasheet: a quarter of its FP8 figure with sparsity, each"),
    "H200": (989.4, "NVIDIA H200 datasheet, SXM, half of the figure with sparsity"),
    "H100 NVL": (835.5, "NVIDIA H100 datasheet, NVL, half of the figure with sparsity"),
    "H100 PCIe": (756.5, "NVIDIA H100 PCIe product brief, half of the figure with sparsity"),
    "H100": (989.4, "NVIDIA H100 datasheet, SXM, half of the figure with sparsity"),
    "A100": (312.0, "NVIDIA A100 datasheet"),
    "L40S": (362.1, "NVIDIA L40S datasheet"),
    "L40": (181.1, "NVIDIA L40 datasheet"),
    "RTX 6000 Ada": (364.2, "NVIDIA RTX 6000 Ada datasheet, half of the figure with sparsity"),
    "A40": (149.7, "NVIDIA A40 datasheet"),
    "RTX A6000": (154.8, "NVIDIA RTX A6000 datasheet, half of the figure with sparsity"),
    "RTX 5090": (209.5, "NVIDIA RTX Blackwell architecture whitepaper"),
    "RTX 4090": (165.2, "NVIDIA Ada architecture whitepaper"),
    "RTX 3090": (71.0, "NVIDIA GA102 architecture whitepaper"),
    "L4": (121.0, "NVIDIA L4 datasheet, half of the figure with sparsity"),
}
"""Peak and its source by what nvidia-smi's name holds; of several that fit, the first."""

SHARE: Final = 0.70
"""Of the peak, that the targets suppose: what good kernels reach at these sizes."""


def peak_of(name: str) -> tuple[float, str] | None:
    """TFLOP/s and its source of a GPU by nvidia-smi's name for it; None: not in the table."""
    words = set(name.replace("-", " ").split())
    fitting = (found for key, found in PEAKS.items() if set(key.split()) <= words)
    return next(fitting, None)


def tokens(model: Model, size: tuple[int, int], frames: int) -> int:
    """Of a clip: one for each 2x2 latents of each latent frame."""
    per_frame = (size[0] // model.grid) * (size[1] // model.grid)
    return ((frames - 1) // model.temporal_stride + 1) * per_frame


def forward_flops(
    shape: Shape, count: int, picture_tokens: int = 0, text_tokens: int = MAX_PROMPT_TOKENS
) -> int:
    """Of a transformer's blocks for one branch of guidance, a multiply and an add counted as two.

    A block multiplies each token by the four square matrices of self-attention, by two of
    cross-attention (the other two are for the text's tokens) and by the feed-forward's two, and
    in self-attention each token meets each other twice: once for the score, once for the sum.
    VACE's blocks are blocks with a projection before the first and one after each.

    Args:
        count: tokens of the clip.
        picture_tokens: of CLIP's, which have keys and values of their own.
    """
    dim = shape.dim
    read = text_tokens + picture_tokens
    linear = 2 * count * (6 * dim**2 + 2 * dim * shape.ffn) + 2 * read * 2 * dim**2
    attention = 4 * count * count * dim + 4 * count * read * dim
    vace = shape.vace_layers
    projections = 2 * count * dim**2 * (vace + 1 if vace else 0)
    return (shape.layers + vace) * (linear + attention) + projections


def decode_flops(model: Model, size: tuple[int, int], frames: int) -> int:
    """Of the VAE's decoder: the first latent frame, the second, and the others like the third."""
    import torch
    from benchmarks.memory_model import fake, vae_of
    from torch.utils.flop_counter import FlopCounterMode

    found = []
    with fake(lambda: vae_of(model), torch.float32) as vae:
        stride = vae.config.scale_factor_spatial
        features = [None] * 100
        for index in range(3):
            z = torch.empty(1, vae.config.z_dim, 1, size[1] // stride, size[0] // stride)
            with FlopCounterMode(display=False) as counter:
                given = {"feat_cache": features, "feat_idx": [0], "first_chunk": index == 0}
                vae.decoder(vae.post_quant_conv(z), **given)
            found.append(counter.get_total_flops())
    return int(found[0] + found[1] + found[2] * ((frames - 1) // 4 - 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = []
    for model in MODELS.values():
        size, frames = model.default_size, model.native_frames
        count = tokens(model, size, frames)
        clip = any(c.role == "image_encoder" for c in model.components)
        pictures = (257 * (2 if model.last_image == "required" else 1)) if clip else 0
        flops = forward_flops(SHAPES[model.id], count, pictures)
        seconds = flops / 1e12 / (SHARE * PEAKS["H200"][0])
        rows.append({
            "model": model.id, "size": f"{size[0]}x{size[1]}", "frames": frames, "tokens": count,
            "forward_tflop": round(flops / 1e12, 1),
            "decode_tflop": round(decode_flops(model, size, frames) / 1e12, 1),
            "forward_s": round(seconds, 3),
            "cfg_step_s": round(2 * seconds, 3),
        })  # fmt: skip
    rounds.write(options.json, {
        "what": "floating point operations at each model's native clip",
        "seconds": f"at {SHARE:.0%} of an H100's or H200's {PEAKS['H200'][0]} TFLOP/s",
        "models": rows,
        "peaks": {n: {"tflops": peak, "source": source} for n, (peak, source) in PEAKS.items()},
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
