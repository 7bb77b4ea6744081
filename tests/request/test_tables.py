"""The schema, the presets and the code say the same, where `make docs` does not see to it."""

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from wan_worker.request import formats, parse
from wan_worker.request import schema as contract

REQUEST_SCHEMA = json.loads((contract.SCHEMAS_DIR / "request.schema.json").read_text("utf-8"))
PRESETS = contract.load().presets


def preset_sets() -> dict[str, dict[str, Any]]:
    """Every set of preset values by ``job_type`` or ``job_type.profile``."""
    found = {}
    for job_type, preset in PRESETS.items():
        if "values" in preset:
            found[job_type] = preset["values"]
        for profile, values in preset.get("profiles", {}).items():
            found[f"{job_type}.{profile}"] = values
    return found


@pytest.mark.parametrize("name", preset_sets())
def test_a_preset_asked_for_field_by_field_is_a_valid_request(name: str) -> None:
    job_type, _, profile = name.partition(".")
    values = preset_sets()[name] | {"prompt": "x", "seed": 1}
    rules = contract.load()
    by_hand = parse.request({"input": {"mode": PRESETS[job_type]["mode"]} | values}, rules)
    chosen = {"job_type": job_type, "prompt": "x", "seed": 1}
    by_name = parse.request({"input": chosen | ({"profile": profile} if profile else {})}, rules)
    differing = {n for n in vars(by_hand) if getattr(by_hand, n) != getattr(by_name, n)}
    assert differing == {"job_type", "size_is_explicit", "where"}


def test_the_schemas_strength_is_the_codes() -> None:
    assert REQUEST_SCHEMA["properties"]["strength"]["default"] == parse.STRENGTH


def test_the_schemas_formats_are_exactly_the_codes() -> None:
    named = REQUEST_SCHEMA["properties"]["output_format"]["enum"]
    assert named == [*formats.VIDEO_FORMATS, *formats.IMAGE_FORMATS]
    assert REQUEST_SCHEMA["properties"]["mode"]["enum"] == [
        *sorted(get_args(formats.Mode)),
        "info",
    ]


def test_the_schema_refuses_unknown_fields() -> None:
    assert REQUEST_SCHEMA["additionalProperties"] is False


def fields_of(schema: dict[str, Any], pointer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field at any depth."""
    for name, field in schema.get("properties", {}).items():
        yield f"{pointer}/{name}", field
        yield from fields_of(field, f"{pointer}/{name}")


def test_every_field_of_the_schema_is_described() -> None:
    fields = dict(fields_of(REQUEST_SCHEMA))
    assert "/config/first_frame" in fields
    assert [p for p, field in fields.items() if len(field.get("description", "")) < 10] == []


def test_every_alias_points_to_its_field_twice_the_same() -> None:
    properties = REQUEST_SCHEMA["properties"]
    aliases = {name: field for name, field in properties.items() if "x-alias-of" in field}
    assert aliases
    del aliases["model_type"]  # takes Wan's own names too
    for name, field in aliases.items():
        assert field["$ref"] == f"#/properties/{field['x-alias-of']}", name
        assert "x-alias-of" not in properties[field["x-alias-of"]], name


@pytest.mark.parametrize("name", ["request.schema.json", "response.schema.json"])
def test_a_schema_file_is_valid_draft_2020_12(name: str) -> None:
    schema = json.loads((contract.SCHEMAS_DIR / name).read_text("utf-8"))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
