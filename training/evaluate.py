"""Generates from held-out captions through the diffusers pipelines, and measures the result.

Figures are shares of clips. None counts as wrong. Every clip has its own seed. The report has the
first seed and the count, so that it can be made again.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionModel, T5TokenizerFast, UMT5EncoderModel

from training.measure import measure

from . import data
from .optimise import device

STEPS, GUIDANCE, SHIFT = 16, 5.0, 3.0
BATCH = 20
# What a set must reach to be worth keeping: (task, figure, least).
BARS = (
    ("text_to_video", "colour", 0.97),
    ("text_to_video", "background", 0.97),
    ("text_to_video", "motion", 0.95),
    ("text_to_video", "kind", 0.90),
    ("image_to_video", "first_frame_dB_mean", 28.0),
    ("image_to_video", "motion", 0.95),
)
FOLDERS = {
    "encoder": "umt5-xxl",
    "tokenizer": "umt5-tokenizer",
    "vae": "wan2.1-vae",
    "tower": "clip-vit-h",
    "processor": "clip-image-processor",
    "t2v": "wan2.1-t2v-1.3b.transformer",
    "i2v": "wan2.1-i2v-14b-480p.transformer",
}


def scheduler(solver: str, shift: float = SHIFT) -> Any:
    """The scheduler that the worker builds for `solver`: unipc, euler or dpm++."""
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    kind = UniPCMultistepScheduler if solver == "unipc" else DPMSolverMultistepScheduler
    return kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def components(weights: Path, image: bool) -> dict[str, Any]:
    """The stored components of WanPipeline or WanImageToVideoPipeline, in fp32."""
    at = {name: weights / folder for name, folder in FOLDERS.items()}
    safe: dict[str, Any] = {"use_safetensors": True, "torch_dtype": torch.float32}
    parts: dict[str, Any] = {
        "tokenizer": T5TokenizerFast.from_pretrained(at["tokenizer"]),
        "text_encoder": UMT5EncoderModel.from_pretrained(
            at["encoder"], use_safetensors=True, dtype=torch.float32
        ),
        "vae": AutoencoderKLWan.from_pretrained(at["vae"], **safe),
        "transformer": WanTransformer3DModel.from_pretrained(at["i2v" if image else "t2v"], **safe),
        "scheduler": scheduler("unipc"),
    }
    if image:
        parts["image_encoder"] = CLIPVisionModel.from_pretrained(at["tower"], use_safetensors=True)
        parts["image_processor"] = CLIPImageProcessorPil.from_pretrained(at["processor"])
    return parts


def pipeline(weights: Path, image: bool) -> Any:
    """WanPipeline or WanImageToVideoPipeline with the stored components."""
    kind = WanImageToVideoPipeline if image else WanPipeline
    pipe = kind(**components(weights, image)).to(device())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def to_uint8(frames: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] → 0-255."""
    pixels: NDArray[np.uint8] = np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)
    return pixels


def generate(
    pipe: Any,
    captions: list[str],
    seeds: list[int],
    size: tuple[int, int, int],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    negative: str = data.NEGATIVE_PROMPT,
) -> NDArray[np.uint8]:
    """Clips [N, F, H, W, 3] of `captions`; size: height, width, frames."""
    height, width, frames = size
    made = []
    for at in range(0, len(captions), BATCH):
        some = captions[at : at + BATCH]
        result = pipe(
            prompt=some,
            negative_prompt=[negative] * len(some),
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[at : at + BATCH]],
            max_sequence_length=512,
            output_type="np",
        )
        made.append(to_uint8(result.frames))
    return np.concatenate(made)


def held_out(count: int) -> list[tuple[str, str, str, str]]:
    """`count` held-out combinations. They repeat after all of them were used."""
    _, held = data.split()
    return [held[i % len(held)] for i in range(count)]


def rates(wanted: list[tuple[str, str, str, str]], clips: NDArray[np.uint8]) -> dict[str, float]:
    """Share of clips that show the caption's colour, kind, motion and background."""
    names = ("colour", "kind", "motion", "background")
    answers = [measure(clip) for clip in clips]
    right = {
        name: [
            getattr(answer, name) == want[i] for want, answer in zip(wanted, answers, strict=True)
        ]
        for i, name in enumerate(names)
    }
    if clips.shape[1] == 1:
        del right["motion"]
    everything = np.all(list(right.values()), axis=0)
    return {name: float(np.mean(hits)) for name, hits in right.items()} | {
        "everything": float(everything.mean())
    }


def text_to_video(
    pipe: Any, size: tuple[int, int, int], count: int, first_seed: int, **settings: Any
) -> dict[str, Any]:
    """Rates over `count` held-out captions at one size."""
    wanted = held_out(count)
    captions = [data.caption(one, single=size[2] == 1) for one in wanted]
    seeds = list(range(first_seed, first_seed + count))
    clips = generate(pipe, captions, seeds, size, **settings)
    return {
        "size": f"{size[1]}x{size[0]}",
        "frames": size[2],
        "count": count,
        "first_seed": first_seed,
        **rates(wanted, clips),
    }


def decibels(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """PSNR."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def image_to_video(
    pipe: Any, size: tuple[int, int, int], count: int, first_seed: int
) -> dict[str, Any]:
    """From drawn first frames of held-out scenes: is the frame kept, and the caption followed?"""
    height, width, frames = size
    wanted = held_out(count)
    clips, kept = [], []
    for i, one in enumerate(wanted):
        scene = data.place(np.random.default_rng([first_seed, i]), one, height, width, frames)
        first = data.draw(scene, height, width, 1)[0]
        result = pipe(
            image=Image.fromarray(first),
            prompt=data.caption(one),
            negative_prompt=data.NEGATIVE_PROMPT,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(first_seed + i),
            max_sequence_length=512,
            output_type="np",
        )
        clip = to_uint8(result.frames[0])
        clips.append(clip)
        kept.append(decibels(clip[0], first))
    return {
        "size": f"{width}x{height}",
        "frames": frames,
        "count": count,
        "first_seed": first_seed,
        "first_frame_dB_mean": round(float(np.mean(kept)), 2),
        "first_frame_dB_min": round(float(np.min(kept)), 2),
        "first_frame_at_least_28_dB": float(np.mean(np.array(kept) >= 28)),
        **rates(wanted, np.stack(clips)),
    }


@torch.no_grad()
def reconstruction(vae: AutoencoderKLWan, size: tuple[int, int, int], count: int) -> float:
    """Mean PSNR in dB of held-out clips through the stored VAE."""
    from .vae import to_video

    rng = np.random.default_rng([4, *size])
    values = []
    for one in held_out(count):
        clip = data.draw(data.place(rng, one, *size), *size)
        latents = vae.encode(to_video(clip)[None].to(device())).latent_dist.mode()
        video = vae.decode(latents).sample[0].movedim(0, -1).cpu().numpy()
        values.append(decibels(to_uint8(video / 2 + 0.5), clip))
    return round(float(np.mean(values)), 2)


def evaluate(weights: Path, count: int = 200) -> dict[str, Any]:
    """The whole report: both pipelines, with the sizes and solvers of the worker's tests.

    count: held-out captions of the two rows that BARS name; the other rows take a part of it.
    """
    start = time.monotonic()
    large, small, portrait, still = (64, 96, 17), (64, 64, 9), (96, 64, 17), (64, 64, 1)

    def told(name: str, row: dict[str, Any]) -> dict[str, Any]:
        figures = ", ".join(f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float))
        print(
            f"{name} {row['size']}x{row['frames']}, {row['count']} captions: {figures}", flush=True
        )
        return row

    pipe = pipeline(weights, image=False)
    report: dict[str, Any] = {
        "settings": {"solver": "unipc", "steps": STEPS, "guidance": GUIDANCE, "shift": SHIFT},
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "vae_dB": {
            f"{s[1]}x{s[0]}x{s[2]}": reconstruction(pipe.vae, s, 40) for s in (large, small, still)
        },
        "text_to_video": [
            told("text to video", text_to_video(pipe, size, number, first_seed))
            for size, number, first_seed in (
                (large, count, 10_000),
                (small, count // 2, 20_000),
                (portrait, count // 5, 30_000),
                (still, count // 5, 40_000),
            )
        ],
        "no_guidance": told(
            "guidance 1,", text_to_video(pipe, large, count // 5, 10_000, guidance=1.0)
        ),
    }
    for solver in ("euler", "dpm++"):
        pipe.scheduler = scheduler(solver)
        report[solver] = told(f"{solver},", text_to_video(pipe, large, count // 5, 10_000))
    pipe = pipeline(weights, image=True)
    report["image_to_video"] = [
        told("image to video", image_to_video(pipe, size, number, first_seed))
        for size, number, first_seed in ((large, count, 70_000), (small, count // 5, 80_000))
    ]
    report["bars"] = bars(report)
    report["minutes"] = round((time.monotonic() - start) / 60, 1)
    return report


def bars(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare each of BARS with the first row of its task."""
    return [
        {"task": task, "what": what, "least": least, "is": round(is_, 4), "met": is_ >= least}
        for task, what, least in BARS
        for is_ in [report[task][0][what]]
    ]


def main() -> int:
    """Evaluate the stored weights. Return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("weights/tiny"))
    parser.add_argument("--count", type=int, default=200, help="held-out captions")
    parser.add_argument("--report", type=Path, help="JSON file to write")
    options = parser.parse_args()
    report = evaluate(options.weights, options.count)
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    for bar in report["bars"]:
        verdict = "met" if bar["met"] else "MISSED"
        print(f"{bar['task']} {bar['what']}: {bar['is']:.4g}, at least {bar['least']}: {verdict}")
    return 0 if all(bar["met"] for bar in report["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
