"""What must a GPU compute at least, and how long does that take? Arithmetic, no measurement.

    python benchmarks/roofline.py [--json benchmarks/roofline.json]

A transformer's forward is counted by the formula that the worker estimates with
(wan_worker.planning.flops), the decoder by torch's counter on the real class at full size under
FakeTensorMode; peaks are the makers' (wan_worker.machine.peak_flops).
"""

import argparse
import sys
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds

from wan_worker.catalog.models import MODELS, Model
from wan_worker.machine.peak_flops import PEAKS
from wan_worker.planning.activations import shape_of
from wan_worker.planning.flops import forward_flops, picture_tokens
from wan_worker.timing.work import tokens

SHARE: Final = 0.70
"""Of the peak, that the targets suppose: what good kernels reach at these sizes."""


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
        flops = forward_flops(shape_of(model), count, picture_tokens(model))
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
