"""What machine is this? The first GPU with its memory and compute capability, or the CPU, and why.

Asks ``nvidia-smi``, not torch: a worker that has not been given work yet should not pay seconds for
an import. Not covered: machines with several GPUs (the first is used) and GPUs of other makers.
"""

import os
import subprocess
from dataclasses import dataclass
from typing import Literal

QUERY = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,compute_cap",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True)
class Hardware:
    """Where the models run. ``memory_bytes`` is the GPU's memory, or the machine's on a CPU."""

    device: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    compute_capability: tuple[int, int] | None
    reason: str


def detect() -> Hardware:
    """Look at the machine. Takes milliseconds without a GPU, tens of them with one."""
    try:
        answer = subprocess.run(
            QUERY, capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except FileNotFoundError:
        return _cpu("no NVIDIA driver on this machine (nvidia-smi is absent)")
    except (subprocess.SubprocessError, OSError) as error:
        return _cpu(f"nvidia-smi failed ({type(error).__name__})")
    return parse(answer)


def parse(answer: str) -> Hardware:
    """Read the first line of the query's answer: ``NVIDIA H200, 143771, 9.0`` (MiB)."""
    lines = answer.strip().splitlines()
    if not lines:
        return _cpu("nvidia-smi lists no GPU")
    try:
        name, memory_mib, capability = (part.strip() for part in lines[0].rsplit(",", 2))
        major, minor = capability.split(".")
        return Hardware(
            device="cuda",
            name=name,
            memory_bytes=int(memory_mib) * 1024**2,
            compute_capability=(int(major), int(minor)),
            reason=f"nvidia-smi lists {name}",
        )
    except ValueError:
        return _cpu("nvidia-smi's answer could not be read")


def _cpu(reason: str) -> Hardware:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware("cpu", f"CPU, {os.cpu_count()} cores", memory, None, reason)
