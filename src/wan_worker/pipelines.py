"""Build pipelines from shared components, keep what fits, evict the rest.

``Pool`` is the only state that outlives a job: loaded components by name, in order of last use. A
pipeline object is put together anew for each job (it costs a millisecond) with a fresh scheduler,
so nothing a job sets on it can reach the next one.

Promises: a component is read from disk once while it stays in memory, whichever models use it; the
weights are opened as safetensors only and nothing is fetched from anywhere; they go straight to the
device that they run on, in the type that they are stored in.
Not covered: which model (plan) and whether files are whole (weights).
"""

import gc
import importlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from wan_worker import rrdbnet
from wan_worker.catalog import Installed, Model
from wan_worker.components import UPSCALER, Component
from wan_worker.errors import GpuFault, ModelCorrupt
from wan_worker.faults import is_memory_or_gpu_fault
from wan_worker.hardware import Hardware
from wan_worker.plan import Plan, loaded_bytes, weight_budget
from wan_worker.prompt import Enhancer

Load = Callable[[Component, Path, Hardware, str], Any]

READERS: Final = 4
"""Files read ahead at a time: a network volume answers several readers faster than one."""

_PIECE = 8 * 1024**2


def load_component(
    component: Component, folder: Path, hardware: Hardware, device: str = "cpu"
) -> Any:
    """Read one component from its folder onto a device, in the type that this machine runs it in.

    Raises:
        ModelCorrupt: the library can't make sense of the files.
        GpuFault: the planned GPU is not usable from torch.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what matters in its warnings is checked below
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise GpuFault(f"torch can't use {hardware.name}: the driver does not fit this image")
    tokenizer, trust = None, {}
    try:
        if component.role == UPSCALER.role:
            # Its authors run it in half precision; bfloat16 would cost it a level of 255.
            on_gpu = hardware.device == "cuda"
            return rrdbnet.load(folder, torch.float16 if on_gpu else torch.float32, device)
        library, class_name = component.class_name.split(":")
        cls = getattr(importlib.import_module(library), class_name)
        if component.role in ("tokenizer", "image_processor"):
            return cls.from_pretrained(folder, local_files_only=True)
        if component.role == "enhancer":
            from transformers import AutoTokenizer

            # Said, not left to the default: unsaid, a repository with code of its own asks.
            trust = {"trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **trust)
        half = hardware.device == "cuda" and not component.keep_fp32
        dtype = torch.bfloat16 if half else torch.float32
        module, report = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            device_map={"": device},
            **{"torch_dtype" if library == "diffusers" else "dtype": dtype},
            **trust,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if is_memory_or_gpu_fault(error):
            raise
        raise ModelCorrupt(
            f"{component.name} can't be loaded ({type(error).__name__}); check it with: "
            "python download_weights.py --verify"
        ) from error
    # The libraries fill what a file lacks with random numbers and only warn.
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise ModelCorrupt(f"{component.name} has {len(report[problem])} {problem}")
    module = module.eval().requires_grad_(False)
    return module if tokenizer is None else Enhancer(tokenizer, module)


class Pool:
    """Components in memory, shared by all pipelines; for one thread at a time (the GPU lock)."""

    def __init__(self, hardware: Hardware, load: Load = load_component) -> None:
        self._hardware = hardware
        self._load = load
        self._components: OrderedDict[str, Any] = OrderedDict()
        self._bytes: dict[str, int] = {}

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the components in memory, least recently used first."""
        return tuple(self._components)

    def pipeline(self, plan: Plan, installed: Installed, check: Callable[[], None]) -> Any:
        """The diffusers pipeline for a plan, its weights in place.

        Args:
            installed: what the plan's model weighs, and where it is.
            check: called between components; raises to stop.
        """
        import diffusers

        needs = loaded_bytes(installed, self._hardware)
        # An offloaded pipeline leaves hooks on shared components, which hold its others alive.
        for part in self._components.values():
            _unhook(part)
        self._evict_for(needs)
        device = "cuda" if plan.device == "cuda" and plan.placement == "resident" else "cpu"
        absent = [installed.folders[n] for n in plan.model.component_names if n not in self.loaded]
        parts = {}
        with read_ahead(absent):
            for component in plan.model.components:
                check()
                folder, size = installed.folders[component.name], needs[component.name]
                parts[component.role] = self._component(component, folder, size, device)
        pipeline_class = getattr(diffusers, plan.pipeline)
        pipeline = pipeline_class(scheduler=scheduler(plan), **parts, **_configuration(plan.model))
        # VACE's counts the VAE's layers for its stride, and misses what patches add to it.
        pipeline.vae_scale_factor_spatial = pipeline.vae.config.scale_factor_spatial
        pipeline.set_progress_bar_config(disable=True)
        if plan.placement == "offload":
            pipeline.enable_model_cpu_offload(device=plan.device)
        elif plan.device == "cuda":
            pipeline.to("cuda")
        return pipeline

    def single(self, component: Component, folder: Path, size: int) -> Any:
        """One component by itself, where this machine computes; what does not fit beside it goes.

        Args:
            size: its bytes in memory.
        """
        self._evict_for({component.name: size})
        with read_ahead([] if component.name in self._components else [folder]):
            return self._component(component, folder, size, self._hardware.device)

    def drop(self, component: Component) -> None:
        """Free a component now."""
        if self._components.pop(component.name, None) is not None:
            del self._bytes[component.name]
            _release_memory(self._hardware)

    def upscaler(self, plan: Plan, extras: Mapping[str, Installed]) -> rrdbnet.Network | None:
        """The plan's upscaler on the plan's device, or None where it has none.

        For after ``pipeline``: it is loaded with the models, so that broken weights are noticed
        before the minutes of denoising. Small enough to take its place from the working memory:
        nothing is evicted for it.
        """
        if plan.upscale == 1:
            return None
        here, name = extras[UPSCALER.name], UPSCALER.name
        network: rrdbnet.Network = self._component(
            UPSCALER, here.folders[name], here.component_bytes[name], plan.device
        )
        return network

    def _component(self, component: Component, folder: Path, size: int, device: str) -> Any:
        if component.name not in self._components:
            self._components[component.name] = self._load(component, folder, self._hardware, device)
            self._bytes[component.name] = size
        self._components.move_to_end(component.name)
        return self._components[component.name]

    def _evict_for(self, needs: Mapping[str, int]) -> None:
        """Drop the least recently used components until the wanted ones fit beside the rest."""
        budget = weight_budget(self._hardware)
        wanted = sum(needs.values())
        spare = [name for name in self._components if name not in needs]
        dropped = False
        while spare and wanted + sum(self._bytes[name] for name in spare) > budget:
            name = spare.pop(0)
            del self._components[name], self._bytes[name]
            dropped = True
        if dropped:
            _release_memory(self._hardware)


@contextmanager
def read_ahead(folders: Iterable[Path]) -> Iterator[None]:
    """Bring weight files into the page cache while the block loads them one by one.

    The libraries' loaders patch torch globally while they build a module, so no two may run at
    once; they also read through page faults, one small piece at a time. Asking the kernel for the
    files meanwhile, several at once and in the order in which they are needed, is what can run
    beside them. (Reading them into a buffer of ours was slower than leaving it: it takes the cores
    that the loader needs. benchmarks/loading.py)
    """
    stop = threading.Event()

    def read(path: Path) -> None:
        # What fails here the loader reports; macOS has no such call.
        with suppress(OSError, AttributeError), path.open("rb") as file:
            for start in range(0, path.stat().st_size, _PIECE):
                if stop.is_set():
                    return
                os.posix_fadvise(file.fileno(), start, _PIECE, os.POSIX_FADV_WILLNEED)

    with ThreadPoolExecutor(READERS, thread_name_prefix="read-ahead") as pool:
        for folder in folders:
            for path in sorted(folder.glob("*.safetensors")):
                pool.submit(read, path)
        try:
            yield
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _configuration(model: Model) -> dict[str, Any]:
    """What a pipeline must know of its transformers beside their weights."""
    configuration: dict[str, Any] = {}
    if model.boundary_ratio is not None:
        configuration["boundary_ratio"] = model.boundary_ratio
    if model.expand_timesteps:
        configuration["expand_timesteps"] = True
    return configuration


def scheduler(plan: Plan) -> Any:
    """A fresh scheduler for the plan's solver, with its shift; it begins late for image-to-image.

    The arguments are those of the schedulers that Wan's diffusers repositories ship, and of Wan's
    own ``--sample_solver`` choices.
    """
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    made: Any
    flow = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": plan.flow_shift,
        "num_train_timesteps": 1000,
    }
    if plan.solver == "unipc":
        made = UniPCMultistepScheduler(**flow)
    elif plan.solver == "euler":
        made = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=plan.flow_shift)
    elif plan.solver == "dpm++":
        made = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **flow)
    else:
        raise ValueError(f"unknown solver {plan.solver}")
    if plan.steps_taken < plan.num_inference_steps:
        _begin_late(made, plan.num_inference_steps - plan.steps_taken)
    return made


def _begin_late(scheduler: Any, skipped: int) -> None:
    """Let a scheduler's schedule start some steps in, whenever it is set.

    diffusers' own video-to-video pipeline cuts the timesteps itself; the text-to-video pipeline,
    which also drives two experts, takes the whole schedule from its scheduler.
    """
    set_timesteps = scheduler.set_timesteps

    def set_late(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.timesteps = scheduler.timesteps[skipped:]
        scheduler.sigmas = scheduler.sigmas[skipped:]

    scheduler.set_timesteps = set_late


def _unhook(part: Any) -> None:
    if getattr(part, "_hf_hook", None) is not None:
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(part)


def _release_memory(hardware: Hardware) -> None:
    # Modules sit in reference cycles: without a collection nothing is free yet.
    gc.collect()
    if hardware.device == "cuda":
        import torch

        torch.cuda.empty_cache()
