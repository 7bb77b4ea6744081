"""What machine is this? The first GPU with its memory and compute capability, or the CPU, and why.

Other processes may use the GPU too: the memory that they hold is asked again before each job.

``nvidia-smi`` is asked, not torch: a worker that has no job yet should not spend seconds on an
import. Not covered: machines with several GPUs (the first is used) and GPUs of other makers.
"""

import importlib.util
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

QUERY = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,memory.free,compute_cap",
    "--format=csv,noheader,nounits",
)


OPTIONAL = ("flash_attn_3",)
"""Packages that are used if they are installed."""


@dataclass(frozen=True)
class Tuned:
    """The fastest settings that were measured for one model; None: the default."""

    threads: int | None = None
    """Number of torch's threads, on a CPU."""
    kernel: str | None = None
    """Attention kernel, by diffusers' name."""

    @property
    def changes(self) -> bool:
        """Whether any setting differs from the default."""
        return self != Tuned()


@dataclass(frozen=True)
class Hardware:
    """Where the models run."""

    device: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    """The GPU's memory; without a GPU, the machine's."""
    compute_capability: tuple[int, int] | None
    reason: str
    taken_bytes: int = 0
    """GPU memory that other processes hold; this worker can't use it."""
    ram_bytes: int = 0
    """The machine's memory, or the container's limit where that is lower."""
    packages: tuple[str, ...] = ()
    """The installed ones of ``OPTIONAL``."""
    tuned: Mapping[str, Tuned] = field(default_factory=lambda: MappingProxyType({}))
    """By model id (tuning)."""

    @property
    def free_bytes(self) -> int:
        """Memory that this worker may fill; what it has loaded already counts as free."""
        return self.memory_bytes - self.taken_bytes


def detect() -> Hardware:
    """Look at the machine. This takes milliseconds without a GPU, tens of them with one."""
    try:
        answer = subprocess.run(
            QUERY, capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except FileNotFoundError:
        return _cpu("no NVIDIA driver on this machine (nvidia-smi is absent)")
    except (subprocess.SubprocessError, OSError) as error:
        return _cpu(f"nvidia-smi failed ({type(error).__name__})")
    # The package is looked for, not imported: an import would load torch too.
    found = tuple(name for name in OPTIONAL if importlib.util.find_spec(name) is not None)
    return replace(parse(answer), packages=found)


def parse(answer: str) -> Hardware:
    """Read the first line of the query's answer: ``NVIDIA H200, 143771, 143200, 9.0`` (MiB)."""
    lines = answer.strip().splitlines()
    if not lines:
        return _cpu("nvidia-smi lists no GPU")
    try:
        name, total, free, capability = (part.strip() for part in lines[0].rsplit(",", 3))
        major, minor = capability.split(".")
        return Hardware(
            device="cuda",
            name=name,
            memory_bytes=int(total) * 1024**2,
            compute_capability=(int(major), int(minor)),
            reason=f"nvidia-smi lists {name}",
            taken_bytes=(int(total) - int(free)) * 1024**2,
            ram_bytes=_ram_bytes(),
        )
    except ValueError:
        return _cpu("nvidia-smi's answer could not be read")


def refresh(machine: Hardware) -> Hardware:
    """The machine, with the GPU memory that other processes hold now.

    This is asked before each job. torch is asked only if a job has already started it.
    """
    if machine.device != "cuda":
        return machine
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        now = detect()
        return machine if now.device != "cuda" else now
    free, total = torch.cuda.mem_get_info()
    # Memory that torch has reserved is this worker's. Every plan allows for torch's context.
    taken = total - free - torch.cuda.memory_reserved()
    return replace(machine, memory_bytes=total, taken_bytes=max(0, taken - CONTEXT_BYTES))


def process_peak_bytes() -> int:
    """The most main memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def forget_gpu_peak(machine: Hardware) -> None:
    """Start to measure the GPU's peak anew."""
    torch = sys.modules.get("torch")
    if machine.device == "cuda" and torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def gpu_peak_bytes(machine: Hardware) -> int | None:
    """The most GPU memory that torch has held since ``forget_gpu_peak``; None on a CPU."""
    if machine.device != "cuda":
        return None
    return int(sys.modules["torch"].cuda.max_memory_reserved())


CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Files with a container's memory limit: Linux's control groups, version 2 and version 1."""

CONTEXT_BYTES = 512 * 1024**2
"""About what a CUDA context takes; not yet measured."""


def _ram_bytes() -> int:
    """The machine's memory, or the container's limit where that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # the file is absent, or holds the word "max"
            limits.append(int(path.read_text()))
    return min(limits)


def _cpu(reason: str) -> Hardware:
    memory = _ram_bytes()
    return Hardware("cpu", f"CPU, {os.cpu_count()} cores", memory, None, reason, ram_bytes=memory)
