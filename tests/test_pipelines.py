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
from safetensors.torch import load_file, save_file

from tests.test_generate import make_plan
from wan_worker import generate, job, pipelines, plan, weights
from wan_worker.catalog import MODELS
from wan_worker.components import VAE_2_1, Component
from wan_worker.errors import Canceled, ModelCorrupt
from wan_worker.hardware import Hardware
from wan_worker.progress import Control
from wan_worker.references import References

INLINE_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAMUlEQVR4nGP8z0A7wMjA"
    "QEPTRy0YtWDUglELRi0YtWDUglELRi0YtWDUglELRi0AAJ0GAT/8gZ8RAAAAAElFTkSuQmCC"
)


class CountingLoad:
    """The real loader, counting what it reads."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()

    def __call__(self, component: Component, folder: Path, hardware: Hardware, device: str) -> Any:
        self.loads[component.name] += 1
        return pipelines.load_component(component, folder, hardware, device)


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
    needed = sum(plan.loaded_bytes(here[image.model.id], worker.hardware).values())
    small = replace(worker.hardware, memory_bytes=int(needed / plan.CPU_WEIGHT_SHARE) + 10)
    pool = pipelines.Pool(small)
    pool.pipeline(text, here[text.model.id], lambda: None)
    pool.pipeline(image, here[image.model.id], lambda: None)
    assert set(pool.loaded) == set(MODELS[image.model.id].component_names)


def test_what_is_evicted_is_really_free(worker: job.Worker) -> None:
    here = weights.installed(worker.settings.models_dir)
    text, image = make_plan(worker), make_plan(worker, image_url=INLINE_PIXEL)
    needed = sum(plan.loaded_bytes(here[image.model.id], worker.hardware).values())
    small = replace(worker.hardware, memory_bytes=int(needed / plan.CPU_WEIGHT_SHARE) + 10)
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
    offloaded = pool.pipeline(
        replace(image, placement="offload"), here[image.model.id], lambda: None
    )
    assert hasattr(offloaded.vae, "_hf_hook")
    after = pool.pipeline(text, here[text.model.id], lambda: None)
    for part in (after.vae, after.text_encoder, after.transformer):
        assert not hasattr(part, "_hf_hook")


def test_an_offloaded_job_makes_the_same_picture(worker: job.Worker) -> None:
    here = weights.installed(worker.settings.models_dir)
    pool = pipelines.Pool(worker.hardware)
    pictures = []
    for placement in ("resident", "offload", "resident"):
        planned = replace(make_plan(worker), placement=placement)
        pipeline = pool.pipeline(planned, here[planned.model.id], lambda: None)
        embeds, negative, _ = generate.encode_prompts(pipeline, planned)
        latents = generate.denoise(pipeline, planned, embeds, negative, References(), Control())
        pictures.append(torch.cat(list(generate.decode(pipeline.vae, latents))))
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])


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
        pipelines.load_component(VAE_2_1, store / VAE_2_1.name, worker.hardware)
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
    with pipelines.read_ahead([models_dir / "umt5-xxl", tmp_path / "absent"]):
        pass
    with pytest.raises(Canceled), pipelines.read_ahead([models_dir / "wan2.1-vae"]):
        raise Canceled("stop")
