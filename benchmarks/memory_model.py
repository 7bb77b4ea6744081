"""Count the tensors that live at once in each stage of a job, at full size, on the real classes.

    python benchmarks/memory_model.py [--json benchmarks/memory_model.json]

The real classes run under torch's FakeTensorMode: every tensor has its shape, type and lifetime,
and no memory behind it, so that a 14B model at 1280x720 takes seconds on a laptop. A dispatch mode
adds up the storages that are alive after each operation; the peak, without the weights, is what a
stage needs beside them. It is the source of the constants in wan_worker.planning.activations, and
the tests hold the formulas against the JSON. Each stage runs as the worker runs it: the transformer
for one branch of guidance with three of its layers (they are alike), VACE's with all; the decoder
for three latent frames with what it remembers of them; the encoder over the whole conditioning
video.

Not counted, since no kernel runs: cuBLAS and cuDNN workspaces, what the allocator rounds up and
can't reuse, the CUDA context. Not yet measured on a GPU.
"""

import argparse
import json
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from wan_worker.catalog.components import VAE_2_2
from wan_worker.catalog.models import MODELS, Model
from wan_worker.planning.activations import TILE, TILE_STRIDE


class Live(TorchDispatchMode):
    """Adds up the storages that operations have made and nobody has let go of."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        weights = (*module.parameters(), *module.buffers())
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # "is every pixel finite?" has no answer where there are no values
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@contextmanager
def fake(module: Callable[[], torch.nn.Module], dtype: torch.dtype) -> Iterator[torch.nn.Module]:
    """A module of the real size whose tensors take no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        made = module().eval()
        kept = set(getattr(made, "_keep_in_fp32_modules", None) or ())
        for name, weight in list(made.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            wide = kept & set(name.split("."))
            typed = torch.nn.Parameter(weight.to(torch.float32 if wide else dtype), False)
            setattr(made.get_submodule(owner), leaf, typed)
        yield made


def denoise(model: Model, size: tuple[int, int], frames: int) -> int:
    """One forward of the transformer."""
    import diffusers

    part = next(c for c in model.components if c.role == "transformer")
    cls = getattr(diffusers, part.class_name.removeprefix("diffusers:"))
    shape = model.config.arguments()
    if "vace_layers" not in shape:
        shape["num_layers"] = 3
    stride = model.grid // 2
    grid = ((frames - 1) // 4 + 1, size[1] // stride, size[0] // stride)
    with fake(lambda: cls(**shape), torch.bfloat16) as transformer:
        half = {"dtype": torch.bfloat16}
        given: dict[str, Any] = {"encoder_hidden_states": torch.empty(1, 512, 4096, **half)}
        if shape["image_dim"]:
            pictures = 2 if shape["pos_embed_seq_len"] else 1
            given["encoder_hidden_states_image"] = torch.empty(pictures, 257, 1280, **half)
        if "vace_layers" in shape:
            given["control_hidden_states"] = torch.empty(1, 96, *grid, **half)
        tokens = grid[0] * grid[1] * grid[2] // 4
        given["timestep"] = torch.empty((1, tokens) if model.expand_timesteps else (1,))
        latents = torch.empty(1, shape["in_channels"], *grid, **half)
        with Live(transformer) as live:
            # VACE's call holds its clip to the end.
            held = torch.empty(1, 3, frames, size[1], size[0]) if "vace_layers" in shape else None
            transformer(latents, return_dict=False, **given)
            del held
    return live.peak


def vae_of(model: Model) -> torch.nn.Module:
    from diffusers import AutoencoderKLWan

    if VAE_2_2 not in model.components:
        return AutoencoderKLWan()
    return AutoencoderKLWan(
        base_dim=160,
        decoder_base_dim=256,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )


def decode(model: Model, size: tuple[int, int], how: str) -> int:
    """Three latent frames: the first has no past, the second fills the cache, the third is as all
    that follow."""
    from wan_worker.pipelines import generate

    if how == "tiled":
        size = (min(size[0], TILE), min(size[1], TILE))
    dtype = torch.bfloat16 if how == "bf16" else torch.float32
    with fake(lambda: vae_of(model), dtype) as vae:
        stride = vae.config.scale_factor_spatial
        latents = torch.empty(1, vae.config.z_dim, 3, size[1] // stride, size[0] // stride)
        parts = (vae.post_quant_conv, vae.decoder)
        for _ in range(2):  # the first time lays the weights out anew
            with Live(vae) as live:
                for _ in generate._decode(vae, parts, latents):
                    pass
    return live.peak


def encode(model: Model, size: tuple[int, int], frames: int, tiled: bool) -> int:
    """The conditioning video: VACE's call holds the video, its mask and both halves meanwhile.

    As if no two frames were alike: then most is remembered.
    """
    from wan_worker.vae import encoder

    def different(clip: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from (encoder.channels_last(frame) for frame in clip.unbind(dim=2))

    frames = 1 if model.expand_timesteps else frames
    with (
        fake(lambda: vae_of(model), torch.float32) as vae,
        patch.object(encoder, "_frames", different),
        encoder.frame_by_frame(vae),
    ):
        if tiled:
            vae.enable_tiling(TILE, TILE, TILE_STRIDE, TILE_STRIDE)
        vae.encode(torch.empty(1, 3, min(frames, 5), 512, 512))  # lays the weights out anew
        with Live(vae) as live:
            held = [torch.empty(1, 3, frames, size[1], size[0])]
            if model.image_pipeline == "WanVACEPipeline":
                held += [torch.empty_like(held[0]) for _ in range(4)]
            vae.encode(held[0])
    return live.peak


def prompt() -> int:
    """umT5-XXL over 512 tokens."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        d_model=4096,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        d_kv=64,
        vocab_size=256384,
        feed_forward_proj="gated-gelu",
    )
    with fake(lambda: UMT5EncoderModel(config), torch.bfloat16) as encoder:
        tokens = torch.zeros(1, 512, dtype=torch.long)
        with Live(encoder) as live:
            encoder(tokens, torch.ones_like(tokens))
    return live.peak


def stages() -> Iterator[dict[str, Any]]:
    """Every model at its native clip and at its largest size."""
    yield {"model": "wan2.1-t2v-1.3b", "stage": "prompt", "size": "832x480", "frames": 81} | {
        "bytes": prompt()
    }
    for model in MODELS.values():
        sizes = [model.default_size]
        if model.max_pixels > 1280 * 720:
            sizes.append((1920, 1088))
        elif model.default_size == (832, 480) and model.max_pixels >= 1280 * 720:
            sizes.append((1280, 720))
        for size in sizes:
            frames = model.native_frames
            base = {"model": model.id, "size": f"{size[0]}x{size[1]}", "frames": frames}
            yield base | {"stage": "denoise", "bytes": denoise(model, size, frames)}
            for how in ("fp32", "bf16", "tiled"):
                yield base | {"stage": "decode", "decode": how, "bytes": decode(model, size, how)}
            if model.image != "none":
                for tiled in (False, True)[: 1 if model.expand_timesteps else 2]:
                    found = encode(model, size, frames, tiled)
                    yield base | {"stage": "picture", "tiled": tiled, "bytes": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write what was counted")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found = []
    for entry in stages():
        found.append(entry)
        how = entry.get("decode") or ("tiled" if entry.get("tiled") else "")
        print(
            f"{entry['model']:22} {entry['size']:>9} {entry['frames']:4} {entry['stage']:8}"
            f"{how:6} {entry['bytes'] / 1e9:6.2f} GB",
            flush=True,
        )
    if options.json:
        about = {"torch": torch.__version__, "not_counted": "workspaces, fragments, CUDA context"}
        options.json.write_text(json.dumps(about | {"stages": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
