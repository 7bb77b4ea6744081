"""Where a pipeline's weights are, put into practice: on the GPU, taking turns, or passing through.

By the hooks of accelerate and diffusers. They are taken off every component before the next job's
pipeline is put together (``unhook``), so that none holds another job's parts.
Not covered: which layout (memory).
"""

from collections.abc import Mapping
from typing import Any, Final

from wan_worker.planning.activations import TILE, TILE_STRIDE
from wan_worker.planning.plan import Plan
from wan_worker.prompts.enhance import Enhancer


def arrange(pipeline: Any, plan: Plan) -> None:
    """Put a pipeline's weights where the plan's layout has them."""
    vae = pipeline.vae
    if plan.layout.tiled_encode:
        vae.enable_tiling(TILE, TILE, TILE_STRIDE, TILE_STRIDE)
    else:
        vae.disable_tiling()
    match plan.placement:
        case "sequential":
            pipeline.enable_model_cpu_offload(device=plan.device)
        case "group":
            for role, part in pipeline.components.items():
                if role == "vae":
                    move(part, plan.device)
                elif part is not None and role in _PASSING:
                    move(part, "cpu")
                    _pass_through(part, plan.device, _PASSING[role])
        case "resident":
            if plan.device == "cuda":
                pipeline.to("cuda")


_PASSING: Final[Mapping[str, str]] = {
    "transformer": "block_level",
    "transformer_2": "block_level",
    # transformers' models don't tell diffusers which of their layers are blocks.
    "text_encoder": "leaf_level",
    "image_encoder": "leaf_level",
}


def _pass_through(part: Any, device: str, kind: str) -> None:
    """Let a module's weights wait in main memory and visit the device block by block."""
    import torch
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        part,
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=1,
        # The next block is fetched while this one computes.
        use_stream=device == "cuda",
    )


def unhook(part: Any) -> None:
    """Take off what moves a component's weights; what narrows them (quantize) is part of it."""
    if getattr(part, "_hf_hook", None) is not None:
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(part)
    for module in part.modules() if hasattr(part, "modules") else ():
        registry = getattr(module, "_diffusers_hook", None)
        if registry is not None:
            for name in _MOVING_HOOKS & set(registry.hooks):
                registry.remove_hook(name, recurse=False)


_MOVING_HOOKS: Final = frozenset(
    {"group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading"}
)
"""The names that diffusers' group offloading registers its hooks under."""


def move(part: Any, device: str) -> None:
    """Bring a component's weights to a device; what has none stays as it is."""
    module = _module(part)
    if module is not None:
        module.to(device)


def is_on_gpu(part: Any) -> bool:
    """Any of it: a job that failed while its weights moved may have left a block there."""
    module = _module(part)
    return module is not None and any(p.device.type == "cuda" for p in module.parameters())


def _module(part: Any) -> Any:
    module = part.model if isinstance(part, Enhancer) else part
    return module if hasattr(module, "parameters") else None
