"""What `acceleration: cached` costs in content and saves in work: the trained tiny Wan, both ways.

    python benchmarks/cached.py [--count 40] [--json benchmarks/cached.json]

Captions that the model was not trained on are made with the same seeds, exact and cached. Counted
is how often the delivered frames show what the caption says (training.measure), how near they are
to the exact ones (PSNR over all frames, and over those of another seed, for comparison), and the
share of transformer blocks that ran. The ratios that decide were published for the full-size 1.3B;
the tiny model stands in for it, so these are figures of the tiny model.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from training import data, evaluate

from wan_worker.inputs.references import References
from wan_worker.machine import hardware
from wan_worker.pipelines import generate, pool
from wan_worker.planning import plan
from wan_worker.planning.deployment import Deployment
from wan_worker.request import parse
from wan_worker.request.schema import load
from wan_worker.timing.progress import Control
from wan_worker.weights import store

MODEL = "wan2.1-t2v-1.3b"
SCHEDULES = {
    "as the ratios were measured": {"num_inference_steps": 50, "flow_shift": 5.0},
    "video_high": {"num_inference_steps": 25, "flow_shift": 5.0},
    "video_fast balanced": {"num_inference_steps": 18, "flow_shift": 3.0, "solver": "euler"},
}


class Maker:
    """Frames of a request, by the worker's own planning, pipeline and decoder."""

    def __init__(self, models: Path) -> None:
        self.contract, self.machine = load(), hardware.detect()
        self.here = store.installed(models)
        self.pool = pool.Pool(self.machine)

    def planned(self, prompt: str, seed: int, **changes: Any) -> plan.Plan:
        asked = {"mode": "video", "model": MODEL, "size": "96x64", "num_frames": 17}
        job = {"input": asked | {"prompt": prompt, "seed": seed, "guidance_scale": 5.0} | changes}
        return plan.make(parse.request(job, self.contract), Deployment(self.machine, self.here))

    def frames(self, planned: plan.Plan) -> NDArray[np.uint8]:
        pipeline = self.pool.pipeline(planned, self.here[MODEL], lambda: None)
        embeds, negative, _ = generate.encode_prompts(pipeline, planned, self.pool.embeddings)
        latents = generate.denoise(pipeline, planned, embeds, negative, References(), Control())
        return np.concatenate(list(generate.frames(pipeline.vae, latents, planned, Control())))


def compare(maker: Maker, count: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One schedule, over that many held-out captions."""
    wanted = evaluate.held_out(count)
    clips: dict[str, list[NDArray[np.uint8]]] = {"exact": [], "cached": []}
    near, other = [], []
    for index, one in enumerate(wanted):
        for mode, made in clips.items():
            planned = maker.planned(data.caption(one), 1000 + index, acceleration=mode, **settings)
            made.append(maker.frames(planned))
        near.append(evaluate.decibels(clips["exact"][-1], clips["cached"][-1]))
        again = maker.planned(data.caption(one), 5000 + index, **settings)
        if index % 4 == 0:
            other.append(evaluate.decibels(clips["exact"][-1], maker.frames(again)))
    return {
        **settings,
        "steps_reused": planned.reused_steps,
        "blocks_run": round(1 - planned.reused_steps / planned.steps_taken, 3),
        "exact": evaluate.rates(wanted, np.stack(clips["exact"])),
        "cached": evaluate.rates(wanted, np.stack(clips["cached"])),
        "psnr_to_exact_db": {"mean": round(mean(near), 2), "least": round(min(near), 2)},
        "psnr_of_another_seed_db": round(mean(other), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--count", type=int, default=40, help="captions for each schedule")
    options = parser.parse_args()
    maker, started = Maker(options.models), time.monotonic()
    results = {}
    for name, settings in SCHEDULES.items():
        print(f"{name} ...", file=sys.stderr)
        results[name] = compare(maker, options.count, settings)
        print(json.dumps(results[name]), file=sys.stderr)
    import diffusers
    import torch

    report = {
        "what": f"exact against cached, tiny {MODEL}, 96x64, 17 frames, {options.count} captions",
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - started),
        "schedules": results,
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
