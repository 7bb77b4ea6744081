"""Which LoRA adapters does a request ask for, and how does its answer report them?

Not covered: their files (weights.lora_files) and what is in the files (pipelines.lora).
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from wan_worker.errors import InvalidRequest

Stage = Literal["high", "low", "both"]

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+() -]{0,199}", re.ASCII)
"""A plain file name: without a folder, not hidden, not encoded."""

SUFFIX: Final = ".safetensors"


@dataclass(frozen=True)
class Lora:
    """One adapter of the request: its scale, and the expert that it is applied to."""

    source: str
    """Name of a file in the store, without its suffix, or a URL."""
    scale: float = 1.0
    stage: Stage = "both"
    """For models with two experts: the high-noise one, the low-noise one or both."""
    field: str = "/input/loras/0"
    """JSON pointer of the entry."""

    @property
    def is_url(self) -> bool:
        return "://" in self.source

    @property
    def name(self) -> str:
        """The file's name, or only the URL's host: the rest of a URL may be a secret."""
        if not self.is_url:
            return self.source
        try:
            return urlsplit(self.source).hostname or "a URL"
        except ValueError:  # inputs.net refuses it and says why
            return "a URL"

    @property
    def reason(self) -> str:
        where = "" if self.stage == "both" else f" on the {self.stage}-noise expert"
        return f"loras: {self.name} at scale {self.scale:g}{where}"


@dataclass(frozen=True)
class PlannedLora:
    """One adapter as the answer reports it."""

    name: str
    scale: float
    stage: str
    sha256: str | None = None
    """Hash of a downloaded file; None until it is downloaded."""
    matched: int = 0
    """Number of tensors that match an expert's; 0 until they are matched."""

    @classmethod
    def of(cls, lora: Lora) -> "PlannedLora":
        return cls(lora.name, lora.scale, lora.stage)


def parse(entries: list[dict[str, Any]]) -> tuple[Lora, ...]:
    """The adapters of a request that follows the schema.

    Raises:
        InvalidRequest: a source is neither a plain file name nor a URL.
    """
    loras = []
    for index, entry in enumerate(entries):
        field, source = f"/input/loras/{index}", entry["source"]
        if "://" not in source:
            if not NAME.fullmatch(source):
                raise InvalidRequest(
                    "Must be the plain name of a file in the worker's loras folder, without a "
                    "path, or an https URL",
                    field=f"{field}/source",
                )
            source = source.removesuffix(SUFFIX)
        scale, stage = float(entry.get("scale", 1.0)), entry.get("stage", "both")
        loras.append(Lora(source, scale, stage, field))
    return tuple(loras)
