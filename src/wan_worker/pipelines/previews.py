"""What will it look like? One small picture of a job that is still being made.

While it denoises: flow matching goes in a straight line from the clip to noise, so that two latents
on the way say where the line ends. Of that estimate one frame is decoded, small, by the VAE that
the job is going to decode with. While it decodes: a frame that is there anyway.

Promises: reads the latents and leaves them, the decoder and every random generator as they were.
Not covered: when to draw one, and what becomes of a fault (progress.Viewer).
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from wan_worker.planning.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    import torch

SIDE: Final = 256
"""Pixels of a preview's longer side, at most."""

QUALITY: Final = 75


class LatentPreviews:
    """Previews of one denoising call.

    Args:
        pipeline: loaded, its VAE on the device that denoises.
        decode: the VAE and normalised latents [1, z, latent_frames, h, w] to chunks of uint8
            [n, height, width, 3].
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
        """Take note of the latents [outputs, z, latent_frames, h, w] after a step, from 1."""
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
    """Can denoising be watched? Where components take turns, the VAE is elsewhere meanwhile."""
    return plan.placement != "sequential"


def clean(
    before: "torch.Tensor", now: "torch.Tensor", noise_before: float, noise: float
) -> "torch.Tensor":
    """The clip that a step was heading for.

    At noise level s latents are ``(1 - s) * clip + s * noise``: two of them make the clip. It is
    what the model said for Euler, and what the solvers that look back make of several such.

    Args:
        before, now: latents before and after the step, of any one shape.
        noise_before, noise: their noise levels, from 1 to 0.
    """
    if noise_before <= noise:
        return now
    ratio = noise / noise_before
    return (now - ratio * before) / (1 - ratio)


def smaller(latents: "torch.Tensor", scale: int) -> "torch.Tensor":
    """Latents [1, z, 1, h, w] whose picture is at most SIDE pixels long, ``scale`` for each."""
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
