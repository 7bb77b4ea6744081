"""One video from a prompt, on this machine: `make demo PROMPT="a blue square moving up"`.

Runs handler.py the way RunPod's SDK does for a local test, and prints where the file is.
"""

import json
import subprocess
import sys
from pathlib import Path

PROMPT = "a red circle moving right on a white background"
HERE = Path(__file__).resolve().parent


def main() -> int:
    prompt = " ".join(sys.argv[1:]).strip() or PROMPT
    request = {
        "mode": "video",
        "prompt": prompt,
        "size": "320x192",
        "num_frames": 17,
        "num_inference_steps": 8,
        "seed": 42,
    }
    job = json.dumps({"id": "demo", "input": request})
    run = subprocess.run([sys.executable, "handler.py", "--test_input", job], cwd=HERE, check=False)
    if run.returncode == 0:
        print(f"\n{prompt}\n  -> {HERE / 'outputs' / 'demo' / '0.mp4'}")
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
