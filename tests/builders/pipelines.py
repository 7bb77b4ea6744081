"""Plans of requests to the tests' worker, and real pipelines on the tiny weights."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.conftest import QUICK
from wan_worker import job
from wan_worker.catalog.components import Component
from wan_worker.inputs.references import References
from wan_worker.machine.hardware import Hardware
from wan_worker.pipelines import generate, load
from wan_worker.planning import plan
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.plan import Plan
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.request import parse
from wan_worker.timing.progress import Control
from wan_worker.weights import store


def hooks_of(module: torch.nn.Module) -> list[str]:
    """What moves or casts a module's weights."""
    registry = getattr(module, "_diffusers_hook", None)
    moving = ["accelerate"] if hasattr(module, "_hf_hook") else []
    return moving + ([] if registry is None else list(registry.hooks))


class CountingLoad:
    """The real loader, counting what it reads."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()

    def __call__(self, component: Component, folder: Path, hardware: Hardware, device: str) -> Any:
        self.loads[component.name] += 1
        return load.load_component(component, folder, hardware, device)


def make_plan(worker: job.Worker, **changes: Any) -> Plan:
    """The plan of the quick request, changed, on the worker's own machine and models."""
    asked = parse.request({"id": "t", "input": QUICK | changes}, worker.contract)
    return plan.make(
        asked, Deployment(worker.hardware, store.installed(worker.settings.models_dir))
    )


def build(worker: job.Worker, planned: Plan) -> Any:
    """The plan's pipeline, from the worker's pool."""
    here = store.installed(worker.settings.models_dir)[planned.model.id]
    return worker.pool.pipeline(planned, here, lambda: None)


def denoise(worker: job.Worker, planned: Plan, pipeline: Any = None) -> torch.Tensor:
    """The latents of a plan; its pictures, if it has any, are red."""
    pipeline = pipeline or build(worker, planned)
    embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    image = Image.new("RGB", planned.generated_size, "red") if planned.references else None
    last = image if "last_image_url" in planned.references else None
    return generate.denoise(
        pipeline, planned, embeds, negative, References(image, last), Control()
    ).clone()


def experts_of(pipeline: Any) -> list[Any]:
    parts = (pipeline.transformer, getattr(pipeline, "transformer_2", None))
    return [part for part in parts if part is not None]
