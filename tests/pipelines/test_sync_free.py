"""No step waits for the device, counted on one of the tests' own; the solvers' latents stay."""

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.builders.other_device import Device, OnDevice, move
from tests.builders.pictures import picture
from tests.builders.pipelines import build, denoise, experts_of, make_plan
from tests.conftest import QUICK
from wan_worker import job as jobs
from wan_worker.inputs.references import References
from wan_worker.pipelines import generate, pool, schedulers, sync_free
from wan_worker.planning.plan import Plan
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.timing.progress import Control

CASES: dict[str, dict[str, Any]] = {
    "unipc": {"solver": "unipc"},
    "euler": {"solver": "euler"},
    "dpm++": {"solver": "dpm++"},
    "image-to-image": {"mode": "image", "num_frames": 1, "image_url": picture(), "strength": 0.7},
    "image-to-video": {"model": "wan2.1-i2v-14b-480p", "image_url": picture()},
    "vace": {"model": "wan2.1-vace-1.3b", "image_url": picture()},
    "two experts": {"model": "wan2.2-t2v-a14b"},
    "two experts, euler": {"model": "wan2.2-t2v-a14b", "solver": "euler"},
    "5b": {"model": "wan2.2-ti2v-5b", "size": "64x64"},
    "cached": {"acceleration": "cached", "flow_shift": 3.0},
    "unguided": {"guidance_scale": 1.0},
}
STOCK_WAITS = {
    "unipc": 7,
    "euler": 1,
    "dpm++": 0,
    "two experts": 8,
    "two experts, euler": 2,
}
"""In each step once a solver has its history, with diffusers' own schedulers."""


def waits(
    worker: jobs.Worker, planned: Plan, blocks: int | None = None
) -> tuple[Counter[str], torch.Tensor]:
    """Where denoising waited for the device, and the latents.

    Args:
        blocks: of a transformer, from the first; all if not given.
    """
    pipeline = build(worker, planned)
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    image = Image.new("RGB", planned.generated_size, "red") if planned.references else None
    parts = [name for name, part in pipeline.components.items() if hasattr(part, "parameters")]
    for name in parts:
        setattr(pipeline, name, copy.deepcopy(getattr(pipeline, name)))
    for expert in experts_of(pipeline):
        expert.blocks = expert.blocks[:blocks]
    with Device() as device:
        for name in parts:
            move(getattr(pipeline, name))
        latents = generate.denoise(
            pipeline,
            planned,
            OnDevice(embeds),
            None if negative is None else OnDevice(negative),
            References(image),
            Control(),
        )
    assert isinstance(latents, OnDevice)
    return device.waits, latents.values


def in_a_step(worker: jobs.Worker, changes: dict[str, Any], steps: int = 5) -> int:
    """Waits that two more steps add, for each of them.

    Through one block, or through each kind of VACE's two: what waits in one waits in every one.
    """
    asked = {"model": "wan2.1-t2v-1.3b"} | changes
    shorter, longer = (
        make_plan(worker, **asked, num_inference_steps=count) for count in (steps, steps + 2)
    )
    assert (longer.reused_steps > 0) is ("acceleration" in changes)
    few, many = (waits(worker, planned, blocks=1)[0] for planned in (shorter, longer))
    added, rest = divmod((many - few).total() - (few - many).total(), 2)
    assert rest == 0, many - few
    return added


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' own schedulers, as they come."""
    monkeypatch.setattr(sync_free, "unipc", unipc_of_diffusers)
    monkeypatch.setattr(sync_free, "on_host", lambda scheduler, choosing: None)
    monkeypatch.setattr(sync_free, "timesteps", lambda pipeline: torch.no_grad())


def unipc_of_diffusers() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler


@pytest.mark.parametrize("case", CASES)
def test_no_step_makes_the_host_wait(every_worker: jobs.Worker, case: str) -> None:
    steps = 16 if case == "cached" else 5  # in fewer, none is spared
    assert in_a_step(every_worker, CASES[case], steps) == 0


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize("case", STOCK_WAITS)
def test_stock_steps_do(every_worker: jobs.Worker, case: str) -> None:
    assert in_a_step(every_worker, CASES[case]) == STOCK_WAITS[case]


def test_what_runs_on_the_tests_device_is_what_runs_on_the_cpu(every_worker: jobs.Worker) -> None:
    for case in ("unipc", "two experts"):
        planned = make_plan(every_worker, **({"model": "wan2.1-t2v-1.3b"} | CASES[case]))
        found, latents = waits(every_worker, planned)
        assert torch.allclose(latents, denoise(every_worker, planned), atol=1e-4)
        # Noise and schedule go there, and whether the latents are numbers comes back.
        assert found.total() == 3


def test_the_tests_device_refuses_what_cuda_refuses() -> None:
    with Device() as device:
        here = torch.ones(3, device="meta")
        assert (2 * here + torch.tensor(1.0)).values.tolist() == [3.0, 3.0, 3.0]
        assert not device.waits
        with pytest.raises(RuntimeError, match="meet"):
            here + torch.ones(3)
        here.sum().item()
        assert device.waits.total() == 1


@pytest.mark.parametrize("name", ["unipc", "euler", "dpm++"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 25])
def test_every_solver_steps_as_diffusers_own_to_the_bit(
    worker: jobs.Worker, name: str, steps: int
) -> None:
    planned = make_plan(worker, solver=name, num_inference_steps=steps, flow_shift=3.0)
    found = []
    for made in (schedulers.of_diffusers(planned), schedulers.scheduler(planned)):
        made.set_timesteps(steps, device="cpu")
        noise = torch.Generator().manual_seed(steps)
        sample = torch.randn(2, 16, 3, 6, 8, generator=noise)
        for timestep in made.timesteps:
            predicted = torch.randn(sample.shape, generator=noise)
            sample = made.step(predicted, timestep, sample, return_dict=False)[0]
        found.append(sample)
    assert torch.equal(*found)


@pytest.mark.parametrize("case", CASES)
def test_the_latents_are_those_of_stock_schedulers_to_the_bit(
    every_worker: jobs.Worker, case: str, request: pytest.FixtureRequest
) -> None:
    asked = {"model": "wan2.1-t2v-1.3b", "num_inference_steps": 5} | CASES[case]
    planned = make_plan(every_worker, **asked)
    ours = denoise(every_worker, planned)
    request.getfixturevalue("stock")
    assert torch.equal(ours, denoise(every_worker, planned))


def test_another_schedule_gives_other_latents(worker: jobs.Worker) -> None:
    planned = make_plan(worker, num_inference_steps=5)
    other = replace(planned, flow_shift=planned.flow_shift + 1)
    assert not torch.equal(denoise(worker, planned), denoise(worker, other))
    assert QUICK["seed"] == planned.outputs[0].seed


def test_a_transformer_keeps_no_hook(every_worker: jobs.Worker) -> None:
    planned = make_plan(every_worker, model="wan2.2-t2v-a14b")
    pipeline = build(every_worker, planned)
    denoise(every_worker, planned, pipeline)
    assert not pipeline.transformer._forward_pre_hooks
    assert not pipeline.transformer_2._forward_pre_hooks
    assert isinstance(pool.scheduler(planned), sync_free.unipc())
