"""Which models have weights that make a clip in four steps? (``acceleration: turbo``)

Adapters that were distilled from a model so that four steps without guidance do what fifty with it
did. They are published by lightx2v (Apache-2.0) as LoRAs, one for each transformer, for the
schedule below: the noise at 1, 0.75, 0.5 and 0.25, shifted by 5, steps of Euler's
(github.com/ModelTC/LightX2V: ``denoising_step_list``, ``sample_shift``, ``step_distill``).
Its sampler for Wan 2.1 draws fresh noise between the steps; ours goes on without, as diffusers'
own schedulers do, so that a seed alone decides.

Not covered: putting them on a model (lora); the 1.3B, the 5B, VACE and FLF2V, which no LoRA of a
known origin is published for.
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


@dataclass(frozen=True)
class Distilled:
    """One transformer's adapter."""

    component: Component
    stage: Literal["high", "low", "both"] = "both"
    """The expert that it is for."""


def _lora(name: str, repository: str, file: str, size: int) -> Component:
    return Component(
        name=name,
        role="turbo",
        class_name="peft:LoraModel",
        repository=repository,
        hub_bytes=size,
        stored_bytes=size,
        keep_fp32=True,
        at_top=True,
        file=file,
    )


TURBO: Final[Mapping[str, tuple[Distilled, ...]]] = {
    "wan2.1-t2v-14b": (
        Distilled(
            _lora(
                "wan2.1-t2v-14b.turbo",
                _WAN_2_1,
                "wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors",
                631_000_000,
            )
        ),
    ),
    "wan2.1-i2v-14b-480p": (
        Distilled(
            _lora(
                "wan2.1-i2v-14b-480p.turbo",
                _WAN_2_1,
                "wan2.1_i2v_lora_rank64_lightx2v_4step.safetensors",
                739_472_104,
            )
        ),
    ),
    "wan2.2-t2v-a14b": (
        Distilled(
            _lora(
                "wan2.2-t2v-a14b.turbo-high",
                _WAN_2_2,
                "wan2.2_t2v_A14b_high_noise_lora_rank64_lightx2v_4step_1217.safetensors",
                614_000_000,
            ),
            "high",
        ),
        Distilled(
            _lora(
                "wan2.2-t2v-a14b.turbo-low",
                _WAN_2_2,
                "wan2.2_t2v_A14b_low_noise_lora_rank64_lightx2v_4step_1217.safetensors",
                614_000_000,
            ),
            "low",
        ),
    ),
    "wan2.2-i2v-a14b": (
        Distilled(
            _lora(
                "wan2.2-i2v-a14b.turbo-high",
                _WAN_2_2,
                "wan2.2_i2v_A14b_high_noise_lora_rank64_lightx2v_4step_1022.safetensors",
                634_645_944,
            ),
            "high",
        ),
        Distilled(
            _lora(
                "wan2.2-i2v-a14b.turbo-low",
                _WAN_2_2,
                "wan2.2_i2v_A14b_low_noise_lora_rank64_lightx2v_4step_1022.safetensors",
                739_472_104,
            ),
            "low",
        ),
    ),
}
"""By model id, in the order of its transformers."""


def names_for(model_id: str) -> tuple[str, ...]:
    """The components that turbo needs beside the model; empty for a model without turbo."""
    return tuple(one.component.name for one in TURBO.get(model_id, ()))
