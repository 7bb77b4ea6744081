"""Can the plan's prompt be rewritten here, and what happens to the language model's weights? Pure.

Not covered: rewriting it (prompts.enhance).
"""

from dataclasses import replace
from typing import Final

from wan_worker.catalog.components import ENHANCER, Component
from wan_worker.catalog.models import Installed
from wan_worker.machine.hardware import Hardware
from wan_worker.planning.memory import Layout, gb, loaded_bytes, stay_together
from wan_worker.planning.plan import Plan
from wan_worker.request.parse import Notice

CHAT_BYTES: Final = 1024**3
"""Memory for a chat beside the language model's weights; Qwen2.5-7B's cache takes 56 KB a token."""


def decide(
    planned: Plan,
    installed: Installed,
    hardware: Hardware,
    enhancer: Component,
    weights: Installed | None,
) -> Plan:
    """Decide whether the plan's prompt can be rewritten, and what happens to the weights.

    They stay in memory if they fit beside the video model's. Otherwise they are released after the
    prompt is written, before denoising.

    Args:
        installed: the sizes of the plan's model.
        weights: the language model's, or None where they are not installed.
    """
    if not any(output.prompt for output in planned.outputs):
        return unchanged(planned, "there is none to rewrite")
    if weights is None or (weights.tiny and not planned.tiny):
        option = "" if enhancer == ENHANCER else f" {enhancer.repository}"
        return unchanged(
            planned,
            f"{enhancer.repository} is not installed in this worker; install it with: "
            f"python download_weights.py --enhancer{option}",
        )
    size = loaded_bytes(weights, hardware)[enhancer.name]
    if size + CHAT_BYTES > hardware.free_bytes:
        return unchanged(
            planned,
            f"{enhancer.repository} takes {gb(size + CHAT_BYTES)} of memory and "
            f"{hardware.name} has {gb(hardware.free_bytes)}",
        )
    model = loaded_bytes(installed, hardware)
    alone = Layout(planned.placement, room_bytes=hardware.free_bytes - size - CHAT_BYTES)
    stays = stay_together(hardware, planned.layout, alone, model, {enhancer.name: size})
    weights_reason = (
        f"its {gb(size)} stay in memory beside the model's {gb(sum(model.values()))}"
        if stays
        else f"its {gb(size)} are released before denoising: beside the model's "
        f"{gb(sum(model.values()))} there is no room"
    )
    return replace(
        planned,
        enhancer="keep" if stays else "release",
        reasons=(*planned.reasons, f"enhance_prompt: by {enhancer.repository}; {weights_reason}"),
    )


def unchanged(planned: Plan, why: str) -> Plan:
    """The plan with the user's own prompt, and a notice that says so."""
    notice = Notice("PROMPT_NOT_ENHANCED", f"The prompt was used as it came: {why}.")
    return replace(planned, enhancer=None, notices=(*planned.notices, notice))
