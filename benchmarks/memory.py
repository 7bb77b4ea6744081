"""Peak memory from latents to file: ours against stock diffusers, 33 against 161 frames.

    python benchmarks/memory.py [--json benchmarks/memory.json]

Each case runs in a process of its own on the tiny VAE, with the same random latents. Counted is the
process's peak resident memory over what it held with the weights loaded, plus the peak
of its ffmpeg (sampled every 20 ms). glibc is told to give freed blocks of 256 KiB and more back at
once, for both ways: what is counted is then what is in use, not what fragments.
Stock is ``stock.py``: ``vae.decode``, ``VideoProcessor.postprocess_video``, ``export_to_video``.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds, stock

WIDTH, HEIGHT, FPS = 416, 240, 16
CASES = [(way, frames) for way in ("stock", "ours") for frames in (33, 161)]


def child(way: str, num_frames: int, models: Path) -> dict[str, float]:
    """Run one case in this process."""
    warnings.simplefilter("ignore")
    import torch
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(models / "wan2.1-vae").eval()
    shape = (1, 16, (num_frames - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    run = ours if way == "ours" else diffusers_way
    with tempfile.TemporaryDirectory() as folder:
        before = psutil.Process().memory_info().rss
        with encoder_peak() as encoder:
            run(vae, latents, Path(folder) / "0.mp4")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"process_mb": (peak - before) / 1e6, "encoder_mb": encoder[0] / 1e6}


@contextmanager
def encoder_peak() -> Iterator[list[int]]:
    """The largest resident size, in bytes, of any child process while the block runs."""
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            for process in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    # A child that has not called exec yet shows this process's size.
                    if process.name().startswith("ffmpeg"):
                        peak[0] = max(peak[0], process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def ours(vae: "object", latents: "object", target: Path) -> None:
    import torch

    from wan_worker.media import encode
    from wan_worker.pipelines import generate
    from wan_worker.timing.progress import Control

    assert isinstance(latents, torch.Tensor)
    frames = (chunk.contiguous().numpy() for chunk in generate.decode(vae, latents))
    count = 4 * latents.shape[2] - 3
    spec = encode.Spec("mp4", WIDTH, HEIGHT, count, FPS)
    encode.write(frames, target, spec, Control(), encode.find_ffmpeg())


def diffusers_way(vae: "object", latents: "object", target: Path) -> None:
    stock.export(stock.decode(vae, latents), target, FPS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--case", nargs=2, metavar=("WAY", "FRAMES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(child(options.case[0], int(options.case[1]), options.models)))
        return 0
    results = {}
    for way, frames in CASES:
        print(f"{way}, {frames} frames ...", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, __file__, "--models", options.models, "--case", way, str(frames)],
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"},
            capture_output=True,
            text=True,
            check=True,
        )
        results[f"{way}_{frames}"] = json.loads(done.stdout.splitlines()[-1])
    total = {k: case["process_mb"] + case["encoder_mb"] for k, case in results.items()}
    import diffusers  # noqa: F401 (their versions are part of the report)
    import torch  # noqa: F401

    report = {
        "what": f"peak memory above the loaded weights, latents to mp4, {WIDTH}x{HEIGHT}",
        **rounds.about(),
        "cases": {
            k: {name: round(v, 1) for name, v in case.items()} for k, case in results.items()
        },
        "ours_161_to_33": round(total["ours_161"] / total["ours_33"], 3),
        "ours_161_to_33_process_only": round(
            results["ours_161"]["process_mb"] / results["ours_33"]["process_mb"], 3
        ),
        "stock_161_to_33": round(total["stock_161"] / total["stock_33"], 3),
        "ours_to_stock_161": round(total["ours_161"] / total["stock_161"], 3),
    }
    rounds.write(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
