"""Shared components: loaded once, evicted when they must, never half right."""

import json
import shutil
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.builders.pictures import INLINE_PIXEL
from tests.builders.pipelines import CountingLoad, hooks_of, make_plan
from wan_worker import job
from wan_worker.catalog.components import VAE_2_1
from wan_worker.catalog.models import MODELS, Installed
from wan_worker.errors import Canceled, ModelCorrupt
from wan_worker.inputs.references import References
from wan_worker.pipelines import generate, load, offload
from wan_worker.pipelines import pool as pipelines
from wan_worker.planning import memory
from wan_worker.planning.memory import Layout
from wan_worker.planning.plan import Plan
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.settings import Placement, WeightType
from wan_worker.timing.progress import Control
from wan_worker.weights import store as weights


def test_a_second_model_loads_only_what_it_does_not_share(worker: job.Worker) -> None:
    load = CountingLoad()
    pool = pipelines.Pool(worker.hardware, load)
    here = weights.installed(worker.settings.models_dir)
    text = make_plan(worker)
    image = make_plan(worker, image_url=INLINE_PIXEL)
    first = pool.pipeline(text, here[text.model.id], lambda: None)
    second = pool.pipeline(image, here[image.model.id], lambda: None)
    again = pool.pipeline(text, here[text.model.id], lambda: None)
    assert set(load.loads.values()) == {1}
    assert load.loads["umt5-xxl"] == load.loads["wan2.1-vae"] == 1
    assert first.text_encoder is second.text_encoder is again.text_encoder
    assert first.vae is second.vae
    assert first.transformer is not second.transformer


def test_nothing_is_loaded_before_the_first_job(worker: job.Worker) -> None:
    assert pipelines.Pool(worker.hardware).loaded == ()


def test_what_does_not_fit_beside_the_next_model_is_dropped_oldest_first(
    worker: job.Worker,
) -> None:
    here = weights.installed(worker.settings.models_dir)
    text, image = make_plan(worker), make_plan(worker, image_url=INLINE_PIXEL)
    needed = sum(memory.loaded_bytes(here[image.model.id], worker.hardware).values())
    room = int(needed / memory.HOST_WEIGHT_SHARE) + 10
    small = replace(worker.hardware, memory_bytes=room, ram_bytes=room)
    pool = pipelines.Pool(small)
    pool.pipeline(text, here[text.model.id], lambda: None)
    pool.pipeline(image, here[image.model.id], lambda: None)
    assert set(pool.loaded) == set(MODELS[image.model.id].component_names)


def test_what_is_evicted_is_really_free(worker: job.Worker) -> None:
    here = weights.installed(worker.settings.models_dir)
    text, image = make_plan(worker), make_plan(worker, image_url=INLINE_PIXEL)
    needed = sum(memory.loaded_bytes(here[image.model.id], worker.hardware).values())
    room = int(needed / memory.HOST_WEIGHT_SHARE) + 10
    small = replace(worker.hardware, memory_bytes=room, ram_bytes=room)
    pool = pipelines.Pool(small)
    gone = weakref.ref(pool.pipeline(text, here[text.model.id], lambda: None).transformer)
    pool.pipeline(image, here[image.model.id], lambda: None)
    assert gone() is None


def test_an_offloaded_pipeline_leaves_no_trace_on_what_it_shares(
    worker: job.Worker,
) -> None:
    here = weights.installed(worker.settings.models_dir)
    pool = pipelines.Pool(worker.hardware)
    text = make_plan(worker)
    image = make_plan(worker, image_url=INLINE_PIXEL)
    before = pool.pipeline(text, here[text.model.id], lambda: None)
    assert not hasattr(before.vae, "_hf_hook")
    # accelerate's hooks move modules to any device, the CPU included.
    offloaded = arranged(pool, replace(image, layout=Layout("sequential")), here[image.model.id])
    assert hasattr(offloaded.vae, "_hf_hook")
    after = pool.pipeline(text, here[text.model.id], lambda: None)
    for part in (after.vae, after.text_encoder, after.transformer):
        assert not hasattr(part, "_hf_hook")


def arranged(pool: pipelines.Pool, planned: Plan, here: Installed) -> Any:
    pipeline = pool.pipeline(planned, here, lambda: None)
    offload.arrange(pipeline, planned)
    return pipeline


def latents_of(pool: pipelines.Pool, planned: Plan, models_dir: Path) -> torch.Tensor:
    here = weights.installed(models_dir)
    pipeline = arranged(pool, planned, here[planned.model.id])
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    picture = Image.new("RGB", planned.generated_size, "red") if planned.references else None
    return generate.denoise(pipeline, planned, embeds, negative, References(picture), Control())


def picture_of(pool: pipelines.Pool, planned: Plan, models_dir: Path) -> torch.Tensor:
    latents = latents_of(pool, planned, models_dir)
    vae = pool._components[VAE_2_1.name]
    return torch.cat(list(generate.decode(vae, latents, planned.layout.decode)))


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for rounding: weights that accelerate has copied no longer lie in the mapped file,
    where rows are not aligned, and a CPU sums aligned rows in another order (1e-5 in latents)."""
    return bool((one.int() - other.int()).abs().max() <= 1)


LAYOUTS = [
    Layout("sequential"),
    Layout("group"),
    Layout("resident", decode="bf16"),
    Layout("sequential", decode="bf16"),
    Layout("group", "fp8", "tiled"),
    Layout("sequential", "fp8"),
    Layout("resident", "fp8"),
    Layout("resident", "int8"),
    Layout("sequential", "int8"),
    Layout("group", "int8"),
    Layout("group", tiled_encode=True),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("changes", [{}, {"image_url": INLINE_PIXEL, "size": "64x48"}])
def test_a_job_in_another_layout_leaves_no_trace_on_the_next(
    worker: job.Worker, layout: Layout, changes: dict[str, Any]
) -> None:
    pool, models_dir = pipelines.Pool(worker.hardware), worker.settings.models_dir
    plain = make_plan(worker, **changes)
    before = picture_of(pool, plain, models_dir)
    picture_of(pool, replace(plain, layout=layout), models_dir)
    after = picture_of(pool, plain, models_dir)
    assert alike(before, after)
    for name in plain.model.component_names:
        part = pool._components[name]
        if hasattr(part, "parameters"):
            assert {str(p.dtype) for p in part.parameters()} == {"torch.float32"}
            hooks = [m for m in part.modules() if hooks_of(m)]
            assert hooks == []


@pytest.mark.parametrize("placement", ["sequential", "group"])
@pytest.mark.parametrize("changes", [{}, {"image_url": INLINE_PIXEL, "size": "64x48"}])
def test_weights_that_move_make_the_same_picture(
    worker: job.Worker, placement: Placement, changes: dict[str, Any]
) -> None:
    pool, models_dir = pipelines.Pool(worker.hardware), worker.settings.models_dir
    plain = make_plan(worker, **changes)
    moved = replace(plain, layout=Layout(placement))
    expected = picture_of(pool, plain, models_dir)
    assert alike(picture_of(pool, moved, models_dir), expected)


def test_group_offload_hooks_the_blocks_of_transformer_and_encoders(worker: job.Worker) -> None:
    here = weights.installed(worker.settings.models_dir)
    pool = pipelines.Pool(worker.hardware)
    planned = replace(make_plan(worker, image_url=INLINE_PIXEL), layout=Layout("group"))
    pipeline = arranged(pool, planned, here[planned.model.id])
    for block in pipeline.transformer.blocks:
        assert "group_offloading" in hooks_of(block)
    for part in (pipeline.text_encoder, pipeline.image_encoder):
        assert any("group_offloading" in hooks_of(module) for module in part.modules())
    assert not any(hooks_of(module) for module in pipeline.vae.modules())


@pytest.mark.parametrize("failing", ["sequential", "group"])
def test_a_job_that_fails_while_its_weights_move_leaves_no_trace(
    worker: job.Worker, failing: Placement
) -> None:
    pool, models_dir = pipelines.Pool(worker.hardware), worker.settings.models_dir
    plain = make_plan(worker)
    before = picture_of(pool, plain, models_dir)
    here = weights.installed(models_dir)[plain.model.id]
    pipeline = arranged(pool, replace(plain, layout=Layout(failing)), here)
    embeds, negative, _ = generate.encode_prompts(pipeline, plain, Embeddings())

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle of a forward")

    hook = pipeline.transformer.blocks[1].attn1.register_forward_hook(fail)
    with pytest.raises(RuntimeError):
        generate.denoise(pipeline, plain, embeds, negative, References(), Control())
    hook.remove()
    assert alike(picture_of(pool, plain, models_dir), before)


@pytest.mark.parametrize(
    ("kind", "stored_as", "near"),
    [("fp8", "torch.float8_e4m3fn", 0.2), ("int8", "torch.int8", 0.05)],
)
def test_narrow_weights_are_another_entry_and_the_plain_ones_stay(
    worker: job.Worker, kind: WeightType, stored_as: str, near: float
) -> None:
    pool, models_dir = pipelines.Pool(worker.hardware), worker.settings.models_dir
    plain = make_plan(worker)
    narrow = replace(plain, layout=Layout("resident", kind))
    expected = latents_of(pool, plain, models_dir)
    quantized = latents_of(pool, narrow, models_dir)
    assert not torch.equal(expected, quantized)
    error = (expected - quantized).norm() / expected.norm()
    assert error < near
    name = f"{plain.model.id}.transformer"
    assert {name, f"{name}@{kind}"} <= set(pool.loaded)
    part = pool._components[f"{name}@{kind}"]
    types = Counter(str(p.dtype) for p in part.parameters())
    assert types[stored_as] >= 10 * len(part.blocks)
    assert pool._bytes[f"{name}@{kind}"] == sum(p.nbytes for p in part.parameters())
    assert torch.equal(latents_of(pool, plain, models_dir), expected)


def test_int8_is_nearer_to_the_exact_latents_than_fp8(worker: job.Worker) -> None:
    pool, models_dir = pipelines.Pool(worker.hardware), worker.settings.models_dir
    plain = make_plan(worker)
    exact = latents_of(pool, plain, models_dir)
    kinds: tuple[WeightType, ...] = ("int8", "fp8")
    int8, fp8 = (
        (latents_of(pool, replace(plain, layout=Layout("resident", k)), models_dir) - exact).norm()
        for k in kinds
    )
    assert int8 < 0.5 * fp8


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_quantized_weights_survive_a_change_of_placement(
    worker: job.Worker, kind: WeightType
) -> None:
    load = CountingLoad()
    pool, models_dir = pipelines.Pool(worker.hardware, load), worker.settings.models_dir
    plain = make_plan(worker)
    resident, group, sequential, again = (
        latents_of(pool, replace(plain, layout=Layout(placement, kind)), models_dir)
        for placement in ("resident", "group", "sequential", "resident")
    )
    assert torch.equal(resident, group)
    torch.testing.assert_close(resident, sequential, rtol=0, atol=1e-3)
    torch.testing.assert_close(resident, again, rtol=0, atol=1e-3)
    assert set(load.loads.values()) == {1}


def test_a_cancelled_job_stops_loading_between_components(worker: job.Worker) -> None:
    planned = make_plan(worker)
    here = weights.installed(worker.settings.models_dir)[planned.model.id]
    pool = pipelines.Pool(worker.hardware)

    def check() -> None:
        if len(pool.loaded) == 2:
            raise Canceled("stop")

    with pytest.raises(Canceled):
        pool.pipeline(planned, here, check)
    assert len(pool.loaded) == 2


def broken_vae(models_dir: Path, tmp_path: Path, how: str) -> Path:
    store = tmp_path / "models"
    shutil.copytree(models_dir, store)
    file = store / VAE_2_1.name / "diffusion_pytorch_model.safetensors"
    if how == "missing tensor":
        tensors = load_file(file)
        tensors.pop("conv_norm_out.weight", None)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, file)
    elif how == "garbage":
        file.write_bytes(b"\x00" * 4096)
    elif how == "config":
        (store / VAE_2_1.name / "config.json").write_text("{")
    elif how == "pickle":
        file.rename(file.with_suffix(".bin"))
    return store


@pytest.mark.parametrize("how", ["missing tensor", "garbage", "config", "pickle"])
def test_broken_weights_are_named_and_not_filled_with_noise(
    worker: job.Worker, models_dir: Path, tmp_path: Path, how: str
) -> None:
    store = broken_vae(models_dir, tmp_path, how)
    with pytest.raises(ModelCorrupt) as caught:
        load.load_component(VAE_2_1, store / VAE_2_1.name, worker.hardware)
    assert "wan2.1-vae" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_the_tiny_set_has_the_real_classes(worker: job.Worker) -> None:
    for changes in ({}, {"image_url": INLINE_PIXEL}):
        planned = make_plan(worker, **changes)
        here = weights.installed(worker.settings.models_dir)[planned.model.id]
        pipeline = worker.pool.pipeline(planned, here, lambda: None)
        names = {role: type(part).__name__ for role, part in pipeline.components.items() if part}
        assert type(pipeline).__name__ == planned.pipeline
        assert names["text_encoder"] == "UMT5EncoderModel"
        assert names["vae"] == "AutoencoderKLWan"
        assert names["transformer"] == "WanTransformer3DModel"
        assert names["tokenizer"].startswith("T5Tokenizer")
        if changes:
            assert names["image_encoder"] == "CLIPVisionModel"
        config = json.loads(json.dumps(dict(pipeline.vae.config), default=str))
        assert (config["scale_factor_spatial"], config["scale_factor_temporal"]) == (8, 4)


def test_reading_ahead_is_no_more_than_that(models_dir: Path, tmp_path: Path) -> None:
    with load.read_ahead([models_dir / "umt5-xxl", tmp_path / "absent"]):
        pass
    with pytest.raises(Canceled), load.read_ahead([models_dir / "wan2.1-vae"]):
        raise Canceled("stop")
