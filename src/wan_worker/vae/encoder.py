"""How do a clip's frames become latents? One at a time, and what does not change is not made again.

The encoder is causal like the decoder (causal). Of the clip that image-to-video conditions on, one
frame is a picture and the others are all alike. Once all that a layer can see is alike, its output
is the one before, to the bit: the first layers, at full size, are done with a clip's 81 frames
after some twenty. Diffusers computes them all, four frames at a time, and again for each output of
a batch.
Not covered: tiles (diffusers' own); what is encoded (conditions).
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
    """While this is open ``vae.encode`` encodes as this module does, where it needs no tiles.

    A clip is taken to be as it was when the very same tensor comes again.
    """
    before, diffusers_way = vars(vae).get("_encode"), vae._encode
    last: tuple[Callable[[], Any], torch.Tensor] | None = None

    def encode(clip: "torch.Tensor") -> "torch.Tensor":
        nonlocal last
        high, wide = vae.tile_sample_min_height, vae.tile_sample_min_width
        if vae.use_tiling and (clip.shape[3] > high or clip.shape[4] > wide):
            tiled: torch.Tensor = diffusers_way(clip)
            return tiled
        if last is None or last[0]() is not clip:  # diffusers asks for each output of a batch
            # The clip itself, gigabytes perhaps, is not kept for that.
            last = weakref.ref(clip), moments(vae, clip)
        return last[1].clone()

    vae._encode = encode
    try:
        yield
    finally:
        del vae._encode
        if before is not None:
            vae._encode = before


def moments(vae: Any, clip: "torch.Tensor") -> "torch.Tensor":
    """What ``vae._encode`` computes.

    Args:
        clip: [n, 3, 4k + 1, height, width].

    Returns:
        Mean and logarithm of the variance, [n, 2z, k + 1, h, w].
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    if vae.config.patch_size is not None:
        clip = patchify(clip, patch_size=vae.config.patch_size)
    way, encoder = _Way(), vae.encoder
    made = []
    for frame in _frames(clip):
        reduced = way.through(encoder, frame)
        if reduced is not None:
            made.append(reduced)
    found: torch.Tensor = vae.quant_conv(torch.stack(made, dim=2))
    return found


def _frames(clip: "torch.Tensor") -> "Iterator[torch.Tensor]":
    """[n, c, h, w] each; one that equals the one before is the same object."""
    alike = (clip[:, :, 1:] == clip[:, :, :-1]).all(dim=4).all(dim=3).all(dim=1).all(dim=0)
    frame = channels_last(clip[:, :, 0])
    yield frame
    for index, same in enumerate(alike.to("cpu").tolist(), 1):
        if not same:
            frame = channels_last(clip[:, :, index])
        yield frame


@dataclass(frozen=True)
class _Way:
    """One clip's way through the encoder, and what its layers remember of it.

    A tensor that is the same object as the one before has not changed.
    """

    past: Past = field(default_factory=dict)
    runs: "dict[Any, tuple[tuple[torch.Tensor, ...], int, torch.Tensor]]" = field(
        default_factory=dict
    )
    """By layer: what it was given last, how many times in a row, and what it made."""
    waiting: "dict[Any, tuple[torch.Tensor, ...]]" = field(default_factory=dict)
    """By layer that halves time: the last frame of the pair before, and what came since."""

    def through(self, encoder: Any, frame: "torch.Tensor") -> "torch.Tensor | None":
        """A latent frame, or None where more frames are needed for one."""
        frame = self._convolved(encoder.conv_in, frame)
        for block in encoder.down_blocks:
            smaller = self._reduced(block, frame)
            if smaller is None:
                return None
            frame = smaller
        middle = encoder.mid_block
        frame = self._residual(middle.resnets[0], frame)
        for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
            frame = self._residual(block, self._attended(attention, frame))
        norm = encoder.norm_out
        active = self._once(norm, 0, (frame,), lambda: activated(norm, frame))
        return self._convolved(encoder.conv_out, active)

    def _reduced(self, block: Any, frame: "torch.Tensor") -> "torch.Tensor | None":
        """Through a residual block, a step down in size, or Wan 2.2's block of both."""
        if hasattr(block, "conv1"):
            return self._residual(block, frame)
        if hasattr(block, "resample"):
            return self._smaller(block, frame)
        shortcut = block.avg_shortcut
        given = (frame,) if shortcut.factor_t == 1 else self._gathered(shortcut, frame)
        for each in block.resnets:
            frame = self._residual(each, frame)
        made = frame if block.downsampler is None else self._smaller(block.downsampler, frame)
        if made is None or given is None:
            return None
        around = given[-shortcut.factor_t :]
        return self._once(block, 0, (made, *around), lambda: _averaged(shortcut, around).add_(made))

    def _smaller(self, layer: Any, frame: "torch.Tensor") -> "torch.Tensor | None":
        """A WanResample: half the size, and where it halves time too, one frame of two."""
        smaller = self._once(layer, 0, (frame,), lambda: layer.resample(frame))
        if layer.mode == "downsample2d":
            return smaller
        frames = self._gathered(layer, smaller)
        if frames is None:
            return None
        if len(frames) == 1:  # a clip's first has no pair: diffusers passes it on as it is
            return smaller

        def halved() -> "torch.Tensor":
            import torch

            return product(layer.time_conv, torch.cat(frames, dim=1))

        return self._once(layer.time_conv, 0, frames, halved)

    def _gathered(self, layer: Any, frame: "torch.Tensor") -> "tuple[torch.Tensor, ...] | None":
        """A clip's first frame by itself, then each pair with the frame before it."""
        frames = (*self.waiting.get(layer, ()), frame)
        if len(frames) == 2:
            self.waiting[layer] = frames
            return None
        self.waiting[layer] = (frame,)
        return frames

    def _residual(self, block: Any, frame: "torch.Tensor") -> "torch.Tensor":
        return self._once(block, 4, (frame,), lambda: residual(block, frame, self.past))

    def _convolved(self, layer: Any, frame: "torch.Tensor") -> "torch.Tensor":
        return self._once(layer, 2, (frame,), lambda: convolved(layer, frame, self.past))

    def _attended(self, attention: Any, frame: "torch.Tensor") -> "torch.Tensor":
        def attended() -> "torch.Tensor":
            return channels_last(attention(frame.unsqueeze(2)).squeeze(2))

        return self._once(attention, 0, (frame,), attended)

    def _once(
        self,
        layer: Any,
        reach: int,
        given: "tuple[torch.Tensor, ...]",
        make: "Callable[[], torch.Tensor]",
    ) -> "torch.Tensor":
        """What the layer makes; what it made before, where it can see no difference.

        Args:
            reach: how many frames before this one it sees.
        """
        last, run, made = self.runs.pop(layer, ((), 0, None))
        alike = len(last) == len(given) and all(map(operator.is_, last, given))
        run = run + 1 if alike else 1
        # Alike to one more than it sees: so did the one before.
        if made is None or run < reach + 2:
            last, made = (), None  # not held while the next is made
            made = make()
        self.runs[layer] = given, run, made
        return made


def _averaged(shortcut: Any, frames: "tuple[torch.Tensor, ...]") -> "torch.Tensor":
    """An AvgDown3D on as many frames as it makes one of, or on a clip's first."""
    import torch

    made: torch.Tensor = shortcut(torch.stack(frames, dim=2))
    return made.squeeze(2)
