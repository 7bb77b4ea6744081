"""Which tensors of a job are on the GPU at once, beside the weights?

Formulas from a job's size, one for each stage. Their constants come from
benchmarks/memory_model.py, which counts live tensors of the real classes at full size. Each formula
gives at least the counted size, and the tests count again.
Not covered: weights; memory without a tensor: workspaces, fragments, the CUDA context (memory).
"""

from dataclasses import dataclass
from typing import Final, Literal

from wan_worker.catalog.components import CLIP, VAE_2_2
from wan_worker.catalog.models import MAX_PROMPT_TOKENS, Model

Decode = Literal["fp32", "bf16", "tiled"]
"""How a frame is decoded: whole in fp32, whole in bf16, or in fp32 tile by tile."""

TILE: Final = 512
"""Side of a square tile of the VAE, in pixels."""

TILE_STRIDE: Final = 384
"""Pixels from one tile to the next; the rest overlaps and is blended."""

UPSCALE_BYTES: Final = 4 * 1024**3
"""Memory of the upscaler for one tile, with its 67 MB of weights; tiles are cut to fit it."""

ADAPTER_RANK: Final = 64
"""Assumed rank of a LoRA: its file, which has the true rank, is fetched after planning."""

TEXT_CACHE_TOKENS: Final = 8192
"""A clip of up to this many tokens gets a text cache: what depends on the prompt alone is kept."""

_SMALL_TENSORS: Final = 128 * 1024**2
"""What no formula below counts: prompt and time embeddings, latents of a small job."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer that decide the size of its activations."""

    dim: int
    ffn: int
    layers: int
    vace_layers: int = 0


def shape_of(model: Model) -> Shape:
    """The sizes in its published configuration."""
    config = model.config
    return Shape(config.dim, config.ffn_dim, config.num_layers, len(config.vace_layers))


@dataclass(frozen=True)
class JobSize:
    """The properties of a job that decide its memory."""

    pixels: int
    """Pixels of a generated frame."""
    frames: int
    """Generated frames: 4k+1."""
    has_image: bool
    batch: int = 1
    """Outputs in one denoising call."""
    upscaled: bool = False
    adapters: int = 0
    """LoRAs on the model."""
    residuals: int = 0
    """Residuals of the transformer's blocks that are kept from step to step."""
    guided: bool = True
    """Both branches of guidance are computed."""
    batched_guidance: bool = False
    """Both branches run in one forward."""


def prompt_bytes() -> int:
    """umT5 with 512 tokens: four tensors of attention scores of 64 heads in bf16."""
    return 4 * 64 * MAX_PROMPT_TOKENS**2 * 2 + _SMALL_TENSORS


def denoise_bytes(model: Model, job: JobSize) -> int:
    """One forward of the transformer in bf16. Guidance runs two in turn, or both as one batch.

    The peak of a block, per token and channel, is the larger of two. One is the modulated residual:
    three fp32 tensors and five in bf16, 22 bytes. The other is two bf16 tensors of the feed-forward
    and four of the block: 4 bytes per ffn channel, and 8. Rotary tables are two fp32 tensors as
    wide as a head.
    """
    shape = shape_of(model)
    per_token = max(22 * shape.dim, 8 * shape.dim + 4 * shape.ffn) + 2 * 128 * 4
    if model.expand_timesteps:
        # Six modulations for each token, in bf16 and in fp32, and the embedding they are from.
        per_token += (6 * 2 + 6 * 4 + 2) * shape.dim
    if shape.vace_layers:
        # Every VACE block's hint is kept in bf16 until the block that uses it.
        per_token += 2 * (shape.vace_layers + 1) * shape.dim
    per_token += 2 * shape.dim * job.residuals
    latents = latent_frames(job) * job.pixels // (model.grid // 2) ** 2
    # Sample, prediction, the other branch, three of the solver's history, the condition and copies.
    kept = 12 * 4 * model.config.out_channels * latents
    if shape.vace_layers:
        # The clip in the arguments of VACE's call, in fp32.
        kept += 12 * job.frames * job.pixels
    if caches_text(model, job):
        kept += text_cache_bytes(model, job)
    rows = 2 if job.batched_guidance else 1
    return job.batch * (latents // 4 * per_token * rows + kept) + _SMALL_TENSORS


def caches_text(model: Model, job: JobSize) -> bool:
    """Are the keys and values of cross-attention kept from step to step (pipelines.text_cache)?

    To compute them takes 4 x 512 x dim^2 operations in each block. On the 14B this is 5 % at the
    1,560 tokens of an 832x480 image, and 1 % at this limit.
    """
    return tokens(model, job) <= TEXT_CACHE_TOKENS


def text_cache_bytes(model: Model, job: JobSize) -> int:
    """Keys and values in bf16 for each block, branch and expert, from the text and the picture."""
    shape = shape_of(model)
    tokens = MAX_PROMPT_TOKENS + (2 * 257 if CLIP in model.components else 0)
    sets = (shape.layers + shape.vace_layers) * (1 + job.guided) * (1 + model.two_experts)
    return sets * 2 * tokens * shape.dim * 2


def decode_bytes(model: Model, pixels: int, decode: Decode) -> int:
    """One frame through the decoder, with two frames that each convolution keeps for the next one.

    Most of it is these kept frames: 9,458 bytes per pixel in fp32, for Wan 2.1's VAE. They do not
    grow with the number of frames. An eighth is for cuDNN: it may need a convolution's input and
    output once more as workspace. This was not measured on a GPU.
    """
    per_pixel = 11_400 if VAE_2_2 in model.components else 13_600
    if decode == "tiled":
        pixels = min(pixels, TILE * TILE)
    # In bf16 it is more than half, because norms are computed in fp32.
    return int(per_pixel * pixels * (0.53 if decode == "bf16" else 1)) + _SMALL_TENSORS


def encode_bytes(model: Model, job: JobSize, tiled: bool) -> int:
    """The conditioning video through the encoder in fp32: frame by frame, tiles by four frames."""
    if not job.has_image:
        return 0
    worked_on = min(job.pixels, TILE * TILE) if tiled else job.pixels
    if model.expand_timesteps:  # only the picture itself is encoded
        return 2_400 * worked_on + _SMALL_TENSORS
    # The video itself and its latents. VACE keeps the video, its mask and both masked halves.
    per_frame = 12.5 + (48 if shape_of(model).vace_layers else 0)
    # For whole frames with an eighth for cuDNN, as above.
    per_pixel = 14_100 if tiled else 11_000
    return int(per_pixel * worked_on + per_frame * job.frames * job.pixels) + _SMALL_TENSORS


def adapter_bytes(model: Model) -> int:
    """A LoRA in bf16 on every linear layer of a transformer's blocks.

    For each layer it is rank x (inputs + outputs): eight square layers, two of the feed-forward.
    """
    shape = shape_of(model)
    return 2 * ADAPTER_RANK * (16 * shape.dim + 2 * (shape.dim + shape.ffn)) * shape.layers


def tokens(model: Model, job: JobSize) -> int:
    """Tokens of one clip: one for each 2x2 latents of each latent frame."""
    return latent_frames(job) * job.pixels // model.grid**2


def latent_frames(job: JobSize) -> int:
    return (job.frames - 1) // 4 + 1


def outside_blocks_bytes(shape: Shape) -> int:
    """Weights of a transformer outside its blocks: projections of time, text and picture.

    The picture's is counted for every model: a few MB too many for those that have none.
    """
    in_fp32 = shape.dim**2 + 256 * shape.dim
    picture = 1280**2 + 1280 * shape.dim
    return 2 * (7 * shape.dim**2 + 4096 * shape.dim + picture) + 4 * in_fp32


def kept_wide_bytes(shape: Shape) -> int:
    """What blocks with eight-bit weights hold beside them: norms, modulations, biases, scales.

    Per block and channel: two norms and six modulations in fp32, and six more norms in bf16. Also
    a bias and a scale for each channel of eleven layers and of the feed-forward.
    """
    per_block = (2 * 4 + 6 * 4 + 6 * 2 + 11 * 4) * shape.dim + 4 * shape.ffn
    return per_block * (shape.layers + shape.vace_layers)


def widened_bytes(shape: Shape) -> int:
    """The largest layer's weights in bf16: eight-bit weights are widened before they multiply."""
    return 2 * shape.dim * shape.ffn
