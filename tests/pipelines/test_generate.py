"""Latents and frames, on real diffusers pipelines with tiny weights."""

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders.pipelines import build, make_plan
from wan_worker import job
from wan_worker.errors import Canceled, GenerationFailed
from wan_worker.inputs.references import References
from wan_worker.pipelines import generate
from wan_worker.planning.plan import Plan
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.timing.progress import Control


def latents_of(worker: job.Worker, planned: Plan, control: Control | None = None) -> torch.Tensor:
    pipeline = build(worker, planned)
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    return generate.denoise(pipeline, planned, embeds, negative, References(), control or Control())


@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_decoding_frame_by_frame_equals_the_vaes_own_decode(
    worker: job.Worker, latent_frames: int
) -> None:
    # In double precision no rounding to bytes hangs on the order of a sum.
    vae = copy.deepcopy(build(worker, make_plan(worker)).vae).double()
    latents = torch.randn(
        1, 16, latent_frames, 6, 8, generator=torch.Generator().manual_seed(latent_frames)
    )
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        whole = vae.decode((latents * std + mean).double(), return_dict=False)[0][0]
    expected = ((whole.float() + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)

    ours = torch.cat(list(generate.decode(vae, latents)))

    assert ours.shape == (4 * latent_frames - 3, 48, 64, 3)
    assert torch.equal(ours, expected)


def test_chunks_come_one_latent_frame_at_a_time(worker: job.Worker) -> None:
    vae = build(worker, make_plan(worker)).vae
    chunks = generate.decode(vae, torch.zeros(1, 16, 3, 6, 8))
    assert [len(chunk) for chunk in chunks] == [1, 4, 4]


def test_an_abandoned_decode_leaves_the_vae_clean(worker: job.Worker) -> None:
    vae = build(worker, make_plan(worker)).vae
    latents = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.cat(list(generate.decode(vae, latents)))
    abandoned = generate.decode(vae, latents * 3)
    next(abandoned)
    next(abandoned)
    abandoned.close()
    assert torch.equal(torch.cat(list(generate.decode(vae, latents))), expected)


def test_decoding_in_bf16_is_near_and_leaves_the_vae_in_fp32(worker: job.Worker) -> None:
    planned = make_plan(worker)
    vae = build(worker, planned).vae
    latents = latents_of(worker, planned)
    exact = torch.cat(list(generate.decode(vae, latents)))
    near = torch.cat(list(generate.decode(vae, latents, "bf16")))
    assert not torch.equal(exact, near)
    assert (exact.float() - near.float()).abs().mean() < 2
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    assert torch.equal(torch.cat(list(generate.decode(vae, latents))), exact)


def test_nan_in_the_latents_is_a_failure_and_not_a_video(worker: job.Worker) -> None:
    vae = build(worker, make_plan(worker)).vae
    with pytest.raises(GenerationFailed):
        list(generate.decode(vae, torch.full((1, 16, 1, 6, 8), float("nan"))))


def test_nan_from_the_model_is_a_failure(worker: job.Worker) -> None:
    planned = make_plan(worker)
    pipeline = build(worker, planned)
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    with pytest.raises(GenerationFailed):
        generate.denoise(
            pipeline, planned, embeds * float("nan"), negative, References(), Control()
        )


@pytest.mark.parametrize("solver", ["unipc", "euler", "dpm++"])
def test_every_solver_repeats_itself_to_the_bit(worker: job.Worker, solver: str) -> None:
    planned = make_plan(worker, solver=solver)
    assert torch.equal(latents_of(worker, planned), latents_of(worker, planned))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"prompt": "a blue square"},
        {"negative_prompt": "noise"},
        {"guidance_scale": 2.0},
        {"num_inference_steps": 3},
        {"flow_shift": 9.0},
        {"solver": "euler"},
        {"solver": "dpm++"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_setting_reaches_the_latents(worker: job.Worker, changes: dict[str, Any]) -> None:
    base = {"num_inference_steps": 4}
    plain = latents_of(worker, make_plan(worker, **base))
    changed = latents_of(worker, make_plan(worker, **(base | changes)))
    assert not torch.equal(plain, changed)


@pytest.mark.parametrize("solver", ["unipc", "euler", "dpm++"])
def test_the_requests_shift_moves_the_noise_levels(worker: job.Worker, solver: str) -> None:
    sigmas = []
    for shift in (1.0, 3.0, 8.0):
        planned = make_plan(worker, solver=solver, flow_shift=shift, num_inference_steps=8)
        scheduler = build(worker, planned).scheduler
        scheduler.set_timesteps(8)
        sigmas.append(float(scheduler.sigmas[4]))
    # A larger shift keeps the middle of the run noisier: s * x / (1 + (s - 1) * x).
    assert all(low < high for low, high in pairwise(sigmas))


def test_guidance_1_runs_the_model_once_a_step(
    worker: job.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for scale in (1.0, 5.0):
        planned = make_plan(worker, guidance_scale=scale)
        transformer = build(worker, planned).transformer
        count = 0

        def counted(*args: Any, _forward: Any = transformer.forward, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            return _forward(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(transformer, "forward", counted)
            latents_of(worker, planned)
        calls.append(count)
    assert calls == [2, 4]


def test_cancel_is_obeyed_within_one_step(worker: job.Worker) -> None:
    planned = make_plan(worker, num_inference_steps=50)
    control = Control()
    steps = []

    def note() -> None:
        steps.append(control.latest.step)
        if control.latest.step == 3:
            control.cancel()

    control._notify = note
    with pytest.raises(Canceled):
        latents_of(worker, planned, control)
    assert steps == [1, 2, 3]


def test_frames_are_cropped_to_the_centre_and_trimmed(worker: job.Worker) -> None:
    planned = make_plan(worker, size="54x36", num_frames=7)
    assert (planned.generated_size, planned.generated_frames) == ((64, 48), 9)
    pipeline = build(worker, planned)
    latents = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    whole = torch.cat(list(generate.decode(pipeline.vae, latents))).numpy()
    cut = np.concatenate(list(generate.frames(pipeline.vae, latents, planned, Control())))
    assert np.array_equal(cut, whole[:7, 6:42, 5:59])


def test_a_long_prompt_is_cut_with_a_warning(worker: job.Worker) -> None:
    planned = make_plan(worker, prompt="red circle " * 300)
    _, _, notices = generate.encode_prompts(build(worker, planned), planned, Embeddings())
    assert [notice.code for notice in notices] == ["PROMPT_TRUNCATED"]


def test_no_negative_prompt_is_encoded_without_guidance(worker: job.Worker) -> None:
    planned = replace(make_plan(worker), guidance_scale=1.0)
    embeds, negative, notices = generate.encode_prompts(
        build(worker, planned), planned, Embeddings()
    )
    assert embeds.shape == (1, 512, 96)
    assert negative is None
    assert notices == ()
