"""Which model `auto` takes, whatever is installed, and what a model that is named refuses.

Every choice is in tests/golden/auto.md, a table to read that `make docs` writes.
"""

import itertools
from typing import Any

import pytest
from docs.generate.choice_table import PRESETS, REQUESTS, URL, contract, described, make, order

from wan_worker.catalog.models import MODELS, Installed
from wan_worker.errors import InvalidRequest, ModelUnavailable, WorkerError
from wan_worker.planning import model_choice
from wan_worker.request import parse


@pytest.mark.parametrize("name", REQUESTS)
def test_whatever_is_installed_the_first_in_order_is_taken(name: str) -> None:
    fields = parse.request({"input": {"prompt": "x"} | REQUESTS[name]}, contract())
    ordered = order(REQUESTS[name])
    for count in range(1, len(MODELS) + 1):
        for models in itertools.combinations(MODELS, count):
            first = next((model for model in ordered if model in models), None)
            here = {model: Installed({}, tiny=False) for model in models}
            if first is None:
                with pytest.raises(WorkerError):
                    model_choice.choose(fields, here, None)
            else:
                assert model_choice.choose(fields, here, None)[0].id == first


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("model_id", MODELS)
def test_every_preset_runs_on_every_model_that_serves_it(model_id: str, name: str) -> None:
    model, fields = MODELS[model_id], PRESETS[name]
    still = fields["job_type"].startswith("image")
    served = model.text_pipeline is not None or not still
    assert ("x" in described(model, fields)) is served


@pytest.mark.parametrize("model_id", MODELS)
def test_every_model_is_the_choice_where_it_alone_is_here(model_id: str) -> None:
    model = MODELS[model_id]
    fields = {
        **({} if model.image == "none" else {"image_url": URL}),
        **({} if model.last_image == "none" else {"last_image_url": URL}),
    }
    assert make([model_id], **fields).model is model


def test_a_model_that_was_passed_over_for_its_size_is_named_in_the_reason() -> None:
    made = make(["wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"], size="832x480")
    assert made.model.id == "wan2.1-t2v-1.3b"
    assert "wan2.2-ti2v-5b loses detail at 832x480" in made.reasons[0]


@pytest.mark.parametrize(
    ("fields", "field", "able"),
    [
        (
            {"model": "wan2.1-i2v-14b-480p", "image_url": URL, "last_image_url": URL},
            "last_image_url",
            ["wan2.1-vace-1.3b", "wan2.1-flf2v-14b-720p", "wan2.2-i2v-a14b"],
        ),
        ({"model": "wan2.2-t2v-a14b", "image_url": URL}, "image_url", ["wan2.2-i2v-a14b"]),
        (
            {"model": "wan2.1-flf2v-14b-720p", "image_url": URL},
            "last_image_url",
            ["wan2.1-i2v-14b-480p"],
        ),
        ({"model": "wan2.2-i2v-a14b", "last_image_url": URL}, "image_url", ["wan2.1-vace-1.3b"]),
        ({"model": "wan2.1-vace-1.3b"}, "image_url", ["wan2.1-t2v-1.3b"]),
        (
            {"model": "wan2.1-vace-1.3b", "image_url": URL, "mode": "image"},
            "model",
            ["wan2.1-t2v-1.3b"],
        ),
        (
            {"model": "wan2.1-t2v-14b", "guidance_scale_2": 3},
            "guidance_scale_2",
            ["wan2.2-t2v-a14b"],
        ),
    ],
)
def test_a_named_model_that_can_not_is_refused_naming_those_that_can(
    fields: dict[str, Any], field: str, able: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        make(list(MODELS), **fields)
    assert refusal.value.field == f"/input/{field}"
    said = refusal.value.message.partition("; models that can: ")[2].split(", ")
    assert set(able) <= set(said)
    assert fields["model"] not in said


@pytest.mark.parametrize("model_id", MODELS)
def test_a_size_beyond_any_model_names_those_that_make_it(model_id: str) -> None:
    model = MODELS[model_id]
    fields = {
        **({} if model.image == "none" else {"image_url": URL}),
        **({} if model.last_image != "required" else {"last_image_url": URL}),
    }
    if model.max_pixels >= 1920 * 1080:
        made = make([model_id], model=model_id, size="1920x1080", num_frames=5, **fields)
        assert made.size == (1920, 1080)
        return
    with pytest.raises(WorkerError) as refusal:
        make(list(MODELS), model=model_id, size="1920x1080", num_frames=5, **fields)
    assert refusal.value.code == "UNSUPPORTED"
    said = refusal.value.message.partition("; models that can: ")[2].split(", ")
    assert said
    assert all(MODELS[name].max_pixels >= 1920 * 1080 for name in said)


def test_guidance_of_a_second_expert_chooses_a_model_that_has_one() -> None:
    assert make(list(MODELS), guidance_scale_2=2, image_url=URL).model.id == "wan2.2-i2v-a14b"
    with pytest.raises(InvalidRequest):
        make(["wan2.1-t2v-1.3b"], guidance_scale_2=2)


def test_what_no_installed_model_does_names_one_to_install() -> None:
    with pytest.raises(ModelUnavailable, match=r"--models wan2\.1-vace-1\.3b"):
        make(["wan2.1-t2v-1.3b"], image_url=URL, last_image_url=URL)
