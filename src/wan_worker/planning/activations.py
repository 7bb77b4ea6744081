"""What tensors of a job live on the GPU at once, beside the weights?

Formulas over a job's size, one for each stage. Their constants come from
benchmarks/memory_model.py, which counts live tensors of the real classes at full size; each formula
is at least what was counted, and the tests count again.
Not covered: weights, and what no tensor shows: workspaces, fragments, the CUDA context (memory).
"""

from dataclasses import dataclass
from typing import Final, Literal

from wan_worker.catalog.components import CLIP, VAE_2_2
from wan_worker.catalog.models import MAX_PROMPT_TOKENS, Model

Decode = Literal["fp32", "bf16", "tiled"]
"""How a frame is decoded: whole in fp32, whole in bf16, in fp32 tile by tile."""

TILE: Final = 512
"""Side, in pixels, of a square that the VAE works on where it is tiled."""

TILE_STRIDE: Final = 384
"""Pixels from one tile to the next; the rest overlaps and is blended."""

UPSCALE_BYTES: Final = 4 * 1024**3
"""What the upscaler is given for a tile, its 67 MB of weights included; it cuts tiles to that."""

ADAPTER_RANK: Final = 64
"""Rank that a LoRA is taken to have: its file, with the true one, is fetched after planning."""

TEXT_CACHE_TOKENS: Final = 8192
"""Tokens of a clip up to which what depends on its prompt alone is kept from step to step."""

_SMALL_TENSORS: Final = 128 * 1024**2
"""Prompt embeddings, time embeddings, latents of a small job: what no formula below counts."""


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes that decide over its activations."""

    dim: int
    ffn: int
    layers: int
    vace_layers: int = 0


def shape_of(model: Model) -> Shape:
    """Of its published configuration."""
    config = model.config
    return Shape(config.dim, config.ffn_dim, config.num_layers, len(config.vace_layers))


@dataclass(frozen=True)
class JobSize:
    """What of a job decides over its memory."""

    pixels: int
    """Of a generated frame."""
    frames: int
    """Generated: 4k+1."""
    has_image: bool
    batch: int = 1
    """Outputs in one denoising call."""
    upscaled: bool = False
    adapters: int = 0
    """LoRAs on the model."""
    residuals: int = 0
    """Of the transformer's blocks, kept from one step to the next."""
    guided: bool = True
    """Both branches of guidance are computed."""
    batched_guidance: bool = False
    """In one forward."""


def prompt_bytes() -> int:
    """umT5 over 512 tokens: four tensors of 64 heads' scores in bf16."""
    return 4 * 64 * MAX_PROMPT_TOKENS**2 * 2 + _SMALL_TENSORS


def denoise_bytes(model: Model, job: JobSize) -> int:
    """One forward of the transformer in bf16; guidance runs its two in turn, or as one batch.

    At the peak a block holds, per token and channel, either the modulated residual (three fp32
    tensors and five in bf16: 22 bytes) or the feed-forward's two bf16 tensors beside four of the
    block's (4 bytes per ffn channel and 8). Rotary tables are two fp32 tensors of a head's width.
    """
    shape = shape_of(model)
    per_token = max(22 * shape.dim, 8 * shape.dim + 4 * shape.ffn) + 2 * 128 * 4
    if model.expand_timesteps:
        # Six modulations for each token, in bf16 and in fp32, and the embedding they come from.
        per_token += (6 * 2 + 6 * 4 + 2) * shape.dim
    if shape.vace_layers:
        # Every VACE block's hint waits in bf16 for the block that it belongs to.
        per_token += 2 * (shape.vace_layers + 1) * shape.dim
    per_token += 2 * shape.dim * job.residuals
    latents = latent_frames(job) * job.pixels // (model.grid // 2) ** 2
    # Sample, prediction, the other branch, three of the solver's history, the condition and copies.
    kept = 12 * 4 * model.config.out_channels * latents
    if shape.vace_layers:
        # The clip that VACE's call was given, in fp32.
        kept += 12 * job.frames * job.pixels
    if caches_text(model, job):
        kept += text_cache_bytes(model, job)
    rows = 2 if job.batched_guidance else 1
    return job.batch * (latents // 4 * per_token * rows + kept) + _SMALL_TENSORS


def caches_text(model: Model, job: JobSize) -> bool:
    """Are cross-attention's keys and values kept from step to step (remember)?

    Making them is 4 x 512 x dim^2 operations of each block: five in a hundred at the 1,560 tokens
    of an 832x480 image on the 14B, one at this bound.
    """
    return tokens(model, job) <= TEXT_CACHE_TOKENS


def text_cache_bytes(model: Model, job: JobSize) -> int:
    """Keys and values in bf16 for each block, branch and expert, of the text and of the picture."""
    shape = shape_of(model)
    tokens = MAX_PROMPT_TOKENS + (2 * 257 if CLIP in model.components else 0)
    sets = (shape.layers + shape.vace_layers) * (1 + job.guided) * (1 + model.two_experts)
    return sets * 2 * tokens * shape.dim * 2


def decode_bytes(model: Model, pixels: int, decode: Decode) -> int:
    """One frame through the decoder, with two frames that each convolution keeps for the next one.

    Most of it is those (9,458 bytes per pixel in fp32, of Wan 2.1's VAE); they do not grow with the
    number of frames. An eighth is for cuDNN, which may want a convolution's input and output once
    more to work on; no GPU has been asked.
    """
    per_pixel = 11_400 if VAE_2_2 in model.components else 13_600
    if decode == "tiled":
        pixels = min(pixels, TILE * TILE)
    # More than half in bf16: norms are reckoned in fp32.
    return int(per_pixel * pixels * (0.53 if decode == "bf16" else 1)) + _SMALL_TENSORS


def encode_bytes(model: Model, job: JobSize, tiled: bool) -> int:
    """The conditioning video through the encoder in fp32: a frame at a time; a tile's by fours."""
    if not job.has_image:
        return 0
    worked_on = min(job.pixels, TILE * TILE) if tiled else job.pixels
    if model.expand_timesteps:  # only the picture itself is encoded
        return 2_400 * worked_on + _SMALL_TENSORS
    # The video itself and its latents; VACE keeps it, its mask and both masked halves.
    per_frame = 12.5 + (48 if shape_of(model).vace_layers else 0)
    # Whole frames' with an eighth for cuDNN, as above.
    per_pixel = 14_100 if tiled else 11_000
    return int(per_pixel * worked_on + per_frame * job.frames * job.pixels) + _SMALL_TENSORS


def adapter_bytes(model: Model) -> int:
    """A LoRA in bf16 on every linear layer of a transformer's blocks.

    rank x (inputs + outputs) of eight square layers and the feed-forward's two.
    """
    shape = shape_of(model)
    return 2 * ADAPTER_RANK * (16 * shape.dim + 2 * (shape.dim + shape.ffn)) * shape.layers


def tokens(model: Model, job: JobSize) -> int:
    """Of one clip: one for each 2x2 latents of each latent frame."""
    return latent_frames(job) * job.pixels // model.grid**2


def latent_frames(job: JobSize) -> int:
    return (job.frames - 1) // 4 + 1


def outside_blocks_bytes(shape: Shape) -> int:
    """Weights of a transformer that no block holds: time, text and picture projections.

    With the picture's for every model: a few MB too many for those that have none.
    """
    in_fp32 = shape.dim**2 + 256 * shape.dim
    picture = 1280**2 + 1280 * shape.dim
    return 2 * (7 * shape.dim**2 + 4096 * shape.dim + picture) + 4 * in_fp32


def kept_wide_bytes(shape: Shape) -> int:
    """What blocks of eight-bit weights hold besides those: norms, modulations, biases, scales.

    Per block and channel two norms and six modulations in fp32 and six more norms in bf16, and a
    bias and a scale for each of eleven layers' channels and the feed-forward's.
    """
    per_block = (2 * 4 + 6 * 4 + 6 * 2 + 11 * 4) * shape.dim + 4 * shape.ffn
    return per_block * (shape.layers + shape.vace_layers)


def widened_bytes(shape: Shape) -> int:
    """The largest layer's weights in bf16: eight-bit ones are widened for their product."""
    return 2 * shape.dim * shape.ffn
