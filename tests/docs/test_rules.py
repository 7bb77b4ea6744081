"""Each rule of `make check` finds what breaks it, and says what to do."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docs.generate import rules

from wan_worker import settings
from wan_worker.planning.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas" / "request.schema.json").read_text("utf-8"))
PRESETS: dict[str, Any] = json.loads((ROOT / "schemas" / "presets.json").read_text("utf-8"))
LISTING: dict[str, Any] = json.loads((ROOT / ".runpod" / "hub.json").read_text("utf-8"))


def sources() -> list[str]:
    package = ROOT / "src" / "wan_worker"
    return [p.read_text("utf-8") for reader in rules.READERS for p in package.glob(reader)]


def test_a_field_that_nothing_reads_is_named_with_what_to_do() -> None:
    broken = copy.deepcopy(SCHEMA)
    broken["properties"]["sharpness"] = {"type": "number"}
    broken["properties"]["loras"]["items"]["properties"]["weight"] = {"type": "number"}
    broken["properties"]["crisp"] = {"x-alias-of": "sharpness"}
    assert list(rules.unread_fields(broken, sources())) == [
        "schemas/request.schema.json: nothing reads /loras/0/weight; read it in "
        "src/wan_worker/request/parse.py (of mode info: reports/info.py), or take it out",
        "schemas/request.schema.json: nothing reads /sharpness; read it in "
        "src/wan_worker/request/parse.py (of mode info: reports/info.py), or take it out",
    ]


@pytest.mark.parametrize(
    ("source", "is_read"),
    [
        ('fields.get("seed", 1)', True),
        ('fields["seed"]', True),
        ('pick("seed")', True),
        ('fields["seed"] = 1', False),
        ('where["seed"]', False),
        ('preset.get("seed")', False),
        ('for name in ("seed", "size"): refuse(name)', False),
        ('"""seed"""', False),
    ],
)
def test_only_a_look_at_a_field_is_reading_it(source: str, is_read: bool) -> None:
    schema = {"properties": {"seed": {"type": "integer"}}}
    assert (list(rules.unread_fields(schema, [source])) == []) is is_read


def test_a_preset_that_does_not_keep_to_the_schema_is_named_with_what_to_do() -> None:
    broken = copy.deepcopy(PRESETS)
    values = broken["image_fast"]["values"]
    broken["image_fast"]["values"] = dict(reversed(values.items()))
    broken["video_fast"]["profiles"]["quality"]["sharpness"] = 1
    broken["video_high"]["values"]["steps"] = 3
    broken["image7b_fast_enhanced"]["sparkle"] = True
    assert list(rules.wrong_presets(broken, SCHEMA)) == [
        "schemas/presets.json: image_fast has its fields in another order than the schema; write "
        "them as size, num_inference_steps, guidance_scale, solver, flow_shift",
        "schemas/presets.json: video_fast.quality sets sharpness, which the schema lacks (aliases "
        "don't count); add it to schemas/request.schema.json, or take it out",
        "schemas/presets.json: video_high sets steps, which the schema lacks (aliases don't "
        "count); add it to schemas/request.schema.json, or take it out",
        "schemas/presets.json: image7b_fast_enhanced sets sparkle, which the schema lacks (aliases "
        "don't count); add it to schemas/request.schema.json, or take it out",
    ]


def test_a_solver_that_the_step_cache_does_not_know_is_named_with_what_to_do() -> None:
    solvers = {**SOLVERS, "heun": replace(SOLVERS["euler"], scheduler="HeunScheduler", levels=None)}
    assert list(rules.unknown_solvers(solvers)) == [
        "src/wan_worker/planning/solvers.py: the step cache does not know heun; give it the noise "
        "levels that HeunScheduler sets"
    ]


def test_the_variables_that_are_read_are_found_whatever_they_hold() -> None:
    read = rules.variables_read(settings.from_env)
    assert {"MODELS_DIR", "BUCKET_REGION", "COMPILE", "API_KEY", "HF_TOKEN"} <= read


def test_a_setting_without_a_word_about_it_is_named_with_what_to_do() -> None:
    assert list(rules.undocumented_settings({"SPARKLE", "MODELS_DIR"}, "`MODELS_DIR`")) == [
        "docs/operating.md: SPARKLE is read and not documented; tell what it is for"
    ]


def test_a_setting_that_the_listing_lacks_or_has_in_vain_is_named_with_what_to_do() -> None:
    broken = copy.deepcopy(LISTING)
    variables = broken["config"]["env"]
    (taken,) = (v for v in variables if v["key"] == "LOG_LEVEL")
    variables.remove(taken)
    variables += [{"key": "SPARKLE"}, {"key": "LOG_FORMAT"}]
    read = rules.variables_read(settings.from_env)
    assert list(rules.settings_not_offered(read, broken)) == [
        ".runpod/hub.json: LOG_LEVEL is read and not offered; add it to config.env, or to "
        "SERVER_ONLY in docs/generate/rules.py where an endpoint has no use for it",
        ".runpod/hub.json: SPARKLE is offered and nothing reads it; take it out",
        ".runpod/hub.json: LOG_FORMAT is offered twice; take one out",
    ]


def test_a_code_without_a_meaning_and_a_meaning_without_a_code_are_named() -> None:
    assert list(rules.codes_without_meaning({"A", "B"}, {"A": "a", "C": "c"})) == [
        "docs/generate/tables.py: MEANINGS lacks the error code B; say what it means",
        "docs/generate/tables.py: MEANINGS has C, which is no error code; take it out",
    ]
