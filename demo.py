"""One video from a prompt, on this machine: `make demo PROMPT="a blue square moving up"`.

Runs handler.py as RunPod's SDK does for a local test, and prints where the file is.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PROMPT = "a red circle moving right on a white background"
HERE = Path(__file__).resolve().parent


def main() -> int:
    prompt = os.environ.get("PROMPT", "").strip() or PROMPT
    request = {
        "mode": "video",
        "prompt": prompt,
        # The tiny Wan was trained on these sizes.
        "size": "96x64",
        "num_frames": 17,
        "num_inference_steps": 16,
        "seed": 1,
    }
    command = [sys.executable, "handler.py", "--test_input"]
    job = json.dumps({"id": "demo", "input": request})
    with subprocess.Popen(
        [*command, job], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None  # noqa: S101 (asked for above; for the type checker)
        for line in run.stdout:
            if "Job result:" not in line:  # two screens of JSON, right before the path
                print(line, end="", flush=True)
    if run.returncode == 0:
        print(f"\n{prompt}\n  -> {HERE / 'outputs' / 'demo' / '0.mp4'}")
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
