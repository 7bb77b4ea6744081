"""What stands in an answer and in the folder that it was delivered to."""

import json
from pathlib import Path
from typing import Any

from tests.conftest import Answer


def sha256_of(answer: Answer) -> str:
    digest: str = answer["assets"][0]["sha256"]
    return digest


def codes(answer: Answer) -> list[str]:
    return [warning["code"] for warning in answer["warnings"]]


def hashes(answer: Answer) -> list[str]:
    return [asset["sha256"] for asset in answer["assets"]]


def manifest(folder: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return written


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def output_of(result: dict[str, Any]) -> Answer:
    assert "error" not in result, result
    output: Answer = result["output"]
    return output
