"""The files of the repository that generators and rules read. Not covered: what they mean."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def read_json(name: str) -> Any:
    """A file of the repository.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads((ROOT / name).read_text("utf-8"))
    except json.JSONDecodeError as problem:
        raise ValueError(f"{name} is no JSON ({problem}); mend it first") from None
