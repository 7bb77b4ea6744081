"""A LoRA that teaches the tiny Wan a colour it has never seen: `python -m training.lora`.

    PYTHONPATH=src python -m training.lora --weights weights/tiny --out weights/tiny-loras

Text to video only. The text encoder, the VAE and the transformer stay as they are stored. Low-rank
layers are trained on cross-attention and the feed-forward layers. The clips show cyan shapes, and
also the colours that the model knows, so that nothing else changes. The word is outside the
tokenizer's vocabulary: the model reads it letter by letter. Everything is drawn from seeds, in five
minutes on one core. The result is one safetensors file in diffusers' own layout, under 150 KB.
Run it again when the text-to-video transformer or the text encoder changes.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from transformers import T5TokenizerFast, UMT5EncoderModel

from . import data, text
from .optimise import Progress, trapezoid
from .transformer import PaddedAttention, draw_times, normalise
from .vae import encode, normal, to_video

WORD, RGB = "cyan", (20, 210, 220)
RANK = 4
TARGETS = (
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ffn.net.0.proj",
    "ffn.net.2",
)
STEPS, LEARNING_RATE = 1800, 3e-3
TAUGHT = 0.6  # share of clips in the new colour; the others hold the old ones in place
NO_CAPTION = 0.1
# (height, width, frames, clips drawn, clips a step, share of steps)
BUCKETS = ((64, 96, 17, 160, 6, 0.3), (64, 64, 9, 400, 12, 0.5), (64, 64, 1, 200, 24, 0.2))


def paint(scene: data.Scene, height: int, width: int, frames: int) -> NDArray[np.uint8]:
    """`data.draw`, with WORD as the shape's colour. The palette does not have this colour."""
    if scene.colour != WORD:
        return data.draw(scene, height, width, frames)
    mask = data.draw(replace(scene, colour="white", background="black"), height, width, frames)
    low, high = data.COLOURS["black"][0], data.COLOURS["white"][0]
    inside = (mask.astype(np.float64) - low) / (high - low)
    back, front = np.array(data.COLOURS[scene.background]), np.array(RGB)
    picture: NDArray[np.uint8] = np.rint(back + (front - back) * inside).astype(np.uint8)
    return picture


@torch.no_grad()
def clips(vae: AutoencoderKLWan, seed: int) -> list[tuple[Tensor, list[tuple[str, str, str, str]]]]:
    """Latents [N, 16, T, h, w] and the content of each clip, for every bucket."""
    trained, _ = data.split()
    result = []
    for number, (height, width, frames, count, _, _) in enumerate(BUCKETS):
        rng = np.random.default_rng([seed, number, 31])
        latents, shown = [], []
        for _ in range(0, count, 20):
            some = [trained[int(i)] for i in rng.integers(len(trained), size=20)]
            some = [(WORD, *c[1:]) if rng.random() < TAUGHT else c for c in some]
            scenes = [data.place(rng, c, height, width, frames, data.WANDER) for c in some]
            drawn = np.stack([paint(scene, height, width, frames) for scene in scenes])
            latents.append(normalise(vae, encode(vae, to_video(drawn))[0]))
            shown += some
        result.append((torch.cat(latents), shown))
    return result


def train(weights: Path, steps: int, seed: int) -> dict[str, Tensor]:
    """Train the low-rank layers. They are in bf16, by their name in the transformer."""
    torch.manual_seed(seed)  # peft draws the first factors
    tokenizer = T5TokenizerFast.from_pretrained(weights / "umt5-tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(weights / "umt5-xxl", dtype=torch.float32)
    vae = AutoencoderKLWan.from_pretrained(weights / "wan2.1-vae", torch_dtype=torch.float32)
    model = WanTransformer3DModel.from_pretrained(
        weights / "wan2.1-t2v-1.3b.transformer", torch_dtype=torch.float32
    )
    seen = clips(vae.eval(), seed)
    encoder.eval().requires_grad_(False)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
    attention = PaddedAttention()
    model.set_attn_processor(attention)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    shares = np.cumsum([bucket[5] for bucket in BUCKETS])
    progress = Progress("lora", steps, every=10.0)
    for step in range(steps):
        rng = np.random.default_rng([seed, step, 37])
        number = int(np.searchsorted(shares, rng.random() * shares[-1]))
        latents, shown = seen[number]
        rows = rng.integers(len(latents), size=BUCKETS[number][4])
        single = BUCKETS[number][2] == 1
        captions = [
            data.no_caption(rng)
            if rng.random() < NO_CAPTION
            else data.any_caption(rng, shown[int(row)], single)
            for row in rows
        ]
        ids, mask = text.tokenise(tokenizer, captions)
        with torch.no_grad():
            context, attention.bias = text.embed(encoder, ids, mask)
        clean = latents[torch.from_numpy(rows)]
        times, noise = draw_times(rng, len(clean)), normal(rng, clean)
        level = times.view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * clean + level * noise
        answer = model(noisy, times * 1000, context, return_dict=False)[0]
        loss = (answer - (noise - clean)).square().mean()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(learned, 1.0))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * trapezoid(step, steps)
        optimiser.step()
        optimiser.zero_grad()
        progress(step, loss=loss.item(), norm=norm)
    state = get_peft_model_state_dict(model, adapter_name="default")
    return {name: value.detach().to(torch.bfloat16) for name, value in state.items()}


def main() -> None:
    """Read the options and start."""
    parser = argparse.ArgumentParser(
        prog="python -m training.lora",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, default=Path("weights/tiny"), help="the tiny set")
    parser.add_argument("--out", type=Path, default=Path("weights/tiny-loras"), help="the result")
    parser.add_argument("--seed", type=int, default=0, help="of first weights, data and noise")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    layers = train(options.weights, options.steps, options.seed)
    WanPipeline.save_lora_weights(options.out, layers, weight_name=f"{WORD}.safetensors")
    file = options.out / f"{WORD}.safetensors"
    file.chmod(0o644)  # safetensors writes for the owner only
    print(f"{file}: {file.stat().st_size} bytes, {len(layers)} tensors")


if __name__ == "__main__":
    main()
