"""Frames get larger by the published network's arithmetic, tile by tile, without seams."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate, leaky_relu

from tests.builders.answers import sha256_of
from tests.builders.files import path_of, read
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job
from wan_worker.catalog.components import UPSCALER
from wan_worker.errors import Canceled, ModelCorrupt
from wan_worker.machine.hardware import Hardware
from wan_worker.media import rrdbnet, upscale
from wan_worker.pipelines import generate, load
from wan_worker.pipelines import pool as pipelines
from wan_worker.planning.activations import UPSCALE_BYTES
from wan_worker.timing.progress import Control
from wan_worker.weights import real_esrgan, store, tiny
from wan_worker.weights.real_esrgan import Parameters, Shape

Serve = Callable[..., Answer]
GIB = 1024**3


def random_network(shape: Shape, seed: int = 0, strength: float = 1.0) -> Parameters:
    """Drawn as its authors draw it before training: Kaiming's normal, times ``strength``."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in shape.tensors().items():
        fan_in = math.prod(size[1:]) if len(size) > 1 else 1
        deviation = strength * math.sqrt(2 / fan_in) if len(size) > 1 else 0.02
        tensors[name] = torch.randn(size, generator=generator) * deviation
    return Parameters(shape, tensors)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise, uint8 [1, 3, h, w]: every pixel tells whether it was used."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)


# --- The network ---


class Dense(nn.Module):
    def __init__(self, feat: int, grow: int) -> None:
        super().__init__()
        for index in range(1, 6):
            out = feat if index == 5 else grow
            self.add_module(f"conv{index}", nn.Conv2d(feat + (index - 1) * grow, out, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for index in range(1, 5):
            conv = self.get_submodule(f"conv{index}")
            seen.append(leaky_relu(conv(torch.cat(seen, 1)), 0.2))
        return self.get_submodule("conv5")(torch.cat(seen, 1)) * 0.2 + x


class Block(nn.Module):
    def __init__(self, feat: int, grow: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(feat, grow) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return out * 0.2 + x


class Published(nn.Module):
    """The same network as torch modules, by the names of the published checkpoint."""

    def __init__(self, feat: int, blocks: int, grow: int) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, feat, 3, 1, 1)
        self.body = nn.Sequential(*(Block(feat, grow) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            nn.Conv2d(feat, feat, 3, 1, 1) for _ in range(4)
        )
        self.conv_last = nn.Conv2d(feat, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        feat = self.conv_first(x)
        feat = feat + self.conv_body(self.body(feat))
        feat = leaky_relu(self.conv_up1(interpolate(feat, scale_factor=2)), 0.2)
        feat = leaky_relu(self.conv_up2(interpolate(feat, scale_factor=2)), 0.2)
        out: torch.Tensor = self.conv_last(leaky_relu(self.conv_hr(feat), 0.2))
        return out


def test_the_network_computes_what_its_modules_would() -> None:
    torch.manual_seed(3)
    modules = Published(8, 2, 4)
    network = Parameters(Shape(8, 2, 4), dict(modules.state_dict()))
    with torch.no_grad():
        x = torch.rand(1, 3, 9, 13)
        assert torch.allclose(rrdbnet.forward(network, x), modules(x), atol=1e-6)
        assert rrdbnet.forward(network, x).shape == (1, 3, 36, 52)


def test_names_shapes_and_size_are_those_of_the_published_checkpoint() -> None:
    with torch.device("meta"):
        modules = Published(64, 23, 32)
    assert {n: tuple(t.shape) for n, t in modules.state_dict().items()} == Shape().tensors()
    assert sum(math.prod(size) for size in Shape().tensors().values()) == 16_697_987
    assert UPSCALER.stored_bytes == 16_697_987 * 4


def test_no_pixel_beyond_the_stated_reach_has_a_say() -> None:
    shape = Shape(4, 1, 2)
    network = random_network(shape)
    side = 2 * shape.reach + 3
    x = torch.rand(1, 3, side, side, requires_grad=True)
    middle = 4 * (side // 2)
    (rrdbnet.forward(network, x)[0, :, middle : middle + 4, middle : middle + 4]).sum().backward()
    assert x.grad is not None
    used = x.grad.abs().sum((0, 1)).nonzero()
    assert int((used - side // 2).abs().max()) <= shape.reach


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "config", "garbage", "absent"])
def test_a_file_that_is_not_the_network_is_corrupt(
    worker: job.Worker, tmp_path: Path, damage: str
) -> None:
    shape = Shape(4, 1, 2)
    tensors = dict(random_network(shape).tensors)
    real_esrgan.save(tensors, shape, tmp_path)
    if damage in ("missing", "extra", "shape"):
        from safetensors.torch import save_file

        if damage == "missing":
            del tensors["conv_hr.bias"]
        elif damage == "extra":
            tensors["conv_other.weight"] = torch.zeros(1)
        else:
            tensors["conv_last.weight"] = torch.zeros(3, 4, 1, 1)
        save_file(tensors, tmp_path / real_esrgan.WEIGHTS)
    elif damage == "config":
        (tmp_path / real_esrgan.CONFIG).write_text('{"layers": 3}')
    elif damage == "garbage":
        (tmp_path / real_esrgan.WEIGHTS).write_bytes(b"\0" * 999)
    else:
        (tmp_path / real_esrgan.WEIGHTS).unlink()
    with pytest.raises(ModelCorrupt, match="real-esrgan-x4plus") as caught:
        load.load_component(UPSCALER, tmp_path, worker.hardware)
    assert str(tmp_path) not in caught.value.message


# --- Tiles ---


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize(
    ("height", "width", "sides"),
    [
        # The least side, whose tiles give two pixels each, in one direction at a time.
        (90, 40, (2 * upscale.OVERLAP + 2,)),
        (40, 100, (2 * upscale.OVERLAP + 2,)),
        # In both: tiles with neighbours all around, and a few large ones.
        (131, 157, (2 * upscale.OVERLAP + 36, 100)),
    ],
)
def test_tiles_leave_no_seam(factor: int, height: int, width: int, sides: tuple[int, ...]) -> None:
    shape = Shape(4, 1, 2)
    assert shape.reach <= upscale.OVERLAP
    network, pixels = random_network(shape), picture(height, width)
    whole = upscale.enlarge(pixels, network, factor, 1000, Control())
    assert whole.shape == (1, 3, height * factor, width * factor)
    assert whole.float().std() > 20  # a picture that could show a seam
    for side in sides:
        tiled = upscale.enlarge(pixels, network, factor, side, Control())
        # Convolutions of other sizes add up in another order: a rounding may fall the other way.
        assert int((tiled.int() - whole.int()).abs().max()) <= 1
        assert float((tiled != whole).float().mean()) < 0.001


def test_without_their_overlap_tiles_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    network, pixels = random_network(Shape(4, 1, 2)), picture(100, 100)
    whole = upscale.enlarge(pixels, network, 4, 1000, Control())
    monkeypatch.setattr(upscale, "OVERLAP", 0)
    tiled = upscale.enlarge(pixels, network, 4, 50, Control())
    assert int((tiled.int() - whole.int()).abs().max()) > 5


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(40, 150, 2 * upscale.OVERLAP + 20), (102, 106, 2 * upscale.OVERLAP + 36)],
    ids=["a row of small tiles", "tiles on all sides"],
)
def test_a_network_of_the_published_depth_differs_by_a_level_at_most(
    height: int, width: int, side: int
) -> None:
    network = random_network(Shape(8, 23, 4))
    assert network.shape.reach == Shape().reach > upscale.OVERLAP
    pixels = picture(height, width)
    whole = upscale.enlarge(pixels, network, 2, 1000, Control())
    assert whole.float().std() > 20
    tiled = upscale.enlarge(pixels, network, 2, side, Control())
    assert int((tiled.int() - whole.int()).abs().max()) <= 1


def test_a_tile_fits_its_share_of_memory() -> None:
    gpu = Hardware("cuda", "GPU", 24 * GIB, (8, 9), "for a test")
    side = upscale.tile_side(gpu, Shape())
    assert side == 836  # 832x480, the native size, is one tile
    used = side**2 * Shape().values_per_pixel * 2
    assert 0.99 < used / (UPSCALE_BYTES) <= 1
    cpu = Hardware("cpu", "CPU", 16 * GIB, None, "for a test")
    assert upscale.tile_side(cpu, Shape()) ** 2 * Shape().values_per_pixel * 4 <= GIB
    small = replace(cpu, memory_bytes=1)
    assert upscale.tile_side(small, Shape()) > 2 * upscale.OVERLAP


def test_two_times_is_the_average_of_four_times() -> None:
    network, pixels = random_network(Shape(4, 1, 2), strength=0.5), picture(20, 24)
    with torch.no_grad():
        four = rrdbnet.forward(network, pixels.float() / 255)[0].numpy()
    expected = four.reshape(3, 40, 2, 48, 2).mean((2, 4))
    two = upscale.enlarge(pixels, network, 2, 1000, Control())[0].numpy()
    assert np.abs(two - np.round(expected.clip(0, 1) * 255)).max() <= 1


@pytest.mark.parametrize("factor", [2, 4])
def test_the_tiny_network_enlarges_like_nearest_neighbour(models_dir: Path, factor: int) -> None:
    network = real_esrgan.load(models_dir / UPSCALER.name, torch.float32, "cpu")
    pixels = picture(24, 32)
    made = upscale.enlarge(pixels, network, factor, 1000, Control()).float()
    assert float((made - interpolate(pixels.float(), scale_factor=factor)).abs().mean()) < 6


# --- In the stream ---


def stream(count: int, made: list[int] | None = None) -> Iterator[np.ndarray[Any, Any]]:
    """Chunks as the decoder yields them: one frame, then fours."""
    for start, size in [(0, 1), *((i, 4) for i in range(1, count, 4))]:
        if made is not None:
            made.append(start)
        yield np.stack(
            [picture(12, 16, seed)[0].permute(1, 2, 0) for seed in range(start, start + size)]
        )


def test_frames_leave_one_by_one_and_none_is_made_ahead(worker: job.Worker) -> None:
    network, made = random_network(Shape(4, 1, 2)), []
    frames = upscale.frames(stream(9, made), network, 2, worker.hardware, Control())
    assert made == []
    assert next(frames).shape == (1, 24, 32, 3)
    assert made == [0]
    assert next(frames).shape == (1, 24, 32, 3)
    assert made == [0, 1]
    assert len(list(frames)) == 7


def test_a_cancelled_job_stops_within_a_tile(
    worker: job.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, calls, forward = Control(), itertools.count(1), rrdbnet.forward

    def counting(network: Parameters, picture: torch.Tensor) -> torch.Tensor:
        if next(calls) == 2:
            control.cancel()
        return forward(network, picture)

    monkeypatch.setattr(rrdbnet, "forward", counting)
    network = random_network(Shape(4, 1, 2))
    frames = upscale.frames(stream(9), network, 2, worker.hardware, control)
    with pytest.raises(Canceled):
        list(frames)
    assert next(calls) == 3


# --- Through the worker ---


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "image", "num_frames": 1}, {"size": "54x35"}],
    ids=["video", "image", "odd"],
)
def test_the_file_is_as_many_times_larger_and_the_answer_says_both_sizes(
    serve: Serve, factor: int, changes: dict[str, Any]
) -> None:
    answer = serve({"upscale": factor} | changes)
    asset = answer["assets"][0]
    width, height = (int(side) for side in (QUICK | changes)["size"].split("x"))
    assert (asset["width"], asset["height"]) == (factor * width, factor * height)
    if changes.get("mode") == "image":
        with Image.open(path_of(asset["url"])) as image:
            assert image.size == (factor * width, factor * height)
    else:
        clip = read(path_of(asset["url"]))
        assert clip.frames.shape == (5, factor * height, factor * width, 3)
    generated = answer["metadata"]["generated"]
    assert (generated["width"], generated["height"]) == (64, 48)
    assert answer["metadata"]["plan"]["upscale"] == factor
    assert [r for r in answer["metadata"]["plan"]["reasons"] if r.startswith(f"upscale: {factor}x")]


def test_an_upscaled_job_repeats_itself_and_leaves_the_next_as_it_was(serve: Serve) -> None:
    plain = sha256_of(serve())
    large = sha256_of(serve({"upscale": 2}))
    assert sha256_of(serve()) == plain
    assert sha256_of(serve({"upscale": 4})) not in (plain, large)
    assert sha256_of(serve({"upscale": 2})) == large
    assert serve()["metadata"]["plan"]["upscale"] == 1


def test_each_of_several_outputs_is_enlarged(serve: Serve) -> None:
    answer = serve({"upscale": 2, "num_outputs": 2, "output_format": "gif"})
    alone = serve({"upscale": 2, "seed": 8, "output_format": "gif"})
    assert [(a["width"], a["seed"]) for a in answer["assets"]] == [(128, 7), (128, 8)]
    assert read(path_of(answer["assets"][1]["url"])).frames.shape == (5, 96, 128, 3)
    assert answer["assets"][1]["sha256"] == alone["assets"][0]["sha256"]


def test_progress_counts_through_the_upscaling(worker: job.Worker) -> None:
    control, seen = Control(), []
    control._notify = lambda: seen.append(
        (control.stage, control.latest.step, control.latest.steps)
    )
    job.run({"id": "p", "input": QUICK | {"upscale": 4, "num_frames": 9}}, worker, control)
    steps = [entry for entry in seen if entry[0] == "decode_encode" and entry[1] is not None]
    assert steps == [("decode_encode", index, 3) for index in (1, 2, 3)]


def without_upscaler(worker: job.Worker, tmp_path: Path) -> job.Worker:
    tiny.write(tmp_path / "models", ["wan2.1-t2v-1.3b"])
    pool = pipelines.Pool(worker.hardware)
    settings = replace(worker.settings, models_dir=tmp_path / "models")
    return replace(worker, settings=settings, pool=pool)


def test_without_its_weights_the_command_is_named_before_any_work(
    worker: job.Worker, tmp_path: Path
) -> None:
    bare = without_upscaler(worker, tmp_path)
    error = error_of(job.run({"id": "u", "input": QUICK | {"upscale": 2}}, bare, Control()))
    assert (error["code"], error["field"]) == ("MODEL_UNAVAILABLE", "/input/upscale")
    assert "download_weights.py --models real-esrgan-x4plus" in error["message"]
    assert error["stage"] == "plan"
    assert bare.pool.loaded == ()
    assert "error" not in job.run({"id": "n", "input": QUICK}, bare, Control())


def test_broken_upscaler_weights_are_noticed_before_the_first_step(
    worker: job.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = without_upscaler(worker, tmp_path)
    folder = tmp_path / "models" / UPSCALER.name
    tiny.write(tmp_path / "models", [UPSCALER.name])
    file = folder / real_esrgan.WEIGHTS
    file.write_bytes(b"\0" * file.stat().st_size)
    monkeypatch.setattr(generate, "denoise", lambda *_: pytest.fail("it was denoised"))
    error = error_of(job.run({"id": "u", "input": QUICK | {"upscale": 2}}, broken, Control()))
    assert (error["code"], error["stage"]) == ("MODEL_CORRUPT", "load")


@pytest.mark.parametrize(
    ("size", "factor", "advice"),
    [("1280x720", 4, "upscale 2"), ("1920x480", 4, "upscale 2")],
)
def test_a_video_too_large_for_players_is_refused_before_any_work(
    worker: job.Worker, size: str, factor: int, advice: str
) -> None:
    fresh = replace(worker, pool=pipelines.Pool(worker.hardware))
    request = QUICK | {"size": size, "upscale": factor}
    error = error_of(job.run({"id": "l", "input": request}, fresh, Control()))
    assert (error["code"], error["field"]) == ("INVALID_REQUEST", "/input/upscale")
    assert advice in error["message"]
    assert fresh.pool.loaded == ()


def test_the_pool_reads_the_upscaler_once(worker: job.Worker) -> None:
    loads: list[str] = []

    def read(*args: Any) -> Any:
        loads.append(args[0].name)
        return load.load_component(*args)

    counted = replace(worker, pool=pipelines.Pool(worker.hardware, read))
    for changes in ({}, {"upscale": 2}, {"upscale": 4}, {}):
        job.run({"id": "c", "input": QUICK | changes}, counted, Control())
    assert loads.count(UPSCALER.name) == 1
    assert len(loads) == len(set(loads))


def test_the_upscaler_is_a_component_of_the_store_like_the_others(models_dir: Path) -> None:
    extras = store.extras(models_dir)
    assert UPSCALER.name in extras
    assert extras[UPSCALER.name].tiny
    assert UPSCALER.name not in store.installed(models_dir)
    config = json.loads((models_dir / UPSCALER.name / real_esrgan.CONFIG).read_text())
    assert set(config) == {"num_feat", "num_block", "num_grow_ch"}
    store.verify(models_dir, UPSCALER)
