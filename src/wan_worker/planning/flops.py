"""How many operations does a forward of a transformer take? Pure; a multiply and an add are two.

The tests compare the formula with torch's own counter. Not covered: the other networks
(timing.work).
"""

from typing import Final

from wan_worker.catalog.components import CLIP
from wan_worker.catalog.models import MAX_PROMPT_TOKENS, Model
from wan_worker.planning.activations import Shape

CLIP_TOKENS: Final = 257
"""Tokens of one picture: ViT-H's 16 x 16 patches of 14 pixels, and the class token."""


def forward_flops(
    shape: Shape, count: int, picture_tokens: int = 0, text_tokens: int = MAX_PROMPT_TOKENS
) -> int:
    """Operations of a transformer's blocks for one branch of guidance.

    A block multiplies each token by the four square matrices of self-attention, by two of
    cross-attention (the other two are for the text's tokens) and by the feed-forward's two. In
    self-attention each token meets each other token twice: once for the score, once for the sum.
    VACE's blocks are such blocks, with a projection before the first and one after each.

    Args:
        count: tokens of the clip.
        picture_tokens: CLIP's tokens, which have keys and values of their own.
    """
    dim = shape.dim
    read = text_tokens + picture_tokens
    linear = 2 * count * (6 * dim**2 + 2 * dim * shape.ffn) + 2 * read * 2 * dim**2
    attention = 4 * count * count * dim + 4 * count * read * dim
    vace = shape.vace_layers
    projections = 2 * count * dim**2 * (vace + 1 if vace else 0)
    return (shape.layers + vace) * (linear + attention) + projections


def picture_tokens(model: Model) -> int:
    """CLIP's tokens for the pictures that it reads; 0 for a model without CLIP."""
    if CLIP not in model.components:
        return 0
    return CLIP_TOKENS * (2 if model.last_image == "required" else 1)
