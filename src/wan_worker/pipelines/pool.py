"""Build pipelines from shared components, keep the components that fit, evict the rest.

Only ``Pool`` keeps state after a job: the loaded components by name, in order of last use; the
embeddings of earlier texts; and what it knows of the machine's kernels and compiler (attention,
compiling). Each job gets a new pipeline object with a new scheduler (it costs a millisecond), so
that a job's settings can't reach the next job.

Promises: a component is read from disk once while it stays in memory, whichever models use it. If
the GPU has no room for it, it waits in main memory. If that is short too, it is dropped.
Not covered: which model (planning), reading files (load), moving weights during a job (offload).
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
    """Components in memory, shared by all pipelines; used by one thread at a time (GPU lock)."""

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
        """The diffusers pipeline for a plan, without hooks: for LoRAs, then for offload.arrange.

        Args:
            installed: sizes and folders of the plan's model.
            check: called between components; raises to stop.
        """
        import diffusers

        sizes = loaded_bytes(installed, self._hardware)
        kind, resident = plan.layout.weight_type, plan.placement == "resident"
        device = plan.device if resident else "cpu"
        entries = {c.entry(kind): c for c in plan.model.components}
        wanted = {e: self._bytes.get(e, sizes[c.name]) for e, c in entries.items()}
        allowed_bytes = plan.layout.room_bytes if resident else 0
        self._make_room(wanted, allowed_bytes, waiting=device == "cpu")
        absent = [installed.folders[c.name] for e, c in entries.items() if e not in self.loaded]
        parts = {}
        with read_ahead(absent):
            for entry, component in entries.items():
                check()
                folder, size = installed.folders[component.name], wanted[entry]
                parts[component.role] = self._component(component, folder, size, device, kind)
        pipeline_class = getattr(diffusers, plan.pipeline)
        pipeline = pipeline_class(scheduler=scheduler(plan), **parts, **_configuration(plan.model))
        # VACE's pipeline takes the stride from the VAE's layers, and overlooks its patches.
        pipeline.vae_scale_factor_spatial = pipeline.vae.config.scale_factor_spatial
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def single(self, component: Component, folder: Path, size: int, working: int = 0) -> Any:
        """One component by itself, on this machine's device; others that do not fit are evicted.

        Args:
            size: its bytes in memory.
            working: bytes of working memory that it also needs.
        """
        device = self._hardware.device
        allowed_bytes = self._hardware.free_bytes - size - working
        self._make_room({component.name: size}, allowed_bytes, waiting=device == "cpu")
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
        """Free as much of the GPU as possible: after a fault, before another try."""
        self._make_room({}, 0, waiting=False)
        _release_memory(self._hardware)

    def upscaler(self, plan: Plan, extras: Mapping[str, Installed]) -> Parameters | None:
        """The plan's upscaler on the plan's device, or None if the plan has none.

        Call it after ``pipeline``. It is loaded with the models, so that broken weights are noticed
        before minutes of denoising. It is small enough for the working memory, so that nothing is
        evicted for it.
        """
        if plan.upscale == 1:
            return None
        installed, name = extras[UPSCALER.name], UPSCALER.name
        network: Parameters = self._component(
            UPSCALER, installed.folders[name], installed.component_bytes[name], plan.device
        )
        offload.move(network, plan.device)  # an earlier job may have moved it to main memory
        return network

    def _component(
        self, component: Component, folder: Path, size: int, device: str, kind: WeightType = "bf16"
    ) -> Any:
        entry = component.entry(kind)
        if entry not in self._components:
            narrowed = entry != component.name
            # Narrowed on the CPU: the wide weights may not fit on the GPU.
            part = self._load(component, folder, self._hardware, "cpu" if narrowed else device)
            if narrowed:
                quantize.narrow(part, kind)
                size = quantize.stored_bytes(part)
            self._components[entry] = part
            self._bytes[entry] = size
        self._components.move_to_end(entry)
        return self._components[entry]

    def _make_room(self, wanted: Mapping[str, int], allowed_bytes: int, waiting: bool) -> None:
        """Free the room that the wanted components need, the least recently used others first.

        Args:
            wanted: bytes by entry.
            allowed_bytes: bytes of the GPU that other components may keep.
            waiting: the wanted components wait in main memory.
        """
        # An offloaded pipeline leaves hooks on shared components; they keep its others alive.
        for part in self._components.values():
            offload.unhook(part)
        others = [name for name in self._components if name not in wanted]
        on_gpu = [name for name in others if offload.is_on_gpu(self._components[name])]
        changed = False
        while on_gpu and sum(self._bytes[name] for name in on_gpu) > allowed_bytes:
            offload.move(self._components[on_gpu.pop(0)], "cpu")
            changed = True
        room = host_budget(self._hardware) - (sum(wanted.values()) if waiting else 0)
        in_main_memory = [name for name in others if name not in on_gpu]
        while in_main_memory and sum(self._bytes[name] for name in in_main_memory) > room:
            name = in_main_memory.pop(0)
            del self._components[name], self._bytes[name]
            changed = True
        if changed:
            _release_memory(self._hardware)


def _configuration(model: Model) -> dict[str, Any]:
    """Settings of a pipeline that belong to its model."""
    configuration: dict[str, Any] = {}
    if model.boundary_ratio is not None:
        configuration["boundary_ratio"] = model.boundary_ratio
    if model.expand_timesteps:
        configuration["expand_timesteps"] = True
    return configuration


def _release_memory(hardware: Hardware) -> None:
    # Modules are in reference cycles: without a collection their memory is not free.
    gc.collect()
    if hardware.device == "cuda":
        import torch

        torch.cuda.empty_cache()
