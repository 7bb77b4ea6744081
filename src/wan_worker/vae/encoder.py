"""How do a clip's frames become latents? One at a time, and a repeated result is reused.

The encoder is causal like the decoder (causal). Image-to-video conditions on a clip with one
picture; all its other frames are equal. Once a layer sees only equal frames, its output is the same
as before, to the bit. The first layers, at full size, compute only about twenty of a clip's 81
frames. Diffusers computes all of them, four at a time, and again for each output of a batch.
Not covered: tiles (diffusers' own); which clip is encoded (pipelines.conditioning).
"""

import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wan_worker.vae.causal import Past, activated, channels_last, convolved, product, residual

if TYPE_CHECKING:
    import torch


@contextmanager
def frame_by_frame(vae: Any) -> Iterator[None]:
    """Make ``vae.encode`` use this module inside the block, for clips that need no tiles.

    If the same tensor object comes again, the clip counts as unchanged.
    """
    overridden, diffusers_encode = vars(vae).get("_encode"), vae._encode
    last_result: tuple[Callable[[], Any], torch.Tensor] | None = None

    def encode(clip: "torch.Tensor") -> "torch.Tensor":
        nonlocal last_result
        max_height, max_width = vae.tile_sample_min_height, vae.tile_sample_min_width
        if vae.use_tiling and (clip.shape[3] > max_height or clip.shape[4] > max_width):
            tiled: torch.Tensor = diffusers_encode(clip)
            return tiled
        # Diffusers encodes the same clip for each output of a batch. The reference is weak, because
        # the clip may take gigabytes and must not stay in memory for this.
        if last_result is None or last_result[0]() is not clip:
            last_result = weakref.ref(clip), moments(vae, clip)
        return last_result[1].clone()

    vae._encode = encode
    try:
        yield
    finally:
        del vae._encode
        if overridden is not None:
            vae._encode = overridden


def moments(vae: Any, clip: "torch.Tensor") -> "torch.Tensor":
    """Compute what ``vae._encode`` computes.

    Args:
        clip: [n, 3, 4k + 1, height, width].

    Returns:
        Mean and logarithm of the variance, [n, 2z, k + 1, h, w].
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    if vae.config.patch_size is not None:
        clip = patchify(clip, patch_size=vae.config.patch_size)
    encoder_pass, encoder = _EncoderPass(), vae.encoder
    latent_frames = []
    for frame in _frames(clip):
        latent_frame = encoder_pass.through(encoder, frame)
        if latent_frame is not None:
            latent_frames.append(latent_frame)
    result: torch.Tensor = vae.quant_conv(torch.stack(latent_frames, dim=2))
    return result


def _frames(clip: "torch.Tensor") -> "Iterator[torch.Tensor]":
    """Yield frames [n, c, h, w]. A frame equal to the one before is the same tensor object."""
    alike = (clip[:, :, 1:] == clip[:, :, :-1]).all(dim=4).all(dim=3).all(dim=1).all(dim=0)
    frame = channels_last(clip[:, :, 0])
    yield frame
    for index, same in enumerate(alike.to("cpu").tolist(), 1):
        if not same:
            frame = channels_last(clip[:, :, index])
        yield frame


@dataclass(frozen=True)
class _EncoderPass:
    """One clip's pass through the encoder, with what its layers keep between frames.

    If a tensor is the same object as the one before, it has not changed.
    """

    past: Past = field(default_factory=dict)
    runs: "dict[Any, tuple[tuple[torch.Tensor, ...], int, torch.Tensor]]" = field(
        default_factory=dict
    )
    """For each layer: its last inputs, how many times in a row they came, and its output."""
    unpaired: "dict[Any, tuple[torch.Tensor, ...]]" = field(default_factory=dict)
    """For each layer that halves time: the last frame of the pair before, and the frame since."""

    def through(self, encoder: Any, frame: "torch.Tensor") -> "torch.Tensor | None":
        """Return a latent frame, or None if it needs more frames."""
        frame = self._convolved(encoder.conv_in, frame)
        for block in encoder.down_blocks:
            smaller = self._through_block(block, frame)
            if smaller is None:
                return None
            frame = smaller
        middle = encoder.mid_block
        frame = self._residual(middle.resnets[0], frame)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            frame = self._residual(block, self._attended(attention, frame))
        norm = encoder.norm_out
        active = self._cached(norm, 0, (frame,), lambda: activated(norm, frame))
        return self._convolved(encoder.conv_out, active)

    def _through_block(self, block: Any, frame: "torch.Tensor") -> "torch.Tensor | None":
        """Run a residual block, a downsampler, or Wan 2.2's block that has both."""
        if hasattr(block, "conv1"):
            return self._residual(block, frame)
        if hasattr(block, "resample"):
            return self._downsampled(block, frame)
        shortcut = block.avg_shortcut
        shortcut_input = (frame,) if shortcut.factor_t == 1 else self._pair(shortcut, frame)
        for resnet in block.resnets:
            frame = self._residual(resnet, frame)
        output = frame if block.downsampler is None else self._downsampled(block.downsampler, frame)
        if output is None or shortcut_input is None:
            return None
        shortcut_frames = shortcut_input[-shortcut.factor_t :]
        return self._cached(
            block,
            0,
            (output, *shortcut_frames),
            lambda: _averaged(shortcut, shortcut_frames).add_(output),
        )

    def _downsampled(self, layer: Any, frame: "torch.Tensor") -> "torch.Tensor | None":
        """Run a WanResample: it halves the size. If it halves time too, two frames become one."""
        smaller = self._cached(layer, 0, (frame,), lambda: layer.resample(frame))
        if layer.mode == "downsample2d":
            return smaller
        frames = self._pair(layer, smaller)
        if frames is None:
            return None
        if len(frames) == 1:  # a clip's first frame has no pair: diffusers passes it on unchanged
            return smaller

        def halved() -> "torch.Tensor":
            import torch

            return product(layer.time_conv, torch.cat(frames, dim=1))

        return self._cached(layer.time_conv, 0, frames, halved)

    def _pair(self, layer: Any, frame: "torch.Tensor") -> "tuple[torch.Tensor, ...] | None":
        """Return a clip's first frame alone, then each pair together with the frame before it."""
        frames = (*self.unpaired.get(layer, ()), frame)
        if len(frames) == 2:
            self.unpaired[layer] = frames
            return None
        self.unpaired[layer] = (frame,)
        return frames

    def _residual(self, block: Any, frame: "torch.Tensor") -> "torch.Tensor":
        return self._cached(block, 4, (frame,), lambda: residual(block, frame, self.past))

    def _convolved(self, layer: Any, frame: "torch.Tensor") -> "torch.Tensor":
        return self._cached(layer, 2, (frame,), lambda: convolved(layer, frame, self.past))

    def _attended(self, attention: Any, frame: "torch.Tensor") -> "torch.Tensor":
        def attended() -> "torch.Tensor":
            return channels_last(attention(frame.unsqueeze(2)).squeeze(2))

        return self._cached(attention, 0, (frame,), attended)

    def _cached(
        self,
        layer: Any,
        reach: int,
        inputs: "tuple[torch.Tensor, ...]",
        compute: "Callable[[], torch.Tensor]",
    ) -> "torch.Tensor":
        """Run the layer, or return its last output if it sees no difference.

        Args:
            reach: how many earlier frames the layer sees.
        """
        last_inputs, run, output = self.runs.pop(layer, ((), 0, None))
        alike = len(last_inputs) == len(inputs) and all(map(operator.is_, last_inputs, inputs))
        run = run + 1 if alike else 1
        # Enough equal frames that the last output, too, came from equal frames only.
        if output is None or run < reach + 2:
            last_inputs, output = (), None  # free the old output before the new one is made
            output = compute()
        self.runs[layer] = inputs, run, output
        return output


def _averaged(shortcut: Any, frames: "tuple[torch.Tensor, ...]") -> "torch.Tensor":
    """Run an AvgDown3D on the frames that it averages into one, or on a clip's first frame."""
    import torch

    average: torch.Tensor = shortcut(torch.stack(frames, dim=2))
    return average.squeeze(2)
