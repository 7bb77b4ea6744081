"""The other side of every comparison: a job as diffusers' own documentation does it.

The pipeline's ``__call__`` with its default output, ``export_to_video``, boto3's uploader and a
presigned URL. Its S3 client is made once, which is kinder than what most workers do.
"""

from pathlib import Path
from typing import Any


def export(frames: Any, target: Path, fps: int) -> None:
    """float [n, height, width, 3], 0..1, to an mp4 with diffusers' defaults."""
    from diffusers.utils import export_to_video

    export_to_video(frames, str(target), fps=fps)


def upload(client: Any, bucket: str, target: Path, key: str) -> str:
    """Put a file, and return a URL of it."""
    client.upload_file(str(target), bucket, key, ExtraArgs={"ContentType": "video/mp4"})
    url: str = client.generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=86_400
    )
    return url


def decode(vae: Any, latents: Any) -> Any:
    """Normalised latents to what a pipeline returns: float [n, height, width, 3], on the CPU."""
    import torch
    from diffusers.video_processor import VideoProcessor

    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    latents = latents.to(vae.device, vae.dtype)
    with torch.no_grad():
        video = vae.decode(latents * std.to(latents) + mean.to(latents), return_dict=False)[0]
    frames = VideoProcessor(vae_scale_factor=8).postprocess_video(video, output_type="np")
    return frames[0]
