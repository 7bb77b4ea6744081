"""Which components make up Wan's pipelines, and how large is each?

A size is the number of parameters times the bytes of one. The parameters were counted on the real
classes, and the tests count them again.
Not covered: which model needs which components (models), where they are (weights.store).
"""

from dataclasses import dataclass
from typing import Final

from wan_worker.settings import WeightType


@dataclass(frozen=True)
class Component:
    """One part of a pipeline. It is stored once, for every model that names it."""

    name: str
    """Its folder in the store."""
    role: str
    """Name of the pipeline's constructor argument, and of the folder in a diffusers repository."""
    class_name: str
    """``library:Class`` that loads it."""
    repository: str
    """The one Hub repository that the store's copy is downloaded from."""
    hub_bytes: int
    """Size of its files on the Hub."""
    stored_bytes: int
    """Size in the store: bf16, but fp32 for the tensors that must stay so."""
    keep_fp32: bool = False
    """It stays in fp32. For the VAE: encoding to bf16 latents shifts image-to-video."""
    at_top: bool = False
    """Its files are at the top of its repository, not in a folder with the role's name."""
    file: str = ""
    """Its one file in its repository; empty if it is a folder."""
    release: "Release | None" = None
    """Where it is published, if that is outside the Hub."""

    @property
    def hub_folder(self) -> str:
        """Its folder in its repository; empty for the top."""
        return "" if self.at_top else self.role

    def entry(self, kind: WeightType) -> str:
        """Its name in memory. A transformer with another weight type is another entry."""
        plain = kind == "bf16" or not self.role.startswith("transformer")
        return self.name if plain else f"{self.name}@{kind}"


@dataclass(frozen=True)
class Release:
    """One file at an https address. The hash fixes its bytes."""

    url: str
    tag: str
    sha256: str


T2V_1_3B_REPOSITORY: Final = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
I2V_480P_REPOSITORY: Final = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
TI2V_5B_REPOSITORY: Final = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"

# Every Wan repository holds the same text encoder: the 2.1 ones in fp32 (22.7 GB), the 2.2 ones in
# bf16. The store takes a 2.2 copy, which is half the download, and the tokenizer beside it.
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
    # Many public projects pin this size and this hash for this address.
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

    The sizes are those of the default one. For another one, the Hub's listing has them.
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
"""Rewrites prompts. The Hub has it in bfloat16: 15,231,233,024 bytes, and its tokenizer."""
