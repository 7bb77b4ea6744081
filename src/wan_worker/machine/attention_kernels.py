"""Which attention kernels may be faster than torch's own choice on this GPU? Pure.

All of them compute exact attention. None is required: a package that is not installed is not a
candidate. A kernel is used only after it gave the right result on the job's GPU
(pipelines.attention).
- Hopper and Blackwell data-centre cards: FlashAttention 3 where it is installed (Hopper only), then
  cuDNN's kernel, which comes with torch. torch's first choice is FlashAttention 2. It was written
  for Ampere and leaves much of these cards' matrix units unused.
- All other cards: torch already chooses FlashAttention 2.

Not covered: kernels that round to eight bits internally (SageAttention). They compute another
function.
"""

from collections.abc import Mapping
from typing import Final

from wan_worker.machine.hardware import Hardware

NATIVE: Final = "native"
"""torch's own choice, which diffusers uses by default."""

NAMES: Final[Mapping[str, str]] = {
    "_flash_3": "FlashAttention 3",
    "_native_cudnn": "cuDNN's kernel",
    NATIVE: "torch's choice of kernel",
}
"""Kernels in words, by diffusers' names."""


def candidates(hardware: Hardware, fastest: str | None = None) -> tuple[str, ...]:
    """diffusers' names of the kernels to try, best first; the last is ``NATIVE``.

    Args:
        fastest: the kernel measured as fastest on this machine; then only it and ``NATIVE`` are
            tried.
    """
    suited = _suited(hardware)
    if fastest not in suited:
        return suited
    return tuple(dict.fromkeys((fastest, NATIVE)))


def _suited(hardware: Hardware) -> tuple[str, ...]:
    major = (hardware.compute_capability or (0, 0))[0] if hardware.device == "cuda" else 0
    names = []
    if major == 9 and "flash_attn_3" in hardware.packages:
        names.append("_flash_3")
    if major in (9, 10):
        names.append("_native_cudnn")
    return (*names, NATIVE)


def reason(names: tuple[str, ...]) -> str | None:
    """The plan's reason for its candidates; None if there is no choice."""
    if len(names) == 1:
        return None
    tried = ", ".join(NAMES[name] for name in names[:-1])
    return f"attention: {tried}, if it proves right on this GPU, else {NAMES[NATIVE]}"
