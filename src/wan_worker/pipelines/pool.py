"""Build pipelines from shared components, keep what fits, evict the rest.

``Pool`` is the only state that outlives a job: loaded components by name, in order of last use,
what the text encoder made of earlier texts (embeddings), and what is known of the machine's kernels
and compiler (attention, compiling). A pipeline object is put together anew for each job (it costs a
millisecond) with a fresh scheduler, so nothing a job sets on it can reach the next one.

Promises: a component is read from disk once while it stays in memory, whichever models use it. What
others leave no room for on the GPU waits in main memory, and is dropped where that is short too.
Not covered: which model (plan), reading the files (load), moving weights during a job (placing).
"""

import gc
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wan_worker.catalog.components import UPSCALER, Component
from wan_worker.catalog.models import Installed, Model
from wan_worker.machine.hardware import Hardware
from wan_worker.pipelines import offload, quantize
from wan_worker.pipelines.attention import KernelChecks
from wan_worker.pipelines.compiling import Compiler
from wan_worker.pipelines.load import load_component, read_ahead
from wan_worker.pipelines.schedulers import scheduler
from wan_worker.planning.memory import host_budget, loaded_bytes
from wan_worker.planning.plan import Plan
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.settings import WeightType
from wan_worker.weights.real_esrgan import Parameters

Load = Callable[[Component, Path, Hardware, str], Any]


class Pool:
    """Components in memory, shared by all pipelines; for one thread at a time (the GPU lock)."""

    def __init__(
        self, hardware: Hardware, load: Load = load_component, compiler: Compiler | None = None
    ) -> None:
        self._hardware = hardware
        self._load = load
        self._components: OrderedDict[str, Any] = OrderedDict()
        self._bytes: dict[str, int] = {}
        self.embeddings = Embeddings()
        self.attention = KernelChecks()
        self.compiler = compiler or Compiler()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the components in memory, least recently used first."""
        return tuple(self._components)

    def pipeline(self, plan: Plan, installed: Installed, check: Callable[[], None]) -> Any:
        """The diffusers pipeline for a plan, free of hooks: for LoRAs, then for placing.arrange.

        Args:
            installed: what the plan's model weighs, and where it is.
            check: called between components; raises to stop.
        """
        import diffusers

        sizes = loaded_bytes(installed, self._hardware)
        kind, resident = plan.layout.weight_type, plan.placement == "resident"
        device = plan.device if resident else "cpu"
        entries = {c.entry(kind): c for c in plan.model.components}
        wanted = {e: self._bytes.get(e, sizes[c.name]) for e, c in entries.items()}
        beside = plan.layout.room_bytes if resident else 0
        self._make_room(wanted, beside, waiting=device == "cpu")
        absent = [installed.folders[c.name] for e, c in entries.items() if e not in self.loaded]
        parts = {}
        with read_ahead(absent):
            for entry, component in entries.items():
                check()
                folder, size = installed.folders[component.name], wanted[entry]
                parts[component.role] = self._component(component, folder, size, device, kind)
        pipeline_class = getattr(diffusers, plan.pipeline)
        pipeline = pipeline_class(scheduler=scheduler(plan), **parts, **_configuration(plan.model))
        # VACE's counts the VAE's layers for its stride, and misses what patches add to it.
        pipeline.vae_scale_factor_spatial = pipeline.vae.config.scale_factor_spatial
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def single(self, component: Component, folder: Path, size: int, working: int = 0) -> Any:
        """One component by itself, where this machine computes; what does not fit beside it goes.

        Args:
            size: its bytes in memory.
            working: bytes that it needs besides.
        """
        device = self._hardware.device
        beside = self._hardware.free_bytes - size - working
        self._make_room({component.name: size}, beside, waiting=device == "cpu")
        with read_ahead([] if component.name in self._components else [folder]):
            part = self._component(component, folder, size, device)
        offload.move(part, device)
        return part

    def drop(self, component: Component) -> None:
        """Free a component now."""
        if self._components.pop(component.name, None) is not None:
            del self._bytes[component.name]
            _release_memory(self._hardware)

    def free(self) -> None:
        """Give back all of the GPU that can be: after a fault, before another try."""
        self._make_room({}, 0, waiting=False)
        _release_memory(self._hardware)

    def upscaler(self, plan: Plan, extras: Mapping[str, Installed]) -> Parameters | None:
        """The plan's upscaler on the plan's device, or None where it has none.

        For after ``pipeline``: it is loaded with the models, so that broken weights are noticed
        before the minutes of denoising. Small enough to take its place from the working memory:
        nothing is evicted for it.
        """
        if plan.upscale == 1:
            return None
        here, name = extras[UPSCALER.name], UPSCALER.name
        network: Parameters = self._component(
            UPSCALER, here.folders[name], here.component_bytes[name], plan.device
        )
        offload.move(network, plan.device)  # it may have waited beside another job
        return network

    def _component(
        self, component: Component, folder: Path, size: int, device: str, kind: WeightType = "bf16"
    ) -> Any:
        entry = component.entry(kind)
        if entry not in self._components:
            narrowed = entry != component.name
            # Narrowed on the CPU: what is to fit only when it is narrow must not land there wide.
            part = self._load(component, folder, self._hardware, "cpu" if narrowed else device)
            if narrowed:
                quantize.narrow(part, kind)
                size = quantize.stored_bytes(part)
            self._components[entry] = part
            self._bytes[entry] = size
        self._components.move_to_end(entry)
        return self._components[entry]

    def _make_room(self, wanted: Mapping[str, int], beside: int, waiting: bool) -> None:
        """Free what the wanted components need, least recently used first.

        Args:
            wanted: bytes by entry.
            beside: bytes that others may keep of the GPU.
            waiting: the wanted ones wait in main memory.
        """
        # An offloaded pipeline leaves hooks on shared components, which hold its others alive.
        for part in self._components.values():
            offload.unhook(part)
        spare = [name for name in self._components if name not in wanted]
        on_gpu = [name for name in spare if offload.is_on_gpu(self._components[name])]
        moved = False
        while on_gpu and sum(self._bytes[name] for name in on_gpu) > beside:
            offload.move(self._components[on_gpu.pop(0)], "cpu")
            moved = True
        room = host_budget(self._hardware) - (sum(wanted.values()) if waiting else 0)
        held = [name for name in spare if name not in on_gpu]
        while held and sum(self._bytes[name] for name in held) > room:
            name = held.pop(0)
            del self._components[name], self._bytes[name]
            moved = True
        if moved:
            _release_memory(self._hardware)


def _configuration(model: Model) -> dict[str, Any]:
    """What a pipeline must know of its transformers beside their weights."""
    configuration: dict[str, Any] = {}
    if model.boundary_ratio is not None:
        configuration["boundary_ratio"] = model.boundary_ratio
    if model.expand_timesteps:
        configuration["expand_timesteps"] = True
    return configuration


def _release_memory(hardware: Hardware) -> None:
    # Modules sit in reference cycles: without a collection nothing is free yet.
    gc.collect()
    if hardware.device == "cuda":
        import torch

        torch.cuda.empty_cache()
