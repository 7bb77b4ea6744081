"""Which LoRA adapters does a request ask for, and how does its answer report them?

Not covered: their files (lora_store) and what is in them (lora).
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from wan_worker.errors import InvalidRequest

Stage = Literal["high", "low", "both"]

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+() -]{0,199}", re.ASCII)
"""A file's own name: no folder, nothing hidden, nothing encoded."""

SUFFIX: Final = ".safetensors"


@dataclass(frozen=True)
class Lora:
    """One adapter of the request, and how strongly it is applied to which expert."""

    source: str
    """Name of a file in the store without its suffix, or a URL."""
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
        """The file's name, or the URL's host: the rest of a URL may be a secret."""
        if not self.is_url:
            return self.source
        try:
            return urlsplit(self.source).hostname or "a URL"
        except ValueError:  # net refuses it, and says why
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
    """Of a downloaded file; None until it is here."""
    matched: int = 0
    """Tensors that found their place in an expert; 0 until they have."""

    @classmethod
    def of(cls, lora: Lora) -> "PlannedLora":
        return cls(lora.name, lora.scale, lora.stage)


def parse(given: list[dict[str, Any]]) -> tuple[Lora, ...]:
    """The adapters of a request that keeps to the schema.

    Raises:
        InvalidRequest: a source is neither a plain file name nor a URL.
    """
    loras = []
    for index, entry in enumerate(given):
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
