"""How did a job end whose process died? If its manifest exists, it finished and has all its files.

The manifest is written last. So the answer of a finished job is made from it, and is not lost if
the process dies before it reports the answer.
Not covered: a manifest in a bucket; callers can read it there.
"""

import json
from pathlib import Path
from typing import Any

from wan_worker.delivery import storage


def answer(job_id: str, output_dir: Path) -> dict[str, Any] | None:
    """The response of a job that stored all its files below OUTPUT_DIR; None for other jobs."""
    root = output_dir.resolve()
    try:
        path = root / storage.job_folder(job_id) / storage.MANIFEST
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if manifest["status"] != "completed":
            return None
        assets = [
            {"url": (root / asset["key"]).as_uri()} | asset
            for asset in manifest["assets"]
            if (root / asset["key"]).stat().st_size == asset["bytes"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest | {"assets": assets} if len(assets) == len(manifest["assets"]) else None
