"""What depends on the prompt alone is computed once: the same to the bit, less work, no trace."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders.pictures import picture
from tests.builders.pipelines import build, denoise, experts_of, make_plan
from tests.builders.plans import cached
from wan_worker import job as jobs
from wan_worker.errors import Canceled
from wan_worker.inputs.references import References
from wan_worker.pipelines import generate, lora, text_cache
from wan_worker.planning import activations
from wan_worker.planning.plan import Plan
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.request.loras import Lora
from wan_worker.timing.progress import Control
from wan_worker.weights.lora_files import LoraFile

EACH_STEP = 0
"""No clip is that short: everything is computed at every step, as diffusers does."""

STARTS = {"image_url": picture()}


def both_ways(
    worker: jobs.Worker, planned: Plan, monkeypatch: pytest.MonkeyPatch, pipeline: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents with remembering, and as diffusers computes them."""
    assert text_cache.pays(planned)
    ours = denoise(worker, planned, pipeline)
    with monkeypatch.context() as patch:
        patch.setattr(activations, "TEXT_CACHE_TOKENS", EACH_STEP)
        assert not text_cache.pays(planned)
        return ours, denoise(worker, planned, pipeline)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("wan2.1-t2v-1.3b", {}),
        ("wan2.1-t2v-1.3b", {"acceleration": "cached", "num_inference_steps": 16}),
        ("wan2.1-i2v-14b-480p", STARTS),
        ("wan2.1-vace-1.3b", STARTS),
        ("wan2.1-flf2v-14b-720p", STARTS | {"last_image_url": picture(), "size": "64x48"}),
        ("wan2.2-ti2v-5b", {"size": "64x64"}),
        ("wan2.2-t2v-a14b", {"num_inference_steps": 6}),
    ],
    ids=["t2v", "cached", "i2v", "vace", "flf2v", "5b", "two experts"],
)
def test_the_latents_are_diffusers_own_to_the_bit(
    every_worker: jobs.Worker,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    changes: dict[str, Any],
    guidance: float,
) -> None:
    planned = make_plan(every_worker, model=model, guidance_scale=guidance, **changes)
    ours, theirs = both_ways(every_worker, planned, monkeypatch)
    assert torch.equal(ours, theirs)


def test_a_lora_on_what_is_remembered_counts(
    worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = make_plan(worker, model="wan2.1-t2v-1.3b")
    pipeline = build(worker, planned)
    plain = denoise(worker, planned, pipeline)
    file = LoraFile(Lora("cyan"), Path("weights/tiny-loras/cyan.safetensors"))
    with lora.applied(pipeline, (file,)):
        ours, theirs = both_ways(worker, planned, monkeypatch, pipeline)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)
    assert torch.equal(denoise(worker, planned, pipeline), plain)


def test_each_projection_of_the_prompt_runs_once_for_each_branch(worker: jobs.Worker) -> None:
    planned = make_plan(worker, model="wan2.1-i2v-14b-480p", num_inference_steps=4, **STARTS)
    pipeline = build(worker, planned)
    runs: Counter[str] = Counter()
    block = pipeline.transformer.blocks[0]
    parts = {
        "text": pipeline.transformer.condition_embedder.text_embedder.linear_1,
        "image": pipeline.transformer.condition_embedder.image_embedder.ff,
        "query": block.attn2.to_q,
        "own keys": block.attn1.to_k,
    }
    hooks = [
        part.register_forward_hook(lambda *_, name=name: runs.update([name]))
        for name, part in parts.items()
    ]
    counted = ("to_k", "to_v", "add_k_proj", "add_v_proj", "norm_k")
    with pytest.MonkeyPatch.context() as patch:
        for name in counted:
            part = getattr(block.attn2, name)

            def count(x: Any, name: str = name, forward: Any = part.forward) -> Any:
                runs.update([name])
                return forward(x)

            patch.setattr(part, "forward", count)
        denoise(worker, planned, pipeline)
    for hook in hooks:
        hook.remove()
    assert {name: runs[name] for name in counted} == dict.fromkeys(counted, 2)
    assert (runs["text"], runs["image"]) == (2, 2)
    assert (runs["query"], runs["own keys"]) == (8, 8)


def test_every_module_has_its_own_forward_again_however_the_job_ends(
    every_worker: jobs.Worker,
) -> None:
    planned = make_plan(every_worker, model="wan2.2-t2v-a14b", num_inference_steps=6)
    pipeline = build(every_worker, planned)

    def forwards() -> list[Any]:
        return [vars(m).get("forward") for e in experts_of(pipeline) for m in e.modules()]

    before = forwards()
    denoise(every_worker, planned, pipeline)
    assert forwards() == before
    control = Control()
    control._notify = lambda: control.cancel() if control.latest.step == 2 else None
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    with pytest.raises(Canceled):
        generate.denoise(pipeline, planned, embeds, negative, References(), control)
    assert forwards() == before


def test_another_prompt_in_the_same_pipeline_is_computed_anew(worker: jobs.Worker) -> None:
    one, other = make_plan(worker), make_plan(worker, prompt="a blue square")
    pipeline = build(worker, one)
    alone = denoise(worker, other)
    denoise(worker, one, pipeline)
    assert torch.equal(denoise(worker, other, pipeline), alone)


@pytest.mark.parametrize(
    ("changes", "remembers"),
    [
        ({"mode": "image", "size": "832x480"}, True),
        ({"mode": "image", "size": "1280x720"}, True),
        ({"mode": "video", "size": "832x480"}, False),
    ],
)
def test_it_is_done_where_it_pays_and_said(changes: dict[str, Any], remembers: bool) -> None:
    made = cached(acceleration="exact", model="wan2.1-t2v-14b", **changes)
    assert text_cache.pays(made) is remembers
    assert any("depends on it alone is computed once" in r for r in made.reasons) is remembers


def test_what_is_kept_is_in_the_memory_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"mode": "image", "size": "832x480", "model": "wan2.2-t2v-a14b"}
    with_it = dict(cached(acceleration="exact", **asked).layout.stages)["denoise"]
    monkeypatch.setattr(activations, "TEXT_CACHE_TOKENS", EACH_STEP)
    without = dict(cached(acceleration="exact", **asked).layout.stages)["denoise"]
    kept = 40 * 2 * 2 * 2 * 512 * 5120 * 2  # layers, branches, experts, keys and values
    assert with_it - without == pytest.approx(1.1 * kept, rel=0.01)
