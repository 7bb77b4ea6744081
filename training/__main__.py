"""The whole training in one command: `python -m training --work work --weights weights/tiny`.

Stages: VAE, text-to-video with the text encoder, image-to-video, evaluation. An interrupted stage
continues from its last checkpoint in --work. A finished stage is not repeated.

`--refine STAGE` trains one stage further, from the stored weights: `decoder` is the VAE's decoder
(the latents do not change), `t2v` or `i2v` is one transformer (the text encoder does not change).
So the three can run side by side, each with its own --work.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from . import evaluate, text, transformer, vae
from .optimise import device

STEPS = {"vae": 1500, "decoder": 600, "t2v": 2400, "i2v": 800}


def put(folder: Path, save: Callable[[Path], Any]) -> None:
    """Write a component's folder beside the old one, then replace the old one."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save(part)
    for file in part.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner only
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def put_model(folder: Path, model: Any, file: str, keep_fp32: list[str]) -> None:
    """Write config.json and one safetensors file: bf16, fp32 for `keep_fp32` and where needed."""

    def save(part: Path) -> None:
        model.save_config(part) if hasattr(model, "save_config") else model.config.save_pretrained(
            part
        )
        config = json.loads((part / "config.json").read_text("utf-8"))
        config.pop("_name_or_path", None)  # where it was loaded from on this machine
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        save_file(transformer.stored(model, keep_fp32), part / file, metadata={"format": "pt"})

    put(folder, save)


def put_transformer(weights: Path, task: str, model: Any) -> None:
    """Write one of the two transformers.

    The time embedder is stored in bf16 too, though it runs in fp32. The report is about the stored
    weights, and 66 kB less in each file keep the set under 10 MB.
    """
    wide = [name for name in model._keep_in_fp32_modules if name != "time_embedder"]
    put_model(weights / evaluate.FOLDERS[task], model, "diffusion_pytorch_model.safetensors", wide)


def put_vae(weights: Path, model: AutoencoderKLWan) -> None:
    """Write the VAE."""
    put_model(
        weights / evaluate.FOLDERS["vae"], model, "diffusion_pytorch_model.safetensors", ["norm"]
    )


def run(work: Path, weights: Path, seed: int = 0, steps: dict[str, int] = STEPS) -> dict[str, Any]:
    """Train everything, write the components, evaluate."""
    work.mkdir(parents=True, exist_ok=True)
    folders = evaluate.FOLDERS
    minutes: dict[str, float] = {}

    def timed(name: str, start: float) -> None:
        minutes[name] = round((time.monotonic() - start) / 60, 1)

    start = time.monotonic()
    autoencoder = vae.train(work, steps["vae"], seed)
    vae.polish(autoencoder, work, steps["decoder"], seed)
    put_vae(weights, autoencoder)
    # From here on the stored, rounded one: what the worker will decode with.
    autoencoder = AutoencoderKLWan.from_pretrained(weights / folders["vae"]).to(device()).eval()
    timed("vae", start)

    start = time.monotonic()
    torch.manual_seed(seed)
    tokenizer = text.build_tokenizer()
    encoder = text.build_encoder(len(tokenizer))
    small = transformer.build(image=False)
    clips = transformer.cache_clips(autoencoder, work, seed, image=False)
    transformer.train("t2v", small, tokenizer, encoder, clips, work, steps["t2v"], seed)
    put(weights / folders["tokenizer"], tokenizer.save_pretrained)
    put_model(weights / folders["encoder"], encoder, "model.safetensors", ["layer_norm"])
    put_transformer(weights, "t2v", small)
    timed("t2v", start)

    start = time.monotonic()
    torch.manual_seed(seed)
    large = transformer.widen(small)
    tower, processor = transformer.build_tower()
    clips = transformer.cache_clips(autoencoder, work, seed, image=True)
    transformer.train("i2v", large, tokenizer, encoder.eval(), clips, work, steps["i2v"], seed)
    put(weights / folders["tower"], lambda part: tower.save_pretrained(part))
    put(weights / folders["processor"], lambda part: processor.save_pretrained(part))
    put_transformer(weights, "i2v", large)
    timed("i2v", start)

    report = evaluate.evaluate(weights)
    return {"seed": seed, "steps": steps, "training_minutes": minutes, **report}


def refine(stage: str, work: Path, weights: Path, steps: int, seed: int) -> None:
    """Train one stage further, and replace its weights in `weights`."""
    work.mkdir(parents=True, exist_ok=True)
    stored = evaluate.components(weights, image=stage == "i2v")
    if stage == "decoder":
        autoencoder = vae.polish(stored["vae"].to(device()), work, steps, seed)
        put_vae(weights, autoencoder)
        return
    autoencoder = stored["vae"].to(device()).eval()
    clips = transformer.cache_clips(autoencoder, work, seed, image=stage == "i2v")
    model, encoder = stored["transformer"], stored["text_encoder"]
    tokenizer = stored["tokenizer"]
    transformer.train(stage, model, tokenizer, encoder, clips, work, steps, seed, refine=True)
    put_transformer(weights, stage, model)


def main() -> None:
    """Read the options and start."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("work"), help="checkpoints, caches")
    parser.add_argument("--weights", type=Path, default=Path("weights/tiny"), help="the result")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and noise")
    parser.add_argument("--refine", choices=("decoder", "t2v", "i2v"), help="one stage, further")
    parser.add_argument("--steps", type=int, help="of the refined stage")
    options = parser.parse_args()
    if options.refine:
        steps = options.steps or STEPS[options.refine]
        refine(options.refine, options.work, options.weights, steps, options.seed)
        return
    report = run(options.work, options.weights, options.seed)
    (options.work / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
