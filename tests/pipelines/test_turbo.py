"""`turbo`: the weights that it puts on a model, the settings that come with them, and no trace.

The toy weights are small random LoRAs: they show the plumbing, not that four steps are enough.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders.answers import codes, sha256_of
from tests.builders.pictures import picture
from tests.builders.plans import TURBO_EXTRAS, turbo
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.catalog.components import Component
from wan_worker.catalog.models import EXTRAS, MODELS
from wan_worker.errors import InvalidRequest, ModelUnavailable
from wan_worker.pipelines import lora, pool
from wan_worker.pipelines.schedulers import scheduler
from wan_worker.planning.plan import Plan
from wan_worker.timing.progress import Control
from wan_worker.weights import store

Serve = Callable[..., Answer]

URL = "https://example.com/cat.png"
I2V = {"model": "wan2.1-i2v-14b-480p", "image_url": picture(), "num_inference_steps": None}
A14B = {"model": "wan2.2-t2v-a14b", "num_inference_steps": None}


def reason(made: Plan) -> str:
    (found,) = [r for r in made.reasons if r.startswith("acceleration")]
    return found


def run(worker: jobs.Worker, changes: dict[str, Any]) -> Answer:
    fields = {k: v for k, v in (QUICK | changes).items() if v is not None}
    return jobs.run({"id": "t", "input": fields}, worker, Control())


@pytest.mark.parametrize("model_id", [model.id for model in MODELS.values() if model.turbo])
def test_each_transformer_of_a_model_gets_its_own_weights(model_id: str) -> None:
    stages = [one.stage for one in MODELS[model_id].turbo]
    assert stages == (["high", "low"] if MODELS[model_id].two_experts else ["both"])
    for one in MODELS[model_id].turbo:
        assert EXTRAS[one.component.name] is one.component
        assert one.component.file.endswith("_4step.safetensors") or "4step_" in one.component.file


def test_it_takes_four_steps_without_guidance_at_its_own_shift() -> None:
    made = turbo(model="wan2.2-t2v-a14b")
    assert (made.num_inference_steps, made.guidance_scale, made.guidance_scale_2) == (4, 1.0, 1.0)
    assert (made.solver, made.flow_shift) == ("euler", 5.0)
    assert made.turbo == ("wan2.2-t2v-a14b.turbo-high", "wan2.2-t2v-a14b.turbo-low")
    assert made.public()["acceleration"] == {
        "mode": "turbo", "steps": 4, "reused_steps": 0, "weights": list(made.turbo),
    }  # fmt: skip
    assert "num_inference_steps 4, guidance_scale 1.0" in reason(made)
    assert made.notices == ()


def test_it_wins_over_a_preset_and_the_requests_own_fields_win_over_it() -> None:
    preset = {"job_type": "video_fast", "mode": "video", "model": "wan2.1-t2v-14b"}
    made = turbo(**preset)
    assert (made.num_inference_steps, made.guidance_scale, made.flow_shift) == (4, 1.0, 5.0)
    assert made.num_frames == 64  # what turbo does not touch is the preset's
    own = {"steps": 8, "guidance": 2.0, "sample_shift": 7.0, "solver": "unipc"}
    made = turbo(**preset, **own)
    assert (made.num_inference_steps, made.guidance_scale) == (8, 2.0)
    assert (made.flow_shift, made.solver) == (7.0, "unipc")
    assert reason(made).endswith("all settings as asked")
    assert [notice.code for notice in made.notices] == ["TURBO_GUIDED"]


def test_the_steps_begin_where_the_weights_were_distilled() -> None:
    for steps, even in ((4, [1.0, 0.75, 0.5, 0.25]), (2, [1.0, 0.5]), (1, [1.0])):
        made = scheduler(turbo(model="wan2.2-t2v-a14b", num_inference_steps=steps))
        made.set_timesteps(steps, device="cpu")
        shifted = [5 * level / (1 + 4 * level) for level in even]
        assert made.sigmas.tolist() == pytest.approx([*shifted, 0.0])
        assert made.timesteps.tolist() == pytest.approx([1000 * level for level in shifted])


@pytest.mark.parametrize("model_id", ["wan2.2-t2v-a14b", "wan2.2-i2v-a14b"])
def test_each_expert_takes_two_of_the_four_steps(model_id: str) -> None:
    pictures = {"image_url": URL} if MODELS[model_id].image == "required" else {}
    made = scheduler(turbo(model=model_id, **pictures))
    made.set_timesteps(4)
    boundary = MODELS[model_id].boundary_ratio
    assert boundary is not None
    assert (made.timesteps >= 1000 * boundary).tolist() == [True, True, False, False]


def test_image_to_image_begins_late_on_turbos_schedule() -> None:
    made = scheduler(turbo(mode="image", model="wan2.1-t2v-14b", image_url=URL, strength=0.5))
    made.set_timesteps(4)
    assert made.sigmas.tolist() == pytest.approx([5 * 0.5 / 3, 5 * 0.25 / 2, 0.0])


def test_a_model_that_nobody_distilled_is_refused_naming_those_that_were() -> None:
    with pytest.raises(InvalidRequest) as refused:
        turbo(model="wan2.1-t2v-1.3b")
    assert refused.value.field == "/input/acceleration"
    assert "wan2.1-t2v-14b, wan2.2-t2v-a14b" in refused.value.message


def test_absent_weights_are_named_with_the_command_that_installs_them() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        turbo({}, model="wan2.2-t2v-a14b")
    assert refused.value.field == "/input/acceleration"
    assert (
        "python download_weights.py --models wan2.2-t2v-a14b.turbo-high wan2.2-t2v-a14b.turbo-low"
        in refused.value.message
    )


def test_auto_takes_a_model_whose_turbo_is_installed() -> None:
    some = {name: TURBO_EXTRAS[name] for name in MODELS["wan2.1-t2v-14b"].turbo_names}
    assert turbo(some).model.id == "wan2.1-t2v-14b"
    assert turbo().model.id == "wan2.2-t2v-a14b"
    with pytest.raises(ModelUnavailable):
        turbo({})
    # Not for a request that this model can't serve: then what is missing is the other's.
    with pytest.raises(ModelUnavailable, match=r"wan2\.2-i2v-a14b\.turbo-high"):
        turbo(some, image_url=URL)


def test_it_is_in_the_memory_estimate() -> None:
    with_it, without = (
        turbo(model="wan2.1-t2v-14b"),
        turbo(model="wan2.1-t2v-14b", acceleration="exact", guidance_scale=1),
    )
    assert with_it.layout.peak_bytes > without.layout.peak_bytes


@pytest.mark.parametrize("changes", [I2V, A14B], ids=["one transformer", "two experts"])
def test_its_weights_are_on_the_model_for_the_job_alone(
    every_worker: jobs.Worker,
    changes: dict[str, Any],
) -> None:
    plain = {"num_inference_steps": 4, "guidance_scale": 1.0, "solver": "euler", "flow_shift": 5.0}
    before = run(every_worker, changes | plain)
    made = run(every_worker, changes | {"acceleration": "turbo"})
    assert made["metadata"]["plan"]["acceleration"]["weights"] == list(
        MODELS[changes["model"]].turbo_names
    )
    assert made["metadata"]["weights"] == "tiny"
    assert sha256_of(run(every_worker, changes | plain)) == sha256_of(before)
    assert sha256_of(run(every_worker, changes | {"acceleration": "turbo"})) == sha256_of(made)
    # Not the schedule alone: the same one without the weights is another picture.
    assert sha256_of(made) != sha256_of(before)


def test_each_expert_gets_the_file_that_is_meant_for_it(
    every_worker: jobs.Worker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worn = []
    applied = lora.applied

    def look(pipeline: Any, files: Any) -> Any:
        worn.extend((file.lora.name, file.lora.stage, file.path.name) for file in files)
        return applied(pipeline, files)

    monkeypatch.setattr(lora, "applied", look)
    run(every_worker, A14B | {"acceleration": "turbo"})
    assert worn == [
        (one.component.name, one.stage, one.component.file)
        for one in MODELS["wan2.2-t2v-a14b"].turbo
    ]


def test_the_jobs_own_loras_go_on_top_and_are_reported_alone(
    every_worker: jobs.Worker,
) -> None:
    asked = A14B | {"model": "wan2.1-t2v-14b", "acceleration": "turbo"}
    answer = run(every_worker, asked | {"loras": [{"source": "cyan"}]})
    (reported,) = answer["metadata"]["plan"]["loras"]
    assert reported["name"] == "cyan"
    assert reported["matched"] > 0
    assert sha256_of(answer) != sha256_of(run(every_worker, asked))


def test_a_long_video_has_turbo_in_every_segment(serve: Serve) -> None:
    fields = I2V | {"acceleration": "turbo", "num_frames": 101, "size": "32x32"}
    answer = serve({k: v for k, v in fields.items() if v is not None} | {"num_inference_steps": 2})
    plan = answer["metadata"]["plan"]
    assert len(plan["segments"]) > 1
    assert plan["acceleration"] == {
        "mode": "turbo",
        "steps": 2 * len(plan["segments"]),
        "reused_steps": 0,
        "weights": ["wan2.1-i2v-14b-480p.turbo"],
    }


def test_weights_that_do_not_fit_are_refused_and_the_next_job_succeeds(
    worker: jobs.Worker, models_dir: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    name = "wan2.1-i2v-14b-480p.turbo"
    component: Component = EXTRAS[name]
    other = tmp_path / "store" / name
    other.mkdir(parents=True)
    wrong = {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 7),
             "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.zeros(7, 2)}  # fmt: skip
    save_file(wrong, other / component.file)
    for path in models_dir.iterdir():
        if path.name != name:
            (tmp_path / "store" / path.name).symlink_to(path)
    partial = tmp_path / "partial"
    other.rename(partial)
    store.seal(partial, tmp_path / "store" / name, component, store.TINY)
    settings = replace(worker.settings, models_dir=tmp_path / "store")
    broken = replace(worker, settings=settings, pool=pool.Pool(worker.hardware))
    error = error_of(run(broken, I2V | {"acceleration": "turbo"}))
    assert error["code"] == "UNSUPPORTED"
    assert "error" not in run(broken, {})


def test_without_it_nothing_says_turbo(serve: Serve) -> None:
    answer = serve()
    assert answer["metadata"]["plan"]["acceleration"]["weights"] == []
    assert codes(answer) == []
