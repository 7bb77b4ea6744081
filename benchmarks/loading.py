"""How fast weights load: bytes a second from a cold disk to the device, against reading them raw.

    python benchmarks/loading.py [--store DIR] [--json benchmarks/loading.json]

Without a store, random weights of the real classes are written for the purpose (1.5 GB, in shards,
in the type that this machine runs). Every case is a process of its own, its clock started after
the imports; the files are dropped from the page cache before it, and every page of every parameter
is touched before the clock stops, since a mapped file that nobody has read is not loaded. Medians.
Where the disk is virtual, its host may hold the files in memory: compare rows, not machines.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from wan_worker.catalog.components import UMT5, Component
from wan_worker.catalog.models import MODELS
from wan_worker.machine import hardware
from wan_worker.pipelines import load

TRANSFORMER = next(c for c in MODELS["wan2.1-t2v-1.3b"].components if c.role == "transformer")
COMPONENTS = (UMT5, TRANSFORMER)
CASES = {
    "raw, one reader": "plain read() of the same files",
    "raw, four readers": "the same, four files at a time",
    "libraries alone": "load_component, one component after the other",
    "worker": "the same with the files read ahead beside it, as the worker loads",
}
PIECE = 8 * 1024**2


def write(store: Path) -> None:
    """Random weights in shards, as large as is quick to write."""
    import torch
    from diffusers import WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    dtype = torch.bfloat16 if hardware.detect().device == "cuda" else torch.float32
    text = UMT5Config(d_model=2048, d_ff=5120, num_layers=5, num_heads=32, vocab_size=32_000)
    built: dict[Component, Any] = {
        UMT5: UMT5EncoderModel(text),
        TRANSFORMER: WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=4),
    }
    for component, module in built.items():
        module.to(dtype).save_pretrained(store / component.name, max_shard_size="150MB")


def weight_files(store: Path) -> list[Path]:
    return [p for c in COMPONENTS for p in sorted((store / c.name).glob("*.safetensors"))]


def forget(store: Path) -> None:
    """Drop the files from the page cache."""
    for path in weight_files(store):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    piece = bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def child(case: str, store: Path) -> float:
    """Seconds of one case, in this process."""
    warnings.simplefilter("ignore")
    import diffusers
    import torch
    import transformers

    assert diffusers.WanTransformer3DModel
    assert transformers.UMT5EncoderModel
    machine = hardware.detect()
    forget(store)
    started = time.perf_counter()
    if case.startswith("raw"):
        with ThreadPoolExecutor(4 if "four" in case else 1) as readers:
            list(readers.map(read, weight_files(store)))
        return time.perf_counter() - started
    folders = [store / component.name for component in COMPONENTS]
    loaded = []
    with load.read_ahead(folders) if case == "worker" else nullcontext():
        for component, folder in zip(COMPONENTS, folders, strict=True):
            module = load.load_component(component, folder, machine, machine.device)
            for parameter in module.parameters():
                parameter.detach().contiguous().view(-1).view(torch.uint8)[::4096].sum().item()
            loaded.append(module)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Load weights cold, against reading them raw.")
    parser.add_argument("--store", type=Path, help="a store with wan2.1-t2v-1.3b in it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "loading.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(child(options.child[0], Path(options.child[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or Path(folder)
        if options.store is None:
            write(store)
        size = sum(path.stat().st_size for path in weight_files(store))
        seconds: dict[str, list[float]] = {case: [] for case in CASES}
        for _ in range(options.rounds):
            for case in CASES:
                run = subprocess.run(
                    [sys.executable, __file__, "--child", case, str(store)],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                seconds[case].append(float(run.stdout.splitlines()[-1]))
    rates = {case: size / statistics.median(times) for case, times in seconds.items()}
    result = {
        "what": "weights from a cold disk to the device, against reading the same files raw",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {hardware.detect().name}",
        "date": time.strftime("%Y-%m-%d"),
        "bytes": size,
        "files": "a store's" if options.store else "random weights of the real classes",
        "seconds": {case: [round(t, 2) for t in times] for case, times in seconds.items()},
        "mb_per_s": {case: round(rate / 1e6) for case, rate in rates.items()},
        "worker_against_raw": round(
            rates["worker"] / max(rates["raw, one reader"], rates["raw, four readers"]), 2
        ),
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    for case, rate in rates.items():
        print(f"{case:18} {rate / 1e6:7.0f} MB/s   {CASES[case]}")


if __name__ == "__main__":
    main()
