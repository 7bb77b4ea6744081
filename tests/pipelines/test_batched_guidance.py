"""Both branches of guidance in one forward: the same latents, half the calls, no trace."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders.answers import sha256_of
from tests.builders.pictures import picture
from tests.builders.pipelines import build, denoise, experts_of, make_plan
from tests.builders.plans import CPU, gpu, store
from tests.builders.plans import make as plan_of
from tests.builders.plans import turbo as turbo_of
from tests.conftest import Answer
from wan_worker import job as jobs
from wan_worker.errors import Canceled
from wan_worker.inputs.references import References
from wan_worker.pipelines import batched_guidance, generate, lora
from wan_worker.planning import activations, speedups
from wan_worker.planning.out_of_memory import lower_layout
from wan_worker.planning.plan import Plan
from wan_worker.planning.speedups import Speedups
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.request.loras import Lora
from wan_worker.timing.progress import Control
from wan_worker.weights.lora_files import LoraFile

Serve = Callable[..., Answer]
STARTS = {"image_url": picture()}
IMAGE = {"mode": "image", "num_frames": 1, "size": "832x480"}


def together(planned: Plan) -> Plan:
    return replace(planned, speedups=Speedups(batched_guidance=True))


def forwards(pipeline: Any) -> list[int]:
    """How many rows each forward of the transformers is given, from now on."""
    rows: list[int] = []
    for expert in experts_of(pipeline):
        expert.blocks[0].register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    return rows


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("wan2.1-t2v-1.3b", {}),
        ("wan2.1-t2v-1.3b", {"solver": "euler", "num_inference_steps": 5}),
        ("wan2.1-t2v-1.3b", {"num_outputs": 3}),
        ("wan2.1-i2v-14b-480p", STARTS),
        ("wan2.1-vace-1.3b", STARTS),
        ("wan2.1-flf2v-14b-720p", STARTS | {"last_image_url": picture(), "size": "64x48"}),
        ("wan2.2-ti2v-5b", {"size": "64x64"}),
        ("wan2.2-ti2v-5b", {"size": "64x64"} | STARTS),
        ("wan2.2-t2v-a14b", {"num_inference_steps": 6, "guidance_scale_2": 3.0}),
    ],
    ids=["t2v", "euler", "outputs", "i2v", "vace", "flf2v", "5b", "5b image", "two experts"],
)
@pytest.mark.parametrize("remembering", [True, False])
def test_the_latents_are_those_of_two_calls_within_rounding(
    every_worker: jobs.Worker,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    changes: dict[str, Any],
    remembering: bool,
) -> None:
    if not remembering:
        monkeypatch.setattr(activations, "TEXT_CACHE_TOKENS", 0)
    planned = make_plan(every_worker, model=model, **changes)
    planned = replace(planned, batch_size=len(planned.outputs))
    apart = denoise(every_worker, planned)
    pipeline = build(every_worker, planned)
    rows = forwards(pipeline)
    at_once = denoise(every_worker, together(planned), pipeline)
    for expert in experts_of(pipeline):
        expert.blocks[0]._forward_pre_hooks.clear()
    assert rows == [2 * len(planned.outputs)] * planned.steps_taken
    assert torch.allclose(at_once, apart, atol=1e-3)
    assert torch.equal(at_once, denoise(every_worker, together(planned)))
    unguided = replace(planned, guidance_scale=1.0, guidance_scale_2=None)
    assert not torch.allclose(at_once, denoise(every_worker, unguided), atol=1e-2)


def test_the_branches_are_not_taken_for_each_other(worker: jobs.Worker) -> None:
    planned = together(make_plan(worker, negative_prompt="a blue square"))
    other = together(make_plan(worker, prompt="a blue square", negative_prompt="a red circle"))
    assert not torch.allclose(denoise(worker, planned), denoise(worker, other), atol=1e-2)


def test_a_lora_counts_in_both(worker: jobs.Worker) -> None:
    planned = make_plan(worker, model="wan2.1-t2v-1.3b")
    pipeline = build(worker, planned)
    plain = denoise(worker, together(planned), pipeline)
    file = LoraFile(Lora("cyan"), Path("weights/tiny-loras/cyan.safetensors"))
    with lora.applied(pipeline, (file,)):
        at_once = denoise(worker, together(planned), pipeline)
        assert torch.allclose(at_once, denoise(worker, planned, pipeline), atol=1e-3)
    assert not torch.allclose(at_once, plain, atol=1e-2)


def test_every_transformer_has_its_own_forward_again_however_the_job_ends(
    every_worker: jobs.Worker,
) -> None:
    planned = make_plan(every_worker, model="wan2.2-t2v-a14b", num_inference_steps=6)
    pipeline = build(every_worker, planned)

    def own() -> list[bool]:
        return ["forward" in vars(expert) for expert in experts_of(pipeline)]

    before = own()
    control = Control()
    control._notify = lambda: control.cancel() if control.latest.step == 2 else None
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    with pytest.raises(Canceled):
        generate.denoise(pipeline, together(planned), embeds, negative, References(), control)
    assert own() == before
    apart = denoise(every_worker, planned, pipeline)
    assert torch.allclose(denoise(every_worker, together(planned), pipeline), apart, atol=1e-3)
    assert torch.equal(denoise(every_worker, planned, pipeline), apart)


def test_an_unguided_job_is_left_alone(worker: jobs.Worker) -> None:
    planned = make_plan(worker, guidance_scale=1.0)
    assert torch.equal(denoise(worker, together(planned)), denoise(worker, planned))


def test_a_pipeline_that_calls_otherwise_is_an_error_and_not_a_wrong_picture() -> None:
    run = batched_guidance._batched_forward(
        lambda **given: (given["hidden_states"],), torch.ones(1, 2, 3)
    )
    one, other = torch.zeros(1, 4), torch.ones(1, 4)
    given = {"timestep": torch.ones(1), "encoder_hidden_states": torch.ones(1, 2, 3)}
    run(hidden_states=one, **given)
    with pytest.raises(RuntimeError, match="other latents"):
        run(hidden_states=other, **given)


# --- Which jobs get it ---


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (IMAGE, True),
        (IMAGE | {"size": "1280x720"}, True),
        (IMAGE | {"size": "1280x720", "num_outputs": 4}, False),
        (IMAGE | {"guidance_scale": 1.0}, False),
        ({"mode": "video", "size": "832x480"}, False),
    ],
    ids=["image", "large image", "several", "unguided", "video"],
)
def test_it_is_for_few_tokens_on_a_gpu_and_said(changes: dict[str, Any], expected: bool) -> None:
    planned = plan_of(changes, hardware=gpu(80))
    assert planned.speedups.batched_guidance is expected
    said = [reason for reason in planned.reasons if reason.startswith("guidance:")]
    assert said == (
        ["guidance: both branches in one forward, as few tokens leave a GPU idle"]
        if expected
        else []
    )
    assert not plan_of(changes, hardware=CPU).speedups.batched_guidance


def test_it_is_not_combined_with_reused_steps() -> None:
    steps = {"num_inference_steps": 50, "acceleration": "cached"}
    planned = plan_of(IMAGE | steps, hardware=gpu(80))
    assert planned.reused_steps > 0
    assert not planned.speedups.batched_guidance


def test_turbo_has_no_second_branch() -> None:
    planned = turbo_of(**IMAGE | {"model": "wan2.1-t2v-14b"})
    assert planned.guidance_scale == 1.0
    assert not planned.speedups.batched_guidance


def test_its_memory_is_that_of_a_batch_of_two() -> None:
    job = activations.JobSize(1280 * 720, 1, has_image=False)
    model = plan_of().model
    small = activations._SMALL_TENSORS
    apart = activations.denoise_bytes(model, job) - small
    at_once = activations.denoise_bytes(model, replace(job, batched_guidance=True)) - small
    assert apart < at_once < 2 * apart


def test_it_is_not_done_where_it_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_of(IMAGE, hardware=gpu(80)).speedups.batched_guidance
    monkeypatch.setattr(speedups.memory, "fits", lambda *_: False)
    assert not plan_of(IMAGE, hardware=gpu(80)).speedups.batched_guidance


def test_a_second_try_in_less_memory_computes_them_in_turn() -> None:
    planned = plan_of(IMAGE, hardware=gpu(80))
    here = store(planned.model.id)[planned.model.id]
    less = lower_layout(planned, here, gpu(80), None, "denoise")
    assert not less.speedups.batched_guidance
    assert less.speedups.attention == planned.speedups.attention


def test_the_same_seed_gives_the_same_bytes_together_before_and_after_others(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = sha256_of(serve())
    with monkeypatch.context() as patch:
        patch.setattr(speedups, "_batches_guidance", lambda *_: True)
        first = serve()
        assert first["metadata"]["plan"]["reasons"].count(
            "guidance: both branches in one forward, as few tokens leave a GPU idle"
        )
        serve({"seed": 8})
        assert sha256_of(serve()) == sha256_of(first)
    assert sha256_of(serve()) == apart
