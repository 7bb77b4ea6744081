"""In which form does each pipeline get the request's pictures?

There are three forms. Image-to-video takes pictures and encodes them itself. VACE takes a clip,
grey where no picture is known, and a mask of the part to make. Image-to-image starts from the
picture's own latents, with as much noise as the schedule's first step expects
(``schedulers.scheduler`` begins that late).
Not covered: fetching and fitting pictures (inputs.references).
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
    """Keyword arguments for the pipeline's call; none if there are no pictures.

    Args:
        generators: one for each output; image-to-image draws its noise from them.
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
        Both float32 [1, frames, 3, height, width]. The clip, from 0 to 1, has the pictures at its
        ends and mid-grey between them. The mask is 0 for given frames and 1 for frames to make.
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
    """Image-to-image's start: the picture's latents with noise, [outputs, z, 1, h, w].

    Flow matching goes in a straight line from the picture to noise. So the latents at noise level
    sigma are ``(1 - sigma) * picture + sigma * noise``.
    """
    import torch

    vae, device = pipeline.vae, pipeline._execution_device
    pipeline.scheduler.set_timesteps(plan.num_inference_steps)
    sigma = float(pipeline.scheduler.sigmas[0])
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=device).view(shape)
    with torch.no_grad():
        pixel_values = pixels(picture)[None, :, None].to(device, vae.dtype)
        latents: torch.Tensor = (vae.encode(pixel_values).latent_dist.mode().float() - mean) / std
    noise = torch.cat([torch.randn(latents.shape, generator=generator) for generator in generators])
    return (1 - sigma) * latents + sigma * noise.to(device)


def pixels(picture: "Image") -> "torch.Tensor":
    """The picture as float32 [3, height, width], from -1 to 1."""
    import numpy as np
    import torch

    return torch.tensor(np.array(picture), dtype=torch.float32).permute(2, 0, 1) / 127.5 - 1
