"""What became of a job whose process is gone? Its manifest is written last: where it is, all is.

So the answer of a job that had finished is made from it, and none is lost while somebody is told.
Not covered: a manifest in a bucket, which whoever reads the bucket has.
"""

import json
from pathlib import Path
from typing import Any

from wan_worker.delivery import storage


def answer(job_id: str, output_dir: Path) -> dict[str, Any] | None:
    """The response of a job that had put all its files below OUTPUT_DIR; None where it had not."""
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
