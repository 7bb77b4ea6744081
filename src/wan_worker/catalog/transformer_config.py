"""What is a Wan transformer's published configuration?

The names are those of ``config.json`` in the models' diffusers repositories. What is the same for
every Wan model, and the default of diffusers' classes, is left out (patch_size, freq_dim, eps).
Not covered: which model has which configuration (models), what memory it takes (planning).
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TransformerConfig:
    """What decides over the size of a transformer, and over what it reads."""

    num_attention_heads: int
    ffn_dim: int
    num_layers: int
    in_channels: int = 16
    """Latents, and what the model is given beside them: a mask and a picture's latents."""
    out_channels: int = 16
    attention_head_dim: int = 128
    text_dim: int = 4096
    image_dim: int | None = None
    """Width of CLIP's embedding; None: no picture goes through CLIP."""
    added_kv_proj_dim: int | None = None
    """Width of the keys and values that are made of it."""
    pos_embed_seq_len: int | None = None
    """Tokens of CLIP's, where two pictures are told apart by their positions."""
    vace_layers: tuple[int, ...] = ()
    """Blocks that a VACE block stands beside."""
    vace_in_channels: int | None = None

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def class_name(self) -> str:
        """Its class in diffusers."""
        return "WanVACETransformer3DModel" if self.vace_layers else "WanTransformer3DModel"

    def arguments(self) -> dict[str, Any]:
        """What its class is made with."""
        given = asdict(self) | {"vace_layers": list(self.vace_layers)}
        if not self.vace_layers:
            del given["vace_layers"], given["vace_in_channels"]
        return given
