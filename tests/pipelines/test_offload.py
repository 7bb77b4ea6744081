"""Where weights are while jobs follow each other: through the handler's flow, and beside a GPU."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.builders.files import path_of
from tests.builders.pictures import INLINE_PIXEL, picture
from tests.builders.pipelines import hooks_of, make_plan
from tests.builders.requests import ENHANCED
from tests.conftest import QUICK, Answer
from wan_worker import job as jobs
from wan_worker.catalog.components import ENHANCER, UMT5, VAE_2_1, Component
from wan_worker.catalog.models import MODELS
from wan_worker.machine.hardware import Hardware
from wan_worker.pipelines import load, offload
from wan_worker.pipelines import pool as pipelines
from wan_worker.pipelines.pool import Pool
from wan_worker.planning import memory
from wan_worker.planning.memory import Layout
from wan_worker.planning.plan import Plan
from wan_worker.settings import Placement
from wan_worker.timing.progress import Control
from wan_worker.weights import store

STILL = QUICK | {"mode": "image", "num_frames": 1, "model": "wan2.1-t2v-1.3b"}
"""A PNG: what differs in it differs in the frame."""

STILL_REWRITTEN = "a blue square on a white background"

T2V = "wan2.1-t2v-1.3b.transformer"


# --- Jobs through the handler's flow, their weights moving: hooks take any device, a CPU too ---


@pytest.fixture
def fresh(worker: jobs.Worker) -> jobs.Worker:
    return replace(worker, pool=Pool(worker.hardware))


@pytest.fixture
def placed(
    fresh: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, dict[str, Any]], Answer]:
    """Serve a request in a placement."""

    def run(placement: Placement, request: dict[str, Any]) -> Answer:
        monkeypatch.setattr(memory, "place", lambda *_: Layout(placement))
        return jobs.run({"id": placement, "input": request}, fresh, Control())

    return run


def frame_of(answer: Answer) -> np.ndarray[Any, Any]:
    assert "error" not in answer, answer
    with Image.open(path_of(answer["assets"][0]["url"])) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def hooked(pool: pipelines.Pool) -> set[str]:
    """Names of the components that anything hangs on."""
    return {
        name
        for name, part in pool._components.items()
        if hasattr(part, "modules") and any(hooks_of(module) for module in part.modules())
    }


@pytest.mark.parametrize("placement", ["sequential", "group"])
@pytest.mark.parametrize(
    "changes",
    [
        ENHANCED,
        {"loras": [{"source": "cyan"}]},
        ENHANCED | {"loras": [{"source": "cyan", "scale": 0.5}]},
        {"image_url": picture(), "strength": 0.6},
        {"num_outputs": 2},
    ],
    ids=["enhanced", "lora", "enhanced, with a lora", "from an image", "two outputs"],
)
def test_a_job_whose_weights_move_makes_the_same_picture_and_leaves_nothing(
    fresh: jobs.Worker,
    placed: Callable[[Placement, dict[str, Any]], Answer],
    placement: Placement,
    changes: dict[str, Any],
) -> None:
    expected = placed("resident", STILL | changes)
    answer = placed(placement, STILL | changes)
    assert answer["metadata"]["plan"]["placement"] == placement
    assert hooked(fresh.pool) - {ENHANCER.name}
    assert np.abs(frame_of(answer) - frame_of(expected)).max() <= 1
    assert answer["metadata"]["prompt"] == expected["metadata"]["prompt"]
    if changes.get("enhance_prompt"):
        assert answer["metadata"]["prompt"] == STILL_REWRITTEN
        assert answer["warnings"] == []
        assert ENHANCER.name not in hooked(fresh.pool)
    again = placed("resident", STILL | changes)
    assert hooked(fresh.pool) == set()
    assert np.abs(frame_of(again) - frame_of(expected)).max() <= 1


@pytest.mark.parametrize("placement", ["sequential", "group"])
def test_the_language_model_finds_no_hooks_of_the_job_before(
    fresh: jobs.Worker,
    placed: Callable[[Placement, dict[str, Any]], Answer],
    monkeypatch: pytest.MonkeyPatch,
    placement: Placement,
) -> None:
    placed(placement, STILL)
    assert hooked(fresh.pool)
    seen: list[set[str]] = []
    single = fresh.pool.single

    def watched(*args: Any) -> Any:
        part = single(*args)
        seen.append(hooked(fresh.pool))
        return part

    monkeypatch.setattr(fresh.pool, "single", watched)
    assert placed(placement, STILL | ENHANCED)["metadata"]["prompt"] == STILL_REWRITTEN
    assert seen and not any(seen)


# --- What makes room on a GPU, and how: the pool's side of it, with the moves written down ---


class Gpu:
    """Stands where weights are moved: it knows what is on the GPU, and in which order it left."""

    def __init__(self, pool: pipelines.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool, self.here, self.left = pool, set[int](), list[str]()
        monkeypatch.setattr(offload, "is_on_gpu", lambda part: id(part) in self.here)
        monkeypatch.setattr(offload, "move", self.move)
        monkeypatch.setattr(offload, "arrange", self.arrange)

    @property
    def names(self) -> set[str]:
        return {name for name, part in self.pool._components.items() if id(part) in self.here}

    def move(self, part: Any, device: str) -> None:
        if device == "cuda":
            self.here.add(id(part))
        else:
            self.left += [name for name, held in self.pool._components.items() if held is part]
            self.here.discard(id(part))

    def arrange(self, pipeline: Any, plan: Plan) -> None:
        parts = {id(part) for part in pipeline.components.values() if hasattr(part, "parameters")}
        self.here = self.here | parts if plan.placement == "resident" else self.here - parts


class Beside:
    """A pool beside a GPU, and the plans of a text and an image model on it."""

    def __init__(self, worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch, ram: int) -> None:
        self.cpu = worker.hardware
        machine = replace(worker.hardware, device="cuda", memory_bytes=10**12, ram_bytes=ram)
        self.installed = store.installed(worker.settings.models_dir)
        self.pool = pipelines.Pool(machine, self.read)
        self.gpu = Gpu(self.pool, monkeypatch)
        text, image = make_plan(worker), make_plan(worker, image_url=INLINE_PIXEL)
        self.text, self.image = replace(text, device="cuda"), replace(image, device="cuda")
        self.enhancer = store.locate(ENHANCER, worker.settings.models_dir)

    def read(self, component: Component, folder: Path, _: Hardware, device: str) -> Any:
        part = load.load_component(component, folder, self.cpu)
        if device == "cuda" and hasattr(part, "parameters"):
            self.gpu.here.add(id(part))
        return part

    def run(self, plan: Plan, placement: Placement = "resident", room: int = 0) -> None:
        plan = replace(plan, layout=Layout(placement, room_bytes=room))
        pipeline = self.pool.pipeline(plan, self.installed[plan.model.id], lambda: None)
        offload.arrange(pipeline, plan)

    def ask(self) -> None:
        assert self.enhancer is not None
        here = self.enhancer
        self.pool.single(ENHANCER, here.folder, here.weight_bytes, working=10**12)


@pytest.fixture
def beside(worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Beside]]:
    yield lambda ram=10**12: Beside(worker, monkeypatch, ram)


I2V = "wan2.1-i2v-14b-480p.transformer"


def test_what_the_next_job_leaves_room_for_stays_on_the_gpu(beside: Callable[..., Beside]) -> None:
    machine = beside()
    machine.run(machine.text)
    machine.run(machine.image, room=machine.pool._bytes[T2V])
    assert machine.gpu.left == []
    assert {T2V, I2V} <= machine.gpu.names


def test_what_the_next_job_needs_the_room_of_waits_in_main_memory(
    beside: Callable[..., Beside],
) -> None:
    machine = beside()
    machine.run(machine.text)
    machine.run(machine.image, room=machine.pool._bytes[T2V] - 1)
    assert machine.gpu.left == [T2V]
    assert T2V in machine.pool.loaded
    assert T2V not in machine.gpu.names
    assert {UMT5.name, VAE_2_1.name, I2V} <= machine.gpu.names  # two of them both models' own


def test_the_least_recently_used_leave_first_and_no_more_than_must(
    beside: Callable[..., Beside],
) -> None:
    machine = beside()
    machine.ask()
    machine.run(machine.text, room=10**12)
    machine.run(machine.image, room=machine.pool._bytes[T2V])
    assert machine.gpu.left == [ENHANCER.name]
    assert {T2V, I2V} <= machine.gpu.names
    assert ENHANCER.name in machine.pool.loaded


def test_what_main_memory_has_no_room_for_is_dropped_after_it_has_left(
    beside: Callable[..., Beside],
) -> None:
    machine = beside(ram=1)
    machine.run(machine.text)
    gone = weakref.ref(machine.pool._components[T2V])
    machine.run(machine.image)
    assert machine.gpu.left == [T2V]
    assert T2V not in machine.pool.loaded
    assert T2V not in machine.pool._bytes
    assert gone() is None


def test_main_memory_drops_the_least_recently_used_first(beside: Callable[..., Beside]) -> None:
    sizes = beside()
    sizes.ask()
    sizes.run(sizes.text)
    only = sizes.pool._bytes[T2V]
    machine = beside(ram=int((only + 1) / memory.HOST_WEIGHT_SHARE) + 1)
    machine.ask()
    machine.run(machine.text, room=10**12)
    assert ENHANCER.name in machine.gpu.names
    machine.run(machine.image)
    assert machine.gpu.left == [ENHANCER.name, T2V]
    assert ENHANCER.name not in machine.pool.loaded
    assert T2V in machine.pool.loaded


def test_what_stays_on_the_gpu_takes_no_main_memory(beside: Callable[..., Beside]) -> None:
    machine = beside(ram=1)
    machine.run(machine.text)
    machine.run(machine.image, room=10**12)
    assert {T2V, I2V} <= machine.gpu.names


@pytest.mark.parametrize("placement", ["sequential", "group"])
def test_weights_that_wait_are_counted_in_main_memory_and_clear_the_gpu(
    beside: Callable[..., Beside], placement: Placement
) -> None:
    machine = beside()
    machine.run(machine.text)
    machine.run(machine.image, placement)
    assert machine.gpu.left == [T2V]
    assert machine.gpu.names == set()
    needed = sum(
        machine.pool._bytes[name] for name in MODELS[machine.image.model.id].component_names
    )
    short = beside(ram=int(needed / memory.HOST_WEIGHT_SHARE) + 1)
    short.run(short.text)
    short.run(short.image, placement)
    assert T2V not in short.pool.loaded
    assert {UMT5.name, VAE_2_1.name, I2V} <= set(short.pool.loaded)


def test_the_language_model_clears_the_gpu_of_what_does_not_fit_beside_it(
    beside: Callable[..., Beside],
) -> None:
    machine = beside()
    machine.run(machine.text)
    machine.ask()
    assert set(machine.gpu.left) == {T2V, UMT5.name, VAE_2_1.name}
    assert machine.gpu.names == {ENHANCER.name}
    assert {T2V, UMT5.name, VAE_2_1.name} <= set(machine.pool.loaded)
