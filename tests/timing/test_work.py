"""The work of a job is counted right: operations as torch has them, stages as a job passes them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders.pictures import picture
from tests.conftest import QUICK, Answer
from wan_worker import job as jobs
from wan_worker.catalog.models import MODELS, Installed
from wan_worker.machine.hardware import Hardware
from wan_worker.machine.peak_flops import peak_of
from wan_worker.planning import flops, segments
from wan_worker.planning.activations import Shape, shape_of
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.plan import Plan
from wan_worker.request import parse, schema
from wan_worker.timing import work
from wan_worker.timing.progress import Control
from wan_worker.timing.work import AlreadyDone, StageWork
from wan_worker.weights import tiny

ROOT = Path(__file__).resolve().parents[2]
NOTHING_YET = AlreadyDone(
    loaded=(), has_embedding=lambda *_: False, imported=True, destination="folder"
)
MACHINE = Hardware("cuda", "NVIDIA H200", 141 * 1024**3, (9, 0), "for a test", ram_bytes=2**40)
INSTALLED = {
    model.id: Installed({c.name: c.stored_bytes for c in model.components}, False)
    for model in MODELS.values()
}


@pytest.mark.parametrize("with_picture", [False, True], ids=["text", "picture"])
def test_the_transformers_arithmetic_is_what_torch_counts(with_picture: bool) -> None:
    import torch
    from diffusers import WanTransformer3DModel
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    shape = Shape(dim=64, ffn=160, layers=2)
    picture = {"image_dim": 32, "added_kv_proj_dim": 64} if with_picture else {}
    sizes = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 160, "num_layers": 2}
    model = WanTransformer3DModel(**sizes, text_dim=48, **picture)
    given = {"encoder_hidden_states_image": torch.zeros(1, 17, 32)} if with_picture else {}
    # The counter knows no fused attention of the CPU.
    plain = sdpa_kernel(SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            torch.zeros(1, 16, 3, 8, 12),
            timestep=torch.zeros(1),
            encoder_hidden_states=torch.zeros(1, 512, 48),
            return_dict=False,
            **given,
        )
    counted = counter.get_flop_counts()
    blocks = sum(
        sum(counted[name].values()) for name in counted if re.search(r"\.blocks\.\d+$", name)
    )
    assert flops.forward_flops(shape, 3 * 4 * 6, 17 if with_picture else 0) == blocks


@pytest.mark.parametrize(
    ("model", "teraflops"),
    [("wan2.1-t2v-1.3b", 283), ("wan2.1-i2v-14b-480p", 1678), ("wan2.1-t2v-14b", 6523)],
)
def test_full_size_forwards_come_to_the_published_magnitudes(model: str, teraflops: int) -> None:
    found = MODELS[model]
    tokens = work.tokens(found, found.default_size, found.native_frames)
    assert flops.forward_flops(shape_of(found), tokens) / 1e12 == pytest.approx(
        teraflops, rel=0.005
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_card_is_known_by_its_drivers_name(name: str, peak: float) -> None:
    found = peak_of(name)
    assert found is not None
    assert found[0] == peak


def test_an_unknown_card_has_no_peak() -> None:
    assert peak_of("Some GPU of 2031") is None


def test_the_toy_shape_and_the_decoders_are_what_they_stand_for() -> None:
    config = json.loads((tiny.TRAINED / tiny.TEXT_TO_VIDEO / "config.json").read_text("utf-8"))
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    assert Shape(dim, config["ffn_dim"], config["num_layers"]) == work.TOY
    roof = json.loads((ROOT / "benchmarks" / "roofline.json").read_text("utf-8"))
    for row in roof["models"]:
        width, height = map(int, row["size"].split("x"))
        per_pixel = row["decode_tflop"] * 1e12 / (width * height * row["frames"])
        newer = row["model"] == "wan2.2-ti2v-5b"
        counted = work.DECODE_FLOPS_2_2 if newer else work.DECODE_FLOPS
        assert per_pixel == pytest.approx(counted, rel=0.02)


def planned(**fields: Any) -> Plan:
    asked = parse.request({"input": {"mode": "video", "prompt": "x"} | fields}, schema.load())
    return segments.make(asked, Deployment(MACHINE, INSTALLED))


def stages(plan: Plan, done: AlreadyDone = NOTHING_YET) -> tuple[StageWork, ...]:
    return work.stages(plan, INSTALLED, done)


def kinds(stage: StageWork) -> list[str]:
    return [quantity.key.kind for quantity in stage.once]


def test_guidance_doubles_a_steps_work_and_its_absence_halves_it() -> None:
    guided, plain = (
        stages(planned(model="wan2.1-t2v-1.3b", guidance_scale=scale)) for scale in (5, 1)
    )
    assert [step.times for step in guided[2].steps] == [2] * 50
    assert [step.times for step in plain[2].steps] == [1] * 50
    assert guided[2].steps[0].amount == plain[2].steps[0].amount == pytest.approx(283e12, rel=0.01)
    assert guided[1].once[0].times == 2  # the negative prompt is a text too
    assert plain[1].once[0].times == 1


def test_steps_that_are_spared_are_another_kind_of_work() -> None:
    plan = planned(model="wan2.2-t2v-a14b", acceleration="cached")
    steps = stages(plan)[2].steps
    assert len(steps) == plan.steps_taken
    assert sum(step.key.kind == "reused" for step in steps) == plan.reused_steps > 0


def test_what_is_in_memory_is_not_loaded_and_what_was_read_not_encoded() -> None:
    plan = planned(model="wan2.1-t2v-1.3b")
    load, prompt = stages(plan)[:2]
    sizes = {c.name: c.stored_bytes for c in plan.model.components}
    assert load.once[1].amount == sum(sizes.values())
    assert prompt.once[0].times == 2
    kept = {name for name in sizes if "transformer" not in name}
    done = replace(
        NOTHING_YET, loaded=kept, has_embedding=lambda text, _: text == plan.negative_prompt
    )
    load, prompt = stages(plan, done)[:2]
    assert load.once[1].amount == sizes["wan2.1-t2v-1.3b.transformer"]
    assert prompt.once[0].times == 1
    done = replace(NOTHING_YET, loaded=set(sizes), has_embedding=lambda text, encoder: True)
    load, prompt = stages(plan, done)[:2]
    assert (kinds(load), kinds(prompt)) == (["arrange"], ["remembered"])


def test_weights_of_another_type_are_loaded_anew() -> None:
    plan = planned(model="wan2.1-t2v-1.3b", precision="int8")
    done = replace(NOTHING_YET, loaded=set(plan.model.component_names))
    assert "load" in kinds(stages(plan, done)[0])


def test_only_the_first_job_of_a_process_waits_for_imports() -> None:
    plan = planned(model="wan2.1-t2v-1.3b", num_frames=200)
    assert plan.segments
    found = stages(plan, replace(NOTHING_YET, imported=False))
    assert ["import" in kinds(stage) for stage in found] == [True] + [False] * (len(found) - 1)


STAGES = [
    ({}, ["load", "prompt", "denoise", "decode_encode", "upload"]),
    ({"num_outputs": 2}, ["load", "prompt", *["denoise", "decode_encode"] * 2, "upload"]),
    (
        {"image_url": picture(), "model": "wan2.1-i2v-14b-480p", "num_frames": 9},
        ["load", "prompt", "denoise", "decode_encode", "upload"],
    ),
    (
        {"num_frames": 97, "size": "32x32", "num_inference_steps": 1},
        ["load", "prompt", *["load", "denoise", "decode_encode"] * 2, "upload"],
    ),
]


@pytest.mark.parametrize(
    ("changes", "stages"), STAGES, ids=["video", "outputs", "picture", "segments"]
)
def test_the_stages_are_those_that_the_job_passes(
    worker: jobs.Worker, changes: dict[str, Any], stages: list[str]
) -> None:
    control = Control()
    answer: Answer = jobs.run({"id": "w", "input": QUICK | changes}, worker, control)
    assert "error" not in answer, answer
    assert control.estimate is not None
    assert [stage.stage for stage in control.estimate.work] == stages
    passed = [stay for stay in control.stage_times if stay.stage in work.STAGES]
    assert [stay.stage for stay in passed] == stages
    counts = [len(stage.steps) for stage in control.estimate.work if stage.stage == "denoise"]
    assert [len(stay.steps) for stay in passed if stay.stage == "denoise"] == counts


def test_a_batch_is_denoised_together_and_decoded_one_by_one() -> None:
    plan = planned(model="wan2.1-t2v-1.3b", size="256x256", num_frames=5, num_outputs=4)
    assert plan.batch_size == 4
    found = stages(plan)
    assert [stage.stage for stage in found].count("denoise") == 1
    assert [stage.stage for stage in found].count("decode_encode") == 4
    alone = stages(planned(model="wan2.1-t2v-1.3b", size="256x256", num_frames=5))
    assert found[2].steps[0].amount == 4 * alone[2].steps[0].amount


def test_a_size_is_compiled_for_until_this_process_has_done_it() -> None:
    plan = planned(model="wan2.1-t2v-14b")
    compiled = replace(plan, speedups=replace(plan.speedups, compiled=True))
    seen: list[tuple[work.Key, float]] = []

    def has(key: work.Key, amount: float) -> bool:
        return (key, amount) in seen

    done = replace(NOTHING_YET, measured=has)
    denoise = stages(compiled, done)[2]
    assert kinds(denoise) == ["begin", "compile"]
    seen.append((denoise.steps[0].key, denoise.steps[0].amount))
    assert kinds(stages(compiled, done)[2]) == ["begin"]
    assert kinds(stages(replace(compiled, num_frames=41), done)[2]) == ["begin", "compile"]
    assert kinds(stages(replace(plan, speedups=replace(plan.speedups, compiled=False)))[2]) == [
        "begin"
    ]
