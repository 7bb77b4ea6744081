"""measure reads drawn clips back, and says None where there is nothing to read."""

import itertools

import numpy as np
import pytest
from training import data
from training.data import COLOURS
from training.measure import Measured, measure

EVERY = data.combinations()
SIZES = ((64, 64, 9), (64, 96, 17), (96, 64, 17), (64, 64, 5))


def drawn(seed: int, size: tuple[int, int, int]) -> tuple[tuple[str, str, str, str], np.ndarray]:
    rng = np.random.default_rng(seed)
    combination = EVERY[int(rng.integers(len(EVERY)))]
    return combination, data.draw(data.place(rng, combination, *size), *size)


def said(answer: Measured) -> tuple[str | None, ...]:
    return answer.colour, answer.kind, answer.motion, answer.background


def test_names_are_the_ones_that_captions_use() -> None:
    assert COLOURS == data.COLOURS


@pytest.mark.parametrize(("size", "seed"), list(itertools.product(SIZES, range(40))))
def test_reads_a_drawn_clip_back(size: tuple[int, int, int], seed: int) -> None:
    combination, frames = drawn(seed, size)
    assert said(measure(frames)) == combination


@pytest.mark.parametrize("seed", range(60))
def test_reads_through_noise_and_blur(seed: int) -> None:
    combination, frames = drawn(seed, (64, 96, 17))
    noisy = frames + np.random.default_rng(seed).normal(0, 6, frames.shape)
    blurred = (noisy + np.roll(noisy, 1, axis=1) + np.roll(noisy, 1, axis=2)) / 3
    assert said(measure(np.clip(blurred, 0, 255).astype(np.uint8))) == combination


def test_frames_in_reverse_turn_the_motion_around() -> None:
    frames = drawn(3, (64, 96, 17))[1]
    there, back = measure(frames).velocity, measure(frames[::-1]).velocity
    assert there is not None and back is not None
    assert np.allclose(there, np.negative(back), atol=1e-6)


def test_track_follows_the_centre_of_a_circle() -> None:
    scene = data.Scene("red", "circle", "right", "white", 11.0, 2.0, (20.0, 30.0))
    answer = measure(data.draw(scene, 64, 96, 17))
    for t, point in enumerate(answer.track):
        assert point is not None and np.allclose(point, (20.0 + 2.0 * t, 30.0), atol=0.3)
    assert answer.velocity is not None and abs(answer.velocity[0] - 2.0) < 0.02


def test_a_single_frame_has_no_motion() -> None:
    combination, frames = drawn(5, (64, 64, 1))
    assert said(measure(frames)) == (combination[0], combination[1], None, combination[3])


@pytest.mark.parametrize("spread", [20, 60, 120])
def test_noise_holds_no_shape(spread: int) -> None:
    noise = np.random.default_rng(0).normal(128, spread, (9, 64, 64, 3))
    answer = measure(np.clip(noise, 0, 255).astype(np.uint8))
    assert (answer.colour, answer.kind, answer.motion) == (None, None, None)


def test_a_flat_picture_has_a_background_and_nothing_else() -> None:
    answer = measure(np.full((9, 64, 64, 3), 245, np.uint8))
    assert said(answer) == (None, None, None, "white")


def test_a_jump_to_and_fro_is_no_motion() -> None:
    frames = drawn(3, (64, 96, 17))[1]
    assert measure(np.concatenate([frames, frames[::-1]])).motion == "still"


def test_diagonal_motion_has_no_name() -> None:
    scene = data.Scene("red", "square", "still", "white", 11.0, 0.0, (20.0, 20.0))
    still = data.draw(scene, 64, 64, 9)
    moved = np.stack([np.roll(f, (2 * t, 2 * t), axis=(0, 1)) for t, f in enumerate(still)])
    assert measure(moved).motion is None


def test_a_colour_far_from_every_name_is_none() -> None:
    frames = drawn(3, (64, 64, 9))[1].copy()
    frames[:] = (255, 0, 255)
    assert measure(frames).background is None


def test_refuses_what_is_not_frames() -> None:
    with pytest.raises(ValueError, match=r"\[F, H, W, 3\]"):
        measure(np.zeros((64, 64, 3), np.uint8))
