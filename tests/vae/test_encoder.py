"""Our way through the encoder against diffusers' own, on both of Wan's VAEs made small."""

import operator
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.builders.vaes import WAN_2_1, WAN_2_2, small
from wan_worker.vae import encoder


@pytest.fixture(params=[WAN_2_1, WAN_2_2], ids=["2.1", "2.2"])
def vae(request: pytest.FixtureRequest) -> Any:
    return small(request.param).double()


def clip(frames: int, kind: str = "moving") -> torch.Tensor:
    """[1, 3, frames, 32, 48] from -1 to 1."""
    generator = torch.Generator().manual_seed(frames)
    made = torch.rand(1, 3, frames, 32, 48, generator=generator, dtype=torch.float64) * 2 - 1
    if kind == "picture, then grey":
        made[:, :, 1:] = 0
    if kind == "picture, grey, picture":
        made[:, :, 1:-1] = 0
    if kind == "grey":
        made[:] = 0
    if kind == "still, then moving":
        made[:, :, : frames // 2] = made[:, :, :1]
    if kind == "left half still":
        made[..., :24] = made[:, :, :1, :, :24]
    if kind == "one colour still":
        made[:, 1] = made[:, 1, :1]
    if kind == "one pixel moves":
        made[..., :-1] = made[:, :, :1, :, :-1]
        made[:, :, :, :-1] = made[:, :, :1, :-1]
    return made


@torch.no_grad()
def theirs(vae: Any, given: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = vae._encode(given)
    return made


@torch.no_grad()
def ours(vae: Any, given: torch.Tensor) -> torch.Tensor:
    return encoder.moments(vae, given)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_a_moving_clips_latents_are_diffusers_own(vae: Any, frames: int) -> None:
    expected = theirs(vae, clip(frames))
    made = ours(vae, clip(frames))
    assert expected.std() > 0.01
    assert made.shape == expected.shape == (1, 8, (frames - 1) // 4 + 1, *expected.shape[3:])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "kind",
    [
        *("picture, then grey", "picture, grey, picture", "grey", "still, then moving"),
        *("left half still", "one colour still", "one pixel moves"),
    ],
)
def test_a_clip_with_frames_alike_has_diffusers_latents(vae: Any, kind: str) -> None:
    """Long enough that the first levels stop working before its end, and begin again."""
    given = clip(65, kind)
    torch.testing.assert_close(ours(vae, given), theirs(vae, given), rtol=0, atol=1e-12)


def test_of_two_clips_together_one_may_stand_still(vae: Any) -> None:
    given = torch.cat([clip(33, "grey"), clip(33)])
    torch.testing.assert_close(ours(vae, given), theirs(vae, given), rtol=0, atol=1e-12)


def test_a_clip_that_stands_still_to_its_end_settles(vae: Any) -> None:
    """Over 161 frames even the last layer has seen nothing but grey."""
    given = clip(161, "picture, then grey")
    made = ours(vae, given)
    torch.testing.assert_close(made, theirs(vae, given), rtol=0, atol=1e-12)
    torch.testing.assert_close(made[:, :, -1], made[:, :, -2], rtol=0, atol=1e-15)


def test_what_is_not_made_again_is_equal_to_the_bit(
    vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, given = vae.float(), clip(41, "picture, then grey").float()
    expected = ours(vae, given)

    def each_by_itself(clip: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from (frame.clone() for frame in real(clip))

    real = encoder._frames
    monkeypatch.setattr(encoder, "_frames", each_by_itself)
    assert torch.equal(ours(vae, given), expected)


def test_the_first_layers_stop_once_all_that_they_see_is_alike(
    vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    real = encoder.convolved

    def counted(layer: Any, frame: torch.Tensor, past: Any) -> torch.Tensor:
        calls.append(layer)
        return real(layer, frame, past)

    monkeypatch.setattr(encoder, "convolved", counted)
    ours(vae, clip(41, "picture, then grey"))
    # A picture, then grey as often as the convolution sees it, and once more.
    assert calls.count(vae.encoder.conv_in) == 1 + 3
    calls.clear()
    ours(vae, clip(41))
    assert calls.count(vae.encoder.conv_in) == 41


def test_frames_alike_are_one_object() -> None:
    given = clip(6)
    given[:, :, 3] = given[:, :, 2]
    given[:, :, 5] = given[:, :, 2]
    made = list(encoder._frames(given))
    assert list(map(operator.is_, made[1:], made)) == [False, False, True, False, False]
    assert all(torch.equal(frame, given[:, :, i]) for i, frame in enumerate(made))


def test_a_batchs_clip_is_encoded_once(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Tensor] = []
    real = encoder.moments

    def counted(vae: Any, clip: torch.Tensor) -> torch.Tensor:
        calls.append(clip)
        return real(vae, clip)

    monkeypatch.setattr(encoder, "moments", counted)
    first, second = clip(5), -clip(5)
    with torch.no_grad(), encoder.frame_by_frame(vae):
        made = [vae.encode(given).latent_dist.mode() for given in (first, first, second, first)]
        made[1].zero_()  # a caller's own
    assert [given is first for given in calls] == [True, False, True]
    expected = [theirs(vae, given)[:, :4] for given in (first, second)]
    for index, found in ((0, made[0]), (1, made[2]), (0, made[3])):
        torch.testing.assert_close(found, expected[index], rtol=0, atol=1e-12)


def test_a_clip_is_not_kept_while_it_is_denoised(vae: Any) -> None:
    given = clip(5)
    gone = weakref.ref(given)
    with torch.no_grad(), encoder.frame_by_frame(vae):
        vae.encode(given)
        del given
        assert gone() is None


@pytest.mark.parametrize(("high", "wide"), [(16, 16), (16, 48), (32, 16)])
def test_tiles_are_left_to_diffusers(
    vae: Any, monkeypatch: pytest.MonkeyPatch, high: int, wide: int
) -> None:
    vae.enable_tiling(high, wide, high // 2, wide // 2)
    expected = theirs(vae, clip(5))
    monkeypatch.setattr(encoder, "moments", None)
    with torch.no_grad(), encoder.frame_by_frame(vae):
        made = vae.encode(clip(5)).latent_dist.parameters
    assert torch.equal(made, expected)


@pytest.mark.parametrize("side", [48, 64])
def test_what_fits_into_a_tile_is_not_tiled(vae: Any, side: int) -> None:
    vae.enable_tiling(32, side, 16, 16)
    with torch.no_grad(), encoder.frame_by_frame(vae):
        made = vae.encode(clip(5)).latent_dist.parameters
    assert torch.equal(made, ours(vae, clip(5)))


def test_the_vae_is_diffusers_own_again_afterwards(vae: Any) -> None:
    before = vae._encode
    with pytest.raises(KeyError), encoder.frame_by_frame(vae):
        assert vae._encode != before
        raise KeyError
    assert vae._encode == before
    assert "_encode" not in vars(vae)


def test_one_within_another_leaves_the_outer_one(vae: Any) -> None:
    with encoder.frame_by_frame(vae):
        outer = vae._encode
        with encoder.frame_by_frame(vae):
            assert vae._encode is not outer
        assert vae._encode is outer
    assert "_encode" not in vars(vae)
