"""What is a pipeline given beside prompt and numbers? Pictures, in the form that it takes them.

Three forms: image-to-video takes pictures and encodes them itself; VACE takes a clip, grey where
nothing is known, and a mask of what it is to make; image-to-image starts from the picture's own
latents under as much noise as the schedule's first step expects (``solver.scheduler`` begins
that late).
Not covered: fetching and fitting pictures (references).
"""

from typing import TYPE_CHECKING, Any

from wan_worker.inputs.references import References
from wan_worker.planning.plan import Plan

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def arguments(
    pipeline: Any, plan: Plan, references: References, generators: list["torch.Generator"]
) -> dict[str, Any]:
    """Keyword arguments for the pipeline's call; none for plain generation.

    Args:
        generators: one for each output, for the noise that is drawn here.
        references: at the plan's generated size.
    """
    extra: dict[str, Any] = {}
    if plan.pipeline == "WanVACEPipeline":
        video, mask = known_frames(plan, references)
        extra = {"video": video, "mask": mask}
    elif plan.strength is not None and references.first is not None:
        extra = {"latents": noised(pipeline, plan, references.first, generators)}
    elif references.last is not None:
        extra = {"image": references.first, "last_image": references.last}
    elif references.first is not None:
        extra = {"image": references.first}
    return extra


def known_frames(plan: Plan, references: References) -> tuple["torch.Tensor", "torch.Tensor"]:
    """VACE's clip and mask.

    Returns:
        Both float32 [1, frames, 3, height, width]: the clip from 0 to 1 with the pictures at its
        ends and mid-grey between, the mask 0 where the clip is to stay and 1 where it is made.
    """
    import torch

    width, height = plan.generated_size
    video = torch.full((1, plan.generated_frames, 3, height, width), 0.5)
    mask = torch.ones_like(video)
    for index, picture in ((0, references.first), (-1, references.last)):
        if picture is not None:
            video[0, index] = (pixels(picture) + 1) / 2
            mask[0, index] = 0
    return video, mask


def noised(
    pipeline: Any, plan: Plan, picture: "Image", generators: list["torch.Generator"]
) -> "torch.Tensor":
    """Image-to-image's start: latents [outputs, z, 1, h, w], the picture's under noise.

    Flow matching goes in a straight line from the picture to noise, so that at noise level sigma
    it is ``(1 - sigma) * picture + sigma * noise``.
    """
    import torch

    vae, device = pipeline.vae, pipeline._execution_device
    pipeline.scheduler.set_timesteps(plan.num_inference_steps)
    sigma = float(pipeline.scheduler.sigmas[0])
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=device).view(shape)
    with torch.no_grad():
        given = pixels(picture)[None, :, None].to(device, vae.dtype)
        latents: torch.Tensor = (vae.encode(given).latent_dist.mode().float() - mean) / std
    noise = torch.cat([torch.randn(latents.shape, generator=one) for one in generators])
    return (1 - sigma) * latents + sigma * noise.to(device)


def pixels(picture: "Image") -> "torch.Tensor":
    """float32 [3, height, width] from -1 to 1."""
    import numpy as np
    import torch

    return torch.tensor(np.array(picture), dtype=torch.float32).permute(2, 0, 1) / 127.5 - 1
