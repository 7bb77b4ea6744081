"""Which models are there, with which components, sizes, frame rules and native defaults?

A new model is one entry here; `make docs` writes everything else that follows from it. A frozen
table: nothing is computed from the machine. Facts come from the models' own repositories and from
Wan's code: github.com/Wan-Video/Wan2.1 (``generate.py``: each task's steps
and shift; ``wan/configs``) and Wan2.2 (``wan/configs``: ``sample_steps``, ``sample_shift``,
``sample_guide_scale``, ``boundary``, ``sample_fps`` and ``frame_num``). Other constants name their
source. Not covered: where weights are on disk (weights), which model a job takes (plan).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from wan_worker.catalog import distilled, magcache_ratios
from wan_worker.catalog.components import (
    CLIP,
    CLIP_PROCESSOR,
    I2V_480P_REPOSITORY,
    T2V_1_3B_REPOSITORY,
    TI2V_5B_REPOSITORY,
    UMT5,
    UMT5_TOKENIZER,
    UPSCALER,
    VAE_2_1,
    VAE_2_2,
    Component,
    transformer,
)
from wan_worker.catalog.distilled import Distilled
from wan_worker.catalog.magcache_ratios import Curve
from wan_worker.catalog.transformer_config import TransformerConfig

Size = tuple[int, int]
"""Width and height in pixels."""

MAX_PROMPT_TOKENS: Final = 512
"""umT5 context length of every Wan model (``text_len`` in wan/configs/shared_config.py)."""

MAX_WORK: Final = 1280 * 720 * 161 * 50
"""Pixels x frames x steps x outputs beyond which a job is refused before anything is loaded: 50
steps of the largest clip, about an hour of one H100 on a 14B model. For each segment of a video."""

NEGATIVE_PROMPT: Final = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""Wan's own ``sample_neg_prompt`` (wan/configs/shared_config.py)."""


Use = Literal["none", "optional", "required"]
"""What a model does with a picture."""


@dataclass(frozen=True)
class Model:
    """A Wan model as this worker serves it."""

    id: str
    title: str
    """What people call it; RunPod's Hub offers it under this name."""
    wan_task: str
    """Wan's own name for it (``--task`` of its generate.py)."""
    repository: str
    """Its diffusers repository on the Hub, with a folder for every component."""
    repository_bytes: int
    """What a plain download of it takes, its own copies of what models share included."""
    parts: tuple[Component, ...]
    """Its components but for its transformers."""
    config: TransformerConfig
    """Of its transformer, or of both experts."""
    transformer_bytes: tuple[int, int]
    """Size of each transformer on the Hub, and in the store."""
    default_size: Size
    """Native landscape size; its area is the pixel budget where an image sets the shape."""
    max_pixels: int
    """Area of the largest stable output."""
    text_pipeline: str | None = None
    """diffusers pipeline class that starts from text alone; None: it needs a picture."""
    image_pipeline: str | None = None
    """diffusers pipeline class that is given a picture; None: it takes none."""
    image: Use = "none"
    """A video's first frame."""
    last_image: Use = "none"
    """A video's last frame."""
    boundary_ratio: float | None = None
    """Share of the noise range above which the high-noise expert works; None: one transformer."""
    expand_timesteps: bool = False
    """Every latent frame has a timestep of its own: a given first frame is at 0 from the start."""
    grid: int = 16
    """Width and height are generated in multiples of this: the VAE's spatial stride x patch 2."""
    temporal_stride: int = 4
    """Frames are generated as 4k+1: the VAE's temporal stride."""
    native_frames: int = 81
    max_frames: int = 161
    fps: int = 16
    steps: int = 50
    guidance_scale: float = 5.0
    """Of the high-noise expert, where there are two."""
    guidance_scale_2: float | None = None
    """Of the low-noise expert."""
    flow_shift: float | None = None
    """None: 3.0 up to 480p and 5.0 above, as Wan's scheduler configurations ship."""
    min_pixels: int = 480 * 832
    """Area under which quality drops visibly; smaller sizes are made, with a warning."""
    magcache: Curve | None = None
    """What is published for ``acceleration: cached``."""
    turbo: tuple[Distilled, ...] = ()
    """What is published for ``acceleration: turbo``, in the order of its transformers."""

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """Its parts and its transformers; ``transformer_2`` is the low-noise expert."""
        roles = ("transformer", "transformer_2") if self.two_experts else ("transformer",)
        made = (self.id, self.repository, self.config.class_name, *self.transformer_bytes)
        return (*self.parts, *(transformer(role, *made) for role in roles))

    @property
    def turbo_names(self) -> tuple[str, ...]:
        """The components that turbo needs beside the model's own."""
        return tuple(one.component.name for one in self.turbo)

    @property
    def component_names(self) -> tuple[str, ...]:
        return tuple(component.name for component in self.components)

    @property
    def two_experts(self) -> bool:
        return self.boundary_ratio is not None


@dataclass(frozen=True)
class Installed:
    """A model, or an extra component, whose weights are here."""

    component_bytes: Mapping[str, int]
    """Bytes in memory of each component, by name."""
    tiny: bool
    """The toy set: right in every shape and name, and meaningless as a picture."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Where each component is, by name."""


_PARTS = (UMT5_TOKENIZER, UMT5, VAE_2_1)
_PARTS_WITH_CLIP = (*_PARTS, CLIP_PROCESSOR, CLIP)
_480P, _720P, _1080P = 854 * 480, 1280 * 720, 1920 * 1080

_MADE_FOR_720P = 1024 * 576
"""Least area of a model that was trained at 720p alone and has a sibling for 480p."""

_1_3B = TransformerConfig(num_attention_heads=12, ffn_dim=8960, num_layers=30)
_14B = TransformerConfig(num_attention_heads=40, ffn_dim=13824, num_layers=40)
_14B_WITH_CLIP = replace(_14B, in_channels=36, image_dim=1280, added_kv_proj_dim=5120)

_IN_ORDER: Final = (
    Model(
        id="wan2.1-t2v-1.3b",
        title="Wan 2.1 text to video 1.3B",
        wan_task="t2v-1.3B",
        repository=T2V_1_3B_REPOSITORY,
        repository_bytes=28_930_000_000,
        parts=_PARTS,
        config=_1_3B,
        transformer_bytes=(5_675_987_200, 2_844_248_192),
        default_size=(832, 480),
        max_pixels=_720P,
        text_pipeline="WanPipeline",
        magcache=magcache_ratios.T2V_1_3B,
    ),
    Model(
        id="wan2.1-vace-1.3b",
        title="Wan 2.1 VACE 1.3B (image to video)",
        wan_task="vace-1.3B",
        repository="Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        repository_bytes=19_040_000_000,
        parts=_PARTS,
        config=replace(_1_3B, vace_layers=tuple(range(0, 30, 2)), vace_in_channels=96),
        # On the Hub the T2V's part is in fp32 and VACE's own in bf16.
        transformer_bytes=(7_145_937_664, 4_314_567_296),
        default_size=(832, 480),
        max_pixels=_720P,
        image_pipeline="WanVACEPipeline",
        image="optional",
        last_image="optional",
        flow_shift=16.0,
    ),
    Model(
        id="wan2.2-ti2v-5b",
        title="Wan 2.2 text or image to video 5B",
        wan_task="ti2v-5B",
        repository=TI2V_5B_REPOSITORY,
        repository_bytes=34_200_000_000,
        parts=(UMT5_TOKENIZER, UMT5, VAE_2_2),
        config=TransformerConfig(
            num_attention_heads=24, ffn_dim=14336, num_layers=30, in_channels=48, out_channels=48
        ),
        transformer_bytes=(19_999_150_848, 10_021_521_792),
        default_size=(1280, 704),
        max_pixels=_1080P,
        text_pipeline="WanPipeline",
        image_pipeline="WanImageToVideoPipeline",
        image="optional",
        expand_timesteps=True,
        grid=32,
        native_frames=121,
        max_frames=241,
        fps=24,
        flow_shift=5.0,
        min_pixels=_MADE_FOR_720P,
        magcache=magcache_ratios.TI2V_5B,
    ),
    Model(
        id="wan2.1-t2v-14b",
        title="Wan 2.1 text to video 14B",
        wan_task="t2v-14B",
        repository="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        repository_bytes=80_410_000_000,
        parts=_PARTS,
        config=_14B,
        transformer_bytes=(57_153_966_336, 28_635_351_168),
        default_size=(1280, 720),
        max_pixels=_720P,
        text_pipeline="WanPipeline",
        magcache=magcache_ratios.T2V_14B,
        turbo=distilled.T2V_14B,
    ),
    Model(
        id="wan2.1-i2v-14b-480p",
        title="Wan 2.1 image to video 14B 480p",
        wan_task="i2v-14B",
        repository=I2V_480P_REPOSITORY,
        repository_bytes=90_090_000_000,
        parts=_PARTS_WITH_CLIP,
        config=_14B_WITH_CLIP,
        transformer_bytes=(65_579_515_136, 32_848_151_168),
        default_size=(832, 480),
        max_pixels=_480P,
        image_pipeline="WanImageToVideoPipeline",
        image="required",
        steps=40,
        magcache=magcache_ratios.I2V_480P,
        turbo=distilled.I2V_480P,
    ),
    Model(
        id="wan2.1-i2v-14b-720p",
        title="Wan 2.1 image to video 14B 720p",
        wan_task="i2v-14B",
        repository="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
        repository_bytes=90_090_000_000,
        parts=_PARTS_WITH_CLIP,
        config=_14B_WITH_CLIP,
        transformer_bytes=(65_579_515_136, 32_848_151_168),
        default_size=(1280, 720),
        max_pixels=_720P,
        image_pipeline="WanImageToVideoPipeline",
        image="required",
        steps=40,
        min_pixels=_MADE_FOR_720P,
        magcache=magcache_ratios.I2V_720P,
    ),
    Model(
        id="wan2.1-flf2v-14b-720p",
        title="Wan 2.1 first and last frame 14B 720p",
        wan_task="flf2v-14B",
        repository="Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
        repository_bytes=90_090_000_000,
        parts=_PARTS_WITH_CLIP,
        config=replace(_14B_WITH_CLIP, pos_embed_seq_len=514),
        transformer_bytes=(65_582_146_816, 32_849_467_008),
        default_size=(1280, 720),
        max_pixels=_720P,
        image_pipeline="WanImageToVideoPipeline",
        image="required",
        last_image="required",
        flow_shift=16.0,
    ),
    Model(
        id="wan2.2-t2v-a14b",
        title="Wan 2.2 text to video A14B",
        wan_task="t2v-A14B",
        repository="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        repository_bytes=126_200_000_000,
        parts=_PARTS,
        config=_14B,
        transformer_bytes=(57_153_966_336, 28_635_351_168),
        default_size=(1280, 720),
        max_pixels=_1080P,
        text_pipeline="WanPipeline",
        boundary_ratio=0.875,
        steps=40,
        guidance_scale=4.0,
        guidance_scale_2=3.0,
        flow_shift=12.0,
        magcache=magcache_ratios.T2V_A14B,
        turbo=distilled.T2V_A14B,
    ),
    Model(
        id="wan2.2-i2v-a14b",
        title="Wan 2.2 image to video A14B",
        wan_task="i2v-A14B",
        repository="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        repository_bytes=126_200_000_000,
        parts=_PARTS,
        config=replace(_14B, in_channels=36),
        transformer_bytes=(57_155_604_736, 28_636_170_368),
        default_size=(1280, 720),
        max_pixels=_1080P,
        image_pipeline="WanImageToVideoPipeline",
        image="required",
        last_image="optional",
        boundary_ratio=0.9,
        steps=40,
        guidance_scale=3.5,
        guidance_scale_2=3.5,
        flow_shift=5.0,
        magcache=magcache_ratios.I2V_A14B,
        turbo=distilled.I2V_A14B,
    ),
)
MODELS: Final = MappingProxyType({model.id: model for model in _IN_ORDER})
"""Every model by id. Order is preference: of several that serve a request, the last one is best."""


def _other_names() -> dict[str, str]:
    names: dict[str, str] = {}
    for model in MODELS.values():
        for name in (model.wan_task, model.wan_task.upper()):
            names.setdefault(name, model.id)
    return names


OTHER_NAMES: Final[Mapping[str, str]] = MappingProxyType(_other_names())
"""Wan's task names, as its code writes them and in capitals, to ids. Two models share i2v-14B; it
means the 480p one."""


EXTRAS: Final = MappingProxyType(
    {
        part.name: part
        for part in (UPSCALER, *(one.component for m in MODELS.values() for one in m.turbo))
    }
)
"""Components that are no part of a Wan model and are installed by their own names."""


def components_of(names: list[str]) -> tuple[Component, ...]:
    """The components that these models and extras need, each once, in a stable order."""
    parts = (MODELS[n].components if n in MODELS else (EXTRAS[n],) for n in names)
    return tuple(dict.fromkeys(component for group in parts for component in group))


def stored_bytes(names: list[str]) -> int:
    """Disk that these models and extras take in one store, what they share counted once."""
    return sum(component.stored_bytes for component in components_of(names))


@cache
def repositories_of(component: Component) -> tuple[str, ...]:
    """Every Hub repository that holds a copy of the component, the store's own source first."""
    holders = [m.repository for m in MODELS.values() if component in m.components]
    return tuple(dict.fromkeys((component.repository, *holders)))
