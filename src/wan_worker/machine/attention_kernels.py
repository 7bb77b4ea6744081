"""Which attention kernels may be faster than torch's own choice on this GPU? Pure.

All compute exact attention. None is a requirement: a package that is not installed is no candidate,
and each is used only once it has proved right on the GPU that the job runs on (attention).
- Hopper and Blackwell's data-centre cards: FlashAttention 3 where it is installed (Hopper's only),
  then cuDNN's, which comes with torch. torch's first choice is FlashAttention 2, which was written
  for Ampere and leaves much of these cards' matrix units unused.
- Everything else: torch's choice is FlashAttention 2 already.

Not covered: kernels that round to eight bits on the way (SageAttention): not the same function.
"""

from collections.abc import Mapping
from typing import Final

from wan_worker.machine.hardware import Hardware

NATIVE: Final = "native"
"""torch's own choice: what diffusers does when nobody asks for more."""

SAID: Final[Mapping[str, str]] = {
    "_flash_3": "FlashAttention 3",
    "_native_cudnn": "cuDNN's kernel",
    NATIVE: "torch's choice of kernel",
}
"""By diffusers' names of them."""


def candidates(hardware: Hardware, fastest: str | None = None) -> tuple[str, ...]:
    """diffusers' names of kernels to try, best first; the last is ``NATIVE``.

    Args:
        fastest: as measured on this machine; nothing else is tried then, but ``NATIVE``.
    """
    usual = _usual(hardware)
    if fastest not in usual:
        return usual
    return tuple(dict.fromkeys((fastest, NATIVE)))


def _usual(hardware: Hardware) -> tuple[str, ...]:
    major = (hardware.compute_capability or (0, 0))[0] if hardware.device == "cuda" else 0
    found = []
    if major == 9 and "flash_attn_3" in hardware.packages:
        found.append("_flash_3")
    if major in (9, 10):
        found.append("_native_cudnn")
    return (*found, NATIVE)


def reason(names: tuple[str, ...]) -> str | None:
    """What a plan says of its candidates; nothing where there is no choice."""
    if len(names) == 1:
        return None
    tried = ", ".join(SAID[name] for name in names[:-1])
    return f"attention: {tried}, if it proves right on this GPU, else {SAID[NATIVE]}"
