"""Which models are there, with which components, sizes, frame rules and native defaults?

A frozen table; nothing here is computed from the machine. Facts come from the models' own
repositories and from Wan's code (github.com/Wan-Video/Wan2.1, ``wan/configs``); each constant
names its source. Not covered: where weights are on disk (weights), which model a job takes (plan).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

Size = tuple[int, int]
"""Width and height in pixels."""

MAX_PROMPT_TOKENS: Final = 512
"""umT5 context length of every Wan model (``text_len`` in wan/configs/shared_config.py)."""

MAX_WORK: Final = 1280 * 720 * 161 * 50
"""Pixels x frames x steps beyond which a job is refused before anything is loaded: 50 steps of the
largest clip, about an hour of one H100 on a 14B model."""

NEGATIVE_PROMPT: Final = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""Wan's own ``sample_neg_prompt`` (wan/configs/shared_config.py)."""


@dataclass(frozen=True)
class Component:
    """One piece of a pipeline, stored once and shared by every model that names it."""

    name: str
    """Folder in the store."""
    role: str
    """Name of the pipeline's constructor argument."""
    class_name: str
    """``library:Class`` that loads it."""
    keep_fp32: bool = False
    """Encoding to bf16 latents shifts image-to-video, so the VAE stays in fp32."""


UMT5 = Component("umt5-xxl", "text_encoder", "transformers:UMT5EncoderModel")
UMT5_TOKENIZER = Component("umt5-tokenizer", "tokenizer", "transformers:AutoTokenizer")
VAE_2_1 = Component("wan2.1-vae", "vae", "diffusers:AutoencoderKLWan", keep_fp32=True)
CLIP = Component("clip-vit-h", "image_encoder", "transformers:CLIPVisionModel")
CLIP_PROCESSOR = Component(
    "clip-image-processor", "image_processor", "transformers:CLIPImageProcessorPil"
)


def _transformer(model_id: str) -> Component:
    return Component(f"{model_id}.transformer", "transformer", "diffusers:WanTransformer3DModel")


@dataclass(frozen=True)
class Model:
    """A Wan model as this worker serves it."""

    id: str
    wan_task: str
    """Wan's own name for it (``--task`` of its generate.py)."""
    pipeline: str
    """diffusers pipeline class."""
    components: tuple[Component, ...]
    needs_image: bool
    default_size: Size
    """Native landscape size; its area is the pixel budget where an image sets the shape."""
    max_pixels: int
    """Area of the largest stable output."""
    grid: int = 16
    """Width and height are generated in multiples of this: VAE stride 8 x patch 2."""
    temporal_stride: int = 4
    """Frames are generated as 4k+1: the VAE's temporal stride."""
    native_frames: int = 81
    max_frames: int = 161
    fps: int = 16
    steps: int = 50
    guidance_scale: float = 5.0
    flow_shift: float = 3.0
    min_pixels: int = 480 * 832
    """Area under which quality drops visibly; smaller sizes are made, with a warning."""

    @property
    def component_names(self) -> tuple[str, ...]:
        return tuple(component.name for component in self.components)


@dataclass(frozen=True)
class Installed:
    """A model whose weights are here."""

    component_bytes: Mapping[str, int]
    """Bytes in memory of each component, by name."""
    tiny: bool
    """The toy set: right in every shape and name, and meaningless as a picture."""


_T2V_1_3B = Model(
    id="wan2.1-t2v-1.3b",
    wan_task="t2v-1.3B",
    pipeline="WanPipeline",
    components=(UMT5_TOKENIZER, UMT5, VAE_2_1, _transformer("wan2.1-t2v-1.3b")),
    needs_image=False,
    default_size=(832, 480),
    max_pixels=1280 * 720,
)

_I2V_14B_480P = Model(
    id="wan2.1-i2v-14b-480p",
    wan_task="i2v-14B",
    pipeline="WanImageToVideoPipeline",
    components=(
        UMT5_TOKENIZER,
        UMT5,
        VAE_2_1,
        CLIP_PROCESSOR,
        CLIP,
        _transformer("wan2.1-i2v-14b-480p"),
    ),
    needs_image=True,
    default_size=(832, 480),
    max_pixels=854 * 480,
)

MODELS: Final = MappingProxyType({model.id: model for model in (_T2V_1_3B, _I2V_14B_480P)})
"""Every model by id. Order is preference: of several that serve a request, the last one is best."""


def components_of(model_ids: list[str]) -> tuple[Component, ...]:
    """The components that these models need, each once, in a stable order."""
    return tuple(dict.fromkeys(c for model_id in model_ids for c in MODELS[model_id].components))
