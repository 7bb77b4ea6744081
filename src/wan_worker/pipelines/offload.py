"""Carries out a plan's placement: weights stay on the GPU, take turns there, or pass through it.

The hooks of accelerate and diffusers do it. Before the next job's pipeline is made, ``unhook``
removes them from every component, so that no hook refers to another job's components.
Not covered: the choice of layout (planning.memory).
"""

from collections.abc import Mapping
from typing import Any, Final

from wan_worker.planning.activations import TILE, TILE_STRIDE
from wan_worker.planning.plan import Plan
from wan_worker.prompts.enhance import Enhancer


def arrange(pipeline: Any, plan: Plan) -> None:
    """Put a pipeline's weights where the plan's layout says."""
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
    # In transformers' models, diffusers can't see which layers are blocks.
    "text_encoder": "leaf_level",
    "image_encoder": "leaf_level",
}


def _pass_through(part: Any, device: str, kind: str) -> None:
    """Keep a module's weights in main memory, and bring them to the device block by block."""
    import torch
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        part,
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=1,
        # With a stream, the next block is copied while this one computes.
        use_stream=device == "cuda",
    )


def unhook(part: Any) -> None:
    """Remove the hooks that move a component's weights; hooks that narrow them (quantize) stay."""
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
"""Names under which diffusers' group offloading registers its hooks."""


def move(part: Any, device: str) -> None:
    """Bring a component's weights to a device; a component without weights is left alone."""
    module = _module(part)
    if module is not None:
        module.to(device)


def is_on_gpu(part: Any) -> bool:
    """Whether any weight is on the GPU: a job that failed during a move may leave a block there."""
    module = _module(part)
    return module is not None and any(p.device.type == "cuda" for p in module.parameters())


def _module(part: Any) -> Any:
    module = part.model if isinstance(part, Enhancer) else part
    return module if hasattr(module, "parameters") else None
