"""Which models are there, with which components, sizes, frame rules and native defaults?

A frozen table; nothing here is computed from the machine. Facts come from the models' own
repositories and from Wan's code (github.com/Wan-Video/Wan2.1, ``wan/configs``); each constant
names its source. Not covered: where weights are on disk (weights), which model a job takes (plan).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
    """Name of the pipeline's constructor argument, and of the folder in a diffusers repository."""
    class_name: str
    """``library:Class`` that loads it."""
    repository: str
    """The one Hub repository that the store's copy is downloaded from."""
    hub_bytes: int
    """Size of its files there."""
    stored_bytes: int
    """Size in the store: in bf16, with what must stay in fp32 in fp32."""
    keep_fp32: bool = False
    """Encoding to bf16 latents shifts image-to-video, so the VAE stays in fp32."""


_T2V_1_3B_REPOSITORY = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
_I2V_480P_REPOSITORY = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
_TI2V_5B_REPOSITORY = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"

# Every Wan repository holds the same text encoder: the 2.1 ones in fp32 (22.7 GB), the 2.2 ones in
# bf16, so the store takes a 2.2 copy, half the download, and the tokenizer that lies beside it.
# Sizes are parameters times width; the parameters were counted on the real classes.
UMT5 = Component(
    name="umt5-xxl",
    role="text_encoder",
    class_name="transformers:UMT5EncoderModel",
    repository=_TI2V_5B_REPOSITORY,
    hub_bytes=11_361_820_672,
    stored_bytes=11_361_820_672,
)
UMT5_TOKENIZER = Component(
    name="umt5-tokenizer",
    role="tokenizer",
    class_name="transformers:AutoTokenizer",
    repository=_TI2V_5B_REPOSITORY,
    hub_bytes=22_000_000,
    stored_bytes=22_000_000,
)
VAE_2_1 = Component(
    name="wan2.1-vae",
    role="vae",
    class_name="diffusers:AutoencoderKLWan",
    repository=_T2V_1_3B_REPOSITORY,
    hub_bytes=507_570_124,
    stored_bytes=507_570_124,
    keep_fp32=True,
)
CLIP = Component(
    name="clip-vit-h",
    role="image_encoder",
    class_name="transformers:CLIPVisionModel",
    repository=_I2V_480P_REPOSITORY,
    hub_bytes=1_261_532_160,
    stored_bytes=1_261_532_160,
)
CLIP_PROCESSOR = Component(
    name="clip-image-processor",
    role="image_processor",
    class_name="transformers:CLIPImageProcessorPil",
    repository=_I2V_480P_REPOSITORY,
    hub_bytes=1_000,
    stored_bytes=1_000,
)


def _transformer(model_id: str, repository: str, *, hub_bytes: int, stored_bytes: int) -> Component:
    return Component(
        name=f"{model_id}.transformer",
        role="transformer",
        class_name="diffusers:WanTransformer3DModel",
        repository=repository,
        hub_bytes=hub_bytes,
        stored_bytes=stored_bytes,
    )


@dataclass(frozen=True)
class Model:
    """A Wan model as this worker serves it."""

    id: str
    wan_task: str
    """Wan's own name for it (``--task`` of its generate.py)."""
    pipeline: str
    """diffusers pipeline class."""
    repository: str
    """Its diffusers repository on the Hub, with a folder for every component."""
    repository_bytes: int
    """What a plain download of it takes, its own copies of what models share included."""
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
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Where each component is, by name."""


_T2V_1_3B = Model(
    id="wan2.1-t2v-1.3b",
    wan_task="t2v-1.3B",
    pipeline="WanPipeline",
    repository=_T2V_1_3B_REPOSITORY,
    repository_bytes=28_930_000_000,
    components=(
        UMT5_TOKENIZER,
        UMT5,
        VAE_2_1,
        _transformer(
            "wan2.1-t2v-1.3b",
            _T2V_1_3B_REPOSITORY,
            hub_bytes=5_675_987_200,
            stored_bytes=2_844_248_192,
        ),
    ),
    needs_image=False,
    default_size=(832, 480),
    max_pixels=1280 * 720,
)

_I2V_14B_480P = Model(
    id="wan2.1-i2v-14b-480p",
    wan_task="i2v-14B",
    pipeline="WanImageToVideoPipeline",
    repository=_I2V_480P_REPOSITORY,
    repository_bytes=90_090_000_000,
    components=(
        UMT5_TOKENIZER,
        UMT5,
        VAE_2_1,
        CLIP_PROCESSOR,
        CLIP,
        _transformer(
            "wan2.1-i2v-14b-480p",
            _I2V_480P_REPOSITORY,
            hub_bytes=65_579_515_136,
            stored_bytes=32_848_151_168,
        ),
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


def stored_bytes(model_ids: list[str]) -> int:
    """Disk that these models take in one store, what they share counted once."""
    return sum(component.stored_bytes for component in components_of(model_ids))


def repositories_of(component: Component) -> tuple[str, ...]:
    """Every Hub repository that holds a copy of the component, the store's own source first."""
    holders = [m.repository for m in MODELS.values() if component in m.components]
    return tuple(dict.fromkeys((component.repository, *holders)))
