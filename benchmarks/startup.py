"""What a worker costs before it works: process start to first job-take, to the first denoising
step, and a rejected job.

    python benchmarks/startup.py [--json benchmarks/startup.json]

The first is measured through RunPod's own production loop on loopback, alternating with a bare
``python -c 'import runpod'``; medians of five. The second is one call of ``job.run`` with a field
misspelt, median of 200, in a process that never imports torch. The first denoising step is that of
a small job on the tiny weights in a new process, by stage, beside what its imports take alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds
from tests.integration.platform import Platform
from tests.integration.worker import Worker

ROUNDS = 5
REJECTIONS = """
import json, statistics, sys, time
sys.path.insert(0, "src")
from pathlib import Path
from wan_worker import job
from wan_worker.timing.progress import Control
from wan_worker.settings import Settings
worker = job.make_worker(Settings(models_dir=Path(sys.argv[1])))
bad = {"id": "x", "input": {"mode": "video", "prompt": "a cat", "stepz": 4}}
def once():
    started = time.perf_counter()
    assert "error" in job.run(bad, worker, Control())
    return time.perf_counter() - started
first = once()
print(json.dumps({"first": first, "median": statistics.median(once() for _ in range(200)),
                  "torch": "torch" in sys.modules}))
"""

FIRST_STEP = """
import json, sys, time
sys.path.insert(0, "src")
from pathlib import Path
from wan_worker import job
from wan_worker.timing.progress import Control
from wan_worker.settings import Settings
worker = job.make_worker(Settings(models_dir=Path(sys.argv[1]), output_dir=Path(sys.argv[2])))
stepped = []
def notify():
    if control.stage == "denoise" and control.latest.step == 1:
        stepped.append(time.perf_counter() - started)
control = Control(notify=notify)
started = time.perf_counter()
answer = job.run({"id": "first", "input": {"mode": "video", "prompt": "a red circle",
                  "size": "64x48", "num_frames": 5, "num_inference_steps": 2}}, worker, control)
assert "error" not in answer, answer
print(json.dumps({stage: control.timings[stage] for stage in ("plan", "load", "prompt")}
                 | {"to_first_step": stepped[0]}))
"""
IMPORTS = """
import json, time
found = {}
for name, statement in {
    "torch": "import torch",
    "transformers, umT5": "from transformers import UMT5EncoderModel",
    "diffusers, the pipeline": "from diffusers import WanPipeline",
    "boto3": "import boto3",
}.items():
    started = time.perf_counter()
    exec(statement)
    found[name] = time.perf_counter() - started
print(json.dumps(found))
"""


def child(source: str, *arguments: Path) -> dict[str, float]:
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def first_take_seconds(folder: Path) -> float:
    with Platform() as runpod:
        started = time.monotonic()
        with Worker(runpod, folder):
            taken = runpod.first_take_at
    assert taken is not None
    return taken - started


def bare_import_seconds() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import runpod"], check=True)
    return time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    options = parser.parse_args()
    takes, imports, steps, libraries = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        first_take_seconds(Path(folder) / "warm")
        bare_import_seconds()
        for index in range(ROUNDS):
            print(f"round {index + 1} of {ROUNDS} ...", file=sys.stderr)
            takes.append(first_take_seconds(Path(folder) / str(index)))
            imports.append(bare_import_seconds())
            steps.append(child(FIRST_STEP, options.models, Path(folder)))
            libraries.append(child(IMPORTS))
    rejected = child(REJECTIONS, options.models)
    take, bare = statistics.median(takes), statistics.median(imports)
    report = {
        "what": "process start to first job-take; a rejected job",
        **rounds.about(),
        "first_take_s": round(take, 2),
        "bare_import_runpod_s": round(bare, 2),
        "ratio": round(take / bare, 2),
        "rejected_job_ms": round(rejected["median"] * 1000, 2),
        "first_rejected_job_ms": round(rejected["first"] * 1000, 2),
        "rejection_imported_torch": rejected["torch"],
        "first_job_s": rounds.medians(steps, 2),
        "imports_s": rounds.medians(libraries, 2),
    }
    rounds.write(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
