"""Which models have weights that make a clip in four steps? (``acceleration: turbo``)

Adapters that were distilled from a model so that four steps without guidance do what fifty with it
did. They are published by lightx2v (Apache-2.0) as LoRAs, one for each transformer, for the
schedule below: the noise at 1, 0.75, 0.5 and 0.25, shifted by 5, steps of Euler's
(github.com/ModelTC/LightX2V: ``denoising_step_list``, ``sample_shift``, ``step_distill``).
Its sampler for Wan 2.1 draws fresh noise between the steps; ours goes on without, as diffusers'
own schedulers do, so that a seed alone decides.

Not covered: which model has which (models); putting them on a model (pipelines.lora). No LoRA of a
known origin is published for the 1.3B, the 5B, VACE and FLF2V.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from wan_worker.catalog.components import Component

STEPS: Final = 4
GUIDANCE: Final = 1.0
SOLVER: Final = "euler"
FLOW_SHIFT: Final = 5.0

_WAN_2_1, _WAN_2_2 = "lightx2v/Wan2.1-Distill-Loras", "lightx2v/Wan2.2-Distill-Loras"

Stage = Literal["high", "low", "both"]


@dataclass(frozen=True)
class Distilled:
    """One transformer's adapter."""

    component: Component
    stage: Stage = "both"
    """The expert that it is for."""


def _loras(
    model_id: str, repository: str, files: Mapping[Stage, tuple[str, int]]
) -> tuple[Distilled, ...]:
    """A model's adapters, in the order of its transformers.

    Args:
        files: name and size in bytes of each file of the repository, by the expert it is for.
    """
    return tuple(
        Distilled(
            Component(
                name=f"{model_id}.turbo" + ("" if stage == "both" else f"-{stage}"),
                role="turbo",
                class_name="peft:LoraModel",
                repository=repository,
                hub_bytes=size,
                stored_bytes=size,
                keep_fp32=True,
                at_top=True,
                file=file,
            ),
            stage,
        )
        for stage, (file, size) in files.items()
    )


T2V_14B: Final = _loras(
    "wan2.1-t2v-14b",
    _WAN_2_1,
    {
        "both": ("wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors", 631_000_000),
    },
)
I2V_480P: Final = _loras(
    "wan2.1-i2v-14b-480p",
    _WAN_2_1,
    {
        "both": ("wan2.1_i2v_lora_rank64_lightx2v_4step.safetensors", 739_472_104),
    },
)
T2V_A14B: Final = _loras(
    "wan2.2-t2v-a14b",
    _WAN_2_2,
    {
        "high": (
            "wan2.2_t2v_A14b_high_noise_lora_rank64_lightx2v_4step_1217.safetensors",
            614_000_000,
        ),
        "low": (
            "wan2.2_t2v_A14b_low_noise_lora_rank64_lightx2v_4step_1217.safetensors",
            614_000_000,
        ),
    },
)
I2V_A14B: Final = _loras(
    "wan2.2-i2v-a14b",
    _WAN_2_2,
    {
        "high": (
            "wan2.2_i2v_A14b_high_noise_lora_rank64_lightx2v_4step_1022.safetensors",
            634_645_944,
        ),
        "low": (
            "wan2.2_i2v_A14b_low_noise_lora_rank64_lightx2v_4step_1022.safetensors",
            739_472_104,
        ),
    },
)
