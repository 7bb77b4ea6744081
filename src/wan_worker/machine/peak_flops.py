"""How fast can a GPU compute at most? The makers' figures, by the name that its driver reports.

The unit is TFLOP/s of dense bf16 matrix products with fp32 accumulation.
Not covered: the share of it that a job reaches (timing.estimate), and memory bandwidth.
"""

from typing import Final

PEAKS: Final = {
    "B200": (2250.0, "NVIDIA DGX B200 datasheet: a quarter of its FP8 figure with sparsity, each"),
    "H200": (989.4, "NVIDIA H200 datasheet, SXM, half of the figure with sparsity"),
    "H100 NVL": (835.5, "NVIDIA H100 datasheet, NVL, half of the figure with sparsity"),
    "H100 PCIe": (756.5, "NVIDIA H100 PCIe product brief, half of the figure with sparsity"),
    "H100": (989.4, "NVIDIA H100 datasheet, SXM, half of the figure with sparsity"),
    "A100": (312.0, "NVIDIA A100 datasheet"),
    "L40S": (362.1, "NVIDIA L40S datasheet"),
    "L40": (181.1, "NVIDIA L40 datasheet"),
    "RTX 6000 Ada": (364.2, "NVIDIA RTX 6000 Ada datasheet, half of the figure with sparsity"),
    "A40": (149.7, "NVIDIA A40 datasheet"),
    "RTX A6000": (154.8, "NVIDIA RTX A6000 datasheet, half of the figure with sparsity"),
    "RTX 5090": (209.5, "NVIDIA RTX Blackwell architecture whitepaper"),
    "RTX 4090": (165.2, "NVIDIA Ada architecture whitepaper"),
    "RTX 3090": (71.0, "NVIDIA GA102 architecture whitepaper"),
    "L4": (121.0, "NVIDIA L4 datasheet, half of the figure with sparsity"),
}
"""Peak and its source, by words of nvidia-smi's name; if several keys fit, the first counts."""

SHARE: Final = 0.35
"""Share of a GPU's peak that a transformer is assumed to reach. diffusers takes 9.77 s a step for
the 14B image-to-video at 480p on an H100: 343 of 989 TFLOP/s."""

UNKNOWN_TFLOPS: Final = 100.0
"""Peak that is assumed for a GPU that is not in the table."""


def peak_of(name: str) -> tuple[float, str] | None:
    """A GPU's TFLOP/s and their source, by nvidia-smi's name; None: not in the table."""
    words = set(name.replace("-", " ").split())
    fitting = (peak for key, peak in PEAKS.items() if set(key.split()) <= words)
    return next(fitting, None)
