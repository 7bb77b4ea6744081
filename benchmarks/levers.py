"""Ways to compute the same function, against diffusers' way: on a CPU, at full width.

    python benchmarks/levers.py [--json benchmarks/levers.json]

Two blocks of the 1.3B in fp32 with random weights, one thread, the tokens of an 832x480 image and
of one a quarter as large; and VAEs' decoders and encoder, on small frames. Ways alternate; a figure
is the ratio of medians, of the processor's seconds and not of the clock's: others may be at work.
A CPU says whether a way computes less; what it saves on a GPU, where launching kernels and
filling the card decide, is gpu_levers.py's to show.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds

BLOCKS = 2
HEADS, FFN = 12, 8960
SIZES = {"832x480": (60, 104), "416x240": (30, 52)}
"""Latents, height and width, by the image's size."""


def block_stack(heads: int = HEADS, ffn: int = FFN) -> Any:
    """A transformer of the 1.3B's width with few blocks."""
    import torch
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    made = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=128, ffn_dim=ffn, num_layers=BLOCKS
    )
    return made.eval().requires_grad_(False)


def measure(model: Any, latents: tuple[int, int], count: int) -> dict[str, Any]:
    """Both branches of guidance: in two calls, in one, and in two with fused projections."""
    import torch

    fused = copy.deepcopy(model)
    fused.fuse_qkv_projections()
    sample = torch.randn(1, 16, 1, *latents)
    texts = torch.randn(2, 512, model.config.text_dim)
    time_ = torch.full((1,), 500.0)

    def forward(module: Any, rows: int, text: Any) -> Any:
        return module(
            sample.expand(rows, -1, -1, -1, -1),
            timestep=time_.expand(rows),
            encoder_hidden_states=text,
            return_dict=False,
        )[0]

    def in_turn(module: Any) -> Any:
        return torch.cat([forward(module, 1, text[None]) for text in texts])

    ways = {
        "stock": lambda: in_turn(model),
        "together": lambda: forward(model, 2, texts),
        "fused": lambda: in_turn(fused),
    }
    return {"tokens": latents[0] * latents[1] // 4} | compare(ways, count)


def compare(ways: dict[str, Callable[[], Any]], count: int) -> dict[str, Any]:
    """Processor's seconds and results of each way, against those of ``stock``."""
    import torch

    made: dict[str, Any] = {}

    def clocked(name: str, run: Callable[[], Any]) -> Callable[[], rounds.Seconds]:
        def once() -> rounds.Seconds:
            started = time.process_time()
            with torch.no_grad():
                made[name] = run()
            return {"seconds": time.process_time() - started}

        return once

    timed = {name: clocked(name, run) for name, run in ways.items()}
    found = {way: rounds.medians(all_)["seconds"] for way, all_ in
             rounds.alternate(timed, count).items()}  # fmt: skip
    scale = made["stock"].abs().max()
    others = [way for way in ways if way != "stock"]
    return {
        "seconds": found,
        "to_stock": {way: round(found[way] / found["stock"], 3) for way in others},
        "largest_difference": {
            way: float(f"{float((made[way] - made['stock']).abs().max() / scale):.1e}")
            for way in others
        },
        "equal_to_the_bit": {way: torch.equal(made[way], made["stock"]) for way in others},
    }


def decoders(count: int, toy: bool) -> dict[str, Any]:
    """The third latent frame of a clip, as are all that follow, through a VAE's decoder.

    By diffusers' forward with its cache of features, on weights as it lays them out, and by ours.
    """
    import torch
    from benchmarks.memory_model import vae_of
    from diffusers import AutoencoderKLWan

    from wan_worker.catalog.models import MODELS
    from wan_worker.vae import decoder

    def measured(vae: Any, latents: tuple[int, int]) -> dict[str, Any]:
        theirs = copy.deepcopy(vae.decoder)
        z = torch.randn(1, vae.config.z_dim, 3, *latents)
        features: list[Any] = [None] * len(list(theirs.modules()))
        past: decoder.Past = {}

        def stock(index: int, features: list[Any]) -> Any:
            given = z[:, :, index : index + 1]
            first = index == 0
            return theirs(given, feat_cache=features, feat_idx=[0], first_chunk=first)

        def ours(index: int, past: decoder.Past) -> Any:
            return torch.stack(list(decoder.pictures(vae.decoder, z[:, :, index], past)), dim=2)

        with torch.no_grad():
            for index in (0, 1):
                stock(index, features)
                ours(index, past)
        ways = {"stock": lambda: stock(2, features.copy()), "ours": lambda: ours(2, past.copy())}
        return {"latents": list(latents)} | compare(ways, count)

    if toy:
        return {"toy": measured(AutoencoderKLWan(base_dim=8, z_dim=4).eval(), (4, 6))}
    return {
        "Wan 2.1's": measured(vae_of(MODELS["wan2.1-t2v-1.3b"]).eval(), (20, 26)),
        "Wan 2.2's (5B)": measured(vae_of(MODELS["wan2.2-ti2v-5b"]).eval(), (10, 14)),
    }


def encoders(count: int, toy: bool) -> list[dict[str, Any]]:
    """What image-to-video conditions on, and a moving clip: by ``vae._encode`` and by ours."""
    import torch
    from diffusers import AutoencoderKLWan

    from wan_worker.vae import encoder

    vae = (AutoencoderKLWan(base_dim=8, z_dim=4) if toy else AutoencoderKLWan()).eval()
    theirs = copy.deepcopy(vae)

    def measured(said: str, clip: Any) -> dict[str, Any]:
        ways = {"stock": lambda: theirs._encode(clip), "ours": lambda: encoder.moments(vae, clip)}
        about = {"clip": said, "frames": clip.shape[2], "latents": [6, 8]}
        return about | compare(ways, count)

    still = torch.zeros(1, 3, 81, 48, 64)
    still[:, :, 0].uniform_(-1, 1)
    moving = torch.rand(1, 3, 33, 48, 64) * 2 - 1
    return [measured("a picture and grey", still), measured("all different", moving)]


def between_products(heads: int, ffn: int, tokens: int = 32_760) -> dict[str, float]:
    """What a block of the real class does beside its matrix products and attention, on a GPU.

    Bytes read and written for each token and channel, in bf16 with norms in fp32, and operations
    (a kernel each), products and attention included. Norms over a row are one kernel there.
    """
    from unittest.mock import patch

    import torch
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    free = ("view", "permute", "slice", "split", "unbind", "t", "empty_like")
    dim, found = heads * 128, {"bytes": 0, "operations": 2}  # both attentions

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made, name = func(*args, **(kwargs or {})), func.__name__.split(".")[0]
            if name not in free:
                found["operations"] += 1
                moved = tree_leaves((args[name == "copy_" :], kwargs, made))
                moved = [one for one in moved if isinstance(one, torch.Tensor)]
                if name != "addmm":
                    found["bytes"] += sum(one.nbytes for one in moved)
            return made

    with torch.device("meta"):
        block = WanTransformerBlock(dim, ffn, heads, cross_attn_norm=True).to(torch.bfloat16)
        for norm in (block.norm1, block.norm2, block.norm3):
            norm.float()
        block.scale_shift_table.data = block.scale_shift_table.data.float()
        given = [torch.empty(1, length, dim, dtype=torch.bfloat16) for length in (tokens, 512, 6)]
        rotary = (torch.empty(1, tokens, 1, 128), torch.empty(1, tokens, 1, 128))
    functional = torch.nn.functional
    with (
        patch.object(functional, "scaled_dot_product_attention", lambda query, *_, **__:
                     torch.empty_like(query)),
        patch.object(functional, "rms_norm", lambda given, *_, **__: torch.neg(given)),
        torch.no_grad(),
        Count(),
    ):  # fmt: skip
        block(*given, rotary)
    found["bytes"] = round(found["bytes"] / tokens / dim)
    return dict(found)


def extra_weights(model: Any) -> float:
    """What fused projections add to the weights, as a share: diffusers keeps the originals."""
    fused = copy.deepcopy(model)
    fused.fuse_qkv_projections()

    def bytes_of(module: Any) -> int:
        return sum(weight.nbytes for weight in module.blocks.parameters())

    return bytes_of(fused) / bytes_of(model) - 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="toy width, in seconds")
    options = parser.parse_args(arguments)
    if options.toy and options.json is None:
        parser.error("--toy needs --json: toy figures do not belong beside measured ones")
    import torch

    torch.set_num_threads(1)
    model = block_stack(2, 512) if options.toy else block_stack()
    sizes = {"64x48": (6, 8)} if options.toy else SIZES
    report = {
        "what": f"{BLOCKS} blocks of the 1.3B's width, fp32, one thread, both branches of guidance",
        "toy": options.toy,
        "rounds": options.rounds,
        "between_products": {
            "1.3B": between_products(HEADS, FFN),
            "14B": between_products(40, 13824),
        },
        "extra_weights_when_fused": round(extra_weights(model), 3),
        "decoders": decoders(options.rounds, options.toy),
        "encoders": encoders(options.rounds, options.toy),
        "images": {size: measure(model, found, options.rounds) for size, found in sizes.items()},
    }
    path = options.json or Path(__file__).with_suffix(".json")
    rounds.write(path, rounds.about() | report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
