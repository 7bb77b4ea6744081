"""Promises of memory and activations: no plan over the card, formulas never under what was counted.

What comes out is in tests/golden/memory.md, a table to read that `make docs` writes.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import memory_model
from docs.generate.memory_table import CARDS, card, jobs_of, stored, table

from wan_worker.catalog.models import MODELS, Installed, Model
from wan_worker.errors import Unsupported
from wan_worker.planning import activations, memory
from wan_worker.planning.activations import JobSize
from wan_worker.planning.memory import Layout

HERE = Path(__file__).resolve().parents[1]
COUNTED = HERE.parent / "benchmarks" / "memory_model.json"


def here(model: Model) -> Installed:
    return Installed(stored(model), tiny=False)


CASES = [
    pytest.param(model, job, gb, id=f"{model.id}-{name.replace(' ', '-')}-{gb}")
    for model in MODELS.values()
    for name, job in jobs_of(model).items()
    for gb in CARDS
]


def test_fp8_and_int8_are_planned_alike() -> None:
    assert table("fp8") == table("int8")


@pytest.mark.parametrize(("model", "job", "gb"), CASES)
@pytest.mark.parametrize("weight_type", ["bf16", "int8"])
def test_no_estimate_is_over_the_card(
    model: Model, job: JobSize, gb: int, weight_type: memory.WeightType
) -> None:
    found = memory.choose(model, stored(model), job, card(gb), None, weight_type)
    if found is not None:
        assert 0 < found.peak_bytes <= card(gb).free_bytes
        assert found.room_bytes == card(gb).free_bytes - found.peak_bytes


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
def test_every_model_makes_its_480p_clip_on_16_gb(model: Model) -> None:
    job = JobSize(832 * 480, model.native_frames, model.text_pipeline is None)
    assert memory.choose(model, stored(model), job, card(16)) is not None


@pytest.mark.parametrize(("model", "job", "gb"), CASES)
def test_more_memory_never_makes_a_layout_worse(model: Model, job: JobSize, gb: int) -> None:
    order = list(memory.ladder(model, job, None, "bf16"))
    ranks = []
    for free in range(CARDS[gb] - 2000, CARDS[gb] + 2001, 1000):
        found = memory.choose(
            model, stored(model), job, replace(card(gb), memory_bytes=free * 1024**2)
        )
        plain = None if found is None else replace(found, stages=(), room_bytes=0)
        ranks.append(len(order) if plain is None else order.index(plain))
    assert ranks == sorted(ranks, reverse=True)


def test_the_edge_is_exact() -> None:
    model = MODELS["wan2.2-t2v-a14b"]
    job = JobSize(1280 * 720, 81, False)
    peak = memory.estimate(model, stored(model), job, Layout("resident")).peak_bytes
    at = memory.choose(model, stored(model), job, replace(card(141), memory_bytes=peak))
    below = memory.choose(model, stored(model), job, replace(card(141), memory_bytes=peak - 1))
    assert at is not None
    assert (at.placement, at.decode) == ("resident", "fp32")
    assert below is not None
    assert (below.placement, below.decode) == ("resident", "bf16")


def test_what_others_hold_of_the_gpu_is_not_planned_with() -> None:
    model, job = MODELS["wan2.1-t2v-1.3b"], JobSize(832 * 480, 81, False)
    shared = replace(card(48), taken_bytes=30 * 1024**3)
    alone = memory.choose(model, stored(model), job, card(48))
    beside = memory.choose(model, stored(model), job, shared)
    assert alone is not None and alone.placement == "resident"
    assert beside is not None and beside.placement == "sequential"
    assert beside.peak_bytes <= shared.free_bytes


def test_weights_that_must_wait_in_main_memory_need_the_room_there() -> None:
    model, job = MODELS["wan2.2-t2v-a14b"], JobSize(832 * 480, 81, False)
    assert memory.choose(model, stored(model), job, card(24, ram_gib=128)) is not None
    assert memory.choose(model, stored(model), job, card(24, ram_gib=32)) is None
    with pytest.raises(Unsupported, match="of host memory"):
        memory.place(
            model, Installed(stored(model), tiny=False), job, card(24, ram_gib=32), None, "bf16"
        )


def test_fewer_bits_are_never_chosen_by_the_plan() -> None:
    for model, job, gb in (case.values for case in CASES):
        found = memory.choose(model, stored(model), job, card(gb))
        assert found is None or found.weight_type == "bf16"


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_eight_bits_halve_the_blocks_and_nothing_else(kind: memory.WeightType) -> None:
    model = MODELS["wan2.1-t2v-14b"]
    wide = memory.weight_bytes(model, stored(model), "bf16")
    narrow = memory.weight_bytes(model, stored(model), kind)
    assert {role for role in wide if wide[role] != narrow[role]} == {"transformer"}
    assert wide["transformer"] * 0.5 < narrow["transformer"] < wide["transformer"] * 0.52


def test_a_refusal_says_what_is_missing_and_what_would_fit() -> None:
    model = MODELS["wan2.2-t2v-a14b"]
    with pytest.raises(Unsupported) as refusal:
        memory.place(
            model,
            Installed(stored(model), tiny=False),
            JobSize(1920 * 1088, 81, False),
            card(16),
            None,
            "bf16",
        )
    said = refusal.value.message
    assert "16 GB card has 17.2 GB free" in said
    assert "needs at least" in said
    assert "to denoise" in said
    assert "1280x720 with 81 frames would fit" in said


def test_a_refusal_names_int8_where_that_is_what_helps() -> None:
    model = MODELS["wan2.2-t2v-a14b"]
    with pytest.raises(Unsupported, match='precision "int8" it would fit') as refusal:
        memory.place(
            model,
            Installed(stored(model), tiny=False),
            JobSize(16 * 16, 1, False),
            card(48),
            "resident",
            "bf16",
        )
    assert "PLACEMENT is set to resident" in refusal.value.message


@pytest.mark.parametrize("placement", ["resident", "sequential", "group"])
def test_an_operators_placement_is_kept(placement: memory.Placement) -> None:
    model, job = MODELS["wan2.1-t2v-1.3b"], JobSize(832 * 480, 81, False)
    found = memory.choose(model, stored(model), job, card(141), placement)
    assert found is not None
    assert found.placement == placement


def test_tiles_and_fewer_bits_are_told_and_lossless_layouts_are_not() -> None:
    assert memory.notices(Layout("group")) == []
    assert memory.notices(Layout("sequential", decode="bf16")) == []
    codes = [n.code for n in memory.notices(Layout("group", "fp8", "tiled"))]
    assert codes == ["VAE_TILED", "WEIGHTS_QUANTIZED"]
    assert [n.code for n in memory.notices(Layout("group", tiled_encode=True))] == ["VAE_TILED"]


# --- The formulas against what was counted on the real classes ---


def counted() -> Iterator[Any]:
    for entry in json.loads(COUNTED.read_text())["stages"]:
        how = entry.get("decode") or ("tiled" if entry.get("tiled") else "whole")
        yield pytest.param(entry, id=f"{entry['model']}-{entry['stage']}-{entry['size']}-{how}")


@pytest.mark.parametrize("entry", list(counted()))
def test_a_formula_is_never_under_what_was_counted_and_near_it(entry: dict[str, Any]) -> None:
    wide, high = (int(side) for side in entry["size"].split("x"))
    job = JobSize(wide * high, entry["frames"], entry["stage"] == "picture")
    model = MODELS[entry["model"]]
    formula = {
        "prompt": activations.prompt_bytes(),
        "picture": activations.encode_bytes(model, job, entry.get("tiled", False)),
        "denoise": activations.denoise_bytes(model, job),
        "decode": activations.decode_bytes(model, job.pixels, entry.get("decode", "fp32")),
    }[entry["stage"]]
    assert entry["bytes"] <= formula <= entry["bytes"] * 1.15 + 300e6


@pytest.mark.parametrize(
    ("model_id", "stage", "how"),
    [
        ("wan2.1-t2v-1.3b", "decode", "fp32"),
        ("wan2.1-t2v-1.3b", "decode", "bf16"),
        ("wan2.2-ti2v-5b", "decode", "fp32"),
        ("wan2.1-i2v-14b-480p", "picture", "whole"),
        ("wan2.2-ti2v-5b", "picture", "whole"),
    ],
)
def test_counted_again_a_stage_holds_no_more(model_id: str, stage: str, how: str) -> None:
    model = MODELS[model_id]
    (entry, *_) = (
        one
        for one in json.loads(COUNTED.read_text())["stages"]
        if (one["model"], one["stage"], one.get("decode", "whole")) == (model_id, stage, how)
    )
    wide, high = (int(side) for side in entry["size"].split("x"))
    if stage == "decode":
        found = memory_model.decode(model, (wide, high), how)
    else:
        found = memory_model.encode(model, (wide, high), entry["frames"], False)
    assert found == entry["bytes"]


def kind(model: Model) -> tuple[object, ...]:
    """What the formulas tell models apart by, beside their sizes."""
    config = model.config
    return (
        *(model.expand_timesteps, model.two_experts, model.image, model.last_image, model.grid),
        *(bool(config.vace_layers), config.image_dim, config.in_channels),
    )


def test_every_kind_of_model_and_stage_was_counted() -> None:
    entries = json.loads(COUNTED.read_text())["stages"]
    found = {(kind(MODELS[entry["model"]]), entry["stage"]) for entry in entries}
    kinds = {kind(model): model for model in MODELS.values()}
    wanted = set(itertools.product(kinds, ("denoise", "decode")))
    wanted |= {(of, "picture") for of, model in kinds.items() if model.image != "none"}
    assert wanted <= found
