"""Trains the AutoencoderKLWan: 8x in space, 4x in time, 16 channels, on drawn clips.

It is built like Wan 2.2's (patches of 2x2 pixels, averaging shortcuts around every resampling), but
with Wan 2.1's compression. The patches reduce the arithmetic to a quarter. The shortcuts allow ten
times the learning rate. Training uses the model's own chunked causal path with its caches, but not
the clamp at the end of its `decode`, which has no gradient.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from . import data
from .optimise import Optimiser, Progress, device, load_checkpoint, save_checkpoint, trapezoid

# (height, width, frames, clips a step, share of steps)
BUCKETS = (
    (64, 64, 9, 8, 0.30),
    (64, 96, 17, 4, 0.30),
    (64, 96, 9, 6, 0.10),
    (96, 64, 9, 6, 0.10),
    (64, 64, 5, 12, 0.05),
    (64, 96, 1, 24, 0.15),
)
LEARNING_RATE = 2e-3
POLISH_RATE = 1e-3  # of the decoder alone, afterwards
KL_WEIGHT = 5e-4  # against a mean absolute error in [-1, 1]
RANDOM_COLOURS = 0.1  # share of clips drawn in colours that have no name


def build() -> AutoencoderKLWan:
    """The untrained model. Every residual branch starts at zero."""
    model = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        z_dim=16,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    )
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".proj")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def encode(model: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 3, F, H, W] in [-1, 1] → mean and log variance, each [B, 16, (F-1)/4+1, H/8, W/8]."""
    mean, log_variance = model._encode(video).float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode(model: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The result of `model.decode` before its clamp: [B, 3, F, H, W]."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    model.clear_cache()
    x = model.post_quant_conv(latents)
    chunks = []
    for i in range(x.shape[2]):
        model._conv_idx = [0]
        chunks.append(
            model.decoder(
                x[:, :, i : i + 1],
                feat_cache=model._feat_map,
                feat_idx=model._conv_idx,
                first_chunk=i == 0,
            )
        )
    model.clear_cache()
    video: Tensor = unpatchify(torch.cat(chunks, 2), patch_size=model.config.patch_size)
    return video


def to_video(frames: np.ndarray) -> Tensor:
    """uint8 [..., F, H, W, 3] → float [..., 3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).float().movedim(-1, -4) / 127.5 - 1.0


def clips(rng: np.random.Generator, height: int, width: int, frames: int, count: int) -> Tensor:
    """Drawn clips [count, 3, F, H, W] of any combination. Some colours have no name."""
    every = data.combinations()
    drawn = []
    for _ in range(count):
        combination = every[int(rng.integers(len(every)))]
        clip = data.draw(data.place(rng, combination, height, width, frames), height, width, frames)
        video = to_video(clip)
        if rng.random() < RANDOM_COLOURS:  # a random affine map of the colour cube
            gain = torch.from_numpy(rng.uniform(-1, 1, (3, 3))).float()
            video = torch.einsum("ij,jfhw->ifhw", gain, video).clamp(-1, 1)
        drawn.append(video)
    return torch.stack(drawn)


def normal(rng: np.random.Generator, like: Tensor) -> Tensor:
    """Standard normal noise of the shape, type and device of `like`."""
    return torch.from_numpy(rng.standard_normal(like.shape, dtype=np.float32)).to(like)


def loss_of(
    model: AutoencoderKLWan, video: Tensor, rng: np.random.Generator
) -> tuple[Tensor, float]:
    """Reconstruction, edges and KL; and the PSNR in dB of full scale."""
    mean, log_variance = encode(model, video)
    latents = mean + torch.exp(0.5 * log_variance) * normal(rng, mean)
    difference = decode(model, latents).float() - video
    square = difference.square().mean()
    edges = difference.diff(dim=3).abs().mean() + difference.diff(dim=4).abs().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    loss = difference.abs().mean() + 5.0 * square + 0.5 * edges + KL_WEIGHT * kl
    return loss, float(10 * torch.log10(4.0 / square.detach().clamp_min(1e-9)))


@torch.no_grad()
def set_statistics(model: AutoencoderKLWan, rng: np.random.Generator) -> None:
    """Set latents_mean and latents_std from posterior samples of 128 clips of training sizes."""
    values = []
    for height, width, frames, _, share in BUCKETS:
        video = clips(rng, height, width, frames, max(8, round(128 * share)))
        mean, log_variance = encode(model, video.to(device()))
        sample = mean + torch.exp(0.5 * log_variance) * normal(rng, mean)
        values.append(sample.movedim(1, 0).flatten(1))
    flat = torch.cat(values, 1)
    model.register_to_config(
        latents_mean=[round(float(v), 5) for v in flat.mean(1)],
        latents_std=[round(float(v), 5) for v in flat.std(1)],
    )


def pick_bucket(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Height, width, frames and number of clips of a step."""
    shares = np.cumsum([bucket[4] for bucket in BUCKETS])
    return BUCKETS[int(np.searchsorted(shares, rng.random() * shares[-1]))][:4]


@torch.no_grad()
def psnr(model: AutoencoderKLWan, seed: int = 1) -> dict[str, float]:
    """PSNR in dB of deterministic reconstructions, with 16 clips for each training size."""
    rng = np.random.default_rng([seed, 77])
    result = {}
    for height, width, frames, _, _ in BUCKETS:
        video = clips(rng, height, width, frames, 16).to(device())
        rebuilt = decode(model, encode(model, video)[0]).clamp(-1, 1)
        square = (rebuilt - video).square().mean(dim=(1, 2, 3, 4))
        result[f"{width}x{height}x{frames}"] = round(
            float((10 * torch.log10(4.0 / square)).mean()), 2
        )
    return result


def train(work: Path, steps: int, seed: int = 0) -> AutoencoderKLWan:
    """Train up to `steps`, from work/vae.pt if it is there. Returns the model with statistics."""
    torch.manual_seed(seed)
    model = build().to(device())
    optimiser = Optimiser(
        model.named_parameters(), LEARNING_RATE, ("conv_in", "conv_out", "quant_conv")
    )
    checkpoint = work / "vae.pt"
    first = 0
    if state := load_checkpoint(checkpoint):
        model.load_state_dict(state["model"])
        optimiser.load(state["optimiser"])
        first = state["step"]
    progress = Progress("vae", steps)
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        video = clips(rng, *pick_bucket(rng)).to(device())
        with torch.autocast(device().type, torch.bfloat16):
            loss, decibels = loss_of(model, video, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = optimiser.step(trapezoid(step, steps))
        progress(step, loss=loss.item(), dB=decibels, norm=norm)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            save_checkpoint(
                checkpoint,
                {"model": model.state_dict(), "optimiser": optimiser.state(), "step": step + 1},
            )
        if (step + 1) % 500 == 0:
            print("vae psnr", psnr(model), flush=True)
    set_statistics(model, np.random.default_rng([seed, 99]))
    print("vae psnr", psnr(model), flush=True)
    return model.eval()


def polish(model: AutoencoderKLWan, work: Path, steps: int, seed: int = 0) -> AutoencoderKLWan:
    """Train the decoder alone, in place. The latents do not change. Continues decoder.pt."""
    model.requires_grad_(False)
    parts = nn.ModuleDict({"decoder": model.decoder, "post_quant_conv": model.post_quant_conv})
    parts.requires_grad_(True)
    optimiser = Optimiser(
        parts.named_parameters(), POLISH_RATE, ("conv_in", "conv_out", "quant_conv")
    )
    checkpoint, first = work / "decoder.pt", 0
    if state := load_checkpoint(checkpoint):
        parts.load_state_dict(state["parts"])
        optimiser.load(state["optimiser"])
        first = state["step"]
    progress = Progress("decoder", steps)
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step, 3])
        video = clips(rng, *pick_bucket(rng)).to(device())
        with torch.autocast(device().type, torch.bfloat16):
            loss, decibels = loss_of(model, video, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = optimiser.step(trapezoid(step, steps, decay=0.9))
        progress(step, loss=loss.item(), dB=decibels, norm=norm)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            save_checkpoint(
                checkpoint,
                {"parts": parts.state_dict(), "optimiser": optimiser.state(), "step": step + 1},
            )
    print("decoder psnr", psnr(model), flush=True)
    return model.eval()
