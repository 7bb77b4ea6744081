"""Promises of tiles: no pixel is left out, neighbours fade, one that holds all changes nothing."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.pipelines import build, make_plan
from wan_worker import job
from wan_worker.errors import Canceled
from wan_worker.inputs.references import References
from wan_worker.pipelines import generate
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.timing.progress import Control
from wan_worker.vae.tiles import in_tiles, starts


@settings(max_examples=200, derandomize=True, deadline=None)
@given(length=st.integers(1, 200), side=st.integers(2, 64), overlap=st.integers(0, 63))
def test_tiles_cover_an_axis_and_stay_on_it(length: int, side: int, overlap: int) -> None:
    step = max(1, side - overlap)
    found = starts(length, side, step)
    assert found == sorted(set(found))
    covered = {i for start in found for i in range(start, min(start + side, length))}
    assert covered == set(range(length))
    assert all(start + side <= length for start in found) or found == [0]


def enlarged(latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """Each latent becomes 8x8 pixels: one frame at first, then four for each latent frame."""
    for index in range(latents.shape[2]):
        frame = latents[0, :3, index].permute(1, 2, 0).to(torch.uint8)
        large = frame.repeat_interleave(8, 0).repeat_interleave(8, 1)
        yield large.expand(1 if index == 0 else 4, -1, -1, -1).clone()


@pytest.mark.parametrize("size", [(6, 8), (16, 16), (17, 30), (40, 9), (33, 64)])
def test_what_is_decoded_in_tiles_is_what_is_decoded_whole(size: tuple[int, int]) -> None:
    shape = (1, 3, 3, *size)
    latents = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).float()
    whole = list(enlarged(latents))
    tiled = list(in_tiles(enlarged, latents, 8, lambda: None, tile=128, stride=96))
    assert [chunk.shape for chunk in tiled] == [chunk.shape for chunk in whole]
    assert all(torch.equal(a, b) for a, b in zip(tiled, whole, strict=True))


def test_neighbours_that_differ_fade_into_each_other() -> None:
    values = iter([0.0, 200.0])

    def flat(latents: torch.Tensor) -> Iterator[torch.Tensor]:
        shape = (1, latents.shape[3] * 8, latents.shape[4] * 8, 3)
        yield torch.full(shape, next(values)).to(torch.uint8)

    (frame,) = in_tiles(flat, torch.zeros(1, 3, 1, 8, 28), 8, lambda: None, tile=128, stride=96)
    row = frame[0, 0, :, 0].int()
    assert (row[:96] == 0).all()
    assert (row[128:] == 200).all()
    steps = row[1:] - row[:-1]
    assert (steps >= 0).all()
    assert steps.max() < 200 * 2 / 32


def test_a_tile_as_large_as_the_frame_changes_no_bit(worker: job.Worker) -> None:
    vae = build(worker, make_plan(worker)).vae
    latents = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(3))
    whole = torch.cat(list(generate.decode(vae, latents)))
    tiled = torch.cat(list(generate.decode(vae, latents, "tiled")))
    assert torch.equal(whole, tiled)


def test_a_real_decoders_tiles_are_near_its_whole_frames(worker: job.Worker) -> None:
    planned = make_plan(worker, size="160x112")
    pipeline = build(worker, planned)
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    latents = generate.denoise(pipeline, planned, embeds, negative, References(), Control())
    vae = pipeline.vae
    parts = (vae.post_quant_conv, vae.decoder)

    def decode(z: torch.Tensor) -> Iterator[torch.Tensor]:
        return generate._decode(vae, parts, z)

    whole = torch.cat(list(decode(latents))).float()
    tiled = torch.cat(list(in_tiles(decode, latents, 8, lambda: None, tile=96, stride=64))).float()
    assert whole.shape == tiled.shape
    assert (whole - tiled).abs().mean() < 8


def test_a_cancelled_job_stops_between_tiles() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Canceled("stop")

    tiles = in_tiles(enlarged, torch.zeros(1, 3, 1, 40, 40), 8, check, tile=128, stride=96)
    with pytest.raises(Canceled):
        next(tiles)
    assert calls == 3
