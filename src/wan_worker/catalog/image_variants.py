"""Which images are built, and which models does each hold?

`make docs` writes from this table: docker-bake.hcl, the Dockerfile's default, the matrix of the
release workflow, RunPod's presets and the table of images.
Not covered: what an image holds beside weights (Dockerfile).
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ImageVariant:
    """One image."""

    name: str
    models: tuple[str, ...]
    """Catalog ids; none: weights come from a network volume."""
    title: str
    """What RunPod's Hub says of it."""


IMAGE_VARIANTS: Final = (
    ImageVariant("t2v", ("wan2.1-t2v-1.3b",), "text to video first"),
    ImageVariant("i2v", ("wan2.1-i2v-14b-480p",), "image to video first"),
    ImageVariant("t2v-i2v", ("wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p"), "text and image to video"),
    ImageVariant("slim", (), "weights on a network volume"),
)

DEFAULT: Final = "t2v-i2v"
"""The variant that is built where none is named, and that `latest` means."""
