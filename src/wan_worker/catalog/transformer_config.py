"""What is a Wan transformer's published configuration?

The names are those of ``config.json`` in the models' diffusers repositories. A value is left out
if it is the same for every Wan model and the default of diffusers' classes (patch_size, freq_dim,
eps).
Not covered: which model has which configuration (models), its memory (planning.activations).
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TransformerConfig:
    """The values that decide a transformer's size and its inputs."""

    num_attention_heads: int
    ffn_dim: int
    num_layers: int
    in_channels: int = 16
    """Latents, and what the model gets beside them: a mask and a picture's latents."""
    out_channels: int = 16
    attention_head_dim: int = 128
    text_dim: int = 4096
    image_dim: int | None = None
    """Width of CLIP's embedding; None: the model does not use CLIP."""
    added_kv_proj_dim: int | None = None
    """Width of the keys and values that are made from that embedding."""
    pos_embed_seq_len: int | None = None
    """Number of CLIP tokens, if the model tells two pictures apart by their positions."""
    vace_layers: tuple[int, ...] = ()
    """Blocks that have a VACE block beside them."""
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
        """Arguments of its class."""
        values = asdict(self) | {"vace_layers": list(self.vace_layers)}
        if not self.vace_layers:
            del values["vace_layers"], values["vace_in_channels"]
        return values
