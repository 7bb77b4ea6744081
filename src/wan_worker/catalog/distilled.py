"""Which models have weights that make a clip in four steps? (``acceleration: turbo``)

These are adapters. They were distilled from a model: four steps without guidance do the work of
fifty with guidance. lightx2v publishes them (Apache-2.0) as LoRAs, one for each transformer. They
need the schedule below: Euler steps at noise 1, 0.75, 0.5 and 0.25, shifted by 5
(github.com/ModelTC/LightX2V: ``denoising_step_list``, ``sample_shift``, ``step_distill``).
LightX2V's sampler for Wan 2.1 draws fresh noise between the steps. Ours does not, like diffusers'
own schedulers, so that the seed alone decides.

Not covered: which model has which adapters (models), applying them (pipelines.lora). No LoRA of
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
    """The expert that the adapter is for."""


def _loras(
    model_id: str, repository: str, files: Mapping[Stage, tuple[str, int]]
) -> tuple[Distilled, ...]:
    """A model's adapters, in the order of its transformers.

    Args:
        files: name and size in bytes of each file in the repository, by its expert.
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
