"""Plan and pipeline -> latents -> frames, chunk by chunk.

diffusers' pipeline makes the latents. The decoding is ours (vae.decoder), because the stock one
holds every frame in fp32 before the first can be written. We decode one latent frame at a time and
return its pictures as uint8, so that memory does not grow with the length of the video.

Promises: the same plan, image and machine give the same frames, whatever ran before. An output has
the same content in a batch as alone, to the bit if it is denoised alone (batch_size 1). A cancelled
job stops within one denoising step. The VAE keeps its hooks and the values of its weights.
Not covered: files (media.encode) and memory faults (clips).
"""

import copy
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from wan_worker.catalog.models import MAX_PROMPT_TOKENS
from wan_worker.errors import GenerationFailed
from wan_worker.inputs.references import References
from wan_worker.pipelines import (
    batched_guidance,
    compiling,
    conditioning,
    magcache,
    previews,
    sync_free,
    text_cache,
)
from wan_worker.planning.activations import Decode
from wan_worker.planning.plan import Plan
from wan_worker.prompts.embeddings import Embeddings, Key
from wan_worker.request.parse import Notice
from wan_worker.timing.progress import Control
from wan_worker.vae import encoder, to_host
from wan_worker.vae.causal import Past
from wan_worker.vae.decoder import pictures
from wan_worker.vae.tiles import in_tiles

if TYPE_CHECKING:
    import numpy as np
    import torch

    Frames = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]
    """uint8 [frames, height, width, 3], RGB."""


def encode_prompts(
    pipeline: Any, plan: Plan, known: Embeddings
) -> tuple["torch.Tensor", "torch.Tensor | None", tuple[Notice, ...]]:
    """The plan's prompts as umT5 embeddings: each distinct text is encoded once, by itself.

    Args:
        known: embeddings of earlier texts. If it has all of them, the encoder does not run.

    Returns:
        The prompts' [outputs, 512, text_dim] and the negative prompt's [1, 512, text_dim] (None
        without guidance), both on the device that denoises; and the notices for the user.
    """
    import torch

    notices = []
    prompts = list(dict.fromkeys(output.prompt for output in plan.outputs))
    for index, prompt in enumerate(prompts):
        tokens = len(pipeline.tokenizer(prompt, verbose=False).input_ids)
        if tokens > MAX_PROMPT_TOKENS:
            which = f"Prompt {index + 1}" if index else "The prompt"
            notices.append(
                Notice(
                    "PROMPT_TRUNCATED",
                    f"{which} has {tokens} tokens; the model reads the first {MAX_PROMPT_TOKENS}.",
                )
            )
    encoder = next(c.name for c in plan.model.components if c.role == "text_encoder")
    guided = [plan.negative_prompt] if plan.guidance_scale > 1.0 else []
    encoded: dict[str, torch.Tensor] = {}
    for text in dict.fromkeys([*prompts, *guided]):
        key = Key(text, encoder, str(pipeline.text_encoder.dtype))
        known_embedding = known.get(key)
        if known_embedding is None:
            with torch.no_grad():
                encoded[text], _ = pipeline.encode_prompt(
                    prompt=text,
                    do_classifier_free_guidance=False,
                    # The default of encode_prompt is 226 tokens, that of __call__ is 512.
                    max_sequence_length=MAX_PROMPT_TOKENS,
                )
            known.put(key, encoded[text])
        else:
            encoded[text] = known_embedding.to(plan.device)
    # For placement sequential: otherwise the encoder stays on the GPU until the transformer's turn.
    pipeline.maybe_free_model_hooks()
    embeds = torch.cat([encoded[output.prompt] for output in plan.outputs])
    return embeds, encoded[plan.negative_prompt] if guided else None, tuple(notices)


def denoise(
    pipeline: Any,
    plan: Plan,
    prompt_embeds: "torch.Tensor",
    negative_prompt_embeds: "torch.Tensor | None",
    references: References,
    control: Control,
) -> "torch.Tensor":
    """Normalised latents [outputs, z, latent_frames, h, w] of the plan's outputs.

    Args:
        prompt_embeds: [outputs, 512, text_dim].
        negative_prompt_embeds: [1, 512, text_dim], or None without guidance.
        references: pictures at the plan's generated size; none without pictures in the request.

    Raises:
        Canceled, DeadlineExceeded: from the step callback, within one step.
        GenerationFailed: the model produced NaN or infinity.
    """
    import torch

    def on_step_end(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        # An exception is the only clean way out: with the pipeline's interrupt flag it would
        # return a half-denoised clip as a success.
        control.step(step + 1, plan.steps_taken)
        if viewer is not None:
            sketch.see(step + 1, tensors["latents"])
            viewer.offer(sketch.draw, control.stage, step + 1)
        return {}

    viewer = control.viewer if previews.possible(plan) else None
    sketch = previews.LatentPreviews(pipeline, decode)

    width, height = plan.generated_size
    count = len(plan.outputs)
    if negative_prompt_embeds is not None:
        negative_prompt_embeds = negative_prompt_embeds.expand(count, -1, -1)

    def run() -> torch.Tensor:
        # Noise is drawn on the CPU, so that a seed gives the same noise on every device. Each
        # output has its own generator, so that a seed gives the same noise in every batch.
        generators = [torch.Generator("cpu").manual_seed(output.seed) for output in plan.outputs]
        with (
            encoder.frame_by_frame(pipeline.vae),
            sync_free.timesteps(pipeline),
            text_cache.applied(pipeline, plan),
            magcache.applied(pipeline, plan),
            batched_guidance.applied(pipeline, plan, negative_prompt_embeds),
        ):
            denoised: torch.Tensor = pipeline(
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                height=height,
                width=width,
                num_frames=plan.generated_frames,
                num_inference_steps=plan.num_inference_steps,
                guidance_scale=plan.guidance_scale,
                guidance_scale_2=plan.guidance_scale_2,
                generator=generators if count > 1 else generators[0],
                output_type="latent",
                return_dict=False,
                callback_on_step_end=on_step_end,
                callback_on_step_end_tensor_inputs=[] if viewer is None else ["latents"],
                **conditioning.arguments(pipeline, plan, references, generators),
            )[0]
        return denoised

    try:
        latents = compiling.or_eagerly(pipeline, run)
    finally:
        # The pipeline does this only on success.
        pipeline.maybe_free_model_hooks()
    if not bool(torch.isfinite(latents).all()):
        raise GenerationFailed("The model produced NaN; try another seed or a lower guidance_scale")
    return latents


def frames(
    vae: Any, latents: "torch.Tensor", plan: Plan, control: Control
) -> Generator["Frames", None, None]:
    """The plan's frames in order, cropped to its size and cut to its length.

    Yields:
        uint8 [n, height, width, 3]: first one frame, then up to four at a time.
    """
    delivered, total = 0, latents.shape[2]
    for index, chunk in enumerate(decode(vae, latents, plan.layout.decode, control.check)):
        chunk = chunk[: plan.num_frames - delivered]
        delivered += len(chunk)
        visible = cropped(chunk.numpy(), plan)
        yield visible
        control.step(index + 1, total)
        if control.viewer is not None:
            control.viewer.offer(partial(previews.jpeg, visible[-1]), control.stage, index + 1)
        if delivered == plan.num_frames:
            return


def cropped(frames: "Frames", plan: Plan) -> "Frames":
    """The centre of generated frames, at the plan's size, as a contiguous array."""
    import numpy as np

    if plan.size is None:
        raise ValueError("the size is not known before the image is")
    width, height = plan.size
    left, top = (plan.generated_size[0] - width) // 2, (plan.generated_size[1] - height) // 2
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])


def decode(
    vae: Any,
    latents: "torch.Tensor",
    how: Decode = "fp32",
    check: Callable[[], None] = lambda: None,
) -> Iterator["torch.Tensor"]:
    """Decode normalised latents one latent frame at a time.

    The result is that of ``vae.decode``. Its decoder is causal, so that a latent frame needs no
    later one (vae.decoder).

    Args:
        latents: [1, z, latent_frames, h, w], normalised with the VAE's own mean and std.
        how: ``fp32``: as the VAE was loaded; ``bf16``: with a copy; ``tiled``: see vae.tiles.
        check: called now and then while nothing is yielded for long; raises to stop.

    Yields:
        uint8 [n, height, width, 3] in main memory: n is first 1, then the temporal stride.

    Raises:
        GenerationFailed: the decoder produced NaN.
    """
    import torch

    hook = getattr(vae, "_hf_hook", None)
    if hook is not None:  # model offload moves a module in its forward, but we call its parts
        hook.pre_forward(vae)
    parts = (vae.post_quant_conv, vae.decoder)
    if how == "bf16":
        # Only the parts are copied: a copy of the VAE's hook would copy the other components too.
        parts = tuple(copy.deepcopy(part).to(torch.bfloat16) for part in parts)
    try:
        if how == "tiled":
            scale = vae.config.scale_factor_spatial
            yield from in_tiles(lambda z: _decode(vae, parts, z), latents, scale, check)
        else:
            yield from _decode(vae, parts, latents)
    finally:
        if hook is not None:
            vae.to("cpu")


def _decode(
    vae: Any, parts: tuple[Any, ...], latents: "torch.Tensor"
) -> Generator["torch.Tensor", None, None]:
    return to_host.to_host(_chunks(vae, parts, latents))


def _chunks(
    vae: Any, parts: tuple[Any, ...], latents: "torch.Tensor"
) -> Generator[tuple["torch.Tensor", "torch.Tensor"], None, None]:
    import torch

    post_quant_conv, decoder = parts
    config, weight = vae.config, next(decoder.parameters())
    device, dtype = weight.device, weight.dtype
    shape = (1, config.z_dim, 1, 1, 1)
    mean = torch.tensor(config.latents_mean, device=device).view(shape)
    std = torch.tensor(config.latents_std, device=device).view(shape)
    past: Past = {}
    for index in range(latents.shape[2]):
        with torch.no_grad():
            z = latents[:, :, index : index + 1].to(device, torch.float32) * std + mean
            z = post_quant_conv(z.to(dtype)).squeeze(2)
            made_pictures = [_pixels(vae, picture) for picture in pictures(decoder, z, past)]
            chunk, finite = zip(*made_pictures, strict=True)
            yield torch.cat(chunk), torch.stack(finite).all()


def _pixels(vae: Any, picture: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """A decoded picture [1, c, h, w] as uint8 [1, height, width, 3], and whether it was finite."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    pixels = picture.unsqueeze(2)
    if vae.config.patch_size is not None:
        pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
    finite = torch.isfinite(pixels).all()
    # From -1..1 to 0..255, rounded to nearest.
    pixels = pixels.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
    # The device that made the pixels interleaves them: a GPU takes no time for it, but the CPU
    # would take longer than the copy to it.
    return pixels[0].permute(1, 2, 3, 0).contiguous(), finite
