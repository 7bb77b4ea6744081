"""`cached` on real pipelines: what it computes, that it stays close, and that it leaves no trace.

The reference is diffusers' own MagCache, told to spare the same steps: equal to the bit.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from training.measure import measure

from tests.builders.answers import sha256_of
from tests.builders.pictures import picture, psnr
from tests.builders.pipelines import build, denoise, experts_of, make_plan
from tests.builders.requests import CLIP, CYAN, PROMPT, said, video
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.errors import Canceled
from wan_worker.inputs.references import References
from wan_worker.pipelines import generate, magcache, pool
from wan_worker.planning.memory import Layout
from wan_worker.planning.plan import Plan
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.settings import Placement
from wan_worker.timing.progress import Control

Serve = Callable[..., Answer]

CACHED = {"acceleration": "cached", "num_inference_steps": 16, "flow_shift": 3.0}
A14B = {"model": "wan2.2-t2v-a14b", "num_inference_steps": 30, "flow_shift": 12.0}
I2V = {"model": "wan2.1-i2v-14b-480p", "image_url": picture()}


def of_diffusers(worker: jobs.Worker, planned: Plan) -> torch.Tensor:
    """The same steps spared by diffusers' MagCache: a ratio of 1 is no error, a huge one is."""
    from diffusers import MagCacheConfig

    pipeline = build(worker, planned)
    for expert, steps in zip(experts_of(pipeline), planned.reused, strict=True):
        expert.enable_cache(
            MagCacheConfig(
                threshold=0.1,
                max_skip_steps=100,
                retention_ratio=0.0,
                num_inference_steps=len(steps),
                mag_ratios=[1.0 if reused else 1e6 for reused in steps],
            )
        )
    try:
        return denoise(worker, replace(planned, reused=()), pipeline)
    finally:
        for expert in experts_of(pipeline):
            expert.disable_cache()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance_scale": 1.0},
        {"solver": "euler"},
        {"solver": "dpm++"},
        {"mode": "image", "num_frames": 1},
        {"mode": "image", "num_frames": 1, "image_url": picture(), "strength": 0.8},
        I2V,
        A14B,
        A14B | {"guidance_scale": 1.0},
        {"model": "wan2.2-ti2v-5b", "num_inference_steps": 40, "size": "64x64"},
    ],
    ids=[
        *("guided", "unguided", "euler", "dpm++", "image", "image-to-image", "image-to-video"),
        *("two experts", "two experts unguided", "5b"),
    ],
)
def test_it_is_what_diffusers_magcache_makes_to_the_bit(
    every_worker: jobs.Worker, changes: dict[str, Any]
) -> None:
    planned = make_plan(every_worker, **(CACHED | {"model": "wan2.1-t2v-1.3b"} | changes))
    assert planned.reused_steps > 0
    if planned.model.two_experts:
        assert all(map(any, planned.reused))
    made = denoise(every_worker, planned)
    assert torch.equal(made, of_diffusers(every_worker, planned))
    assert not torch.equal(made, denoise(every_worker, replace(planned, reused=())))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_blocks_of_a_spared_step_do_not_run(worker: jobs.Worker, guidance: float) -> None:
    planned = make_plan(worker, **CACHED, guidance_scale=guidance)
    pipeline = build(worker, planned)
    runs = []
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: runs.append(name))
        for name, part in (
            ("first", pipeline.transformer.blocks[0].attn1),
            ("last", pipeline.transformer.blocks[-1].attn1),
            ("head", pipeline.transformer.proj_out),
        )
    ]
    denoise(worker, planned, pipeline)
    for hook in hooks:
        hook.remove()
    branches, computed = (2 if guidance > 1 else 1), 16 - planned.reused_steps
    assert runs.count("first") == runs.count("last") == branches * computed
    assert runs.count("head") == branches * 16
    assert 0 < computed < 16


def test_outputs_that_are_denoised_together_are_each_as_alone(worker: jobs.Worker) -> None:
    several = make_plan(worker, **CACHED, num_outputs=2)
    both = denoise(worker, replace(several, batch_size=2))
    for index in range(2):
        alone = denoise(worker, replace(several, outputs=several.outputs[index : index + 1]))
        assert torch.allclose(both[index : index + 1], alone, atol=1e-3)


@pytest.mark.parametrize("placement", ["sequential", "group"])
def test_it_is_the_same_however_the_weights_move(worker: jobs.Worker, placement: Placement) -> None:
    worker = replace(worker, pool=pool.Pool(worker.hardware))
    planned = make_plan(worker, **CACHED)
    expected = denoise(worker, planned)
    moved = denoise(worker, replace(planned, layout=Layout(placement)))
    # Weights that were moved are aligned otherwise, and a CPU sums them in another order.
    assert torch.allclose(moved, expected, atol=1e-3)
    assert not torch.allclose(expected, denoise(worker, replace(planned, reused=())), atol=1e-2)


def test_a_transformer_is_as_it_was_when_the_job_ends_however_it_ends(
    every_worker: jobs.Worker,
) -> None:
    planned = make_plan(every_worker, **(CACHED | A14B))
    pipeline = build(every_worker, planned)
    before = [(part, part.blocks, set(part.state_dict())) for part in experts_of(pipeline)]

    def unchanged() -> bool:
        return all(part.blocks is blocks and set(part.state_dict()) == names
                   for part, blocks, names in before)  # fmt: skip

    denoise(every_worker, planned, pipeline)
    assert unchanged()
    control = Control()
    control._notify = lambda: control.cancel() if control.latest.step == 10 else None
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    with pytest.raises(Canceled):
        generate.denoise(pipeline, planned, embeds, negative, References(), control)
    assert unchanged()


def test_no_residual_is_kept_longer_than_it_is_used(worker: jobs.Worker) -> None:
    planned = make_plan(worker, **CACHED)
    pipeline = build(worker, planned)
    (steps,) = planned.reused
    held: list[int] = []
    with magcache.applied(pipeline, planned):
        (blocks,) = pipeline.transformer.blocks
        blocks.register_forward_hook(lambda module, *_: held.append(len(module.residuals)))
        embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
        generate.denoise(
            pipeline, replace(planned, reused=()), embeds, negative, References(), Control()
        )
    # After a step's second branch both are kept if the next step takes them over, else none.
    assert held[1::2] == [2 if following else 0 for following in (*steps[1:], False)]


def test_nothing_of_it_reaches_another_job(serve: Serve) -> None:
    exact = QUICK | {"num_inference_steps": 16, "flow_shift": 3.0}
    before = sha256_of(serve(exact))
    cached = [serve(exact | CACHED), serve(exact | CACHED | {"seed": 8})]
    with_lora = serve(exact | CACHED | {"model": "wan2.1-t2v-1.3b", "loras": [CYAN]})
    assert sha256_of(serve(exact)) == before
    assert sha256_of(serve(exact | CACHED)) == sha256_of(cached[0])
    assert len({before, *map(sha256_of, cached), sha256_of(with_lora)}) == 4


def test_the_answer_says_what_was_spared(serve: Serve) -> None:
    plan = serve(CACHED)["metadata"]["plan"]
    assert plan["acceleration"] == {"mode": "cached", "steps": 16, "reused_steps": 5, "weights": []}
    assert any(r.startswith("acceleration: cached, 5 of 16 steps") for r in plan["reasons"])
    assert serve()["metadata"]["plan"]["acceleration"] == {
        "mode": "exact", "steps": 2, "reused_steps": 0, "weights": [],
    }  # fmt: skip


def test_a_long_video_spares_steps_in_every_segment(serve: Serve) -> None:
    long = serve(CACHED | {"num_frames": 101, "size": "32x32"})["metadata"]["plan"]
    (one,) = {segment["model"] for segment in long["segments"]} - {"wan2.1-t2v-1.3b"}
    assert one == "wan2.1-i2v-14b-480p"
    count = len(long["segments"])
    assert long["acceleration"]["steps"] == 16 * count
    assert long["acceleration"]["reused_steps"] > 5


def test_a_model_without_published_ratios_is_refused_before_any_work(serve: Serve) -> None:
    error = error_of(
        serve({"acceleration": "cached", "model": "wan2.1-vace-1.3b", "image_url": picture()})
    )
    assert (error["code"], error["field"]) == ("INVALID_REQUEST", "/input/acceleration")
    assert "wan2.1-i2v-14b-480p" in error["message"]


@pytest.mark.parametrize(
    ("prompt", "content"),
    [
        (PROMPT, ("red", "circle", "right", "white")),
        ("a blue square moving left on a yellow background", ("blue", "square", "left", "yellow")),
    ],
)
def test_the_prompt_is_followed_and_the_picture_stays_close(
    serve: Serve, prompt: str, content: tuple[str, ...]
) -> None:
    exact = video(serve, prompt)
    cached = video(serve, prompt, acceleration="cached")
    assert said(measure(cached)) == content
    other = video(serve, prompt, seed=CLIP["seed"] + 1)
    assert 60 > psnr(exact, cached) > psnr(exact, other) + 3
