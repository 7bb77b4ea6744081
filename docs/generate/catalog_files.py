"""What the catalog decides in files that are no documentation: schema, images, RunPod's listing.

Each function takes a file's text and returns it with the generated parts written anew.
"""

import json
import re
from pathlib import Path

from docs.generate.blocks import with_blocks

from wan_worker.catalog.components import Component
from wan_worker.catalog.image_variants import DEFAULT, IMAGE_VARIANTS, ImageVariant
from wan_worker.catalog.models import EXTRAS, MODELS, OTHER_NAMES, components_of
from wan_worker.planning.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[2]


def request_schema(text: str) -> str:
    """The enums that the catalog, the presets and the solvers decide; every other byte stays."""
    presets = json.loads((ROOT / "schemas" / "presets.json").read_text("utf-8"))
    profiles = [name for preset in presets.values() for name in preset.get("profiles", {})]
    models = list(MODELS)
    enums = {
        "job_type": list(presets),
        "profile": list(dict.fromkeys(profiles)),
        "model": ["auto", *models],
        "solver": list(SOLVERS),
        "other": models,
        "model_type": ["auto", *models, *OTHER_NAMES],
    }
    for field, values in enums.items():
        text = _with_enum(text, field, values)
    return text


def _with_enum(text: str, field: str, values: list[str]) -> str:
    listed = ",\n".join(f"        {json.dumps(value)}" for value in values)
    place = re.compile(rf'^(    "{field}": {{\n      "enum": \[\n).*?(\n      \])', re.M | re.S)
    found = place.findall(text)
    if len(found) != 1:
        raise ValueError(f'it has no place "{field}": {{"enum": [...]}} among its properties')
    return place.sub(lambda match: f"{match[1]}{listed}{match[2]}", text)


def dockerfile(text: str) -> str:
    """The default variant's models, and a layer for each component."""
    layers = [*(component.name for component in layered()), "enhancer"]
    (default,) = (variant for variant in IMAGE_VARIANTS if variant.name == DEFAULT)
    blocks = {
        "default models": f'ARG MODELS="{" ".join(default.models)}"',
        "weight layers": "\n".join(f"COPY --from=weights /layers/{n}/ /models/" for n in layers),
    }
    return with_blocks(text, blocks)


def layered() -> list[Component]:
    """Every component, those first that are the least likely to change with the choice of models.

    What most models are put together from, what a job of any model may need, what some models
    share, then each model's own.
    """

    def rank(component: Component) -> int:
        holders = sum(component in model.components for model in MODELS.values())
        if holders > len(MODELS) / 2:
            return 0
        if component.role == "upscaler":
            return 1
        return 2 if holders > 1 else 3

    return sorted(components_of([*MODELS, *EXTRAS]), key=rank)


def bake(text: str) -> str:
    """docker-bake.hcl's groups and targets."""
    names = ", ".join(f'"{variant.name}"' for variant in IMAGE_VARIANTS)
    parts = [
        f'group "default" {{\n  targets = ["{DEFAULT}"]\n}}',
        f'group "all" {{\n  targets = [{names}]\n}}',
        *map(_target, IMAGE_VARIANTS),
    ]
    return with_blocks(text, {"groups and targets": "\n\n".join(parts)})


def _target(variant: ImageVariant) -> str:
    tags = [f"${{IMAGE}}:${{VERSION}}-{variant.name}", f"${{IMAGE}}:{variant.name}"]
    if variant.name == DEFAULT:
        tags += ["${IMAGE}:${VERSION}", "${IMAGE}:latest"]
    lines = [
        f'target "{variant.name}" {{',
        '  inherits = ["_worker"]',
        f'  args     = {{ MODELS = "{" ".join(variant.models)}" }}',
        f"  tags     = [{', '.join(f'{chr(34)}{tag}{chr(34)}' for tag in tags)}]",
        "}",
    ]
    if not variant.models:
        lines.insert(0, "# No weights: they come from a network volume.")
    return "\n".join(lines)


def release_workflow(text: str) -> str:
    """build.yml's matrix."""
    names = ", ".join(variant.name for variant in IMAGE_VARIANTS)
    return with_blocks(text, {"variants": f"variant: [{names}]"})


def hub_listing(text: str) -> str:
    """RunPod's listing: a preset for each variant, and the models to choose from."""
    listing = json.loads(text)
    ordered = sorted(IMAGE_VARIANTS, key=lambda variant: variant.name != DEFAULT)
    listing["config"]["presets"] = [_preset(variant) for variant in ordered]
    (choice,) = (e["input"] for e in listing["config"]["env"] if e["key"] == "DEFAULT_MODEL")
    choice["options"] = [
        {"label": "Best installed", "value": ""},
        *({"label": model.title, "value": model.id} for model in MODELS.values()),
    ]
    return json.dumps(listing, indent=2, ensure_ascii=False) + "\n"


def _preset(variant: ImageVariant) -> dict[str, object]:
    return {
        "name": f"{variant.name}: {variant.title}",
        "defaults": {
            "MODELS_DIR": "/models" if variant.models else "/runpod-volume/models",
            # With several models the worker chooses.
            "DEFAULT_MODEL": variant.models[0] if len(variant.models) == 1 else "",
        },
    }
