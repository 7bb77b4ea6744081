"""One component from disk, checked; and its files read ahead while others are built.

Promises: weights are opened as safetensors only and nothing is fetched from anywhere; they go
straight to the device that they run on, in the type that they are stored in; what the files lack or
have too much is an error.
Not covered: what stays in memory (pipelines) and whether files are whole (weights).
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
            return real_esrgan.load(folder, torch.float16 if on_gpu else torch.float32, device)
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
