"""Writes the memory planner's results as a table for people: tests/golden/memory.md.

Not covered: whether they are right (tests/planning/test_memory.py).
"""

from typing import Any

from wan_worker.catalog.models import MODELS, Model
from wan_worker.machine.hardware import Hardware
from wan_worker.planning import memory
from wan_worker.planning.activations import JobSize
from wan_worker.planning.memory import Layout

CARDS = {12: 12282, 16: 16376, 24: 23034, 32: 32607, 48: 46068, 80: 81559, 141: 143771}
"""MiB that nvidia-smi shows, by the GB that a card is sold with; the smallest of each class."""


def card(gb: int, ram_gib: int = 128) -> Hardware:
    return Hardware(
        "cuda", f"{gb} GB card", CARDS[gb] * 1024**2, (8, 9), "for a test", 0, ram_gib * 1024**3
    )


def stored(model: Model) -> dict[str, int]:
    return {component.name: component.stored_bytes for component in model.components}


def jobs_of(model: Model) -> dict[str, JobSize]:
    """The jobs of the table: the native clip, the largest preset's clip, the largest clip."""
    image = model.text_pipeline is None or model.expand_timesteps
    wide, high = model.default_size
    found = {
        f"{wide}x{high}, {model.native_frames} frames": JobSize(
            wide * high, model.native_frames, image
        )
    }
    if model.max_pixels >= 1280 * 720:
        high = 720 if model.grid == 16 else 736
        found["1280x720, 33 frames (video_high)"] = JobSize(1280 * high, 33, image)
    if model.max_pixels > 1280 * 720:
        found[f"1920x1080, {model.native_frames} frames"] = JobSize(
            1920 * 1088, model.native_frames, image
        )
    return found


def described(layout: Layout | None) -> str:
    if layout is None:
        return "–"
    tiles = {"fp32": "", "bf16": ", bf16 decode", "tiled": ", tiled decode"}[layout.decode]
    tiles += ", tiled encode" if layout.tiled_encode else ""
    return f"{layout.placement} {layout.peak_bytes / 1e9:.1f}{tiles}"


def table(weight_type: Any = "bf16") -> str:
    head = " | ".join(f"{gb} GB ({mib * 1024**2 / 1e9:.1f})" for gb, mib in CARDS.items())
    lines = [f"| model and clip | {head} |", "|---" * (len(CARDS) + 1) + "|"]
    for model in MODELS.values():
        for name, job in jobs_of(model).items():
            cells = (
                described(memory.choose(model, stored(model), job, card(gb), None, weight_type))
                for gb in CARDS
            )
            lines.append(f"| {model.id}, {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def golden() -> str:
    return (
        "# What comes out of the memory planner\n\n"
        "Estimated peak in GB (10^9 bytes) of the layout that is chosen for a card whose memory is "
        "all free, in a machine with 128 GiB; – where the job is refused. A card is named by what "
        "it is sold with, which counts 2^30; what it has in 10^9 bytes stands beside. Written by "
        "`make docs`. Not yet measured on a GPU.\n\n"
        f"## bf16 (as Wan ships them; what a plan takes by itself)\n\n{table()}\n\n"
        f"## fp8 and int8 (only where they are asked for)\n\n{table('int8')}\n"
    )
