"""What are Wan's pipelines put together from, and what does each piece weigh?

Sizes are parameters times width; the parameters were counted on the real classes (the tests count
them again). Not covered: which model needs which pieces (catalog), where they are (weights).
"""

from dataclasses import dataclass
from typing import Final

from wan_worker.settings import WeightType


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
    at_top: bool = False
    """Its files lie at the top of its repository, not in a folder named for the role."""
    file: str = ""
    """The one file of its repository that it is; empty where it is a folder."""
    release: "Release | None" = None
    """Where it is published, if that is outside the Hub."""

    @property
    def hub_folder(self) -> str:
        """The folder of its repository that holds it; empty for the top."""
        return "" if self.at_top else self.role

    def entry(self, kind: WeightType) -> str:
        """Its name in memory: transformers with weights of another type are another entry."""
        plain = kind == "bf16" or not self.role.startswith("transformer")
        return self.name if plain else f"{self.name}@{kind}"


@dataclass(frozen=True)
class Release:
    """One file at an https address, fixed to the byte."""

    url: str
    tag: str
    sha256: str


T2V_1_3B_REPOSITORY: Final = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
I2V_480P_REPOSITORY: Final = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
TI2V_5B_REPOSITORY: Final = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"

# Every Wan repository holds the same text encoder: the 2.1 ones in fp32 (22.7 GB), the 2.2 ones in
# bf16, so the store takes a 2.2 copy, half the download, and the tokenizer that lies beside it.
UMT5 = Component(
    name="umt5-xxl",
    role="text_encoder",
    class_name="transformers:UMT5EncoderModel",
    repository=TI2V_5B_REPOSITORY,
    hub_bytes=11_361_820_672,
    stored_bytes=11_361_820_672,
)
UMT5_TOKENIZER = Component(
    name="umt5-tokenizer",
    role="tokenizer",
    class_name="transformers:AutoTokenizer",
    repository=TI2V_5B_REPOSITORY,
    hub_bytes=22_000_000,
    stored_bytes=22_000_000,
)
VAE_2_1 = Component(
    name="wan2.1-vae",
    role="vae",
    class_name="diffusers:AutoencoderKLWan",
    repository=T2V_1_3B_REPOSITORY,
    hub_bytes=507_570_124,
    stored_bytes=507_570_124,
    keep_fp32=True,
)
VAE_2_2 = Component(
    name="wan2.2-vae",
    role="vae",
    class_name="diffusers:AutoencoderKLWan",
    repository=TI2V_5B_REPOSITORY,
    hub_bytes=2_818_754_672,
    stored_bytes=2_818_754_672,
    keep_fp32=True,
)
CLIP = Component(
    name="clip-vit-h",
    role="image_encoder",
    class_name="transformers:CLIPVisionModel",
    repository=I2V_480P_REPOSITORY,
    hub_bytes=1_261_532_160,
    stored_bytes=1_261_532_160,
)
CLIP_PROCESSOR = Component(
    name="clip-image-processor",
    role="image_processor",
    class_name="transformers:CLIPImageProcessorPil",
    repository=I2V_480P_REPOSITORY,
    hub_bytes=1_000,
    stored_bytes=1_000,
)


UPSCALER: Final = Component(
    name="real-esrgan-x4plus",
    role="upscaler",
    class_name="wan_worker.weights.real_esrgan:Parameters",
    repository="xinntao/Real-ESRGAN",
    hub_bytes=67_040_989,
    stored_bytes=66_791_948,
    keep_fp32=True,
    # Size and hash as many public projects pin them for this very address.
    release=Release(
        url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth",
        tag="v0.1.0",
        sha256="4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
    ),
)


def transformer(
    role: str, model_id: str, repository: str, class_name: str, hub_bytes: int, stored_bytes: int
) -> Component:
    """A model's own transformer, or one of its two experts."""
    return Component(
        name=f"{model_id}.{role}",
        role=role,
        class_name=f"diffusers:{class_name}",
        repository=repository,
        hub_bytes=hub_bytes,
        stored_bytes=stored_bytes,
    )


def enhancer(repository: str) -> Component:
    """The language model of a plain transformers repository: model, tokenizer, chat template.

    The sizes are those of the default one; of another, the Hub's listing tells.
    """
    return Component(
        name=repository.rpartition("/")[2].lower(),
        role="enhancer",
        class_name="transformers:AutoModelForCausalLM",
        repository=repository,
        hub_bytes=15_242_000_000,
        stored_bytes=15_242_000_000,
        at_top=True,
    )


ENHANCER: Final = enhancer("Qwen/Qwen2.5-7B-Instruct")
"""Rewrites prompts. In bfloat16 on the Hub already: 15,231,233,024 bytes, and its tokenizer."""
