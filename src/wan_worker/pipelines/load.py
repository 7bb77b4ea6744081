"""Loads one component from disk and checks it; reads files ahead while others are built.

Promises: weights are opened only as safetensors, and nothing is fetched from anywhere. They go
straight to the device that they run on, in the type that they are stored in. Missing or unexpected
weights are an error.
Not covered: what stays in memory (pool) and whether files are whole (weights.store).
"""

import importlib
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from wan_worker.catalog.components import UPSCALER, Component
from wan_worker.errors import GpuFault, ModelCorrupt
from wan_worker.faults import is_memory_or_gpu_fault
from wan_worker.machine.hardware import Hardware
from wan_worker.prompts.enhance import Enhancer
from wan_worker.weights import real_esrgan

READERS: Final = 4
"""Files that are read ahead together: a network volume serves several readers faster than one."""

_PIECE = 8 * 1024**2


def load_component(
    component: Component, folder: Path, hardware: Hardware, device: str = "cpu"
) -> Any:
    """Read one component from its folder onto a device, in the type that this machine runs it in.

    Raises:
        ModelCorrupt: the library can't read the files.
        GpuFault: torch can't use the planned GPU.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # the checks below cover its important warnings
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise GpuFault(f"torch can't use {hardware.name}: the driver does not fit this image")
    tokenizer, trust = None, {}
    try:
        if component.role == UPSCALER.role:
            # Its authors use half precision; bfloat16 would change pixels by one level of 255.
            on_gpu = hardware.device == "cuda"
            return real_esrgan.load(folder, torch.float16 if on_gpu else torch.float32, device)
        library, class_name = component.class_name.split(":")
        cls = getattr(importlib.import_module(library), class_name)
        if component.role in ("tokenizer", "image_processor"):
            return cls.from_pretrained(folder, local_files_only=True)
        if component.role == "enhancer":
            from transformers import AutoTokenizer

            # Explicit: by default, transformers asks the user if a repository has its own code.
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
    # If weights are missing, the libraries only warn and use random numbers.
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise ModelCorrupt(f"{component.name} has {len(report[problem])} {problem}")
    module = module.eval().requires_grad_(False)
    return module if tokenizer is None else Enhancer(tokenizer, module)


@contextmanager
def read_ahead(folders: Iterable[Path]) -> Iterator[None]:
    """Bring weight files into the page cache while the block loads them one by one.

    The libraries' loaders patch torch globally while they build a module, so that no two may run at
    once. They also read through page faults, one small piece at a time. Beside them, we can ask the
    kernel for several files at once, in the order in which they are needed. (Reading them into our
    own buffer was slower than no read-ahead: it takes the cores that the loader needs.
    benchmarks/loading.py)
    """
    stop = threading.Event()

    def read(path: Path) -> None:
        # The loader reports any failure; macOS has no such call.
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
