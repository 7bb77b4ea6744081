"""Trains the two WanTransformer3DModels: text to video with the text encoder, then image to video.

Flow matching as in Wan: x = (1 - s) latents + s noise, and the model predicts noise - latents at
time 1000 s. Latents are normalised as in the pipelines. The image-to-video model starts as a copy
of the text-to-video one, with its new inputs at zero. WanImageToVideoPipeline gives it a mask, the
latents of the first frame followed by gray frames, and the vision tower's second last layer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5TokenizerFast,
    UMT5EncoderModel,
)

from . import data, text
from .optimise import Optimiser, Progress, device, load_checkpoint, save_checkpoint, trapezoid
from .vae import encode, normal, to_video

# (height, width, frames, clips drawn, clips a step, share of steps)
BUCKETS = (
    (64, 96, 17, 1600, 16, 0.38),
    (96, 64, 17, 500, 16, 0.10),
    (64, 64, 9, 1400, 24, 0.22),
    (64, 96, 9, 700, 24, 0.12),
    (96, 64, 9, 400, 24, 0.06),
    (64, 64, 1, 600, 40, 0.06),
    (64, 96, 1, 600, 40, 0.06),
)
LEARNING_RATE = {"t2v": 2e-3, "i2v": 1.5e-3}
REFINE_RATE = 1e-3
NO_CAPTION = 0.1
SHIFT = 3.0
GIVEN_FRAME = 3.0  # weight of the latent frames that hold a given image
LAST_ALONE, BOTH_ENDS = 0.15, 0.3  # shares of the clips; of the others the first frame is given
EMA = 0.995


@dataclass(frozen=True)
class Clips:
    """Cached clips of one size. latents: [N, 16, T, h, w], normalised; combinations: N.

    condition: [N, 20, T, h, w], mask and given frames' latents, or None; image: [N, P, D], the
    vision tower's output for the first frame, or None.
    """

    latents: Tensor
    combinations: list[tuple[str, str, str, str]]
    condition: Tensor | None
    image: Tensor | None


class PaddedAttention(WanAttnProcessor):  # type: ignore[misc]
    """WanAttnProcessor for the context of `text.embed`. One instance serves all blocks.

    Cross-attention reads `bias`, set before each forward; its length tells the text tokens (last)
    from the image tokens (first). Self-attention is the parent's.
    """

    bias: Tensor

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if encoder_hidden_states is None:
            answer: Tensor = super().__call__(attn, hidden_states, None, attention_mask, rotary_emb)
            return answer

        def heads(x: Tensor) -> Tensor:
            split: Tensor = x.unflatten(2, (attn.heads, -1))  # type: ignore[no-untyped-call]
            return split.transpose(1, 2)

        words = encoder_hidden_states[:, -self.bias.shape[-1] :]
        query = heads(attn.norm_q(attn.to_q(hidden_states)))
        key, value = heads(attn.norm_k(attn.to_k(words))), heads(attn.to_v(words))
        seen = F.scaled_dot_product_attention(query, key, value, self.bias.to(query.dtype))
        if attn.add_k_proj is not None:
            image = encoder_hidden_states[:, : -self.bias.shape[-1]]
            key = heads(attn.norm_added_k(attn.add_k_proj(image)))
            seen = seen + F.scaled_dot_product_attention(query, key, heads(attn.add_v_proj(image)))
        out: Tensor = attn.to_out[0](seen.transpose(1, 2).flatten(2))
        return out


def build(image: bool) -> WanTransformer3DModel:
    """The untrained model. Its first output is zero."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=36 if image else 16,
        out_channels=16,
        text_dim=96,
        freq_dim=128,
        ffn_dim=384,
        num_layers=6,
        image_dim=32 if image else None,
        added_kv_proj_dim=128 if image else None,
        rope_max_seq_len=1024,
    )
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def build_tower() -> tuple[CLIPVisionModel, CLIPImageProcessorPil]:
    """A random vision tower, never trained: 17 tokens of width 32 from 32x32 pixels."""
    torch.manual_seed(0)
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
    )
    size = {"height": 32, "width": 32}
    return tower.eval(), CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)


def widen(small: WanTransformer3DModel) -> WanTransformer3DModel:
    """The text-to-video weights in an image-to-video model. Its new parts output zero."""
    model = build(image=True)
    state = small.state_dict()
    patch = torch.zeros_like(model.patch_embedding.weight)
    patch[:, :16] = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = patch
    model.load_state_dict(state, strict=False)
    for name, parameter in model.named_parameters():
        if "add_v_proj" in name:
            nn.init.zeros_(parameter)
    return model


def normalise(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """(latents - mean) / std per channel, as the pipelines do. [B, 16, ...]."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents)
    std = torch.tensor(vae.config.latents_std).view(shape).to(latents)
    return (latents - mean) / std


@torch.no_grad()
def frame_condition(vae: AutoencoderKLWan, video: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """[B, 3, F, H, W] → [B, 20, T, h, w] as WanImageToVideoPipeline.prepare_latents makes it.

    first, last: bool [B], whether that frame of the clip is given.
    """
    gray = torch.zeros_like(video)
    gray[first, :, :1] = video[first, :, :1]
    gray[last, :, -1:] = video[last, :, -1:]
    latents = normalise(vae, encode(vae, gray)[0])
    mask = torch.zeros_like(latents[:, :4])
    mask[first, :, 0] = 1.0
    mask[last, 3, -1] = 1.0  # of the four frames in the last latent one, the last
    return torch.cat([mask, latents], dim=1)


@torch.no_grad()
def cache_clips(vae: AutoencoderKLWan, work: Path, seed: int, image: bool) -> list[Clips]:
    """Draw and encode the clips of every bucket. They are kept in `work`."""
    path = work / ("clips-i2v.pt" if image else "clips-t2v.pt")
    saved = load_checkpoint(path)
    if saved:
        return [Clips(**one) for one in saved["clips"]]
    trained, _ = data.split()
    tower, processor = build_tower()
    result = []
    for number, (height, width, frames, count, _, _) in enumerate(BUCKETS):
        rng = np.random.default_rng([seed, number, 1000])
        if image and frames == 1:
            continue
        latents, conditions, images, combinations = [], [], [], []
        for _ in range(0, count, 20):
            some = [trained[int(i)] for i in rng.integers(len(trained), size=20)]
            wander = np.inf if image else data.WANDER
            scenes = [data.place(rng, one, height, width, frames, wander) for one in some]
            drawn = np.stack([data.draw(scene, height, width, frames) for scene in scenes])
            video = to_video(drawn).to(device())
            latents.append(normalise(vae, encode(vae, video)[0]).cpu())
            combinations += some
            if image:
                first, last = given_frames(rng, len(some))
                conditions.append(frame_condition(vae, video, first, last).cpu())
                pixels = processor(images=list(drawn[:, 0]), return_tensors="pt")
                seen = tower(**pixels, output_hidden_states=True).hidden_states[-2]
                images.append(seen * first.view(-1, 1, 1))
        result.append(
            Clips(
                torch.cat(latents),
                combinations,
                torch.cat(conditions) if image else None,
                torch.cat(images) if image else None,
            )
        )
        print(f"clips {width}x{height}x{frames}: {len(combinations)}", flush=True)
    save_checkpoint(path, {"clips": [vars(clips) for clips in result]})
    return result


def given_frames(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """For each clip: is its first frame given, and is its last? bool [count] each."""
    kind = rng.random(count)
    return torch.from_numpy(kind > LAST_ALONE), torch.from_numpy(kind < LAST_ALONE + BOTH_ENDS)


def draw_times(rng: np.random.Generator, count: int) -> Tensor:
    """Noise levels s in (0, 1): logit-normal and uniform ones shifted by SHIFT, and plain uniform.

    The plain uniform third is for the last steps, where edges are drawn: the shift leaves few
    low levels.
    """
    level = rng.random(count)
    kind = np.arange(count) % 3
    level = np.where(kind == 0, 1 / (1 + np.exp(-rng.standard_normal(count))), level)
    shifted = SHIFT * level / (1 + (SHIFT - 1) * level)
    return torch.from_numpy(np.where(kind == 2, level, shifted)).float()


def loss_of(
    model: WanTransformer3DModel,
    context: Tensor,
    latents: Tensor,
    condition: Tensor | None,
    image: Tensor | None,
    rng: np.random.Generator,
) -> Tensor:
    """Mean squared error of the velocity. Given frames of image-to-video weigh more."""
    times = draw_times(rng, len(latents)).to(latents.device)
    noise = normal(rng, latents)
    level = times.view(-1, 1, 1, 1, 1)
    noisy = (1 - level) * latents + level * noise
    if condition is not None:
        noisy = torch.cat([noisy, condition], dim=1)
    answer = model(noisy, times * 1000, context, image, return_dict=False)[0]
    square = (answer.float() - (noise - latents)).square()
    if condition is not None:
        known = condition[:, :4].amax(1, keepdim=True)
        square = square * (1 + (GIVEN_FRAME - 1) * known)
    mean: Tensor = square.mean()
    return mean


def train(
    task: str,
    model: WanTransformer3DModel,
    tokenizer: T5TokenizerFast,
    encoder: UMT5EncoderModel,
    clips: list[Clips],
    work: Path,
    steps: int,
    seed: int = 0,
    *,
    refine: bool = False,
) -> None:
    """Train `model` in place, and `encoder` with it for task t2v; continues work/<task>.pt.

    refine: the model is trained already. The encoder stays as it is, and the rate is REFINE_RATE.
    At the end both hold the running mean (EMA) of the weights.
    """
    model.to(device()).train()
    encoder.to(device())
    attention = PaddedAttention()
    model.set_attn_processor(attention)
    together: dict[str, nn.Module] = {"model": model}
    if task == "t2v" and not refine:
        together["encoder"] = encoder.train()
    else:
        encoder.eval().requires_grad_(False)
    parts = nn.ModuleDict(together)
    optimiser = Optimiser(
        parts.named_parameters(),
        REFINE_RATE if refine else LEARNING_RATE[task],
        ("patch_embedding", "proj_out", "encoder.shared", "embed_tokens"),
    )
    mean = {name: value.detach().clone() for name, value in parts.state_dict().items()}
    checkpoint, first = work / f"{task}.pt", 0
    if state := load_checkpoint(checkpoint):
        parts.load_state_dict(state["parts"])
        optimiser.load(state["optimiser"])
        mean, first = state["mean"], state["step"]
    buckets = [b for b in BUCKETS if task == "t2v" or b[2] > 1]
    shares = np.cumsum([bucket[5] for bucket in buckets])
    progress = Progress(task, steps)
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step, len(task), 5])
        number = int(np.searchsorted(shares, rng.random() * shares[-1]))
        chosen = clips[number]
        rows = rng.integers(len(chosen.latents), size=buckets[number][4])
        single = buckets[number][2] == 1
        captions = [
            data.no_caption(rng)
            if rng.random() < NO_CAPTION
            else data.any_caption(rng, chosen.combinations[int(row)], single)
            for row in rows
        ]
        ids, mask = text.tokenise(tokenizer, captions)
        pick = torch.from_numpy(rows)

        def of(values: Tensor | None, pick: Tensor = pick) -> Tensor | None:
            return None if values is None else values[pick].to(device())

        latents = chosen.latents[pick].to(device())
        # In bf16 on a GPU; at this width fp32 is the faster one on a CPU.
        with torch.autocast("cuda", torch.bfloat16, enabled=device().type == "cuda"):
            context, attention.bias = text.embed(encoder, ids.to(device()), mask.to(device()))
            loss = loss_of(model, context, latents, of(chosen.condition), of(chosen.image), rng)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = optimiser.step(trapezoid(step, steps))
        with torch.no_grad():
            for name, value in parts.state_dict().items():
                mean[name].lerp_(value, 1 - min(EMA, (step + 1) / (step + 10)))
        progress(step, loss=loss.item(), norm=norm)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_checkpoint(
                checkpoint,
                {
                    "parts": parts.state_dict(),
                    "mean": mean,
                    "optimiser": optimiser.state(),
                    "step": step + 1,
                },
            )
    parts.load_state_dict(mean)
    model.set_attn_processor(WanAttnProcessor())
    model.eval()


def stored(model: nn.Module, keep_fp32: list[str] | None) -> dict[str, Any]:
    """State with every tensor in bf16, except in the modules that diffusers keeps in fp32."""
    keep = keep_fp32 or []
    return {
        name: value.detach()
        .cpu()
        .contiguous()
        .to(torch.float32 if any(part in name for part in keep) else torch.bfloat16)
        for name, value in model.state_dict().items()
    }
