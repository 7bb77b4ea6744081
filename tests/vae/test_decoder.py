"""Our way through the decoder against diffusers' own, on both of Wan's VAEs made small."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.builders.vaes import WAN_2_1, WAN_2_2, small
from wan_worker.vae.causal import Past, activated
from wan_worker.vae.decoder import pictures


@pytest.fixture(params=[WAN_2_1, WAN_2_2], ids=["2.1", "2.2"])
def vae(request: pytest.FixtureRequest) -> Any:
    return small(request.param)


def latents(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, frames, 5, 6, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def ours(vae: Any, given: torch.Tensor) -> torch.Tensor:
    """What ``vae.decode`` returns of these latents."""
    past: Past = {}
    given = vae.post_quant_conv(given)
    made = [p for i in range(given.shape[2]) for p in pictures(vae.decoder, given[:, :, i], past)]
    whole = torch.stack(made, dim=2)
    if vae.config.patch_size is not None:
        whole = unpatchify(whole, patch_size=vae.config.patch_size)
    return whole.clamp(-1, 1)


@torch.no_grad()
def theirs(vae: Any, given: torch.Tensor) -> torch.Tensor:
    decoded: torch.Tensor = vae.decode(given, return_dict=False)[0]
    return decoded


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_the_pictures_are_diffusers_own(vae: Any, frames: int) -> None:
    vae = vae.double()
    given = latents(frames).double()
    expected = theirs(vae, given)
    assert expected.std() > 0.05
    assert (expected.abs() < 1).double().mean() > 0.5
    made = ours(vae, given)
    assert made.shape == expected.shape
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


def test_in_single_precision_they_differ_by_the_order_of_sums(vae: Any) -> None:
    given = latents(3)
    torch.testing.assert_close(ours(vae, given), theirs(vae, given), rtol=0, atol=1e-5)


def test_in_bf16_they_are_as_near_to_the_truth_as_diffusers_own(vae: Any) -> None:
    given = latents(3)
    truth = theirs(vae, given)
    half = copy.deepcopy(vae).to(torch.bfloat16)
    off = (ours(half, given.bfloat16()).float() - truth).square().mean()
    stock = (theirs(half, given.bfloat16()).float() - truth).square().mean()
    assert off < 1.2 * stock


def test_norm_and_silu_in_bf16_round_where_diffusers_rounds(vae: Any) -> None:
    block = copy.deepcopy(vae.decoder.up_blocks[0].resnets[0]).to(torch.bfloat16)
    frame = (torch.randn(1, block.in_dim, 7, 9) * 3).bfloat16()
    with torch.no_grad():
        expected = block.nonlinearity(block.norm1(frame.unsqueeze(2))).squeeze(2)
        assert torch.equal(activated(block.norm1, frame), expected)


def test_every_convolution_is_given_frames_with_channels_last(
    vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, orders = torch.nn.functional.conv2d, []

    def seen(frame: torch.Tensor, kernel: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if frame.shape[1] > 1:
            orders.append(frame.is_contiguous(memory_format=torch.channels_last))
        return real(frame, kernel, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "conv2d", seen)
    ours(vae, latents(3))
    assert len(orders) > 50
    assert all(orders)


def test_a_frame_is_a_picture_before_the_next_one_starts(vae: Any) -> None:
    past: Past = {}
    z = latents(2)
    with torch.no_grad():
        list(pictures(vae.decoder, z[:, :, 0], past))
        before = past[vae.decoder.conv_out]
        made = pictures(vae.decoder, z[:, :, 1], past)
        next(made)
        assert len(before) == 1
        assert past[vae.decoder.conv_out][0] is before[0]
        # Of the four the next two levels have seen no more than the first needs.
        last = vae.decoder.up_blocks[-1].resnets[0].conv1
        assert len(past[last]) == 2
        first_two = past[last]
        next(made)
        assert past[last][0] is first_two[1]


def test_diffusers_own_decoder_works_as_before_on_weights_that_we_laid_out(vae: Any) -> None:
    given = latents(3)
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    expected = theirs(vae, given)
    ours(vae, given)
    assert all(torch.equal(weight, before[name]) for name, weight in vae.state_dict().items())
    torch.testing.assert_close(theirs(vae, given), expected, rtol=0, atol=1e-5)


def test_weights_are_laid_out_once_and_not_kept_twice(vae: Any) -> None:
    ours(vae, latents(2))
    places = [weight.data_ptr() for weight in vae.decoder.parameters()]
    made: list[torch.Size] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in (torch.ops.aten.clone.default, torch.ops.aten._unsafe_view.default):
                made.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    with Copies():
        ours(vae, latents(2))
    assert [weight.data_ptr() for weight in vae.decoder.parameters()] == places
    kernels = {
        layer.weight.transpose(1, 2).shape
        for layer in vae.decoder.modules()
        if isinstance(layer, WanCausalConv3d) and layer.kernel_size[0] > 1
    }
    assert not kernels & set(made)


def test_clips_do_not_meet(vae: Any) -> None:
    first, second = latents(3), latents(3, seed=1)
    expected = ours(vae, first), ours(vae, second)
    pasts: tuple[Past, Past] = {}, {}
    made: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
    with torch.no_grad():
        for index in range(3):
            for given, past, out in zip((first, second), pasts, made, strict=True):
                z = vae.post_quant_conv(given[:, :, index : index + 1]).squeeze(2)
                out += [vae_picture(vae, picture) for picture in pictures(vae.decoder, z, past)]
    for out, whole in zip(made, expected, strict=True):
        torch.testing.assert_close(torch.cat(out, 2), whole, rtol=0, atol=1e-6)


def vae_picture(vae: Any, picture: torch.Tensor) -> torch.Tensor:
    picture = picture.unsqueeze(2)
    if vae.config.patch_size is not None:
        picture = unpatchify(picture, patch_size=vae.config.patch_size)
    return picture.clamp(-1, 1)


def test_the_past_is_two_frames_at_each_convolution_over_time(vae: Any) -> None:
    past: Past = {}
    for index in range(4):
        with torch.no_grad():
            list(pictures(vae.decoder, latents(4)[:, :, index], past))
    over_time = {
        layer
        for layer in vae.decoder.modules()
        if isinstance(layer, WanCausalConv3d) and layer.kernel_size[0] > 1
    }
    assert set(past) == over_time
    assert {len(frames) for frames in past.values()} == {2}
    assert all(frame.shape[0] == 1 and frame.dim() == 4 for f in past.values() for frame in f)


def test_tensors_alive_at_once_are_fewer_than_diffusers(vae: Any) -> None:
    """Over a long enough clip for every cache to be full."""
    given = latents(4)
    ours(vae, given)  # lays the weights out
    with torch.no_grad():
        z = vae.post_quant_conv(given)
        with Alive() as mine:
            past: Past = {}
            for index in range(4):
                for _ in pictures(vae.decoder, z[:, :, index], past):
                    pass
        features = [None] * 60
        with Alive() as stock:
            for index in range(4):
                vae.decoder(
                    z[:, :, index : index + 1],
                    feat_cache=features,
                    feat_idx=[0],
                    first_chunk=index == 0,
                )
    assert mine.peak < 0.65 * stock.peak


class Alive(TorchDispatchMode):
    """The largest sum of the sizes of storages made in it that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __enter__(self) -> "Alive":
        gc.collect()
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, torch.Tensor)
        }
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._sizes and key not in given:
                    self._sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
