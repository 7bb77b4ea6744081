"""Two pictures: one fit rule, and what happens when one of them can't be used."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.builders.answers import codes, sha256_of
from tests.builders.pictures import BAD_IMAGE, picture
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker import worker as workers
from wan_worker.inputs import references
from wan_worker.planning import plan
from wan_worker.request import parse
from wan_worker.timing.progress import Control
from wan_worker.weights import tiny

Serve = Callable[..., Answer]
FIRST, LAST = picture(), picture(colour=(40, 40, 220))


@pytest.fixture(scope="session")
def flf2v_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, image, and first-and-last-frame models."""
    folder = tmp_path_factory.mktemp("flf2v") / "models"
    tiny.write(folder, ["wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p", "wan2.1-flf2v-14b-720p"])
    return folder


@pytest.fixture
def serve_flf2v(worker: jobs.Worker, flf2v_dir: Path) -> Serve:
    here = replace(worker, settings=replace(worker.settings, models_dir=flf2v_dir))

    def run(**changes: Any) -> Answer:
        fields = {k: v for k, v in (QUICK | changes).items() if v is not None}
        return jobs.run({"id": "r", "input": fields}, here, Control())

    return run


def gathered(
    worker: jobs.Worker, flf2v_dir: Path, **fields: Any
) -> tuple[plan.Plan, references.References]:
    here = replace(worker, settings=replace(worker.settings, models_dir=flf2v_dir))
    given = {k: v for k, v in (QUICK | fields).items() if v is not None}
    asked = parse.request({"input": given}, worker.contract)

    asked, planned = workers.planned(asked, here)
    without = partial(workers.planned_without, worker=here)
    return references.gather(asked, planned, without, here.settings, here.policy, Control())


def test_the_first_image_sets_the_size_and_the_last_is_cropped_to_it(
    worker: jobs.Worker, flf2v_dir: Path
) -> None:
    wide, tall = picture(320, 160), picture(160, 320)
    planned, pictures = gathered(worker, flf2v_dir, size=None, image_url=wide, last_image_url=tall)
    width, height = planned.generated_size
    assert width > height
    assert pictures.first is not None
    assert pictures.last is not None
    assert pictures.first.size == pictures.last.size == (width, height)
    assert [r for r in planned.reasons if r.startswith("last_image_url: ")]


def test_an_explicit_size_crops_both_pictures(worker: jobs.Worker, flf2v_dir: Path) -> None:
    planned, pictures = gathered(
        worker, flf2v_dir, size="64x48", image_url=FIRST, last_image_url=LAST
    )
    assert planned.size == (64, 48)
    assert pictures.first is not None
    assert pictures.last is not None
    assert pictures.first.size == pictures.last.size == (64, 48)
    assert not [r for r in planned.reasons if r.startswith("last_image_url: ")]


def test_a_last_image_alone_sets_the_size(every_model_dir: Path, worker: jobs.Worker) -> None:
    planned, pictures = gathered(
        worker, every_model_dir, size=None, last_image_url=picture(160, 320)
    )
    assert planned.model.id == "wan2.1-vace-1.3b"
    width, height = planned.generated_size
    assert width < height
    assert pictures.first is None
    assert pictures.last is not None


def test_an_unusable_last_image_is_an_error_at_its_field(serve_flf2v: Serve) -> None:
    error = error_of(serve_flf2v(image_url=FIRST, last_image_url=BAD_IMAGE))
    assert (error["code"], error["field"]) == ("IMAGE_REJECTED", "/input/last_image_url")
    legacy = serve_flf2v(
        image_url=FIRST, metadata={"end_reference_url": BAD_IMAGE}, reference_fallback=False
    )
    assert error_of(legacy)["field"] == "/input/metadata/end_reference_url"


def test_with_fallback_an_unusable_last_image_leaves_the_first(serve_flf2v: Serve) -> None:
    answer = serve_flf2v(image_url=FIRST, last_image_url=BAD_IMAGE, reference_fallback=True)
    assert codes(answer) == ["REFERENCE_UNUSABLE"]
    assert "without last_image_url" in answer["warnings"][0]["message"]
    assert answer["metadata"]["model"] == "wan2.1-i2v-14b-480p"
    assert sha256_of(answer) == sha256_of(serve_flf2v(image_url=FIRST))


def test_with_fallback_an_unusable_first_image_leaves_what_a_model_serves(
    serve_flf2v: Serve,
) -> None:
    # No model here ends with a picture without starting from one.
    answer = serve_flf2v(image_url=BAD_IMAGE, last_image_url=LAST, reference_fallback=True)
    assert codes(answer) == ["REFERENCE_UNUSABLE"]
    assert answer["metadata"]["model"] == "wan2.1-t2v-1.3b"
    assert sha256_of(answer) == sha256_of(serve_flf2v())


def test_with_fallback_two_unusable_images_are_two_warnings(serve_flf2v: Serve) -> None:
    answer = serve_flf2v(
        metadata={"start_reference_url": BAD_IMAGE, "end_reference_url": BAD_IMAGE}
    )
    assert answer["metadata"]["model"] == "wan2.1-t2v-1.3b"
    assert codes(answer) == ["REFERENCE_UNUSABLE"]  # with the first, nothing is left for the last


def test_without_a_prompt_an_unusable_last_image_still_leaves_the_first(
    serve_flf2v: Serve,
) -> None:
    answer = serve_flf2v(
        prompt=None, image_url=FIRST, last_image_url=BAD_IMAGE, reference_fallback=True
    )
    assert answer["metadata"]["model"] == "wan2.1-i2v-14b-480p"
    nothing = serve_flf2v(
        prompt=None, image_url=BAD_IMAGE, last_image_url=LAST, reference_fallback=True
    )
    assert error_of(nothing)["field"] == "/input/image_url"


def test_the_envelopes_two_references_go_to_a_model_that_takes_both(serve_flf2v: Serve) -> None:
    answer = serve_flf2v(metadata={"start_reference_url": FIRST, "end_reference_url": LAST})
    assert answer["metadata"]["model"] == "wan2.1-flf2v-14b-720p"
    assert answer["warnings"] == []


def test_the_envelopes_end_is_given_up_where_no_model_takes_one(serve: Serve) -> None:
    answer = serve({"metadata": {"start_reference_url": FIRST, "end_reference_url": LAST}})
    assert answer["metadata"]["model"] == "wan2.1-i2v-14b-480p"
    assert codes(answer) == ["REFERENCE_UNUSABLE"]
    error = error_of(serve({"image_url": FIRST, "last_image_url": LAST}))
    assert (error["code"], error["field"]) == ("MODEL_UNAVAILABLE", "/input/model")


def test_a_named_model_is_not_given_up_for_a_fallback(serve_flf2v: Serve) -> None:
    error = error_of(
        serve_flf2v(
            model="wan2.1-flf2v-14b-720p",
            image_url=FIRST,
            last_image_url=BAD_IMAGE,
            reference_fallback=True,
        )
    )
    assert (error["code"], error["field"]) == ("IMAGE_REJECTED", "/input/last_image_url")


def test_an_image_from_an_unusable_image_is_made_from_the_prompt_with_fallback(
    serve_flf2v: Serve,
) -> None:
    still = {"mode": "image", "num_frames": None}
    answer = serve_flf2v(**still, image_url=BAD_IMAGE, strength=0.4, reference_fallback=True)
    assert codes(answer) == ["REFERENCE_UNUSABLE"]
    assert answer["metadata"]["plan"]["strength"] is None
    assert sha256_of(answer) == sha256_of(serve_flf2v(**still))


def test_what_is_done_to_a_picture_is_told_for_each(serve_flf2v: Serve) -> None:
    from PIL import Image

    from tests.builders.pictures import data_uri

    clear = data_uri(Image.new("RGBA", (96, 64), (200, 0, 0, 100)))
    answer = serve_flf2v(image_url=clear, last_image_url=clear)
    assert codes(answer) == ["ALPHA_FLATTENED", "ALPHA_FLATTENED"]
    told = [warning["message"] for warning in answer["warnings"]]
    assert "last_image_url" in told[1]
