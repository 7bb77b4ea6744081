"""What will the result look like? Makes one small picture of a running job.

While the job denoises: flow matching goes in a straight line from the clip to noise, so that two
latents on the line give its end. One frame of that estimate is decoded, small, with the job's own
VAE. While the job decodes: a frame that has just been decoded.

Promises: the latents, the decoder and all random generators stay unchanged.
Not covered: when to draw one, and how its failure is handled (timing.progress.Viewer).
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from wan_worker.planning.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    import torch

SIDE: Final = 256
"""Largest longer side of a preview, in pixels."""

QUALITY: Final = 75


class LatentPreviews:
    """Previews of one denoising call.

    Args:
        pipeline: loaded, with its VAE on the device that denoises.
        decode: takes the VAE and normalised latents [1, z, latent_frames, h, w], and yields chunks
            of uint8 [n, height, width, 3].
    """

    def __init__(
        self, pipeline: Any, decode: "Callable[[Any, torch.Tensor], Iterator[torch.Tensor]]"
    ) -> None:
        self._pipeline = pipeline
        self._decode = decode
        self._before: torch.Tensor | None = None
        self._latents: torch.Tensor | None = None
        self._step = 0

    def see(self, step: int, latents: "torch.Tensor") -> None:
        """Keep the latents [outputs, z, latent_frames, h, w] after a step; steps count from 1."""
        self._before, self._latents, self._step = self._latents, latents, step

    def draw(self) -> bytes | None:
        """A JPEG file of the first output's middle frame; None after the first step."""
        import torch

        if self._before is None or self._latents is None:
            return None
        sigmas = self._pipeline.scheduler.sigmas
        row, middle = slice(1), self._latents.shape[2] // 2
        with torch.no_grad():
            latents = clean(
                self._before[row, :, middle : middle + 1].float(),
                self._latents[row, :, middle : middle + 1].float(),
                float(sigmas[self._step - 1]),
                float(sigmas[self._step]),
            )
            vae = self._pipeline.vae
            (frame,) = next(self._decode(vae, smaller(latents, vae.config.scale_factor_spatial)))
        return jpeg(frame.cpu().numpy())


def possible(plan: Plan) -> bool:
    """Can denoising be previewed? Not if components take turns: the VAE is then elsewhere."""
    return plan.placement != "sequential"


def clean(
    before: "torch.Tensor", now: "torch.Tensor", noise_before: float, noise: float
) -> "torch.Tensor":
    """The clip that a step moves towards.

    At noise level s the latents are ``(1 - s) * clip + s * noise``, so that two of them give the
    clip. With Euler it is the model's prediction; with multistep solvers, a mix of several.

    Args:
        before, now: latents before and after the step, of any shape, the same for both.
        noise_before, noise: their noise levels, from 1 to 0.
    """
    if noise_before <= noise:
        return now
    ratio = noise / noise_before
    return (now - ratio * before) / (1 - ratio)


def smaller(latents: "torch.Tensor", scale: int) -> "torch.Tensor":
    """Latents [1, z, 1, h, w], shrunk to a picture of at most SIDE pixels, ``scale`` per latent."""
    import torch

    height, width = latents.shape[-2:]
    shrink = SIDE // scale / max(height, width)
    if shrink >= 1:
        return latents
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    return torch.nn.functional.interpolate(latents[:, :, 0], size, mode="area")[:, :, None]


def jpeg(frame: "np.ndarray[Any, np.dtype[np.uint8]]") -> bytes:
    """A frame [height, width, 3] as a small JPEG file."""
    from PIL import Image

    picture, file = Image.fromarray(frame), BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
